#include "cuda_memory.h"

#include <algorithm>

#include "../cuda/launch.h"
#include "cpu/kernels.h"

namespace flash_gqa {
namespace {

constexpr size_t kSmall = size_t{1} << 20;
constexpr size_t kSlab = size_t{32} << 20;

// Whether what was queried is done. "Not ready" must not stay behind as the last error.
bool is_done(cudaError_t query) {
  if (query == cudaErrorNotReady) cudaGetLastError();
  return query == cudaSuccess;
}

// Waiting for a stream that is being captured, or asking it, would end the capture.
bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(stream, &status) == cudaSuccess &&
         status != cudaStreamCaptureStatusNone;
}

}  // namespace

CudaBlocks::~CudaBlocks() {
  for (void* ptr : unused_) cudaFree(ptr);
  for (void* ptr : slabs_) cudaFree(ptr);
}

void* CudaBlocks::acquire(size_t bytes) {
  if (bytes <= kSmall) return cut(bytes);
  void* ptr = nullptr;
  if (cudaMalloc(&ptr, bytes) == cudaSuccess) return ptr;
  cudaGetLastError();
  if (unused_.empty() || is_capturing(stream_)) return nullptr;
  // Only where memory has run out does allocating wait for the device.
  if (cudaStreamSynchronize(stream_) != cudaSuccess) return nullptr;
  free_unused();
  if (cudaMalloc(&ptr, bytes) == cudaSuccess) return ptr;
  cudaGetLastError();
  return nullptr;
}

void* CudaBlocks::cut(size_t bytes) {
  std::vector<void*>& spare = small_[bytes];
  if (!spare.empty()) {
    void* ptr = spare.back();
    spare.pop_back();
    return ptr;
  }
  if (slab_left_ < bytes) {
    void* slab = nullptr;
    if (cudaMalloc(&slab, kSlab) != cudaSuccess) {
      cudaGetLastError();
      return nullptr;
    }
    slabs_.push_back(slab);
    slab_ = static_cast<char*>(slab);
    slab_left_ = kSlab;
  }
  void* ptr = slab_;
  slab_ += bytes;
  slab_left_ -= bytes;
  return ptr;
}

void CudaBlocks::release(void* ptr, size_t bytes) {
  if (bytes <= kSmall) {
    small_[bytes].push_back(ptr);
    return;
  }
  unused_.push_back(ptr);
  // cudaFree waits for the device, so only an idle one is given memory back at once.
  if (!is_capturing(stream_) && is_done(cudaStreamQuery(stream_))) free_unused();
}

void CudaBlocks::free_unused() {
  for (void* ptr : unused_) cudaFree(ptr);
  unused_.clear();
}

int64_t CudaBlocks::free_bytes() const {
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) cudaGetLastError();
  return static_cast<int64_t>(free);
}

cudaError_t PinnedBuffer::reserve(size_t bytes) {
  if (data_ != nullptr) return cudaSuccess;
  return cudaHostAlloc(reinterpret_cast<void**>(&data_), bytes, cudaHostAllocDefault);
}

UploadRing::~UploadRing() {
  while (!copies_.empty()) retire_oldest();
  for (cudaEvent_t event : events_) cudaEventDestroy(event);
}

void convert_on_host(void* dst, DType to, const void* src, DType from, size_t elements) {
  cpu::convert(dst, to, src, from, static_cast<int64_t>(elements));
}

cudaError_t UploadRing::send(void* dst, DType to, const void* src, DType from, size_t elements) {
  const size_t to_bytes = dtype_bytes(to);
  if (elements * to_bytes <= cuda::kMostInlineBytes) {
    alignas(16) char values[cuda::kMostInlineBytes];
    convert_on_host(values, to, src, from, elements);
    return cuda::store(dst, values, elements * to_bytes, stream_);
  }
  const size_t piece = kLargest / to_bytes;
  for (size_t first = 0; first < elements; first += piece) {
    const size_t count = std::min(piece, elements - first);
    char* staging;
    cudaError_t error = reserve(count * to_bytes, &staging);
    if (error != cudaSuccess) return error;
    convert_on_host(staging, to, static_cast<const char*>(src) + first * dtype_bytes(from), from,
                    count);
    error = cudaMemcpyAsync(static_cast<char*>(dst) + first * to_bytes, staging, count * to_bytes,
                            cudaMemcpyHostToDevice, stream_);
    if (error == cudaSuccess) error = commit();
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

void UploadRing::retire_oldest() {
  tail_ = copies_.front().end;
  events_.push_back(copies_.front().event);
  copies_.pop_front();
}

cudaError_t UploadRing::reserve(size_t bytes, char** staging) {
  if (const cudaError_t error = pinned_.reserve(kBytes); error != cudaSuccess) return error;
  bytes = (bytes + 255) / 256 * 256;
  // A reservation lies in one piece: the rest of the ring before its beginning is skipped.
  if (head_ % kBytes + bytes > kBytes) head_ += kBytes - head_ % kBytes;
  while (head_ + bytes - tail_ > kBytes) {
    if (copies_.empty()) {
      tail_ = head_;
      break;
    }
    if (const cudaError_t error = cudaEventSynchronize(copies_.front().event); error != cudaSuccess)
      return error;
    retire_oldest();
  }
  *staging = pinned_.data() + head_ % kBytes;
  head_ += bytes;
  return cudaSuccess;
}

cudaError_t UploadRing::commit() {
  // What is done already is retired here, so that events do not pile up.
  while (!copies_.empty() && is_done(cudaEventQuery(copies_.front().event))) retire_oldest();
  cudaEvent_t event = nullptr;
  if (!events_.empty()) {
    event = events_.back();
    events_.pop_back();
  } else if (const cudaError_t error =
                 cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync);
             error != cudaSuccess) {
    return error;
  }
  copies_.push_back({head_, event});
  return cudaEventRecord(event, stream_);
}

}  // namespace flash_gqa
