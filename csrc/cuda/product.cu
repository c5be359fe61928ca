// SLAVC's product of two softmaxes, from matrices of cosines loc and avc of a chunk of images:
//
//   a[n,m,p] = avc - tau log-sum-exp of avc / tau over instances: audios m, or images n
//   b[n,m,p] = loc - tau log-sum-exp of loc / tau over cells p
//   S[n,m]   = log-sum-exp, or maximum, of (a + b) / tau over p
//
// Backward, with u = grad S, softmax-weighted or at the argmax cell alone, and R the sum of u over instances:
//   d avc = (u - exp(a / tau) R) / tau,   d loc = (u - grad S exp(b / tau)) / tau,   each divided by the norms of both
//   vectors
//
// What is divided by a small tau are differences of cosines from their maximum, rounded alike in both passes.
//
//   Matrices   loc, avc (N * P, M), row stride stride_of(M); float32, float64 or, of bfloat16 features, Cosine16.
//              row_slopes writes the gradients (for Cosine16 bfloat16), which may take their place
//   Softmaxes  real: of the instances, (N * P) or (P, M), maximum and tau times the log of the sum; (N, M), of loc and
//              of a + loc relative to its maximum, maximum and log of the sum
//   Scores     S, grad S real (N, M)
//   Grid       one-dimensional, 256 threads a block, no shared memory:
//                row_instances, row_slopes     a warp for each row of a matrix
//                image_instances, image_sums   a thread for each (p, m); accumulated over all chunks
//                pair_scores                   a thread for each (n, m)
//
// No atomics: every sum is taken by one warp or one thread, in order.
#include "common.cuh"
#include "kernels.h"

#include "../pooling.h"  // after the math functions it calls

namespace ssl_fast::cuda {
namespace {

// T: real. In: element of a matrix of cosines.
template <class T, class In>
struct Product {
  ProductChunk p;
  T tau, per_tau;

