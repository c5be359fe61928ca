// Shared by all kernels: launch macros, storage types, deterministic reductions, dispatch by dtype, math functions. The
// same files are compiled by nvcc for GPUs and, against tests/cuda_emulation, by a C++ compiler for tests.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "kernels.h"

#define SSL_FAST_ISA cuda  // namespace of ../pooling.h

#ifdef SSL_FAST_EMULATION
#define SSL_FAST_LAUNCH_BYTES(kernel, blocks, threads, shared, stream, ...) \
  emulation::launch(blocks, threads, shared, stream, [=] { kernel(__VA_ARGS__); })
#define SSL_FAST_LAUNCH_SHARED SSL_FAST_LAUNCH_BYTES
#define SSL_FAST_SHARED_BYTES(name) char* name = emulation::shared_bytes()
#else
#define SSL_FAST_LAUNCH_BYTES(kernel, blocks, threads, shared, stream, ...) \
  kernel<<<unsigned(blocks), threads, shared, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
// Launch with more than 48 KiB of dynamic shared memory. The attribute belongs to the kernel, not to the launch: always
// the device's maximum, so that host threads that launch the same kernel with different sizes do not race.
#define SSL_FAST_LAUNCH_SHARED(kernel, ...)                                                                  \
  (cudaFuncSetAttribute(reinterpret_cast<const void*>(&kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, \
                        this_device().shared),                                                               \
   SSL_FAST_LAUNCH_BYTES(kernel, __VA_ARGS__))
#define SSL_FAST_SHARED_BYTES(name) extern __shared__ __align__(128) char name[]
#endif
#define SSL_FAST_LAUNCH(kernel, blocks, threads, stream, ...) \
  SSL_FAST_LAUNCH_BYTES(kernel, blocks, threads, 0, stream, __VA_ARGS__)

namespace ssl_fast::cuda {

constexpr int kWarpSize = 32;
constexpr int kWarps = 8, kThreads = kWarpSize * kWarps;  // of a block, unless a file has its own

// ---- storage types; computed in float, double for double ----
struct BFloat16 {
  uint16_t bits;
};

// A cosine as int16 fixed point in steps of 1 / 32767, or NaN: finer than bfloat16 features are.
struct Cosine16 {
  int16_t steps;
};

// value: storage -> compute type; put: rounds to the storage type
__device__ inline float value(float x) { return x; }
__device__ inline double value(double x) { return x; }
__device__ inline float value(__half x) { return __half2float(x); }
__device__ inline float value(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
// To and from an integer by adding 1.5 * 2^23, whose last bits then are the integer: conversions take the pipe of the
// transcendental functions, which the epilogues are bound by.
constexpr float kIntegerBias = 12582912;
__device__ inline float value(Cosine16 x) {
  const float steps = __uint_as_float(0x4b400000u + uint32_t(int32_t(x.steps))) - kIntegerBias;
  return x.steps == INT16_MIN ? NAN : steps * (1 / 32767.f);
}

__device__ inline void put(float* to, float x) { *to = x; }
__device__ inline void put(double* to, double x) { *to = x; }
__device__ inline void put(__half* to, float x) { *to = __float2half_rn(x); }
__device__ inline void put(BFloat16* to, float x) {  // round to nearest even
#ifdef SSL_FAST_EMULATION
  uint32_t wide = __float_as_uint(x);
  to->bits = x != x ? 0x7fff : (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
#else
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(x));
#endif
}
// put, and x becomes what was put
template <class X>
__device__ void put_rounded(X* to, X& x) {
  *to = x;
}
__device__ inline void put_rounded(Cosine16* to, float& x) {
  const float clamped = fminf(fmaxf(x, -1.f), 1.f);  // rounding takes cosines beyond 1
  const float steps = fmaf(clamped, 32767.f, kIntegerBias);
  to->steps = x == x ? int16_t(__float_as_uint(steps) & 0xffff) : INT16_MIN;
  x = x == x ? (steps - kIntegerBias) * (1 / 32767.f) : x;
}
__device__ inline void put(Cosine16* to, float x) { put_rounded(to, x); }

// For vectorized loads and stores, 16 bytes each.
template <class T, int kCount>
struct alignas(16) AlignedVector {
  T at[kCount];
};

// 1 / |v|; 0 for a zero vector, which so has cosine 0 with everything, and gradient 0. NaN propagates.
// S: storage type of the vector.
template <class S, class T>
__device__ T safe_rsqrt(T sum_of_squares) {
  T norm = sqrt(sum_of_squares);
  return norm < T(std::is_same_v<S, __half> ? kShortestFloat16 : kShortest) ? T(0) : T(1) / norm;
}

// ---- reductions, in a fixed order: deterministic ----
// Butterfly all-reduce: every lane gets the sum.
template <class T>
__device__ T warp_sum(T x) {
  for (int lane_mask = kWarpSize / 2; lane_mask; lane_mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane_mask);
  return x;
}
// All-reduce over the block; `scratch` has one value per warp and may be reused after the next barrier.
template <int kWarps, class T>
__device__ T block_sum(T x, T (&scratch)[kWarps]) {
  x = warp_sum(x);
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  T sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += scratch[w];
  return sum;
}

// Row stride of a matrix of slopes or cosines, in elements.
__host__ __device__ inline int64_t stride_of(int64_t audios) { return (audios + 7) / 8 * 8; }

// ---- dispatch ----
// Calls f(S(), T()) with the storage type of the tensors and their compute type.
template <class F>
const char* with_types(DType dtype, F f) {
  switch (dtype) {
    case DType::float32: return f(float(), float());
    case DType::bfloat16: return f(BFloat16(), float());
    case DType::float16: return f(__half(), float());
    default: return f(double(), double());
  }
}
// Calls f(std::bool_constant<channels last>(), S(), T()).
template <class F>
const char* with_layout(const Shape& s, F f) {
  return with_types(s.dtype, [&](auto stored, auto computed) {
    return s.channels_last ? f(std::true_type{}, stored, computed) : f(std::false_type{}, stored, computed);
  });
}

inline Device this_device() {
  int ordinal = 0;
  Device device{};
  cudaGetDevice(&ordinal);
  cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, ordinal);
  cudaDeviceGetAttribute(&device.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal);
  return device;
}

inline const char* last_error() {
  cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// ---- math for ../pooling.h: a thread owns a pair, so V is float or double ----
template <class V>
using Index = int;

template <class X>
__device__ X select(bool first, X a, X b) {
  return first ? a : b;
}
__device__ inline float larger(float a, float b) { return fmaxf(a, b); }
__device__ inline double larger(double a, double b) { return fmax(a, b); }
__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float logarithm(float x) { return logf(x); }
__device__ inline double logarithm(double x) { return log(x); }
__device__ inline float exponential2(float x) {  // relative error about 2^-22
#ifdef SSL_FAST_EMULATION
  return std::exp2(x);
#else
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#endif
}
// Sigmoid, 1 / (1 + exp(-x)), and 1 - sigmoid without cancellation; `tail` is exp(x), the sigmoid where that is below
// half a unit in the last place of 1. Of float, x is in units of log(2).
template <class V>
struct Logistic {
  V power, value;
  __device__ explicit Logistic(V x);
  __device__ V complement() const { return power * value; }
  static __device__ V tail(V x);
};
template <>
__device__ inline Logistic<float>::Logistic(float x) : power(exponential2(-x)) {
#ifdef SSL_FAST_EMULATION
  value = 1 / (1 + power);
#else
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(1 + power));
#endif
}
template <>
__device__ inline float Logistic<float>::tail(float x) {
  return exponential2(x);
}
template <>
__device__ inline Logistic<double>::Logistic(double x) : power(exp(-x)), value(1 / (1 + power)) {}
template <>
__device__ inline double Logistic<double>::tail(double x) {
  return exp(x);
}
// Logit in units of log(2) by one FMA. Both constants are rounded once, from double: for a small beta that is an error
// no larger than the rounding of alpha.
template <class V, class Scalar>
struct Logit;
template <>
struct Logit<float, float> {
  static constexpr double kUnit = 1.4426950408889634;
  float gain, offset;
  static Logit of(double epsilon, double beta) { return {float(kUnit / beta), float(-epsilon * kUnit / beta)}; }
  __device__ float operator()(float alpha) const { return fmaf(alpha, gain, offset); }
};

// Not contracted to an FMA with a sum that follows.
#ifdef SSL_FAST_EMULATION
template <class T>
T rounded_product(T a, T b) {
  return a * b;
}
#else
__device__ inline float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double rounded_product(double a, double b) { return __dmul_rn(a, b); }
#endif

}  // namespace ssl_fast::cuda
