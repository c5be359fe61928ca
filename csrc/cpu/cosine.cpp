// Cosine map of each image with its own audio; v^ = v / |v|, a^ = a / |a|.
//
//   forward    out[n, p]         = alpha = v^[n, p] . a^[n]
//   backward   grad_visual[n, p] = g[n, p] / |v| (a^ - v^ alpha),   g = grad_out
//              grad_audio[n]     = (b - a^ (a^ . b)) / |a|,         b = sum_p g[n, p] v^[n, p]
//
//   visual, grad_visual   (N, channels, cells) or, channels last, (N, cells, channels)
//   audio (N, channels); out, grad_out, inverse_norm (N, cells) real; grad_audio (N, channels) real
//
// Images are split over threads in contiguous ranges.
#include "streaming.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

struct Forward {
  template <class T>
  static void run(const CellsParams& p, const Image<T>& image, int64_t n, StreamingScratch<T>& local) {
    const Shape& s = p.shape;
    T *inverse_norm = static_cast<T*>(p.inverse_norm) + n * s.cells, *map = static_cast<T*>(p.out) + n * s.cells;
    local.load_unit_audio(s, p.audio, n);
    inverse_norms(s, image, inverse_norm);
    channel_dots(image, local.x, map);
    for (int64_t c = 0; c < s.cells; ++c) map[c] *= inverse_norm[c];
  }
};

struct Backward {
  template <class T>
  static void run(const CellsParams& p, const Image<T>& image, int64_t n, StreamingScratch<T>& local) {
    const Shape& s = p.shape;
    const T* inverse_norm = static_cast<const T*>(p.inverse_norm) + n * s.cells;
    const T *map = static_cast<const T*>(p.out) + n * s.cells, *grad = static_cast<const T*>(p.grad_out) + n * s.cells;
    T scale = local.load_unit_audio(s, p.audio, n);
    for (int64_t c = 0; c < s.cells; ++c) {
      local.gain[c] = grad[c] * inverse_norm[c];
      local.projection[c] = local.gain[c] * map[c] * inverse_norm[c];
    }
    if (p.grad_visual) local.store_visual_gradient(p, image, n);
    if (!p.grad_audio) return;
    T *b = local.b, *out = static_cast<T*>(p.grad_audio) + n * s.channels, dot = 0;
    L2Prefetcher next = local.prefetch_next(p, n);
    cell_dots(image, local.gain, b, local.partial_sums, next);
    for (int64_t c = 0; c < s.channels; ++c) dot += b[c] * local.x[c];
    for (int64_t c = 0; c < s.channels; ++c) out[c] = scale * (b[c] - local.x[c] * dot);
  }
};

}  // namespace

void cosine_kernel(const CellsParams& p, Workspace& workspace) { run_streaming<Forward>(p, workspace); }
void cosine_backward_kernel(const CellsParams& p, Workspace& workspace) { run_streaming<Backward>(p, workspace); }

}  // namespace ssl_fast::SSL_FAST_ISA
