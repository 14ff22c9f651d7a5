// Pages on their way between a cache's pool and pinned host memory, on streams of their own: copies run
// beside the kernels and beside each other.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "cuda_context.h"
#include "cuda_memory.h"

namespace flash_gqa {

// Made and freed on a mover's thread: the driver takes milliseconds for either, and may wait for the
// device.
class PinnedPages : public HostBuffer {
 public:
  // Null where there is no such memory. Movers may ask at one time.
  char* reserve(size_t bytes);
  bool empty() const { return pinned_.data() == nullptr; }

 private:
  std::mutex mutex_;
  PinnedBuffer pinned_;
};

class CudaMover {
 public:
  explicit CudaMover(CudaContext& context) : context_(context) {}
  ~CudaMover();  // finishes what was begun, unless abandoned

  CudaMover(const CudaMover&) = delete;
  CudaMover& operator=(const CudaMover&) = delete;

  // Moves once all that `compute` holds now is done.
  void push(MovePagesParams params, WaitCallback done, cudaStream_t compute);
  // Frees the memory after the moves so far.
  void free(PinnedPages* pages);
  void abandon();

 private:
  struct Task {
    MovePagesParams params;
    WaitCallback done;
    cudaEvent_t ready = nullptr;  // null: nothing but `freed`
    std::unique_ptr<PinnedPages> freed;
  };

  void add(Task task);
  void loop();
  cudaError_t open();
  WaitStatus run(const Task& task);
  cudaError_t enqueue(const MovePagesParams& params, char* host);

  CudaContext& context_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t moved_ = nullptr;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  bool stopping_ = false;
  bool abandoned_ = false;
  std::thread thread_;  // from the first task on
};

}  // namespace flash_gqa
