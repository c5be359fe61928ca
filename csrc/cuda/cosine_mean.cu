// Operations that read each image once or twice and need no other: the cosine map of each image with its own audio, and
// the mean of the unit vectors of each image. A block takes kWarp cells of one image with all channels; the formulas
// are those of csrc/cpu/cosine.cpp and csrc/cpu/mean.cpp.
//
// Where channels come first, lanes run over cells and warps over channels; where they come last, the other way round.
// So neighbouring threads always read neighbouring memory. Blocks are few and large, so that what is read twice comes
// from a cache the second time.
#include "common.cuh"
#include "kernels.h"

namespace ssl_fast::cuda {
namespace {

constexpr int kWarps = 16, kThreads = kWarp * kWarps;

// Cell `first + lane` (channels first) or `first + warp`, ... (channels last) of an image.
template <class S>
struct Cells {
  const S* values;
  int64_t channels, cells, first;

  __device__ Cells(const Shape& s, const void* visual, int64_t n, int64_t first)
      : values(static_cast<const S*>(visual) + n * s.channels * s.cells),
        channels(s.channels),
        cells(s.cells),
        first(first) {}
  __device__ int count() const { return cells - first < kWarp ? int(cells - first) : kWarp; }
};

// f(cell of the block, channel, place in the image) for all cells and channels of the block.
template <bool kLast, class S, class F>
__device__ void for_values(const Cells<S>& at, F f) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (kLast) {
    for (int cell = warp; cell < at.count(); cell += kWarps)
      for (int64_t c = lane; c < at.channels; c += kWarp) f(cell, c, (at.first + cell) * at.channels + c);
  } else if (lane < at.count()) {
    for (int64_t c = warp; c < at.channels; c += kWarps) f(lane, c, c * at.cells + at.first + lane);
  }
}

// For each cell of the block: squares = sum_c v^2, products = sum_c v x[c]; each where it is given.
template <bool kLast, class T, class S, class X>
__device__ void cell_sums(const Cells<S>& at, const X* x, T* squares, T* products) {
  __shared__ T partial[2][kWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (kLast) {
    for (int cell = warp; cell < at.count(); cell += kWarps) {
      T square = 0, product = 0;
      for (int64_t c = lane; c < at.channels; c += kWarp) {
        T v = value(at.values[(at.first + cell) * at.channels + c]);
        square += v * v;
        if (x) product += v * value(x[c]);
      }
      square = sum_warp(square), product = sum_warp(product);
      if (lane == 0 && squares) squares[cell] = square;
      if (lane == 0 && products) products[cell] = product;
    }
  } else {
    T square = 0, product = 0;
    for_values<kLast>(at, [&](int, int64_t c, int64_t place) {
      T v = value(at.values[place]);
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

// 1 / |audio[n]|, for all threads of the block.
template <class T, class S>
__device__ T inverse_norm_of(const S* audio, int64_t channels) {
  __shared__ T scratch[kWarps];
  T sum = 0;
  for (int64_t c = threadIdx.x; c < channels; c += kThreads) sum += T(value(audio[c])) * T(value(audio[c]));
  return inverse_length(sum_block(sum, scratch));
}

template <bool kLast, class S, class T>
__global__ void __launch_bounds__(kThreads, 2) map_of_image(CellsParams p, unsigned blocks_per_image) {
  __shared__ T squares[kWarp], products[kWarp];
  const int64_t n = blockIdx.x / blocks_per_image, first = blockIdx.x % blocks_per_image * kWarp;
  const Cells<S> at(p.shape, p.visual, n, first);
  const S* audio = static_cast<const S*>(p.audio) + n * p.shape.channels;
  cell_sums<kLast, T>(at, audio, squares, products);
  const T scale = inverse_norm_of<T>(audio, p.shape.channels);
  const int cell = threadIdx.x;
  if (cell >= at.count()) return;
  const int64_t place = n * p.shape.cells + first + cell;
  const T inverse = inverse_length(squares[cell]);
  static_cast<T*>(p.inverse_norm)[place] = inverse;
  static_cast<T*>(p.out)[place] = products[cell] * inverse * scale;
}

template <class T>
__device__ T weight_of(const CellsParams& p, int64_t n, int64_t cell) {
  return p.weight ? static_cast<const T*>(p.weight)[n * p.shape.cells + cell] : T(1) / T(p.shape.cells);
}

// out[n, c] = sum over cells of gain v[c]: of the mean, gain = w / |v|; of the map's audio, gain = g / |v|.
// A block takes one image; a warp (channels first) or a thread (channels last) adds up one channel at a time.
template <bool kLast, class T, class S, class Gain>
__device__ void channel_sums(const Shape& s, const S* v, T* out, Gain gain) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (kLast) {
    for (int64_t c = threadIdx.x; c < s.channels; c += kThreads) {
      T sum = 0;
      for (int64_t first = 0; first < s.cells; first += 16) {  // in two levels: less rounding error
        T part = 0;
        for (int64_t cell = first; cell < first + 16 && cell < s.cells; ++cell)
          part += gain(cell) * T(value(v[cell * s.channels + c]));
        sum += part;
      }
      out[c] = sum;
    }
  } else {
    for (int64_t c = warp; c < s.channels; c += kWarps) {
      T sum = 0;
      for (int64_t cell = lane; cell < s.cells; cell += kWarp) sum += gain(cell) * T(value(v[c * s.cells + cell]));
      sum = sum_warp(sum);
      if (lane == 0) out[c] = sum;
    }
  }
}

// A block takes one image: first the lengths of its cells, then the mean.
template <bool kLast, class S, class T>
__global__ void __launch_bounds__(kThreads, 2) mean_of_image(CellsParams p) {
  __shared__ T squares[kWarp];
  const int64_t n = blockIdx.x;
  T* inverse_norm = static_cast<T*>(p.inverse_norm) + n * p.shape.cells;
  for (int64_t first = 0; first < p.shape.cells; first += kWarp) {
    const Cells<S> at(p.shape, p.visual, n, first);
    cell_sums<kLast, T>(at, static_cast<const S*>(nullptr), squares, static_cast<T*>(nullptr));
    const int cell = threadIdx.x;
    if (cell < at.count()) inverse_norm[first + cell] = inverse_length(squares[cell]);
    __syncthreads();
  }
  channel_sums<kLast>(p.shape, static_cast<const S*>(p.visual) + n * p.shape.channels * p.shape.cells,
                      static_cast<T*>(p.out) + n * p.shape.channels,
                      [&](int64_t cell) { return weight_of<T>(p, n, cell) * inverse_norm[cell]; });
}

// grad_audio of the map: 1 / |a| (b - a^ (a^ . b)) with b = sum_p g v^
template <bool kLast, class S, class T>
__global__ void __launch_bounds__(kThreads, 2) audio_of_map(CellsParams p) {
  __shared__ T scratch[kWarps];
  const int64_t n = blockIdx.x, channels = p.shape.channels;
  const T* inverse_norm = static_cast<const T*>(p.inverse_norm) + n * p.shape.cells;
  const T* grad = static_cast<const T*>(p.grad_out) + n * p.shape.cells;
  const S* audio = static_cast<const S*>(p.audio) + n * channels;
  T* b = static_cast<T*>(p.grad_audio) + n * channels;
  const T scale = inverse_norm_of<T>(audio, channels);
  channel_sums<kLast>(p.shape, static_cast<const S*>(p.visual) + n * channels * p.shape.cells, b,
                      [&](int64_t cell) { return grad[cell] * inverse_norm[cell]; });
  __syncthreads();
  T dot = 0;
  for (int64_t c = threadIdx.x; c < channels; c += kThreads) dot += b[c] * T(value(audio[c]));
  dot = sum_block(dot, scratch) * scale * scale;
  for (int64_t c = threadIdx.x; c < channels; c += kThreads) b[c] = scale * (b[c] - T(value(audio[c])) * dot);
}

// dv = gain x - loss v. Map: gain = g / |v|, x = a^, loss = gain alpha / |v|. Mean: gain = w / |v|, x = g,
// loss = gain (v . g) / |v|^2.
template <bool kLast, bool kMean, class S, class T>
__global__ void __launch_bounds__(kThreads, 2) visual_gradient(CellsParams p, unsigned blocks_per_image) {
  __shared__ T gain[kWarp], loss[kWarp], products[kWarp];
  const int64_t n = blockIdx.x / blocks_per_image, first = blockIdx.x % blocks_per_image * kWarp;
  const Cells<S> at(p.shape, p.visual, n, first);
  const T* grad = static_cast<const T*>(p.grad_out) + n * (kMean ? p.shape.channels : p.shape.cells);
  const S* audio = kMean ? nullptr : static_cast<const S*>(p.audio) + n * p.shape.channels;
  T scale = 1;
  if (kMean)
    cell_sums<kLast, T>(at, grad, static_cast<T*>(nullptr), products);
  else
    scale = inverse_norm_of<T>(audio, p.shape.channels);
  if (int(threadIdx.x) < at.count()) {
    const int64_t cell = first + threadIdx.x, place = n * p.shape.cells + cell;
    T inverse = static_cast<const T*>(p.inverse_norm)[place];
    if (kMean) {
      gain[threadIdx.x] = weight_of<T>(p, n, cell) * inverse;
      loss[threadIdx.x] = gain[threadIdx.x] * products[threadIdx.x] * inverse * inverse;
    } else {
      gain[threadIdx.x] = grad[cell] * inverse;
      loss[threadIdx.x] = gain[threadIdx.x] * static_cast<const T*>(p.out)[place] * inverse;
    }
  }
  __syncthreads();
  S* out = static_cast<S*>(p.grad_visual) + n * p.shape.channels * p.shape.cells;
  for_values<kLast>(at, [&](int cell, int64_t c, int64_t place) {
    T x = kMean ? grad[c] : T(value(audio[c])) * scale;
    put(out + place, gain[cell] * x - loss[cell] * T(value(at.values[place])));
  });
}

template <bool kMean>
const char* run(const CellsParams& p, void* stream) {
  const unsigned per_image = unsigned((p.shape.cells + kWarp - 1) / kWarp);
  return with_layout(p.shape, [&](auto last, auto stored, auto computed) {
    using S = decltype(stored);
    using T = decltype(computed);
    constexpr bool kLast = decltype(last)::value;
    const int64_t images = p.shape.images;
    if (!p.grad_out && kMean) SSL_FAST_LAUNCH((mean_of_image<kLast, S, T>), images, kThreads, stream, p);
    if (!p.grad_out && !kMean)
      SSL_FAST_LAUNCH((map_of_image<kLast, S, T>), images * per_image, kThreads, stream, p, per_image);
    if (p.grad_out && p.grad_visual)
      SSL_FAST_LAUNCH((visual_gradient<kLast, kMean, S, T>), images * per_image, kThreads, stream, p, per_image);
    if (p.grad_out && p.grad_audio) SSL_FAST_LAUNCH((audio_of_map<kLast, S, T>), images, kThreads, stream, p);
    return last_error();
  });
}

}  // namespace

const char* cosine(const CellsParams& p, void* stream) { return run<false>(p, stream); }
const char* mean(const CellsParams& p, void* stream) { return run<true>(p, stream); }
const void* a_kernel() { return reinterpret_cast<const void*>(&mean_of_image<false, float, float>); }

}  // namespace ssl_fast::cuda
