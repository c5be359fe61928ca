// What the backward passes share: the scratch of one thread for one space of cosines, and its way back to the features.
#pragma once
#include "cosine_mean.h"
#include "threads.h"

namespace ssl_fast::SSL_FAST_ISA {

// Images of a thread whose G is gathered before one audio_gradient, so that its products are deep enough. Their G lies
// together: [panel][image of the group][cell][lane].
inline int64_t group_of(const Shape& s) { return s.cells >= 128 ? 1 : s.cells > 16 ? 128 / s.cells : 8; }

// The first `count` lanes of a panel, to and from a row of pairs.
template <class V, class U>
SSL_FAST_AI void store_lanes(const V (&vectors)[kVectors], U* out, int64_t count) {
  constexpr int L = sizeof(V) / sizeof(vectors[0][0]);
  for (int64_t i = 0; i < count; ++i) out[i] = U(vectors[i / L][i % L]);
}
template <class T>
SSL_FAST_AI void load_lanes(const T* in, int64_t count, Vec<T> (&vectors)[kVectors]) {
  alignas(64) T values[kPanel<T>];
  for (int64_t i = 0; i < kPanel<T>; ++i) values[i] = i < count ? in[i] : 0;
  for (int v = 0; v < kVectors; ++v) vectors[v] = load(values + v * kLanes<T>);
}

template <class T>
struct Gradients {
  Image<T>* images;  // of the group
  T *image, *store;  // the images, and a gradient, in the computing type, where they are stored in 16 bits
  int64_t image_size, panel_stride;
  T *G, *D, *dA, *t, *row;
  Half* half;       // G as an operand of bfloat16 products
  Vec<T>* t_lanes;  // (cells): by lanes, the sum over audios of G alpha

  void lay_out(Arena& arena, const Shape& s, const Audios<T>& audios) {
    image_size = round_up(image_scratch<T>(s), 64), panel_stride = group_of(s) * s.cells * kPanel<T>;
    images = arena.take<Image<T>>(group_of(s));
    image = arena.take<T>(group_of(s) * image_size);
    store = arena.take<T>(s.channels * s.cells);
    G = arena.take<T>(audios.panels * panel_stride);
    D = arena.take<T>(round_up(s.cells, 16) * kPanel<T>);
    half = half_products<T>(s) ? arena.take<Half>(half_depth(s.cells) * audios.padded()) : nullptr;
    dA = arena.take<T>(audios.padded() * audios.padded_channels());
    t = arena.take<T>(s.cells);
    row = arena.take<T>(2 * audios.padded_channels());
    t_lanes = arena.take<Vec<T>>(s.cells);
  }
  void clear(const Audios<T>& audios) {
    for (int64_t i = 0; i < audios.padded() * audios.padded_channels(); ++i) dA[i] = 0;
  }
  void open(const Shape& s) {
    for (int64_t c = 0; c < s.cells; ++c) t_lanes[c] = Vec<T>{};
  }
  void close(const Shape& s) {
    for (int64_t c = 0; c < s.cells; ++c) t[c] = sum_lanes<T>(t_lanes[c]);
  }
  // The gradient of image n from G and t, as G carries one factor 1 / |v| already: dv = G A - v / |v| t. `unread`: the
  // image is not in cache yet.
  void publish_visual(const Shape& s, const Features& f, const Image<T>& values, const Audios<T>& audios, int64_t n,
                      const T* G, const T* inverse_norm, bool unread) {
    int64_t size = s.channels * s.cells;
    for (int64_t c = 0; c < s.cells; ++c) t[c] *= inverse_norm[c];
    T* out = destination<T>(f.grad_visual, s.dtype, n * size, store);
    const T *to_read = unread ? values.values : nullptr, *to_write = s.channels_last ? nullptr : out;
    visual_gradient(G, panel_stride, s.cells, audios, D, to_read, to_write, half, [&](int64_t channel) {
      store_gradient(panel_of_channels(values, channel), D, t, out + channel * values.channel_stride);
    });
    publish(out, f.grad_visual, s.dtype, n * size, size);
  }
};

// grad_audio from the sums of all threads, added in the order of the threads. dA lies in panels of audios,
// [panel][channel][lane], or of channels, [panel][audio][lane].
template <class T, class Scratch>
void finish_audios(const Shape& s, const Features& f, const Audios<T>& audios, const Scratch* of_thread,
                   bool of_channels) {
  constexpr int W = kPanel<T>;
  int threads = omp_get_num_threads();
  parallel_for(s.audios, [&](int64_t m) {
    T* row = of_thread[omp_get_thread_num()].row;
    for (int64_t c = 0; c < s.channels; ++c) {
      int64_t at = of_channels ? ((c / W) * audios.padded() + m) * W + c % W : ((m / W) * s.channels + c) * W + m % W;
      row[c] = of_thread[0].dA[at];
      for (int k = 1; k < threads; ++k) row[c] += of_thread[k].dA[at];
    }
    audios.finish(s, m, row, f.grad_audio, row + audios.padded_channels());
  });
}

}  // namespace ssl_fast::SSL_FAST_ISA
