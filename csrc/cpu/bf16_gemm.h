// The same three products from bfloat16 operands, for processors that multiply those faster than float32: by AMX tiles
// (Intel) or by dot products of pairs (AVX512-BF16; twice the float32 rate on AMD, half of it on Intel).
//
// Features enter unchanged: 1 / |v| and 1 / |a| scale the float32 sums, so a similarity is as exact as with float32
// operands. Only G is rounded to bfloat16, as the gradients are at the end.
//
// Rows hold consecutive depths: rows[r][k]. Panels hold pairs of depths: panel[k / 2][lane][k % 2]. Depths are padded
// with zeros to a multiple of 32.
#pragma once
#include "microkernel.h"

namespace ssl_fast::SSL_FAST_ISA {

#if defined(__AMX_BF16__) || defined(__AVX512BF16__)
constexpr bool kHalfProducts = true;
#else
constexpr bool kHalfProducts = false;
#endif

// Whether the calls of this shape run on bfloat16 products.
template <class T>
constexpr bool half_products(const Shape& s) {
  return kHalfProducts && sizeof(T) == 4 && s.dtype == DType::bfloat16;
}
constexpr int64_t half_depth(int64_t n) { return round_up(n, 32); }

#if defined(__AVX512BF16__)

using Half = uint16_t;

SSL_FAST_AI __m512i load_pairs(const Half* even, const Half* odd, __mmask16 lanes) {
  __m512i low = even ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, even)) : _mm512_setzero_si512();
  __m512i high = odd ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, odd)) : _mm512_setzero_si512();
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
SSL_FAST_AI __mmask16 first_lanes(int64_t n) { return n >= 16 ? 0xffff : __mmask16((1u << n) - 1); }
SSL_FAST_AI __m512i round_pairs(Vec<float> even, Vec<float> odd) {
  __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)even));
  return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)odd)), 16));
}

// to[r][k] = from[r][k], depths padded
inline void pad_rows(const Half* from, int64_t rows, int64_t depth, Half* to) {
  for (int64_t r = 0; r < rows; ++r, from += depth, to += half_depth(depth)) {
    __builtin_memcpy(to, from, depth * sizeof(Half));
    for (int64_t k = depth; k < half_depth(depth); ++k) to[k] = 0;
  }
}
// to[r][k] = from[k][r], depths padded; writes whole blocks of 16 rows
inline void transpose_rows(const Half* from, int64_t rows, int64_t depth, Half* to) {
  int64_t width = half_depth(depth);
  for (int64_t k = 0; k < width; k += 32)
    for (int64_t r = 0; r < rows; r += 16) {
      Vec<float> block[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        int64_t even = k + 2 * i;
        const Half* row = from + even * rows + r;
        block[i] = (Vec<float>)load_pairs(even < depth ? row : nullptr, even + 1 < depth ? row + rows : nullptr,
                                          first_lanes(rows - r));
      }
      transpose<float>(block);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) store(reinterpret_cast<float*>(to + (r + i) * width + k), block[i]);
    }
}

// One panel of audios in pairs: [panel][channel / 2][lane of audio][2], and [panel of channels][audio / 2][lane][2].
inline void pack_half(const Half* audio, int64_t count, int64_t channels, int64_t panel, int64_t padded, Half* lanes,
                      Half* columns) {
  constexpr int W = kPanel<float>;
  int64_t depth = half_depth(channels);
  auto row = [&](int64_t m) { return m < count ? audio + m * channels : nullptr; };
  for (int v = 0; v < kVectors; ++v)
    for (int64_t c = 0; c < depth; c += 32) {
      Vec<float> block[16];
      int64_t left = channels - c;
      __mmask32 valid = left >= 32 ? 0xffffffffu : left > 0 ? (1u << left) - 1 : 0;
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const Half* a = row(panel * W + v * 16 + i);
        block[i] = (Vec<float>)(a ? _mm512_maskz_loadu_epi16(valid, a + c) : _mm512_setzero_si512());
      }
      transpose<float>(block);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        store(reinterpret_cast<float*>(lanes + panel * W * depth + ((c / 2 + i) * W + v * 16) * 2), block[i]);
    }
  for (int64_t c = 0; columns && c < round_up(channels, W); c += 16)
    for (int64_t m = panel * W; m < (panel + 1) * W; m += 2) {
      const Half *even = row(m), *odd = row(m + 1);
      __mmask16 valid = first_lanes(channels - c > 0 ? channels - c : 0);
      __m512i pairs = load_pairs(even ? even + c : nullptr, odd ? odd + c : nullptr, valid);
      _mm512_storeu_si512(columns + (c / W) * padded * W + (m / 2 * W + c % W) * 2, pairs);
    }
}
// rows[cell][audio] = G * scale of the audio, from G [panel][cell][lane], its panels `stride` apart
inline void round_rows(const float* G, int64_t stride, int64_t cells, int64_t panels, const float* scale, Half* rows) {
  constexpr int W = kPanel<float>;
  for (int64_t panel = 0; panel < panels; ++panel) {
    Vec<float> low = load(scale + panel * W), high = load(scale + panel * W + 16);
    const float* g = G + panel * stride;
    for (int64_t cell = 0; cell < cells; ++cell, g += W)
      _mm512_storeu_si512(rows + (cell * panels + panel) * W,
                          (__m512i)_mm512_cvtne2ps_pbh((__m512)(load(g + 16) * high), (__m512)(load(g) * low)));
  }
}
// panel[cell / 2][lane][2] = G of one panel, [cell][lane]
inline void round_panel(const float* G, int64_t cells, Half* panel) {
  constexpr int W = kPanel<float>;
  for (int64_t cell = 0; cell < half_depth(cells); cell += 2)
    for (int v = 0; v < kVectors; ++v) {
      Vec<float> even{}, odd{};
      if (cell < cells) even = load(G + cell * W + v * 16);
      if (cell + 1 < cells) odd = load(G + (cell + 1) * W + v * 16);
      _mm512_storeu_si512(panel + (cell / 2 * W + v * 16) * 2, round_pairs(even, odd));
    }
}

