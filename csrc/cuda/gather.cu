// Gradients of a maximum, whose slope is 1 at one cell of a pair and 0 elsewhere. Each sum is taken by one thread, in order.
#include "device_code.h"
#include "kernels.h"

namespace ssl_fast::cuda {
namespace {

constexpr int kCells = 16;                // of an image that a block of gather_visual works on, or fewer, so that
constexpr int64_t kMostShared = 96 << 10;  // their sums of all channels fit

int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

// grad_visual of some cells of one image: dv = (x - v^ (v^ x)) / |v| with x = sum of grad a^ over the audios whose best cell
// it is. A warp adds up its share of the channels.
template <bool kLast, class S, class T>
__global__ void __launch_bounds__(kThreads) gather_visual_kernel(GatherParams p, int most_cells) {
  SSL_FAST_SHARED_BYTES(shared);
  __shared__ T losses[kCells];
  const int64_t channels = p.shape.channels, blocks = (p.shape.cells + most_cells - 1) / most_cells, n = blockIdx.x / blocks;
  const int64_t first_cell = blockIdx.x % blocks * most_cells, left = p.shape.cells - first_cell;
  const int cells = left < most_cells ? int(left) : most_cells, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t stride = channels + 1;  // neighbouring cells lie in different banks
  T* sums = reinterpret_cast<T*>(shared);
  for (int64_t i = threadIdx.x; i < cells * stride; i += kThreads) sums[i] = 0;
  __syncthreads();
  for (int64_t first = 0; first < p.shape.audios; first += kWarp) {
    const bool there = first + lane < p.shape.audios;
    const int64_t pair = n * p.shape.audios + first + lane;
    const int mine = there ? int(p.best[pair] - first_cell) : -1;
    const T scaled = there ? static_cast<const T*>(p.grad_scores)[pair] * static_cast<const T*>(p.audio_norm)[first + lane]
                           : T(0);
    for (unsigned hits = __ballot_sync(0xffffffffu, mine >= 0 && mine < cells); hits; hits &= hits - 1) {
      const int of = __ffs(hits) - 1, cell = __shfl_sync(0xffffffffu, mine, of);
      const T weight = __shfl_sync(0xffffffffu, scaled, of);
      const S* audio = static_cast<const S*>(p.audio) + (first + of) * channels;
      for (int64_t c = threadIdx.x; c < channels; c += kThreads) sums[cell * stride + c] += weight * T(value(audio[c]));
    }
  }
  __syncthreads();
  const int64_t image = n * channels * p.shape.cells;
  const S* visual = static_cast<const S*>(p.visual) + image;
  const T* norms = static_cast<const T*>(p.cell_norm) + n * p.shape.cells + first_cell;
  auto place = [&](int cell, int64_t c) {
    return kLast ? (first_cell + cell) * channels + c : c * p.shape.cells + first_cell + cell;
  };
  for (int cell = warp; cell < cells; cell += kWarps) {
    T dot = 0;
    for (int64_t c = lane; c < channels; c += kWarp) dot += sums[cell * stride + c] * T(value(visual[place(cell, c)]));
    dot = sum_warp(dot);
    if (lane == 0) losses[cell] = dot * norms[cell] * norms[cell];
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < cells * channels; i += kThreads) {
    const int cell = int(kLast ? i / channels : i % cells);
    const int64_t c = kLast ? i % channels : i / cells;
    const T v = value(visual[place(cell, c)]);
    put(static_cast<S*>(p.grad_visual) + image + place(cell, c), norms[cell] * (sums[cell * stride + c] - losses[cell] * v));
  }
}

// A block takes one audio, a thread a channel.
template <class S, class T>
__global__ void __launch_bounds__(kThreads) gather_audio_kernel(PairsParams p, const T* grad_scores, const int32_t* best,
                                                                T* sums) {
  const int64_t audio = blockIdx.x, channels = p.slabs * 64 / int(sizeof(S));
  const T audio_norm = static_cast<const T*>(p.audio_norm)[audio];
  for (int64_t c = threadIdx.x; c < channels; c += kThreads) {
    T sum = 0;
    for (int64_t n = 0; n < p.images; ++n) {
      const int64_t pair = n * p.audios + audio, row = n * p.cells + best[pair];
      const T weight = grad_scores[pair] * static_cast<const T*>(p.cell_norm)[row] * audio_norm;
      sum += weight * T(value(static_cast<const S*>(p.cell_rows)[row * channels + c]));
    }
    sums[audio * channels + c] += sum;
  }
}

}  // namespace

const char* gather_visual(const GatherParams& p, void* stream) {
  return with_layout(p.shape, [&](auto last, auto stored, auto computed) {
    using S = decltype(stored);
    using T = decltype(computed);
    const int64_t a_cell = (p.shape.channels + 1) * sizeof(T), fit = kMostShared / a_cell;
    if (!fit) return "too many channels for the shared memory of a block";
    const int cells = int(fit < kCells ? fit : kCells);
    SSL_FAST_LAUNCH_SHARED((gather_visual_kernel<decltype(last)::value, S, T>), p.shape.images * over(p.shape.cells, cells),
                           kThreads, cells * a_cell, stream, p, cells);
    return last_error();
  });
}

const char* gather_audio(const PairsParams& p, const void* grad_scores, const int32_t* best, void* sums, void* stream) {
  return with_types(p.dtype, [&](auto stored, auto computed) {
    using S = decltype(stored);
    using T = decltype(computed);
    SSL_FAST_LAUNCH((gather_audio_kernel<S, T>), p.audios, kThreads, stream, p, static_cast<const T*>(grad_scores), best,
                    static_cast<T*>(sums));
    return last_error();
  });
}

}  // namespace ssl_fast::cuda
