// One vector of floats in the instruction set this file is compiled for: AVX-512, AVX2 with FMA and
// F16C, or four lanes of the compiler's portable vectors. For micro.cc alone: everything here lives
// in the namespace of that instruction set, because an inline function compiled for AVX-512 must
// never be the copy that the linker keeps for the others. For the same reason nothing here or in
// micro.cc may instantiate a template of the standard library.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#if !defined(__clang__)
// g++ 12 takes the undefined lanes of its own intrinsics for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

namespace flash_gqa::cpu::GQA_ISA {

// 16-bit values in memory.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

#if defined(__AVX512F__)

constexpr int kLanes = 16;
constexpr int kRegisters = 32;
using Vec = __m512;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec load(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline void store(Half* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(BFloat16* p, Vec x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i carry = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_add_epi32(bits, carry);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i word = _mm512_mask_mov_epi32(rounded, nan, quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(word, 16)));
}
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }   // b where either is NaN
inline Vec smaller(Vec a, Vec b) { return _mm512_min_ps(a, b); }  // b where either is NaN
inline Vec round(Vec x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec power_of_two(Vec n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}
// Quads of four floats: the same four in each; from rows `stride` apart, one row a quad; and
// element kIndex of each quad in all four of its places.
inline Vec broadcast_quad(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
inline Vec load_quads(const float* p, int64_t stride) {
  Vec x = _mm512_castps128_ps512(_mm_loadu_ps(p));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(p + stride), 1);
  x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 2 * stride), 2);
  return _mm512_insertf32x4(x, _mm_loadu_ps(p + 3 * stride), 3);
}
template <int kIndex>
inline Vec splat(Vec x) {
  return _mm512_permute_ps(x, kIndex * 0x55);
}
inline Vec absolute(Vec x) { return _mm512_abs_ps(x); }
inline Vec with_sign_of(Vec x, Vec sign) {
  return _mm512_or_ps(_mm512_abs_ps(x), _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
}
inline Vec select_less(Vec a, Vec b, Vec less, Vec otherwise) {
  return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), less);
}

#elif defined(__AVX2__)

