// Driver of the memory-bound kernels, cosine.cpp and mean.cpp, which treat every image by itself: the loop over images,
// and the scratch of one thread. Threads take contiguous ranges of images; while one image is read or written, the next
// one is prefetched into L2.
#pragma once
#include "cosine_mean.h"
#include "kernel_table.h"
#include "threads.h"

namespace ssl_fast::SSL_FAST_ISA {

template <class T>
struct StreamingScratch {
  T *image_scratch, *grad_out;  // an image, and its gradient, in the computing type
  T *x, *b;                     // (channels)
  T* partial_sums;              // (2, channels)
  T *gain, *projection;         // (cells): dv = gain x - projection v

  void allocate(Workspace& workspace, const Shape& s) {
    image_scratch = workspace.take<T>(s.channels * s.cells);
    grad_out = workspace.take<T>(s.channels * s.cells);
    x = workspace.take<T>(s.channels);
    b = workspace.take<T>(s.channels);
    partial_sums = workspace.take<T>(2 * s.channels);
    gain = workspace.take<T>(s.cells);
    projection = workspace.take<T>(s.cells);
  }
  // x = audio[n] / |audio[n]|; returns 1 / |audio[n]|
  T load_unit_audio(const Shape& s, const void* audio, int64_t n) {
    const T* raw = to_compute_type<T>(audio, s.dtype, n * s.channels, s.channels, x);
    T sum = 0;
    for (int64_t c = 0; c < s.channels; ++c) sum += raw[c] * raw[c];
    T scale = safe_rsqrt(sum, s.dtype);
    for (int64_t c = 0; c < s.channels; ++c) x[c] = raw[c] * scale;
    return scale;
  }
  // Prefetcher of image n + 1, over the rows of image n.
  L2Prefetcher prefetch_next(const CellsParams& p, int64_t n) const {
    return prefetch_image(p.shape, p.visual, n + 1, p.shape.channels_last ? p.shape.cells : p.shape.channels);
  }
  // dv of x, gain and projection: of the first of p.means, or added to that of those before. The last is stored.
  void store_visual_gradient(const CellsParams& p, const Image<T>& values, int64_t n, int64_t mean = 0) {
    int64_t size = p.shape.channels * p.shape.cells;
    T* out = output_buffer<T>(p.grad_visual, p.shape.dtype, n * size, grad_out);
    L2Prefetcher next = prefetch_next(p, n);
    if (mean == 0)
      rank1_gradient<false>(values, x, gain, projection, out, next);
    else
      rank1_gradient<true>(values, x, gain, projection, out, next);
    if (mean + 1 == p.means) store_output(out, p.grad_visual, p.shape.dtype, n * size, size);
  }
};

// Op::run(p, image, n, scratch of the thread) for all images.
template <class Op, class T>
void for_images(const CellsParams& p, Workspace& workspace) {
  StreamingScratch<T>* scratch = workspace.take<StreamingScratch<T>>(p.threads);
  for (int i = 0; i < p.threads; ++i) scratch[i].allocate(workspace, p.shape);
  parallel(p.threads, [&] {
    StreamingScratch<T>& local = scratch[omp_get_thread_num()];
    parallel_for(p.shape.images,
                 [&](int64_t n) { Op::run(p, load_image(p.shape, p.visual, n, local.image_scratch), n, local); });
  });
}

template <class Op>
void run_streaming(const CellsParams& p, Workspace& workspace) {
  with_compute_type(p, [&](auto zero) { for_images<Op, decltype(zero)>(p, workspace); });
}

}  // namespace ssl_fast::SSL_FAST_ISA
