// The operations of backend.h on one CUDA device: one compute stream, in order.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "../cuda/attention.h"
#include "backend.h"
#include "cublaslt.h"
#include "cuda_claim.h"
#include "cuda_context.h"
#include "cuda_loader.h"
#include "cuda_memory.h"
#include "cuda_mover.h"
#include "cuda_waiter.h"
#include "pool.h"

namespace flash_gqa {

class CudaBackend : public Backend {
 public:
  // Throws where the device cannot be used.
  explicit CudaBackend(int32_t index);
  ~CudaBackend() override;

  void abandon() override;
  DeviceInfo info() const override;
  MemoryInfo memory() const override;

  void* allocate(size_t bytes) override;
  void release(void* ptr, size_t bytes) override;
  void trim() override;

  void upload(void* dst, DType to, const void* src, DType from, size_t elements) override;
  void load(void* dst, DType to, HostSource source, DType from, size_t elements,
            WaitCallback done) override;
  void copy(void* dst, const void* src, size_t bytes) override;
  void fill(void* dst, uint8_t value, size_t bytes) override;
  void convert(void* dst, DType to, const void* src, DType from, size_t elements) override;
  void read(void* dst, DType to, const void* src, DType from, size_t elements,
            WaitCallback done) override;
  void synchronize(WaitCallback done) override;

  std::shared_ptr<HostBuffer> host_buffer(size_t bytes) override;
  void move_pages(MovePagesParams params, WaitCallback done) override;

  void begin_capture() override;
  std::unique_ptr<Graph> end_capture() override;
  void abort_capture() override;
  void replay(Graph& graph) override;

  size_t attention_workspace(const AttentionParams& params) const override;
  void attention(const AttentionParams& params, void* workspace) override;
  std::string explain(const AttentionParams& params) const override;

  void rope_rows(const RopeRowsParams& params) override;
  void rope_apply(const RopeApplyParams& params) override;
  void append_kv(const AppendKvParams& params) override;
  void repeat_kv(const RepeatKvParams& params) override;
  void slice_window(const SliceWindowParams& params) override;
  void merge_states(const MergeStatesParams& params) override;
  void copy_pages(const CopyPagesParams& params) override;
  void scatter(const ScatterParams& params) override;

  void embedding(const EmbeddingParams& params) override;
  size_t linear_workspace(const LinearParams& params) const override;
  void linear(const LinearParams& params, void* workspace) override;
  void rms_norm(const RmsNormParams& params) override;
  void add(const AddParams& params) override;
  void silu_mul(const SiluMulParams& params) override;
  void top_k(const TopKParams& params) override;
  size_t sample_workspace(const SampleParams& params) const override;
  void sample(const SampleParams& params, void* workspace) override;
  void gather_rows(const GatherRowsParams& params) override;

  int32_t* fault_word() override { return fault_; }

 private:
  // The stream and the fault word, which must outlive everything that uses them.
  struct Stream {
    cudaStream_t handle = nullptr;
    ~Stream() {
      if (handle != nullptr) cudaStreamDestroy(handle);
    }
  };

  // Enqueues one operation: `launch(stream)` returns a cudaError_t.
  template <class Launch>
  void enqueue(const char* name, const Launch& launch);
  // What every entry begins with.
  void enter(const char* name);
  void refuse_in_capture(const char* name) const;
  void synchronize_now(const char* name);
  // Enqueues the end of a wait, after which `finish` and `done` follow on the waiting thread.
  void end_wait(std::function<WaitStatus()> finish, WaitCallback done);
  void read_large(void* dst, DType to, const void* src, DType from, size_t elements,
                  WaitCallback done);

  // The fault word, then the counters and the places of cuda/attention.h.
  static constexpr size_t kWordBytes = 4096;
  static constexpr size_t kSharedBytes = kWordBytes + cuda::kMergeBytes;
  static_assert((1 + cuda::kNumCounters) * sizeof(int32_t) <= kWordBytes);

  CudaContext context_;
  const ResidencyClaim claim_;
  DeviceInfo info_{};
  cuda::DeviceTraits traits_{};
  bool poison_;
  bool sync_each_;  // FLASH_GQA_SYNC=1
  bool capturing_ = false;
  bool fault_named_ = false;  // with sync_each_: recent_ holds the operation that set the fault
  RecentOperations recent_;
  Stream stream_;
  int32_t* fault_ = nullptr;  // device memory, of the pool
  std::unique_ptr<CublasLt> cublas_;
  std::unique_ptr<CudaBlocks> blocks_;
  std::unique_ptr<Pool> pool_;
  HostCopier copier_;  // of the waiting thread
  std::unique_ptr<UploadRing> uploads_;
  std::unique_ptr<CudaWaiter> waiter_;
  std::unique_ptr<CudaLoader> loader_;
  // Two for each direction: a copy begins while the one before it ends.
  std::unique_ptr<CudaMover> to_host_[2];
  std::unique_ptr<CudaMover> to_device_[2];
  size_t moves_ = 0;
};

}  // namespace flash_gqa
