// Gradients of a maximum, whose slope is 1 at one cell of a pair and 0 elsewhere: of each row, a sum of other rows. A
// warp adds up 512 bytes of a row, rows in order.
#include "common.cuh"
#include "kernels.h"

namespace ssl_fast::cuda {
namespace {

constexpr int kAhead = 4;  // groups of audios whose best cells are looked up at a time

// Warps that a row takes.
__host__ __device__ int64_t warps_of(int64_t slabs) { return (slabs * 64 + kWarp * 16 - 1) / (kWarp * 16); }

// A thread's share of a row: 16 bytes.
template <class S, class T>
struct Share {
  static constexpr int kCount = 16 / sizeof(S);
  int64_t width, row, channel;  // numbers of a row; the row and the first number that are this thread's
  bool there;                   // whether the row has such numbers
  T sums[kCount]{};

  __device__ explicit Share(int64_t slabs) : width(slabs * 64 / int(sizeof(S))) {
    const unsigned warp = blockIdx.x * kWarps + threadIdx.x / kWarp, of_row = unsigned(warps_of(slabs));
    row = warp / of_row, channel = (warp % of_row * kWarp + threadIdx.x % kWarp) * kCount;
    there = channel < width;
    if (!there) channel = 0;  // so that nothing depends on it until the end
  }
  __device__ void add(T weight, const void* rows, int64_t from) {
    using Values = Numbers<S, kCount>;
    const Values values = *reinterpret_cast<const Values*>(static_cast<const S*>(rows) + from * width + channel);
    for (int i = 0; i < kCount; ++i) sums[i] += weight * T(value(values.at[i]));
  }
  // to = f(to, sum), in a matrix of such rows
  template <class Y, class F>
  __device__ void finish(Y* to, F f) const {
    if (!there) return;
    auto* place = reinterpret_cast<Numbers<Y, kCount>*>(to + row * width + channel);
    Numbers<Y, kCount> numbers = *place;
    for (int i = 0; i < kCount; ++i) put(&numbers.at[i], f(numbers.at[i], sums[i]));
    *place = numbers;
  }
};

// Of each cell, over the audios whose best cell it is.
template <class S, class Y, class T>
__global__ void __launch_bounds__(kThreads)
    gather_visual_kernel(PairsParams p, const T* grad_scores, const int32_t* best, Y* gradient) {
  Share<S, T> share(p.slabs);
  if (share.row >= p.images * p.cells) return;
  const int64_t n = unsigned(share.row) / unsigned(p.cells), cell = share.row - n * p.cells;
  for (int64_t start = 0; start < p.audios; start += kAhead * kWarp) {
    bool hit[kAhead];
    T weight[kAhead];
    for (int i = 0; i < kAhead; ++i) {
      const int64_t m = start + i * kWarp + threadIdx.x % kWarp, pair = n * p.audios + m;
      hit[i] = m < p.audios && best[pair] == cell;
      weight[i] = hit[i] ? grad_scores[pair] * static_cast<const T*>(p.audio_norm)[m] : T(0);
    }
    for (int i = 0; i < kAhead; ++i)
      for (unsigned hits = __ballot_sync(0xffffffffu, hit[i]); hits; hits &= hits - 1) {
        const int of = __ffs(hits) - 1;
        share.add(__shfl_sync(0xffffffffu, weight[i], of), p.audio_rows, start + i * kWarp + of);
      }
  }
  const T norm = static_cast<const T*>(p.cell_norm)[share.row];
  share.finish(gradient, [&](Y, T sum) { return sum * norm; });
}

// Of each audio, over the images.
template <class S, class T>
__global__ void __launch_bounds__(kThreads)
    gather_audio_kernel(PairsParams p, const T* grad_scores, const int32_t* best, T* sums) {
  Share<S, T> share(p.slabs);
  if (share.row >= p.audios) return;
  const T norm = static_cast<const T*>(p.audio_norm)[share.row];
  for (int64_t first = 0; first < p.images; first += kWarp) {
    const int64_t n = first + threadIdx.x % kWarp, pair = n * p.audios + share.row;
    int cell = 0;
    T weight = 0;
    if (n < p.images) {
      cell = best[pair];
      weight = grad_scores[pair] * static_cast<const T*>(p.cell_norm)[n * p.cells + cell] * norm;
    }
    const int count = p.images - first < kWarp ? int(p.images - first) : kWarp;
#pragma unroll 8
    for (int of = 0; of < count; ++of)
      share.add(__shfl_sync(0xffffffffu, weight, of), p.cell_rows,
                (first + of) * p.cells + __shfl_sync(0xffffffffu, cell, of));
  }
  share.finish(sums, [](T before, T sum) { return before + sum; });
}

int64_t blocks(int64_t rows, int64_t slabs) { return (rows * warps_of(slabs) + kWarps - 1) / kWarps; }

}  // namespace

const char* max_backward_visual(const PairsParams& p, const void* grad_scores, const int32_t* best, void* gradient,
                                bool real_gradient, void* stream) {
  return with_types(p.dtype, [&](auto stored, auto computed) {
    using S = decltype(stored);
    using T = decltype(computed);
    const auto* grad = static_cast<const T*>(grad_scores);
    const int64_t count = blocks(p.images * p.cells, p.slabs);
    if (real_gradient)
      SSL_FAST_LAUNCH((gather_visual_kernel<S, T, T>), count, kThreads, stream, p, grad, best,
                      static_cast<T*>(gradient));
    else
      SSL_FAST_LAUNCH((gather_visual_kernel<S, S, T>), count, kThreads, stream, p, grad, best,
                      static_cast<S*>(gradient));
    return last_error();
  });
}

const char* max_backward_audio(const PairsParams& p, const void* grad_scores, const int32_t* best, void* sums,
                               void* stream) {
  return with_types(p.dtype, [&](auto stored, auto computed) {
    using S = decltype(stored);
    using T = decltype(computed);
    SSL_FAST_LAUNCH((gather_audio_kernel<S, T>), blocks(p.audios, p.slabs), kThreads, stream, p,
                    static_cast<const T*>(grad_scores), best, static_cast<T*>(sums));
    return last_error();
  });
}

}  // namespace ssl_fast::cuda
