#include "../dispatch.h"
#include "prefill.h"
#include "prefill_instance.h"

namespace flash_gqa::cuda::sm90 {
namespace {

const PrefillInstance* find_instance(const AttentionParams& params) {
  return with_dtype(params.dtype, [&](auto type) -> const PrefillInstance* {
    using Element = typename decltype(type)::type;
    if constexpr (sizeof(Element) != 2) {
      return nullptr;
    } else {
      return with_head_dim(params.head_dim, [](auto head_dim) -> const PrefillInstance* {
        return &prefill_instance<Element, decltype(head_dim)::value>();
      });
    }
  });
}

}  // namespace

bool prefill_supports(const AttentionParams& params, const DeviceTraits& device) {
  if (device.sm != 90 || device.counters == nullptr) return false;
  const PrefillInstance* instance = find_instance(params);
  if (instance == nullptr || instance->smem > device.max_smem) return false;
  if (params.num_q_heads / params.num_kv_heads > instance->tile_q) return false;
  // The swizzle permutes groups of 8 key rows, so that a box of fewer would not be one.
  return params.kv.page_table == nullptr || params.kv.page_size >= 8;
}

bool prefill_divides(const AttentionParams& params) { return find_instance(params)->divides; }

size_t prefill_workspace(const AttentionParams& params, int32_t min_rows,
                         const DeviceTraits& device) {
  return find_instance(params)->workspace(params, min_rows, device);
}

cudaError_t prefill(const AttentionParams& params, int32_t min_rows, void* workspace,
                    const DeviceTraits& device, cudaStream_t stream) {
  return find_instance(params)->launch(params, min_rows, workspace, device, stream);
}

const char* prefill_name(const AttentionParams& params) { return find_instance(params)->name; }

}  // namespace flash_gqa::cuda::sm90