  struct Row {
    int64_t row, image, cell;
  };
  __device__ Row row_at(int64_t row) const { return {row, row / p.cells, row % p.cells}; }
  __device__ T cosine(const void* matrix, int64_t row, int64_t m) const {
    return value(static_cast<const In*>(matrix)[row * stride_of(p.audios) + m]);
  }
  __device__ T loc(int64_t row, int64_t m) const { return cosine(p.loc, row, m); }
  __device__ T avc(int64_t row, int64_t m) const { return cosine(p.avc, row, m); }
  // Index of the instance softmax that a cell and an audio belong to.
  __device__ int64_t instance_index(const Row& r, int64_t m) const {
    return p.instances == Instances::audio ? r.row : r.cell * p.audios + m;
  }
  // a
  __device__ T log_instance(const Row& r, int64_t m) const {
    const int64_t i = instance_index(r, m);
    return (avc(r.row, m) - static_cast<const T*>(p.instance_top)[i]) - static_cast<const T*>(p.instance_log)[i];
  }
  // loc, relative to its maximum over the cells
  __device__ T below_top(const Row& r, int64_t m) const {
    return loc(r.row, m) - static_cast<const T*>(p.loc_top)[r.image * p.audios + m];
  }
  __device__ T grad_score(const Row& r, int64_t m) const {
    return static_cast<const T*>(p.grad_scores)[r.image * p.audios + m];
  }
  // u
  __device__ T grad_log_instance(const Row& r, int64_t m) const {
    const int64_t pair = r.image * p.audios + m;
    if (p.reduce == Reduce::max) return p.argmax[pair] == r.cell ? grad_score(r, m) : T(0);
    const T x = log_instance(r, m) + below_top(r, m) - static_cast<const T*>(p.top)[pair];
    return grad_score(r, m) * exponential(x * per_tau - static_cast<const T*>(p.log)[pair]);
  }
};

__device__ int64_t global_thread() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }

// Instances = audio: softmax over a row. Launch bounds of one block an SM: for more occupancy float64 would spill
// registers on sm_120.
template <class T, class In>
__global__ void __launch_bounds__(kThreads, 1) row_instances(Product<T, In> chunk) {
  const int64_t row = global_thread() / kWarpSize;
  if (row >= chunk.p.images * chunk.p.cells) return;
  const LogSumExp<T, T> pool{chunk.per_tau};
  typename LogSumExp<T, T>::State state;
  for (int64_t m = threadIdx.x % kWarpSize; m < chunk.p.audios; m += kWarpSize) pool.absorb(state, chunk.avc(row, m));
  for (int lane_mask = kWarpSize / 2; lane_mask; lane_mask /= 2)
    pool.merge(state, {__shfl_xor_sync(0xffffffffu, state.top, lane_mask),
                       __shfl_xor_sync(0xffffffffu, state.sum, lane_mask)});
  if (threadIdx.x % kWarpSize) return;
  static_cast<T*>(chunk.p.instance_top)[row] = state.top;
  static_cast<T*>(chunk.p.instance_log)[row] = logarithm(state.sum) * chunk.tau;
}

// Instances = image: softmax over the images of all chunks; instance_log holds the plain sum until the last chunk.
template <class T, class In>
__global__ void __launch_bounds__(kThreads) image_instances(Product<T, In> chunk, bool first, bool last) {
  const int64_t i = global_thread();
  if (i >= chunk.p.cells * chunk.p.audios) return;
  T *top = static_cast<T*>(chunk.p.instance_top) + i, *log = static_cast<T*>(chunk.p.instance_log) + i;
  const LogSumExp<T, T> pool{chunk.per_tau};
  typename LogSumExp<T, T>::State state;
  if (!first) state = {*top, *log};
  for (int64_t n = 0; n < chunk.p.images; ++n)
    pool.absorb(state, chunk.avc(n * chunk.p.cells + i / chunk.p.audios, i % chunk.p.audios));
  *top = state.top, *log = last ? logarithm(state.sum) * chunk.tau : state.sum;
}

template <class T, class In>
__global__ void __launch_bounds__(kThreads, 1) pair_scores(Product<T, In> chunk) {
  const int64_t pair = global_thread(), n = pair / chunk.p.audios, m = pair % chunk.p.audios, first = n * chunk.p.cells;
  if (pair >= chunk.p.images * chunk.p.audios) return;
  T loc_top = chunk.loc(first, m);
  for (int64_t cell = 1; cell < chunk.p.cells; ++cell) {
    const T loc = chunk.loc(first + cell, m);
    loc_top = loc > loc_top ? loc : loc_top;
  }
  static_cast<T*>(chunk.p.loc_top)[pair] = loc_top;
  const bool sum = chunk.p.reduce == Reduce::sum;
  const LogSumExp<T, T> pool{chunk.per_tau};
  typename LogSumExp<T, T>::State state;
  typename Max<T, T>::State best{T(-1e30), 0};
  T space = 0;
  for (int64_t cell = 0; cell < chunk.p.cells;) {  // three-level summation: less rounding error
    typename LogSumExp<T, T>::State of_group;
    T space_of_group = 0;
    for (int64_t end = cell + 512; cell < end && cell < chunk.p.cells;) {
      typename LogSumExp<T, T>::State of_block;
      T space_of_block = 0;
      for (int i = 0; i < 16 && cell < chunk.p.cells; ++i, ++cell) {
        const typename Product<T, In>::Row r{first + cell, n, cell};
        const T y = chunk.below_top(r, m), x = chunk.log_instance(r, m) + y;
        space_of_block += exponential(y * chunk.per_tau);
        if (sum)
          pool.absorb(of_block, x);
        else
          Max<T, T>{}.absorb(best, x, int(cell));
      }
      space_of_group += space_of_block;
      pool.merge(of_group, of_block);
    }
    space += space_of_group;
    pool.merge(state, of_group);
  }
  const T top = sum ? state.top : best.best, log = sum ? logarithm(state.sum) : T(0), loc_log = logarithm(space);
  static_cast<T*>(chunk.p.loc_log)[pair] = loc_log;
  static_cast<T*>(chunk.p.top)[pair] = top;
  static_cast<T*>(chunk.p.log)[pair] = log;
  static_cast<T*>(chunk.p.scores)[pair] = top * chunk.per_tau - loc_log + log;
  if (!sum) chunk.p.argmax[pair] = best.cell;
}

// Instances = image: R, accumulated over the images of all chunks.
template <class T, class In>
__global__ void __launch_bounds__(kThreads) image_sums(Product<T, In> chunk, bool first) {
  const int64_t i = global_thread(), cell = i / chunk.p.audios, m = i % chunk.p.audios;
  if (i >= chunk.p.cells * chunk.p.audios) return;
  T* grad_sum = static_cast<T*>(chunk.p.grad_sums) + i;
  T sum = first ? T(0) : *grad_sum;
  for (int64_t n = 0; n < chunk.p.images; ++n) sum += chunk.grad_log_instance({n * chunk.p.cells + cell, n, cell}, m);
  *grad_sum = sum;
}

// d avc and d loc.
template <class T, class In>
__global__ void __launch_bounds__(kThreads, 1) row_slopes(Product<T, In> chunk) {
  using Out = std::conditional_t<std::is_same_v<In, Cosine16>, BFloat16, In>;
  static_assert(sizeof(In) == sizeof(Out));
  const int64_t row = global_thread() / kWarpSize, stride = stride_of(chunk.p.audios);
  if (row >= chunk.p.images * chunk.p.cells) return;
  const auto r = chunk.row_at(row);
  const bool over_audios = chunk.p.instances == Instances::audio;
  T row_sum = 0;
  if (over_audios) {
    for (int64_t m = threadIdx.x % kWarpSize; m < chunk.p.audios; m += kWarpSize)
      row_sum += chunk.grad_log_instance(r, m);
    row_sum = warp_sum(row_sum);
  }
  auto put_slope = [&](void* matrix, int64_t m, T slope, const void* cell_norm, const void* audio_norm) {
    put(static_cast<Out*>(matrix) + row * stride + m,
        slope * chunk.per_tau * (static_cast<const T*>(cell_norm)[row] * static_cast<const T*>(audio_norm)[m]));
  };
  for (int64_t m = chunk.p.audios + threadIdx.x % kWarpSize; m < stride; m += kWarpSize)
    for (void* matrix : {chunk.p.loc_slopes, chunk.p.avc_slopes})
      put(static_cast<Out*>(matrix) + row * stride + m, T(0));
  for (int64_t m = threadIdx.x % kWarpSize; m < chunk.p.audios; m += kWarpSize) {
    const T u = chunk.grad_log_instance(r, m);
    const T sum = over_audios ? row_sum : static_cast<const T*>(chunk.p.grad_sums)[chunk.instance_index(r, m)];
    const T log = static_cast<const T*>(chunk.p.loc_log)[r.image * chunk.p.audios + m];
    const T loc = u - chunk.grad_score(r, m) * exponential(chunk.below_top(r, m) * chunk.per_tau - log);
    const T avc = u - exponential(chunk.log_instance(r, m) * chunk.per_tau) * sum;
    put_slope(chunk.p.loc_slopes, m, loc, chunk.p.loc_cell_norm, chunk.p.loc_audio_norm);
    put_slope(chunk.p.avc_slopes, m, avc, chunk.p.avc_cell_norm, chunk.p.avc_audio_norm);
  }
}

// Calls f(T(), In(), Product<T, In>(), blocks for a given number of threads).
template <class F>
const char* with_product(const ProductChunk& p, F f) {
  auto blocks = [](int64_t threads) { return (threads + kThreads - 1) / kThreads; };
  auto call = [&](auto real, auto cosine) {
    using T = decltype(real);
    f(real, cosine, Product<T, decltype(cosine)>{p, T(p.tau), T(1 / p.tau)}, blocks);
    return last_error();
  };
  if (p.dtype == DType::float64) return call(double(), double());
  return p.dtype == DType::bfloat16 ? call(float(), Cosine16()) : call(float(), float());
}

}  // namespace

