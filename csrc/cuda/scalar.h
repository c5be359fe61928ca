// The numbers that ../pooling.h works on, on a GPU: a thread owns a pair, so a plain float or double.
#pragma once
#include "device_code.h"

#define SSL_FAST_ISA cuda

namespace ssl_fast::cuda {

template <class V>
using Index = int;

template <class X>
__device__ X select(bool first, X a, X b) {
  return first ? a : b;
}
__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float logarithm(float x) { return logf(x); }
__device__ inline double logarithm(double x) { return log(x); }
// 1 / (1 + exp(-x)). For floats by the instructions of the GPU, to about 2^-22 but for the rounding of the exponent in
// base 2, which is no more than that of the x that comes here.
__device__ inline float logistic(float x) {
  float power = x * -1.44269504f;
#ifdef SSL_FAST_EMULATION
  return 1 / (1 + std::exp2(power));
#else
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(power));
  power += 1;
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(power));
  return power;
#endif
}
__device__ inline double logistic(double x) { return 1 / (1 + exp(-x)); }

}  // namespace ssl_fast::cuda
