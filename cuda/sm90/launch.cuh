// Launches the Hopper forward kernel: tensor maps, schedule, grid.
#pragma once

#include <cuda_runtime.h>

#include "../dependent_launch.cuh"
#include "../sections.h"
#include "../tensor_map.h"
#include "forward.cuh"
#include "prefill_instance.h"

namespace flash_gqa::cuda::sm90 {

inline bool encode_q_map(const AttentionParams& p, int32_t group_size, int32_t tokens,
                         CUtensorMap& map) {
  const uint64_t d = p.head_dim, elem = 2;
  const uint64_t dims[3] = {d, static_cast<uint64_t>(p.num_q_heads), at_least_one(p.batch.total_q)};
  const uint64_t strides[2] = {d * elem, p.q_stride_token * elem};
  const uint32_t box[3] = {64, static_cast<uint32_t>(group_size), static_cast<uint32_t>(tokens)};
  return encode_map<3>(map, p.dtype, p.q, dims, strides, box);
}

// A box holds keys of one page, and a tile a whole number of boxes.
constexpr int box_keys(int tile_kv, int page_size) {
  int keys = tile_kv & -tile_kv;  // the largest power of two that divides the tile
  return page_size > 0 && page_size < keys ? page_size : page_size > 0 ? keys : tile_kv;
}

// Without what points to memory. No tiles: nothing to do; fewer: too many.
template <class Traits>
Schedule make_schedule(const AttentionParams& params, int32_t min_rows) {
  const BatchView& batch = params.batch;
  Schedule schedule{};
  schedule.min_rows = min_rows;
  schedule.group_size = params.num_q_heads / params.num_kv_heads;
  schedule.group_inverse = 65536 / schedule.group_size + 1;
  schedule.tokens_per_tile = Traits::kTileQ / schedule.group_size;
  const int32_t max_q_len = q_len_bound(batch);
  schedule.tiles_per_head =
      max_q_len / schedule.tokens_per_tile + (max_q_len % schedule.tokens_per_tile != 0);
  const int64_t total_heads = static_cast<int64_t>(batch.batch_size) * params.num_kv_heads;
  const int64_t tiles = total_heads * schedule.tiles_per_head;
  // Blocks draw indices past the end.
  schedule.total_tiles = tiles <= 0x7fffffff - 1024 ? static_cast<int32_t>(tiles) : -1;
  if (schedule.total_tiles <= 0) return schedule;
  schedule.ragged = batch.cu_seqlens_q != nullptr && batch.batch_size > 1;
  const int64_t ordered_heads = schedule.ragged ? params.num_kv_heads : total_heads;
  const int32_t section_heads = cuda::section_heads(params, ordered_heads);
  schedule.last_section = static_cast<int32_t>((ordered_heads - 1) / section_heads);
  schedule.section_heads = Divisor(section_heads);
  schedule.last_section_heads =
      Divisor(static_cast<int32_t>(ordered_heads) - schedule.last_section * section_heads);
  schedule.section_tiles = Divisor(section_heads * schedule.tiles_per_head);
  schedule.num_kv_heads = Divisor(params.num_kv_heads);
  BoxSplit& split = schedule.split;
  split.box_keys =
      box_keys(Traits::kTileKv, params.kv.page_table != nullptr ? params.kv.page_size : 0);
  split.boxes = Traits::kTileKv / split.box_keys;
  split.boxes_inverse = 65536 / split.boxes + 1;
  split.tiles = 32 / split.boxes;
  return schedule;
}

// Whether tiles may be divided: the device decides, with lengths that the host has bounds of.
template <class Traits>
bool may_divide(const AttentionParams& params, const Schedule& schedule,
                const DeviceTraits& device) {
  if (!Traits::kConfig.divides || params.fixed_split > 0 || schedule.total_tiles <= 0) return false;
  if (kDrawCounters + device.num_sms * Traits::kConsumers > kDecodeCounter) return false;
  const int32_t tiles = schedule.ragged ? 1 : schedule.total_tiles;
  Rest rest(tiles, device.num_sms);
  rest.divide(device.num_sms, kv_len_bound(params.batch) / Traits::kTileKv + 1);
  return rest.shares > 0;
}

template <class Traits>
size_t workspace(const AttentionParams& params, int32_t min_rows, const DeviceTraits& device) {
  if (!may_divide<Traits>(params, make_schedule<Traits>(params, min_rows), device)) return 0;
  return static_cast<size_t>(device.num_sms) * Traits::kConsumers * 128 * sizeof(float4) *
         (PartPlace<Traits>::kQuads + 1);
}

template <class Traits>
cudaError_t launch(const AttentionParams& params, int32_t min_rows, void* workspace,
                   const DeviceTraits& device, cudaStream_t stream) {
  Schedule schedule = make_schedule<Traits>(params, min_rows);
  if (schedule.total_tiles == 0) return cudaSuccess;
  if (schedule.total_tiles < 0) return cudaErrorInvalidValue;
  schedule.counters = device.counters;
  int blocks = schedule.total_tiles < device.num_sms ? schedule.total_tiles : device.num_sms;
  if (may_divide<Traits>(params, schedule, device)) {
    blocks = device.num_sms;
    schedule.parts = static_cast<float4*>(workspace);
  }
  schedule.reads_lengths = reads_lengths(params);
  // Only where blocks start with the tile of their own index: WorkStream::draw().
  schedule.foresees = schedule.reads_lengths && !schedule.ragged && schedule.total_tiles >= blocks;

  TensorMaps maps;
  if (!encode_q_map(params, schedule.group_size, schedule.tokens_per_tile, maps.q) ||
      !encode_kv_maps(params, schedule.split.box_keys, maps.kv)) {
    return cudaErrorInvalidValue;
  }
  const auto kernel = attention_fwd_kernel<Traits>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Traits::kSharedBytes);
  if (error != cudaSuccess) return error;
  return launch_dependent(kernel, blocks, Traits::kThreads, Traits::kSharedBytes, stream, params,
                          maps, schedule);
}

template <class Element, int kHeadDim>
const PrefillInstance& prefill_instance() {
  using T = Traits<Element, kHeadDim>;
  static constexpr PrefillInstance instance{T::kTileQ,       T::kSharedBytes, T::kConfig.divides,
                                            T::kConfig.name, workspace<T>,    launch<T>};
  return instance;
}

}  // namespace flash_gqa::cuda::sm90
