// The inner loops that depend on the instruction set, behind one table of function pointers.
// micro.cc is compiled once per instruction set; isa.cc chooses at run time. Everything is float32
// inside: 16-bit values are converted where they are loaded and rounded once (nearest even) where
// they are stored.
//
// The order in which one output element is summed depends on the instruction set alone, never on
// how many rows or columns the call has: that is what makes results independent of the batch.
#pragma once

#include <cstdint>

#include "../../cuda/params.h"

namespace flash_gqa::cpu {

// Columns of the tiles below are padded to a multiple of this many floats, whatever the set.
constexpr int kPadFloats = 16;
constexpr int pad_floats(int n) { return (n + kPadFloats - 1) / kPadFloats * kPadFloats; }

struct Micro {
  // Plain rows. float dtypes only; n >= 0; no alignment needed; dst may be src where both are f32.
  void (*to_f32)(float* dst, const void* src, DType dtype, int64_t n);
  void (*from_f32)(void* dst, DType dtype, const float* src, int64_t n);
  float (*dot)(const float* a, const float* b, int64_t n);
  float (*max)(const float* x, int64_t n);  // -inf for n == 0; NaN is skipped
  void (*scale)(float* x, float factor, int64_t n);
  // sum of exp(x[i] - reference)
  float (*sum_exp)(const float* x, float reference, int64_t n);
  // out = silu(gate) * up; out may be gate or up
  void (*silu_mul)(float* out, const float* gate, const float* up, int64_t n);

  // The attention tile. Scores lie transposed, s [keys, rows], so that the softmax of 16 rows is
  // one vector operation per key and nothing is ever reduced across a vector. `rows_padded` and
  // `dim_padded` are multiples of kPadFloats.

  // dst [n, dim_padded] = rows of `width` elements at base + offsets[i]; offset -1 gives zeros, and
  // so does the padding.
  void (*load_rows)(float* dst, int dim_padded, const void* base, DType dtype,
                    const int64_t* offsets, int n, int width);
  // s [keys, rows_padded] = scale * k [keys, dim_padded] * qt [dim, rows_padded]; dim is a multiple
  // of 4. Columns beyond `rows` may be left as they were.
  void (*scores)(float* s, const float* k, int dim_padded, const float* qt, int keys, int dim,
                 int rows, float scale);
  // s = cap * tanh(s), accurate to float32
  void (*soft_cap)(float* s, int64_t n, float cap);
  // max_out [rows_padded] = max over keys of s
  void (*column_max)(const float* s, int keys, int rows_padded, float* max_out);
  // s = exp2(s - reference [rows_padded]) in place; sum_out [rows_padded] = its sum over keys
  void (*column_exp2)(float* s, int keys, int rows_padded, const float* reference, float* sum_out);
  // o [rows, dim_padded] = o * factor [rows] + s^T [rows, keys] * v [keys, dim_padded]
  void (*accumulate)(float* o, const float* s, int rows_padded, const float* v, int dim_padded,
                     const float* factor, int rows, int keys);

  // c [rows, ldc] += x [rows, ldx] * w^T [features, ldw], over k elements of each row
  void (*dot_rows)(float* c, int64_t ldc, const float* x, int64_t ldx, int rows, const void* w,
                   DType w_dtype, int64_t ldw, int features, int k);
};

// The table of the instruction set chosen at run time.
const Micro& micro();

}  // namespace flash_gqa::cpu
