// Memory-bound ops that pair image n with audio n alone. v[n,c,p] are the features of cell p, |v| their norm over c.
//
//   cosine_map   out[n, p] = sum_c v a[n, c] / (|v| |a[n]|)
//   mean         out[n, c] = sum_p w[n, p] v / |v|;   w = 1 / P where no weights are given
//   backward     dv[c] = gain x[c] - projection v[c]
//                  map:  gain = g / |v|, x = a / |a|, projection = gain out / |v|
//                  mean: gain = w / |v|, x = g,       projection = gain (v . g) / |v|^2
//                da = (b - a (a . b) / |a|^2) / |a| with b[c] = sum_p g v / |v|;   map only
//
//   Inputs   v (N, C, P) or, channels last, (N, P, C) and a (N, C), storage type; w, g real like out
//   Outputs  out real: map (N, P), mean (N, C); 1 / |v| real (N, P); dv like v; da real (N, C)
//   Block    512 threads; shared memory for reductions. Few and large blocks, so that the second read of v hits a cache
//   Grid     cosine_map_kernel, visual_grad_kernel: a block for each 32 cells of an image, all channels
//            mean_kernel, audio_grad_kernel: a block for each image. mean_kernel copies the image to shared memory
//            where it fits, and so reads it once
//
// Loads and stores are coalesced: lanes run over cells and warps over channels, or channels last the other way round.
#include "kernels.h"
#include "ptx.cuh"

#include "../pooling.h"  // after the math functions it calls

namespace ssl_fast::cuda {
namespace {

constexpr int kWarps = 16, kThreads = kWarpSize * kWarps;

// Up to kWarpSize cells of image n, from cell `first` on.
template <class S>
struct CellTile {
  const S* values;  // of the image
  int64_t channels, cells, first;

  __device__ CellTile(const Shape& s, const S* values, int64_t first)
      : values(values), channels(s.channels), cells(s.cells), first(first) {}
  __device__ CellTile(const Shape& s, const void* visual, int64_t n, int64_t first)
      : CellTile(s, static_cast<const S*>(visual) + n * s.channels * s.cells, first) {}
  __device__ int count() const { return cells - first < kWarpSize ? int(cells - first) : kWarpSize; }
};

// f(cell of the tile, channel, offset in the image) for all cells of the tile and all channels.
template <bool kChannelsLast, class S, class F>
__device__ void for_elements(const CellTile<S>& tile, F f) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  if (kChannelsLast) {
    for (int cell = warp; cell < tile.count(); cell += kWarps)
      for (int64_t c = lane; c < tile.channels; c += kWarpSize) f(cell, c, (tile.first + cell) * tile.channels + c);
  } else if (lane < tile.count()) {
    for (int64_t c = warp; c < tile.channels; c += kWarps) f(lane, c, c * tile.cells + tile.first + lane);
  }
}

template <class T>
using PartialSums = T[2][kWarps][kWarpSize];  // of channel_sums

// Reductions over channels for each cell of the tile: squares = sum_c v^2, products = sum_c v x[c]. Null pointers are
// skipped.
template <bool kChannelsLast, class T, class S, class X>
__device__ void channel_sums(const CellTile<S>& tile, const X* x, T* squares, T* products, PartialSums<T>& partial) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  if (kChannelsLast) {
    for (int cell = warp; cell < tile.count(); cell += kWarps) {
      T square = 0, product = 0;
      for (int64_t c = lane; c < tile.channels; c += kWarpSize) {
        T v = value(tile.values[(tile.first + cell) * tile.channels + c]);
        square += v * v;
        if (x) product += v * value(x[c]);
      }
      square = warp_sum(square), product = warp_sum(product);
      if (lane == 0 && squares) squares[cell] = square;
      if (lane == 0 && products) products[cell] = product;
    }
  } else {
    T square = 0, product = 0;
    for_elements<kChannelsLast>(tile, [&](int, int64_t c, int64_t offset) {
      T v = value(tile.values[offset]);
      square += v * v;
      if (x) product += v * value(x[c]);
    });
    partial[0][warp][lane] = square, partial[1][warp][lane] = product;
    __syncthreads();
    if (warp == 0) {
      square = product = 0;
      for (int w = 0; w < kWarps; ++w) square += partial[0][w][lane], product += partial[1][w][lane];
      if (squares) squares[lane] = square;
      if (products) products[lane] = product;
    }
  }
  __syncthreads();
}

