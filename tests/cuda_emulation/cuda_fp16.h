// float16 of the emulation.
#pragma once
#include "../../csrc/float16.h"

struct __half {
  uint16_t bits;
};
inline float __half2float(__half x) { return ssl_fast::float_of_float16(x.bits); }
inline __half __float2half_rn(float x) { return {ssl_fast::float16_of_float(x)}; }
