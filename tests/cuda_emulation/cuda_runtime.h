// CUDA on the CPU, for tests: the kernels of csrc/cuda compiled as C++ against this header instead of the toolkit's.
// Each thread of a block is a fiber, and blocks run one after the other. What a GPU forbids is reported: threads of a
// block that wait at different barriers, a warp exchange outside its mask, more threads than a block may have. Not
// seen: races between blocks, and time.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

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
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);

namespace emulation {

// Multiprocessors, and the bytes of shared memory that a block may have.
void set_device(int processors, int shared);

extern Dim3 thread_index, block_index, block_size, grid_size;  // of the running thread

// Runs `kernel` once for each of `blocks` x `threads`. Each block finds `shared` bytes full of NaN.
void launch(int64_t blocks, int threads, int64_t shared, const std::function<void()>& kernel);
char* shared_bytes();

void wait_for_block();
void wait_for_some(int barrier, int threads);
[[noreturn]] void fail(const char* what);
int lane();

// Every lane of `mask` hands over `bytes` <= kHanded; returns what all lanes handed over, kHanded bytes apart, to be
// read before the next exchange.
constexpr int kHanded = 32;
const unsigned char* exchange(unsigned mask, const void* mine, int bytes);

template <class T>
struct Lanes {
  const unsigned char* handed;
  T operator[](int lane) const {
    T theirs;
    std::memcpy(&theirs, handed + lane * kHanded, sizeof(T));
    return theirs;
  }
};
template <class T>
Lanes<T> hand_over(unsigned mask, const T& mine) {
  static_assert(sizeof(T) <= kHanded);
  return {exchange(mask, &mine, sizeof(T))};
}
template <class T>
T shuffle(unsigned mask, T value, int source) {
  if (!(mask >> source & 1)) fail("a warp exchange with a thread outside its mask");
  return hand_over(mask, value)[source];
}

// Copies of 16 bytes that happen as late as they may: when their group is waited for. Until then the place holds NaN.
void copy_async(void* to, const void* from, bool valid);
void close_copies();
void wait_for_copies(int pending);

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
template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return emulation::shuffle(mask, value, source);
}
inline unsigned __ballot_sync(unsigned mask, bool hit) {
  auto lanes = emulation::hand_over(mask, hit);
  unsigned hits = 0;
  for (int i = 0; i < 32; ++i) hits |= unsigned((mask >> i & 1) && lanes[i]) << i;
  return hits;
}
inline int __ffs(unsigned bits) { return __builtin_ffs(int(bits)); }
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
struct uint4 {
  alignas(16) uint32_t x, y, z, w;
};
using std::sqrt;
