// The poolings of the field, written once for every device.
//
// For image n, audio m and cell p, alpha[n,m,p] is the cosine (or the dot product) of two feature vectors. A loss
// needs, for all pairs, one number S[n,m] pooled from alpha[n,m,:]. The map of all pairs never exists in memory: a GEMM
// computes a tile of alpha and its epilogue hands it to the pooling while it is still in registers. So a pooling is a
// monoid with a local derivative:
//
//   of(parameters, cells)      for an image of so many cells; parameters of ssl_fast/ops/poolings.py, in order
//   State                      what must be remembered of the cells seen so far; State{} has seen none
//   absorb(state, alpha, p)    takes in cell p
//   merge(state, other)        takes in all that another state has seen
//   score(state)               S
//   residual(state)            one number of the pair that is saved for the backward pass besides S
//   slope(alpha, S, scale)     scale * dS/dalpha at a cell, up to the factor `residual`; scale = residual * dL/dS
//
// kHasTail: there are in_tail and absorb_tail, a cheaper absorb of low cosines.
// kSparse: one cell of a pair has a gradient, and the residual is its index (argmax): there is no `slope`.
//
// V is the number type: a float on a GPU (a thread owns a pair), a SIMD vector on a CPU (a lane owns a pair). Whoever
// includes this header defines SSL_FAST_ISA, the namespace, and declares Logistic<V>, exponential, logarithm, select
// and Index<V> in it; without SSL_FAST_ISA only the list of the poolings is here.
//
// The mean (SSL-Align's s_L) is absent because it needs no map: a mean of cosines is the product with a mean unit
// vector.
#pragma once
#include <limits>

// POOLING(name, struct, number of parameters, sparse): `name` is the `kind` of the Python object
#define SSL_FAST_POOLINGS(POOLING)                 \
  POOLING(soft_threshold, SoftThreshold, 2, false) \
  POOLING(max, Max, 0, true)                       \
  POOLING(log_mean_exp, LogMeanExp, 1, false)

namespace ssl_fast {

#define SSL_FAST_NAME(name, Pool, parameters, sparse) name,
enum class Pooling : int { SSL_FAST_POOLINGS(SSL_FAST_NAME) };
#undef SSL_FAST_NAME

}  // namespace ssl_fast

#ifdef SSL_FAST_ISA

#ifdef __CUDACC__
#define SSL_FAST_INLINE __host__ __device__ __forceinline__
#else
#define SSL_FAST_INLINE inline __attribute__((always_inline))
#endif

namespace ssl_fast::SSL_FAST_ISA {

// Sum of f(i) for i < count, in three levels: less rounding error.
template <class V, class F>
SSL_FAST_INLINE V sum_in_levels(int64_t count, F f) {
  V sum{};
  for (int64_t group = 0; group < count; group += 512) {
    V of_group{};
    for (int64_t block = group; block < group + 512 && block < count; block += 16) {
      V of_block{};
      for (int64_t i = block; i < block + 16 && i < count; ++i) of_block += f(i);
      of_group += of_block;
    }
    sum += of_group;
  }
  return sum;
}

// (alpha - epsilon) / beta, as Logistic<V> takes it: in units of 1 / kUnit. A device may specialize it.
template <class V, class Scalar>
struct Logit {
  static constexpr double kUnit = 1;
  Scalar epsilon, inverse_beta;
  static Logit of(double epsilon, double beta) { return {Scalar(epsilon), Scalar(1 / beta)}; }
  SSL_FAST_INLINE V operator()(V alpha) const { return (alpha - epsilon) * inverse_beta; }
};

// LVS, MarginNCE: S = sum_p w alpha / sum_p w, w = sigmoid((alpha - epsilon) / beta).
// The logit is cut off at -80, so that the sum of the weights cannot underflow.
template <class V, class Scalar>
struct SoftThreshold {
  static constexpr bool kSparse = false, kHasTail = true;
  static constexpr Scalar kLowestLogit = Scalar(-80 * Logit<V, Scalar>::kUnit);
  // Logit below which 1 + exp(-logit) rounds to exp(-logit): there the weight needs no division.
  static constexpr Scalar kTail =
      Scalar(-0.6931471805599453 * std::numeric_limits<Scalar>::digits * Logit<V, Scalar>::kUnit);
  using Residual = V;
  Logit<V, Scalar> logit;
  Scalar inverse_beta;
  static SoftThreshold of(const double* parameters, int64_t) {
    return {Logit<V, Scalar>::of(parameters[0], parameters[1]), Scalar(1 / parameters[1])};
  }

