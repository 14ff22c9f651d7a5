// Rotary position embedding (Su et al. 2021): which position a row has, the angle of a pair, and
// the rotation. The only place that knows the formula. Compiles with plain g++ and clang.
#pragma once

#include <cmath>

#include "kv_source.h"

namespace flash_gqa {

struct RopeRow {
  int32_t position;
  int32_t seq_len;  // chooses the frequencies of dynamic NTK and LongRoPE
  bool valid;       // false: a packed row of no sequence, or one before the first position
};

GQA_HOST_DEVICE RopeRow rope_row(const RopeRowsParams& params, int32_t row) {
  if (params.positions != nullptr) {
    const int32_t position = params.positions[row];
    const int32_t row_len = position < 0x7fffffff ? position + 1 : position;
    return {position, params.seq_len > 0 ? params.seq_len : row_len, true};
  }
  // Only lengths are read: a table of one-token pages stands for whatever bounds them.
  KvView lengths{};
  lengths.page_table = params.batch.kv_lens;
  lengths.page_size = 1;
  lengths.max_pages = params.max_kv_len > 0 ? params.max_kv_len : 0x7fffffff;
  lengths.total_kv = lengths.max_pages;
  const int32_t b = sequence_of_row(params.batch, row);
  if (b < 0) return {0, 0, false};
  const Sequence s = read_sequence(params.batch, lengths, b, params.fault);
  const int32_t i = row - s.q_start;
  const int32_t position = s.kv_len - s.q_len + i;
  return {position, s.kv_len, i >= 0 && i < s.q_len && position >= 0};
}

struct CosSin {
  float cos;
  float sin;
};

GQA_HOST_DEVICE CosSin rope_cos_sin(const RopeParams& rope, int32_t i, int32_t position,
                                    int32_t seq_len) {
  const bool beyond = seq_len > rope.original_max;
  double inv_freq = rope.inv_freq[i];
  double factor = rope.attention_factor;
  if (beyond && rope.long_inv_freq != nullptr) {
    inv_freq = rope.long_inv_freq[i];
    factor = rope.long_attention_factor;
  } else if (beyond && rope.dynamic_factor > 0.0 && rope.half > 1) {
    const double stretch =
        rope.dynamic_factor * seq_len / rope.original_max - (rope.dynamic_factor - 1.0);
    // base^(dim / (dim - 2)) and base^(-2i / dim), with dim = 2 * half.
    const double base = rope.base * pow(stretch, static_cast<double>(rope.half) / (rope.half - 1));
    inv_freq = pow(base, -static_cast<double>(i) / rope.half);
  }
  // Reduced in turns, so that cos and sin never meet a large argument: their slow path.
  constexpr double kTau = 6.283185307179586;
  const double turns = position * inv_freq / kTau;
  const double angle = (turns - nearbyint(turns)) * kTau;
  return {static_cast<float>(cos(angle) * factor), static_cast<float>(sin(angle) * factor)};
}

// Pair i of a head: (i, i + half), or interleaved (2i, 2i + 1).
GQA_HOST_DEVICE int32_t rope_first(int32_t i, int32_t interleaved) {
  return interleaved ? 2 * i : i;
}
GQA_HOST_DEVICE int32_t rope_second(int32_t i, int32_t half, int32_t interleaved) {
  return interleaved ? 2 * i + 1 : i + half;
}

struct RopePair {
  float first;
  float second;
};

GQA_HOST_DEVICE RopePair rotate(RopePair x, CosSin angle) {
  return {x.first * angle.cos - x.second * angle.sin, x.second * angle.cos + x.first * angle.sin};
}

}  // namespace flash_gqa
