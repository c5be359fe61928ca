// The emulation's cuda_fp16.h: float16 as its 16 bits.
#pragma once
#include "../../csrc/float16.h"

struct __half {
  uint16_t bits;
};
inline float __half2float(__half x) { return ssl_fast::float_of_float16(x.bits); }
inline __half __float2half_rn(float x) { return {ssl_fast::float16_of_float(x)}; }
