// Mean of the unit vectors v^ = v / |v| of each image: all that mean pooling needs of a map. Or several means, with
// other weights, from one pass over the images.
//
//   forward    out[k, n]         = sum_p w[k, n, p] v^[n, p],              w = weight, or 1 / cells
//   backward   grad_visual[n, p] = sum_k w / |v| (g - v^ (v^ . g)),  g = grad_out[k, n]
//
//   visual, grad_visual   (N, channels, cells) or, channels last, (N, cells, channels)
//   out, grad_out (means, N, channels) real; weight (means, N, cells), inverse_norm (N, cells) real
//
// Images are split over threads in contiguous ranges.
#include "streaming.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <class T>
T weight_of(const CellsParams& p, int64_t row, int64_t cell) {  // row: k * N + n
  return p.weight ? static_cast<const T*>(p.weight)[row * p.shape.cells + cell] : T(1) / p.shape.cells;
}

struct Forward {
  template <class T>
  static void run(const CellsParams& p, const Image<T>& image, int64_t n, StreamingScratch<T>& local) {
    T* inverse_norm = static_cast<T*>(p.inverse_norm) + n * p.shape.cells;
    inverse_norms(p.shape, image, inverse_norm);
    for (int64_t k = 0; k < p.means; ++k) {
      const int64_t row = k * p.shape.images + n;
      for (int64_t c = 0; c < p.shape.cells; ++c) local.gain[c] = weight_of<T>(p, row, c) * inverse_norm[c];
      L2Prefetcher next = local.prefetch_next(p, n);
      cell_dots(image, local.gain, static_cast<T*>(p.out) + row * p.shape.channels, local.partial_sums, next);
    }
  }
};

struct Backward {
  template <class T>
  static void run(const CellsParams& p, const Image<T>& image, int64_t n, StreamingScratch<T>& local) {
    const T* inverse_norm = static_cast<const T*>(p.inverse_norm) + n * p.shape.cells;
    for (int64_t k = 0; k < p.means; ++k) {
      const int64_t row = k * p.shape.images + n;
      const T* grad = static_cast<const T*>(p.grad_out) + row * p.shape.channels;
      for (int64_t c = 0; c < p.shape.channels; ++c) local.x[c] = grad[c];
      channel_dots(image, local.x, local.projection);
      for (int64_t c = 0; c < p.shape.cells; ++c) {
        local.gain[c] = weight_of<T>(p, row, c) * inverse_norm[c];
        // from left to right: the product of the factors alone would be subnormal for long vectors
        local.projection[c] = local.projection[c] * inverse_norm[c] * inverse_norm[c] * local.gain[c];
      }
      local.store_visual_gradient(p, image, n, k);
    }
  }
};

}  // namespace

void mean_kernel(const CellsParams& p, Workspace& workspace) { run_streaming<Forward>(p, workspace); }
void mean_backward_kernel(const CellsParams& p, Workspace& workspace) { run_streaming<Backward>(p, workspace); }

}  // namespace ssl_fast::SSL_FAST_ISA
