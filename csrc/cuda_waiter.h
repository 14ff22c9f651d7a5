// The thread that waits for the device, so that Node's threads never do.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "cuda_context.h"
#include "cuda_memory.h"

namespace flash_gqa {

// What the device has to reach, and what then follows. `event` and `fault` are used again once the
// wait is over.
struct WaitSlot {
  cudaEvent_t event;
  int32_t* fault;  // pinned
  char* staging;   // pinned, kStagingBytes
};

class CudaWaiter {
 public:
  static constexpr size_t kStagingBytes = size_t{64} << 10;

  // Throws where the pinned memory or the events cannot be had.
  explicit CudaWaiter(CudaContext& context);
  ~CudaWaiter();  // answers what is left, unless abandoned

  CudaWaiter(const CudaWaiter&) = delete;
  CudaWaiter& operator=(const CudaWaiter&) = delete;

  // The slot of the next wait. Blocks while all are in use.
  const WaitSlot& next_slot();
  // Takes the next slot, whose event has been recorded. `finish` runs on the waiting thread once
  // the event is reached; then `done` is called. `operations` names what a failure may come from.
  void push(std::string operations, std::function<WaitStatus()> finish, WaitCallback done);
  // Returns when all waits so far have been answered.
  void drain();
  // Waits that have not begun are dropped.
  void abandon();

 private:
  static constexpr size_t kSlots = 64;
  struct Wait {
    std::string operations;
    std::function<WaitStatus()> finish;
    WaitCallback done;
  };
  void loop();
  WaitStatus outcome(const WaitSlot& slot, const Wait& wait);

  CudaContext& context_;
  PinnedBuffer pinned_;
  WaitSlot slots_[kSlots] = {};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Wait> waits_;
  size_t begun_ = 0;     // waits pushed since the beginning; modulo kSlots the next slot
  size_t answered_ = 0;  // waits whose slot is free again
  bool stopping_ = false;
  bool abandoned_ = false;
  std::thread thread_;  // last: it uses everything above
};

// Copies device memory to pageable host memory in pieces, through pinned buffers, on a stream of
// its own. Used by one thread at a time.
class HostCopier {
 public:
  HostCopier() = default;
  ~HostCopier();

  HostCopier(const HostCopier&) = delete;
  HostCopier& operator=(const HostCopier&) = delete;

  // dst[i] = (to) src[i]. Returns when it is done; what `src` holds must be there already.
  cudaError_t copy(void* dst, DType to, const void* src, DType from, size_t elements);

 private:
  static constexpr size_t kPieceBytes = size_t{4} << 20;
  cudaError_t open();

  PinnedBuffer pinned_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t copied_[2] = {};
};

}  // namespace flash_gqa
