// SLAVC's product of two softmaxes, from the cosines of a chunk of images (formulas: csrc/cpu/product.cpp). Each sum is taken
// by one warp or one thread, in order.
#include "kernels.h"
#include "scalar.h"

#include "../pooling.h"  // after the numbers it works on

namespace ssl_fast::cuda {
namespace {

template <class T>
struct Product {
  ProductChunk p;
  T per_tau;

  __device__ T loc(int64_t row, int64_t m) const { return static_cast<const T*>(p.loc)[row * stride_of(p.audios) + m]; }
  __device__ T avc(int64_t row, int64_t m) const { return static_cast<const T*>(p.avc)[row * stride_of(p.audios) + m]; }
  // Where the instance softmax of a cell and an audio has its sums.
  __device__ int64_t instance(int64_t row, int64_t m) const {
    return p.instances == Instances::audio ? row : row % p.cells * p.audios + m;
  }
  __device__ T log_instance(int64_t row, int64_t m) const {
    const int64_t at = instance(row, m);
    return (avc(row, m) - static_cast<const T*>(p.instance_top)[at]) * per_tau - static_cast<const T*>(p.instance_log)[at];
  }
  __device__ T log_space(int64_t row, int64_t m, int64_t pair) const {
    return (loc(row, m) - static_cast<const T*>(p.space_top)[pair]) * per_tau - static_cast<const T*>(p.space_log)[pair];
  }
  // grad dS/da of a cell and a pair
  __device__ T share(int64_t row, int64_t m) const {
    const int64_t pair = row / p.cells * p.audios + m;
    const T grad = static_cast<const T*>(p.grad_scores)[pair];
    if (p.reduce == Reduce::max) return p.best[pair] == row % p.cells ? grad : T(0);
    return grad * exponential(log_instance(row, m) + log_space(row, m, pair) - static_cast<const T*>(p.scores)[pair]);
  }
};

__device__ int64_t thread() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }

// Instances = audio: a warp takes one row.
template <class T>
__global__ void __launch_bounds__(kThreads) audio_instances(Product<T> of) {
  const int64_t row = thread() / kWarp;
  if (row >= of.p.images * of.p.cells) return;
  T top = -2, sum = 0;
  for (int64_t m = threadIdx.x % kWarp; m < of.p.audios; m += kWarp) top = select(of.avc(row, m) > top, of.avc(row, m), top);
  for (int apart = kWarp / 2; apart; apart /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, top, apart);
    top = select(other > top, other, top);
  }
  for (int64_t m = threadIdx.x % kWarp; m < of.p.audios; m += kWarp) sum += exponential((of.avc(row, m) - top) * of.per_tau);
  sum = sum_warp(sum);
  if (threadIdx.x % kWarp) return;
  static_cast<T*>(of.p.instance_top)[row] = top;
  static_cast<T*>(of.p.instance_log)[row] = logarithm(sum);
}

// Instances = image: a thread takes one cell and audio, through the images of all chunks.
template <class T>
__global__ void __launch_bounds__(kThreads) image_instances(Product<T> of, bool first, bool last) {
  const int64_t at = thread();
  if (at >= of.p.cells * of.p.audios) return;
  T *top = static_cast<T*>(of.p.instance_top) + at, *log = static_cast<T*>(of.p.instance_log) + at;
  const LogSumExp<T, T> pool{of.per_tau};
  typename LogSumExp<T, T>::State state;
  if (!first) state = {*top, *log};
  for (int64_t n = 0; n < of.p.images; ++n)
    pool.absorb(state, of.avc(n * of.p.cells + at / of.p.audios, at % of.p.audios));
  *top = state.top, *log = last ? logarithm(state.sum) : state.sum;
}

// A thread takes one pair.
template <class T>
__global__ void __launch_bounds__(kThreads) pair_scores(Product<T> of) {
  const int64_t pair = thread(), m = pair % of.p.audios, first = pair / of.p.audios * of.p.cells;
  if (pair >= of.p.images * of.p.audios) return;
  T top = of.loc(first, m);
  for (int64_t cell = 1; cell < of.p.cells; ++cell) top = select(of.loc(first + cell, m) > top, of.loc(first + cell, m), top);
  auto y = [&](int64_t cell) { return (of.loc(first + cell, m) - top) * of.per_tau; };
  auto x = [&](int64_t cell) { return of.log_instance(first + cell, m) + y(cell); };
  typename Max<T, T>::State best{T(-1e30), 0};
  for (int64_t cell = 0; cell < of.p.cells; ++cell) Max<T, T>{}.absorb(best, x(cell), int(cell));
  T sum = 0, total = 0;
  for (int64_t part = 0; part < of.p.cells; part += 16) {  // in two levels: less rounding error
    T part_sum = 0, part_total = 0;
    for (int64_t cell = part; cell < part + 16 && cell < of.p.cells; ++cell) {
      part_sum += exponential(y(cell));
      if (of.p.reduce == Reduce::sum) part_total += exponential(x(cell) - best.best);
    }
    sum += part_sum, total += part_total;
  }
  const T log = logarithm(sum);
  static_cast<T*>(of.p.space_top)[pair] = top;
  static_cast<T*>(of.p.space_log)[pair] = log;
  static_cast<T*>(of.p.scores)[pair] = best.best - log + (of.p.reduce == Reduce::sum ? logarithm(total) : T(0));
  if (of.p.reduce == Reduce::max) of.p.best[pair] = best.cell;
}

