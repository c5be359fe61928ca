// The three GEMMs of the cosines of all image-audio pairs. The map of all pairs is never written to memory.
//
//   similarities      alpha[p, m] = sum_c V[c, p] A[m, c]     M = cells, N = audios, K = channels; fused epilogue
//   visual_gradient   D[p, c]     = sum_m G[p, m] A[m, c]     M = cells, N = channels, K = audios
//   audio_gradient    dA[c, m]   += sum_p V[c, p] G[p, m]     M = channels, N = audios, K = cells of some images
//
//   V   one image, (channels, cells) or, channels last, (cells, channels): left operand, read in place
//   A   audios, unit vectors, packed once a call in panels of kPanel lanes (PackedAudios): right operand
//   G   gradient of the loss with respect to alpha, over |v|: [panel of audios][cell][lane]
//
// SIMD lanes run over audios (or channels), rows of a register tile over cells. So pooling over cells is lane-wise, and
// any number of cells is as efficient as any other. These functions run in one thread; the kernels pack panels of
// audios and take images in parallel, a contiguous range for each thread. An image of 14x14 cells and 512 channels is
// 400 KB: each read of it serves a group of panels (panels_per_group), which stay in L2.
#pragma once
#include "../float16.h"
#include "bf16_gemm.h"

namespace ssl_fast::SSL_FAST_ISA {

inline int64_t bytes_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

// ---- one image ------------------------------------------------------------------------------------------------------
// In the computing type, at `values`: in place, or in the thread's scratch where it is stored in 16 bits.
template <class T>
struct Image {
  const T* values;
  int64_t channels, cells, channel_stride, cell_stride;
  // left operands of bf16_gemm, or null
  const Bf16* bf16_cells = nullptr;     // (cells, channels)
  const Bf16* bf16_channels = nullptr;  // (channels, cells)
};

SSL_FAST_ALWAYS_INLINE float to_float(uint16_t bits, DType dtype) {
  if (dtype == DType::bfloat16) {
    uint32_t wide = uint32_t(bits) << 16;
    float x;
    __builtin_memcpy(&x, &wide, 4);
    return x;
  }
  return float_of_float16(bits);
}
SSL_FAST_ALWAYS_INLINE uint16_t from_float(float x, DType dtype) {
  if (dtype == DType::bfloat16) {
    uint32_t wide;
    __builtin_memcpy(&wide, &x, 4);
    return x != x ? 0x7fc0 : (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;  // round to nearest even
  }
  return float16_of_float(x);
}

// `count` values from element `first` of a tensor, in the computing type: in place, or converted into `scratch`.
template <class T>
inline const T* to_compute_type(const void* tensor, DType dtype, int64_t first, int64_t count, T* scratch) {
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
// Where to compute an output that begins at element `first` of a tensor: in place, or in `scratch` where it is stored
// in 16 bits. store_output then converts it.
template <class T>
inline T* output_buffer(void* tensor, DType dtype, int64_t first, T* scratch) {
  return dtype == DType::bfloat16 || dtype == DType::float16 ? scratch : static_cast<T*>(tensor) + first;
}
template <class T>
inline void store_output(const T* values, void* tensor, DType dtype, int64_t first, int64_t count) {
  if constexpr (sizeof(T) == 4) {
    uint16_t* to = static_cast<uint16_t*>(tensor) + first;
    if (dtype == DType::bfloat16)
      for (int64_t i = 0; i < count; ++i) to[i] = from_float(values[i], DType::bfloat16);
    if (dtype == DType::float16)
      for (int64_t i = 0; i < count; ++i) to[i] = from_float(values[i], DType::float16);
  }
}

// Memory of some channels of an image: `count` runs of `size` elements, `stride` apart, from element `first` on.
struct Runs {
  int64_t first, count, size, stride;
};
inline Runs runs_of(const Shape& s, int64_t n, int64_t channel, int64_t channels) {
  channel += s.first_channel;
  if (!s.channels_last) return {(n * s.all_channels + channel) * s.cells, 1, channels * s.cells, 0};
  if (channels == s.all_channels) return {n * s.all_channels * s.cells, 1, channels * s.cells, 0};
  return {n * s.all_channels * s.cells + channel, s.cells, channels, s.all_channels};
}

// `count` channels of image n from `channel` on, in the computing type. scratch: (count * cells)
template <class T>
Image<T> load_channels(const Shape& s, const void* visual, int64_t n, int64_t channel, int64_t count, T* scratch) {
  const Runs runs = runs_of(s, n, channel, count);
  const T* values = nullptr;
  for (int64_t i = runs.count - 1; i >= 0; --i)
    values = to_compute_type<T>(visual, s.dtype, runs.first + i * runs.stride, runs.size, scratch + i * runs.size);
  if (!s.channels_last) return {values, count, s.cells, s.cells, 1};
  return {values, count, s.cells, 1, values == scratch ? count : s.all_channels};
}
// Where to compute a gradient laid out as the Image of load_channels. store_channels then converts it.
template <class T>
T* channels_output(const Shape& s, void* grad_visual, int64_t n, int64_t channel, int64_t count, T* scratch) {
  return output_buffer<T>(grad_visual, s.dtype, runs_of(s, n, channel, count).first, scratch);
}
template <class T>
void store_channels(const Shape& s, const T* values, void* grad_visual, int64_t n, int64_t channel, int64_t count) {
  const Runs runs = runs_of(s, n, channel, count);
  for (int64_t i = 0; i < runs.count; ++i)
    store_output(values + i * runs.size, grad_visual, s.dtype, runs.first + i * runs.stride, runs.size);
}

// Elements of scratch that load_image needs.
template <class T>
int64_t image_scratch_size(const Shape& s) {
  int64_t bf16 = round_up(s.cells, 16) * bf16_depth(s.channels) + round_up(s.channels, 16) * bf16_depth(s.cells);
  return s.channels * s.cells + (uses_bf16_gemm<T>(s) ? bf16 / 2 : 0);
}

// Image n. With the bfloat16 GEMM, its left operands are written: bf16_cells for `similarities`, bf16_channels for
// `audio_gradient`.
template <class T>
inline Image<T> load_image(const Shape& s, const void* visual, int64_t n, T* scratch, bool with_bf16_cells = false,
                           bool with_bf16_channels = false) {
  Image<T> image = load_channels(s, visual, n, 0, s.channels, scratch);
  if (uses_bf16_gemm<T>(s)) {
    const Bf16* raw = static_cast<const Bf16*>(visual) + runs_of(s, n, 0, s.channels).first;
    Bf16 *cells = reinterpret_cast<Bf16*>(scratch + s.channels * s.cells),
         *channels = cells + round_up(s.cells, 16) * bf16_depth(s.channels);
    const int64_t stride = s.channels_last ? s.all_channels : s.cells;
    if (with_bf16_cells) {
      s.channels_last ? copy_bf16_rows(raw, stride, s.cells, s.channels, cells)
                      : transpose_bf16_rows(raw, stride, s.cells, s.channels, cells);
      image.bf16_cells = cells;
    }
    if (with_bf16_channels && s.channels % 16 == 0) {  // else in float32: rows of dA are not padded to 16
      s.channels_last ? transpose_bf16_rows(raw, stride, s.channels, s.cells, channels)
                      : copy_bf16_rows(raw, stride, s.channels, s.cells, channels);
      image.bf16_channels = channels;
    }
  }
  return image;
}

// Up to a panel of channels of an image, from `channel` on.
template <class T>
inline Image<T> channel_panel(const Image<T>& image, int64_t channel) {
  int64_t left = image.channels - channel;
  return {image.values + channel * image.channel_stride, left < kPanel<T> ? left : kPanel<T>, image.cells,
          image.channel_stride, image.cell_stride};
}

// Prefetcher of image n, for `steps` steps of the work on the image before it; none where it is not contiguous.
inline L2Prefetcher prefetch_image(const Shape& s, const void* visual, int64_t n, int64_t steps) {
  const Runs runs = runs_of(s, n, 0, s.channels);
  const char* memory = static_cast<const char*>(visual) + runs.first * bytes_of(s.dtype);
  return {n < s.images && runs.count == 1 ? memory : nullptr, runs.size * bytes_of(s.dtype), steps};
}

// 1 / |v|, or 0 for a zero vector, which so has cosine 0 with everything, and gradient 0. NaN stays NaN.
template <class T>
SSL_FAST_ALWAYS_INLINE T safe_rsqrt(T sum_of_squares, DType dtype) {
  T length = sizeof(T) == 4 ? __builtin_sqrtf(sum_of_squares) : __builtin_sqrt(sum_of_squares);
  return length < T(dtype == DType::float16 ? kShortestFloat16 : kShortest) ? 0 : 1 / length;
}

// 1 / |x| of `count` values, as safe_rsqrt; 1 where nothing is normalised.
template <class T>
inline T inverse_length(const Shape& s, const T* x, int64_t count) {
  if (!s.normalized) return 1;
  Vec<T> squares[4] = {};
  int64_t c = 0;
  for (; c + 4 * kLanes<T> <= count; c += 4 * kLanes<T>)
    for (int i = 0; i < 4; ++i) squares[i] += load(x + c + i * kLanes<T>) * load(x + c + i * kLanes<T>);
  T sum = sum_lanes<T>((squares[0] + squares[1]) + (squares[2] + squares[3]));
  for (; c < count; ++c) sum += x[c] * x[c];
  return safe_rsqrt(sum, s.dtype);
}

// ---- audios ---------------------------------------------------------------------------------------------------------
// `count` channels of audio m from `channel` on, in the computing type: in place, or in `scratch`.
template <class T>
const T* load_audio(const Shape& s, const void* audio, int64_t m, int64_t channel, int64_t count, T* scratch) {
  channel += s.first_channel;
  if (s.tokens == 1) return to_compute_type<T>(audio, s.dtype, m * s.all_channels + channel, count, scratch);
  const int64_t first = (m / s.tokens * s.all_channels + channel) * s.tokens + m % s.tokens;
  auto gather = [&](auto* from, auto convert) {
    for (int64_t i = 0; i < count; ++i) scratch[i] = convert(from[first + i * s.tokens]);
  };
  auto bits = static_cast<const uint16_t*>(audio);
  if (s.dtype == DType::bfloat16)
    gather(bits, [](uint16_t x) { return T(to_float(x, DType::bfloat16)); });
  else if (s.dtype == DType::float16)
    gather(bits, [](uint16_t x) { return T(to_float(x, DType::float16)); });
  else
    gather(static_cast<const T*>(audio), [](T x) { return x; });
  return scratch;
}
// The reverse, for gradients.
template <class T>
void store_audio(const Shape& s, const T* values, void* grad_audio, int64_t m, int64_t channel, int64_t count) {
  channel += s.first_channel;
  const int64_t step = s.tokens, first = (m / step * s.all_channels + channel) * step + m % step;
  if (sizeof(T) == 4 && s.dtype != DType::float32)
    for (int64_t i = 0; i < count; ++i)
      static_cast<uint16_t*>(grad_audio)[first + i * step] = from_float(float(values[i]), s.dtype);
  else
    for (int64_t i = 0; i < count; ++i) static_cast<T*>(grad_audio)[first + i * step] = values[i];
}

// The right operands: unit vectors in panels of kPanel lanes, padded with zeros.
template <class T>
struct PackedAudios {
  int64_t first, count, channels, panels;  // first: number of the first audio
  T* inverse_norm;                         // (padded count)
  T* rows;                                 // unit vectors (padded count, padded channels)
  T* similarity_panels;                    // K = channels: [panel][channel][lane of audio]
  T* gradient_panels;                      // K = audios: [panel of channels][audio][lane of channel], or null
  // the same in VNNI pairs, of the vectors as they came; null without the bfloat16 GEMM
  Bf16 *bf16_similarity_panels, *bf16_gradient_panels;
  Bf16* bf16_rows;  // (count, channels), the vectors as they came, where the channels of one are not contiguous

  int64_t padded() const { return panels * kPanel<T>; }
  int64_t padded_channels() const { return round_up(channels, kPanel<T>); }

  void allocate(Workspace& workspace, const Shape& s, bool with_gradient_panels) {
    allocate(workspace, s, with_gradient_panels, s.audios);
  }
  void allocate(Workspace& workspace, const Shape& s, bool with_gradient_panels, int64_t audios) {
    first = 0, count = audios, channels = s.channels, panels = round_up(count, kPanel<T>) / kPanel<T>;
    inverse_norm = workspace.take<T>(padded());
    rows = workspace.take<T>(padded() * padded_channels());
    similarity_panels = workspace.take<T>(padded() * channels);
    gradient_panels = with_gradient_panels ? workspace.take<T>(padded() * padded_channels()) : nullptr;
    bf16_similarity_panels = uses_bf16_gemm<T>(s) ? workspace.take<Bf16>(padded() * bf16_depth(channels)) : nullptr;
    bf16_gradient_panels =
        bf16_similarity_panels && with_gradient_panels ? workspace.take<Bf16>(padded() * padded_channels()) : nullptr;
    bf16_rows = bf16_similarity_panels && s.tokens > 1 ? workspace.take<Bf16>(count * channels) : nullptr;
  }

  // The same memory, for `audios` audios from `first` on.
  PackedAudios of(int64_t first, int64_t audios) const {
    PackedAudios part = *this;
    part.first = first, part.count = audios, part.panels = round_up(audios, kPanel<T>) / kPanel<T>;
    return part;
  }

  // Writes one panel of each operand; panels may be packed in parallel.
  void pack(const Shape& s, const void* audio, int64_t panel, bool with_gradient_panels) const {
    pack_real(s, audio, panel, with_gradient_panels);
    if constexpr (sizeof(T) == 4)
      if (bf16_similarity_panels) pack_bf16(s, static_cast<const Bf16*>(audio), panel);
  }
  void pack_bf16(const Shape& s, const Bf16* audio, int64_t panel) const {
    const Bf16* raw = bf16_rows;
    if (!bf16_rows) raw = audio + first * s.all_channels + s.first_channel;
    for (int64_t m = panel * kPanel<T>; bf16_rows && m < (panel + 1) * kPanel<T> && m < count; ++m)
      for (int64_t c = 0, clip = (first + m) / s.tokens, token = (first + m) % s.tokens; c < channels; ++c)
        bf16_rows[m * channels + c] = audio[(clip * s.all_channels + s.first_channel + c) * s.tokens + token];
    pack_bf16_panel(raw, bf16_rows ? channels : s.all_channels, count, channels, panel, padded(),
                    bf16_similarity_panels, bf16_gradient_panels);
  }
  void pack_real(const Shape& s, const void* audio, int64_t panel, bool with_gradient_panels) const {
    constexpr int W = kPanel<T>;
    int64_t width = padded_channels();
    for (int64_t m = panel * W; m < (panel + 1) * W; ++m) {
      T* row = rows + m * width;
      T scale = 0;
      for (int64_t c = channels; c < width; ++c) row[c] = 0;
      if (m < count) {
        const T* raw = load_audio(s, audio, first + m, 0, channels, row);
        scale = inverse_length(s, raw, channels);
        for (int64_t c = 0; c < channels; ++c) row[c] = raw[c] * scale;
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
        for (int i = 0; i < L && c + i < channels; ++i)
          store(similarity_panels + (panel * channels + c + i) * W + v * L, block[i]);
      }
    if (with_gradient_panels)
      for (int64_t c = 0; c < width; c += L)
        for (int64_t m = panel * W; m < (panel + 1) * W; ++m)
          store(gradient_panels + ((c / W) * padded() + m) * W + c % W, load(rows + m * width + c));
  }

  // Backward of the normalisation, for one audio: grad[m, :] = (g - a (a . g)) / |a|, from the gradient g with respect
  // to the unit vector a; g itself where nothing was normalised.
  void normalize_backward(const Shape& s, int64_t m, const T* unit_gradient, void* grad, T* scratch) const {
    const T* a = rows + m * padded_channels();
    Vec<T> dots = {};
    T dot = 0;
    int64_t c = 0;
    for (; c + kLanes<T> <= channels; c += kLanes<T>) dots += load(a + c) * load(unit_gradient + c);
    for (dot = sum_lanes<T>(dots); c < channels; ++c) dot += a[c] * unit_gradient[c];
    if (!s.normalized) dot = 0;
    for (c = 0; c < channels; ++c) scratch[c] = inverse_norm[m] * (unit_gradient[c] - a[c] * dot);
    store_audio(s, scratch, grad, first + m, 0, channels);
  }
};

// ---- the three products ---------------------------------------------------------------------------------------------
// Channels in a k-block. Each is summed by itself: shorter sums, less rounding error.
constexpr int64_t kKBlock = 128;

// Panels of audios that share a read of the image.
constexpr int64_t kPanelGroup = 4, kPanelGroupBytes = 128 << 10;
template <class T>
int64_t panels_per_group(const PackedAudios<T>& audios) {
  const int64_t group = kPanelGroupBytes / (audios.channels * kPanel<T> * int64_t(sizeof(T)));
  return group < 1 ? 1 : group < kPanelGroup ? group : kPanelGroup;
}

// f(first panel, count) for all groups of panels.
template <class T, class F>
inline void for_panel_groups(const PackedAudios<T>& audios, F&& f) {
  const int64_t group = panels_per_group(audios);
  for (int64_t first = 0; first < audios.panels; first += group)
    f(first, audios.panels - first < group ? audios.panels - first : group);
}

// Calls of prefetch_step in `similarities` of a whole image: k-blocks of all tiles.
template <class T>
int64_t prefetch_steps(const Image<T>& image, const PackedAudios<T>& audios) {
  return audios.panels * ((image.cells + kTileRows - 1) / kTileRows) * ((image.channels + kKBlock - 1) / kKBlock);
}

template <class T, class Epilogue>
inline void bf16_similarities(const Image<T>& image, const PackedAudios<T>& audios, int64_t first, int64_t count,
                              Epilogue& epilogue, L2Prefetcher& prefetcher) {
  constexpr int W = kPanel<T>;
  int64_t depth = bf16_depth(image.channels);
  for (int64_t cell = 0; cell < image.cells; cell += 32) {
    alignas(64) T tile[32 * W];
    int64_t rows = image.cells - cell < 32 ? image.cells - cell : 32;
    for (int64_t panel = first; panel < first + count; ++panel) {
      const T* scale = audios.inverse_norm + panel * W;
      for (int i = 0; i < 8; ++i) prefetcher.prefetch_step();
      bf16_gemm(image.bf16_cells + cell * depth, depth, round_up(rows, 16),
                audios.bf16_similarity_panels + panel * W * depth, depth, tile, W, false);
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
}

// The products of one image with a group of panels of audios, handed tile by tile to the epilogue, while they are in
// L1:
//   template <int R> void tile(const T* products, int64_t panel, int64_t cell);
// R rows of kPanel, from `cell` on; products of raw cells with unit audios, so still to be scaled by 1 / |v|. Cells of
// a panel come in order, and panels of a cell.
template <class T, class Epilogue>
inline void similarities(const Image<T>& image, const PackedAudios<T>& audios, int64_t first, int64_t count,
                         Epilogue& epilogue, L2Prefetcher& prefetcher) {
  if constexpr (kBf16Gemm) {
    bf16_similarities(image, audios, first, count, epilogue, prefetcher);
  } else {
    constexpr int W = kPanel<T>;
    for_tiles(image.cells, [&](auto height, int64_t cell) {
      constexpr int R = decltype(height)::value;
      alignas(64) T tiles[kPanelGroup][R * W];
      for (int64_t c = 0; c < image.channels; c += kKBlock) {
        int64_t depth = image.channels - c < kKBlock ? image.channels - c : kKBlock;
        LeftOperand<T> rows{image.values + cell * image.cell_stride + c * image.channel_stride, image.cell_stride,
                            image.channel_stride, 1, 0};
        for (int64_t i = 0; i < count; ++i) {
          prefetcher.prefetch_step();
          const T* lanes = audios.similarity_panels + ((first + i) * image.channels + c) * W;
          if (image.cell_stride != 1)
            c ? gemm_microkernel<0, true, R>(tiles[i], W, rows, depth, lanes)
              : gemm_microkernel<0, false, R>(tiles[i], W, rows, depth, lanes);
          else
            c ? gemm_microkernel<1, true, R>(tiles[i], W, rows, depth, lanes)
              : gemm_microkernel<1, false, R>(tiles[i], W, rows, depth, lanes);
        }
      }
      for (int64_t i = 0; i < count; ++i) epilogue.template tile<R>(tiles[i], first + i, cell);
    });
  }
}

// D for each panel of channels in turn, then store_panel(first channel of the panel).
// G: panels `stride` apart. D: (cells rounded up to 16, kPanel). to_read, to_write: what store_panel reads and writes,
// prefetched; contiguous for all panels, or null. bf16_G: scratch (cells rounded up to 32, padded audios).
template <class T, class StorePanel>
inline void visual_gradient(const T* G, int64_t stride, int64_t cells, const PackedAudios<T>& audios, T* D,
                            const T* to_read, const T* to_write, Bf16* bf16_G, StorePanel&& store_panel) {
  constexpr int W = kPanel<T>;
  int64_t bytes = audios.channels * cells * int64_t(sizeof(T));
  int64_t steps = audios.padded_channels() / W * ((cells + kTileRows - 1) / kTileRows);
  L2Prefetcher read_prefetcher(to_read, bytes, steps), write_prefetcher(to_write, bytes, steps);
  if constexpr (kBf16Gemm) to_bf16_rows(G, stride, cells, audios.panels, audios.inverse_norm, bf16_G);
  for (int64_t channel = 0; channel < audios.channels; channel += W) {
    const int64_t depth = audios.padded();
    if constexpr (kBf16Gemm)
      bf16_gemm(bf16_G, depth, round_up(cells, 16), audios.bf16_gradient_panels + channel * depth, depth, D, W, false);
    else
      for_tiles(cells, [&](auto height, int64_t cell) {
        read_prefetcher.prefetch_step();
        write_prefetcher.template prefetch_step<true>();
        gemm_microkernel<W, false, decltype(height)::value>(D + cell * W, W,
                                                            LeftOperand<T>{G + cell * W, W, 1, audios.panels, stride},
                                                            W, audios.gradient_panels + channel * depth);
      });
    store_panel(channel);
  }
}

// Cells of one image that are summed by themselves in an audio gradient: shorter sums, less rounding error.
constexpr int64_t kCellBlock = 512;

// K = cells of `count` images, a constant distance apart in memory. G: [panel][image][cell][lane], panels `stride`
// apart. dA: [panel][channel][lane], added to. bf16_G: scratch (cells rounded up to 32, kPanel).
template <class T>
inline void audio_gradient(const Image<T>* images, int64_t count, const T* G, int64_t stride, int64_t panels, T* dA,
                           Bf16* bf16_G) {
  constexpr int W = kPanel<T>;
  const Image<T>& first = images[0];
  for (int64_t panel = 0; panel < panels; ++panel, G += stride, dA += first.channels * W) {
    if constexpr (sizeof(T) == 4)
      if (first.bf16_channels) {
        int64_t depth = bf16_depth(first.cells);
        for (int64_t n = 0; n < count; ++n) {
          to_bf16_panel(G + n * first.cells * W, first.cells, bf16_G);
          bf16_gemm(images[n].bf16_channels, depth, first.channels, bf16_G, depth, dA, W, true);
        }
        continue;
      }
    int64_t distance = count > 1 ? images[1].values - first.values : 0;
    for (int64_t cell = 0; cell < first.cells; cell += kCellBlock) {  // more than one block: of one image
      int64_t depth = first.cells - cell < kCellBlock ? first.cells - cell : kCellBlock;
      for_tiles(first.channels, [&](auto height, int64_t channel) {
        gemm_microkernel<0, true, decltype(height)::value>(
            dA + channel * W, W,
            LeftOperand<T>{first.values + channel * first.channel_stride + cell * first.cell_stride,
                           first.channel_stride, first.cell_stride, count, distance},
            depth, G + cell * W);
      });
    }
  }
}

}  // namespace ssl_fast::SSL_FAST_ISA
