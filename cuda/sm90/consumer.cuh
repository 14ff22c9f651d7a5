// The consumer warpgroups of the Hopper forward kernel: Algorithm 1 of FlashAttention-3 (Shah et
// al. 2024), each warpgroup with 64 rows of the tile. Row r of a tile is token r / group_size, head
// r % group_size.
#pragma once

#include "../softmax.h"
#include "../tile/tanh.cuh"
#include "../tile/wgmma.cuh"
#include "producer.cuh"

namespace flash_gqa::cuda::sm90 {

// Named hardware barriers. 0 is __syncthreads.
constexpr int kTurnBarrier = 1;       // + warpgroup: its turn at the tensor cores
constexpr int kWarpgroupBarrier = 5;  // + warpgroup: its own 128 threads

template <class Traits>
struct Consumer {
  using T = typename Traits::T;
  static constexpr int kTileKv = Traits::kTileKv;
  static constexpr int kHeadDim = Traits::kHeadDim;
  using ScoreProduct = Wgmma<T, kTileKv>;
  using ValueProduct = Wgmma<T, kHeadDim>;

  typename Traits::SharedStorage& shared;
  const AttentionParams& params;
  const Schedule& schedule;
  const int warpgroup;  // 0 .. kConsumers - 1
  const int thread;     // 0 .. 127

  // This thread's two rows of the tile.
  int32_t row_index[2];
  KeyRange row_keys[2];
  KeyRange common;  // what all rows of this warpgroup see

  float rS[kTileKv / 2];         // [64, kTileKv] scores of this tile
  float rO[kHeadDim / 2];        // [64, kHeadDim] output, unnormalised
  uint32_t rP[kTileKv / 16][4];  // [64, kTileKv] probabilities, as operand A
  SoftmaxState state[2];         // sum: this thread's share of the row
  float factor[2];               // what rO's rows must still be multiplied by

  RingIndex<Traits::kKStages> k;
  RingIndex<Traits::kVStages> v;

  __device__ __forceinline__ void take_turn() {
    if constexpr (Traits::kConfig.ping_pong) ptx::named_barrier_sync(kTurnBarrier + warpgroup, 256);
  }
  __device__ __forceinline__ void pass_turn() {
    if constexpr (Traits::kConfig.ping_pong) {
      ptx::named_barrier_arrive(kTurnBarrier + (warpgroup + 1) % Traits::kConsumers, 256);
    }
  }

  // rS = sQ * sK^T, left in flight.
  __device__ __forceinline__ void start_scores(int q_slot, int k_slot) {
    const uint64_t q =
        smem_descriptor(ptx::smem_address(shared.q[q_slot].data) + warpgroup * 64 * 128, 16);
    const uint64_t k = smem_descriptor(ptx::smem_address(shared.k[k_slot].data), 16);
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < kHeadDim / 16; ++c) {
      const int half = c / 4, in_half = c % 4 * 32;
      ScoreProduct::ss(rS, advance(q, half * Traits::kTileQ * 128 + in_half),
                       advance(k, half * kTileKv * 128 + in_half), c > 0);
    }
    wgmma_commit();
  }

