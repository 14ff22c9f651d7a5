// The rotation of one head by a row of threads, shared by rope_apply and append_kv.
#pragma once

#include "rope.h"
#include "vector.cuh"

namespace flash_gqa::cuda {

struct Rotation {
  const float* cos_sin;  // [2, half] of this row: cos, then sin
  int32_t half;          // 0: heads stay as they are
  int32_t interleaved;
};

// A head's work in units: kWidth pairs each, then kWidth elements each that pass through.
template <int kWidth>
__host__ __device__ constexpr int32_t rotation_units(int32_t head_dim, int32_t half) {
  return (head_dim - half) / kWidth;
}

template <int kWidth>
__device__ __forceinline__ void load_floats(float (&to)[kWidth], const float* from) {
  constexpr int kStep = kWidth % 4 == 0 ? 4 : 1;
#pragma unroll
  for (int i = 0; i < kWidth; i += kStep) {
    const Vector<float, kStep> part = load_vector<float, kStep>(from + i);
#pragma unroll
    for (int j = 0; j < kStep; ++j) to[i + j] = part.at[j];
  }
}

// Unit `unit` of out = the rotated head x, rounded once. A unit reads all that it writes before it
// writes, so out may be x.
template <int kWidth, class T>
__device__ __forceinline__ void rotate_unit(T* out, const T* x, const Rotation& rotation,
                                            int32_t unit) {
  const int32_t pair = unit * kWidth;
  if (pair >= rotation.half) {
    const int32_t d = rotation.half + pair;
    store_vector(out + d, load_vector<T, kWidth>(x + d));
    return;
  }
  // kWidth pairs are two vectors: neighbours where interleaved, else `half` apart.
  const int32_t low_at = rope_first(pair, rotation.interleaved);
  const int32_t high_at = rotation.interleaved ? low_at + kWidth : pair + rotation.half;
  const Vector<T, kWidth> low = load_vector<T, kWidth>(x + low_at);
  const Vector<T, kWidth> high = load_vector<T, kWidth>(x + high_at);
  float cos[kWidth], sin[kWidth], values[2 * kWidth];
  load_floats(cos, rotation.cos_sin + pair);
  load_floats(sin, rotation.cos_sin + rotation.half + pair);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    values[i] = to_float(low.at[i]);
    values[kWidth + i] = to_float(high.at[i]);
  }
  // Two loops, because an array indexed by a run-time value would leave the registers.
  if (rotation.interleaved) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const RopePair r = rotate({values[2 * i], values[2 * i + 1]}, {cos[i], sin[i]});
      values[2 * i] = r.first;
      values[2 * i + 1] = r.second;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const RopePair r = rotate({values[i], values[kWidth + i]}, {cos[i], sin[i]});
      values[i] = r.first;
      values[kWidth + i] = r.second;
    }
  }
  Vector<T, kWidth> new_low, new_high;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    new_low.at[i] = from_float<T>(values[i]);
    new_high.at[i] = from_float<T>(values[kWidth + i]);
  }
  store_vector(out + low_at, new_low);
  store_vector(out + high_at, new_high);
}

}  // namespace flash_gqa::cuda