// 1 / |audio[n]|, in all threads of the block.
template <class T, class S>
__device__ T audio_inverse_norm(const S* audio, int64_t channels) {
  __shared__ T scratch[kWarps];
  T sum = 0;
  for (int64_t c = threadIdx.x; c < channels; c += kThreads) sum += T(value(audio[c])) * T(value(audio[c]));
  return safe_rsqrt<S>(block_sum(sum, scratch));
}

template <bool kChannelsLast, class S, class T>
__global__ void __launch_bounds__(kThreads, 2) cosine_map_kernel(CellsParams p, unsigned blocks_per_image) {
  __shared__ T squares[kWarpSize], products[kWarpSize];
  __shared__ PartialSums<T> partial;
  const int64_t n = blockIdx.x / blocks_per_image, first = blockIdx.x % blocks_per_image * kWarpSize;
  const CellTile<S> tile(p.shape, p.visual, n, first);
  const S* audio = static_cast<const S*>(p.audio) + n * p.shape.channels;
  channel_sums<kChannelsLast, T>(tile, audio, squares, products, partial);
  const T scale = audio_inverse_norm<T>(audio, p.shape.channels);
  const int cell = threadIdx.x;
  if (cell >= tile.count()) return;
  const int64_t i = n * p.shape.cells + first + cell;
  const T inverse = safe_rsqrt<S>(squares[cell]);
  static_cast<T*>(p.inverse_norm)[i] = inverse;
  static_cast<T*>(p.out)[i] = products[cell] * inverse * scale;
}

template <class T>
__device__ T cell_weight(const CellsParams& p, int64_t n, int64_t cell) {
  return p.weight ? static_cast<const T*>(p.weight)[n * p.shape.cells + cell] : T(1) / T(p.shape.cells);
}

// Reduction over the cells of an image for each channel: out[c] = sum_p gain(p) v[c, p]. A warp (channels first) or a
// thread (channels last) takes one channel at a time.
template <bool kChannelsLast, class T, class S, class Gain>
__device__ void weighted_cell_sum(const Shape& s, const S* v, T* out, Gain gain) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  if (kChannelsLast) {
    for (int64_t c = threadIdx.x; c < s.channels; c += kThreads) {
      out[c] = sum_in_levels<T>(s.cells, [&](int64_t cell) { return gain(cell) * T(value(v[cell * s.channels + c])); });
    }
  } else {
    for (int64_t c = warp; c < s.channels; c += kWarps) {
      const T sum = warp_sum(sum_in_levels<T>((s.cells - lane + kWarpSize - 1) / kWarpSize, [&](int64_t i) {
        const int64_t cell = lane + i * kWarpSize;
        return gain(cell) * T(value(v[c * s.cells + cell]));
      }));
      if (lane == 0) out[c] = sum;
    }
  }
}

// Dynamic shared memory of mean_kernel; then, where the image is copied to it (`staged`), the gains of its cells, and
// the image, as far from a multiple of 16 bytes as in global memory.
template <class T>
struct MeanScratch {
  PartialSums<T> partial;
  T squares[kWarpSize];
};
template <class T>
__host__ __device__ int64_t image_offset(const Shape& s) {
  return (int64_t(sizeof(MeanScratch<T>)) + s.cells * int64_t(sizeof(T)) + 15) / 16 * 16;
}
template <class S, class T>
int64_t staged_bytes(const Shape& s) {
  return image_offset<T>(s) + 16 + s.channels * s.cells * int64_t(sizeof(S));
}

