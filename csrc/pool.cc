#include "pool.h"

#include <bit>
#include <cstdio>
#include <string>

#include "backend.h"

namespace flash_gqa {
namespace {

constexpr size_t kSmallest = 256;
constexpr size_t kLarge = size_t{64} << 20;
constexpr size_t kLargeStep = size_t{2} << 20;

constexpr size_t round_up(size_t bytes, size_t step) { return (bytes + step - 1) / step * step; }

std::string in_mib(int64_t bytes) {
  char text[48];
  std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

}  // namespace

size_t Pool::block_bytes(size_t bytes) {
  if (bytes <= kSmallest) return kSmallest;
  if (bytes > kLarge) return round_up(bytes, kLargeStep);
  return round_up(bytes, std::bit_ceil(bytes) / 16);
}

void* Pool::allocate(size_t bytes) {
  const size_t block = block_bytes(bytes);
  std::lock_guard lock(mutex_);
  std::vector<void*>& free = free_[block];
  void* ptr = nullptr;
  if (!free.empty()) {
    ptr = free.back();
    free.pop_back();
    cached_ -= static_cast<int64_t>(block);
  } else {
    ptr = source_.acquire(block);
    if (ptr == nullptr && cached_ > 0) {
      trim_locked();
      ptr = source_.acquire(block);
    }
    if (ptr == nullptr) {
      throw BackendError("OUT_OF_MEMORY", "needed " + std::to_string(block) + " bytes (" +
                                              in_mib(static_cast<int64_t>(block)) + "), free " +
                                              std::to_string(source_.free_bytes()) + " bytes (" +
                                              in_mib(source_.free_bytes()) +
                                              "), held by live tensors " + in_mib(allocated_) +
                                              ": dispose tensors, or ask for less");
    }
  }
  allocated_ += static_cast<int64_t>(block);
  return ptr;
}

void Pool::release(void* ptr, size_t bytes) {
  const size_t block = block_bytes(bytes);
  std::lock_guard lock(mutex_);
  free_[block].push_back(ptr);
  allocated_ -= static_cast<int64_t>(block);
  cached_ += static_cast<int64_t>(block);
}

void Pool::trim() {
  std::lock_guard lock(mutex_);
  trim_locked();
}

void Pool::trim_locked() {
  for (auto& [block, pointers] : free_)
    for (void* ptr : pointers) source_.release(ptr, block);
  free_.clear();
  cached_ = 0;
}

int64_t Pool::allocated() const {
  std::lock_guard lock(mutex_);
  return allocated_;
}

int64_t Pool::cached() const {
  std::lock_guard lock(mutex_);
  return cached_;
}

}  // namespace flash_gqa
