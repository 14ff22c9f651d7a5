#include "values.h"

#include "args.h"

namespace flash_gqa::binding {
namespace {

size_t element_bytes(napi_typedarray_type type) {
  switch (type) {
    case napi_int8_array:
    case napi_uint8_array:
    case napi_uint8_clamped_array:
      return 1;
    case napi_int16_array:
    case napi_uint16_array:
      return 2;
    case napi_int32_array:
    case napi_uint32_array:
    case napi_float32_array:
      return 4;
    case napi_float64_array:
    case napi_bigint64_array:
    case napi_biguint64_array:
      return 8;
    default:
      return 2;  // Float16Array, which older headers do not name
  }
}

}  // namespace

void expect_convertible(const char* operation, DType from, DType to) {
  if (from != to && (from == DType::kInt32 || to == DType::kInt32))
    fail_invalid(std::string(operation) + ": int32 and float dtypes do not convert");
}

HostBytes host_bytes_at(const Napi::CallbackInfo& info, size_t i, const char* name) {
  bool is_array = false, is_view = false;
  napi_is_typedarray(info.Env(), info[i], &is_array);
  napi_is_dataview(info.Env(), info[i], &is_view);
  void* data = nullptr;
  size_t length = 0;
  napi_value buffer;
  size_t offset;
  if (is_array) {
    napi_typedarray_type type;
    if (napi_get_typedarray_info(info.Env(), info[i], &type, &length, &data, &buffer, &offset) !=
        napi_ok) {
      fail_invalid(std::string(name) + ": its memory cannot be read");
    }
    length *= element_bytes(type);
  } else if (is_view) {
    if (napi_get_dataview_info(info.Env(), info[i], &length, &data, &buffer, &offset) != napi_ok)
      fail_invalid(std::string(name) + ": its memory cannot be read");
  } else {
    fail_invalid(std::string(name) + ": expected a typed array or a DataView");
  }
  return {data, data == nullptr ? 0 : length};
}

const int32_t* pairs_at(const Napi::CallbackInfo& info, size_t i, int64_t num_pairs) {
  const HostBytes pairs = host_bytes_at(info, i, "pairs");
  if (static_cast<int64_t>(pairs.bytes) / 8 < num_pairs ||
      reinterpret_cast<uintptr_t>(pairs.data) % alignof(int32_t) != 0) {
    fail_invalid("pairs: expected an Int32Array of " + std::to_string(2 * num_pairs) +
                 " numbers, got " + std::to_string(pairs.bytes) + " bytes");
  }
  return static_cast<const int32_t*>(pairs.data);
}

Place place_at(Environment& environment, const Napi::CallbackInfo& info, size_t i,
               const char* operation, DType dtype, int64_t elements) {
  const auto* found = environment.find_block(number_at(info, i, "id"));
  if (found == nullptr) {
    throw BackendError("DISPOSED", std::string(operation) +
                                       ": the tensor is disposed, or belongs to another thread");
  }
  const auto& block = *found;
  if (block->ptr == nullptr) fail_invalid(std::string(operation) + ": it is host memory");
  const int64_t offset = size_at(info, i + 1, "offset");
  const int64_t width = static_cast<int64_t>(dtype_bytes(dtype));
  const int64_t size = static_cast<int64_t>(block->bytes);
  const int64_t bytes = product(elements, width);
  if (offset > size || bytes > size - offset) {
    fail_invalid(std::string(operation) + ": needs " + std::to_string(bytes) + " bytes at offset " +
                 std::to_string(offset) + ", the buffer has " + std::to_string(size));
  }
  if (offset % width != 0)
    fail_invalid(std::string(operation) + ": offset is not a multiple of the element's bytes");
  environment.use(block);
  return {block, block->ptr + offset};
}

}  // namespace flash_gqa::binding
