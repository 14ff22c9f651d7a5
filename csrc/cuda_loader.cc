#include "cuda_loader.h"

#include <algorithm>
#include <memory>
#include <new>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "thread.h"

namespace flash_gqa {

CudaLoader::~CudaLoader() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  for (cudaEvent_t event : copied_)
    if (event != nullptr) cudaEventDestroy(event);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

void CudaLoader::push(void* dst, DType to, HostSource source, DType from, size_t elements,
                      WaitCallback done, cudaStream_t compute) {
  cudaEvent_t ready;
  context_.check(cudaEventCreateWithFlags(&ready, cudaEventDisableTiming), "load");
  if (const cudaError_t error = cudaEventRecord(ready, compute); error != cudaSuccess) {
    cudaEventDestroy(ready);
    context_.check(error, "load");
  }
  {
    std::lock_guard lock(mutex_);
    loads_.push_back({dst, to, std::move(source), from, elements, std::move(done), ready});
  }
  if (!thread_.joinable()) thread_ = start_thread([this] { loop(); });
  changed_.notify_all();
}

void CudaLoader::wait() {
  if (!thread_.joinable()) return;
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return loads_.empty(); });
}

void CudaLoader::abandon() {
  std::lock_guard lock(mutex_);
  abandoned_ = true;
}

void CudaLoader::loop() {
  cudaSetDevice(context_.device());
  for (;;) {
    Load* load;
    bool dropped;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || !loads_.empty(); });
      if (loads_.empty()) return;
      load = &loads_.front();  // stays in place: others only append
      dropped = abandoned_;
    }
    const WaitStatus status = dropped ? WaitStatus{} : run(*load);
    cudaEventDestroy(load->ready);
    const WaitCallback done = std::move(load->done);
    {
      std::lock_guard lock(mutex_);
      loads_.pop_front();
    }
    changed_.notify_all();
    if (!dropped) done(status);
  }
}

cudaError_t CudaLoader::open() {
  if (stream_ != nullptr) return cudaSuccess;
  cudaError_t error = pinned_.reserve(2 * kPieceBytes);
  for (cudaEvent_t& event : copied_)
    if (error == cudaSuccess)
      error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
  return error;
}

WaitStatus CudaLoader::run(const Load& load) {
  cudaError_t error = open();
  if (error == cudaSuccess) error = cudaStreamWaitEvent(stream_, load.ready, 0);
  const size_t to_bytes = dtype_bytes(load.to);
  const size_t piece = kPieceBytes / to_bytes;
  WaitStatus status;
  for (size_t first = 0, i = 0; first < load.elements; first += piece, i ^= 1) {
    // One piece is on the bus while the next one is read.
    if (error == cudaSuccess) error = cudaEventSynchronize(copied_[i]);
    if (error != cudaSuccess || status.code != nullptr) break;
    char* staging = pinned_.data() + i * kPieceBytes;
    const size_t count = std::min(piece, load.elements - first);
    status = fill(staging, load, first, count);
    if (status.code != nullptr) break;
    error = cudaMemcpyAsync(static_cast<char*>(load.dst) + first * to_bytes, staging,
                            count * to_bytes, cudaMemcpyHostToDevice, stream_);
    if (error == cudaSuccess) error = cudaEventRecord(copied_[i], stream_);
  }
  const cudaError_t last = stream_ != nullptr ? cudaStreamSynchronize(stream_) : cudaSuccess;
  if (error == cudaSuccess) error = last;
  return error != cudaSuccess ? context_.status(error, "load") : status;
}

// Elements [first, first + count) of the source, converted, in parallel.
WaitStatus CudaLoader::fill(char* staging, const Load& load, size_t first, size_t count) {
  const size_t from_bytes = dtype_bytes(load.from);
  const size_t part = kPartBytes / from_bytes;
  std::mutex mutex;
  WaitStatus failed;
  const auto fill_part = [&](int64_t i) {
    const size_t begin = static_cast<size_t>(i) * part;
    const size_t n = std::min(part, count - begin);
    const size_t position = (first + begin) * from_bytes;
    char* out = staging + begin * dtype_bytes(load.to);
    WaitStatus status;
    if (load.to == load.from) {
      status = load.source(out, position, n * from_bytes);
    } else {
      const std::unique_ptr<std::byte[]> raw(new std::byte[n * from_bytes]);
      status = load.source(raw.get(), position, n * from_bytes);
      if (status.code == nullptr)
        cpu::convert(out, load.to, raw.get(), load.from, static_cast<int64_t>(n));
    }
    std::lock_guard lock(mutex);
    if (failed.code == nullptr) failed = std::move(status);
  };
  try {
    cpu::parallel_for(static_cast<int64_t>((count + part - 1) / part), fill_part);
  } catch (const std::bad_alloc&) {
    return {"OUT_OF_MEMORY", "load: no host memory to convert a file's values in"};
  }
  return failed;
}

}  // namespace flash_gqa
