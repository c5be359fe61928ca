// SIMD vectors of one instruction set, by GCC/Clang vector extensions: load, store, shuffles, reductions over lanes,
// transposition in registers, exp and log.
//
// Included only by files that are compiled once per instruction set. Everything is in the namespace SSL_FAST_ISA:
// otherwise the linker would merge inline functions of all instruction sets into one (ODR), and a processor could run
// code that was compiled for another. For the same reason no function of the standard library is called.
//
//   Vec<T>           kVectorBytes: 16 (baseline: SSE2, NEON), 32 (AVX2) or 64 (AVX-512); T is float or double
//   kLanes<T>        values in a vector
//   kPanel<T>        values in kVectors vectors: columns of a register tile of the GEMM, and of its packed operand
//   kTileRows        rows of a register tile: kTileRows * kVectors accumulators stay in registers
#pragma once
#include <cstdint>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define SSL_FAST_ALWAYS_INLINE inline __attribute__((always_inline))

namespace ssl_fast::SSL_FAST_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTileRows = 14;  // 28 accumulators, 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kTileRows = 6;  // 12 accumulators, 16 registers
#else
constexpr int kVectorBytes = 16, kTileRows = 6;
#endif
constexpr int kVectors = 2;

template <class T>
struct VectorTypes {
  typedef T Aligned __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <class T>
using Vec = typename VectorTypes<T>::Aligned;

template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);
template <class T>
constexpr int kPanel = kVectors * kLanes<T>;

template <class V>
struct IndexOf;
template <>
struct IndexOf<Vec<float>> {
  using type = Vec<int32_t>;
};
template <>
struct IndexOf<Vec<double>> {
  using type = Vec<int64_t>;
};
template <class V>
using Index = typename IndexOf<V>::type;

template <class T>
SSL_FAST_ALWAYS_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorTypes<T>::Unaligned*>(p);
}
template <class T>
SSL_FAST_ALWAYS_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VectorTypes<T>::Unaligned*>(p) = v;
}
template <class T>
SSL_FAST_ALWAYS_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // "0 + x" would be an addition: it turns -0 into 0
}
template <int... I>
using LaneList = std::integer_sequence<int, I...>;
template <class T>
using Lanes = std::make_integer_sequence<int, kLanes<T>>;

// Lanes I of the concatenation of `a` and `b`.
template <class V, int... I>
SSL_FAST_ALWAYS_INLINE V shuffle(V a, V b, LaneList<I...>) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, I...);
#else  // GCC 11
  return __builtin_shuffle(a, b, Index<V>{I...});
#endif
}
// Lane i of the result is lane i ^ B.
template <int B, class V, int... I>
SSL_FAST_ALWAYS_INLINE V xor_lanes(V v, LaneList<I...>) {
  return shuffle(v, v, LaneList<(I ^ B)...>{});
}
template <class T, int B = kLanes<T> / 2>
SSL_FAST_ALWAYS_INLINE T sum_lanes(Vec<T> v) {
  if constexpr (B == 0)
    return v[0];
  else
    return sum_lanes<T, B / 2>(v + xor_lanes<B>(v, Lanes<T>{}));
}
template <class T, int B = kLanes<T> / 2>
SSL_FAST_ALWAYS_INLINE T max_lanes(Vec<T> v) {
  if constexpr (B == 0) {
    return v[0];
  } else {
    Vec<T> other = xor_lanes<B>(v, Lanes<T>{});
    return max_lanes<T, B / 2>(other > v ? other : v);
  }
}

