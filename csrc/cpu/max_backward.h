// Backward of max pooling: one cell of a pair, the argmax, has a gradient. Scatter and gather of rows, no GEMM.
//
//   g[n, m]              = grad_scores[n, m] / |v[n, p]|,  p = argmax[n, m]
//   grad_visual[n, p, c] = D[p, c] - t[p] v[n, p, c]       D[p, c] = sum of g[n, m] a^[m, c] over the m with argmax p
//   grad_audio[m, c]     = (b - a^ (a^ . b)) / |a|         b[m, c] = dA[m, c] = sum_n g[n, m] v[n, p, c]
//   t[n, p]              = sum of grad_scores[n, m] scores[n, m] over the m with argmax p, over |v|^2
//
//   visual, grad_visual   (N, channels, cells) or, channels last, (N, cells, channels)
//   scores, grad_scores   (N, M) real; argmax (N, M) int32
//
// Each thread takes a contiguous range of images, by panels of kPanel channels: the columns of A and dA of a panel stay
// in L2 over many images. dA of all threads is summed in a fixed order.
#pragma once
#include "dense_backward.h"

namespace ssl_fast::SSL_FAST_ISA {

// A panel of channels of one image.
struct WorkItem {
  int64_t image, channel;
};

// Scratch of one thread.
template <class T>
struct MaxBackwardScratch {
  T *image_scratch, *grad_out;  // a panel of an image, and of its gradient, in the computing type
  T *V, *D;                     // [cell][lane of channel]
  T *dA, *row;                  // [panel of channels][audio][lane]; (2, padded channels)

  void allocate(Workspace& workspace, const Shape& s, const PackedAudios<T>& audios) {
    image_scratch = workspace.take<T>(s.cells * kPanel<T>);
    grad_out = workspace.take<T>(s.cells * kPanel<T>);
    V = workspace.take<T>(s.cells * kPanel<T>);
    D = workspace.take<T>(s.cells * kPanel<T>);
    dA = workspace.take<T>(audios.padded() * audios.padded_channels());
    row = workspace.take<T>(2 * audios.padded_channels());
  }
};

// `count` channels of image n from `channel` on, in the computing type.
template <class T>
Image<T> load_channels(const Shape& s, const void* visual, int64_t n, int64_t channel, int64_t count, T* scratch) {
  int64_t first = n * s.channels * s.cells;
  if (!s.channels_last)
    return {to_compute_type<T>(visual, s.dtype, first + channel * s.cells, count * s.cells, scratch), count, s.cells,
            s.cells, 1};
  const T* values = nullptr;
  for (int64_t cell = s.cells - 1; cell >= 0; --cell)
    values = to_compute_type<T>(visual, s.dtype, first + cell * s.channels + channel, count, scratch + cell * count);
  return {values, count, s.cells, 1, values == scratch ? count : s.channels};
}

// Prefetcher of the next work item, over the audios of this one: a panel of channels, or channels last so many bytes
// of the next image.
template <class T>
L2Prefetcher prefetch_channels(const Shape& s, const void* visual, int64_t n, int64_t channel) {
  int64_t count = s.channels - channel < kPanel<T> ? s.channels - channel : kPanel<T>;
  int64_t size = s.dtype == DType::float64 ? 8 : s.dtype == DType::float32 ? 4 : 2;
  bool exists = visual && count > 0 && n < s.images;
  int64_t first = (n * s.channels + channel) * s.cells * size;
  return {exists ? static_cast<const char*>(visual) + first : nullptr, count * s.cells * size, s.audios};
}

// out (cells, kPanel) = up to a panel of channels, transposed to channels last.
template <class T>
void channels_to_lanes(const Image<T>& image, T* out) {
  constexpr int L = kLanes<T>, W = kPanel<T>;
  if (image.cell_stride != 1 || image.cells < L || image.channels < L) {
    for (int64_t p = 0; p < image.cells; ++p) {
      const T* from = image.values + p * image.cell_stride;
      int64_t c = 0;
      if (image.channel_stride == 1)
        for (; c + L <= image.channels; c += L) store(out + p * W + c, load(from + c));
      for (; c < image.channels; ++c) out[p * W + c] = from[c * image.channel_stride];
    }
    return;
  }
  for (int64_t c = 0; c < image.channels; c += L) {
    c = c + L > image.channels ? image.channels - L : c;
    for (int64_t p = 0; p < image.cells; p += L) {
      p = p + L > image.cells ? image.cells - L : p;
      Vec<T> block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) block[i] = load(image.values + (c + i) * image.cells + p);
      transpose<T>(block);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) store(out + (p + i) * W + c, block[i]);
    }
  }
}

