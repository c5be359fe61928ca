// The backward pass of a pooling with one non-zero slope per pair: rows are added up, no matrix product.
#pragma once
#include "dense_backward.h"

namespace ssl_fast::SSL_FAST_ISA {

struct Place {
  int64_t image, channel;
};

// What a thread needs for one panel of channels of one image.
template <class T>
struct Gather {
  T *image, *store;  // the panel and its gradient in the computing type, where they are stored in 16 bits
  T *V, *D;          // the same in [cell][lane]
  T *dA, *row;       // [panel of channels][audio][lane]; (2, padded channels)

  void lay_out(Arena& arena, const Shape& s, const Audios<T>& audios) {
    image = arena.take<T>(s.cells * kPanel<T>);
    store = arena.take<T>(s.cells * kPanel<T>);
    V = arena.take<T>(s.cells * kPanel<T>);
    D = arena.take<T>(s.cells * kPanel<T>);
    dA = arena.take<T>(audios.padded() * audios.padded_channels());
    row = arena.take<T>(2 * audios.padded_channels());
  }
};

// `count` channels of image n from `channel` on, in the computing type.
template <class T>
Image<T> channels_at(const Shape& s, const void* visual, int64_t n, int64_t channel, int64_t count, T* scratch) {
  int64_t first = n * s.channels * s.cells;
  if (!s.channels_last)
    return {values_of<T>(visual, s.dtype, first + channel * s.cells, count * s.cells, scratch),
            count,
            s.cells,
            s.cells,
            1,
            nullptr,
            nullptr};
  const T* values = nullptr;
  for (int64_t cell = s.cells - 1; cell >= 0; --cell)
    values = values_of<T>(visual, s.dtype, first + cell * s.channels + channel, count, scratch + cell * count);
  return {values, count, s.cells, 1, values == scratch ? count : s.channels, nullptr, nullptr};
}

// What is worked on next, brought in meanwhile: a panel of channels, or with channels last an image, a share at each
// panel.
template <class T>
Ahead channels_ahead(const Shape& s, const void* visual, int64_t n, int64_t channel) {
  int64_t count = s.channels - channel < kPanel<T> ? s.channels - channel : kPanel<T>;
  int64_t size = s.dtype == DType::float64 ? 8 : s.dtype == DType::float32 ? 4 : 2;
  bool is_there = visual && count > 0 && n < s.images;
  int64_t first = (n * s.channels + channel) * s.cells * size;
  return {is_there ? static_cast<const char*>(visual) + first : nullptr, count * s.cells * size, s.audios};
}

// out (cells, kPanel) = up to a panel of channels, with the channels last.
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

// Panel `channel` of the gradient of image n, from D and t.
template <class T>
void store_channels(const Shape& s, const Features& f, const Image<T>& image, const T* D, const T* t, int64_t n,
                    int64_t channel, T* store) {
  int64_t first = n * s.channels * s.cells;
  if (!s.channels_last) {
    int64_t count = image.channels * s.cells;
    T* out = destination<T>(f.grad_visual, s.dtype, first + channel * s.cells, store);
    store_gradient(image, D, t, out);
    publish(out, f.grad_visual, s.dtype, first + channel * s.cells, count);
    return;
  }
  T* out = destination<T>(f.grad_visual, s.dtype, first + channel, store);
  store_gradient(image, D, t, out);
  for (int64_t cell = 0; cell < s.cells; ++cell)
    publish(out + cell * image.cell_stride, f.grad_visual, s.dtype, first + cell * s.channels + channel,
            image.channels);
}

// D[cell of m] += g[m] A[m],  dA[m] += g[m] V[cell of m],  g[m] = grad[m] / |v|
template <bool kVisual, bool kAudio, class T>
__attribute__((noinline)) void gather_rows(int64_t audios, const int32_t* cell_of, const T* grad, const T* inverse_norm,
                                           const T* A, const T* V, T* dA, T* D, Ahead to_read, Ahead to_write) {
  constexpr int L = kLanes<T>, W = kPanel<T>;
  for (int64_t m = 0; m < audios; ++m) {
    to_read.step();
    to_write.step<true>();
    int64_t row = int64_t(cell_of[m]) * W;
    T g = grad[m] * inverse_norm[cell_of[m]];
#pragma GCC unroll 4
    for (int k = 0; k < W; k += L) {
      if (kVisual) store(D + row + k, load(D + row + k) + load(A + m * W + k) * g);
      if (kAudio) store(dA + m * W + k, load(dA + m * W + k) + load(V + row + k) * g);
    }
  }
}

// A panel of channels at a time: the audios' part of it, and the sums for them, stay in cache over many images.
template <class T>
void gather(const SimilarityParams& p, char* workspace, int64_t* bytes) {
  constexpr int W = kPanel<T>;
  const Shape& s = p.shape;
  const Features& f = p.features;
  Arena arena{workspace};
  Audios<T> audios;
  audios.lay_out(arena, s, true);
  T* t = arena.take<T>(s.images * s.cells);  // what the length of a cell takes of its gradient, over |v|
  auto* scratch = arena.take<Gather<T>>(p.threads);
  for (int i = 0; i < p.threads; ++i) {
    Gather<T> mine;
    mine.lay_out(arena, s, audios);
    if (workspace) scratch[i] = mine;
  }
  if (bytes) return void(*bytes = arena.used);

  parallel(p.threads, [&] {
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    Gather<T>& my = scratch[thread];
    parallel_for(audios.panels, [&](int64_t panel) { audios.pack(s, f.audio, panel, true); });
    int64_t begin = s.images * thread / threads, end = s.images * (thread + 1) / threads;
    auto row_of = [&](const void* pairs, int64_t n) { return static_cast<const T*>(pairs) + n * s.audios; };
    auto cells_of = [&](int64_t n) { return static_cast<const int32_t*>(p.residual) + n * s.audios; };
    auto norms_of = [&](int64_t n) { return static_cast<const T*>(f.inverse_norm) + n * s.cells; };
    for (int64_t i = 0; i < audios.padded() * audios.padded_channels(); ++i) my.dA[i] = 0;
    for (int64_t i = begin * s.cells; i < end * s.cells; ++i) t[i] = 0;
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t m = 0; m < s.audios; ++m)
        t[n * s.cells + cells_of(n)[m]] += row_of(p.grad_scores, n)[m] * row_of(p.scores, n)[m];
      for (int64_t c = 0; c < s.cells; ++c) t[n * s.cells + c] *= norms_of(n)[c] * norms_of(n)[c];
    }
    const int64_t images = end - begin, panels = (s.channels + W - 1) / W;
    auto place_of = [&](int64_t i) {  // in the order of memory: what comes next is near, and can be brought in
      return s.channels_last ? Place{begin + i / panels, i % panels * W} : Place{begin + i % images, i / images * W};
    };
    auto rows = f.grad_visual ? f.grad_audio ? gather_rows<true, true, T> : gather_rows<true, false, T>
                              : gather_rows<false, true, T>;
    for (int64_t i = 0; i < panels * images; ++i) {
      auto [n, channel] = place_of(i);
      int64_t count = s.channels - channel < W ? s.channels - channel : W, at = channel * audios.padded();
      Image<T> image = channels_at(s, f.visual, n, channel, count, my.image);
      if (f.grad_audio) channels_to_lanes(image, my.V);
      for (int64_t k = 0; k < s.cells * W; ++k) my.D[k] = 0;
      auto [next, next_channel] = place_of(i + (s.channels_last ? panels : 1));
      rows(s.audios, cells_of(n), row_of(p.grad_scores, n), norms_of(n), audios.columns + at, my.V, my.dA + at, my.D,
           channels_ahead<T>(s, f.visual, next, next_channel), channels_ahead<T>(s, f.grad_visual, next, next_channel));
      if (f.grad_visual) store_channels(s, f, image, my.D, t + n * s.cells, n, channel, my.store);
    }
    GOMP_barrier();
    if (f.grad_audio) finish_audios(s, f, audios, scratch, true);
  });
}

}  // namespace ssl_fast::SSL_FAST_ISA
