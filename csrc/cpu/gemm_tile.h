// The tile engine of the CPU: three matrix products around one micro-kernel, none of which writes a map of all pairs.
//
// SIMD lanes run over audios, register rows over cells:
//   similarities     alpha[p, m] = sum_c V[c, p] A[m, c]     handed tile by tile to an epilogue, which pools it
//   visual_gradient  D[p, c]     = sum_m G[p, m] A[m, c]
//   audio_gradient   dA[c, m]   += sum_p V[c, p] G[p, m]
// V is read in place by scalar broadcasts (channels first or last), so pooling over cells is lane-wise: any number of
// cells is as good as any other. Audios are packed once per call, in panels of kPanel lanes. G is one image's gradient
// with respect to alpha, scaled by 1 / |v|.
#pragma once
#include "../float16.h"
#include "bf16_gemm.h"

namespace ssl_fast::SSL_FAST_ISA {

// ---- one image ------------------------------------------------------------------------------------------------------
template <class T>
struct Image {
  const T* values;
  int64_t channels, cells, channel_stride, cell_stride;
  const Half *by_cell, *by_channel;  // bfloat16 rows (cells, channels) and (channels, cells), or null
};

SSL_FAST_AI float to_float(uint16_t bits, DType dtype) {
  if (dtype == DType::bfloat16) {
    uint32_t wide = uint32_t(bits) << 16;
    float x;
    __builtin_memcpy(&x, &wide, 4);
    return x;
  }
  return float_of_float16(bits);
}
SSL_FAST_AI uint16_t from_float(float x, DType dtype) {
  if (dtype == DType::bfloat16) {
    uint32_t wide;
    __builtin_memcpy(&wide, &x, 4);
    return x != x ? 0x7fc0 : (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;  // round to nearest even
  }
  return float16_of_float(x);
}

// `count` values from element `first` of a tensor, in the computing type: in place where it is stored so, else in
// `scratch`.
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

// Elements of scratch that image_at needs.
template <class T>
int64_t image_scratch(const Shape& s) {
  int64_t half = round_up(s.cells, 16) * half_depth(s.channels) + round_up(s.channels, 16) * half_depth(s.cells);
  return s.channels * s.cells + (half_products<T>(s) ? half / 2 : 0);
}

// Image n. Where bfloat16 products are in use, the rows that they need are laid out: by cell for `similarities`, by
// channel for `audio_gradient`.
template <class T>
inline Image<T> image_at(const Shape& s, const void* visual, int64_t n, T* scratch, bool by_cell = false,
                         bool by_channel = false) {
  int64_t size = s.channels * s.cells;
  Image<T> image{values_of<T>(visual, s.dtype, n * size, size, scratch),
                 s.channels,
                 s.cells,
                 s.channels_last ? 1 : s.cells,
                 s.channels_last ? s.channels : 1,
                 nullptr,
                 nullptr};
  if (half_products<T>(s)) {
    const Half* raw = static_cast<const Half*>(visual) + n * size;
    Half *cells = reinterpret_cast<Half*>(scratch + size),
         *channels = cells + round_up(s.cells, 16) * half_depth(s.channels);
    if (by_cell) {
      s.channels_last ? pad_rows(raw, s.cells, s.channels, cells) : transpose_rows(raw, s.cells, s.channels, cells);
      image.by_cell = cells;
    }
    if (by_channel && s.channels % 16 == 0) {  // else in float32: sums of audios are stored without padding
      s.channels_last ? transpose_rows(raw, s.channels, s.cells, channels)
                      : pad_rows(raw, s.channels, s.cells, channels);
      image.by_channel = channels;
    }
  }
  return image;
}

// Up to a panel of channels of an image, from `channel` on.
template <class T>
inline Image<T> panel_of_channels(const Image<T>& image, int64_t channel) {
  int64_t left = image.channels - channel;
  return {image.values + channel * image.channel_stride,
          left < kPanel<T> ? left : kPanel<T>,
          image.cells,
          image.channel_stride,
          image.cell_stride,
          nullptr,
          nullptr};
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

// ---- audios ---------------------------------------------------------------------------------------------------------
template <class T>
struct Audios {
  int64_t count, channels, panels;
  T* inverse_norm;                  // (padded count)
  T* rows;                          // unit vectors (padded count, padded channels)
  T* lanes;                         // the same, for `similarities`: [panel][channel][lane of audio]
  T* columns;                       // the same, for visual gradients: [panel of channels][audio][lane of channel]
  Half *half_lanes, *half_columns;  // in pairs, as they came (not unit vectors), for bfloat16 products; or null

  int64_t padded() const { return panels * kPanel<T>; }
  int64_t padded_channels() const { return round_up(channels, kPanel<T>); }

  void lay_out(Arena& arena, const Shape& s, bool with_columns) {
    count = s.audios, channels = s.channels, panels = round_up(count, kPanel<T>) / kPanel<T>;
    inverse_norm = arena.take<T>(padded());
    rows = arena.take<T>(padded() * padded_channels());
    lanes = arena.take<T>(padded() * channels);
    columns = with_columns ? arena.take<T>(padded() * padded_channels()) : nullptr;
    half_lanes = half_products<T>(s) ? arena.take<Half>(padded() * half_depth(channels)) : nullptr;
    half_columns = half_lanes && with_columns ? arena.take<Half>(padded() * padded_channels()) : nullptr;
  }

  // Fills one panel; panels are independent of each other.
  void pack(const Shape& s, const void* audio, int64_t panel, bool with_columns) {
    pack_exact(s, audio, panel, with_columns);
    if constexpr (sizeof(T) == 4)
      if (half_lanes)
        pack_half(static_cast<const Half*>(audio), count, channels, panel, padded(), half_lanes, half_columns);
  }
  void pack_exact(const Shape& s, const void* audio, int64_t panel, bool with_columns) {
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

// ---- the three products ---------------------------------------------------------------------------------------------
constexpr int64_t kDepth =
    128;  // products are added up in blocks of channels: fewer terms in a row, less rounding error

// Steps of a whole image through `similarities`, for what is to be brought in meanwhile.
template <class T>
int64_t steps_of(const Image<T>& image, const Audios<T>& audios) {
  return audios.panels * ((image.cells + kTileRows - 1) / kTileRows) * ((image.channels + kDepth - 1) / kDepth);
}

template <class T, class Epilogue>
inline void half_similarities(const Image<T>& image, const Audios<T>& audios, int64_t panel, Epilogue& epilogue,
                              Ahead& ahead) {
  constexpr int W = kPanel<T>;
  int64_t depth = half_depth(image.channels);
  const T* scale = audios.inverse_norm + panel * W;
  for (int64_t cell = 0; cell < image.cells; cell += 32) {
    alignas(64) T tile[32 * W];
    int64_t rows = image.cells - cell < 32 ? image.cells - cell : 32;
    for (int i = 0; i < 8; ++i) ahead.step();
    multiply_half(image.by_cell + cell * depth, depth, round_up(rows, 16), audios.half_lanes + panel * W * depth, depth,
                  tile, W, false);
    for (int64_t r = 0; r < rows; ++r)
      for (int v = 0; v < kVectors; ++v) {
        T* at = tile + r * W + v * kLanes<T>;
        store(at, load(at) * load(scale + v * kLanes<T>));
      }
    for_tiles(rows, [&](auto height, int64_t r) {
      epilogue.template tile<decltype(height)::value>(tile + r * W, panel, cell + r);
    });
  }
}

// Epilogue: template <int R> void tile(const T* products, int64_t panel, int64_t cell); R rows of kPanel, not
// normalised.
template <class T, class Epilogue>
inline void similarities(const Image<T>& image, const Audios<T>& audios, int64_t panel, Epilogue& epilogue,
                         Ahead& ahead) {
  if constexpr (kHalfProducts) {
    half_similarities(image, audios, panel, epilogue, ahead);
  } else {
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
          c ? multiply<0, true, R>(tile, W, rows, depth, lanes + c * W)
            : multiply<0, false, R>(tile, W, rows, depth, lanes);
        else
          c ? multiply<1, true, R>(tile, W, rows, depth, lanes + c * W)
            : multiply<1, false, R>(tile, W, rows, depth, lanes);
      }
      epilogue.template tile<R>(tile, panel, cell);
    });
  }
}

// Each panel of channels in turn: D, then done(first channel of the panel).
// G: [panel][cell][lane], its panels `stride` apart; D: (cells rounded up to 16, kPanel); `to_read`, `to_write`: what
// `done` needs, all panels in a row, or null; `half`: scratch of bfloat16 products (cells rounded up to 32, padded
// audios)
template <class T, class Done>
inline void visual_gradient(const T* G, int64_t stride, int64_t cells, const Audios<T>& audios, T* D, const T* to_read,
                            const T* to_write, Half* half, Done&& done) {
  constexpr int W = kPanel<T>;
  int64_t bytes = audios.channels * cells * int64_t(sizeof(T));
  int64_t steps = audios.padded_channels() / W * ((cells + kTileRows - 1) / kTileRows);
  Ahead read(to_read, bytes, steps), write(to_write, bytes, steps);
  if constexpr (kHalfProducts) round_rows(G, stride, cells, audios.panels, audios.inverse_norm, half);
  for (int64_t channel = 0; channel < audios.channels; channel += W) {
    const int64_t depth = audios.padded();
    if constexpr (kHalfProducts)
      multiply_half(half, depth, round_up(cells, 16), audios.half_columns + channel * depth, depth, D, W, false);
    else
      for_tiles(cells, [&](auto height, int64_t cell) {
        read.step();
        write.template step<true>();
        multiply<W, false, decltype(height)::value>(D + cell * W, W, Rows<T>{G + cell * W, W, 1, audios.panels, stride},
                                                    W, audios.columns + channel * depth);
      });
    done(channel);
  }
}

// Of `count` images, a constant distance apart in memory. G: [panel][image][cell][lane], its panels `stride` apart;
// dA: [panel][channel][lane], added to
template <class T>
inline void audio_gradient(const Image<T>* images, int64_t count, const T* G, int64_t stride, int64_t panels, T* dA,
                           Half* half) {
  constexpr int W = kPanel<T>;
  const Image<T>& first = images[0];
  for (int64_t panel = 0; panel < panels; ++panel, G += stride, dA += first.channels * W) {
    if constexpr (sizeof(T) == 4)
      if (first.by_channel) {
        int64_t depth = half_depth(first.cells);
        for (int64_t n = 0; n < count; ++n) {
          round_panel(G + n * first.cells * W, first.cells, half);
          multiply_half(images[n].by_channel, depth, first.channels, half, depth, dA, W, true);
        }
        continue;
      }
    int64_t distance = count > 1 ? images[1].values - first.values : 0;
    for_tiles(first.channels, [&](auto height, int64_t channel) {
      multiply<0, true, decltype(height)::value>(dA + channel * W, W,
                                                 Rows<T>{first.values + channel * first.channel_stride,
                                                         first.channel_stride, first.cell_stride, count, distance},
                                                 first.cells, G);
    });
  }
}

}  // namespace ssl_fast::SSL_FAST_ISA
