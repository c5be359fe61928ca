// Backward of max pooling: one cell of a pair, the argmax, has a gradient. Scatter and gather of rows, no GEMM.
//
//   g[n, m]              = grad_scores[n, m] / |v[n, p]|,  p = argmax[n, m]
//   grad_visual[n, p, c] = D[p, c] - t[p] v[n, p, c]       D[p, c] = sum of g[n, m] a^[m, c] over the m with argmax p
//   grad_audio[m, c]     = (b[m, c] - u[m] a^[m, c]) / |a|  b[m, c] = dA[m, c] = sum_n g[n, m] v[n, p, c]
//   t[n, p]              = sum of grad_scores[n, m] scores[n, m] over the m with argmax p, over |v|^2
//   u[m]                 = sum_n grad_scores[n, m] scores[n, m] = a^ . b
//
//   visual, grad_visual   (N, channels, cells) or, channels last, (N, cells, channels)
//   scores, grad_scores   (N, M) real; argmax (N, M) int32
//
// Panels of kPanel channels have nothing to do with each other. The workspace holds A, and each thread's dA, of as many
// panels as kBlockBytes take; dA of all threads is then summed in a fixed order. Each thread takes a contiguous range
// of images, by groups whose V and D stay in L2: a row of A and of dA is loaded once for the images of a group.
#pragma once
#include "dense_backward.h"

namespace ssl_fast::SSL_FAST_ISA {

constexpr int64_t kBlockBytes = 2 << 20;    // of dA, at least a panel
constexpr int64_t kGroupBytes = 256 << 10;  // of V and D, at least an image
constexpr int kGroup = 4;                   // images, at most
template <class T>
constexpr int64_t kPanelBytes = kPanel<T> * sizeof(T);  // of one row

// A panel of channels of one image.
template <class T>
struct ImagePanel {
  const int32_t* argmax;  // (M)
  const T *grad, *inverse_norm;
  T *V, *D;  // [cell][lane of channel]
};

// Scratch of one thread.
template <class T>
struct MaxBackwardScratch {
  Image<T> images[kGroup];
  ImagePanel<T> panels[kGroup];
  T *image_scratch, *grad_out;  // panels of the images, and of one gradient, in the computing type
  T *dA, *row;                  // [panel of channels][audio][lane]; (padded channels)

  void allocate(Workspace& workspace, const Shape& s, int64_t group, int64_t block) {
    const int64_t size = s.cells * kPanel<T>;
    image_scratch = workspace.take<T>(group * size);
    grad_out = workspace.take<T>(size);
    for (int64_t i = 0; i < group; ++i) panels[i].V = workspace.take<T>(size), panels[i].D = workspace.take<T>(size);
    dA = workspace.take<T>(block * s.audios * kPanel<T>);
    row = workspace.take<T>(round_up(s.channels, kPanel<T>));
  }
};

// Prefetcher of a panel of channels of some images one after the other (channels last: so many bytes of each).
struct PanelPrefetcher {
  L2Prefetcher image[kGroup];
  int current = 0;

