// float16 (IEEE binary16) to float and back, by F16C instructions or in integer arithmetic. Not by _Float16: in C++,
// GCC 11 has none, and Clang 14 only with AVX512-FP16. Everything is static, as this is compiled for several
// instruction sets.
#pragma once
#include <cstdint>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace ssl_fast {

#if defined(__F16C__)

static inline __attribute__((always_inline)) float float_of_float16(uint16_t bits) { return _cvtsh_ss(bits); }
static inline __attribute__((always_inline)) uint16_t float16_of_float(float x) {
  return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
}

#else  // bit for bit the same, NaN included; branchless, so that loops are vectorised

static inline __attribute__((always_inline)) float float_of_float16(uint16_t bits) {
  const int32_t magnitude = bits & 0x7fff, rebias = (127 - 15) << 23;
  const float subnormal = magnitude * 0x1p-24f;  // exact, and no subnormal float: DAZ does not matter
  int32_t wide;
  __builtin_memcpy(&wide, &subnormal, 4);
  wide = magnitude < 0x400 ? wide : (magnitude << 13) + rebias;
  wide = magnitude < 0x7c00 ? wide : wide + rebias;     // infinity and NaN: exponent 255
  wide = magnitude <= 0x7c00 ? wide : wide | 0x400000;  // quiet
  wide |= int32_t(uint32_t(bits & 0x8000) << 16);
  float x;
  __builtin_memcpy(&x, &wide, 4);
  return x;
}
// Rounds to nearest even; from 65520 on, infinity.
static inline __attribute__((always_inline)) uint16_t float16_of_float(float x) {
  int32_t wide, small;
  __builtin_memcpy(&wide, &x, 4);
  const int32_t sign = wide >> 16 & 0x8000, half = 0x3f000000;
  wide &= 0x7fffffff;
  float magnitude;
  __builtin_memcpy(&magnitude, &wide, 4);
  magnitude += .5f;  // rounds to a multiple of 2^-24, the smallest subnormal
  __builtin_memcpy(&small, &magnitude, 4);
  int32_t bits = (wide - ((127 - 15) << 23) + 0xfff + (wide >> 13 & 1)) >> 13;
  bits = wide < 0x38800000 ? small - half : bits;                    // below 2^-14
  bits = wide < 0x47800000 ? bits : 0x7c00;                          // 2^16 and more
  bits = wide <= 0x7f800000 ? bits : 0x7e00 | (wide >> 13 & 0x3ff);  // NaN, quiet, with the top of its payload
  return uint16_t(sign | bits);
}

#endif

}  // namespace ssl_fast
