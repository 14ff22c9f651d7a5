// The two products of a decode tile on tensor cores (mma.sync m16n8k16), with keys, and then columns of V, as the 16
// rows of the instruction and query rows as its 8 columns: S^T = K Q^T, O^T = V^T P^T. A group of at most 8 rows then
// wastes nothing, where queries as rows would fill 16.
//
// A thread's share of a 16x8 result: lane = 4 g + t holds rows g and g + 8 of columns 2t and 2t + 1: so a thread has
// two query rows of each 8, and shares them with the lanes of the same t.
#pragma once

#include "../softmax.h"
#include "../tile/mma.cuh"
#include "../tile/softmax.cuh"

namespace flash_gqa::cuda::sm90 {

// How a K or V tile lies in shared memory: boxes of box_keys keys, each [column half][key][64], where the copy engine
// permutes the 16-byte chunks of a 128-byte row by row % 8.
template <int kHalves>
struct BoxedTile {
  uint32_t base;
  int32_t box_keys;  // a power of two, at least 8

  __device__ __forceinline__ uint32_t row(int key) const {
    return base + key * 128 + (key & -box_keys) * (128 * (kHalves - 1));
  }
  __device__ __forceinline__ uint32_t half(int i) const { return i * box_keys * 128; }
};

// Swaps rows and columns of an 8x8 matrix of 16-bit values held as an mma fragment.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t fragment) {
  uint32_t r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(fragment));
  return r;
}

// Warps stand in a grid of kRowWarps x kKeyWarps; each owns kRowTiles * 8 query rows and a strip of the tile's keys.
template <class Element_, int kHeadDim_, int kRowTiles_, int kRowWarps, int kKeyWarps, int kTileKv>
struct DecodeMath {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kWarpKeys = kTileKv / kKeyWarps;
  static constexpr int kStrips = kWarpKeys / 16;
  static constexpr int kSteps = kHeadDim / 16;
  static constexpr int kHalves = (kHeadDim + 63) / 64;
  static constexpr int kRows = 2 * kRowTiles;  // query rows of a thread
  static constexpr int kKeys = kWarpKeys / 8;  // logits of a thread per row
  static constexpr int kCols = kHeadDim / 8;   // outputs of a thread per row
  static constexpr int kTileQ = kRowWarps * kRowTiles * 8;
  static constexpr int kThreads = 32 * kRowWarps * kKeyWarps;
  static_assert(kWarpKeys % 16 == 0 && kHeadDim % 16 == 0);
  using Tile = BoxedTile<kHalves>;
  using Scalar = MmaMath<Element, 16, 1, 1, 1, 16>;

  // Query rows as operands: all of them stay in registers while the keys go by.
  using Query = uint32_t[kRowTiles][kSteps][2];

  int lane;
  int warp_row;
  int key_warp;

  __device__ explicit DecodeMath(int thread)
      : lane(thread % 32),
        warp_row(thread / 32 % kRowWarps * kRowTiles * 8),
        key_warp(thread / 32 / kRowWarps) {}

  __device__ int row(int i) const { return warp_row + i / 2 * 8 + lane % 4 * 2 + i % 2; }
  __device__ int first_key() const { return key_warp * kWarpKeys + lane / 4; }
  __device__ int first_col() const { return lane / 4; }
  __device__ static constexpr int key_step(int j) { return 8 * j; }
  __device__ static constexpr int col_step(int j) { return 8 * j; }
  __device__ int key_part() const { return key_warp; }
  __device__ bool leads_row() const { return lane < 4; }
  __device__ static float exp2(float x) { return Scalar::exp2(x); }
  __device__ static float tanh(float x) { return Scalar::tanh(x); }

  // Row `query_row(m)` of the block is this lane's part of operand m: words of columns 2 (lane % 4) of each chunk of 8.
  __device__ int query_row(int m) const { return warp_row + 8 * m + lane / 4; }

