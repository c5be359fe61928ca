// Kernels of one warp around the PTX wrappers of csrc/cuda/ptx.cuh, for tests of the order of their operands: on a GPU
// the instructions, in the emulation what stands for them. A library of its own for a GPU, a part of the emulation's.
#include "../../csrc/cuda/ptx.cuh"

namespace ssl_fast::cuda {
namespace {

// registers[lane] of the 512 bytes at `matrices`: lane i gives the address of their 16 bytes number i.
__global__ void load_matrices(const char* matrices, uint32_t (*registers)[4]) {
  SSL_FAST_SHARED_BYTES(shared);
  const int lane = threadIdx.x;
  memcpy(shared + lane * 16, matrices + lane * 16, 16);
  __syncthreads();
  ldmatrix_x4(registers[lane], shared + lane * 16);
}

// acc[lane] += product of the fragments a[lane], b[lane]
template <class S>
__global__ void multiply_fragments(const uint32_t (*a)[4], const uint32_t (*b)[2], float (*acc)[4]) {
  const int lane = threadIdx.x;
  mma_m16n8(acc[lane], a[lane], b[lane], S());
}

}  // namespace
}  // namespace ssl_fast::cuda

// Both return null, or what went wrong at the launch. All pointers are to device memory.
extern "C" const char* test_ldmatrix(const char* matrices, uint32_t (*registers)[4]) {
  using namespace ssl_fast::cuda;
  SSL_FAST_LAUNCH_BYTES(load_matrices, 1, kWarpSize, 512, nullptr, matrices, registers);
  return last_error();
}
// element: bytes of a number of a and b; is_bfloat16 tells those of 2 apart.
extern "C" const char* test_mma(int element, bool is_bfloat16, const uint32_t (*a)[4], const uint32_t (*b)[2],
                                float (*acc)[4]) {
  using namespace ssl_fast::cuda;
  if (element == 4)
    SSL_FAST_LAUNCH((multiply_fragments<float>), 1, kWarpSize, nullptr, a, b, acc);
  else if (is_bfloat16)
    SSL_FAST_LAUNCH((multiply_fragments<BFloat16>), 1, kWarpSize, nullptr, a, b, acc);
  else
    SSL_FAST_LAUNCH((multiply_fragments<__half>), 1, kWarpSize, nullptr, a, b, acc);
  return last_error();
}