  // rO += rP * sV, left in flight.
  __device__ __forceinline__ void start_values(int v_slot) {
    const uint64_t v = smem_descriptor(ptx::smem_address(shared.v[v_slot].data), kTileKv * 128);
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < kTileKv / 16; ++c) ValueProduct::rs(rO, rP[c], advance(v, c * 16 * 128));
    wgmma_commit();
  }

  // Probabilities of masked keys are 0, but 0 * NaN is NaN: value rows beyond the sequence may hold
  // anything. Only the last tile of keys has any. Both warpgroups write the same zeros.
  __device__ __forceinline__ void clear_tail(int v_slot, uint32_t v_parity, int32_t first_row) {
    barrier_wait(shared.v_full[v_slot], v_parity);
    for (int half = 0; half < Traits::kHalves; ++half) {
      uint4* rows = reinterpret_cast<uint4*>(&shared.v[v_slot].data[half][first_row][0]);
      for (int i = thread; i < (kTileKv - first_row) * 8; i += 128) rows[i] = uint4{0, 0, 0, 0};
    }
    fence_async_proxy();
    ptx::named_barrier_sync(kWarpgroupBarrier + warpgroup, 128);
  }

  // Bit j: whether the row sees the j-th of this thread's keys, key + j / 2 * 8 + j % 2.
  __device__ __forceinline__ static uint32_t visible_bits(const KeyRange& row, int32_t key) {
    const auto below = [key](int32_t end) {
      const int32_t keys = max_i32(end - key, 0);
      const int32_t bits = keys / 8 * 2 + min_i32(keys % 8, 2);
      return bits < 32 ? (1u << bits) - 1 : 0xffffffff;
    };
    return (below(row.hi) & ~below(row.lo)) | below(row.sink_end);
  }

  __device__ __forceinline__ void begin_tile(const WorkTile& work) {
    const int32_t first = warpgroup * 64 + thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row_index[r] = first + 8 * r;
      row_keys[r] = work.mask.row(work.first_token + schedule.token_of(row_index[r]));
      state[r] = SoftmaxState{};
    }
    common = work.mask.common(work.first_token + schedule.token_of(warpgroup * 64),
                              work.first_token + schedule.token_of(warpgroup * 64 + 63));
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) rO[i] = 0.0f;
  }

  // Scores to logits in units of 1 / scale, which is returned: capped where the program says so, and
  // -infinity where a row does not see the key.
  __device__ __forceinline__ float logits(int32_t first_key) {
    float scale = params.sm_scale * kLog2E;
    if (params.soft_cap > 0.0f) {
      const float inner = params.sm_scale / params.soft_cap;
#pragma unroll
      for (int i = 0; i < kTileKv / 2; ++i) rS[i] = params.soft_cap * tanh_approx(rS[i] * inner);
      scale = kLog2E;
    } else if (params.sm_scale <= 0.0f) {
      // The maximum is taken before scaling, which needs a positive factor.
#pragma unroll
      for (int i = 0; i < kTileKv / 2; ++i) rS[i] *= params.sm_scale;
      scale = kLog2E;
    }
    if (!tile_is_full(common, first_key, kTileKv)) {
      const int32_t key = first_key + thread % 4 * 2;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t visible = visible_bits(row_keys[r], key);
#pragma unroll
        for (int j = 0; j < kTileKv / 4; ++j) {
          float& s = rS[j / 2 * 4 + 2 * r + j % 2];
          if ((visible >> j & 1) == 0) s = minus_infinity();
        }
      }
    }
    return scale;
  }

  // Logits to probabilities in place; factor[r] is what rO's row must be multiplied by.
  __device__ __forceinline__ void softmax(float scale) {
    // Both rows side by side and two partial results each: a chain of 32 dependent maxima or sums
    // per row would leave the warp waiting for its own last instruction most of the time.
    float part[2][2] = {{rS[0], rS[1]}, {rS[2], rS[3]}};
#pragma unroll
    for (int i = 4; i < kTileKv / 2; ++i) {
      float& m = part[i / 2 % 2][i % 2];
      m = fmaxf(m, rS[i]);
    }
    float reference[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float tile_max = fmaxf(part[r][0], part[r][1]);
      tile_max = fmaxf(tile_max, __shfl_xor_sync(0xffffffff, tile_max, 1));
      tile_max = fmaxf(tile_max, __shfl_xor_sync(0xffffffff, tile_max, 2));
      factor[r] = state[r].raise_max(tile_max * scale);
      reference[r] = state[r].reference();
      part[r][0] = part[r][1] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kTileKv / 2; ++i) {
      rS[i] = ptx::exp2_approx(fmaf(rS[i], scale, -reference[i / 2 % 2]));
      part[i / 2 % 2][i % 2] += rS[i];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) state[r].sum += part[r][0] + part[r][1];
  }

  __device__ __forceinline__ void pack_probabilities() {
#pragma unroll
    for (int c = 0; c < kTileKv / 16; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) rP[c][i] = ptx::pack<T>(rS[8 * c + 2 * i], rS[8 * c + 2 * i + 1]);
    }
  }

  __device__ __forceinline__ void rescale_output() {
    if constexpr (Traits::kConfig.lazy_rescale) {
      if (!__any_sync(0xffffffff, factor[0] != 1.0f || factor[1] != 1.0f)) return;
    }
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) rO[i] *= factor[i / 2 % 2];
  }

  // Normalises, and writes o through this warp's own 16 rows of the tile's Q, and lse.
  __device__ __forceinline__ void store(const WorkTile& work, int q_slot) {
    const int32_t first_head = work.kv_head * schedule.group_size;
    const int64_t first_row = work.sequence.q_start + work.first_token;
    float scale[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float& sum = state[r].sum;
      sum += __shfl_xor_sync(0xffffffff, sum, 1);
      sum += __shfl_xor_sync(0xffffffff, sum, 2);
      const int32_t token = schedule.token_of(row_index[r]);
      const int32_t head = first_head + row_index[r] - token * schedule.group_size;
      float sink_factor = 1.0f;
      if (params.sink_logits != nullptr && token < work.tokens) {
        sink_factor = state[r].add_sink(params.sink_logits[head]);
      }
      scale[r] = sink_factor * state[r].inverse_sum();
      if (params.lse != nullptr && thread % 4 == 0 && token < work.tokens) {
        params.lse[(first_row + token) * params.num_q_heads + head] = state[r].lse();
      }
    }

    // Other warps of this warpgroup may still multiply with these rows' neighbours.
    ptx::named_barrier_sync(kWarpgroupBarrier + warpgroup, 128);
    const int lane = thread % 32;
    const int warp_row = warpgroup * 64 + thread / 32 * 16;
#pragma unroll
    for (int c = 0; c < kHeadDim / 8; ++c) {
      // 16-byte chunks are xored with the row, so that neither side meets bank conflicts.
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = warp_row + lane / 4 + 8 * r;
        T* chunk = &shared.q[q_slot].data[c / 8][row][(c % 8 ^ row % 8) * 8];
        reinterpret_cast<uint32_t*>(chunk)[lane % 4] =
            ptx::pack<T>(rO[4 * c + 2 * r] * scale[r], rO[4 * c + 2 * r + 1] * scale[r]);
      }
    }
    __syncwarp();
    T* o = static_cast<T*>(params.o);
    constexpr int kChunks = kHeadDim / 8;
    for (int i = lane; i < 16 * kChunks; i += 32) {
      const int row = warp_row + i / kChunks;
      const int c = i % kChunks;
      const int32_t token = schedule.token_of(row);
      if (token >= work.tokens || c * 8 >= params.head_dim) continue;
      const int64_t out_row =
          (first_row + token) * params.num_q_heads + first_head + row - token * schedule.group_size;
      *reinterpret_cast<uint4*>(&o[out_row * params.head_dim + c * 8]) =
          *reinterpret_cast<const uint4*>(
              &shared.q[q_slot].data[c / 8][row][(c % 8 ^ row % 8) * 8]);
    }
    // The copy engine writes the next Q here.
    fence_async_proxy();
    __syncwarp();
  }

  __device__ __forceinline__ void release(Barrier& empty) {
    __syncwarp();
    if (thread % 32 == 0) barrier_arrive(empty);
  }

  // Scores of one tile and values of the tile before are in flight together; the softmax of the
  // former runs behind the latter. kPlain: every row sees every key, a positive scale, no soft cap.
  template <bool kPlain>
  __device__ __forceinline__ void step(int q_slot, int32_t first_key, bool last) {
    barrier_wait(shared.k_full[k.slot], k.parity);
    take_turn();
    start_scores(q_slot, k.slot);
    rescale_output();
    barrier_wait(shared.v_full[v.slot], v.parity);
    start_values(v.slot);
    pass_turn();
    wgmma_wait<1>();
    keep_registers(rS);
    release(shared.k_empty[k.slot]);
    k.advance();
    softmax(kPlain ? params.sm_scale * kLog2E : logits(first_key));
    keep_registers(rS);
    // Waiting for the next keys here ends a basic block: inside one, ptxas would move the wait for
    // the values up, above the softmax that should hide them.
    if (!last) barrier_wait(shared.k_full[k.slot], k.parity);
    wgmma_wait<0>();
    keep_registers(rO);
    release(shared.v_empty[v.slot]);
    v.advance();
    pack_probabilities();
  }

  __device__ __forceinline__ void run() {
    RingIndex<Traits::kQStages> q;
    const bool plain = params.soft_cap == 0.0f && params.sm_scale > 0.0f;
    if (warpgroup == Traits::kConsumers - 1) pass_turn();
    for (;;) {
      barrier_wait(shared.q_full[q.slot], q.parity);
      const int32_t index = __shfl_sync(0xffffffff, shared.work[q.slot], 0);
      if (index < 0) break;
      const WorkTile work = decode_work(params, schedule, index);
      begin_tile(work);
      const TileRange tiles(work.keys, kTileKv);

      int32_t i = tiles.count() - 1;
      if (i >= 0) {
        const int32_t first_key = tiles.key(i);
        barrier_wait(shared.k_full[k.slot], k.parity);
        start_scores(q.slot, k.slot);
        wgmma_wait<0>();
        keep_registers(rS);
        release(shared.k_empty[k.slot]);
        k.advance();
        softmax(logits(first_key));
        pack_probabilities();
        const int32_t valid = work.sequence.kv_len - first_key;
        if (valid < kTileKv) clear_tail(v.slot, v.parity, valid);
      }
      for (--i; i >= 0;) {
        for (; i >= 0 && !(plain && tile_is_full(common, tiles.key(i), kTileKv)); --i) {
          step<false>(q.slot, tiles.key(i), i == 0);
        }
        for (; i >= 0 && plain && tile_is_full(common, tiles.key(i), kTileKv); --i) {
          step<true>(q.slot, tiles.key(i), i == 0);
        }
      }
      if (tiles.count() > 0) {
        rescale_output();
        barrier_wait(shared.v_full[v.slot], v.parity);
        start_values(v.slot);
        wgmma_wait<0>();
        keep_registers(rO);
        release(shared.v_empty[v.slot]);
        v.advance();
      }
      store(work, q.slot);
      release(shared.q_empty[q.slot]);
      q.advance();
    }
  }
};

}  // namespace flash_gqa::cuda::sm90