  // s = k q^T
  __device__ __forceinline__ void multiply_qk(float (&s)[kRows][kKeys], const Query& q,
                                              const Tile& k) const {
    // A single sum of kSteps dependent products would be all latency.
    constexpr int kChains = kRowTiles * kStrips == 1 ? 2 : 1;
    float sum[kChains][kRows][kKeys] = {};
    const uint32_t chunk = (lane / 16 ^ lane % 8) * 16;
#pragma unroll
    for (int n = 0; n < kStrips; ++n) {
      const uint32_t at = k.row(key_warp * kWarpKeys + n * 16 + lane % 16) + chunk;
#pragma unroll
      for (int d = 0; d < kSteps; ++d) {
        uint32_t a[4];
        ptx::ldmatrix_x4(a, (at + k.half(d / 4)) ^ d % 4 * 32);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) mma(sum[d % kChains], m, n, a, q[m][d][0], q[m][d][1]);
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kKeys; ++j) s[i][j] = sum[0][i][j] + (kChains == 2 ? sum[kChains - 1][i][j] : 0.0f);
  }

  // One step of the online softmax: s becomes the unnormalised probabilities. The reference that they are relative to
  // follows the maximum only when a logit exceeds it by kSlack: then 2^kSlack bounds them, which costs no precision,
  // and most tiles need neither the exchange between lanes nor a rescaled o.
  static constexpr float kSlack = 8.0f;
  __device__ __forceinline__ void update_softmax(float (&s)[kRows][kKeys],
                                                 SoftmaxState (&state)[kRows],
                                                 float (&o)[kRows][kCols]) const {
    float tile_max[kRows];
    bool exceeds = false;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      tile_max[i] = s[i][0];
#pragma unroll
      for (int j = 1; j < kKeys; ++j) tile_max[i] = fmaxf(tile_max[i], s[i][j]);
      exceeds |= tile_max[i] > state[i].max + kSlack;
    }
    if (__any_sync(0xffffffff, exceeds)) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2)
          tile_max[i] = fmaxf(tile_max[i], __shfl_xor_sync(0xffffffff, tile_max[i], lanes));
        const float rescale = state[i].raise_max(tile_max[i]);
#pragma unroll
        for (int j = 0; j < kCols; ++j) o[i][j] *= rescale;
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float reference = state[i].reference();
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        s[i][j] = exp2(s[i][j] - reference);
        state[i].sum += s[i][j];
      }
    }
  }

  __device__ __forceinline__ static void reduce_sums(SoftmaxState (&state)[kRows]) {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2)
        state[i].sum += __shfl_xor_sync(0xffffffff, state[i].sum, lanes);
  }

  // o += v^T p^T
  __device__ __forceinline__ void multiply_pv(float (&o)[kRows][kCols], const float (&p)[kRows][kKeys],
                                              const Tile& v) const {
    const uint32_t chunk = (lane / 8 % 2 ^ lane % 8) * 16;
#pragma unroll
    for (int n = 0; n < kStrips; ++n) {
      uint32_t b[kRowTiles][2];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        b[m][0] = transpose_8x8(ptx::pack<Element>(p[2 * m][2 * n], p[2 * m + 1][2 * n]));
        b[m][1] = transpose_8x8(ptx::pack<Element>(p[2 * m][2 * n + 1], p[2 * m + 1][2 * n + 1]));
      }
      const uint32_t at =
          v.row(key_warp * kWarpKeys + n * 16 + lane / 16 * 8 + lane % 8) + chunk;
#pragma unroll
      for (int d = 0; d < kSteps; ++d) {
        uint32_t a[4];
        ptx::ldmatrix_x4_trans(a, (at + v.half(d / 4)) ^ d % 4 * 32);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) mma(o, m, d, a, b[m][0], b[m][1]);
      }
    }
  }

 private:
  // c holds query rows (2m, 2m + 1) and keys or columns (2n, 2n + 1) of each 16x8 tile.
  template <int kCount>
  __device__ __forceinline__ static void mma(float (&c)[kRows][kCount], int m, int n,
                                             const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma_16x8x16<Element>(c[2 * m][2 * n], c[2 * m + 1][2 * n], c[2 * m][2 * n + 1],
                              c[2 * m + 1][2 * n + 1], a, b0, b1);
  }
};

}  // namespace flash_gqa::cuda::sm90
