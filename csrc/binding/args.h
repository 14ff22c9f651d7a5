// Reads one operation's block of doubles in the order in which lib/native.ts wrote it, and checks
// all that memory safety needs: the count, numbers, ids, extents, alignment and overlap.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "environment.h"
#include "errors.h"

namespace flash_gqa::binding {

// a * b * ..., or INT64_MAX where that overflows: such an extent fits no buffer.
template <typename... Rest>
int64_t product(int64_t first, Rest... rest) {
  int64_t result = first;
  ((result =
        __builtin_mul_overflow(result, static_cast<int64_t>(rest), &result) ? INT64_MAX : result),
   ...);
  return result;
}

// A place in device memory. block == nullptr: no tensor.
struct Ref {
  const char* name;
  Block* block;
  int64_t offset;

  explicit operator bool() const { return block != nullptr; }
};

struct RowsRef : Ref {
  int64_t stride;  // elements from one row to the next
};

class Args {
 public:
  Args(Environment& environment, const Napi::CallbackInfo& info, const char* operation);

  Environment& environment() { return environment_; }
  const std::shared_ptr<Device>& device() const { return device_; }
  Backend& backend() const { return *device_->backend; }

  int32_t i32(const char* name, int32_t min = 0, int32_t max = INT32_MAX);
  int64_t i64(const char* name);
  float f32(const char* name);
  double f64(const char* name);
  int32_t flag(const char* name) { return i32(name, 0, 1); }
  DType float_dtype(const char* name = "dtype");
  Ref ref(const char* name);
  RowsRef rows(const char* name);
  // All that the caller wrote has been read.
  void end();

  // The address behind a ref, once its extent is known. A ref that is not required may be null.
  const void* input(const Ref& ref, int64_t elements, size_t element_bytes);
  void* output(const Ref& ref, int64_t elements, size_t element_bytes);
  template <typename T>
  const T* input(const Ref& ref, int64_t elements) {
    return static_cast<const T*>(input(ref, elements, sizeof(T)));
  }
  template <typename T>
  T* output(const Ref& ref, int64_t elements) {
    return static_cast<T*>(output(ref, elements, sizeof(T)));
  }
  // The whole of a host buffer.
  HostBuffer* host(const Ref& ref, int64_t bytes);
  // [rows, width] with a stride of its own.
  const void* input_rows(const RowsRef& ref, int64_t rows, int64_t width, DType dtype);

  void require(const Ref& ref) const;
  // Outputs touch nothing else, except that `in_place` may lie exactly over one of `over`.
  void check_overlap(const void* in_place = nullptr,
                     std::initializer_list<const void*> over = {}) const;
  [[noreturn]] void fail(const std::string& what) const;
  void expect(bool holds, const char* what) const {
    if (!holds) fail(what);
  }

 private:
  struct Range {
    const char* name;
    const char* begin;
    const char* end;
    bool written;
  };
  static constexpr size_t kMaxRanges = 2 * kMaxMergeParts + 16;

  double next(const char* name);
  char* place(const Ref& ref, int64_t elements, size_t element_bytes, bool written);

  Environment& environment_;
  const char* operation_;
  uint32_t count_;
  uint32_t position_ = 0;
  std::shared_ptr<Device> device_;
  std::array<Range, kMaxRanges> ranges_;
  size_t num_ranges_ = 0;
};

// Runs `call(workspace)` with `bytes` of scratch, which goes back to the pool in queue order.
template <typename Call>
void with_workspace(Args& args, size_t bytes, Call&& call) {
  if (bytes == 0) {
    call(nullptr);
    return;
  }
  auto block = args.environment().take(args.device(), bytes);
  call(static_cast<void*>(block->ptr));
  args.environment().give_back(std::move(block));
}

}  // namespace flash_gqa::binding
