// CUDA on the CPU, for tests: the kernels of csrc/cuda compiled as C++ against this header instead of the toolkit's. Each
// thread of a block is a fiber, and blocks run one after the other. What a GPU forbids is reported: threads of a block that
// wait at different barriers, a warp exchange outside its mask, more threads than a block may have. Not seen: races between
// blocks, and time.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct Dim3 {
  unsigned x, y, z;
};
using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

namespace emulation {

extern Dim3 thread_index, block_index, block_size, grid_size;  // of the running thread

// Runs `kernel` once for each of `blocks` x `threads`.
void launch(int64_t blocks, int threads, const std::function<void()>& kernel);

void wait_for_block();
// Every lane of `mask` hands over `bytes` <= 16 and gets what lane `source` handed over.
void exchange(unsigned mask, const void* mine, int bytes, int source, void* theirs);
[[noreturn]] void fail(const char* what);

template <class T>
T shuffle(unsigned mask, T value, int source) {
  T theirs;
  exchange(mask, &value, sizeof(T), source, &theirs);
  return theirs;
}
int lane();

}  // namespace emulation

#define threadIdx (emulation::thread_index)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)

inline void __syncthreads() { emulation::wait_for_block(); }
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int apart) {
  return emulation::shuffle(mask, value, emulation::lane() ^ apart);
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
using std::sqrt;
