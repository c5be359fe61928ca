// What device code stands on: launches, storage types, sums over a block. The same files are compiled by nvcc for GPUs
// and, against tests/cuda_emulation, by a C++ compiler for tests.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../params.h"

#define SSL_FAST_ISA cuda  // the namespace of ../pooling.h

#ifdef SSL_FAST_EMULATION
#define SSL_FAST_LAUNCH_BYTES(kernel, blocks, threads, shared, stream, ...) \
  ((void)(stream), emulation::launch(blocks, threads, shared, [=] { kernel(__VA_ARGS__); }))
#define SSL_FAST_LAUNCH_SHARED SSL_FAST_LAUNCH_BYTES
#define SSL_FAST_SHARED_BYTES(name) char* name = emulation::shared_bytes()
#else
#define SSL_FAST_LAUNCH_BYTES(kernel, blocks, threads, shared, stream, ...) \
  kernel<<<unsigned(blocks), threads, shared, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
// The attribute is the kernel's and not the launch's: all there is, so that no other thread's launch can be in its way.
#define SSL_FAST_LAUNCH_SHARED(kernel, ...)                                                                  \
  (cudaFuncSetAttribute(reinterpret_cast<const void*>(&kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, \
                        this_device().shared),                                                               \
   SSL_FAST_LAUNCH_BYTES(kernel, __VA_ARGS__))
#define SSL_FAST_SHARED_BYTES(name) extern __shared__ __align__(128) char name[]
#endif
#define SSL_FAST_LAUNCH(kernel, blocks, threads, stream, ...) \
  SSL_FAST_LAUNCH_BYTES(kernel, blocks, threads, 0, stream, __VA_ARGS__)

namespace ssl_fast::cuda {

constexpr int kWarp = 32, kWarps = 8, kThreads = kWarp * kWarps;  // of every block

// ---- storage types: values are computed in float, double for double ----
struct BFloat16 {
  uint16_t bits;
};

// A cosine in steps of 1 / 32767, or NaN: finer than features are that were rounded to bfloat16.
struct Cosine16 {
  int16_t steps;
};

__device__ inline float value(float x) { return x; }
__device__ inline double value(double x) { return x; }
__device__ inline float value(__half x) { return __half2float(x); }
__device__ inline float value(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ inline float value(Cosine16 x) { return x.steps == INT16_MIN ? NAN : x.steps * (1 / 32767.f); }

__device__ inline void put(float* to, float x) { *to = x; }
__device__ inline void put(double* to, double x) { *to = x; }
__device__ inline void put(__half* to, float x) { *to = __float2half_rn(x); }
__device__ inline void put(BFloat16* to, float x) {  // to nearest even
#ifdef SSL_FAST_EMULATION
  uint32_t wide = __float_as_uint(x);
  to->bits = x != x ? 0x7fff : (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
#else
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(x));
#endif
}
__device__ inline void put(Cosine16* to, float x) { to->steps = x == x ? int16_t(rintf(x * 32767)) : INT16_MIN; }

// As many numbers as are loaded or stored in steps of 16 bytes.
template <class T, int kCount>
struct alignas(16) Numbers {
  T at[kCount];
};

template <class T>
__device__ T inverse_length(T sum_of_squares) {
  T length = sqrt(sum_of_squares);
  return length < T(1e-12) ? T(0)
                           : T(1) / length;  // a zero vector has cosine 0 with everything, and gradient 0; NaN stays
}

// ---- sums, in an order that does not depend on timing ----
template <class T>
__device__ T sum_warp(T x) {
  for (int apart = kWarp / 2; apart; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
  return x;
}
// For all threads of the block; `scratch` holds a value for each warp and may be used again after the next barrier.
template <int kWarps, class T>
__device__ T sum_block(T x, T (&scratch)[kWarps]) {
  x = sum_warp(x);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  T sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += scratch[w];
  return sum;
}

// From one row of a matrix of slopes or cosines to the next.
__host__ __device__ inline int64_t stride_of(int64_t audios) { return (audios + 7) / 8 * 8; }

template <bool B>
struct Constant {
  static constexpr bool value = B;
};
// Calls f(S(), T()) with the storage type of the tensors and the type in which they are computed.
template <class F>
const char* with_types(DType dtype, F f) {
  switch (dtype) {
    case DType::float32: return f(float(), float());
    case DType::bfloat16: return f(BFloat16(), float());
    case DType::float16: return f(__half(), float());
    default: return f(double(), double());
  }
}
// Calls f(Constant<channels last>(), S(), T()).
template <class F>
const char* with_layout(const Shape& s, F f) {
  return with_types(s.dtype, [&](auto stored, auto computed) {
    return s.channels_last ? f(Constant<true>{}, stored, computed) : f(Constant<false>{}, stored, computed);
  });
}

struct Device {
  int processors, shared;  // multiprocessors; bytes of shared memory that a block may have
};
inline Device this_device() {
  int number = 0;
  Device device{};
  cudaGetDevice(&number);
  cudaDeviceGetAttribute(&device.processors, cudaDevAttrMultiProcessorCount, number);
  cudaDeviceGetAttribute(&device.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, number);
  return device;
}

inline const char* last_error() {
  cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// ---- the numbers that ../pooling.h works on: a thread owns a pair, so a plain float or double ----
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
