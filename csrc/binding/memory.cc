// Device memory: its life, and what moves it.
#include "../machine.h"
#include "args.h"
#include "functions.h"
#include "values.h"

namespace flash_gqa::binding {
namespace {

// The largest ArrayBuffer that every supported Node can make; beyond it V8 ends the process.
constexpr int64_t kMaxReadBytes = (int64_t{1} << 32) - 1;
// Reads from here on ask whether the host has the memory: V8 ends the process where it has not.
constexpr int64_t kLargeReadBytes = int64_t{64} << 20;

// The safety net for a handle that was never freed.
void on_handle_collected(napi_env, void* id, void* hint) {
  Tether* tether = static_cast<Tether*>(hint);
  --tether->handles;
  if (tether->environment != nullptr) {
    tether->environment->free_block(static_cast<double>(reinterpret_cast<uintptr_t>(id)));
  } else if (tether->handles == 0) {
    delete tether;
  }
}

Napi::Value handle_of(Environment& environment, double id) {
  const Napi::Env env = environment.env();
  auto handle = Napi::Object::New(env);
  handle.Set("id", Napi::Number::New(env, id));
  if (napi_add_finalizer(env, handle, reinterpret_cast<void*>(static_cast<uintptr_t>(id)),
                         on_handle_collected, environment.tether(), nullptr) == napi_ok) {
    ++environment.tether()->handles;
  }
  return handle;
}

void expect_apart(const char* operation, const Place& dst, int64_t dst_bytes, const Place& src,
                  int64_t src_bytes) {
  if (dst.ptr < src.ptr + src_bytes && src.ptr < dst.ptr + dst_bytes)
    fail_invalid(std::string(operation) + ": source and destination overlap");
}

void expect_one_device(const char* operation, const Place& a, const Place& b) {
  if (a.block->device != b.block->device)
    fail_invalid(std::string(operation) + ": both tensors must be on one device");
}

}  // namespace

Napi::Value allocate(Environment& environment, const Napi::CallbackInfo& info) {
  const auto& device = environment.device(number_at(info, 0, "device"));
  const int64_t bytes = size_at(info, 1, "bytes");
  return handle_of(environment, environment.add_block(device, static_cast<size_t>(bytes)));
}

Napi::Value allocate_host(Environment& environment, const Napi::CallbackInfo& info) {
  const auto& device = environment.device(number_at(info, 0, "device"));
  const int64_t bytes = size_at(info, 1, "bytes");
  return handle_of(environment, environment.add_host_block(device, static_cast<size_t>(bytes)));
}

Napi::Value free_memory(Environment& environment, const Napi::CallbackInfo& info) {
  environment.free_block(number_at(info, 0, "id"));
  return environment.env().Undefined();
}

Napi::Value live_buffers(Environment& environment, const Napi::CallbackInfo&) {
  return Napi::Number::New(environment.env(), static_cast<double>(environment.live_blocks()));
}

Napi::Value upload(Environment& environment, const Napi::CallbackInfo& info) {
  const DType to = dtype_at(info, 2, "to");
  const DType from = dtype_at(info, 4, "from");
  const int64_t elements = size_at(info, 5, "elements");
  const Place dst = place_at(environment, info, 0, "upload", to, elements);
  const HostBytes src = host_bytes_at(info, 3, "upload: data");
  expect_convertible("upload", from, to);
  refuse_in_capture(*dst.block->device, "upload");
  if (product(elements, dtype_bytes(from)) > static_cast<int64_t>(src.bytes)) {
    fail_invalid("upload: data needs " + std::to_string(product(elements, dtype_bytes(from))) +
                 " bytes, got " + std::to_string(src.bytes));
  }
  if (elements > 0)
    dst.block->device->backend->upload(dst.ptr, to, src.data, from, static_cast<size_t>(elements));
  return environment.env().Undefined();
}

Napi::Value copy(Environment& environment, const Napi::CallbackInfo& info) {
  // Bytes have no alignment of their own: a copy of 2-byte elements is the narrowest.
  const int64_t bytes = size_at(info, 4, "bytes");
  const DType half = DType::kFloat16;
  if (bytes % 2 != 0) fail_invalid("copy: bytes must be even");
  const Place dst = place_at(environment, info, 0, "copy", half, bytes / 2);
  const Place src = place_at(environment, info, 2, "copy", half, bytes / 2);
  expect_one_device("copy", dst, src);
  expect_apart("copy", dst, bytes, src, bytes);
  if (bytes > 0) dst.block->device->backend->copy(dst.ptr, src.ptr, static_cast<size_t>(bytes));
  return environment.env().Undefined();
}

Napi::Value fill(Environment& environment, const Napi::CallbackInfo& info) {
  const auto value = static_cast<uint8_t>(integer_at(info, 2, "fill: value", 0, 255));
  const int64_t bytes = size_at(info, 3, "bytes");
  if (bytes % 2 != 0) fail_invalid("fill: bytes must be even");
  const Place dst = place_at(environment, info, 0, "fill", DType::kFloat16, bytes / 2);
  if (bytes > 0) dst.block->device->backend->fill(dst.ptr, value, static_cast<size_t>(bytes));
  return environment.env().Undefined();
}

Napi::Value convert(Environment& environment, const Napi::CallbackInfo& info) {
  const DType to = dtype_at(info, 2, "to");
  const DType from = dtype_at(info, 5, "from");
  const int64_t elements = size_at(info, 6, "elements");
  const Place dst = place_at(environment, info, 0, "convert", to, elements);
  const Place src = place_at(environment, info, 3, "convert", from, elements);
  expect_one_device("convert", dst, src);
  expect_convertible("convert", from, to);
  if (to == DType::kInt32) fail_invalid("convert: expected float dtypes, got int32");
  expect_apart("convert", dst, elements * dtype_bytes(to), src, elements * dtype_bytes(from));
  if (elements > 0) {
    dst.block->device->backend->convert(dst.ptr, to, src.ptr, from, static_cast<size_t>(elements));
  }
  return environment.env().Undefined();
}

Napi::Value scatter(Environment& environment, const Napi::CallbackInfo& info) {
  const int64_t elements = size_at(info, 2, "elements");
  const auto num_pairs = static_cast<int32_t>(integer_at(info, 4, "numPairs", 0, INT32_MAX));
  const Place dst = place_at(environment, info, 0, "scatter", DType::kInt32, elements);
  const int32_t* pairs = pairs_at(info, 3, num_pairs);
  refuse_in_capture(*dst.block->device, "scatter");
  for (int64_t i = 0; i < num_pairs; ++i) {
    const int32_t index = pairs[2 * i];
    if (index < 0 || index >= elements) {
      fail_invalid("scatter: index " + std::to_string(index) + " is outside [0, " +
                   std::to_string(elements) + ")");
    }
  }
  if (num_pairs > 0) {
    dst.block->device->backend->scatter({reinterpret_cast<int32_t*>(dst.ptr), pairs, num_pairs});
  }
  return environment.env().Undefined();
}

Napi::Value read(Environment& environment, const Napi::CallbackInfo& info) {
  const DType from = dtype_at(info, 2, "from");
  const DType to = dtype_at(info, 3, "to");
  const int64_t elements = size_at(info, 4, "elements");
  const Place src = place_at(environment, info, 0, "read", from, elements);
  if (to != from && (to != DType::kFloat32 || from == DType::kInt32))
    fail_invalid("read: expected the tensor's dtype or float32");
  refuse_in_capture(*src.block->device, "read");
  const int64_t bytes = product(elements, dtype_bytes(to));
  if (bytes > kMaxReadBytes) {
    throw BackendError("UNSUPPORTED", "read: " + std::to_string(bytes) +
                                          " bytes are more than one array can hold (4 GiB): read "
                                          "slices of the tensor");
  }
  if (bytes >= kLargeReadBytes && bytes > host_memory().available) {
    throw BackendError("OUT_OF_MEMORY",
                       "read: needs " + std::to_string(bytes) + " bytes of host memory, free " +
                           std::to_string(host_memory().available) + ": read slices of the tensor");
  }
  auto buffer = Napi::ArrayBuffer::New(environment.env(), static_cast<size_t>(bytes));
  return environment.completion().wait(buffer, src.block, [&](WaitCallback done) {
    src.block->device->backend->read(buffer.Data(), to, src.ptr, from,
                                     static_cast<size_t>(elements), std::move(done));
  });
}

}  // namespace flash_gqa::binding