#if defined(__AMX_BF16__)
// Tiles 0-3 hold sums, 4-5 rows, 6-7 panels; all of 16 rows of 64 bytes.
struct TileScope {
  TileScope() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~TileScope() { _tile_release(); }
};

// out[r, lane] (+)= sum_k rows[r, k] panel[k, lane], in blocks of 16 rows: rows and out must hold whole blocks.
inline void multiply_half(const Half* rows, int64_t row_stride, int64_t count, const Half* panel, int64_t depth,
                          float* out, int64_t out_stride, bool add) {
  const int64_t row_bytes = row_stride * sizeof(Half), out_bytes = out_stride * sizeof(float);
  for (int64_t r = 0; r < count; r += 32, rows += 32 * row_stride, out += 32 * out_stride) {
    bool second = r + 16 < count;
    float* below = out + 16 * out_stride;
    if (add) {
      _tile_loadd(0, out, out_bytes);
      _tile_loadd(1, out + 16, out_bytes);
      if (second) _tile_loadd(2, below, out_bytes);
      if (second) _tile_loadd(3, below + 16, out_bytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t k = 0; k < depth; k += 32) {
      _tile_loadd(6, panel + k * 32, 128);
      _tile_loadd(7, panel + k * 32 + 32, 128);
      _tile_loadd(4, rows + k, row_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (second) {
        _tile_loadd(5, rows + 16 * row_stride + k, row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, out, out_bytes);
    _tile_stored(1, out + 16, out_bytes);
    if (second) _tile_stored(2, below, out_bytes);
    if (second) _tile_stored(3, below + 16, out_bytes);
  }
}
#else
struct TileScope {
  ~TileScope() {}
};

template <int R>
__attribute__((noinline)) void multiply_half_rows(const Half* rows, int64_t row_stride, const Half* panel,
                                                  int64_t depth, float* out, int64_t out_stride, bool add) {
  __m512 sums[R][kVectors] = {};
  for (int64_t k = 0; k < depth; k += 2, panel += 64) {
    __m512bh q[kVectors] = {(__m512bh)_mm512_loadu_si512(panel), (__m512bh)_mm512_loadu_si512(panel + 32)};
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      int pair;
      __builtin_memcpy(&pair, rows + r * row_stride + k, 4);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], (__m512bh)_mm512_set1_epi32(pair), q[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* at = out + r * out_stride + v * 16;
      store(at, add ? load(at) + (Vec<float>)sums[r][v] : (Vec<float>)sums[r][v]);
    }
}
inline void multiply_half(const Half* rows, int64_t row_stride, int64_t count, const Half* panel, int64_t depth,
                          float* out, int64_t out_stride, bool add) {
  for_tiles(count, [&](auto height, int64_t r) {
    multiply_half_rows<decltype(height)::value>(rows + r * row_stride, row_stride, panel, depth, out + r * out_stride,
                                                out_stride, add);
  });
}
#endif

#else  // no bfloat16 products: never called, as half_products() is false
using Half = uint16_t;
struct TileScope {
  ~TileScope() {}
};
inline void pad_rows(const Half*, int64_t, int64_t, Half*) {}
inline void transpose_rows(const Half*, int64_t, int64_t, Half*) {}
inline void multiply_half(const Half*, int64_t, int64_t, const Half*, int64_t, float*, int64_t, bool) {}
inline void pack_half(const Half*, int64_t, int64_t, int64_t, int64_t, Half*, Half*) {}
inline void round_rows(const float*, int64_t, int64_t, int64_t, const float*, Half*) {}
inline void round_panel(const float*, int64_t, Half*) {}
#endif

}  // namespace ssl_fast::SSL_FAST_ISA
