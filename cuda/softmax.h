// The online softmax: the only place that knows max, sum, merge and log-sum-exp. The tile loop, the
// split combine and mergeStates all use it, on the host and on the device. Compiles with plain g++
// and clang.
//
// A row's state after some keys is (max, sum) with sum = sum_j 2^(s_j - max), where s_j = logit_j *
// log2(e). Base 2 saves a multiplication per exponential; lse() converts to natural log (Milakov &
// Gimelshein 2018; Dao 2023).
#pragma once

#include <cmath>

#include "params.h"

namespace flash_gqa {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

GQA_HOST_DEVICE float minus_infinity() { return -__builtin_huge_valf(); }

// How far a maximum may be exceeded before accumulated outputs are rescaled to a new one: most tiles
// then need no rescaling, and probabilities stay below 2^8, where 16-bit types and sums are as exact
// as below 1 (FlashAttention-4).
constexpr float kMaxSlack = 8.0f;

struct SoftmaxState {
  float max = minus_infinity();  // of the scaled, capped logits, in units of log2, within the slack
  float sum = 0.0f;

  GQA_HOST_DEVICE bool exceeded_by(float tile_max, float slack) const {
    return tile_max > max + slack;
  }
  // Takes a tile's maximum in. Returns the factor that the sum and the accumulated output must be
  // multiplied by. A row that has seen nothing keeps factor 1: -inf - -inf would be NaN.
  GQA_HOST_DEVICE float raise_max(float tile_max, float slack = 0.0f) {
    if (!exceeded_by(tile_max, slack)) return 1.0f;
    const float factor = exp2f(max - tile_max);
    max = tile_max;
    sum *= factor;
    return factor;
  }

  // Adds a part of the same row whose maximum this one has been raised to, at least. Returns the factor
  // for the part's output.
  GQA_HOST_DEVICE float add(const SoftmaxState& part) {
    const float factor = exp2f(part.max - reference());
    sum += part.sum * factor;
    return factor;
  }

  // What to subtract from s_j before exp2: finite even for a row that sees no key, so that
  // exp2(-inf - x) = 0.
  GQA_HOST_DEVICE float reference() const { return max == minus_infinity() ? 0.0f : max; }

  // Adds another part of the same row. Returns the factors for (this row's output, the other part's
  // output) that turn unnormalised outputs, each relative to its own max, into one relative to the
  // merged max.
  struct Factors {
    float mine;
    float other;
  };
  GQA_HOST_DEVICE Factors merge(const SoftmaxState& part) {
    const float merged = part.max > max ? part.max : max;
    if (merged == minus_infinity()) return {0.0f, 0.0f};
    const Factors factors{exp2f(max - merged), exp2f(part.max - merged)};
    sum = sum * factors.mine + part.sum * factors.other;
    max = merged;
    return factors;
  }

  // A sink logit joins the denominator and has no value; it is neither scaled nor capped. Returns
  // the factor for the accumulated output.
  GQA_HOST_DEVICE float add_sink(float sink_logit) {
    return merge(SoftmaxState{sink_logit * kLog2E, 1.0f}).mine;
  }

  GQA_HOST_DEVICE float inverse_sum() const { return sum > 0.0f ? 1.0f / sum : 0.0f; }
  GQA_HOST_DEVICE float lse() const {
    return sum == 0.0f ? minus_infinity() : (max + log2f(sum)) * kLn2;  // NaN stays NaN
  }

  // The state of a finished part, given its lse: a normalised output counts as sum 1.
  GQA_HOST_DEVICE static SoftmaxState from_lse(float lse) {
    if (lse == minus_infinity()) return {};
    return {lse * kLog2E, 1.0f};
  }
};

}  // namespace flash_gqa