const char* product_instances(const ProductChunk& p, bool first, bool last, void* stream) {
  return with_product(p, [&](auto real, auto cosine, auto chunk, auto blocks) {
    using T = decltype(real);
    using In = decltype(cosine);
    if (p.instances == Instances::audio)
      SSL_FAST_LAUNCH((row_instances<T, In>), blocks(p.images * p.cells * kWarpSize), kThreads, stream, chunk);
    else
      SSL_FAST_LAUNCH((image_instances<T, In>), blocks(p.cells * p.audios), kThreads, stream, chunk, first, last);
  });
}

const char* product_scores(const ProductChunk& p, void* stream) {
  return with_product(p, [&](auto real, auto cosine, auto chunk, auto blocks) {
    SSL_FAST_LAUNCH((pair_scores<decltype(real), decltype(cosine)>), blocks(p.images * p.audios), kThreads, stream,
                    chunk);
  });
}

const char* product_grad_sums(const ProductChunk& p, bool first, void* stream) {
  return with_product(p, [&](auto real, auto cosine, auto chunk, auto blocks) {
    SSL_FAST_LAUNCH((image_sums<decltype(real), decltype(cosine)>), blocks(p.cells * p.audios), kThreads, stream, chunk,
                    first);
  });
}

const char* product_slopes(const ProductChunk& p, void* stream) {
  return with_product(p, [&](auto real, auto cosine, auto chunk, auto blocks) {
    SSL_FAST_LAUNCH((row_slopes<decltype(real), decltype(cosine)>), blocks(p.images * p.cells * kWarpSize), kThreads,
                    stream, chunk);
  });
}

}  // namespace ssl_fast::cuda
