// Tensor maps, by which the copy engine finds rows and fills shared memory (sm_90 and later): made on
// the host for each launch, passed as a kernel parameter.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "params.h"

namespace flash_gqa::cuda {

// Of K and V: [pages, num_kv_heads, keys of a page, head_dim], where dense K and V are one page of
// total_kv keys; columns beyond head_dim and pages beyond the last arrive as zeros.
struct KvMaps {
  CUtensorMap k;
  CUtensorMap v;
};

// cuTensorMapEncodeTiled computes on the host alone; taken from the driver, so that nothing links
// to it.
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                         cudaEnableDefault, &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess) {
      function = nullptr;
    }
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encode;
}

// dims and box: innermost first; strides: bytes, of every axis but the innermost.
template <int kRank>
bool encode_map(CUtensorMap& map, DType dtype, const void* base, const uint64_t (&dims)[kRank],
                const uint64_t (&strides)[kRank - 1], const uint32_t (&box)[kRank]) {
  const auto encode = tensor_map_encoder();
  if (encode == nullptr) return false;
  uint32_t steps[kRank];
  for (uint32_t& step : steps) step = 1;
  const auto type =
      dtype == DType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  return encode(&map, type, kRank, const_cast<void*>(base), dims, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

inline uint64_t at_least_one(int64_t n) { return n < 1 ? 1 : static_cast<uint64_t>(n); }

inline bool encode_kv_maps(const AttentionParams& p, int32_t box_keys, KvMaps& maps) {
  const KvView& kv = p.kv;
  const uint64_t d = p.head_dim, elem = 2, heads = p.num_kv_heads;
  const uint32_t box[4] = {64, static_cast<uint32_t>(box_keys), 1, 1};
  if (kv.page_table != nullptr) {
    const uint64_t head_bytes = kv.page_size * d * elem;
    const uint64_t dims[4] = {d, static_cast<uint64_t>(kv.page_size), heads,
                              at_least_one(kv.num_pages)};
    const uint64_t strides[3] = {d * elem, head_bytes, kv.stride_page * elem};
    const auto* pages = static_cast<const uint8_t*>(kv.k);
    return encode_map<4>(maps.k, p.dtype, pages, dims, strides, box) &&
           encode_map<4>(maps.v, p.dtype, pages + heads * head_bytes, dims, strides, box);
  }
  const uint64_t dims[4] = {d, at_least_one(kv.total_kv), heads, 1};
  const uint64_t k_strides[3] = {kv.k_stride_token * elem, d * elem, 16};  // one page: not used
  const uint64_t v_strides[3] = {kv.v_stride_token * elem, d * elem, 16};
  return encode_map<4>(maps.k, p.dtype, kv.k, dims, k_strides, box) &&
         encode_map<4>(maps.v, p.dtype, kv.v, dims, v_strides, box);
}

}  // namespace flash_gqa::cuda
