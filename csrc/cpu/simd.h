// SIMD vectors of this instruction set, by GCC/Clang vector extensions. Included only by the files that are compiled
// once per instruction set; everything lives in a namespace of that name, so that no copy can be linked into another's
// place.
#pragma once
#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define SSL_FAST_AI inline __attribute__((always_inline))

namespace ssl_fast::SSL_FAST_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTileRows = 14;  // 28 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kTileRows = 6;  // 12 of 16
#else
constexpr int kVectorBytes = 16, kTileRows = 6;
#endif
constexpr int kVectors = 2;  // vectors in a panel

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
constexpr int kPanel = kVectors * kLanes<T>;  // audios (or channels) in a panel

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
SSL_FAST_AI Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorTypes<T>::Unaligned*>(p);
}
template <class T>
SSL_FAST_AI void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VectorTypes<T>::Unaligned*>(p) = v;
}
template <class T>
SSL_FAST_AI Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // "0 + x" would be an addition: it turns -0 into 0
}
template <int... I>
struct LaneList {};
template <int N, int... I>
struct MakeLanes : MakeLanes<N - 1, N - 1, I...> {};
template <int... I>
struct MakeLanes<0, I...> {
  using type = LaneList<I...>;
};
template <class T>
using Lanes = typename MakeLanes<kLanes<T>>::type;

// The lanes I of `a` followed by `b`.
template <class V, int... I>
SSL_FAST_AI V shuffle(V a, V b, LaneList<I...>) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, I...);
#else  // GCC 11
  return __builtin_shuffle(a, b, Index<V>{I...});
#endif
}
// Lanes whose number differs in bit B change places.
template <int B, class V, int... I>
SSL_FAST_AI V swap_lanes(V v, LaneList<I...>) {
  return shuffle(v, v, LaneList<(I ^ B)...>{});
}
template <class T, int B = kLanes<T> / 2>
SSL_FAST_AI T sum_lanes(Vec<T> v) {
  if constexpr (B == 0)
    return v[0];
  else
    return sum_lanes<T, B / 2>(v + swap_lanes<B>(v, Lanes<T>{}));
}
template <class T, int B = kLanes<T> / 2>
SSL_FAST_AI T max_lanes(Vec<T> v) {
  if constexpr (B == 0) {
    return v[0];
  } else {
    Vec<T> other = swap_lanes<B>(v, Lanes<T>{});
    return max_lanes<T, B / 2>(other > v ? other : v);
  }
}

template <class Mask, class V>
SSL_FAST_AI V select(Mask mask, V yes, V no) {
  return mask ? yes : no;
}

// e^x for x <= 88, to about 1 ulp: x = n ln 2 + r, a polynomial in r, n added to the exponent. Below -87.3: e^-87.3.
SSL_FAST_AI Vec<float> exponential(Vec<float> x) {
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
SSL_FAST_AI Vec<double> exponential(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

// Natural logarithm of normal numbers, to about 1 ulp: x = m 2^n, a polynomial in m - 1 for m within [sqrt 1/2, sqrt
// 2].
SSL_FAST_AI Vec<float> logarithm(Vec<float> x) {
  using V = Vec<float>;
  using I = Vec<int32_t>;
  I bits = (I)x - 0x3f3504f3;  // of sqrt 1/2: its exponent counts from there
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
SSL_FAST_AI Vec<double> logarithm(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_log(x[i]);
  return x;
}

// 1 / x to about 1 ulp, for x in the normal range.
SSL_FAST_AI Vec<float> reciprocal(Vec<float> x) {
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
SSL_FAST_AI Vec<double> reciprocal(Vec<double> x) { return 1 / x; }
template <class V>
SSL_FAST_AI V logistic(V x) {
  return reciprocal(1 + exponential(-x));
}

// Transposes a square block of kLanes x kLanes held in registers: log2(kLanes) rounds of exchanging off-diagonal
// blocks.
template <class T, int B, int... I>
SSL_FAST_AI void exchange(Vec<T>& a, Vec<T>& b, LaneList<I...>) {
  constexpr int n = kLanes<T>;
  Vec<T> upper = shuffle(a, b, LaneList<((I & B) ? n + (I ^ B) : I)...>{});
  b = shuffle(a, b, LaneList<((I & B) ? n + I : (I | B))...>{});
  a = upper;
}
template <class T, int B = kLanes<T> / 2>
SSL_FAST_AI void transpose(Vec<T> (&block)[kLanes<T>]) {
  if constexpr (B > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i)
      if (!(i & B)) exchange<T, B>(block[i], block[i | B], Lanes<T>{});
    transpose<T, B / 2>(block);
  }
}

}  // namespace ssl_fast::SSL_FAST_ISA