  template <bool kForWrite = false>
  SSL_FAST_ALWAYS_INLINE void prefetch_step() {
    image[current].template prefetch_step<kForWrite>();
    if (!image[current].lines_left && current + 1 < kGroup) ++current;
  }
};
// Of images `first` to `last`, over the audios; none where there is no tensor.
template <class T>
PanelPrefetcher prefetch_panel(const Shape& s, const void* tensor, int64_t first, int64_t last, int64_t channel) {
  int64_t width = s.channels - channel < kPanel<T> ? s.channels - channel : kPanel<T>;
  auto of = [&](int64_t n) -> L2Prefetcher {
    int64_t at = (n * s.all_channels + s.first_channel + channel) * s.cells * bytes_of(s.dtype);
    return {tensor && n < last ? static_cast<const char*>(tensor) + at : nullptr, width * s.cells * bytes_of(s.dtype),
            s.audios / (last - first) + 1};
  };
  if (first >= last) last = first + 1, tensor = nullptr;
  return {{of(first), of(first + 1), of(first + 2), of(first + 3)}};
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

// For all m and G images, with p = argmax[m] and g = grad[m] / |v|: scatter-add D[p] += g A[m], gather dA[m] += g V[p].
template <int G, bool kVisual, bool kAudio, class T>
__attribute__((noinline)) void scatter_gather_rows(int64_t audios, const ImagePanel<T>* panels, const T* A, T* dA,
                                                   PanelPrefetcher to_read, PanelPrefetcher to_write) {
  constexpr int L = kLanes<T>, W = kPanel<T>;
  ImagePanel<T> image[G];
  for (int i = 0; i < G; ++i) image[i] = panels[i];
  for (int64_t m = 0; m < audios; ++m) {
    to_read.prefetch_step();
    to_write.template prefetch_step<true>();
    Vec<T> a[kVectors], da[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      if (kVisual) a[v] = load(A + m * W + v * L);
      if (kAudio) da[v] = load(dA + m * W + v * L);
    }
#pragma GCC unroll 4
    for (int i = 0; i < G; ++i) {
      int64_t cell = image[i].argmax[m];
      T g = image[i].grad[m] * image[i].inverse_norm[cell];
      for (int v = 0; v < kVectors; ++v) {
        T* d = image[i].D + cell * W + v * L;
        if (kVisual) store(d, load(d) + a[v] * g);
        if (kAudio) da[v] += load(image[i].V + cell * W + v * L) * g;
      }
    }
    if (kAudio)
      for (int v = 0; v < kVectors; ++v) store(dA + m * W + v * L, da[v]);
  }
}
template <int G, class T>
void scatter_gather(const Shape& s, const Features& f, const ImagePanel<T>* panels, const T* A, T* dA,
                    const PanelPrefetcher& to_read, const PanelPrefetcher& to_write) {
  auto rows = f.grad_visual
                  ? f.grad_audio ? scatter_gather_rows<G, true, true, T> : scatter_gather_rows<G, true, false, T>
                  : scatter_gather_rows<G, false, true, T>;
  rows(s.audios, panels, A, dA, to_read, to_write);
}

// grad_audio of `count` panels from panel `first` on, from the dA of all threads, in the order of the threads.
template <class T>
void reduce_panels(const Shape& s, const Features& f, const MaxBackwardScratch<T>* scratch, int64_t first,
                   int64_t count, const T* A, const T* inverse_norm, const T* u) {
  constexpr int L = kLanes<T>, W = kPanel<T>;
  int threads = omp_get_num_threads();
  T* row = scratch[omp_get_thread_num()].row;
  parallel_for(s.audios, [&](int64_t m) {
    for (int64_t k = 0; k < count; ++k) {
      int64_t at = (k * s.audios + m) * W, channel = (first + k) * W;
      for (int c = 0; c < W; c += L) {
        Vec<T> sum = load(scratch[0].dA + at + c);
        for (int i = 1; i < threads; ++i) sum += load(scratch[i].dA + at + c);
        store(row + c, inverse_norm[m] * (sum - u[m] * load(A + at + c)));
      }
      store_audio(s, row, f.grad_audio, m, channel, s.channels - channel < W ? s.channels - channel : W);
    }
  });
}

template <class T>
void max_backward(const SimilarityParams& p, Workspace& workspace) {
  constexpr int W = kPanel<T>;
  const Shape& s = p.shape;
  const Features& f = p.features;
  auto minimum = [](int64_t a, int64_t b) { return a < b ? a : b; };
  auto at_least_one = [](int64_t x) { return x > 1 ? x : 1; };
  const int64_t panels = (s.channels + W - 1) / W;
  const int64_t block = minimum(panels, at_least_one(kBlockBytes / (s.audios * kPanelBytes<T>)));
  const int64_t group = minimum(kGroup, at_least_one(kGroupBytes / (2 * s.cells * kPanelBytes<T>)));
  T* A = workspace.take<T>(block * s.audios * W);  // [panel of channels][audio][lane]
  T* inverse_norm = workspace.take<T>(s.audios);
  T* u = workspace.take<T>(s.audios);
  T* t = workspace.take<T>(s.images * s.cells);
  auto* scratch = workspace.take<MaxBackwardScratch<T>>(p.threads);
  for (int i = 0; i < p.threads; ++i) scratch[i].allocate(workspace, s, group, block);

  parallel(p.threads, [&] {
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    MaxBackwardScratch<T>& local = scratch[thread];
    int64_t begin = s.images * thread / threads, end = s.images * (thread + 1) / threads;
    auto row_of = [&](const void* pairs, int64_t n) { return static_cast<const T*>(pairs) + n * s.audios; };
    auto argmax_of = [&](int64_t n) { return static_cast<const int32_t*>(p.residual) + n * s.audios; };
    auto norms_of = [&](int64_t n) { return static_cast<const T*>(f.inverse_norm) + n * s.cells; };
    for (int64_t i = begin * s.cells; i < end * s.cells; ++i) t[i] = 0;
    for (int64_t n = begin; n < end && s.normalized; ++n) {
      for (int64_t m = 0; m < s.audios; ++m)
        t[n * s.cells + argmax_of(n)[m]] += row_of(p.grad_scores, n)[m] * row_of(p.scores, n)[m];
      for (int64_t c = 0; c < s.cells; ++c) t[n * s.cells + c] *= norms_of(n)[c] * norms_of(n)[c];
    }
    int64_t first_audio = s.audios * thread / threads, last_audio = s.audios * (thread + 1) / threads;
    for (int64_t m = first_audio; m < last_audio; ++m) {
      u[m] = 0;
      inverse_norm[m] = inverse_length(s, load_audio(s, f.audio, m, 0, s.channels, local.row), s.channels);
    }
    for (int64_t n = 0; n < s.images && s.normalized && f.grad_audio; ++n)
      for (int64_t m = first_audio; m < last_audio; ++m) u[m] += row_of(p.grad_scores, n)[m] * row_of(p.scores, n)[m];

    // The images of a group, from `first` on, for the panel at `channel`; its A and dA.
    auto run_group = [&](int64_t first, int64_t channel, const T* A, T* dA) {
      const int64_t last = minimum(first + group, end), width = minimum(W, s.channels - channel);
      for (int64_t n = first; n < last; ++n) {
        const int64_t i = n - first;
        ImagePanel<T>& panel = local.panels[i];
        panel.argmax = argmax_of(n), panel.grad = row_of(p.grad_scores, n), panel.inverse_norm = norms_of(n);
        local.images[i] = load_channels(s, f.visual, n, channel, width, local.image_scratch + i * s.cells * W);
        if (f.grad_audio) channels_to_lanes(local.images[i], panel.V);
        for (int64_t k = 0; k < s.cells * W; ++k) panel.D[k] = 0;
      }
      int64_t next = last, next_channel = channel;
      if (next == end && !s.channels_last) next = begin, next_channel += W;
      if (next_channel >= s.channels) next = end;
      auto to_read = prefetch_panel<T>(s, f.visual, next, minimum(next + group, end), next_channel);
      auto to_write = prefetch_panel<T>(s, f.grad_visual, first, last, channel);
      switch (last - first) {
        case 1: scatter_gather<1>(s, f, local.panels, A, dA, to_read, to_write); break;
        case 2: scatter_gather<2>(s, f, local.panels, A, dA, to_read, to_write); break;
        case 3: scatter_gather<3>(s, f, local.panels, A, dA, to_read, to_write); break;
        case 4: scatter_gather<4>(s, f, local.panels, A, dA, to_read, to_write); break;
      }
      for (int64_t n = first; n < last && f.grad_visual; ++n)
        store_panel(s, f, local.images[n - first], local.panels[n - first].D, t + n * s.cells, n, channel,
                    local.grad_out);
    };
    for (int64_t first = 0; first < panels; first += block) {
      const int64_t count = minimum(block, panels - first), channel = first * W;
      const int64_t width = minimum(count * W, s.channels - channel);
      parallel_for(s.audios, [&](int64_t m) {
        const T* raw = load_audio(s, f.audio, m, channel, width, local.row);
        for (int64_t k = 0; k < count; ++k)
          for (int64_t c = 0; c < W; ++c)
            A[(k * s.audios + m) * W + c] = k * W + c < width ? raw[k * W + c] * inverse_norm[m] : T(0);
      });
      for (int64_t i = 0; i < count * s.audios * W && f.grad_audio; ++i) local.dA[i] = 0;
      auto run = [&](int64_t image, int64_t k) {
        run_group(image, channel + k * W, A + k * s.audios * W, local.dA + k * s.audios * W);
      };
      if (s.channels_last) {
        for (int64_t image = begin; image < end; image += group)
          for (int64_t k = 0; k < count; ++k) run(image, k);
      } else {
        for (int64_t k = 0; k < count; ++k)
          for (int64_t image = begin; image < end; image += group) run(image, k);
      }
      GOMP_barrier();
      if (f.grad_audio) reduce_panels(s, f, scratch, first, count, A, inverse_norm, u);
    }
  });
}

}  // namespace ssl_fast::SSL_FAST_ISA
