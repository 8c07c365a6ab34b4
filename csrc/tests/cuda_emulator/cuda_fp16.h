// Stands in for CUDA's header of this name: conversions of IEEE binary16, to nearest even.

#pragma once

#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half value) { return value.bits; }

inline float __half2float(__half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7fffu;
  if (rest >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | rest << 13);
  if (rest >= 0x0400u) return __uint_as_float(sign | (rest + (112u << 10)) << 13);
  const float magnitude = static_cast<float>(rest) * 0x1p-24f;  // subnormal or 0
  return __uint_as_float(sign | __float_as_uint(magnitude));
}

inline __half __float2half_rn(float value) {
  const uint32_t bits = __float_as_uint(value), rest = bits & 0x7fffffffu;
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (rest > 0x7f800000u) return {0x7fff};
  if (rest >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and up
  if (rest < 0x38800000u) {
    // Below 2^-14 the rounding step is 2^-24; 0.5 has the same one in float32.
    const uint32_t steps = __float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000u;
    return {static_cast<uint16_t>(sign | steps)};
  }
  const uint32_t rounded = rest + 0xfffu + (rest >> 13 & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}