// Copies `count` numbers to shared memory, from an address that may not be aligned to 16 bytes; returns where they are.
template <class S>
__device__ const S* stage(const S* from, int64_t count, char* shared) {
  constexpr int kCount = 16 / sizeof(S);
  const int skipped = int(reinterpret_cast<uintptr_t>(from) % 16 / sizeof(S));
  S* to = reinterpret_cast<S*>(shared) + skipped;
  const int64_t aligned = (kCount - skipped) % kCount, head = aligned < count ? aligned : count;
  const int64_t end = head + (count - head) / kCount * kCount;
  for (int64_t i = head + threadIdx.x * kCount; i < end; i += kThreads * kCount) cp_async_16(to + i, from + i, true);
  cp_async_commit();
  if (threadIdx.x < head) to[threadIdx.x] = from[threadIdx.x];
  if (end + threadIdx.x < count) to[end + threadIdx.x] = from[end + threadIdx.x];
  cp_async_wait<0>();
  __syncthreads();
  return to;
}

// First the norms of all cells of the image, then the mean.
template <bool kChannelsLast, bool kStaged, class S, class T>
__global__ void __launch_bounds__(kThreads, 2) mean_kernel(CellsParams p) {
  SSL_FAST_SHARED_BYTES(shared);
  auto& scratch = *reinterpret_cast<MeanScratch<T>*>(shared);
  T* const gains = reinterpret_cast<T*>(&scratch + 1);
  const int64_t n = blockIdx.x, cells = p.shape.cells;
  const S* v = static_cast<const S*>(p.visual) + n * p.shape.channels * cells;
  if (kStaged) v = stage(v, p.shape.channels * cells, shared + image_offset<T>(p.shape));
  T* inverse_norm = static_cast<T*>(p.inverse_norm) + n * cells;
  for (int64_t first = 0; first < cells; first += kWarpSize) {
    const CellTile<S> tile(p.shape, v, first);
    channel_sums<kChannelsLast, T>(tile, static_cast<const S*>(nullptr), scratch.squares, static_cast<T*>(nullptr),
                                   scratch.partial);
    const int cell = threadIdx.x;
    if (cell < tile.count()) {
      const T inverse = inverse_norm[first + cell] = safe_rsqrt<S>(scratch.squares[cell]);
      if (kStaged) gains[first + cell] = cell_weight<T>(p, n, first + cell) * inverse;
    }
    __syncthreads();
  }
  weighted_cell_sum<kChannelsLast>(p.shape, v, static_cast<T*>(p.out) + n * p.shape.channels, [&](int64_t cell) {
    return kStaged ? gains[cell] : cell_weight<T>(p, n, cell) * inverse_norm[cell];
  });
}

// da of the map.
template <bool kChannelsLast, class S, class T>
__global__ void __launch_bounds__(kThreads, 2) audio_grad_kernel(CellsParams p) {
  __shared__ T scratch[kWarps];
  const int64_t n = blockIdx.x, channels = p.shape.channels;
  const T* inverse_norm = static_cast<const T*>(p.inverse_norm) + n * p.shape.cells;
  const T* grad = static_cast<const T*>(p.grad_out) + n * p.shape.cells;
  const S* audio = static_cast<const S*>(p.audio) + n * channels;
  T* b = static_cast<T*>(p.grad_audio) + n * channels;
  const T scale = audio_inverse_norm<T>(audio, channels);
  weighted_cell_sum<kChannelsLast>(p.shape, static_cast<const S*>(p.visual) + n * channels * p.shape.cells, b,
                                   [&](int64_t cell) { return grad[cell] * inverse_norm[cell]; });
  __syncthreads();
  T dot = 0;
  for (int64_t c = threadIdx.x; c < channels; c += kThreads) dot += b[c] * T(value(audio[c]));
  dot = block_sum(dot, scratch) * scale * scale;
  for (int64_t c = threadIdx.x; c < channels; c += kThreads) b[c] = scale * (b[c] - T(value(audio[c])) * dot);
}

