// What attention.cu knows of the Hopper prefill kernel. Host only.
#pragma once

#include "../attention.h"

namespace flash_gqa::cuda::sm90 {

// Whether the kernel can take these parameters on this device: 16-bit, a group that fits into one
// tile, K and V that the copy engine can address.
bool prefill_supports(const AttentionParams& params, const DeviceTraits& device);

// Whether it divides keys too, and so occupies the device with few tiles of rows.
bool prefill_divides(const AttentionParams& params);

// Bytes of scratch that prefill() needs; may be 0.
size_t prefill_workspace(const AttentionParams& params, int32_t min_rows,
                         const DeviceTraits& device);

// Sequences of more than min_rows query rows (q_len * group_size); shorter ones are another
// launch's.
cudaError_t prefill(const AttentionParams& params, int32_t min_rows, void* workspace,
                    const DeviceTraits& device, cudaStream_t stream);

// e.g. "sm90 wgmma 192x64"
const char* prefill_name(const AttentionParams& params);

}  // namespace flash_gqa::cuda::sm90
