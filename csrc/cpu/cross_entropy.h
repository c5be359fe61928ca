// Cross-entropy of the scores of all pairs, and its gradient in the same pass. y_i is the positive of row i.
//
//   rows        gap[i, j] = (s[i, j] - s[i, y_i] + margin) / tau for j != y_i, and one more for the background b[i]
//   columns     gap[i, j] = (s[i, j] - s[j, j] + margin) / tau for i != j; of the first N columns
//   loss        mean over rows of log(1 + sum of exp(gap)), plus the same over columns
//   b[i]        sum_p w c[i, p] / sum_p w, w = sigmoid((epsilon - c[i, p]) / beta)
//
// 1 + sum keeps the digits of a loss near 0.
#pragma once
#include "microkernel.h"

#include "../pooling.h"  // after the vectors it works on

namespace ssl_fast::SSL_FAST_ISA {

// e^x, and 0 where that is no normal number.
template <class T>
SSL_FAST_ALWAYS_INLINE Vec<T> power(Vec<T> x) {
  return select(x < T(sizeof(T) == 4 ? -87.3 : -708), Vec<T>{}, exponential(x));
}

// log(1 + sum), and the factor that makes weights of a sum's terms; `sum` is over exp(gap - top), top = max(0, gaps).
struct Entropy {
  double loss, scale;
  Entropy(double top, double sum) {
    const double one = __builtin_exp(-top);
    loss = top > 0 ? top + __builtin_log(one + sum) : __builtin_log1p(sum);
    scale = 1 / (one + sum);
  }
};

template <class T>
struct CrossEntropy {
  static constexpr int L = kLanes<T>;
  const CrossEntropyParams& p;
  double* loss;  // of each row, then of each column
  const T* scores = static_cast<const T*>(p.scores);
  T* grad = static_cast<T*>(p.grad_scores);
  const T margin = T(p.margin), per_tau = T(1 / p.tau);
  const double weight = 1 / (p.tau * p.rows);  // of the gradient of one row or column

  // Terms in `values`, in place: gaps to exp(gap - top). Gives their sum; `count` is a multiple of L.
  static double exponentials(T* values, int64_t count, T top) {
    return sum_lanes<T>(sum_in_levels<Vec<T>>(count / L, [&](int64_t i) {
      const Vec<T> e = power<T>(load(values + i * L) - top);
      store(values + i * L, e);
      return e;
    }));
  }

  // The background of row i; its gradient, for an upstream gradient of 1, in `slope`.
  T background(int64_t i, T* slope) const {
    const T *c = static_cast<const T*>(p.maps) + i * p.cells, per_beta = T(1 / p.beta);
    // weights relative to the largest, as all of them may be beyond the range of numbers
    T highest = T(p.epsilon) - c[0];
    for (int64_t q = 1; q < p.cells; ++q) highest = highest > T(p.epsilon) - c[q] ? highest : T(p.epsilon) - c[q];
    const T shift = highest < 0 ? highest * per_beta : T(0);
    double sum = 0, weighted = 0;
    auto for_cells = [&](auto f) {
      for (int64_t q = 0; q < p.cells; q += L) {
        const int64_t count = p.cells - q < L ? p.cells - q : L;
        Vec<T> cell{};
        for (int64_t k = 0; k < count; ++k) cell[k] = c[q + k];
        const Vec<T> x = (T(p.epsilon) - cell) * per_beta, small = power<T>(select(x > 0, -x, x));  // e^-|x|
        const Vec<T> w = select(x > 0, 1 / (1 + small), power<T>(select(x > 0, x, x - shift)) / (1 + small));
        f(q, count, cell, w, select(x > 0, small, Vec<T>{} + 1) / (1 + small));  // the last: 1 - sigmoid
      }
    };
    for_cells([&](int64_t, int64_t count, Vec<T> cell, Vec<T> w, Vec<T>) {
      for (int64_t k = 0; k < count; ++k) sum += w[k], weighted += double(w[k]) * cell[k];
    });
    const T mean = T(weighted / sum), per_sum = T(1 / sum);
    if (grad)
      for_cells([&](int64_t q, int64_t count, Vec<T> cell, Vec<T> w, Vec<T> rest) {
        const Vec<T> s = w * (1 - (cell - mean) * rest * per_beta) * per_sum;
        for (int64_t k = 0; k < count; ++k) slope[q + k] = s[k];
      });
    return mean;
  }

