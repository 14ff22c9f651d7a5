// The two products of 8 rows and 16 keys by one warp (mma.sync m16n8k16, as mma.cuh), the other way round: keys
// are the rows of the first one, S^T = K Q^T, and columns of V those of the second, O^T = V^T P^T, so that
// no row of them is empty.
//
// A thread's share: lane = 4 g + t holds keys g and g + 8, and columns g + 8 j, of rows 2t and 2t + 1.
#pragma once

#include "../softmax.h"
#include "ptx.cuh"
#include "smem.cuh"
#include "tanh.cuh"

namespace flash_gqa::cuda {

template <class Element, int kHeadDim>
struct MmaColumns {
  static constexpr int kRows = 2;             // rows of a thread
  static constexpr int kKeys = 2;             // logits of a thread per row
  static constexpr int kCols = kHeadDim / 8;  // outputs of a thread per row,
  static constexpr int kColsTogether = 1;     // so many of which are neighbours
  static constexpr int kLanes = 8;            // threads that share a row,
  static constexpr int kLaneStep = 4;         // so far apart
  static_assert(kHeadDim % 32 == 0);

  struct Scratch {};
  int lane;

  __device__ explicit MmaColumns(int thread) : lane(thread % 32) {}
  __device__ int row(int i) const { return lane % 4 * 2 + i; }
  __device__ int first_key() const { return lane / 4; }
  __device__ int first_col() const { return lane / 4; }
  __device__ static constexpr int key_step(int j) { return 8 * j; }
  __device__ static constexpr int col_step(int j) { return 8 * j; }
  __device__ bool leads_row() const { return lane < 4; }
  __device__ static float exp2(float x) { return ptx::exp2_approx(x); }
  __device__ static float tanh(float x) { return tanh_approx(x); }

  // s += q k^T, with q in registers as operand B, and k [16, kHeadDim].
  template <class KTile>
  __device__ void multiply_qk(float (&s)[kRows][kKeys], const uint32_t (&q)[kHeadDim / 16][2],
                              const KTile& k) const {
    const uint32_t k_at = k.address(lane % 16, lane / 16);
    float other[4] = {};  // two sums: one would wait for itself
#pragma unroll
    for (int d = 0; d < kHeadDim / 16; d += 2) {
      uint32_t a[4];
      ptx::ldmatrix_x4(a, k.move(k_at, 0, 2 * d));
      ptx::mma_16x8x16<Element>(s[0][0], s[1][0], s[0][1], s[1][1], a, q[d][0], q[d][1]);
      ptx::ldmatrix_x4(a, k.move(k_at, 0, 2 * d + 2));
      ptx::mma_16x8x16<Element>(other[0], other[1], other[2], other[3], a, q[d + 1][0],
                                q[d + 1][1]);
    }
    s[0][0] += other[0];
    s[1][0] += other[1];
    s[0][1] += other[2];
    s[1][1] += other[3];
  }

  // o += p v. Keys are the rows of p^T as the first product leaves it, and the depth of the second: hence the
  // transposition.
  template <class VTile>
  __device__ void multiply_pv(float (&o)[kRows][kCols], const float (&p)[kRows][kKeys],
                              const VTile& v, Scratch&) const {
    const uint32_t v_at = v.address(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    const uint32_t b0 = ptx::transpose_8x8(ptx::pack<Element>(p[0][0], p[1][0]));
    const uint32_t b1 = ptx::transpose_8x8(ptx::pack<Element>(p[0][1], p[1][1]));
#pragma unroll
    for (int d = 0; d < kHeadDim / 16; ++d) {
      uint32_t a[4];
      ptx::ldmatrix_x4_trans(a, v.move(v_at, 0, 2 * d));
      ptx::mma_16x8x16<Element>(o[0][2 * d], o[1][2 * d], o[0][2 * d + 1], o[1][2 * d + 1], a, b0,
                                b1);
    }
  }
};

}  // namespace flash_gqa::cuda
