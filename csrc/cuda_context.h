// One CUDA device as the threads of its backend see it: what went wrong, and whether it still
// answers.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <string>

#include "backend.h"

namespace flash_gqa {

// "CUDA error 700, cudaErrorIllegalAddress: an illegal memory access was encountered"
std::string cuda_error_text(cudaError_t error);

class CudaContext {
 public:
  explicit CudaContext(int32_t device) : device_(device) {}

  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  int32_t device() const { return device_; }
  bool lost() const { return lost_.load(std::memory_order_relaxed); }

  // Makes the device the calling thread's: CUDA's current device is per thread. Throws DEVICE once
  // the context is lost.
  void enter();

  // Throws DEVICE, or UNSUPPORTED, where `error` is one. `operation` says who met it, and `recent`
  // who may have made it: an asynchronous error is met by a later call.
  void check(cudaError_t error, const std::string& operation, const std::string& recent = "");

  // The same as a status, for threads that must not throw.
  WaitStatus status(cudaError_t error, const std::string& operation,
                    const std::string& recent = "");

 private:
  // Whether the context answers every call with an error from now on.
  static bool is_sticky(cudaError_t error);

  const int32_t device_;
  std::atomic<bool> lost_{false};
};

// The operations enqueued since the last wait, the latest eight, for messages.
class RecentOperations {
 public:
  void add(const char* name) { names_[count_++ % kKept] = name; }
  // "rmsNorm, appendKv, attention"
  std::string text() const;
  void clear() { count_ = 0; }

 private:
  static constexpr size_t kKept = 8;
  const char* names_[kKept] = {};
  size_t count_ = 0;
};

}  // namespace flash_gqa
