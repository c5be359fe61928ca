// bfloat16 GEMM and packing of its operands, for processors that multiply bfloat16 faster than float32: AMX tiles
// (Intel), or AVX512-BF16 dot products (vdpbf16ps: twice the float32 rate on AMD, half of it on Intel).
//
//   out[r, lane] (+)= sum_k rows[r, k] panel[k, lane]     bfloat16 operands, float32 sums
//
//   rows    row-major, K contiguous: rows[r][k]
//   panel   VNNI pairs: panel[k / 2][lane][k % 2], kPanel lanes
//   K       padded with zeros to a multiple of 32: one AMX tile of 16 pairs
//
// It serves the three products of gemm_tile.h. Features enter as they are, not as unit vectors: 1 / |v| and 1 / |a|
// scale the float32 sums, so a similarity is as exact as from float32 operands. Only G is rounded to bfloat16, as the
// gradients are in the end. All of this runs in one thread.
#pragma once
#include "microkernel.h"

namespace ssl_fast::SSL_FAST_ISA {

#if defined(__AMX_BF16__) || defined(__AVX512BF16__)
constexpr bool kBf16Gemm = true;
#else
constexpr bool kBf16Gemm = false;
#endif

using Bf16 = uint16_t;

// True where calls of this shape, computed in T, use the bfloat16 GEMM.
template <class T>
constexpr bool uses_bf16_gemm(const Shape& s) {
  return kBf16Gemm && sizeof(T) == 4 && s.dtype == DType::bfloat16;
}
constexpr int64_t bf16_depth(int64_t n) { return round_up(n, 32); }

#if defined(__AVX512BF16__)

SSL_FAST_ALWAYS_INLINE __m512i load_vnni_pairs(const Bf16* even, const Bf16* odd, __mmask16 lanes) {
  __m512i low = even ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, even)) : _mm512_setzero_si512();
  __m512i high = odd ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, odd)) : _mm512_setzero_si512();
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
SSL_FAST_ALWAYS_INLINE __mmask16 lane_mask(int64_t n) { return n >= 16 ? 0xffff : __mmask16((1u << n) - 1); }
SSL_FAST_ALWAYS_INLINE __m512i to_vnni_pairs(Vec<float> even, Vec<float> odd) {
  __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)even));
  return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)odd)), 16));
}

// `stride`: between rows of `from`
// to[r][k] = from[r][k], K = depth padded
inline void copy_bf16_rows(const Bf16* from, int64_t stride, int64_t rows, int64_t depth, Bf16* to) {
  for (int64_t r = 0; r < rows; ++r, from += stride, to += bf16_depth(depth)) {
    __builtin_memcpy(to, from, depth * sizeof(Bf16));
    for (int64_t k = depth; k < bf16_depth(depth); ++k) to[k] = 0;
  }
}
// to[r][k] = from[k][r], K = depth padded; rows are padded to a multiple of 16
inline void transpose_bf16_rows(const Bf16* from, int64_t stride, int64_t rows, int64_t depth, Bf16* to) {
  int64_t width = bf16_depth(depth);
  for (int64_t k = 0; k < width; k += 32)
    for (int64_t r = 0; r < rows; r += 16) {
      Vec<float> block[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        int64_t even = k + 2 * i;
        const Bf16* row = from + even * stride + r;
        block[i] = (Vec<float>)load_vnni_pairs(even < depth ? row : nullptr, even + 1 < depth ? row + stride : nullptr,
                                               lane_mask(rows - r));
      }
      transpose<float>(block);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) store(reinterpret_cast<float*>(to + (r + i) * width + k), block[i]);
    }
}

