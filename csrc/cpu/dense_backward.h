// From G, the gradient with respect to the cosines, to gradients of the features: what the backward passes that have a
// G for every cell share. With v^ = v / |v|, a^ = a / |a|, and G over |v|:
//
//   grad_visual[n, :, p] = sum_m G[p, m] a^[m] - t[p] v / |v|,   t[p] = sum_m G[p, m] alpha[p, m]
//   grad_audio[m]        = (g - a^ (a^ . g)) / |a|,              g = sum_n,p G[p, m] v
//
// A thread takes a contiguous range of images and writes their grad_visual. g is summed in each thread's dA, over a few
// images at once (images_per_group), and then over threads, in a fixed order: results repeat bit for bit.
#pragma once
#include "cosine_mean.h"
#include "threads.h"

namespace ssl_fast::SSL_FAST_ISA {

// Images whose G is collected for one audio_gradient: K, their cells, is then deep enough for the GEMM. Layout of G:
// [panel][image of the group][cell][lane].
inline int64_t images_per_group(const Shape& s) { return s.cells >= 128 ? 1 : s.cells > 16 ? 128 / s.cells : 8; }

// The first `count` lanes of a panel, to and from contiguous values of any type.
template <class V, class U>
SSL_FAST_ALWAYS_INLINE void store_lanes(const V (&vectors)[kVectors], U* out, int64_t count) {
  constexpr int L = sizeof(V) / sizeof(vectors[0][0]);
  for (int64_t i = 0; i < count; ++i) out[i] = U(vectors[i / L][i % L]);
}
template <class T>
SSL_FAST_ALWAYS_INLINE void load_lanes(const T* in, int64_t count, Vec<T> (&vectors)[kVectors], T others = 0) {
  alignas(64) T values[kPanel<T>];
  for (int64_t i = 0; i < kPanel<T>; ++i) values[i] = i < count ? in[i] : others;
  for (int v = 0; v < kVectors; ++v) vectors[v] = load(values + v * kLanes<T>);
}

// grad_visual of image n, for the panel of channels from `channel` on, from D and t. image: that panel, as
// load_channels would give it.
template <class T>
void store_panel(const Shape& s, const Features& f, const Image<T>& image, const T* D, const T* t, int64_t n,
                 int64_t channel, T* grad_out) {
  T* out = channels_output(s, f.grad_visual, n, channel, image.channels, grad_out);
  store_gradient_panel(image, D, t, out);
  store_channels(s, out, f.grad_visual, n, channel, image.channels);
}

// Scratch of one thread, for one space of cosines.
template <class T>
struct BackwardScratch {
  Image<T>* images;  // of the group
  T* image_scratch;  // images, image_size apart
  T* grad_out;  // one gradient in the computing type: of an image that is channels last, else of a panel of channels
  int64_t image_size, panel_stride;
  T *G, *D, *dA, *t, *row;  // row: (2, padded channels)
  Bf16* bf16_G;
  Vec<T>* t_lanes;  // (cells): t before the sum over lanes

  void allocate(Workspace& workspace, const Shape& s, const PackedAudios<T>& audios) {
    image_size = round_up(image_scratch_size<T>(s), 64), panel_stride = images_per_group(s) * s.cells * kPanel<T>;
    images = workspace.take<Image<T>>(images_per_group(s));
    image_scratch = workspace.take<T>(images_per_group(s) * image_size);
    grad_out = workspace.take<T>(s.cells * (s.channels_last ? s.channels : kPanel<T>));
    G = workspace.take<T>(audios.panels * panel_stride);
    D = workspace.take<T>(round_up(s.cells, 16) * kPanel<T>);
    bf16_G = uses_bf16_gemm<T>(s) ? workspace.take<Bf16>(bf16_depth(s.cells) * audios.padded()) : nullptr;
    dA = workspace.take<T>(audios.padded() * audios.padded_channels());
    t = workspace.take<T>(s.cells);
    row = workspace.take<T>(2 * audios.padded_channels());
    t_lanes = workspace.take<Vec<T>>(s.cells);
  }
  void zero_dA(const PackedAudios<T>& audios) {
    for (int64_t i = 0; i < audios.padded() * audios.padded_channels(); ++i) dA[i] = 0;
  }
  void zero_t(const Shape& s) {
    for (int64_t c = 0; c < s.cells; ++c) t_lanes[c] = Vec<T>{};
  }
  void reduce_t(const Shape& s) {
    for (int64_t c = 0; c < s.cells; ++c) t[c] = sum_lanes<T>(t_lanes[c]);
  }
  // grad_visual of image n from its G and t; not_in_cache: the image was not read just before.
  void store_visual_gradient(const Shape& s, const Features& f, const Image<T>& values, const PackedAudios<T>& audios,
                             int64_t n, const T* G, const T* inverse_norm, bool not_in_cache) {
    for (int64_t c = 0; c < s.cells; ++c) t[c] = s.normalized ? t[c] * inverse_norm[c] : T(0);
    T* out = channels_output(s, f.grad_visual, n, 0, s.channels, grad_out);
    const bool whole = !s.channels_last || s.channels == s.all_channels;
    const T* to_read = not_in_cache && whole ? values.values : nullptr;
    const T* to_write = s.channels_last || out == grad_out ? nullptr : out;
    visual_gradient(G, panel_stride, s.cells, audios, D, to_read, to_write, bf16_G, [&](int64_t channel) {
      const Image<T> panel = channel_panel(values, channel);
      s.channels_last ? store_gradient_panel(panel, D, t, out + channel)
                      : store_panel(s, f, panel, D, t, n, channel, grad_out);
    });
    if (s.channels_last) store_channels(s, out, f.grad_visual, n, 0, s.channels);
  }
};

// grad_audio from the dA of all threads, summed in the order of the threads. Layout of dA: [panel of audios][channel]
// [lane].
template <class T, class Scratch>
void reduce_audio_gradient(const Shape& s, const Features& f, const PackedAudios<T>& audios, const Scratch* scratch) {
  constexpr int W = kPanel<T>;
  int threads = omp_get_num_threads();
  parallel_for(s.audios, [&](int64_t m) {
    T* row = scratch[omp_get_thread_num()].row;
    for (int64_t c = 0; c < s.channels; ++c) {
      int64_t at = ((m / W) * s.channels + c) * W + m % W;
      row[c] = scratch[0].dA[at];
      for (int k = 1; k < threads; ++k) row[c] += scratch[k].dA[at];
    }
    audios.normalize_backward(s, m, row, f.grad_audio, row + audios.padded_channels());
  });
}

}  // namespace ssl_fast::SSL_FAST_ISA
