// Loads: host values that a source produces (a file, mostly) go to the device through a thread and
// a stream of their own.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "cuda_context.h"
#include "cuda_memory.h"

namespace flash_gqa {

class CudaLoader {
 public:
  explicit CudaLoader(CudaContext& context) : context_(context) {}
  ~CudaLoader();  // finishes what was begun, unless abandoned

  CudaLoader(const CudaLoader&) = delete;
  CudaLoader& operator=(const CudaLoader&) = delete;

  // Writes to `dst` once all that `compute` holds now is done.
  void push(void* dst, DType to, HostSource source, DType from, size_t elements, WaitCallback done,
            cudaStream_t compute);
  // Returns when every load so far is done. Operations after a load must see it, and a stream cannot
  // wait for an event that has not been recorded yet; so whoever enqueues waits here.
  void wait();
  void abandon();

 private:
  struct Load {
    void* dst;
    DType to;
    HostSource source;
    DType from;
    size_t elements;
    WaitCallback done;
    cudaEvent_t ready;
  };
  static constexpr size_t kPieceBytes = size_t{16} << 20;  // pinned, twice
  static constexpr size_t kPartBytes = size_t{2} << 20;    // of one thread

  void loop();
  cudaError_t open();
  WaitStatus run(const Load& load);
  WaitStatus fill(char* staging, const Load& load, size_t first, size_t count);

  CudaContext& context_;
  PinnedBuffer pinned_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t copied_[2] = {};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Load> loads_;  // the first is under way
  bool stopping_ = false;
  bool abandoned_ = false;
  std::thread thread_;  // from the first load on
};

}  // namespace flash_gqa
