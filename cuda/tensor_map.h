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

// Where rows of 16-bit K and V lie, in bytes.
struct KvRows {
  const uint8_t* k;
  const uint8_t* v;
  uint64_t rows;  // of a page
  uint64_t k_row;
  uint64_t v_row;
  uint64_t head;
  uint64_t pages;
  uint64_t page;
};

inline KvRows kv_rows(const AttentionParams& p) {
  const KvView& kv = p.kv;
  const auto* const k = static_cast<const uint8_t*>(kv.k);
  const uint64_t elem = 2, row = p.head_dim * elem;
  if (kv.page_table != nullptr) {
    const uint64_t head = kv.page_size * row;
    return {k,
            k + p.num_kv_heads * head,
            static_cast<uint64_t>(kv.page_size),
            row,
            row,
            head,
            at_least_one(kv.num_pages),
            kv.stride_page * elem};
  }
  // One page, whose stride is not used.
  return {k,
          static_cast<const uint8_t*>(kv.v),
          at_least_one(kv.total_kv),
          kv.k_stride_token * elem,
          kv.v_stride_token * elem,
          row,
          1,
          16};
}

inline bool encode_kv_maps(const AttentionParams& p, int32_t box_keys, KvMaps& maps) {
  const KvRows at = kv_rows(p);
  const uint32_t box[4] = {64, static_cast<uint32_t>(box_keys), 1, 1};
  const uint64_t dims[4] = {static_cast<uint64_t>(p.head_dim), at.rows,
                            static_cast<uint64_t>(p.num_kv_heads), at.pages};
  const uint64_t k_strides[3] = {at.k_row, at.head, at.page};
  const uint64_t v_strides[3] = {at.v_row, at.head, at.page};
  return encode_map<4>(maps.k, p.dtype, at.k, dims, k_strides, box) &&
         encode_map<4>(maps.v, p.dtype, at.v, dims, v_strides, box);
}

}  // namespace flash_gqa::cuda
