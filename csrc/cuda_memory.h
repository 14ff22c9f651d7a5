// Memory of a CUDA backend: where its pool gets blocks, and the pinned buffers that copies go
// through.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <deque>
#include <unordered_map>
#include <vector>

#include "cuda_context.h"
#include "pool.h"

namespace flash_gqa {

// Device memory. Small blocks are cut from slabs, which stay until the end; large ones are
// allocated and freed one by one.
class CudaBlocks : public PoolSource {
 public:
  explicit CudaBlocks(cudaStream_t stream) : stream_(stream) {}
  ~CudaBlocks() override;

  CudaBlocks(const CudaBlocks&) = delete;
  CudaBlocks& operator=(const CudaBlocks&) = delete;

  void* acquire(size_t bytes) override;
  void release(void* ptr, size_t bytes) override;
  int64_t free_bytes() const override;

 private:
  void* cut(size_t bytes);
  void free_unused();

  const cudaStream_t stream_;
  std::vector<void*> slabs_;
  char* slab_ = nullptr;  // the one being cut, and what is left of it
  size_t slab_left_ = 0;
  std::unordered_map<size_t, std::vector<void*>> small_;  // cut blocks that were given back
  std::vector<void*> unused_;  // large ones that the stream may still use
};

// Pinned host memory, the only kind that copies run asynchronously from.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  ~PinnedBuffer() { cudaFreeHost(data_); }

  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  // Once; does nothing if there is memory already.
  cudaError_t reserve(size_t bytes);
  char* data() const { return data_; }

 private:
  char* data_ = nullptr;
};

// Converts or copies host values with the CPU back end's kernels.
void convert_on_host(void* dst, DType to, const void* src, DType from, size_t elements);

// Host values on their way to the device: few of them in a launch, more through a ring of pinned
// memory. A caller waits only where the ring is full, and then for the oldest copy alone.
class UploadRing {
 public:
  static constexpr size_t kBytes = size_t{16} << 20;
  static constexpr size_t kLargest = size_t{4} << 20;  // of one reservation

  explicit UploadRing(cudaStream_t stream) : stream_(stream) {}
  ~UploadRing();

  UploadRing(const UploadRing&) = delete;
  UploadRing& operator=(const UploadRing&) = delete;

  // `src` has been read when this returns.
  cudaError_t send(void* dst, DType to, const void* src, DType from, size_t elements);

 private:
  struct Copy {
    size_t end;  // in bytes since the beginning, as head_
    cudaEvent_t event;
  };
  // `bytes` of pinned memory, to be filled and copied from on the stream.
  cudaError_t reserve(size_t bytes, char** staging);
  // Marks the last reservation as used by what has been enqueued so far.
  cudaError_t commit();
  void retire_oldest();

  const cudaStream_t stream_;
  PinnedBuffer pinned_;
  size_t head_ = 0;  // bytes handed out since the beginning; modulo kBytes the place in the ring
  size_t tail_ = 0;  // bytes that are free again
  std::deque<Copy> copies_;
  std::vector<cudaEvent_t> events_;  // spare
};

}  // namespace flash_gqa