  // gaps: scratch (cross_entropy_scratch)
  void row(int64_t i, T* gaps) const {
    const int64_t y = p.positives ? p.positives[i] : i, padded = round_up(p.columns + 1, L);
    const T *s = scores + i * p.columns, positive = s[y], lowest = Max<Vec<T>, T>::kLowest;
    T* slope = grad && p.maps ? static_cast<T*>(p.grad_maps) + i * p.cells : nullptr;
    for (int64_t j = 0; j < p.columns; ++j) gaps[j] = (s[j] - positive + margin) * per_tau;
    for (int64_t j = p.columns; j < padded; ++j) gaps[j] = lowest;
    gaps[y] = lowest;
    if (p.maps) gaps[p.columns] = (background(i, slope) - positive + margin) * per_tau;
    Vec<T> best{};
    for (int64_t j = 0; j < padded; j += L) best = select(load(gaps + j) > best, load(gaps + j), best);
    const T top = max_lanes<T>(best);
    const double sum = exponentials(gaps, padded, top);
    const Entropy entropy(top, sum);
    loss[i] = entropy.loss;
    if (!grad) return;
    const T scale = T(entropy.scale * weight);
    T* out = grad + i * p.columns;
    for (int64_t j = 0; j < p.columns; ++j) out[j] = gaps[j] * scale;
    out[y] = -T(sum * entropy.scale * weight);
    for (int64_t q = 0; slope && q < p.cells; ++q) slope[q] *= gaps[p.columns] * scale;
  }

  // The columns from j on, at most L. values: scratch (rows, L).
  void column_block(int64_t first, T* values) const {
    const int64_t count = p.rows - first < L ? p.rows - first : L;
    auto for_lanes = [&](auto f) {
      for (int64_t k = 0; k < count; ++k) f(k);
    };
    Vec<T> positive{}, top{};
    for_lanes([&](int64_t k) { positive[k] = scores[(first + k) * p.columns + first + k]; });
    for (int64_t i = 0; i < p.rows; ++i) {
      const T* s = scores + i * p.columns + first;
      Vec<T> gap{};
      if (count == L)
        gap = load(s);
      else
        for_lanes([&](int64_t k) { gap[k] = s[k]; });
      gap = (gap - positive + margin) * per_tau;
      if (i >= first && i < first + count) gap[i - first] = Max<Vec<T>, T>::kLowest;
      top = select(gap > top, gap, top);
      store(values + i * L, gap);
    }
    const Vec<T> sum = sum_in_levels<Vec<T>>(p.rows, [&](int64_t i) {
      const Vec<T> e = power<T>(load(values + i * L) - top);
      store(values + i * L, e);
      return e;
    });
    Vec<T> scale{}, own{};
    for_lanes([&](int64_t k) {
      const Entropy entropy(top[k], sum[k]);
      loss[p.rows + first + k] = entropy.loss;
      scale[k] = T(entropy.scale * weight), own[k] = T(sum[k] * entropy.scale * weight);
    });
    for (int64_t i = 0; grad && i < p.rows; ++i) {
      T* out = grad + i * p.columns + first;
      const Vec<T> slope = load(values + i * L) * scale;
      if (count == L)
        store(out, load(out) + slope);
      else
        for_lanes([&](int64_t k) { out[k] += slope[k]; });
    }
    for_lanes([&](int64_t k) {
      if (grad) grad[(first + k) * p.columns + first + k] -= own[k];
    });
  }
};

// Values of scratch of one row.
inline int64_t cross_entropy_scratch(int64_t columns) { return round_up(columns + 1, 64); }

// The mean over rows, and over columns, of their losses, in their order.
template <class T>
void store_loss(const CrossEntropyParams& p, const double* losses) {
  double sum = 0;
  for (int64_t i = p.of_rows ? 0 : p.rows; i < (p.of_columns ? 2 : 1) * p.rows; ++i) sum += losses[i];
  *static_cast<T*>(p.loss) = T(sum / p.rows);
}

}  // namespace ssl_fast::SSL_FAST_ISA
