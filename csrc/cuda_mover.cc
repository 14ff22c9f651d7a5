#include "cuda_mover.h"

#include <algorithm>
#include <utility>

#include "machine.h"
#include "thread.h"

namespace flash_gqa {
// Asked first: pinning more than there is can end the process instead of failing.
char* PinnedPages::reserve(size_t bytes) {
  std::lock_guard lock(mutex_);
  const bool fits = static_cast<int64_t>(bytes) <= host_memory().available;
  if (pinned_.data() == nullptr && fits && pinned_.reserve(bytes) != cudaSuccess)
    cudaGetLastError();
  return pinned_.data();
}

CudaMover::~CudaMover() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  if (moved_ != nullptr) cudaEventDestroy(moved_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

void CudaMover::push(MovePagesParams params, WaitCallback done, cudaStream_t compute) {
  Task task{std::move(params), std::move(done), nullptr, nullptr};
  context_.check(cudaEventCreateWithFlags(&task.ready, cudaEventDisableTiming), "movePages");
  if (const cudaError_t error = cudaEventRecord(task.ready, compute); error != cudaSuccess) {
    cudaEventDestroy(task.ready);
    context_.check(error, "movePages");
  }
  add(std::move(task));
}

void CudaMover::free(PinnedPages* pages) {
  std::unique_ptr<PinnedPages> owned(pages);
  if (owned->empty()) return;
  add({{}, nullptr, nullptr, std::move(owned)});
}

void CudaMover::abandon() {
  std::lock_guard lock(mutex_);
  abandoned_ = true;
}

void CudaMover::add(Task task) {
  {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  if (!thread_.joinable()) thread_ = start_thread([this] { loop(); });
  changed_.notify_all();
}

void CudaMover::loop() {
  cudaSetDevice(context_.device());
  for (;;) {
    Task task;
    bool dropped;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
      dropped = abandoned_;
    }
    if (task.ready == nullptr) continue;  // the memory goes with its task
    const WaitStatus status = dropped ? WaitStatus{} : run(task);
    cudaEventDestroy(task.ready);
    if (!dropped) task.done(status);
  }
}

cudaError_t CudaMover::open() {
  if (stream_ != nullptr) return cudaSuccess;
  int pitch = 0;
  cudaError_t error = cudaDeviceGetAttribute(&pitch, cudaDevAttrMaxPitch, context_.device());
  longest_pitch_ = static_cast<size_t>(std::max(pitch, 0));
  if (error == cudaSuccess && moved_ == nullptr)
    error = cudaEventCreateWithFlags(&moved_, cudaEventDisableTiming | cudaEventBlockingSync);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
  return error;
}

WaitStatus CudaMover::run(const Task& task) {
  const MovePagesParams& params = task.params;
  cudaError_t error = open();
  char* const host = static_cast<PinnedPages*>(params.host)->reserve(params.host_bytes());
  if (error == cudaSuccess && host == nullptr)
    return {"OUT_OF_MEMORY", no_host_memory(params.host_bytes())};
  if (error == cudaSuccess) error = cudaStreamWaitEvent(stream_, task.ready, 0);
  if (error == cudaSuccess) error = enqueue(params, host);
  // Whatever failed: pages must be at rest when `done` is called.
  const cudaError_t recorded = stream_ != nullptr ? cudaEventRecord(moved_, stream_) : error;
  const cudaError_t waited = recorded == cudaSuccess ? cudaEventSynchronize(moved_) : recorded;
  return context_.status(error != cudaSuccess ? error : waited, "movePages");
}

// A page's layers lie at one distance from each other on either side, so all layers of a run are the
// rows of one copy.
cudaError_t CudaMover::enqueue(const MovePagesParams& params, char* host) {
  const size_t page_bytes = static_cast<size_t>(params.page_bytes);
  const size_t pool_pitch = static_cast<size_t>(params.num_pages) * page_bytes;
  const size_t host_pitch = static_cast<size_t>(params.host_pages) * page_bytes;
  const size_t num_layers = static_cast<size_t>(params.num_layers);
  const bool in_rows = std::max(pool_pitch, host_pitch) <= longest_pitch_;
  const cudaMemcpyKind kind = params.to_host ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice;
  for (const PageRun& run : params.runs) {
    char* from = params.pool + static_cast<size_t>(run.page) * page_bytes;
    char* to = host + static_cast<size_t>(run.host_page) * page_bytes;
    size_t from_pitch = pool_pitch, to_pitch = host_pitch;
    if (!params.to_host) {
      std::swap(from, to);
      std::swap(from_pitch, to_pitch);
    }
    const size_t width = static_cast<size_t>(run.count) * page_bytes;
    cudaError_t error = cudaSuccess;
    if (in_rows) {
      error = cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, num_layers, kind, stream_);
    }
    // Layers of gigabytes lie further apart than rows can: one copy for each.
    for (size_t layer = 0; !in_rows && layer < num_layers && error == cudaSuccess; ++layer) {
      error =
          cudaMemcpyAsync(to + layer * to_pitch, from + layer * from_pitch, width, kind, stream_);
    }
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace flash_gqa
