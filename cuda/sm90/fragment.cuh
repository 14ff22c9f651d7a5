// What one thread holds of its warpgroup's 64 rows: two rows, and of each 8 columns two, as
// tile/wgmma.cuh describes.
#pragma once

#include "../mask.h"
#include "../tile/ptx.cuh"
#include "schedule.cuh"

namespace flash_gqa::cuda::sm90 {

// Bit j: whether the row sees the j-th of a thread's keys, key + j / 2 * 8 + j % 2.
__device__ __forceinline__ uint32_t visible_bits(const KeyRange& row, int32_t key) {
  const auto below = [key](int32_t end) {
    const int32_t keys = max_i32(end - key, 0);
    const int32_t bits = keys / 8 * 2 + min_i32(keys % 8, 2);
    return bits < 32 ? (1u << bits) - 1 : 0xffffffff;
  };
  return (below(row.hi) & ~below(row.lo)) | below(row.sink_end);
}

// A 4x4 transpose of words among 4 neighbouring lanes: word[i] of lane j becomes word[j] of lane i.
__device__ __forceinline__ void transpose_quad(uint32_t (&word)[4], int lane) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool odd = (lane & bit) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      uint32_t& low = word[i];
      uint32_t& high = word[i | bit];
      const uint32_t other = __shfl_xor_sync(0xffffffff, odd ? low : high, bit);
      (odd ? low : high) = other;
    }
  }
}

struct OutputRow {
  int64_t row;  // of o and lse: token and head
  int32_t head;
  bool valid;
};

// Where the rows of a tile go.
struct OutputTile {
  int32_t first_row;  // of o and lse
  int32_t first_head;
  int32_t tokens;

  __device__ __forceinline__ OutputRow row(const Schedule& schedule, const AttentionParams& params,
                                           int32_t in_tile) const {
    const int32_t token = schedule.token_of(in_tile);
    const int32_t head = first_head + in_tile - token * schedule.group_size;
    return {static_cast<int64_t>(first_row + token) * params.num_q_heads + head, head,
            token < tokens};
  }
};

// Over the 4 lanes that share a row.
__device__ __forceinline__ float sum_of_quad(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// Writes row r (0 or 1) of the accumulator `o`, times scale, straight from the registers: lane t of
// the 4 that share a row trades its 2 of every 8 columns for all 8 columns of chunk 4 * i + t.
template <class T, int kCount>
__device__ __forceinline__ void store_row(const float (&o)[kCount], int r, float scale, T* out,
                                          int32_t head_dim, const OutputRow& to) {
  const int lane = threadIdx.x % 4;
  T* chunks = out + to.row * head_dim + lane * 8;
#pragma unroll
  for (int i = 0; i < kCount / 16; ++i) {
    uint32_t word[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float* pair = &o[16 * i + 4 * c + 2 * r];
      word[c] = ptx::pack<T>(pair[0] * scale, pair[1] * scale);
    }
    transpose_quad(word, lane);
    if (to.valid && i * 32 + lane * 8 < head_dim) {
      *reinterpret_cast<uint4*>(chunks + i * 32) = uint4{word[0], word[1], word[2], word[3]};
    }
  }
}

// The maxima of this thread's logits in its two rows, times scale. Side by side, and two partial maxima
// each: a chain of dependent ones per row would leave the warp waiting for its own last instruction.
template <int kCount>
__device__ __forceinline__ void row_maxima(const float (&s)[kCount], float scale, float (&max)[2]) {
  float part[2][2] = {{s[0], s[1]}, {s[2], s[3]}};
#pragma unroll
  for (int i = 4; i < kCount; ++i) {
    float& m = part[i / 2 % 2][i % 2];
    m = fmaxf(m, s[i]);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) max[r] = fmaxf(part[r][0], part[r][1]) * scale;
}

// Logits to probabilities in place, and their sums over this thread's keys.
template <int kCount>
__device__ __forceinline__ void exponentials(float (&s)[kCount], float scale,
                                             const float (&reference)[2], float (&sum)[2]) {
  float part[2][2] = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    s[i] = ptx::exp2_approx(fmaf(s[i], scale, -reference[i / 2 % 2]));
    part[i / 2 % 2][i % 2] += s[i];
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) sum[r] = part[r][0] + part[r][1];
}

}  // namespace flash_gqa::cuda::sm90
