#include "cuda_mover.h"

#include <utility>

#include "machine.h"
#include "thread.h"

namespace flash_gqa {
namespace {

// Copies that one call takes.
constexpr size_t kMostRows = 2048;

// dst[i] = src[i], bytes[i] of them, in any order.
cudaError_t copy_rows(std::vector<void*>& dst, std::vector<const void*>& src,
                      std::vector<size_t>& bytes, cudaMemcpyKind kind, cudaStream_t stream) {
#if CUDART_VERSION >= 12080
  static_cast<void>(kind);  // told by the addresses
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  attributes.flags = cudaMemcpyFlagPreferOverlapWithCompute;
  size_t from_the_first = 0;
#if CUDART_VERSION >= 13000
  return cudaMemcpyBatchAsync(dst.data(), src.data(), bytes.data(), dst.size(), &attributes,
                              &from_the_first, 1, stream);
#else
  size_t failed;
  return cudaMemcpyBatchAsync(dst.data(), const_cast<void**>(src.data()), bytes.data(), dst.size(),
                              &attributes, &from_the_first, 1, &failed, stream);
#endif
#else
  cudaError_t error = cudaSuccess;
  for (size_t i = 0; i < dst.size() && error == cudaSuccess; ++i)
    error = cudaMemcpyAsync(dst[i], src[i], bytes[i], kind, stream);
  return error;
#endif
}

}  // namespace

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
  cudaError_t error = cudaSuccess;
  if (moved_ == nullptr)
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

cudaError_t CudaMover::enqueue(const MovePagesParams& params, char* host) {
  const cudaMemcpyKind kind = params.to_host ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice;
  const size_t page_bytes = static_cast<size_t>(params.page_bytes);
  std::vector<void*> dst;
  std::vector<const void*> src;
  std::vector<size_t> bytes;
  cudaError_t error = cudaSuccess;
  const auto flush = [&] {
    if (!dst.empty() && error == cudaSuccess) error = copy_rows(dst, src, bytes, kind, stream_);
    dst.clear();
    src.clear();
    bytes.clear();
  };
  for (int64_t layer = 0; layer < params.num_layers; ++layer) {
    for (const PageRun& run : params.runs) {
      if (run.count == 0) continue;
      char* const page = params.pool + (layer * params.num_pages + run.page) * params.page_bytes;
      char* const other = host + (layer * params.host_pages + run.host_page) * params.page_bytes;
      dst.push_back(params.to_host ? other : page);
      src.push_back(params.to_host ? page : other);
      bytes.push_back(static_cast<size_t>(run.count) * page_bytes);
      if (dst.size() == kMostRows) flush();
    }
  }
  flush();
  return error;
}

}  // namespace flash_gqa