// x, a product, as it is rounded: not contracted to an FMA with a sum that follows.
template <class V>
SSL_FAST_ALWAYS_INLINE V rounded(V x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__SSE2__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

template <class Mask, class V>
SSL_FAST_ALWAYS_INLINE V select(Mask mask, V yes, V no) {
  return mask ? yes : no;
}

// e^x for x <= 88, to about 1 ulp: x = n ln 2 + r, a polynomial in r, n added to the exponent. Below -87.3: e^-87.3.
SSL_FAST_ALWAYS_INLINE Vec<float> exponential(Vec<float> x) {
  using V = Vec<float>;
  x = x < -87.3f ? V{} - 87.3f : x;
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  V shifted = x * 1.44269504088896341f + kRound;
  V n = shifted - kRound;
  V r = x - n * 0.693359375f + n * 2.12194440e-4f;
  V y = V{} + 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + (r + 1.f);
  return (V)((Vec<int32_t>)y + (((Vec<int32_t>)shifted - (Vec<int32_t>)(V{} + kRound)) << 23));
}
SSL_FAST_ALWAYS_INLINE Vec<double> exponential(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

// Natural logarithm of normal numbers, to about 1 ulp: x = m 2^n with m in [sqrt 1/2, sqrt 2], a polynomial in m - 1.
SSL_FAST_ALWAYS_INLINE Vec<float> logarithm(Vec<float> x) {
  using V = Vec<float>;
  using I = Vec<int32_t>;
  I bits = (I)x - 0x3f3504f3;  // sqrt 1/2, where the exponent n begins
  V n = __builtin_convertvector(bits >> 23, V);
  V r = (V)((bits & 0x7fffff) + 0x3f3504f3) - 1.f, square = r * r;
  V y = V{} + 7.0376836292e-2f;
  y = y * r - 1.1514610310e-1f;
  y = y * r + 1.1676998740e-1f;
  y = y * r - 1.2420140846e-1f;
  y = y * r + 1.4249322787e-1f;
  y = y * r - 1.6668057665e-1f;
  y = y * r + 2.0000714765e-1f;
  y = y * r - 2.4999993993e-1f;
  y = y * r + 3.3333331174e-1f;
  y = y * r * square - n * 2.12194440e-4f - .5f * square;
  y = r + y + n * 0.693359375f;
  return x == x ? y : x;
}
SSL_FAST_ALWAYS_INLINE Vec<double> logarithm(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_log(x[i]);
  return x;
}

// 1 / x to about 1 ulp, for x in the normal range.
SSL_FAST_ALWAYS_INLINE Vec<float> reciprocal(Vec<float> x) {
#if defined(__AVX512F__)
  Vec<float> r = (Vec<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
  return r * (2.f - x * r);
#elif defined(__AVX2__)
  Vec<float> r = (Vec<float>)_mm256_rcp_ps((__m256)x);
  r = r * (2.f - x * r);
  return r * (2.f - x * r);
#else
  return 1.f / x;
#endif
}
SSL_FAST_ALWAYS_INLINE Vec<double> reciprocal(Vec<double> x) { return 1 / x; }
// Sigmoid of x >= -87, and 1 - sigmoid without cancellation.
template <class V>
struct Logistic {
  V power, value;
  SSL_FAST_ALWAYS_INLINE explicit Logistic(V x) : power(exponential(-x)), value(reciprocal(1 + power)) {}
  SSL_FAST_ALWAYS_INLINE V complement() const { return power * value; }
};

// Transposes a kLanes x kLanes block in registers: log2(kLanes) rounds, in each of which the off-diagonal B x B
// sub-blocks of all 2B x 2B sub-blocks are swapped.
template <class T, int B, int... I>
SSL_FAST_ALWAYS_INLINE void swap_off_diagonal(Vec<T>& a, Vec<T>& b, LaneList<I...>) {
  constexpr int n = kLanes<T>;
  Vec<T> upper = shuffle(a, b, LaneList<((I & B) ? n + (I ^ B) : I)...>{});
  b = shuffle(a, b, LaneList<((I & B) ? n + I : (I | B))...>{});
  a = upper;
}
template <class T, int B = kLanes<T> / 2>
SSL_FAST_ALWAYS_INLINE void transpose(Vec<T> (&block)[kLanes<T>]) {
  if constexpr (B > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i)
      if (!(i & B)) swap_off_diagonal<T, B>(block[i], block[i | B], Lanes<T>{});
    transpose<T, B / 2>(block);
  }
}

}  // namespace ssl_fast::SSL_FAST_ISA
