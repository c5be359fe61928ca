// The cosine map of each image with its own audio.
#include "streaming.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

struct Forward {
  template <class T>
  static void run(const CellsParams& p, const Image<T>& image, int64_t n, Row<T>& row) {
    const Shape& s = p.shape;
    T *inverse_norm = static_cast<T*>(p.inverse_norm) + n * s.cells, *map = static_cast<T*>(p.out) + n * s.cells;
    row.set_unit(s, p.audio, n);
    inverse_norms(image, inverse_norm);
    channel_dots(image, row.unit, map);
    for (int64_t c = 0; c < s.cells; ++c) map[c] *= inverse_norm[c];
  }
};

// alpha = v^ . a^;  dv = g / |v| (a^ - v^ alpha),  da = 1 / |a| (b - a^ (a^ . b)) with b = sum_p g v^
struct Backward {
  template <class T>
  static void run(const CellsParams& p, const Image<T>& image, int64_t n, Row<T>& row) {
    const Shape& s = p.shape;
    const T* inverse_norm = static_cast<const T*>(p.inverse_norm) + n * s.cells;
    const T *map = static_cast<const T*>(p.out) + n * s.cells, *grad = static_cast<const T*>(p.grad_out) + n * s.cells;
    T scale = row.set_unit(s, p.audio, n);
    for (int64_t c = 0; c < s.cells; ++c) {
      row.gain[c] = grad[c] * inverse_norm[c];
      row.loss[c] = row.gain[c] * map[c] * inverse_norm[c];
    }
    if (p.grad_visual) row.store_gradient(p, image, n);
    if (!p.grad_audio) return;
    T *b = row.other, *out = static_cast<T*>(p.grad_audio) + n * s.channels, dot = 0;
    Ahead next = row.ahead(p, n);
    cell_sum(image, row.gain, b, row.sums, next);
    for (int64_t c = 0; c < s.channels; ++c) dot += b[c] * row.unit[c];
    for (int64_t c = 0; c < s.channels; ++c) out[c] = scale * (b[c] - row.unit[c] * dot);
  }
};

}  // namespace

const Kernel<CellsParams> cosine_kernel = streaming<Forward>(), cosine_backward_kernel = streaming<Backward>();

}  // namespace ssl_fast::SSL_FAST_ISA