// dv of the map or the mean.
template <bool kChannelsLast, bool kMean, class S, class T>
__global__ void __launch_bounds__(kThreads, 2) visual_grad_kernel(CellsParams p, unsigned blocks_per_image) {
  __shared__ T gain[kWarpSize], projection[kWarpSize], products[kWarpSize];
  [[maybe_unused]] __shared__ PartialSums<T> partial;
  const int64_t n = blockIdx.x / blocks_per_image, first = blockIdx.x % blocks_per_image * kWarpSize;
  const CellTile<S> tile(p.shape, p.visual, n, first);
  const T* grad = static_cast<const T*>(p.grad_out) + n * (kMean ? p.shape.channels : p.shape.cells);
  const S* audio = kMean ? nullptr : static_cast<const S*>(p.audio) + n * p.shape.channels;
  T scale = 1;
  if (kMean)
    channel_sums<kChannelsLast, T>(tile, grad, static_cast<T*>(nullptr), products, partial);
  else
    scale = audio_inverse_norm<T>(audio, p.shape.channels);
  if (int(threadIdx.x) < tile.count()) {
    const int64_t cell = first + threadIdx.x, i = n * p.shape.cells + cell;
    T inverse = static_cast<const T*>(p.inverse_norm)[i];
    if (kMean) {
      gain[threadIdx.x] = cell_weight<T>(p, n, cell) * inverse;
      projection[threadIdx.x] = gain[threadIdx.x] * products[threadIdx.x] * inverse * inverse;
    } else {
      gain[threadIdx.x] = grad[cell] * inverse;
      projection[threadIdx.x] = gain[threadIdx.x] * static_cast<const T*>(p.out)[i] * inverse;
    }
  }
  __syncthreads();
  S* out = static_cast<S*>(p.grad_visual) + n * p.shape.channels * p.shape.cells;
  for_elements<kChannelsLast>(tile, [&](int cell, int64_t c, int64_t offset) {
    T x = kMean ? grad[c] : T(value(audio[c])) * scale;
    put(out + offset, gain[cell] * x - projection[cell] * T(value(tile.values[offset])));
  });
}

template <bool kMean>
const char* run(const CellsParams& p, void* stream) {
  const unsigned per_image = unsigned((p.shape.cells + kWarpSize - 1) / kWarpSize);
  return with_layout(p.shape, [&](auto channels_last, auto stored, auto computed) {
    using S = decltype(stored);
    using T = decltype(computed);
    constexpr bool kChannelsLast = decltype(channels_last)::value;
    const int64_t images = p.shape.images;
    if (!p.grad_out && kMean) {
      const int64_t staged = staged_bytes<S, T>(p.shape);
      if (staged <= this_device().shared)
        SSL_FAST_LAUNCH_SHARED((mean_kernel<kChannelsLast, true, S, T>), images, kThreads, staged, stream, p);
      else
        SSL_FAST_LAUNCH_SHARED((mean_kernel<kChannelsLast, false, S, T>), images, kThreads, sizeof(MeanScratch<T>),
                               stream, p);
    }
    if (!p.grad_out && !kMean)
      SSL_FAST_LAUNCH((cosine_map_kernel<kChannelsLast, S, T>), images * per_image, kThreads, stream, p, per_image);
    if (p.grad_out && p.grad_visual)
      SSL_FAST_LAUNCH((visual_grad_kernel<kChannelsLast, kMean, S, T>), images * per_image, kThreads, stream, p,
                      per_image);
    if (p.grad_out && p.grad_audio)
      SSL_FAST_LAUNCH((audio_grad_kernel<kChannelsLast, S, T>), images, kThreads, stream, p);
    return last_error();
  });
}

}  // namespace

const char* cosine(const CellsParams& p, void* stream) { return run<false>(p, stream); }
const char* mean(const CellsParams& p, void* stream) { return run<true>(p, stream); }
const void* probe_kernel() { return reinterpret_cast<const void*>(&mean_kernel<false, false, float, float>); }

}  // namespace ssl_fast::cuda
