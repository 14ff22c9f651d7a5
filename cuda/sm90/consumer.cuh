// The consumer warpgroups of the Hopper forward kernel: Algorithm 1 of FlashAttention-3 (Shah et
// al. 2024), 64 rows each. Row r of a tile is token r / group_size, head r % group_size.
#pragma once

#include "../softmax.h"
#include "../tile/mma.cuh"
#include "../tile/wgmma.cuh"
#include "fragment.cuh"
#include "parts.cuh"
#include "producer.cuh"

namespace flash_gqa::cuda::sm90 {

// Probabilities of one thread and row stay below this, in every 16-bit type.
constexpr float kLargeSum = 4096.0f;

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

  WorkTile work;
  KeyRange common;               // what all rows of this warpgroup see
  float rS[kTileKv / 2];         // [64, kTileKv] scores of this tile
  float rO[kHeadDim / 2];        // [64, kHeadDim] output, unnormalised
  uint32_t rP[kTileKv / 16][4];  // [64, kTileKv] probabilities, as operand A
  SoftmaxState state[2];         // sum: this thread's share of the row
  float factor[2];               // what rO's rows must still be multiplied by
  bool rescale;                  // whether it is not 1

  RingIndex<Traits::kQStages> q;
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
  __device__ __forceinline__ void start_scores() {
    const uint64_t rows =
        smem_descriptor(ptx::smem_address(shared.q[q.slot].data) + warpgroup * 64 * 128, 16);
    const uint64_t keys = smem_descriptor(ptx::smem_address(shared.k[k.slot].data), 16);
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < kHeadDim / 16; ++c) {
      const int half = c / 4, in_half = c % 4 * 32;
      ScoreProduct::ss(rS, advance(rows, half * Traits::kTileQ * 128 + in_half),
                       advance(keys, half * kTileKv * 128 + in_half), c > 0);
    }
    wgmma_commit();
  }

  // rO += rP * sV, left in flight.
  __device__ __forceinline__ void start_values() {
    barrier_wait(shared.v_full[v.slot], v.parity);
    const uint64_t values =
        smem_descriptor(ptx::smem_address(shared.v[v.slot].data), kTileKv * 128);
    wgmma_fence();
#pragma unroll
    for (int c = 0; c < kTileKv / 16; ++c)
      ValueProduct::rs(rO, rP[c], advance(values, c * 16 * 128));
    wgmma_commit();
  }

  // Probabilities of masked keys are 0, but 0 * NaN is NaN: value rows beyond the sequence may hold
  // anything. Only the last tile of keys has any. Each warpgroup that computes it writes the same zeros.
  __device__ __forceinline__ void clear_tail(int32_t first_row) {
    barrier_wait(shared.v_full[v.slot], v.parity);
    shared.v[v.slot].clear_from(first_row, thread);
    fence_async_proxy();
    ptx::named_barrier_sync(kWarpgroupBarrier + warpgroup, 128);
  }

  // This thread's rows of every tile are row(0) and row(1). Opaque: they are needed once a tile, and
  // would else occupy registers, with what follows from them, throughout the loop.
  __device__ __forceinline__ int32_t row(int r) const {
    int32_t t = thread;
    asm volatile("" : "+r"(t));
    return warpgroup * 64 + t / 32 * 16 + t % 32 / 4 + 8 * r;
  }

  __device__ __forceinline__ void begin_tile() {
    rescale = false;
    work = load_uniform(shared.work[q.slot].tile);
    common = load_uniform(shared.work[q.slot].common[warpgroup]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      state[r] = SoftmaxState{};
      // Rows beyond the last token hold anything. With a maximum that nothing exceeds they have no
      // say in the votes, on which the bits of other rows depend.
      if (row(0) >= work.tokens * schedule.group_size - 8 * r) state[r].max = -minus_infinity();
    }
  }
  __device__ __forceinline__ void clear_output() {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) rO[i] = 0.0f;
  }

  // Scores to logits in units of 1 / scale, which is returned: capped where the program says so, and
  // -infinity where a row does not see the key.
  __device__ __forceinline__ float logits(int32_t first_key) {
    float scale = params.sm_scale * kLog2E;
    if (params.soft_cap > 0.0f) {
      float cap = params.soft_cap;
      asm volatile("" : "+f"(cap));  // else the quotient below is kept in a register throughout
      const float inner = __fdividef(params.sm_scale, cap);
#pragma unroll
      for (int i = 0; i < kTileKv / 2; ++i) rS[i] = cap * tanh_approx(rS[i] * inner);
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
        const int32_t token = work.first_token + schedule.token_of(row(r));
        const uint32_t visible = visible_bits(work.mask(params).row(token), key);
#pragma unroll
        for (int j = 0; j < kTileKv / 4; ++j) {
          float& s = rS[j / 2 * 4 + 2 * r + j % 2];
          if ((visible >> j & 1) == 0) s = minus_infinity();
        }
      }
    }
    return scale;
  }

  // Raises the maxima to those of this tile, where they grew by much: in most tiles none did.
  __device__ __forceinline__ void raise_maxima(float scale) {
    float tile_max[2];
    row_maxima(rS, scale, tile_max);
    rescale = __any_sync(0xffffffff, state[0].exceeded_by(tile_max[0], kMaxSlack) ||
                                         state[1].exceeded_by(tile_max[1], kMaxSlack));
    if (!rescale) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float row_max = fmaxf(tile_max[r], __shfl_xor_sync(0xffffffff, tile_max[r], 1));
      row_max = fmaxf(row_max, __shfl_xor_sync(0xffffffff, row_max, 2));
      factor[r] = state[r].raise_max(row_max, kMaxSlack);
    }
  }

  __device__ __forceinline__ void softmax(float scale) {
    raise_maxima(scale);
    float sum[2];
    exponentials(rS, scale, {state[0].reference(), state[1].reference()}, sum);
#pragma unroll
    for (int r = 0; r < 2; ++r) state[r].sum += sum[r];
  }

  // rS once more, by one warp alone: the other warps of the warpgroup may not need it.
  __device__ __forceinline__ void repeat_scores() {
    using Math = MmaMath<T, kHeadDim, 4 * Traits::kConsumers, 1, 1, kTileKv>;
    // Opaque, or what follows from it would be kept in registers throughout the loop.
    int consumer_thread = warpgroup * 128 + thread;
    asm volatile("" : "+r"(consumer_thread));
    float scores[2][kTileKv / 4] = {};
    Math(consumer_thread).template multiply_qk<1>(scores, shared.q[q.slot], shared.k[k.slot]);
#pragma unroll
    for (int i = 0; i < kTileKv / 2; ++i) rS[i] = scores[i / 2 % 2][i / 4 * 2 + i % 2];
  }

  // The same without a look at the maxima: those of the tiles before will do as long as no sum gets
  // out of hand. Otherwise, and where nothing was seen before and 2^(s + infinity) is infinite, the
  // scores are computed once more.
  __device__ __forceinline__ void softmax_unless_exceeded(float scale) {
    rescale = false;
    float sum[2];
    exponentials(rS, scale, {state[0].max, state[1].max}, sum);
    if (__any_sync(0xffffffff, sum[0] > kLargeSum || sum[1] > kLargeSum)) {
      repeat_scores();
      softmax(scale);
    } else {
#pragma unroll
      for (int r = 0; r < 2; ++r) state[r].sum += sum[r];
    }
  }

  __device__ __forceinline__ void pack_probabilities() {
#pragma unroll
    for (int c = 0; c < kTileKv / 16; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) rP[c][i] = ptx::pack<T>(rS[8 * c + 2 * i], rS[8 * c + 2 * i + 1]);
    }
  }

  __device__ __forceinline__ void rescale_output() {
    if (!rescale) return;
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) rO[i] *= factor[i / 2 % 2];
  }

  __device__ __forceinline__ OutputTile output() const {
    return {work.sequence.q_start + work.first_token, work.kv_head * schedule.group_size,
            work.tokens};
  }

  // All keys are in the state, if not yet in rO: writes lse. scale[r] is what rO's row is to be
  // multiplied by in the end.
  __device__ __forceinline__ void finish_state(const OutputTile& out, float (&scale)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      state[r].sum = sum_of_quad(state[r].sum);
      const OutputRow to = out.row(schedule, params, row(r));
      scale[r] = 1.0f;
      if (params.sink_logits != nullptr && to.valid) {
        scale[r] = state[r].add_sink(params.sink_logits[to.head]);
      }
      scale[r] *= state[r].inverse_sum();
      if (params.lse != nullptr && to.valid && thread % 4 == 0) params.lse[to.row] = state[r].lse();
    }
  }
  __device__ __forceinline__ void store(const OutputTile& out, const float (&scale)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      store_row<T>(rO, r, scale[r], static_cast<T*>(params.o), params.head_dim,
                   out.row(schedule, params, row(r)));
    }
  }

  __device__ __forceinline__ void finish(const OutputTile& out) {
    float scale[2];
    finish_state(out, scale);
    store(out, scale);
  }

  __device__ __forceinline__ void release(Barrier& empty) {
    __syncwarp();
    if (thread % 32 == 0) barrier_arrive(empty);
  }

  // Waits for the scores of the tile of keys at first_key, and turns them into probabilities while
  // the values of the tile before are multiplied; then waits for those. kPlain: every row sees
  // every key, a positive scale, no soft cap.
  template <bool kPlain, int kPending>
  __device__ __forceinline__ void finish_scores(int32_t first_key, bool last) {
    wgmma_wait<kPending>();
    keep_registers(rS);
    if constexpr (kPlain && Traits::kConfig.trust_maxima) {
      softmax_unless_exceeded(params.sm_scale * kLog2E);
    } else {
      softmax(kPlain ? params.sm_scale * kLog2E : logits(first_key));
    }
    keep_registers(rS);
    release(shared.k_empty[k.slot]);
    k.advance();
    if (last) release(shared.q_empty[q.slot]);
    // Waiting for the next keys here ends a basic block: inside one, ptxas would move the wait for
    // the values up, above the softmax that should hide them.
    if (!last) barrier_wait(shared.k_full[k.slot], k.parity);
    wgmma_wait<0>();
    keep_registers(rO);
  }
  __device__ __forceinline__ void release_values() {
    release(shared.v_empty[v.slot]);
    v.advance();
  }

  template <bool kPlain>
  __device__ __forceinline__ void step(int32_t first_key, bool last) {
    rescale_output();
    take_turn();
    start_scores();
    start_values();
    pass_turn();
    finish_scores<kPlain, 1>(first_key, last);
    release_values();
    pack_probabilities();
  }

  // The last values of a tile, with nothing to hide behind.
  __device__ __forceinline__ void finish_values() {
    rescale_output();
    start_values();
    wgmma_wait<0>();
    keep_registers(rO);
    release_values();
  }

  // Key tiles that none of this warpgroup's rows sees, taken and given back, and a turn for each: turns
  // are counted by key tiles. Values before it are multiplied first, or others would wait for their slot.
  __device__ __forceinline__ void skip_tiles(int32_t count) {
#pragma unroll 1
    for (; count > 0; --count) {
      barrier_wait(shared.k_full[k.slot], k.parity);
      take_turn();
      pass_turn();
      release(shared.k_empty[k.slot]);
      k.advance();
      barrier_wait(shared.v_full[v.slot], v.parity);
      release_values();
    }
  }

  __device__ __forceinline__ void run() {
    const bool plain = params.soft_cap == 0.0f && params.sm_scale > 0.0f;
    OutputTile out{};  // of the tile before, which is stored behind the first scores of this one
    bool unfinished = false;  // its last values are still to be multiplied
    if (warpgroup == Traits::kConsumers - 1) pass_turn();
    for (;;) {
      barrier_wait(shared.q_full[q.slot], q.parity);
      int32_t unseen = 0;
      if constexpr (Traits::kConfig.skips)
        unseen = load_uniform(shared.work[q.slot].unseen[warpgroup]);
      const int32_t count = load_uniform(shared.work[q.slot].key_tiles) - unseen;
      if (unfinished && (unseen > 0 || count <= 0)) {
        finish_values();
        finish(out);
        unfinished = false;
      }
      if (count == kNoMoreWork) break;
      skip_tiles(unseen);
      if (count == 0) {
        begin_tile();
        clear_output();
        release(shared.q_empty[q.slot]);
        q.advance();
        if (work.share == kWhole)
          finish(output());
        else
          leave_part<Traits>(schedule, work.share, warpgroup, thread, rO, state);
        continue;
      }

      // Two paths, since the compiler must see each product meet its wait.
      int32_t i;
      if (unfinished) {
        float scale[2];
        rescale_output();
        barrier_wait(shared.k_full[k.slot], k.parity);
        take_turn();
        start_scores();
        start_values();
        pass_turn();
        finish_state(out, scale);
        begin_tile();
        i = work.key_first + count - 1;
        finish_scores<false, 1>(TileRange(work.keys, kTileKv).key(i), count == 1);
        release_values();
        store(out, scale);
      } else {
        begin_tile();
        i = work.key_first + count - 1;
        barrier_wait(shared.k_full[k.slot], k.parity);
        take_turn();
        start_scores();
        pass_turn();
        finish_scores<false, 0>(TileRange(work.keys, kTileKv).key(i), count == 1);
      }
      clear_output();
      pack_probabilities();
      const TileRange tiles(work.keys, kTileKv);
      const int32_t valid_keys = work.sequence.kv_len - tiles.key(i);
      if (valid_keys < kTileKv) clear_tail(valid_keys);
      out = output();
      unfinished = true;

      const int32_t last = work.key_first;
      for (--i; i >= last;) {
        const int32_t stop = plain ? max_i32(i - full_tiles_down(common, tiles, i), last - 1) : i;
        if (stop == i) {
          step<false>(tiles.key(i), i == last);
          --i;
        } else {
          for (; i > stop; --i) step<true>(0, i == last);
        }
      }
      q.advance();
      if (work.share != kWhole) {
        finish_values();
        unfinished = false;
        if (part_completes<Traits>(schedule, work, warpgroup, thread, rO, state)) finish(out);
      }
    }
  }
};

}  // namespace flash_gqa::cuda::sm90
