// The soft cap's hyperbolic tangent, for kernels whose probabilities are rounded to 16 bits next.
#pragma once

#include "../softmax.h"
#include "ptx.cuh"

namespace flash_gqa::cuda {

// Within 3e-6 of tanh(x), relatively; near 0, where 1 - 2 / (e^2x + 1) cancels, from the series.
// tanh.approx would be off by 2^-11.
__device__ __forceinline__ float tanh_approx(float x) {
  const float e = ptx::exp2_approx(x * (2.0f * kLog2E));
  const float far = fmaf(-2.0f, ptx::reciprocal_approx(e + 1.0f), 1.0f);
  const float near = fmaf(x * x, x * (-1.0f / 3.0f), x);
  return fabsf(x) < 0.04f ? near : far;
}

}  // namespace flash_gqa::cuda
