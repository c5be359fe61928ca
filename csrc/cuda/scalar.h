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
// The instructions of the GPU, to about 2^-22. The argument in base 2 is rounded: no more than was the x that came here.
__device__ inline float exponential(float x) {
  x *= 1.44269504f;
#ifdef SSL_FAST_EMULATION
  return std::exp2(x);
#else
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
#endif
}
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float logarithm(float x) { return logf(x); }
__device__ inline double logarithm(double x) { return log(x); }
__device__ inline float reciprocal(float x) {
#ifdef SSL_FAST_EMULATION
  return 1 / x;
#else
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
#endif
}
__device__ inline double reciprocal(double x) { return 1 / x; }

}  // namespace ssl_fast::cuda
