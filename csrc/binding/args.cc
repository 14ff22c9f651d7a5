#include "args.h"

#include <cmath>

namespace flash_gqa::binding {
Args::Args(Environment& environment, const Napi::CallbackInfo& info, const char* operation)
    : environment_(environment), operation_(operation) {
  const double count =
      info.Length() > 0 && info[0].IsNumber() ? info[0].As<Napi::Number>().DoubleValue() : -1;
  if (!(count >= 1 && count <= kMaxArgs)) fail("expected a count of arguments");
  count_ = static_cast<uint32_t>(count);
  device_ = environment.device(next("device"));
}

void Args::fail(const std::string& what) const {
  fail_invalid(std::string(operation_) + ": " + what);
}

double Args::next(const char* name) {
  if (position_ == count_) fail(std::string("too few arguments: ") + name + " is missing");
  return environment_.args()[position_++];
}

int32_t Args::i32(const char* name, int32_t min, int32_t max) {
  const double value = next(name);
  if (!(value >= min && value <= max && value == std::trunc(value))) {
    fail(std::string(name) + " expected an integer from " + std::to_string(min) + " to " +
         std::to_string(max) + ", got " + number_text(value));
  }
  return static_cast<int32_t>(value);
}

int64_t Args::i64(const char* name) {
  const double value = next(name);
  if (!(value >= 0 && value <= static_cast<double>(kMaxSafeInteger) && value == std::trunc(value)))
    fail(std::string(name) + " expected an integer of at least 0, got " + number_text(value));
  return static_cast<int64_t>(value);
}

double Args::f64(const char* name) {
  const double value = next(name);
  if (!std::isfinite(value))
    fail(std::string(name) + " expected a finite number, got " + number_text(value));
  return value;
}

float Args::f32(const char* name) {
  const float value = static_cast<float>(f64(name));
  if (!std::isfinite(value)) fail(std::string(name) + " is too large for float32");
  return value;
}

DType Args::float_dtype(const char* name) {
  return static_cast<DType>(i32(name, 0, static_cast<int32_t>(DType::kBFloat16)));
}

Ref Args::ref(const char* name) {
  const double id = next(name);
  const int64_t offset = i64(name);
  if (id == 0) return {name, nullptr, 0};
  const auto* block = environment_.find_block(id);
  if (block == nullptr) {
    throw BackendError("DISPOSED", std::string(operation_) + ": " + name +
                                       " is disposed, or belongs to another thread");
  }
  if ((*block)->device != device_)
    fail(std::string(name) + " belongs to another device: all tensors must be on one");
  environment_.use(*block);
  return {name, block->get(), offset};
}

RowsRef Args::rows(const char* name) {
  const Ref place = ref(name);
  return {place, i64(name)};
}

void Args::end() {
  if (position_ == count_) return;
  fail("expected " + std::to_string(position_) + " arguments, got " + std::to_string(count_));
}

void Args::require(const Ref& ref) const {
  if (!ref) fail(std::string(ref.name) + " is missing");
}

char* Args::place(const Ref& ref, int64_t elements, size_t element_bytes, bool written) {
  if (!ref) return nullptr;
  if (ref.block->ptr == nullptr) fail(std::string(ref.name) + " is host memory");
  const int64_t bytes = product(elements, element_bytes);
  const int64_t size = static_cast<int64_t>(ref.block->bytes);
  if (ref.offset > size || bytes > size - ref.offset) {
    fail(std::string(ref.name) + " needs " + std::to_string(bytes) + " bytes at offset " +
         std::to_string(ref.offset) + ", its buffer has " + std::to_string(size));
  }
  if (ref.offset % static_cast<int64_t>(element_bytes) != 0) {
    fail(std::string(ref.name) + " offset " + std::to_string(ref.offset) +
         " is not a multiple of its element's " + std::to_string(element_bytes) + " bytes");
  }
  char* begin = ref.block->ptr + ref.offset;
  if (num_ranges_ == kMaxRanges) fail("too many tensors");
  ranges_[num_ranges_++] = {ref.name, begin, begin + bytes, written};
  return begin;
}

HostBuffer* Args::host(const Ref& ref, int64_t bytes) {
  require(ref);
  if (ref.block->host == nullptr) fail(std::string(ref.name) + " is device memory");
  // Exactly: the first to use it decides how much is made.
  if (ref.offset != 0 || bytes != static_cast<int64_t>(ref.block->bytes)) {
    fail(std::string(ref.name) + " needs " + std::to_string(bytes) + " bytes, its buffer has " +
         std::to_string(ref.block->bytes));
  }
  return ref.block->host.get();
}

const void* Args::input(const Ref& ref, int64_t elements, size_t element_bytes) {
  return place(ref, elements, element_bytes, false);
}

void* Args::output(const Ref& ref, int64_t elements, size_t element_bytes) {
  return place(ref, elements, element_bytes, true);
}

const void* Args::input_rows(const RowsRef& ref, int64_t rows, int64_t width, DType dtype) {
  if (ref && rows > 1 && ref.stride < width) {
    fail(std::string(ref.name) + " row stride expected at least " + std::to_string(width) +
         " elements, got " + std::to_string(ref.stride));
  }
  int64_t elements = 0;
  if (rows > 0 && __builtin_add_overflow(product(rows - 1, ref.stride), width, &elements))
    elements = INT64_MAX;
  return input(ref, elements, dtype_bytes(dtype));
}

void Args::check_overlap(const void* in_place, std::initializer_list<const void*> over) const {
  for (size_t i = 0; i < num_ranges_; ++i) {
    const Range& out = ranges_[i];
    if (!out.written || out.begin == out.end) continue;
    for (size_t j = 0; j < num_ranges_; ++j) {
      const Range& other = ranges_[j];
      if (i == j || other.begin == other.end) continue;
      if (out.begin >= other.end || other.begin >= out.end) continue;
      bool allowed = false;
      if (out.begin == in_place && out.begin == other.begin && out.end == other.end)
        for (const void* input : over) allowed |= input == other.begin && !other.written;
      if (allowed) continue;
      fail(std::string(out.name) + " overlaps " + other.name +
           ": give the result memory of its own");
    }
  }
}

}  // namespace flash_gqa::binding
