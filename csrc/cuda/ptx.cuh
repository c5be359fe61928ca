// The instructions that C++ has no words for: matrix fragments, products on tensor cores, copies in the background,
// barriers of some warps. Each is PTX on a GPU (sm_80 and up) and, in the emulation, C++ that moves the same numbers
// between the same lanes.
#pragma once
#include "common.cuh"

namespace ssl_fast::cuda {

#ifdef SSL_FAST_EMULATION

inline uint32_t bits_at(const void* from) {
  uint32_t x;
  std::memcpy(&x, from, 4);
  return x;
}
// Element k of a fragment's register, as the tensor core reads it.
inline float element(uint32_t x, int half, BFloat16) { return value(BFloat16{uint16_t(x >> 16 * half)}); }
inline float element(uint32_t x, int half, __half) {
  __half h;
  uint16_t bits = uint16_t(x >> 16 * half);
  std::memcpy(&h, &bits, 2);
  return value(h);
}
inline float element(uint32_t x, int, float) {
  const float value = __uint_as_float(x);
  if (value == value && x & 0x1fff) emulation::fail("an operand was not rounded to tf32");
  return value;
}

#endif

// Four matrices of 8 rows x 16 bytes; lane i gives the address of row i % 8 of matrix i / 8. Register i of lane l gets
// bytes 4 (l % 4) of row l / 4 of matrix i.
__device__ inline void load_matrices(uint32_t (&to)[4], const void* row) {
#ifdef SSL_FAST_EMULATION
  if (reinterpret_cast<uintptr_t>(row) % 16) emulation::fail("a matrix row that is not aligned to 16 bytes");
  emulation::Lanes<const char*> rows = emulation::hand_over(0xffffffffu, static_cast<const char*>(row));
  for (int i = 0; i < 4; ++i) to[i] = bits_at(rows[i * 8 + emulation::lane() / 4] + emulation::lane() % 4 * 4);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(unsigned(__cvta_generic_to_shared(row))));
#endif
}
// The 11 bits of a float that a product on tensor cores heeds, rounded.
__device__ inline float round_to_tf32(float x) {
#ifdef SSL_FAST_EMULATION
  return x != x ? x : __uint_as_float((__float_as_uint(x) + 0x1000) & ~0x1fffu);
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#endif
}

// sums (16 x 8) += a (16 x K) b (K x 8), K = 16, for tf32 8. With g = lane / 4, q = lane % 4: sums holds rows g and g +
// 8 of columns 2 q and 2 q + 1; a and b hold what load_matrices gives, floats as round_to_tf32 leaves them.
#ifdef SSL_FAST_EMULATION
template <class S>
void multiply_tile(float (&sums)[4], const uint32_t (&a)[4], const uint32_t* b, S) {
  struct Fragments {
    uint32_t a[4], b[2];
  };
  auto lanes = emulation::hand_over(0xffffffffu, Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  constexpr int kPerRegister = 4 / sizeof(S);
  const int g = emulation::lane() / 4, q = emulation::lane() % 4;
  for (int row = 0; row < 2; ++row)
    for (int j = 0; j < 2; ++j)
      for (int upper = 0; upper < 2; ++upper)
        for (int k = 0; k < 4; ++k)
          for (int half = 0; half < kPerRegister; ++half)
            sums[2 * row + j] += element(lanes[g * 4 + k].a[2 * upper + row], half, S()) *
                                 element(lanes[(2 * q + j) * 4 + k].b[upper], half, S());
}
#else
#define SSL_FAST_MMA(shape, type, Storage)                                                                     \
  __device__ inline void multiply_tile(float (&sums)[4], const uint32_t (&a)[4], const uint32_t* b, Storage) { \
    asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type                                       \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "                                                   \
                 "{%8, %9}, {%0, %1, %2, %3};"                                                                 \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                          \
  }
SSL_FAST_MMA("m16n8k16", "bf16", BFloat16)
SSL_FAST_MMA("m16n8k16", "f16", __half)
SSL_FAST_MMA("m16n8k8", "tf32", float)
#undef SSL_FAST_MMA
#endif

// Copies 16 bytes from global to shared memory, or writes zeros; done once its group has been waited for.
__device__ inline void copy_async(void* to, const void* from, bool valid) {
#ifdef SSL_FAST_EMULATION
  emulation::copy_async(to, from, valid);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
#endif
}
// Ends a group of copies of this thread.
__device__ inline void close_copies() {
#ifdef SSL_FAST_EMULATION
  emulation::close_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most kPending groups are under way.
template <int kPending>
__device__ void wait_for_copies() {
#ifdef SSL_FAST_EMULATION
  emulation::wait_for_copies(kPending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Until all `threads` of a team, whole warps, have come here.
__device__ inline void wait_for_team(int team, int threads) {
#ifdef SSL_FAST_EMULATION
  emulation::wait_for_some(team, threads);
#else
  asm volatile("barrier.sync %0, %1;" ::"r"(team + 1), "r"(threads) : "memory");  // 0 is that of __syncthreads
#endif
}

}  // namespace ssl_fast::cuda
