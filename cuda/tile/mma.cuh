// The two products of a tile on tensor cores (mma.sync m16n8k16), 16-bit inputs, float32 sums.
//
// Warps stand in a grid of row_warps x key_warps: a warp owns kRowTiles * 16 rows and a strip of
// the tile's keys. Where key_warps > 1 (few rows, as in decode) each warp keeps a softmax state of
// its own over its strip, and the strips are merged when the keys are done.
//
// A thread's share of a 16x8 result: lane = 4 g + t holds columns 2t, 2t + 1 of rows g and g + 8.
#pragma once

#include "../softmax.h"
#include "ptx.cuh"
#include "smem.cuh"
#include "tanh.cuh"

namespace flash_gqa::cuda {

template <class Element, int kHeadDim, int kRowWarps, int kRowTiles, int kKeyWarps, int kTileKv>
struct MmaMath {
  static constexpr int kWarpKeys = kTileKv / kKeyWarps;
  static constexpr int kRows = 2 * kRowTiles;  // rows of a thread
  static constexpr int kKeys = kWarpKeys / 4;  // logits of a thread per row
  static constexpr int kCols = kHeadDim / 4;   // outputs of a thread per row,
  static constexpr int kColsTogether = 2;      // so many of which are neighbours
  static constexpr int kLanes = 4;             // threads that share a row,
  static constexpr int kLaneStep = 1;          // so far apart
  static constexpr int kKeyParts = kKeyWarps;  // softmax states per row
  static constexpr int kTileQ = kRowWarps * kRowTiles * 16;
  static constexpr int kThreads = 32 * kRowWarps * kKeyWarps;
  // Unrolled further, fragments are fetched so far ahead that 32 rows of 128 columns spill.
  static constexpr int kQkUnroll = kRowTiles * kHeadDim > 192 ? 4 : kHeadDim / 16;
  static_assert(kWarpKeys % 16 == 0 && kHeadDim % 16 == 0);

  struct Scratch {};

  int lane;
  int warp_row;
  int key_warp;

  __device__ explicit MmaMath(int thread)
      : lane(thread % 32),
        warp_row(thread / 32 % kRowWarps * kRowTiles * 16),
        key_warp(thread / 32 / kRowWarps) {}

  __device__ int row(int i) const { return warp_row + i / 2 * 16 + i % 2 * 8 + lane / 4; }
  __device__ int first_key() const { return key_warp * kWarpKeys + lane % 4 * 2; }
  __device__ int first_col() const { return lane % 4 * 2; }
  __device__ static constexpr int key_step(int j) { return j / 2 * 8 + j % 2; }
  __device__ static constexpr int col_step(int j) { return j / 2 * 8 + j % 2; }
  __device__ int key_part() const { return key_warp; }
  __device__ bool leads_row() const { return lane % 4 == 0; }
  // The probabilities are rounded to 16 bits next, so the raw instruction is accurate enough.
  __device__ static float exp2(float x) { return ptx::exp2_approx(x); }
  __device__ static float tanh(float x) { return tanh_approx(x); }

  // s += q k^T, with q [kTileQ, kHeadDim] and k [kTileKv, kHeadDim]: anything with address() and
  // move().
  template <int kUnroll = kQkUnroll, class QTile, class KTile>
  __device__ void multiply_qk(float (&s)[kRows][kKeys], const QTile& q, const KTile& k) const {
    const uint32_t q_at = q.address(warp_row + lane % 16, lane / 16);
    const uint32_t k_at = k.address(key_warp * kWarpKeys + lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll kUnroll
    for (int d = 0; d < kHeadDim / 16; ++d) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) ptx::ldmatrix_x4(a[m], q.move(q_at, m * 16, 2 * d));
#pragma unroll
      for (int n = 0; n < kWarpKeys / 16; ++n) {
        uint32_t b[4];  // keys 16n .. 16n + 7: b[0], b[1]; the next 8: b[2], b[3]
        ptx::ldmatrix_x4(b, k.move(k_at, n * 16, 2 * d));
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma(s, m, 2 * n, a[m], b[0], b[1]);
          mma(s, m, 2 * n + 1, a[m], b[2], b[3]);
        }
      }
    }
  }

  // The same of 16 rows with q in registers, as the operands of its products.
  template <class KTile>
  __device__ void multiply_qk(float (&s)[kRows][kKeys], const uint32_t (&q)[kHeadDim / 16][4],
                              const KTile& k) const {
    static_assert(kRowTiles == 1);
    const uint32_t k_at = k.address(key_warp * kWarpKeys + lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int d = 0; d < kHeadDim / 16; ++d) {
#pragma unroll
      for (int n = 0; n < kWarpKeys / 16; ++n) {
        uint32_t b[4];
        ptx::ldmatrix_x4(b, k.move(k_at, n * 16, 2 * d));
        mma(s, 0, 2 * n, q[d], b[0], b[1]);
        mma(s, 0, 2 * n + 1, q[d], b[2], b[3]);
      }
    }
  }

  // o += p v. The accumulator layout of two 16x8 logit tiles is the operand layout of one 16x16
  // tile, so the probabilities never leave their registers.
  template <class VTile>
  __device__ void multiply_pv(float (&o)[kRows][kCols], const float (&p)[kRows][kKeys],
                              const VTile& v, Scratch&) const {
    const uint32_t v_at = v.address(key_warp * kWarpKeys + lane % 16, lane / 16);
#pragma unroll
    for (int n = 0; n < kWarpKeys / 16; ++n) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        a[m][0] = ptx::pack<Element>(p[2 * m][4 * n], p[2 * m][4 * n + 1]);
        a[m][1] = ptx::pack<Element>(p[2 * m + 1][4 * n], p[2 * m + 1][4 * n + 1]);
        a[m][2] = ptx::pack<Element>(p[2 * m][4 * n + 2], p[2 * m][4 * n + 3]);
        a[m][3] = ptx::pack<Element>(p[2 * m + 1][4 * n + 2], p[2 * m + 1][4 * n + 3]);
      }
#pragma unroll
      for (int d = 0; d < kHeadDim / 16; ++d) {
        uint32_t b[4];  // columns 16d .. 16d + 7: b[0], b[1]; the next 8: b[2], b[3]
        ptx::ldmatrix_x4_trans(b, v.move(v_at, n * 16, 2 * d));
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma(o, m, 2 * d, a[m], b[0], b[1]);
          mma(o, m, 2 * d + 1, a[m], b[2], b[3]);
        }
      }
    }
  }

 private:
  // c holds row pairs (2m, 2m + 1) and column pairs (2n, 2n + 1) of each 16x8 tile.
  template <int kCount>
  __device__ static void mma(float (&c)[kRows][kCount], int m, int n, const uint32_t (&a)[4],
                             uint32_t b0, uint32_t b1) {
    ptx::mma_16x8x16<Element>(c[2 * m][2 * n], c[2 * m][2 * n + 1], c[2 * m + 1][2 * n],
                              c[2 * m + 1][2 * n + 1], a, b0, b1);
  }
};

}  // namespace flash_gqa::cuda
