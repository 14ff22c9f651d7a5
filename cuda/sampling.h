// The arithmetic of sampling, such that every back end draws the same token from the same logits.
//
// A float sum depends on its order, and exp() on its library. So a probability is a 40-bit
// fixed-point integer made by integer arithmetic from (logit - max) / temperature, and everything
// after it is exact in any order: the k-th largest logit, the smallest set that reaches top_p, the
// total, and the first id whose running sum passes the drawn number.
//
// Order of ids: larger logit first, ties to the smaller id. A NaN logit counts as -infinity.
#pragma once

#include <cmath>

#include "convert.h"
#include "philox.h"
#include "softmax.h"

namespace flash_gqa {

constexpr int kWeightBits = 40;  // 2^23 ids of weight 2^40 still fit a sum of 63 bits

template <class T>
GQA_HOST_DEVICE float read_logit(T stored) {
  const float logit = to_float(stored);
  return logit != logit ? minus_infinity() : logit;
}

// Unsigned integers in the order of the floats, with -0 equal to 0.
GQA_HOST_DEVICE uint32_t order_key(float logit) {
  const uint32_t bits = logit == 0.0f ? 0u : float_bits(logit);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// High word of a 32 x 32 bit product: a fraction in units of 2^-32 times b.
GQA_HOST_DEVICE uint32_t mul_fraction(uint32_t fraction, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(fraction) * b >> 32);
}

// exp((logit - max) / temperature) in units of 2^-40, relative error 2^-26; temperature > 0. A
// logit of -infinity weighs nothing, also where no other is larger.
GQA_HOST_DEVICE uint64_t sampling_weight(float logit, float max, float temperature) {
  if (logit == minus_infinity()) return 0;
  if (logit == max) return uint64_t{1} << kWeightBits;
#if defined(__CUDA_ARCH__)
  const float scaled = __fdiv_rn(logit - max, temperature);  // whatever -prec-div says
#else
  const float scaled = (logit - max) / temperature;
#endif
  if (!(scaled > -28.0f)) return 0;  // below 2^-40; also where -infinity / infinity is NaN
  // 2^-(whole + fraction): log2(e) in units of 2^-31, the product in units of 2^-58.
  const uint64_t exponent =
      static_cast<uint64_t>(static_cast<uint32_t>(scaled * -0x1p27f)) * 0xb8aa3b29u;
  const int whole = static_cast<int>(exponent >> 58);
  const uint32_t fraction = static_cast<uint32_t>(exponent >> 26);
  // 2^-x on [0, 1) interpolated at seven Chebyshev nodes, coefficients of alternating sign in units
  // of 2^-32, error 2e-9.
  uint32_t power = 0x00072a3cu;
  power = 0x00539803u - mul_fraction(power, fraction);
  power = 0x0273d361u - mul_fraction(power, fraction);
  power = 0x0e34a75bu - mul_fraction(power, fraction);
  power = 0x3d7f577eu - mul_fraction(power, fraction);
  power = 0xb17215b2u - mul_fraction(power, fraction);
  power = 0xfffffffau - mul_fraction(power, fraction);
  return (static_cast<uint64_t>(power) << (kWeightBits - 32)) >> whole;
}

// Natural-log probability of a logit, given the sum of every id's weight at temperature 1.
GQA_HOST_DEVICE float log_probability(float logit, float max, uint64_t total) {
  if (logit == minus_infinity()) return logit;
  const double above_max = logit == max ? 0.0 : static_cast<double>(logit) - max;
  return static_cast<float>(above_max - log(static_cast<double>(total) * 0x1p-40));
}

// How much weight the most probable ids must reach together: top_p of the total, at least 1.
GQA_HOST_DEVICE uint64_t top_p_target(uint64_t total, float top_p) {
  const uint64_t share = top_p > 0.0f ? static_cast<uint64_t>(top_p * 0x1p32f) : 0;  // < 2^32
  const uint64_t target = (total >> 32) * share + ((total & 0xffffffffu) * share >> 32);
  return target > 0 ? target : 1;
}

// A number in [0, total), total < 2^63: 64 random bits, scaled.
GQA_HOST_DEVICE uint64_t draw_below(uint64_t total, uint32_t seed_low, uint32_t seed_high,
                                    int32_t counter) {
  const Philox4x32 random =
      philox4x32_10({{static_cast<uint32_t>(counter), 0, 0, 0}}, seed_low, seed_high);
  const uint64_t total_high = total >> 32, total_low = total & 0xffffffffu;
  // (random * total) >> 64 by 32-bit halves; no partial sum can overflow.
  const uint64_t low = (random.word[0] * total_low >> 32) + random.word[0] * total_high;
  const uint64_t middle = (low & 0xffffffffu) + random.word[1] * total_low;
  return random.word[1] * total_high + (low >> 32) + (middle >> 32);
}

// The ids that a filter lets through: those before and at (key, last_id) in the order of ids.
struct SampleCut {
  uint32_t key;
  int32_t last_id;

  GQA_HOST_DEVICE bool allows(uint32_t id_key, int32_t id) const {
    return id_key > key || (id_key == key && id <= last_id);
  }
};

// Radix selection of the key at which a running sum of measures, largest key first, reaches a
// target: one histogram per digit of the key, from the highest. The measure is 1 for top-k and the
// weight for top-p. Digits of 10, 11 and 11 bits, so that the first splits exponents too.
constexpr int kDigitBits = 11;
constexpr int kDigitBins = 1 << kDigitBits;
constexpr int kFirstDigit = 2 * kDigitBits;  // its shift

GQA_HOST_DEVICE uint32_t digit_of(uint32_t key, int shift) {
  return key >> shift & (kDigitBins - 1);
}

// Whether a key agrees with the digits chosen so far, those above `shift`.
GQA_HOST_DEVICE bool matches_prefix(uint32_t key, uint32_t prefix, int shift) {
  return (static_cast<uint64_t>(key ^ prefix) >> (shift + kDigitBits)) == 0;
}

}  // namespace flash_gqa
