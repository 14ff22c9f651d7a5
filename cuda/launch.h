// Launchers of every operation but attention (attention.h). Each enqueues on `stream` and returns;
// none allocates, waits or prints. Host arrays in the params are read before the call returns.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "nn_params.h"
#include "params.h"

namespace flash_gqa::cuda {

cudaError_t convert(void* dst, DType to, const void* src, DType from, int64_t elements,
                    cudaStream_t stream);
// Moves the fault word to `out`, which is pinned host memory, and clears it.
cudaError_t take_fault(int32_t* fault, int32_t* out, cudaStream_t stream);
// cudaErrorNoKernelImageForDevice where nothing here was built for the current device.
cudaError_t check_kernel_image();

cudaError_t rope_rows(const RopeRowsParams& params, cudaStream_t stream);
cudaError_t rope_apply(const RopeApplyParams& params, cudaStream_t stream);
cudaError_t append_kv(const AppendKvParams& params, cudaStream_t stream);
cudaError_t repeat_kv(const RepeatKvParams& params, cudaStream_t stream);
cudaError_t slice_window(const SliceWindowParams& params, cudaStream_t stream);
cudaError_t merge_states(const MergeStatesParams& params, cudaStream_t stream);
cudaError_t copy_pages(const CopyPagesParams& params, cudaStream_t stream);
cudaError_t scatter(const ScatterParams& params, cudaStream_t stream);
// Host values that travel in the launch itself: no staging, no copy engine, no event. At most so many
// bytes, of the 4 KB that a kernel's parameters may have.
constexpr size_t kMostInlineBytes = 3840;
cudaError_t store(void* dst, const void* host, size_t bytes, cudaStream_t stream);

cudaError_t embedding(const EmbeddingParams& params, cudaStream_t stream);
cudaError_t gather_rows(const GatherRowsParams& params, cudaStream_t stream);
// The plain matrix product, for machines without cuBLASLt and for what it does not offer.
// Without norm and gate.
cudaError_t linear(const LinearParams& params, cudaStream_t stream);
// The whole of linear() for a few rows, where takes_small_linear() says so.
bool takes_small_linear(const LinearParams& params);
cudaError_t small_linear(const LinearParams& params, int num_sms, cudaStream_t stream);
cudaError_t rms_norm(const RmsNormParams& params, cudaStream_t stream);
cudaError_t add(const AddParams& params, cudaStream_t stream);
cudaError_t silu_mul(const SiluMulParams& params, cudaStream_t stream);
cudaError_t top_k(const TopKParams& params, cudaStream_t stream);
// Bytes of scratch for sample(); 0 where one block has a row to itself.
size_t sample_workspace(const SampleParams& params, int num_sms);
cudaError_t sample(const SampleParams& params, void* workspace, int num_sms, cudaStream_t stream);

}  // namespace flash_gqa::cuda