  struct State {
    V weighted{}, weight{};
  };
  SSL_FAST_INLINE V cut_off(V x) const { return select(x > kLowestLogit, x, V{} + kLowestLogit); }
  SSL_FAST_INLINE void add(State& s, V alpha, V w) const {
    s.weighted += w * alpha;
    s.weight += w;
  }
  SSL_FAST_INLINE void absorb(State& s, V alpha, int) const { add(s, alpha, Logistic<V>(cut_off(logit(alpha))).value); }
  // For threads with a pair each: whether absorb_tail does what absorb does.
  SSL_FAST_INLINE bool in_tail(V alpha) const { return logit(alpha) < kTail; }
  SSL_FAST_INLINE void absorb_tail(State& s, V alpha, int) const {
    add(s, alpha, Logistic<V>::tail(cut_off(logit(alpha))));
  }
  SSL_FAST_INLINE void merge(State& s, const State& other) const {
    s.weighted += other.weighted;
    s.weight += other.weight;
  }
  SSL_FAST_INLINE V score(const State& s) const { return s.weighted / s.weight; }
  SSL_FAST_INLINE Residual residual(const State& s) const { return 1 / s.weight; }
  SSL_FAST_INLINE V slope(V alpha, V score, V scale) const {
    V x = logit(alpha);
    Logistic<V> w(cut_off(x));
    V growth = select(x > kLowestLogit, w.complement() * inverse_beta, V{});  // (dw/dalpha) / w
    return scale * w.value * (1 + growth * (alpha - score));
  }
};

// EZ-VSL: S = max_p alpha. Of equal cells the first wins; a NaN wins over all, as in torch.max.
template <class V, class Scalar>
struct Max {
  static constexpr bool kSparse = true, kHasTail = false;
  using Residual = Index<V>;
  static Max of(const double*, int64_t) { return {}; }

  static constexpr Scalar kLowest = -std::numeric_limits<Scalar>::infinity();
  struct State {
    V best = V{} + kLowest;
    Index<V> cell{};
  };
  SSL_FAST_INLINE void absorb(State& s, V alpha, int cell) const {  // a later cell than all before
    auto wins = (alpha > s.best) | (alpha != alpha);
    s.best = select(wins, alpha, s.best);
    s.cell = select(wins, Index<V>{} + cell, s.cell);
  }
  SSL_FAST_INLINE void merge(State& s, const State& other) const {
    auto wins = (other.best > s.best) | (other.best != other.best) | ((other.best == s.best) & (other.cell < s.cell));
    s.best = select(wins, other.best, s.best);
    s.cell = select(wins, other.cell, s.cell);
  }
  SSL_FAST_INLINE V score(const State& s) const { return s.best; }
  SSL_FAST_INLINE Residual residual(const State& s) const { return s.cell; }
};

// SLAVC multiplies a softmax over instances by a softmax over space: two log-sum-exps, S = log sum_p exp(scale x[p]).
template <class V, class Scalar>
struct LogSumExp {
  Scalar scale;

  struct State {
    V top = V{} - Scalar(1e30), sum{};  // the largest x so far, and the sum of exp(scale (x - top))
  };
  SSL_FAST_INLINE void absorb(State& s, V x, int = 0) const {
    V above = (x - s.top) * scale;
    V ratio = exponential(select(above > 0, -above, above));
    s.sum = select(above > 0, s.sum * ratio + 1, s.sum + ratio);
    s.top = select(above > 0, x, s.top);
  }
  SSL_FAST_INLINE void merge(State& s, const State& other) const {
    V top = select(other.top > s.top, other.top, s.top);
    s.sum = s.sum * exponential((s.top - top) * scale) + other.sum * exponential((other.top - top) * scale);
    s.top = top;
  }
  SSL_FAST_INLINE V score(const State& s) const { return s.top * scale + logarithm(s.sum); }
};

// Log-sum-exp pooling, the smooth maximum between mean (large tau) and max (small tau):
// S = tau log mean_p exp(alpha / tau). The slope is a softmax over cells, exp((alpha - S) / tau) over the sum of this
// over cells, which is the number of cells but for the rounding of S: a small tau makes much of that.
template <class V, class Scalar>
struct LogMeanExp : LogSumExp<V, Scalar> {
  static constexpr bool kSparse = false, kHasTail = false;
  using Residual = V;
  using typename LogSumExp<V, Scalar>::State;
  Scalar tau, per_cell;
  static LogMeanExp of(const double* parameters, int64_t cells) {
    return {{Scalar(1 / parameters[0])}, Scalar(parameters[0]), Scalar(1. / cells)};
  }
  SSL_FAST_INLINE void absorb(State& s, V alpha, int) const { LogSumExp<V, Scalar>::absorb(s, alpha); }
  SSL_FAST_INLINE V score(const State& s) const { return s.top + tau * logarithm(s.sum * per_cell); }
  SSL_FAST_INLINE Residual residual(const State& s) const {
    return exponential((score(s) - s.top) * this->scale) / s.sum;
  }
  SSL_FAST_INLINE V slope(V alpha, V score, V scale) const {
    return scale * exponential((alpha - score) * this->scale);
  }
};

// Calls f(pooling), for the forward and the backward pass of every device.
template <class V, class Scalar, class F>
auto with_pooling(Pooling pooling, const double* parameters, int64_t cells, F f) {
  switch (pooling) {
#define SSL_FAST_CASE(name, Pool, count, sparse)         \
  case Pooling::name:                                    \
    static_assert(Pool<V, Scalar>::kSparse == (sparse)); \
    return f(Pool<V, Scalar>::of(parameters, cells));
    SSL_FAST_POOLINGS(SSL_FAST_CASE)
#undef SSL_FAST_CASE
  }
  __builtin_unreachable();
}

}  // namespace ssl_fast::SSL_FAST_ISA

#endif
