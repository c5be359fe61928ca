// Kernels that read each image once and need no other image: what a thread holds for one image, and the loop over
// images.
#pragma once
#include "cosine_mean.h"
#include "kernel_table.h"
#include "threads.h"

namespace ssl_fast::SSL_FAST_ISA {

template <class T>
struct Row {
  T *image, *store, *unit, *other, *sums;  // (channels * cells) twice, (channels) twice, (4, channels)
  T *gain, *loss;                          // (cells): dv = gain x - loss v, where x is `unit`

  void lay_out(Arena& arena, const Shape& s) {
    image = arena.take<T>(s.channels * s.cells);
    store = arena.take<T>(s.channels * s.cells);
    unit = arena.take<T>(s.channels);
    other = arena.take<T>(s.channels);
    sums = arena.take<T>(4 * s.channels);
    gain = arena.take<T>(s.cells);
    loss = arena.take<T>(s.cells);
  }
  // unit = audio[n] / |audio[n]|; returns 1 / |audio[n]|
  T set_unit(const Shape& s, const void* audio, int64_t n) {
    const T* raw = values_of<T>(audio, s.dtype, n * s.channels, s.channels, unit);
    T sum = 0;
    for (int64_t c = 0; c < s.channels; ++c) sum += raw[c] * raw[c];
    T scale = inverse_length(sum);
    for (int64_t c = 0; c < s.channels; ++c) unit[c] = raw[c] * scale;
    return scale;
  }
  // The next image, over the rows of a pass through this one.
  Ahead ahead(const CellsParams& p, int64_t n) const {
    return image_ahead(p.shape, p.visual, n + 1, p.shape.channels_last ? p.shape.cells : p.shape.channels);
  }
  void store_gradient(const CellsParams& p, const Image<T>& values, int64_t n) {
    int64_t size = p.shape.channels * p.shape.cells;
    T* out = destination<T>(p.grad_visual, p.shape.dtype, n * size, store);
    Ahead next = ahead(p, n);
    cell_gradient(values, unit, gain, loss, out, next);
    publish(out, p.grad_visual, p.shape.dtype, n * size, size);
  }
};

template <class Work, class T>
void for_images(const CellsParams& p, char* workspace, int64_t* bytes) {
  Arena arena{workspace};
  Row<T>* rows = arena.take<Row<T>>(p.threads);
  Row<T> sizes;
  for (int i = 0; i < p.threads; ++i) (workspace ? rows[i] : sizes).lay_out(arena, p.shape);
  if (bytes) return void(*bytes = arena.used);
  parallel(p.threads, [&] {
    Row<T>& row = rows[omp_get_thread_num()];
    parallel_for(p.shape.images, [&](int64_t n) { Work::run(p, image_at(p.shape, p.visual, n, row.image), n, row); });
  });
}

template <class Work>
void run_streaming(const CellsParams& p, char* workspace, int64_t* bytes) {
  with_type(p, [&](auto zero) { for_images<Work, decltype(zero)>(p, workspace, bytes); });
}
template <class Work>
constexpr Kernel<CellsParams> streaming() {
  return make_kernel<CellsParams, run_streaming<Work>>();
}

}  // namespace ssl_fast::SSL_FAST_ISA
