// PTX wrappers (sm_80 and up): ldmatrix, mma.sync, cp.async, named barriers, rounding to tf32. In the emulation each is
// C++ that moves the same numbers between the same lanes.
#pragma once
#include "common.cuh"

namespace ssl_fast::cuda {

#ifdef SSL_FAST_EMULATION

inline uint32_t load_b32(const void* from) {
  uint32_t x;
  std::memcpy(&x, from, 4);
  return x;
}
// Element `half` of a 32-bit fragment register, as the tensor core reads it.
inline float fragment_element(uint32_t x, int half, BFloat16) { return value(BFloat16{uint16_t(x >> 16 * half)}); }
inline float fragment_element(uint32_t x, int half, __half) {
  __half h;
  uint16_t bits = uint16_t(x >> 16 * half);
  std::memcpy(&h, &bits, 2);
  return value(h);
}
inline float fragment_element(uint32_t x, int, float) {
  const float value = __uint_as_float(x);
  if (value == value && x & 0x1fff) emulation::fail("an operand was not rounded to tf32");
  return value;
}

#endif

// ldmatrix.x4: four 8x8 b16 matrices (8 rows of 16 bytes). Lane i gives the address of row i % 8 of matrix i / 8;
// register i of lane l gets bytes [4 (l % 4), 4 (l % 4) + 4) of row l / 4 of matrix i.
__device__ inline void ldmatrix_x4(uint32_t (&to)[4], const void* row) {
#ifdef SSL_FAST_EMULATION
  if (reinterpret_cast<uintptr_t>(row) % 16) emulation::fail("a matrix row that is not aligned to 16 bytes");
  emulation::Lanes<const char*> rows = emulation::warp_all_gather(0xffffffffu, static_cast<const char*>(row));
  for (int i = 0; i < 4; ++i) to[i] = load_b32(rows[i * 8 + emulation::lane() / 4] + emulation::lane() % 4 * 4);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(unsigned(__cvta_generic_to_shared(row))));
#endif
}
// Rounds to the nearest tf32 (ties away from zero): 8 bits of exponent, 11 significant bits.
__device__ inline float round_to_tf32(float x) {
#ifdef SSL_FAST_EMULATION
  return x != x ? x : __uint_as_float((__float_as_uint(x) + 0x1000) & ~0x1fffu);
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#endif
}

// What is stored of x as an operand of the products.
template <class S>
__device__ S mma_operand(S x, bool tf32) {
  if constexpr (std::is_same_v<S, float>)
    if (tf32) return round_to_tf32(x);
  return x;
}

// mma.m16n8: acc (16 x 8) += a (16 x K) b (K x 8); K = 16, for tf32 8. With g = lane / 4, q = lane % 4: acc holds rows
// g and g + 8 of columns 2 q and 2 q + 1; a and b are fragments of ldmatrix_x4, floats rounded by round_to_tf32.
#ifdef SSL_FAST_EMULATION
template <class S>
void mma_m16n8(float (&acc)[4], const uint32_t (&a)[4], const uint32_t* b, S) {
  struct Fragments {
    uint32_t a[4], b[2];
  };
  auto lanes = emulation::warp_all_gather(0xffffffffu, Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  constexpr int kPerRegister = 4 / sizeof(S);
  const int g = emulation::lane() / 4, q = emulation::lane() % 4;
  for (int row = 0; row < 2; ++row)
    for (int j = 0; j < 2; ++j)
      for (int upper = 0; upper < 2; ++upper)
        for (int k = 0; k < 4; ++k)
          for (int half = 0; half < kPerRegister; ++half)
            acc[2 * row + j] += fragment_element(lanes[g * 4 + k].a[2 * upper + row], half, S()) *
                                fragment_element(lanes[(2 * q + j) * 4 + k].b[upper], half, S());
}
#else
#define SSL_FAST_MMA(shape, type, Storage)                                                                \
  __device__ inline void mma_m16n8(float (&acc)[4], const uint32_t (&a)[4], const uint32_t* b, Storage) { \
    asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type                                  \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                   \
                 : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                     \
  }
SSL_FAST_MMA("m16n8k16", "bf16", BFloat16)
SSL_FAST_MMA("m16n8k16", "f16", __half)
SSL_FAST_MMA("m16n8k8", "tf32", float)
#undef SSL_FAST_MMA
#endif

// One store of 16 bytes, from registers. As an assignment the compiler splits it where it folds the address into a
// loop's.
__device__ inline void store_16(void* to, const void* from) {
#ifdef SSL_FAST_EMULATION
  if (reinterpret_cast<uintptr_t>(to) % 16) emulation::fail("a store that is not aligned to 16 bytes");
  std::memcpy(to, from, 16);
#else
  uint4 words;
  memcpy(&words, from, 16);
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words.x), "r"(words.y), "r"(words.z),
               "r"(words.w)
               : "memory");
#endif
}

// Predicated cp.async of 16 bytes from global to shared memory: zero-fills where `valid` is false. Complete once its
// commit group has been waited for.
__device__ inline void cp_async_16(void* to, const void* from, bool valid) {
#ifdef SSL_FAST_EMULATION
  emulation::cp_async(to, from, valid);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
#endif
}
// Closes this thread's current commit group.
__device__ inline void cp_async_commit() {
#ifdef SSL_FAST_EMULATION
  emulation::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most kPending commit groups of this thread are in flight.
template <int kPending>
__device__ void cp_async_wait() {
#ifdef SSL_FAST_EMULATION
  emulation::cp_async_wait(kPending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Named barrier of the `threads` threads (whole warps) of a warp group.
__device__ inline void sync_warp_group(int warp_group, int threads) {
#ifdef SSL_FAST_EMULATION
  emulation::named_barrier_sync(warp_group, threads);
#else
  // barrier 0 is that of __syncthreads
  asm volatile("barrier.sync %0, %1;" ::"r"(warp_group + 1), "r"(threads) : "memory");
#endif
}

}  // namespace ssl_fast::cuda