constexpr int kLanes = 8;
constexpr int kRegisters = 16;
using Vec = __m256;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec broadcast(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec load(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline void store(Half* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(BFloat16* p, Vec x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i carry = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_add_epi32(bits, carry);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i word = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(word, word), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec larger(Vec a, Vec b) { return _mm256_max_ps(a, b); }   // b where either is NaN
inline Vec smaller(Vec a, Vec b) { return _mm256_min_ps(a, b); }  // b where either is NaN
inline Vec round(Vec x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec power_of_two(Vec n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline Vec broadcast_quad(const float* p) {
  return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
}
inline Vec load_quads(const float* p, int64_t stride) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
}
template <int kIndex>
inline Vec splat(Vec x) {
  return _mm256_permute_ps(x, kIndex * 0x55);
}
inline Vec absolute(Vec x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
inline Vec with_sign_of(Vec x, Vec sign) {
  return _mm256_or_ps(absolute(x), _mm256_and_ps(sign, _mm256_set1_ps(-0.0f)));
}
inline Vec select_less(Vec a, Vec b, Vec less, Vec otherwise) {
  return _mm256_blendv_ps(otherwise, less, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}

#else

constexpr int kLanes = 4;
constexpr int kRegisters = 16;
typedef float Vec __attribute__((vector_size(16)));
typedef int32_t Int __attribute__((vector_size(16)));
typedef uint16_t Bits16 __attribute__((vector_size(8)));

inline Vec zero() { return Vec{}; }
inline Vec broadcast(float x) { return Vec{x, x, x, x}; }
inline Vec load(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline Vec as_float(Int bits) { return reinterpret_cast<Vec>(bits); }
inline Int as_int(Vec x) { return reinterpret_cast<Int>(x); }
inline Int select(Int mask, Int yes, Int no) { return (mask & yes) | (~mask & no); }
inline Int load_bits(const void* p) {
  Bits16 bits;
  std::memcpy(&bits, p, sizeof bits);
  return __builtin_convertvector(bits, Int);
}
inline void store_bits(void* p, Int x) {
  const Bits16 bits = __builtin_convertvector(x, Bits16);
  std::memcpy(p, &bits, sizeof bits);
}
inline Vec load(const Half* p) {
  const Int bits = load_bits(p);
  const Int magnitude = (bits & 0x7fff) << 13;
  // A product with 2^112 moves the exponent's bias from 15 to 127 and makes subnormals normal.
  const Int scaled = as_int(as_float(magnitude) * 0x1p112f);
  const Int special = magnitude >= (0x7c00 << 13);
  const Int quiet = (magnitude > (0x7c00 << 13)) & 0x400000;
  return as_float(select(special, magnitude | 0x7f800000 | quiet, scaled) |
                  ((bits & 0x8000) << 16));
}
inline Vec load(const BFloat16* p) { return as_float(load_bits(p) << 16); }
inline void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }
inline void store(Half* p, Vec x) {
  const Int bits = as_int(x);
  const Int magnitude = bits & 0x7fffffff;
  const Int odd = (magnitude >> 13) & 1;
  const Int normal = (magnitude - (112 << 23) + 0xfff + odd) >> 13;
  // Adding 0.5 leaves a subnormal half in the low bits, rounded by the addition itself.
  const Int subnormal = as_int(as_float(magnitude) + 0.5f) - 0x3f000000;
  const Int finite = select(magnitude < (113 << 23), subnormal, normal);
  const Int nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
  const Int special = select(magnitude > 0x7f800000, nan, Int{} + 0x7c00);
  // 65520 and above rounds to infinity.
  store_bits(p, select(magnitude >= 0x477ff000, special, finite) | ((bits >> 16) & 0x8000));
}
inline void store(BFloat16* p, Vec x) {
  const Int bits = as_int(x);
  const Int magnitude = bits & 0x7fffffff;
  const Int rounded = (magnitude + 0x7fff + ((magnitude >> 16) & 1)) >> 16;
  const Int quiet = (magnitude >> 16) | 0x40;
  store_bits(p, select(magnitude > 0x7f800000, quiet, rounded) | ((bits >> 16) & 0x8000));
}
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec larger(Vec a, Vec b) { return as_float(select(a > b, as_int(a), as_int(b))); }
inline Vec smaller(Vec a, Vec b) { return as_float(select(a < b, as_int(a), as_int(b))); }
// |x| < 2^22: adding 1.5 * 2^23 leaves no fraction bits.
inline Vec round(Vec x) { return (x + 0x1.8p23f) - 0x1.8p23f; }
inline Vec power_of_two(Vec n) { return as_float((__builtin_convertvector(n, Int) + 127) << 23); }
inline Vec broadcast_quad(const float* p) { return load(p); }
inline Vec load_quads(const float* p, int64_t) { return load(p); }
template <int kIndex>
inline Vec splat(Vec x) {
  return broadcast(x[kIndex]);
}
inline Vec absolute(Vec x) { return as_float(as_int(x) & 0x7fffffff); }
inline Vec with_sign_of(Vec x, Vec sign) {
  return as_float((as_int(x) & 0x7fffffff) | (as_int(sign) & INT32_MIN));
}
inline Vec select_less(Vec a, Vec b, Vec less, Vec otherwise) {
  return as_float(select(a < b, as_int(less), as_int(otherwise)));
}

#endif

// The sum of the lanes, halves first: the same order for every caller.
inline float sum(Vec x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

inline float largest(Vec x) {
  float lanes[kLanes];
  store(lanes, x);
  float result = lanes[0];
  for (int i = 1; i < kLanes; ++i) result = lanes[i] > result ? lanes[i] : result;
  return result;
}

// The first n < kLanes elements; the others are `fill`.
template <class T>
inline Vec load_part(const T* p, int64_t n, T fill = {}) {
  T lanes[kLanes];
  for (T& lane : lanes) lane = fill;
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(T));
  return load(lanes);
}

template <class T>
inline void store_part(T* p, Vec x, int64_t n) {
  T lanes[kLanes];
  store(lanes, x);
  std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(T));
}

// 2^(n + f) for a whole n in [-127, 128] and f in [-0.5, 0.5]; 0 for n = -127.
inline Vec exp2_parts(Vec n, Vec f) {
  Vec p = broadcast(1.545316294512069e-4f);
  p = fma(p, f, broadcast(1.3390863364671234e-3f));
  p = fma(p, f, broadcast(9.618082557277852e-3f));
  p = fma(p, f, broadcast(5.550357114219078e-2f));
  p = fma(p, f, broadcast(2.4022650760568126e-1f));
  p = fma(p, f, broadcast(6.931471880262288e-1f));
  p = fma(p, f, broadcast(1.0f));
  return p * power_of_two(n);
}

// 2^x within 1 ulp; exactly 0 below 2^-126, -inf included; NaN stays NaN.
inline Vec exp2(Vec x) {
  x = smaller(broadcast(128.0f), larger(broadcast(-127.0f), x));
  const Vec n = round(x);
  return exp2_parts(n, x - n);
}

// e^x within 2 ulp; 0 below e^-87.6; finite above e^88.37. x - n ln(2) in two steps, the first
// exact: the rounding error of x log2(e) alone would cost 2^-18 at x = -80.
inline Vec exp(Vec x) {
  x = smaller(broadcast(88.37f), larger(broadcast(-88.0f), x));
  const Vec n = round(x * broadcast(1.4426950408889634f));
  const Vec r = fma(n, broadcast(2.1219444e-4f), fma(n, broadcast(-0.693359375f), x));
  return exp2_parts(n, r * broadcast(1.4426950408889634f));
}

// Within 2 ulp: an odd polynomial near 0, where 1 - 2 / (exp(2x) + 1) would cancel.
inline Vec tanh(Vec x) {
  const Vec a = absolute(x);
  const Vec z = x * x;
  Vec p = broadcast(-6.096714159957808e-3f);
  p = fma(p, z, broadcast(2.0997178993823574e-2f));
  p = fma(p, z, broadcast(-5.385090957696674e-2f));
  p = fma(p, z, broadcast(1.3332769736959413e-1f));
  p = fma(p, z, broadcast(-3.3333328944133755e-1f));
  const Vec near = fma(x * z, p, x);
  const Vec e = exp2(a * broadcast(2.0f * 1.4426950408889634f));
  const Vec far = broadcast(1.0f) - broadcast(2.0f) / (e + broadcast(1.0f));
  return select_less(a, broadcast(0.625f), near, with_sign_of(far, x));
}

}  // namespace flash_gqa::cpu::GQA_ISA
