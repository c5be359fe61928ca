// The tile engine of the CPU: three matrix products around one micro-kernel, none of which writes a map of all pairs.
//
// SIMD lanes run over audios, register rows over cells:
//   similarities     alpha[p, m] = sum_c V[c, p] A[m, c]     handed tile by tile to an epilogue, which pools it
//   visual_gradient  D[p, c]     = sum_m G[p, m] A[m, c]
//   audio_gradient   dA[c, m]   += sum_p V[c, p] G[p, m]
// V is read in place by scalar broadcasts (channels first or last), so pooling over cells is lane-wise: any number of cells
// is as good as any other. Audios are packed once per call, in panels of kPanel lanes. G is one image's gradient with
// respect to alpha, scaled by 1 / |v|.
#pragma once
#include "../params.h"
#include "simd.h"

namespace ssl_fast::SSL_FAST_ISA {

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Hands out aligned pieces of one buffer. With a null buffer it only adds up, so that one function sizes and lays out.
struct Arena {
  char* base;
  int64_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(base + used);
    used += round_up(count * sizeof(T), 64);
    return piece;
  }
};

// Brings memory that is needed next into the second-level cache, a little at each of `steps` steps of a running product.
struct Ahead {
  const char* at;
  int64_t lines, per_step;
  Ahead(const void* memory, int64_t bytes, int64_t steps)
      : at(static_cast<const char*>(memory)), lines(memory ? bytes / 64 : 0), per_step(lines / steps + 1) {}
  SSL_FAST_AI void step() {
    for (int64_t i = lines < per_step ? lines : per_step; i > 0; --i, --lines, at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// ---- one image -------------------------------------------------------------------------------------------------------
template <class T>
struct Image {
  const T* values;
  int64_t channels, cells, channel_stride, cell_stride;
};

SSL_FAST_AI float to_float(uint16_t bits, DType dtype) {
  if (dtype == DType::bfloat16) {
    uint32_t wide = uint32_t(bits) << 16;
    float x;
    __builtin_memcpy(&x, &wide, 4);
    return x;
  }
  _Float16 half;
  __builtin_memcpy(&half, &bits, 2);
  return half;
}
SSL_FAST_AI uint16_t from_float(float x, DType dtype) {
  uint16_t bits;
  if (dtype == DType::bfloat16) {
    uint32_t wide;
    __builtin_memcpy(&wide, &x, 4);
    return x != x ? 0x7fc0 : (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;  // round to nearest even
  }
  _Float16 half = x;
  __builtin_memcpy(&bits, &half, 2);
  return bits;
}

// `count` values from element `first` of a tensor, in the computing type: in place where it is stored so, else in `scratch`.
template <class T>
inline const T* values_of(const void* tensor, DType dtype, int64_t first, int64_t count, T* scratch) {
  if constexpr (sizeof(T) == 4) {
    if (dtype != DType::float32) {
      const uint16_t* from = static_cast<const uint16_t*>(tensor) + first;
      if (dtype == DType::bfloat16)
        for (int64_t i = 0; i < count; ++i) scratch[i] = to_float(from[i], DType::bfloat16);
      else
        for (int64_t i = 0; i < count; ++i) scratch[i] = to_float(from[i], DType::float16);
      return scratch;
    }
  }
  return static_cast<const T*>(tensor) + first;
}
// Where `count` computed values may be written before `publish` brings them to element `first` of a tensor.
template <class T>
inline T* destination(void* tensor, DType dtype, int64_t first, T* scratch) {
  return dtype == DType::bfloat16 || dtype == DType::float16 ? scratch : static_cast<T*>(tensor) + first;
}
template <class T>
inline void publish(const T* values, void* tensor, DType dtype, int64_t first, int64_t count) {
  if constexpr (sizeof(T) == 4) {
    uint16_t* to = static_cast<uint16_t*>(tensor) + first;
    if (dtype == DType::bfloat16)
      for (int64_t i = 0; i < count; ++i) to[i] = from_float(values[i], DType::bfloat16);
    if (dtype == DType::float16)
      for (int64_t i = 0; i < count; ++i) to[i] = from_float(values[i], DType::float16);
  }
}

template <class T>
inline Image<T> image_at(const Shape& s, const void* visual, int64_t n, T* scratch) {
  int64_t size = s.channels * s.cells;
  return {values_of<T>(visual, s.dtype, n * size, size, scratch), s.channels, s.cells, s.channels_last ? 1 : s.cells,
          s.channels_last ? s.channels : 1};
}

// Image n while the one before it is worked on, over `steps` steps.
inline Ahead image_ahead(const Shape& s, const void* visual, int64_t n, int64_t steps) {
  int64_t bytes = s.channels * s.cells * (s.dtype == DType::float64 ? 8 : s.dtype == DType::float32 ? 4 : 2);
  return {n < s.images ? static_cast<const char*>(visual) + n * bytes : nullptr, bytes, steps};
}

template <class T>
SSL_FAST_AI T inverse_length(T sum_of_squares) {
  T length = sizeof(T) == 4 ? __builtin_sqrtf(sum_of_squares) : __builtin_sqrt(sum_of_squares);
  return length < T(1e-12) ? 0 : 1 / length;  // a zero vector has cosine 0 with everything, and gradient 0; NaN stays
}

// ---- the micro-kernel ------------------------------------------------------------------------------------------------
// Where a product finds its rows: rows[block * block_stride + r * row_stride + k * depth_stride].
template <class T>
struct Rows {
  const T* values;
  int64_t row_stride, depth_stride, blocks, block_stride;
};

// tile[r, lane] (+)= sum over blocks and k < depth of rows[block, r, k] panel[block, k, lane].
// Out of line, so that all accumulators stay in registers. kRowStride = 0: the stride is given at run time.
template <int kRowStride, bool kAdd, int R, class T>
__attribute__((noinline)) void multiply(T* tile, int64_t tile_stride, const Rows<T>& from, int64_t depth, const T* panel) {
  const int64_t row_stride = kRowStride ? kRowStride : from.row_stride, depth_stride = from.depth_stride;
  Vec<T> sums[R][kVectors] = {};
  for (int64_t block = 0; block < from.blocks; ++block) {
    const T* rows = from.values + block * from.block_stride;
    for (int64_t k = 0; k < depth; ++k, rows += depth_stride, panel += kPanel<T>) {
      Vec<T> q[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) q[v] = load(panel + v * kLanes<T>);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        T p = rows[r * row_stride];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r][v] += p * q[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      T* out = tile + r * tile_stride + v * kLanes<T>;
      store(out, kAdd ? load(out) + sums[r][v] : sums[r][v]);
    }
}

// Calls f(Height<R>{}, first) over tiles of nearly equal height that cover `rows` rows.
template <int R>
struct Height {
  static constexpr int value = R;
};
template <int R = kTileRows, class F>
SSL_FAST_AI void run_tile(int rows, int64_t first, F& f) {
  if (rows == R)
    f(Height<R>{}, first);
  else if constexpr (R > 1)
    run_tile<R - 1>(rows, first, f);
}
template <class F>
SSL_FAST_AI void for_tiles(int64_t rows, F&& f) {
  int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t t = 0, first = 0; t < tiles; ++t) {
    int height = int(rows / tiles + (t < rows % tiles));
    run_tile(height, first, f);
    first += height;
  }
}

// ---- audios ----------------------------------------------------------------------------------------------------------
template <class T>
struct Audios {
  int64_t count, channels, panels;
  T* inverse_norm;  // (padded count)
  T* rows;          // unit vectors (padded count, padded channels)
  T* lanes;         // the same, for `similarities`: [panel][channel][lane of audio]
  T* columns;       // the same, for `visual_gradient`: [panel of channels][audio][lane of channel]

  int64_t padded() const { return panels * kPanel<T>; }
  int64_t padded_channels() const { return round_up(channels, kPanel<T>); }

  void lay_out(Arena& arena, const Shape& s, bool with_columns) {
    count = s.audios, channels = s.channels, panels = round_up(count, kPanel<T>) / kPanel<T>;
    inverse_norm = arena.take<T>(padded());
    rows = arena.take<T>(padded() * padded_channels());
    lanes = arena.take<T>(padded() * channels);
    columns = with_columns ? arena.take<T>(padded() * padded_channels()) : nullptr;
  }

  // Fills one panel; panels are independent of each other.
  void pack(const Shape& s, const void* audio, int64_t panel, bool with_columns) {
    constexpr int W = kPanel<T>;
    int64_t width = padded_channels();
    for (int64_t m = panel * W; m < (panel + 1) * W; ++m) {
      T* row = rows + m * width;
      T scale = 0;
      for (int64_t c = channels; c < width; ++c) row[c] = 0;
      if (m < count) {
        const T* raw = values_of<T>(audio, s.dtype, m * channels, channels, row);
        Vec<T> squares[4] = {};
        int64_t c = 0;
        for (; c + 4 * kLanes<T> <= channels; c += 4 * kLanes<T>)
          for (int i = 0; i < 4; ++i) squares[i] += load(raw + c + i * kLanes<T>) * load(raw + c + i * kLanes<T>);
        T sum = sum_lanes<T>((squares[0] + squares[1]) + (squares[2] + squares[3]));
        for (; c < channels; ++c) sum += raw[c] * raw[c];
        scale = inverse_length(sum);
        for (c = 0; c < channels; ++c) row[c] = raw[c] * scale;
      } else {
        for (int64_t c = 0; c < channels; ++c) row[c] = 0;
      }
      inverse_norm[m] = scale;
    }
    constexpr int L = kLanes<T>;
    for (int v = 0; v < kVectors; ++v)
      for (int64_t c = 0; c < channels; c += L) {  // `rows` is padded: reading beyond the last channel is safe
        Vec<T> block[L];
        for (int i = 0; i < L; ++i) block[i] = load(rows + (panel * W + v * L + i) * width + c);
        transpose<T>(block);
        for (int i = 0; i < L && c + i < channels; ++i) store(lanes + (panel * channels + c + i) * W + v * L, block[i]);
      }
    if (with_columns)
      for (int64_t c = 0; c < width; c += L)
        for (int64_t m = panel * W; m < (panel + 1) * W; ++m)
          store(columns + ((c / W) * padded() + m) * W + c % W, load(rows + m * width + c));
  }

  // grad[m, :] = (g - a (a . g)) / |a| for one audio, from the gradient g with respect to its unit vector.
  void finish(const Shape& s, int64_t m, const T* unit_gradient, void* grad, T* scratch) const {
    const T* a = rows + m * padded_channels();
    Vec<T> dots = {};
    T dot = 0;
    int64_t c = 0;
    for (; c + kLanes<T> <= channels; c += kLanes<T>) dots += load(a + c) * load(unit_gradient + c);
    for (dot = sum_lanes<T>(dots); c < channels; ++c) dot += a[c] * unit_gradient[c];
    T* out = destination<T>(grad, s.dtype, m * channels, scratch);
    for (c = 0; c < channels; ++c) out[c] = inverse_norm[m] * (unit_gradient[c] - a[c] * dot);
    publish(out, grad, s.dtype, m * channels, channels);
  }
};

// ---- the three products ----------------------------------------------------------------------------------------------
constexpr int64_t kDepth = 128;  // products are added up in blocks of channels: fewer terms in a row, less rounding error

// Steps of a whole image through `similarities`, for what is to be brought in meanwhile.
template <class T>
int64_t steps_of(const Image<T>& image, const Audios<T>& audios) {
  return audios.panels * ((image.cells + kTileRows - 1) / kTileRows) * ((image.channels + kDepth - 1) / kDepth);
}

// Epilogue: template <int R> void tile(const T* products, int64_t panel, int64_t cell); R rows of kPanel, not normalised.
template <class T, class Epilogue>
inline void similarities(const Image<T>& image, const Audios<T>& audios, int64_t panel, Epilogue& epilogue, Ahead& ahead) {
  constexpr int W = kPanel<T>;
  const T* lanes = audios.lanes + panel * image.channels * W;
  for_tiles(image.cells, [&](auto height, int64_t cell) {
    constexpr int R = decltype(height)::value;
    alignas(64) T tile[R * W];
    for (int64_t c = 0; c < image.channels; c += kDepth) {
      ahead.step();
      int64_t depth = image.channels - c < kDepth ? image.channels - c : kDepth;
      Rows<T> rows{image.values + cell * image.cell_stride + c * image.channel_stride, image.cell_stride,
                   image.channel_stride, 1, 0};
      if (image.cell_stride != 1)
        c ? multiply<0, true, R>(tile, W, rows, depth, lanes + c * W) : multiply<0, false, R>(tile, W, rows, depth, lanes);
      else
        c ? multiply<1, true, R>(tile, W, rows, depth, lanes + c * W) : multiply<1, false, R>(tile, W, rows, depth, lanes);
    }
    epilogue.template tile<R>(tile, panel, cell);
  });
}

// G: [panel][cell][lane]; D: (cells, padded channels); `next`: memory to bring in meanwhile
template <class T>
inline void visual_gradient(const T* G, int64_t cells, const Audios<T>& audios, T* D, const void* next, int64_t bytes) {
  constexpr int W = kPanel<T>;
  Ahead ahead(next, bytes, audios.padded_channels() / W * ((cells + kTileRows - 1) / kTileRows));
  for (int64_t channel = 0; channel < audios.channels; channel += W)
    for_tiles(cells, [&](auto height, int64_t cell) {
      ahead.step();
      multiply<W, false, decltype(height)::value>(D + cell * audios.padded_channels() + channel, audios.padded_channels(),
                                                  Rows<T>{G + cell * W, W, 1, audios.panels, cells * W}, W,
                                                  audios.columns + channel * audios.padded());
    });
}

// dA: [panel][channel][lane], added to
template <class T>
inline void audio_gradient(const Image<T>& image, const T* G, int64_t panels, T* dA) {
  constexpr int W = kPanel<T>;
  for (int64_t panel = 0; panel < panels; ++panel, G += image.cells * W, dA += image.channels * W)
    for_tiles(image.channels, [&](auto height, int64_t channel) {
      multiply<0, true, decltype(height)::value>(
          dA + channel * W, W,
          Rows<T>{image.values + channel * image.channel_stride, image.channel_stride, image.cell_stride, 1, 0},
          image.cells, G);
    });
}

}  // namespace ssl_fast::SSL_FAST_ISA