// sums = the shares of all instances: of each row (a warp), or of each cell and audio (a thread), through all chunks.
template <class T>
__global__ void __launch_bounds__(kThreads) audio_shares(Product<T> of) {
  const int64_t row = thread() / kWarp;
  if (row >= of.p.images * of.p.cells) return;
  T sum = 0;
  for (int64_t m = threadIdx.x % kWarp; m < of.p.audios; m += kWarp) sum += of.share(row, m);
  sum = sum_warp(sum);
  if (threadIdx.x % kWarp == 0) static_cast<T*>(of.p.shares)[row] = sum;
}
template <class T>
__global__ void __launch_bounds__(kThreads) image_shares(Product<T> of, bool first) {
  const int64_t at = thread();
  if (at >= of.p.cells * of.p.audios) return;
  T* sum = static_cast<T*>(of.p.shares) + at;
  T all = first ? T(0) : *sum;
  for (int64_t n = 0; n < of.p.images; ++n) all += of.share(n * of.p.cells + at / of.p.audios, at % of.p.audios);
  *sum = all;
}

// d avc = (u - exp(a) R) / tau, d loc = (u - grad exp(log space)) / tau, over the lengths. A thread takes one number of each.
template <class T, class Out>
__global__ void __launch_bounds__(kThreads) pair_slopes(Product<T> of) {
  const int64_t at = thread(), stride = stride_of(of.p.audios), row = at / stride, m = at % stride;
  if (row >= of.p.images * of.p.cells) return;
  if (m >= of.p.audios) {
    put(static_cast<Out*>(of.p.loc_slopes) + at, T(0));
    put(static_cast<Out*>(of.p.avc_slopes) + at, T(0));
    return;
  }
  const int64_t pair = row / of.p.cells * of.p.audios + m;
  const T u = of.share(row, m), all = static_cast<const T*>(of.p.shares)[of.instance(row, m)];
  const T grad = static_cast<const T*>(of.p.grad_scores)[pair];
  auto put_slope = [&](void* out, T slope, const void* cell_norm, const void* audio_norm) {
    put(static_cast<Out*>(out) + at,
        slope * of.per_tau * (static_cast<const T*>(cell_norm)[row] * static_cast<const T*>(audio_norm)[m]));
  };
  put_slope(of.p.loc_slopes, u - grad * exponential(of.log_space(row, m, pair)), of.p.loc_cell_norm, of.p.loc_audio_norm);
  put_slope(of.p.avc_slopes, u - exponential(of.log_instance(row, m)) * all, of.p.avc_cell_norm, of.p.avc_audio_norm);
}

// Calls f(Product<T>(), blocks for a given number of threads).
template <class F>
const char* with_product(const ProductChunk& p, F f) {
  auto blocks = [](int64_t threads) { return (threads + kThreads - 1) / kThreads; };
  if (p.dtype == DType::float64)
    f(Product<double>{p, 1 / p.tau}, blocks);
  else
    f(Product<float>{p, float(1 / p.tau)}, blocks);
  return last_error();
}

}  // namespace

const char* product_instances(const ProductChunk& p, bool first, bool last, void* stream) {
  return with_product(p, [&](auto of, auto blocks) {
    using T = decltype(of.per_tau);
    if (p.instances == Instances::audio)
      SSL_FAST_LAUNCH((audio_instances<T>), blocks(p.images * p.cells * kWarp), kThreads, stream, of);
    else
      SSL_FAST_LAUNCH((image_instances<T>), blocks(p.cells * p.audios), kThreads, stream, of, first, last);
  });
}

const char* product_scores(const ProductChunk& p, void* stream) {
  return with_product(p, [&](auto of, auto blocks) {
    SSL_FAST_LAUNCH((pair_scores<decltype(of.per_tau)>), blocks(p.images * p.audios), kThreads, stream, of);
  });
}

const char* product_shares(const ProductChunk& p, bool first, void* stream) {
  return with_product(p, [&](auto of, auto blocks) {
    using T = decltype(of.per_tau);
    if (p.instances == Instances::audio)
      SSL_FAST_LAUNCH((audio_shares<T>), blocks(p.images * p.cells * kWarp), kThreads, stream, of);
    else
      SSL_FAST_LAUNCH((image_shares<T>), blocks(p.cells * p.audios), kThreads, stream, of, first);
  });
}

const char* product_slopes(const ProductChunk& p, void* stream) {
  return with_product(p, [&](auto of, auto blocks) {
    using T = decltype(of.per_tau);
    const int64_t count = blocks(p.images * p.cells * stride_of(p.audios));
    if (p.dtype == DType::bfloat16)
      SSL_FAST_LAUNCH((pair_slopes<T, BFloat16>), count, kThreads, stream, of);
    else
      SSL_FAST_LAUNCH((pair_slopes<T, T>), count, kThreads, stream, of);
  });
}

}  // namespace ssl_fast::cuda