// grad_visual of image n, for the panel of channels from `channel` on, from D and t.
template <class T>
void store_channels(const Shape& s, const Features& f, const Image<T>& image, const T* D, const T* t, int64_t n,
                    int64_t channel, T* grad_out) {
  int64_t first = n * s.channels * s.cells;
  if (!s.channels_last) {
    int64_t count = image.channels * s.cells;
    T* out = output_buffer<T>(f.grad_visual, s.dtype, first + channel * s.cells, grad_out);
    store_gradient_panel(image, D, t, out);
    store_output(out, f.grad_visual, s.dtype, first + channel * s.cells, count);
    return;
  }
  T* out = output_buffer<T>(f.grad_visual, s.dtype, first + channel, grad_out);
  store_gradient_panel(image, D, t, out);
  for (int64_t cell = 0; cell < s.cells; ++cell)
    store_output(out + cell * image.cell_stride, f.grad_visual, s.dtype, first + cell * s.channels + channel,
                 image.channels);
}

// For all m, with p = argmax[m] and g = grad[m] / |v|: scatter-add D[p] += g A[m], gather dA[m] += g V[p].
template <bool kVisual, bool kAudio, class T>
__attribute__((noinline)) void scatter_gather_rows(int64_t audios, const int32_t* argmax, const T* grad,
                                                   const T* inverse_norm, const T* A, const T* V, T* dA, T* D,
                                                   L2Prefetcher to_read, L2Prefetcher to_write) {
  constexpr int L = kLanes<T>, W = kPanel<T>;
  for (int64_t m = 0; m < audios; ++m) {
    to_read.prefetch_step();
    to_write.prefetch_step<true>();
    int64_t row = int64_t(argmax[m]) * W;
    T g = grad[m] * inverse_norm[argmax[m]];
#pragma GCC unroll 4
    for (int k = 0; k < W; k += L) {
      if (kVisual) store(D + row + k, load(D + row + k) + load(A + m * W + k) * g);
      if (kAudio) store(dA + m * W + k, load(dA + m * W + k) + load(V + row + k) * g);
    }
  }
}

template <class T>
void max_backward(const SimilarityParams& p, Workspace& workspace) {
  constexpr int W = kPanel<T>;
  const Shape& s = p.shape;
  const Features& f = p.features;
  PackedAudios<T> audios;
  audios.allocate(workspace, s, true);
  T* t = workspace.take<T>(s.images * s.cells);
  auto* scratch = workspace.take<MaxBackwardScratch<T>>(p.threads);
  for (int i = 0; i < p.threads; ++i) scratch[i].allocate(workspace, s, audios);

  parallel(p.threads, [&] {
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    MaxBackwardScratch<T>& local = scratch[thread];
    parallel_for(audios.panels, [&](int64_t panel) { audios.pack(s, f.audio, panel, true); });
    int64_t begin = s.images * thread / threads, end = s.images * (thread + 1) / threads;
    auto row_of = [&](const void* pairs, int64_t n) { return static_cast<const T*>(pairs) + n * s.audios; };
    auto argmax_of = [&](int64_t n) { return static_cast<const int32_t*>(p.residual) + n * s.audios; };
    auto norms_of = [&](int64_t n) { return static_cast<const T*>(f.inverse_norm) + n * s.cells; };
    for (int64_t i = 0; i < audios.padded() * audios.padded_channels(); ++i) local.dA[i] = 0;
    for (int64_t i = begin * s.cells; i < end * s.cells; ++i) t[i] = 0;
    for (int64_t n = begin; n < end && s.normalized; ++n) {
      for (int64_t m = 0; m < s.audios; ++m)
        t[n * s.cells + argmax_of(n)[m]] += row_of(p.grad_scores, n)[m] * row_of(p.scores, n)[m];
      for (int64_t c = 0; c < s.cells; ++c) t[n * s.cells + c] *= norms_of(n)[c] * norms_of(n)[c];
    }
    const int64_t images = end - begin, panels = (s.channels + W - 1) / W;
    auto item_at = [&](int64_t i) {  // in the order of memory, as one item prefetches the next
      return s.channels_last ? WorkItem{begin + i / panels, i % panels * W}
                             : WorkItem{begin + i % images, i / images * W};
    };
    auto rows = f.grad_visual ? f.grad_audio ? scatter_gather_rows<true, true, T> : scatter_gather_rows<true, false, T>
                              : scatter_gather_rows<false, true, T>;
    for (int64_t i = 0; i < panels * images; ++i) {
      auto [n, channel] = item_at(i);
      int64_t count = s.channels - channel < W ? s.channels - channel : W, at = channel * audios.padded();
      Image<T> image = load_channels(s, f.visual, n, channel, count, local.image_scratch);
      if (f.grad_audio) channels_to_lanes(image, local.V);
      for (int64_t k = 0; k < s.cells * W; ++k) local.D[k] = 0;
      auto [next, next_channel] = item_at(i + (s.channels_last ? panels : 1));
      rows(s.audios, argmax_of(n), row_of(p.grad_scores, n), norms_of(n), audios.gradient_panels + at, local.V,
           local.dA + at, local.D, prefetch_channels<T>(s, f.visual, next, next_channel),
           prefetch_channels<T>(s, f.grad_visual, next, next_channel));
      if (f.grad_visual) store_channels(s, f, image, local.D, t + n * s.cells, n, channel, local.grad_out);
    }
    GOMP_barrier();
    if (f.grad_audio) reduce_audio_gradient(s, f, audios, scratch, true);
  });
}

}  // namespace ssl_fast::SSL_FAST_ISA
