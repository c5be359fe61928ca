// SLAVC's product of two softmaxes, from the cosines of a chunk of images (formulas: csrc/cpu/product.cpp). Each sum is
// taken by one warp or one thread, in order.
#include "common.cuh"
#include "kernels.h"

#include "../pooling.h"  // after the numbers it works on

namespace ssl_fast::cuda {
namespace {

// T: real. In: what a matrix of cosines holds.
template <class T, class In>
struct Product {
  ProductChunk p;
  T per_tau;

  struct Row {
    int64_t row, image, cell;
  };
  __device__ Row row_at(int64_t row) const { return {row, row / p.cells, row % p.cells}; }
  __device__ T cosine(const void* of, int64_t row, int64_t m) const {
    return value(static_cast<const In*>(of)[row * stride_of(p.audios) + m]);
  }
  __device__ T loc(int64_t row, int64_t m) const { return cosine(p.loc, row, m); }
  __device__ T avc(int64_t row, int64_t m) const { return cosine(p.avc, row, m); }
  // Where the instance softmax of a cell and an audio has its sums.
  __device__ int64_t instance(const Row& r, int64_t m) const {
    return p.instances == Instances::audio ? r.row : r.cell * p.audios + m;
  }
  __device__ T log_instance(const Row& r, int64_t m) const {
    const int64_t at = instance(r, m);
    return (avc(r.row, m) - static_cast<const T*>(p.instance_top)[at]) * per_tau -
           static_cast<const T*>(p.instance_log)[at];
  }
  __device__ T log_space(const Row& r, int64_t m) const {
    const int64_t pair = r.image * p.audios + m;
    return (loc(r.row, m) - static_cast<const T*>(p.space_top)[pair]) * per_tau -
           static_cast<const T*>(p.space_log)[pair];
  }
  __device__ T grad(const Row& r, int64_t m) const {
    return static_cast<const T*>(p.grad_scores)[r.image * p.audios + m];
  }
  // grad dS/da of a cell and a pair
  __device__ T share(const Row& r, int64_t m) const {
    const int64_t pair = r.image * p.audios + m;
    if (p.reduce == Reduce::max) return p.best[pair] == r.cell ? grad(r, m) : T(0);
    return grad(r, m) * exponential(log_instance(r, m) + log_space(r, m) - static_cast<const T*>(p.scores)[pair]);
  }
};

__device__ int64_t thread() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }

// Instances = audio: a warp takes one row. With bounds of one block, float64 spills no register on sm_120 for more
// occupancy.
template <class T, class In>
__global__ void __launch_bounds__(kThreads, 1) audio_instances(Product<T, In> of) {
  const int64_t row = thread() / kWarp;
  if (row >= of.p.images * of.p.cells) return;
  const LogSumExp<T, T> pool{of.per_tau};
  typename LogSumExp<T, T>::State state;
  for (int64_t m = threadIdx.x % kWarp; m < of.p.audios; m += kWarp) pool.absorb(state, of.avc(row, m));
  for (int apart = kWarp / 2; apart; apart /= 2)
    pool.merge(state, {__shfl_xor_sync(0xffffffffu, state.top, apart), __shfl_xor_sync(0xffffffffu, state.sum, apart)});
  if (threadIdx.x % kWarp) return;
  static_cast<T*>(of.p.instance_top)[row] = state.top;
  static_cast<T*>(of.p.instance_log)[row] = logarithm(state.sum);
}

// Instances = image: a thread takes one cell and audio, through the images of all chunks.
template <class T, class In>
__global__ void __launch_bounds__(kThreads) image_instances(Product<T, In> of, bool first, bool last) {
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

// A thread takes one pair, and reads each cosine once. Those of the first space count from the one of the first cell.
template <class T, class In>
__global__ void __launch_bounds__(kThreads) pair_scores(Product<T, In> of) {
  const int64_t pair = thread(), n = pair / of.p.audios, m = pair % of.p.audios, first = n * of.p.cells;
  if (pair >= of.p.images * of.p.audios) return;
  const bool sum = of.p.reduce == Reduce::sum;
  const T start = of.loc(first, m);
  const LogSumExp<T, T> in_space{of.per_tau}, in_product{1};
  typename LogSumExp<T, T>::State space, product;
  typename Max<T, T>::State best{T(-1e30), 0};
  for (int64_t cell = 0; cell < of.p.cells;) {
    typename LogSumExp<T, T>::State space_part, product_part;
    for (int i = 0; i < 16 && cell < of.p.cells; ++i, ++cell) {  // in two levels: less rounding error
      const T y = of.loc(first + cell, m) - start, x = of.log_instance({first + cell, n, cell}, m) + y * of.per_tau;
      in_space.absorb(space_part, y);
      if (sum)
        in_product.absorb(product_part, x);
      else
        Max<T, T>{}.absorb(best, x, int(cell));
    }
    in_space.merge(space, space_part);
    in_product.merge(product, product_part);
  }
  const T log = logarithm(space.sum);
  static_cast<T*>(of.p.space_top)[pair] = space.top + start;
  static_cast<T*>(of.p.space_log)[pair] = log;
  static_cast<T*>(of.p.scores)[pair] = (sum ? in_product.score(product) : best.best) - space.top * of.per_tau - log;
  if (!sum) of.p.best[pair] = best.cell;
}

// Instances = image: the shares of all of them, through all chunks.
template <class T, class In>
__global__ void __launch_bounds__(kThreads) image_shares(Product<T, In> of, bool first) {
  const int64_t at = thread(), cell = at / of.p.audios, m = at % of.p.audios;
  if (at >= of.p.cells * of.p.audios) return;
  T* sum = static_cast<T*>(of.p.shares) + at;
  T all = first ? T(0) : *sum;
  for (int64_t n = 0; n < of.p.images; ++n) all += of.share({n * of.p.cells + cell, n, cell}, m);
  *sum = all;
}

// d avc = (u - exp(a) R) / tau, d loc = (u - grad exp(log space)) / tau, over the lengths; R is the sum of the shares u
// of all instances. A warp takes one row, and puts the slopes in the place of the cosines.
template <class T, class In>
__global__ void __launch_bounds__(kThreads, 1) row_slopes(Product<T, In> of) {
  using Out = std::conditional_t<std::is_same_v<In, Cosine16>, BFloat16, In>;
  static_assert(sizeof(In) == sizeof(Out));
  const int64_t row = thread() / kWarp, stride = stride_of(of.p.audios);
  if (row >= of.p.images * of.p.cells) return;
  const auto r = of.row_at(row);
  const bool of_audio = of.p.instances == Instances::audio;
  T sum = 0;
  if (of_audio) {
    for (int64_t m = threadIdx.x % kWarp; m < of.p.audios; m += kWarp) sum += of.share(r, m);
    sum = sum_warp(sum);
  }
  auto put_slope = [&](void* matrix, int64_t m, T slope, const void* cell_norm, const void* audio_norm) {
    put(static_cast<Out*>(matrix) + row * stride + m,
        slope * of.per_tau * (static_cast<const T*>(cell_norm)[row] * static_cast<const T*>(audio_norm)[m]));
  };
  for (int64_t m = threadIdx.x % kWarp; m < of.p.audios; m += kWarp) {
    const T u = of.share(r, m), all = of_audio ? sum : static_cast<const T*>(of.p.shares)[of.instance(r, m)];
    const T loc = u - of.grad(r, m) * exponential(of.log_space(r, m)),
            avc = u - exponential(of.log_instance(r, m)) * all;
    put_slope(of.p.loc, m, loc, of.p.loc_cell_norm, of.p.loc_audio_norm);
    put_slope(of.p.avc, m, avc, of.p.avc_cell_norm, of.p.avc_audio_norm);
  }
}

// Calls f(T(), In(), Product<T, In>(), blocks for a given number of threads).
template <class F>
const char* with_product(const ProductChunk& p, F f) {
  auto blocks = [](int64_t threads) { return (threads + kThreads - 1) / kThreads; };
  auto call = [&](auto real, auto cosine) {
    using T = decltype(real);
    f(real, cosine, Product<T, decltype(cosine)>{p, T(1 / p.tau)}, blocks);
    return last_error();
  };
  if (p.dtype == DType::float64) return call(double(), double());
  return p.dtype == DType::bfloat16 ? call(float(), Cosine16()) : call(float(), float());
}

}  // namespace

const char* product_instances(const ProductChunk& p, bool first, bool last, void* stream) {
  return with_product(p, [&](auto real, auto cosine, auto of, auto blocks) {
    using T = decltype(real);
    using In = decltype(cosine);
    if (p.instances == Instances::audio)
      SSL_FAST_LAUNCH((audio_instances<T, In>), blocks(p.images * p.cells * kWarp), kThreads, stream, of);
    else
      SSL_FAST_LAUNCH((image_instances<T, In>), blocks(p.cells * p.audios), kThreads, stream, of, first, last);
  });
}

const char* product_scores(const ProductChunk& p, void* stream) {
  return with_product(p, [&](auto real, auto cosine, auto of, auto blocks) {
    SSL_FAST_LAUNCH((pair_scores<decltype(real), decltype(cosine)>), blocks(p.images * p.audios), kThreads, stream, of);
  });
}

const char* product_shares(const ProductChunk& p, bool first, void* stream) {
  return with_product(p, [&](auto real, auto cosine, auto of, auto blocks) {
    SSL_FAST_LAUNCH((image_shares<decltype(real), decltype(cosine)>), blocks(p.cells * p.audios), kThreads, stream, of,
                    first);
  });
}

const char* product_slopes(const ProductChunk& p, void* stream) {
  return with_product(p, [&](auto real, auto cosine, auto of, auto blocks) {
    SSL_FAST_LAUNCH((row_slopes<decltype(real), decltype(cosine)>), blocks(p.images * p.cells * kWarp), kThreads,
                    stream, of);
  });
}

}  // namespace ssl_fast::cuda
