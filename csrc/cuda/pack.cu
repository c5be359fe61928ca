// Features as rows for the tile engine and for products of matrices, and gradients of rows as gradients of features. A
// block takes kWarp cells; where channels come first it turns 64 channels at a time in shared memory, so that
// neighbouring threads read and write neighbouring memory.
#include "kernels.h"
#include "ptx.cuh"

namespace ssl_fast::cuda {
namespace {

constexpr int kTurned = 64;  // channels
template <class S>
constexpr int kApart = sizeof(S) == 2 ? 2 : 1;  // so that a channel of neighbouring cells lies in different banks

// Lanes over channels of a cell and warps over cells (by_row), or the other way round, of channels [first, end).
template <class F>
__device__ void by_row(int cells, int64_t first, int64_t end, F f) {
  for (int cell = threadIdx.x / kWarp; cell < cells; cell += kWarps)
    for (int64_t c = first + threadIdx.x % kWarp; c < end; c += kWarp) f(cell, c);
}
template <class F>
__device__ void by_channel(int cells, int64_t first, int64_t end, F f) {
  const int cell = threadIdx.x % kWarp;
  if (cell < cells)
    for (int64_t c = first + threadIdx.x / kWarp; c < end; c += kWarps) f(cell, c);
}

template <class S>
__device__ S stored(S x, bool tf32) {
  if constexpr (std::is_same_v<S, float>)
    if (tf32) return round_to_tf32(x);
  return x;
}

// The cells of a block: `count` of them from `cell` of image n on, which are rows from `row` on.
struct Block {
  int64_t n, cell, row;
  int count;
  __device__ Block(const Shape& s) {
    const int64_t per_image = (s.cells + kWarp - 1) / kWarp, left = s.cells - blockIdx.x % per_image * kWarp;
    n = blockIdx.x / per_image, cell = s.cells - left, row = n * s.cells + cell;
    count = left < kWarp ? int(left) : kWarp;
  }
};

template <bool kLast, class S, class T>
__global__ void __launch_bounds__(kThreads) pack_kernel(RowsParams p) {
  __shared__ S turned[kLast ? 1 : kWarp][kTurned + kApart<S>];
  __shared__ T squares[kWarps][kWarp];
  const Block block(p.shape);
  const int64_t channels = p.shape.channels, width = p.slabs * 64 / int(sizeof(S));
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const S* from = static_cast<const S*>(p.features) + block.n * channels * p.shape.cells;
  S* rows = static_cast<S*>(p.rows) + block.row * width;
  T* norms = static_cast<T*>(p.inverse_norm) + block.row;
  if (kLast) {
    for (int cell = warp; cell < block.count; cell += kWarps) {
      T square = 0;
      for (int64_t c = lane; c < width; c += kWarp) {
        S x{};
        if (c < channels) x = from[(block.cell + cell) * channels + c];
        square += T(value(x)) * T(value(x));
        if (p.rows) rows[cell * width + c] = stored(x, p.tf32);
      }
      square = sum_warp(square);
      if (lane == 0 && p.inverse_norm) norms[cell] = inverse_length(square);
    }
    return;
  }
  T square = 0;
  for (int64_t first = 0; first < width; first += kTurned) {
    const int64_t end = first + kTurned < width ? first + kTurned : width;
    by_channel(block.count, first, end, [&](int cell, int64_t c) {
      S x{};
      if (c < channels) x = from[c * p.shape.cells + block.cell + cell];
      square += T(value(x)) * T(value(x));
      turned[cell][c - first] = stored(x, p.tf32);
    });
    __syncthreads();
    by_row(block.count, first, end, [&](int cell, int64_t c) { rows[cell * width + c] = turned[cell][c - first]; });
    __syncthreads();
  }
  squares[warp][lane] = square;
  __syncthreads();
  if (warp || lane >= block.count || !p.inverse_norm) return;
  for (int w = 1; w < kWarps; ++w) square += squares[w][lane];
  norms[lane] = inverse_length(square);
}

// out = y - x (x . y) / |x|^2, with rows x and y
template <bool kLast, class S, class Y, class T>
__global__ void __launch_bounds__(kThreads) unpack_kernel(RowsParams p, const Y* gradient) {
  [[maybe_unused]] __shared__ S turned[kLast ? 1 : kWarp][kTurned + kApart<S>];
  __shared__ T losses[kWarp];
  const Block block(p.shape);
  const int64_t channels = p.shape.channels, width = p.slabs * 64 / int(sizeof(S));
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  S* to = static_cast<S*>(p.features) + block.n * channels * p.shape.cells;
  const S* rows = static_cast<const S*>(p.rows) + block.row * width;
  const Y* gradients = gradient + block.row * width;
  auto x = [&](int cell, int64_t c) { return T(value(rows[cell * width + c])); };
  auto y = [&](int cell, int64_t c) { return T(value(gradients[cell * width + c])); };
  for (int cell = warp; cell < block.count; cell += kWarps) {
    T dot = 0;
    for (int64_t c = lane; c < channels; c += kWarp) dot += x(cell, c) * y(cell, c);
    const T inverse = static_cast<const T*>(p.inverse_norm)[block.row + cell];
    dot = sum_warp(dot) * inverse * inverse;
    if (lane == 0) losses[cell] = dot;
  }
  __syncthreads();
  if constexpr (kLast) {
    by_row(block.count, 0, channels, [&](int cell, int64_t c) {
      put(to + (block.cell + cell) * channels + c, y(cell, c) - losses[cell] * x(cell, c));
    });
  } else {
    for (int64_t first = 0; first < channels; first += kTurned) {
      const int64_t end = first + kTurned < channels ? first + kTurned : channels;
      by_row(block.count, first, end,
             [&](int cell, int64_t c) { put(&turned[cell][c - first], y(cell, c) - losses[cell] * x(cell, c)); });
      __syncthreads();
      by_channel(block.count, first, end,
                 [&](int cell, int64_t c) { to[c * p.shape.cells + block.cell + cell] = turned[cell][c - first]; });
      __syncthreads();
    }
  }
}

int64_t blocks_of(const Shape& s) { return s.images * ((s.cells + kWarp - 1) / kWarp); }

// Where channels come last, all cells are as those of one image.
RowsParams joined(RowsParams p) {
  if (p.shape.channels_last) p.shape.cells *= p.shape.images, p.shape.images = 1;
  return p;
}

}  // namespace

const char* pack(const RowsParams& params, void* stream) {
  const RowsParams p = joined(params);
  return with_layout(p.shape, [&](auto last, auto stored, auto computed) {
    using S = decltype(stored);
    SSL_FAST_LAUNCH((pack_kernel<decltype(last)::value, S, decltype(computed)>), blocks_of(p.shape), kThreads, stream,
                    p);
    return last_error();
  });
}

const char* unpack(const RowsParams& params, const void* gradient, bool real_gradient, void* stream) {
  const RowsParams p = joined(params);
  return with_layout(p.shape, [&](auto last, auto stored, auto computed) {
    using S = decltype(stored);
    using T = decltype(computed);
    constexpr bool kLast = decltype(last)::value;
    if (real_gradient)
      SSL_FAST_LAUNCH((unpack_kernel<kLast, S, T, T>), blocks_of(p.shape), kThreads, stream, p,
                      static_cast<const T*>(gradient));
    else
      SSL_FAST_LAUNCH((unpack_kernel<kLast, S, S, T>), blocks_of(p.shape), kThreads, stream, p,
                      static_cast<const S*>(gradient));
    return last_error();
  });
}

}  // namespace ssl_fast::cuda
