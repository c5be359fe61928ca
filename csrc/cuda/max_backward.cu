// Backward pass of the max pooling. Its gradient is g[n, m] at the argmax cell of a pair and 0 at all others, so each
// gradient row is a weighted sum of gathered rows; v and a are the packed cells and audios:
//
//   max_backward_visual   D[n, p] = 1 / |v[n, p]| sum over m with argmax[n, m] = p of g[n, m] a[m] / |a[m]|
//   max_backward_audio    dA[m] += 1 / |a[m]| sum_n g[n, m] v[n, argmax[n, m]] / |v[n, argmax[n, m]]|
//
// These are gradients with respect to the unit vectors, divided by the norms of the vectors; unpack (pack.cu) projects
// them.
//
//   Inputs   g real (N, M), argmax int32 (N, M), packed rows (kernels.h): audios (M, K), cells (N * P, K)
//   Output   D (N * P, K) in the storage type or real; dA (M, K) real, accumulated into
//   Grid     for each output row a warp for each 512 bytes of a packed row, 8 warps a block; no shared memory
//
// No atomics: a lane owns the elements of 16 bytes of a packed row and adds its terms in order.
#include "common.cuh"
#include "kernels.h"

namespace ssl_fast::cuda {
namespace {

constexpr int kUnroll = 4;  // warp-wide argmax loads in flight

__host__ __device__ int64_t warps_per_row(int64_t k_blocks) {
  return (k_blocks * 64 + kWarpSize * 16 - 1) / (kWarpSize * 16);
}

// The part of an output row that one thread accumulates: the elements of 16 bytes of a packed row.
template <class S, class T>
struct RowSlice {
  static constexpr int kCount = 16 / sizeof(S);
  int64_t width;         // elements of a packed row
  int64_t row, channel;  // of the first element
  bool active;           // channel < width
  T acc[kCount]{};

  __device__ explicit RowSlice(int64_t k_blocks) : width(k_blocks * 64 / int(sizeof(S))) {
    const unsigned warp = blockIdx.x * kWarps + threadIdx.x / kWarpSize, per_row = unsigned(warps_per_row(k_blocks));
    row = warp / per_row, channel = (warp % per_row * kWarpSize + threadIdx.x % kWarpSize) * kCount;
    active = channel < width;
    if (!active) channel = 0;  // loads stay in bounds without a predicate; update() drops the result
  }
  __device__ void add(T weight, const void* packed, int64_t from_row) {
    using Vector = AlignedVector<S, kCount>;
    const Vector values = *reinterpret_cast<const Vector*>(static_cast<const S*>(packed) + from_row * width + channel);
    for (int i = 0; i < kCount; ++i) acc[i] += weight * T(value(values.at[i]));
  }
  // to = f(to, acc), in a matrix of such rows
  template <class Y, class F>
  __device__ void update(Y* to, F f) const {
    if (!active) return;
    auto* slice = reinterpret_cast<AlignedVector<Y, kCount>*>(to + row * width + channel);
    AlignedVector<Y, kCount> values = *slice;
    for (int i = 0; i < kCount; ++i) put(&values.at[i], f(values.at[i], acc[i]));
    *slice = values;
  }
};

// One output row per cell: lanes test 32 audios at a time, and a ballot picks those whose argmax is this cell.
template <class S, class Y, class T>
__global__ void __launch_bounds__(kThreads)
    gather_visual_kernel(PairsParams p, const T* grad_scores, const int32_t* argmax, Y* gradient) {
  RowSlice<S, T> slice(p.k_blocks);
  if (slice.row >= p.images * p.cells) return;
  const int64_t n = unsigned(slice.row) / unsigned(p.cells), cell = slice.row - n * p.cells;
  for (int64_t start = 0; start < p.audios; start += kUnroll * kWarpSize) {
    bool hit[kUnroll];
    T weight[kUnroll];
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t m = start + i * kWarpSize + threadIdx.x % kWarpSize, pair = n * p.audios + m;
      hit[i] = m < p.audios && argmax[pair] == cell;
      weight[i] = hit[i] ? grad_scores[pair] * static_cast<const T*>(p.audio_norm)[m] : T(0);
    }
    for (int i = 0; i < kUnroll; ++i)
      for (unsigned hits = __ballot_sync(0xffffffffu, hit[i]); hits; hits &= hits - 1) {
        const int lane = __ffs(hits) - 1;
        slice.add(__shfl_sync(0xffffffffu, weight[i], lane), p.packed_audios, start + i * kWarpSize + lane);
      }
  }
  const T norm = static_cast<const T*>(p.cell_norm)[slice.row];
  slice.update(gradient, [&](Y, T sum) { return sum * norm; });
}

// One output row per audio: lanes load the argmax cells of 32 images at a time and broadcast them in order.
template <class S, class T>
__global__ void __launch_bounds__(kThreads)
    gather_audio_kernel(PairsParams p, const T* grad_scores, const int32_t* argmax, T* sums) {
  RowSlice<S, T> slice(p.k_blocks);
  if (slice.row >= p.audios) return;
  const T norm = static_cast<const T*>(p.audio_norm)[slice.row];
  for (int64_t first = 0; first < p.images; first += kWarpSize) {
    const int64_t n = first + threadIdx.x % kWarpSize, pair = n * p.audios + slice.row;
    int cell = 0;
    T weight = 0;
    if (n < p.images) {
      cell = argmax[pair];
      weight = grad_scores[pair] * static_cast<const T*>(p.cell_norm)[n * p.cells + cell] * norm;
    }
    const int count = p.images - first < kWarpSize ? int(p.images - first) : kWarpSize;
#pragma unroll 8
    for (int lane = 0; lane < count; ++lane)
      slice.add(__shfl_sync(0xffffffffu, weight, lane), p.packed_cells,
                (first + lane) * p.cells + __shfl_sync(0xffffffffu, cell, lane));
  }
  slice.update(sums, [](T before, T sum) { return before + sum; });
}

int64_t blocks(int64_t rows, int64_t k_blocks) { return (rows * warps_per_row(k_blocks) + kWarps - 1) / kWarps; }

}  // namespace

const char* max_backward_visual(const PairsParams& p, const void* grad_scores, const int32_t* argmax, void* gradient,
                                bool real_gradient, void* stream) {
  return with_types(p.dtype, [&](auto stored, auto computed) {
    using S = decltype(stored);
    using T = decltype(computed);
    const auto* grad = static_cast<const T*>(grad_scores);
    const int64_t count = blocks(p.images * p.cells, p.k_blocks);
    if (real_gradient)
      SSL_FAST_LAUNCH((gather_visual_kernel<S, T, T>), count, kThreads, stream, p, grad, argmax,
                      static_cast<T*>(gradient));
    else
      SSL_FAST_LAUNCH((gather_visual_kernel<S, S, T>), count, kThreads, stream, p, grad, argmax,
                      static_cast<S*>(gradient));
    return last_error();
  });
}

const char* max_backward_audio(const PairsParams& p, const void* grad_scores, const int32_t* argmax, void* sums,
                               void* stream) {
  return with_types(p.dtype, [&](auto stored, auto computed) {
    using S = decltype(stored);
    using T = decltype(computed);
    SSL_FAST_LAUNCH((gather_audio_kernel<S, T>), blocks(p.audios, p.k_blocks), kThreads, stream, p,
                    static_cast<const T*>(grad_scores), argmax, static_cast<T*>(sums));
    return last_error();
  });
}

}  // namespace ssl_fast::cuda
