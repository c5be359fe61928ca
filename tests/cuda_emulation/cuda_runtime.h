// CUDA on the CPU, for tests: the kernels of csrc/cuda compiled as C++ against this header instead of the toolkit's.
// Each CUDA thread is a fiber, and blocks run one after the other. What a GPU forbids aborts with a message: threads of
// a block at different barriers, a warp intrinsic by or from a lane outside its mask, a launch over the device's
// limits. Not seen: races between blocks, and time. Races within a block: sanitizers.h.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // static_shared.ld finds them

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

// Device attributes: multiprocessors, and bytes of shared memory that a block can opt in to.
void set_device(int multiprocessors, int shared);

extern Dim3 thread_index, block_index, block_size, grid_size;  // of the running thread

// Runs `kernel` once for each of `blocks` x `threads`. Each block starts with `shared` bytes, and with static shared
// memory, full of NaN (the latter not under AddressSanitizer, which keeps red zones there).
void launch(int64_t blocks, int threads, int64_t shared, void* stream, const std::function<void()>& kernel);
char* shared_bytes();
int64_t static_shared_bytes();          // of all kernels together
std::vector<uintptr_t> take_streams();  // of the launches since the last call

void syncthreads();
void named_barrier_sync(int barrier, int threads);
[[noreturn]] void fail(const char* what);
int lane();

// Every lane of `mask` contributes `bytes` <= kLaneBytes; returns the values of all lanes, kLaneBytes apart, valid
// until the lane's next call.
constexpr int kLaneBytes = 32;
const unsigned char* warp_exchange(unsigned mask, const void* value, int bytes);

// The values of all lanes.
template <class T>
struct Lanes {
  const unsigned char* bytes;
  T operator[](int lane) const {
    T value;
    std::memcpy(&value, bytes + lane * kLaneBytes, sizeof(T));
    return value;
  }
};
template <class T>
Lanes<T> warp_all_gather(unsigned mask, const T& value) {
  static_assert(sizeof(T) <= kLaneBytes);
  return {warp_exchange(mask, &value, sizeof(T))};
}
template <class T>
T shuffle(unsigned mask, T value, int source) {
  if (!(mask >> source & 1)) fail("a warp exchange with a thread outside its mask");
  return warp_all_gather(mask, value)[source];
}

// cp.async of 16 bytes, as late as a GPU may do it: when the commit group is waited for. Until then the destination is
// NaN.
void cp_async(void* to, const void* from, bool valid);
void cp_async_commit();
void cp_async_wait(int pending);

}  // namespace emulation

#define threadIdx (emulation::thread_index)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)

inline void __syncthreads() { emulation::syncthreads(); }
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  return emulation::shuffle(mask, value, emulation::lane() ^ lane_mask);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return emulation::shuffle(mask, value, source);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  auto lanes = emulation::warp_all_gather(mask, predicate);
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) ballot |= unsigned((mask >> i & 1) && lanes[i]) << i;
  return ballot;
}
inline bool __all_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) == mask; }
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
using std::sqrt;
