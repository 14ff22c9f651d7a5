// The two products of a tile in true float32, on the ordinary arithmetic units: for float32 tensors
// and as the yardstick of the 16-bit kernels. 128 threads: 16 pairs of rows x 8 columns of threads.
#pragma once

#include "smem.cuh"

namespace flash_gqa::cuda {

template <int kHeadDim, int kTileKv>
struct FfmaMath {
  static constexpr int kRows = 2;
  static constexpr int kLanes = 8;
  static constexpr int kLaneStep = 1;
  static constexpr int kKeys = kTileKv / kLanes;
  static constexpr int kCols = kHeadDim / kLanes;
  static constexpr int kKeyParts = 1;
  static constexpr int kTileQ = 32;
  static constexpr int kThreads = 128;
  static_assert(kTileKv % kLanes == 0 && kHeadDim % (4 * kLanes) == 0);

  // Probabilities on their way from the threads that made them to the others of the same row. The
  // padding puts the four row pairs of a warp into different banks.
  struct Scratch {
    float p[kTileQ][kTileKv + 1];
  };

  int lane;  // among the threads of a row
  int first_row;

  __device__ explicit FfmaMath(int thread)
      : lane(thread % kLanes), first_row(thread / kLanes * 2) {}

  __device__ int row(int i) const { return first_row + i; }
  __device__ int first_key() const { return lane; }
  __device__ int first_col() const { return lane * 4; }
  __device__ static constexpr int key_step(int j) { return kLanes * j; }
  __device__ static constexpr int col_step(int j) { return j / 4 * 4 * kLanes + j % 4; }
  __device__ int key_part() const { return 0; }
  __device__ bool leads_row() const { return lane == 0; }
  __device__ static float exp2(float x) { return exp2f(x); }
  __device__ static float tanh(float x) { return tanhf(x); }

  __device__ void multiply_qk(float (&s)[kRows][kKeys],
                              const SwizzledTile<float, kTileQ, kHeadDim>& q,
                              const SwizzledTile<float, kTileKv, kHeadDim>& k) const {
#pragma unroll 4
    for (int chunk = 0; chunk < kHeadDim / 4; ++chunk) {
      float4 a[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) a[i] = load(q, row(i), chunk);
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        const float4 b = load(k, first_key() + key_step(j), chunk);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          s[i][j] = fmaf(a[i].x, b.x, s[i][j]);
          s[i][j] = fmaf(a[i].y, b.y, s[i][j]);
          s[i][j] = fmaf(a[i].z, b.z, s[i][j]);
          s[i][j] = fmaf(a[i].w, b.w, s[i][j]);
        }
      }
    }
  }

  __device__ void multiply_pv(float (&o)[kRows][kCols], const float (&p)[kRows][kKeys],
                              const SwizzledTile<float, kTileKv, kHeadDim>& v,
                              Scratch& scratch) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kKeys; ++j) scratch.p[row(i)][first_key() + key_step(j)] = p[i][j];
    __syncwarp();  // the threads of a row are neighbours in one warp

#pragma unroll 4
    for (int at = 0; at < kTileKv; ++at) {
      float weight[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) weight[i] = scratch.p[row(i)][at];
#pragma unroll
      for (int c = 0; c < kCols / 4; ++c) {
        const float4 b = load(v, at, c * kLanes + lane);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          o[i][4 * c] = fmaf(weight[i], b.x, o[i][4 * c]);
          o[i][4 * c + 1] = fmaf(weight[i], b.y, o[i][4 * c + 1]);
          o[i][4 * c + 2] = fmaf(weight[i], b.z, o[i][4 * c + 2]);
          o[i][4 * c + 3] = fmaf(weight[i], b.w, o[i][4 * c + 3]);
        }
      }
    }
  }

 private:
  template <class Tile>
  __device__ static float4 load(const Tile& tile, int row, int chunk) {
    return *reinterpret_cast<const float4*>(tile.at(row, chunk));
  }
};

}  // namespace flash_gqa::cuda
