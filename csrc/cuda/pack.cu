// Packing of features into GEMM operands, and the backward pass of the normalisation on the way back.
//
//   pack     packed[p, k] = x[p, k], zero-padded to k_blocks * 64 bytes, float32 optionally rounded to tf32
//            inverse_norm[p] = 1 / |x[p]|
//   unpack   grad_x[p, k] = y[p, k] - x[p, k] (x[p] . y[p]) / |x[p]|^2, where y, times `scale`, is the gradient with
//            respect to the unit vector, divided by |x[p]|
//
//   Features      (N, C, P) or, channels last, (N, P, C), storage type
//   Packed, y     (N * P, k_blocks * 64 bytes), K contiguous, aligned to 16 bytes; y in the storage type or real
//   inverse_norm  real (N * P)
//   Grid          a block for each 32 cells of an image, 256 threads; channels last, of all images as one. The blocks
//                 of the audios follow those of the cells in one launch of pack
//   Shared        static: where channels come first, 64 channels of 32 cells at a time are transposed, so that global
//                 loads and stores are both coalesced
#include "kernels.h"
#include "ptx.cuh"

namespace ssl_fast::cuda {
namespace {

constexpr int kTransposedChannels = 64;
template <class S>
constexpr int kPad = sizeof(S) == 2 ? 2 : 1;  // elements; conflict-free access to a channel of neighbouring cells

// f(cell, channel) for channels [first, end): lanes over channels and warps over cells, or lanes over cells and warps
// over channels.
template <class F>
__device__ void lanes_over_channels(int cells, int64_t first, int64_t end, F f) {
  for (int cell = threadIdx.x / kWarpSize; cell < cells; cell += kWarps)
    for (int64_t c = first + threadIdx.x % kWarpSize; c < end; c += kWarpSize) f(cell, c);
}
template <class F>
__device__ void lanes_over_cells(int cells, int64_t first, int64_t end, F f) {
  const int cell = threadIdx.x % kWarpSize;
  if (cell < cells)
    for (int64_t c = first + threadIdx.x / kWarpSize; c < end; c += kWarps) f(cell, c);
}

// The block's cells: `count` of them from `cell` of image n on, packed as rows from `row` on.
struct CellTile {
  int64_t n, cell, row;
  int count;
  __device__ CellTile(const Shape& s, unsigned block) {
    const int64_t per_image = (s.cells + kWarpSize - 1) / kWarpSize;
    const int64_t left = s.cells - block % per_image * kWarpSize;
    n = block / per_image, cell = s.cells - left, row = n * s.cells + cell;
    count = left < kWarpSize ? int(left) : kWarpSize;
  }
};

template <bool kChannelsLast, class S, class T>
__device__ void pack_tile(const PackParams& p, unsigned block) {
  __shared__ S transposed[kChannelsLast ? 1 : kWarpSize][kTransposedChannels + kPad<S>];
  __shared__ T squares[kWarps][kWarpSize];
  const CellTile tile(p.shape, block);
  const int64_t channels = p.shape.channels, width = p.k_blocks * 64 / int(sizeof(S));
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const S* features = static_cast<const S*>(p.features) + tile.n * channels * p.shape.cells;
  S* packed = static_cast<S*>(p.packed) + tile.row * width;
  T* norms = static_cast<T*>(p.inverse_norm) + tile.row;
  if (kChannelsLast) {
    for (int cell = warp; cell < tile.count; cell += kWarps) {
      T square = 0;
      for (int64_t c = lane; c < width; c += kWarpSize) {
        S x{};
        if (c < channels) x = features[(tile.cell + cell) * channels + c];
        square += T(value(x)) * T(value(x));
        if (p.packed) packed[cell * width + c] = mma_operand(x, p.tf32);
      }
      square = warp_sum(square);
      if (lane == 0 && p.inverse_norm) norms[cell] = p.shape.normalized ? safe_rsqrt<S>(square) : T(1);
    }
    return;
  }
  T square = 0;
  for (int64_t first = 0; first < width; first += kTransposedChannels) {
    const int64_t end = first + kTransposedChannels < width ? first + kTransposedChannels : width;
    lanes_over_cells(tile.count, first, end, [&](int cell, int64_t c) {
      S x{};
      if (c < channels) x = features[c * p.shape.cells + tile.cell + cell];
      square += T(value(x)) * T(value(x));
      transposed[cell][c - first] = mma_operand(x, p.tf32);
    });
    __syncthreads();
    lanes_over_channels(tile.count, first, end,
                        [&](int cell, int64_t c) { packed[cell * width + c] = transposed[cell][c - first]; });
    __syncthreads();
  }
  squares[warp][lane] = square;
  __syncthreads();
  if (warp || lane >= tile.count || !p.inverse_norm) return;
  for (int w = 1; w < kWarps; ++w) square += squares[w][lane];
  norms[lane] = p.shape.normalized ? safe_rsqrt<S>(square) : T(1);
}

// The first `blocks` blocks pack p, those beyond the audios.
template <bool kChannelsLast, class S, class T>
__global__ void __launch_bounds__(kThreads) pack_kernel(PackParams p, PackParams audios, unsigned blocks) {
  if (blockIdx.x < blocks)
    pack_tile<kChannelsLast, S, T>(p, blockIdx.x);
  else
    pack_tile<true, S, T>(audios, blockIdx.x - blocks);
}

// Y: of the gradient y, S or T.
template <bool kChannelsLast, class S, class Y, class T>
__global__ void __launch_bounds__(kThreads) unpack_kernel(PackParams p, const Y* gradient, const T* scale) {
  [[maybe_unused]] __shared__ S transposed[kChannelsLast ? 1 : kWarpSize][kTransposedChannels + kPad<S>];
  __shared__ T projection[kWarpSize];  // (x . y) / |x|^2
  const CellTile tile(p.shape, blockIdx.x);
  const int64_t channels = p.shape.channels, width = p.k_blocks * 64 / int(sizeof(S));
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  S* grad_features = static_cast<S*>(p.features) + tile.n * channels * p.shape.cells;
  const S* packed = static_cast<const S*>(p.packed) + tile.row * width;
  const Y* grad_packed = gradient + tile.row * width;
  auto x = [&](int cell, int64_t c) { return T(value(packed[cell * width + c])); };
  const T by = scale ? *scale : T(1);
  auto y = [&](int cell, int64_t c) { return rounded_product(T(value(grad_packed[cell * width + c])), by); };
  for (int cell = warp; cell < tile.count; cell += kWarps) {
    T dot = 0;
    for (int64_t c = lane; c < channels; c += kWarpSize) dot += x(cell, c) * y(cell, c);
    const T inverse = static_cast<const T*>(p.inverse_norm)[tile.row + cell];
    dot = p.shape.normalized ? warp_sum(dot) * inverse * inverse : T(0);
    if (lane == 0) projection[cell] = dot;
  }
  __syncthreads();
  if constexpr (kChannelsLast) {
    lanes_over_channels(tile.count, 0, channels, [&](int cell, int64_t c) {
      put(grad_features + (tile.cell + cell) * channels + c, y(cell, c) - projection[cell] * x(cell, c));
    });
  } else {
    for (int64_t first = 0; first < channels; first += kTransposedChannels) {
      const int64_t end = first + kTransposedChannels < channels ? first + kTransposedChannels : channels;
      lanes_over_channels(tile.count, first, end, [&](int cell, int64_t c) {
        put(&transposed[cell][c - first], y(cell, c) - projection[cell] * x(cell, c));
      });
      __syncthreads();
      lanes_over_cells(tile.count, first, end, [&](int cell, int64_t c) {
        grad_features[c * p.shape.cells + tile.cell + cell] = transposed[cell][c - first];
      });
      __syncthreads();
    }
  }
}

int64_t blocks_of(const Shape& s) { return s.images * ((s.cells + kWarpSize - 1) / kWarpSize); }

// Channels last, the cells of all images are contiguous, as those of one image.
PackParams merge_images(PackParams p) {
  if (p.shape.channels_last) p.shape.cells *= p.shape.images, p.shape.images = 1;
  return p;
}

}  // namespace

const char* pack(const PackParams& params, const PackParams* more, void* stream) {
  const PackParams p = merge_images(params), audios = more ? merge_images(*more) : PackParams{};
  return with_layout(p.shape, [&](auto channels_last, auto stored, auto computed) {
    using S = decltype(stored);
    constexpr bool kChannelsLast = decltype(channels_last)::value;
    const int64_t blocks = blocks_of(p.shape), all = blocks + (more ? blocks_of(audios.shape) : 0);
    SSL_FAST_LAUNCH((pack_kernel<kChannelsLast, S, decltype(computed)>), all, kThreads, stream, p, audios,
                    unsigned(blocks));
    return last_error();
  });
}

const char* unpack(const PackParams& params, const void* gradient, bool real_gradient, const void* scale,
                   void* stream) {
  const PackParams p = merge_images(params);
  return with_layout(p.shape, [&](auto channels_last, auto stored, auto computed) {
    using S = decltype(stored);
    using T = decltype(computed);
    constexpr bool kChannelsLast = decltype(channels_last)::value;
    if (real_gradient)
      SSL_FAST_LAUNCH((unpack_kernel<kChannelsLast, S, T, T>), blocks_of(p.shape), kThreads, stream, p,
                      static_cast<const T*>(gradient), static_cast<const T*>(scale));
    else
      SSL_FAST_LAUNCH((unpack_kernel<kChannelsLast, S, S, T>), blocks_of(p.shape), kThreads, stream, p,
                      static_cast<const S*>(gradient), static_cast<const T*>(scale));
    return last_error();
  });
}

}  // namespace ssl_fast::cuda
