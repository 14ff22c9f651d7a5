// Positional arguments of the functions that do not use the block of doubles.
#pragma once

#include <napi.h>

#include <cmath>
#include <string>

#include "environment.h"
#include "errors.h"

namespace flash_gqa::binding {

inline double number_at(const Napi::CallbackInfo& info, size_t i, const char* name) {
  if (!info[i].IsNumber()) fail_invalid(std::string(name) + ": expected a number");
  return info[i].As<Napi::Number>().DoubleValue();
}

// An integer in [min, max]; max at most 2^53 - 1.
inline int64_t integer_at(const Napi::CallbackInfo& info, size_t i, const char* name, int64_t min,
                          int64_t max) {
  const double value = number_at(info, i, name);
  if (!(value >= static_cast<double>(min) && value <= static_cast<double>(max) &&
        value == std::trunc(value))) {
    fail_invalid(std::string(name) + ": expected an integer from " + std::to_string(min) + " to " +
                 std::to_string(max) + ", got " + number_text(value));
  }
  return static_cast<int64_t>(value);
}

inline int64_t size_at(const Napi::CallbackInfo& info, size_t i, const char* name) {
  return integer_at(info, i, name, 0, kMaxSafeInteger);
}

inline DType dtype_at(const Napi::CallbackInfo& info, size_t i, const char* name) {
  return static_cast<DType>(integer_at(info, i, name, 0, static_cast<int64_t>(DType::kInt32)));
}

// Floats convert into each other; int32 is only itself.
void expect_convertible(const char* operation, DType from, DType to);

// The bytes behind a typed array or DataView. A detached one has none.
struct HostBytes {
  const void* data;
  size_t bytes;
};
HostBytes host_bytes_at(const Napi::CallbackInfo& info, size_t i, const char* name);

// An Int32Array of at least 2 * num_pairs words.
const int32_t* pairs_at(const Napi::CallbackInfo& info, size_t i, int64_t num_pairs);

// `elements` elements of a live block, by id and byte offset in two arguments from `i` on.
struct Place {
  std::shared_ptr<Block> block;
  char* ptr;
};
Place place_at(Environment& environment, const Napi::CallbackInfo& info, size_t i,
               const char* operation, DType dtype, int64_t elements);

}  // namespace flash_gqa::binding
