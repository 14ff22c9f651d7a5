// 16-bit floats as storage, on the host and on the device, rounded to nearest even. Arithmetic is
// always float32: a value is widened when it is read and rounded once when it is written.
#pragma once

#include <cstring>

#include "params.h"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace flash_gqa {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

GQA_HOST_DEVICE uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
GQA_HOST_DEVICE float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

GQA_HOST_DEVICE float to_float(float value) { return value; }

GQA_HOST_DEVICE float to_float(BFloat16 value) {
  return bits_float(static_cast<uint32_t>(value.bits) << 16);
}

GQA_HOST_DEVICE float to_float(Float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  // Exponent and mantissa in float32's place are 2^112 too small; the product is exact and also
  // normalises subnormals.
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t scaled = float_bits(bits_float(magnitude) * 0x1p112f);
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // inf or NaN
  return bits_float(scaled | special | sign);
#endif
}

template <class T>
GQA_HOST_DEVICE T from_float(float value);

template <>
GQA_HOST_DEVICE float from_float<float>(float value) {
  return value;
}

template <>
GQA_HOST_DEVICE BFloat16 from_float<BFloat16>(float value) {
#if defined(__CUDA_ARCH__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40;  // rounding could carry a NaN into infinity
  const bool nan = (bits & 0x7fffffff) > 0x7f800000u;
  return {static_cast<uint16_t>(nan ? quiet_nan : rounded)};
#endif
}

template <>
GQA_HOST_DEVICE Float16 from_float<Float16>(float value) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(value))};
#else
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  // Rebias the exponent by 112 and round the mantissa to 10 bits; a carry out of it is right, also
  // into infinity.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Next to 0.5 a float32 has half's subnormal spacing, so the addition rounds to it.
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  return {static_cast<uint16_t>(sign | (magnitude >= 0x47800000u ? special : finite))};
#endif
}

}  // namespace flash_gqa
