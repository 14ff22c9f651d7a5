#pragma once

#include "../../cuda/rope.h"

namespace flash_gqa::cpu {

// How the heads of one packed row are rotated.
struct Rotation {
  const float* cos_sin;  // [2, half] of this row: cos, then sin
  DType dtype;
  int32_t head_dim;
  int32_t half;
  int32_t interleaved;
};

// out = the rotated head x; may be x itself. Rounded once.
void rotate_head(void* out, const void* x, const Rotation& rotation);

}  // namespace flash_gqa::cpu