// Packs one panel of audios in VNNI pairs. K = channels: similarity_panels [panel][channel / 2][lane of audio][2];
// K = audios: gradient_panels [panel of channels][audio / 2][lane of channel][2], or null.
inline void pack_bf16_panel(const Bf16* audio, int64_t stride, int64_t count, int64_t channels, int64_t panel,
                            int64_t padded, Bf16* similarity_panels, Bf16* gradient_panels) {
  constexpr int W = kPanel<float>;
  int64_t depth = bf16_depth(channels);
  auto row = [&](int64_t m) { return m < count ? audio + m * stride : nullptr; };
  for (int v = 0; v < kVectors; ++v)
    for (int64_t c = 0; c < depth; c += 32) {
      Vec<float> block[16];
      int64_t left = channels - c;
      __mmask32 valid = left >= 32 ? 0xffffffffu : left > 0 ? (1u << left) - 1 : 0;
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const Bf16* a = row(panel * W + v * 16 + i);
        block[i] = (Vec<float>)(a ? _mm512_maskz_loadu_epi16(valid, a + c) : _mm512_setzero_si512());
      }
      transpose<float>(block);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        store(reinterpret_cast<float*>(similarity_panels + panel * W * depth + ((c / 2 + i) * W + v * 16) * 2),
              block[i]);
    }
  for (int64_t c = 0; gradient_panels && c < round_up(channels, W); c += 16)
    for (int64_t m = panel * W; m < (panel + 1) * W; m += 2) {
      const Bf16 *even = row(m), *odd = row(m + 1);
      __mmask16 valid = lane_mask(channels - c > 0 ? channels - c : 0);
      __m512i pairs = load_vnni_pairs(even ? even + c : nullptr, odd ? odd + c : nullptr, valid);
      _mm512_storeu_si512(gradient_panels + (c / W) * padded * W + (m / 2 * W + c % W) * 2, pairs);
    }
}
// rows[cell][audio] = G scale[audio], rounded; G is [panel][cell][lane], its panels `stride` apart.
inline void to_bf16_rows(const float* G, int64_t stride, int64_t cells, int64_t panels, const float* scale,
                         Bf16* rows) {
  constexpr int W = kPanel<float>;
  for (int64_t panel = 0; panel < panels; ++panel) {
    Vec<float> low = load(scale + panel * W), high = load(scale + panel * W + 16);
    const float* g = G + panel * stride;
    for (int64_t cell = 0; cell < cells; ++cell, g += W)
      _mm512_storeu_si512(rows + (cell * panels + panel) * W,
                          (__m512i)_mm512_cvtne2ps_pbh((__m512)(load(g + 16) * high), (__m512)(load(g) * low)));
  }
}
// VNNI pairs panel[cell / 2][lane][2] of one panel of G, [cell][lane].
inline void to_bf16_panel(const float* G, int64_t cells, Bf16* panel) {
  constexpr int W = kPanel<float>;
  for (int64_t cell = 0; cell < bf16_depth(cells); cell += 2)
    for (int v = 0; v < kVectors; ++v) {
      Vec<float> even{}, odd{};
      if (cell < cells) even = load(G + cell * W + v * 16);
      if (cell + 1 < cells) odd = load(G + (cell + 1) * W + v * 16);
      _mm512_storeu_si512(panel + (cell / 2 * W + v * 16) * 2, to_vnni_pairs(even, odd));
    }
}

#if defined(__AMX_BF16__)
// Configures the tile registers of a thread, and releases them: 0-3 accumulate, 4-5 load rows, 6-7 load panels; all
// are 16 rows of 64 bytes.
struct AmxTileScope {
  AmxTileScope() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~AmxTileScope() { _tile_release(); }
};

// Blocks of 32 x kPanel: 2 x 2 accumulator tiles. `rows` and `out` are padded to a multiple of 16 rows.
inline void bf16_gemm(const Bf16* rows, int64_t row_stride, int64_t count, const Bf16* panel, int64_t depth, float* out,
                      int64_t out_stride, bool add) {
  const int64_t row_bytes = row_stride * sizeof(Bf16), out_bytes = out_stride * sizeof(float);
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
struct AmxTileScope {
  ~AmxTileScope() {}
};

template <int R>
__attribute__((noinline)) void bf16_microkernel(const Bf16* rows, int64_t row_stride, const Bf16* panel, int64_t depth,
                                                float* out, int64_t out_stride, bool add) {
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
inline void bf16_gemm(const Bf16* rows, int64_t row_stride, int64_t count, const Bf16* panel, int64_t depth, float* out,
                      int64_t out_stride, bool add) {
  for_tiles(count, [&](auto height, int64_t r) {
    bf16_microkernel<decltype(height)::value>(rows + r * row_stride, row_stride, panel, depth, out + r * out_stride,
                                              out_stride, add);
  });
}
#endif

#else  // never called, as uses_bf16_gemm() is false
struct AmxTileScope {
  ~AmxTileScope() {}
};
inline void copy_bf16_rows(const Bf16*, int64_t, int64_t, int64_t, Bf16*) {}
inline void transpose_bf16_rows(const Bf16*, int64_t, int64_t, int64_t, Bf16*) {}
inline void bf16_gemm(const Bf16*, int64_t, int64_t, const Bf16*, int64_t, float*, int64_t, bool) {}
inline void pack_bf16_panel(const Bf16*, int64_t, int64_t, int64_t, int64_t, int64_t, Bf16*, Bf16*) {}
inline void to_bf16_rows(const float*, int64_t, int64_t, int64_t, const float*, Bf16*) {}
inline void to_bf16_panel(const float*, int64_t, Bf16*) {}
#endif

}  // namespace ssl_fast::SSL_FAST_ISA
