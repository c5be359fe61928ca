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
template <class T>
__device__ T reciprocal(T x) {
  return 1 / x;
}

}  // namespace ssl_fast::cuda
