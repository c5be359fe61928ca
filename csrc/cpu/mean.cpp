// The mean of the unit vectors of each image: all that mean pooling needs of a map.
#include "streaming.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <class T>
T weight_of(const CellsParams& p, int64_t n, int64_t cell) {
  return p.weight ? static_cast<const T*>(p.weight)[n * p.shape.cells + cell] : T(1) / p.shape.cells;
}

struct Forward {
  template <class T>
  static void run(const CellsParams& p, const Image<T>& image, int64_t n, Row<T>& row) {
    T* inverse_norm = static_cast<T*>(p.inverse_norm) + n * p.shape.cells;
    inverse_norms(image, inverse_norm);
    for (int64_t c = 0; c < p.shape.cells; ++c) row.gain[c] = weight_of<T>(p, n, c) * inverse_norm[c];
    Ahead next = row.ahead(p, n);
    cell_sum(image, row.gain, static_cast<T*>(p.out) + n * p.shape.channels, row.sums, next);
  }
};

// u = sum_p w v^;  dv = w / |v| (g - v^ (v^ . g))
struct Backward {
  template <class T>
  static void run(const CellsParams& p, const Image<T>& image, int64_t n, Row<T>& row) {
    const T* inverse_norm = static_cast<const T*>(p.inverse_norm) + n * p.shape.cells;
    const T* grad = static_cast<const T*>(p.grad_out) + n * p.shape.channels;
    for (int64_t c = 0; c < p.shape.channels; ++c) row.unit[c] = grad[c];
    channel_dots(image, row.unit, row.loss);
    for (int64_t c = 0; c < p.shape.cells; ++c) {
      row.gain[c] = weight_of<T>(p, n, c) * inverse_norm[c];
      row.loss[c] *= row.gain[c] * inverse_norm[c] * inverse_norm[c];
    }
    row.store_gradient(p, image, n);
  }
};

}  // namespace

const Kernel<CellsParams> mean_kernel = streaming<Forward>(), mean_backward_kernel = streaming<Backward>();

}  // namespace ssl_fast::SSL_FAST_ISA
