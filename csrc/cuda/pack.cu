// Packing of features into GEMM operands, and the backward pass of the normalisation on the way back.
//
//   pack     packed[p, k] = x[p, k], zero-padded to k_blocks * 64 bytes, float32 optionally rounded to tf32
//            inverse_norm[p] = 1 / |x[p]|
//   unpack   grad_x[p, k] = y[p, k] - x[p, k] (x[p] . y[p]) / |x[p]|^2, where y, times `scale`, is the gradient with
//            respect to the unit vector, divided by |x[p]|
//
//   Features      (N, C, P) or, channels last, (N, P, C), storage type; of C channels, those of one head
//   Packed, y     (N * P, k_blocks * 64 bytes), K contiguous, aligned to 16 bytes; y in the storage type or real
//   inverse_norm  real (N * P)
//   Grid          a block for each 32 cells of an image, 256 threads; channels last, of all images as one. The blocks
//                 of up to kMostPacked tensors follow each other in one launch
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
  // Of the features of image n.
  __device__ int64_t first_element(const Shape& s) const {
    return n * s.all_channels * s.cells + s.first_channel * (s.channels_last ? 1 : s.cells);
  }
};

// Tensors of one launch, and how many blocks each has.
template <class Params>
struct Batch {
  Params at[kMostPacked];
  unsigned blocks[kMostPacked];
};

template <class S>
using Transposed = S[kWarpSize][kTransposedChannels + kPad<S>];  // [cell][channel]

template <bool kChannelsLast, class S, class T>
__device__ void pack_tile(const PackParams& p, unsigned block, Transposed<S>& transposed,
                          T (&squares)[kWarps][kWarpSize]) {
  const CellTile tile(p.shape, block);
  const int64_t channels = p.shape.channels, width = p.k_blocks * 64 / int(sizeof(S));
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const S* features = static_cast<const S*>(p.features) + tile.first_element(p.shape);
  S* packed = static_cast<S*>(p.packed) + tile.row * width;
  T* norms = static_cast<T*>(p.inverse_norm) + tile.row;
  if (kChannelsLast) {
    for (int cell = warp; cell < tile.count; cell += kWarps) {
      T square = 0;
      for (int64_t c = lane; c < width; c += kWarpSize) {
        S x{};
        if (c < channels) x = features[(tile.cell + cell) * p.shape.all_channels + c];
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

// Launch bounds of four blocks an SM: for more occupancy it would spill registers on sm_120.
template <class S, class T>
__global__ void __launch_bounds__(kThreads, 4) pack_kernel(const __grid_constant__ Batch<PackParams> batch) {
  __shared__ S transposed[kWarpSize][kTransposedChannels + kPad<S>];
  __shared__ T squares[kWarps][kWarpSize];
  unsigned block = blockIdx.x, i = 0;
  while (block >= batch.blocks[i]) block -= batch.blocks[i++];
  if (batch.at[i].shape.channels_last)
    pack_tile<true>(batch.at[i], block, transposed, squares);
  else
    pack_tile<false>(batch.at[i], block, transposed, squares);
}

// Y: of the gradient y, S or T.
template <bool kChannelsLast, class Y, class S, class T>
__device__ void unpack_tile(const UnpackParams& params, unsigned block, Transposed<S>& transposed,
                            T (&projection)[kWarpSize]) {  // (x . y) / |x|^2
  const PackParams& p = params.rows;
  const CellTile tile(p.shape, block);
  const int64_t channels = p.shape.channels, width = p.k_blocks * 64 / int(sizeof(S));
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  S* grad_features = static_cast<S*>(p.features) + tile.first_element(p.shape);
  const S* packed = static_cast<const S*>(p.packed) + tile.row * width;
  const Y* grad_packed = static_cast<const Y*>(params.gradient) + tile.row * width;
  auto x = [&](int cell, int64_t c) { return T(value(packed[cell * width + c])); };
  const T by = params.scale ? *static_cast<const T*>(params.scale) : T(1);
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
      put(grad_features + (tile.cell + cell) * p.shape.all_channels + c, y(cell, c) - projection[cell] * x(cell, c));
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

template <class S, class T>
__global__ void __launch_bounds__(kThreads) unpack_kernel(const __grid_constant__ Batch<UnpackParams> batch) {
  __shared__ S transposed[kWarpSize][kTransposedChannels + kPad<S>];
  __shared__ T projection[kWarpSize];
  unsigned block = blockIdx.x, i = 0;
  while (block >= batch.blocks[i]) block -= batch.blocks[i++];
  const UnpackParams& p = batch.at[i];
  auto unpack = [&](auto last) {
    if (p.real_gradient)
      unpack_tile<decltype(last)::value, T>(p, block, transposed, projection);
    else
      unpack_tile<decltype(last)::value, S>(p, block, transposed, projection);
  };
  if (p.rows.shape.channels_last)
    unpack(std::true_type{});
  else
    unpack(std::false_type{});
}

Shape& shape_of(PackParams& p) { return p.shape; }
Shape& shape_of(UnpackParams& p) { return p.rows.shape; }

// Calls f(S(), T(), batch, blocks of all).
template <class Params, class F>
const char* with_batch(const Params* items, int count, F f) {
  Batch<Params> batch{};
  int64_t blocks = 0;
  for (int i = 0; i < count; ++i) {
    batch.at[i] = items[i];
    Shape& s = shape_of(batch.at[i]);
    if (s.channels_last) s.cells *= s.images, s.images = 1;  // the cells of all images are contiguous
    const int64_t of_this = s.images * ((s.cells + kWarpSize - 1) / kWarpSize);
    batch.blocks[i] = unsigned(of_this), blocks += of_this;
  }
  return with_types(shape_of(batch.at[0]).dtype, [&](auto stored, auto computed) {
    f(stored, computed, batch, blocks);
    return last_error();
  });
}

}  // namespace

const char* pack(const PackParams* features, int count, void* stream) {
  return with_batch(features, count, [&](auto stored, auto computed, const auto& batch, int64_t blocks) {
    SSL_FAST_LAUNCH((pack_kernel<decltype(stored), decltype(computed)>), blocks, kThreads, stream, batch);
  });
}

const char* unpack(const UnpackParams* gradients, int count, void* stream) {
  return with_batch(gradients, count, [&](auto stored, auto computed, const auto& batch, int64_t blocks) {
    SSL_FAST_LAUNCH((unpack_kernel<decltype(stored), decltype(computed)>), blocks, kThreads, stream, batch);
  });
}

}  // namespace ssl_fast::cuda
