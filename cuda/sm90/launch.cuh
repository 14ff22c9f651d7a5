// Launches the Hopper forward kernel: tensor maps, schedule, grid.
#pragma once

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include "../sections.h"
#include "forward.cuh"
#include "prefill_instance.h"

namespace flash_gqa::cuda::sm90 {

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

inline bool encode_q_map(const AttentionParams& p, int32_t group_size, int32_t tokens,
                         CUtensorMap& map) {
  const uint64_t d = p.head_dim, elem = 2;
  const uint64_t dims[3] = {d, static_cast<uint64_t>(p.num_q_heads), at_least_one(p.batch.total_q)};
  const uint64_t strides[2] = {d * elem, p.q_stride_token * elem};
  const uint32_t box[3] = {64, static_cast<uint32_t>(group_size), static_cast<uint32_t>(tokens)};
  return encode_map<3>(map, p.dtype, p.q, dims, strides, box);
}

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

// A box holds keys of one page, and a tile a whole number of boxes.
constexpr int box_keys(int tile_kv, int page_size) {
  int keys = tile_kv & -tile_kv;  // the largest power of two that divides the tile
  return page_size > 0 && page_size < keys ? page_size : page_size > 0 ? keys : tile_kv;
}

template <class Traits>
cudaError_t launch(const AttentionParams& params, int32_t min_rows, const DeviceTraits& device,
                   cudaStream_t stream) {
  const BatchView& batch = params.batch;
  Schedule schedule{};
  schedule.counters = device.counters;
  schedule.min_rows = min_rows;
  schedule.group_size = params.num_q_heads / params.num_kv_heads;
  schedule.group_inverse = 65536 / schedule.group_size + 1;
  schedule.tokens_per_tile = Traits::kTileQ / schedule.group_size;
  const int32_t max_q_len = batch.cu_seqlens_q != nullptr ? batch.max_q_len : batch.uniform_q_len;
  schedule.tiles_per_head =
      max_q_len / schedule.tokens_per_tile + (max_q_len % schedule.tokens_per_tile != 0);
  const int64_t total_heads = static_cast<int64_t>(batch.batch_size) * params.num_kv_heads;
  const int64_t tiles = total_heads * schedule.tiles_per_head;
  if (tiles == 0) return cudaSuccess;
  if (tiles > 0x7fffffff - 1024) return cudaErrorInvalidValue;  // blocks draw indices past the end
  schedule.total_tiles = static_cast<int32_t>(tiles);
  const int32_t section_heads = cuda::section_heads(params);
  schedule.last_section = static_cast<int32_t>((total_heads - 1) / section_heads);
  schedule.section_heads = Divisor(section_heads);
  schedule.last_section_heads =
      Divisor(static_cast<int32_t>(total_heads) - schedule.last_section * section_heads);
  schedule.section_tiles = Divisor(section_heads * schedule.tiles_per_head);
  schedule.num_kv_heads = Divisor(params.num_kv_heads);
  schedule.box_keys =
      box_keys(Traits::kTileKv, params.kv.page_table != nullptr ? params.kv.page_size : 0);

  TensorMaps maps;
  if (!encode_q_map(params, schedule.group_size, schedule.tokens_per_tile, maps.q) ||
      !encode_kv_maps(params, schedule.box_keys, maps.kv)) {
    return cudaErrorInvalidValue;
  }
  const auto kernel = attention_fwd_kernel<Traits>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Traits::kSharedBytes);
  if (error != cudaSuccess) return error;
  const int blocks = tiles < device.num_sms ? static_cast<int>(tiles) : device.num_sms;
  kernel<<<blocks, Traits::kThreads, Traits::kSharedBytes, stream>>>(params, maps, schedule);
  return cudaGetLastError();
}

template <class Element, int kHeadDim>
const PrefillInstance& prefill_instance() {
  using T = Traits<Element, kHeadDim>;
  static constexpr PrefillInstance instance{T::kTileQ, T::kSharedBytes, T::kConfig.name, launch<T>};
  return instance;
}

}  // namespace flash_gqa::cuda::sm90
