// Attention forward on CUDA: what the back end calls. No allocation, no waiting, no printing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "params.h"

namespace flash_gqa::cuda {

// What the choice of a kernel depends on. max_smem is the opt-in shared memory per block that
// kernels may use: the device's own, or less (so that small tiles are tested on a big card).
struct DeviceTraits {
  int sm;  // 10 * major + minor
  int num_sms;
  size_t max_smem;
  // Words that are zero between launches on the stream: kernels whose blocks draw work or wait for
  // each other leave them so. kNumCounters of them, or null: such kernels are not used.
  int32_t* counters;
  // kMergeBytes of 0xff, between launches, through which decode's blocks hand each other their
  // parts; or null: decode/ is not used.
  void* merge_places;
  bool copy_engine;    // has_copy_engine() said so
  double memory_gbps;  // as memory_gbps() has it
};
constexpr int kNumCounters = 512;
constexpr int kDecodeCounter = kNumCounters - 1;  // prefill has those before it
constexpr size_t kMergeBytes = 16 << 20;

// What the current device's memory delivers by its clock and width, GB/s; 0: not known.
double memory_gbps();

// Whether the kernels that the current device runs use its copy engine (sm_90 and later, and code that
// was compiled for them).
bool has_copy_engine();

// Bytes of scratch that attention() needs for these parameters; may be 0.
size_t attention_workspace(const AttentionParams& params, const DeviceTraits& device);

// Enqueues the kernels. cudaErrorInvalidValue: a shape, stride or alignment outside params.h.
cudaError_t attention(const AttentionParams& params, void* workspace, const DeviceTraits& device,
                      cudaStream_t stream);

// The kernel that the longest sequences of the batch take, e.g. "sm80 mma 128x64".
const char* explain(const AttentionParams& params, const DeviceTraits& device);

}  // namespace flash_gqa::cuda
