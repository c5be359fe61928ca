// Memory-bound (BLAS level 2) functions of one image V, (channels, cells) or, channels last, (cells, channels), which
// read it once, and the last step of a visual gradient:
//
//   channel_dots           out[p]    = sum_c V[c, p] x[c], or sum_c V[c, p]^2
//   inverse_norms          out[p]    = 1 / |V[:, p]|
//   cell_dots              out[c]    = sum_p V[c, p] s[p]
//   rank1_gradient         out[c, p] = s[p] x[c] - t[p] V[c, p], or added to out
//   store_gradient_panel   out[c, p] = D[p, c] - t[p] V[c, p]
//
// Lanes run over what is contiguous in memory. All of this runs in one thread; callers take images in parallel.
#pragma once
#include "gemm_tile.h"

namespace ssl_fast::SSL_FAST_ISA {

// out[p] = sum_c V[c, p] x[c]; where x is null, sum_c V[c, p]^2.
template <class T>
inline void channel_dots(const Image<T>& image, const T* x, T* out) {
  constexpr int L = kLanes<T>;
  if (image.cell_stride != 1 || image.cells < L) {
    for (int64_t p = 0; p < image.cells; ++p) {
      const T* v = image.values + p * image.cell_stride;
      Vec<T> sums[4] = {};
      int64_t c = 0;
      if (image.channel_stride == 1)
        for (; c + 4 * L <= image.channels; c += 4 * L)
          for (int i = 0; i < 4; ++i) sums[i] += load(v + c + i * L) * load((x ? x : v) + c + i * L);
      T sum = sum_lanes<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
      for (; c < image.channels; ++c) sum += v[c * image.channel_stride] * (x ? x[c] : v[c * image.channel_stride]);
      out[p] = sum;
    }
    return;
  }
  // Blocks of up to 8 vectors of cells, for all channels: contiguous reads. The last vector overlaps the one before.
  auto block = [&](auto count, int64_t first) __attribute__((noinline)) {
    constexpr int V = decltype(count)::value;
    int64_t last = image.cells - first - L < (V - 1) * L ? image.cells - first - L : (V - 1) * L;
    const T* v = image.values + first;
    Vec<T> sums[V] = {};
    for (int64_t begin = 0; begin < image.channels; begin += 32) {  // sums in two levels: less rounding error
      int64_t end = begin + 32 < image.channels ? begin + 32 : image.channels;
      Vec<T> part[V] = {};
      for (int64_t c = begin; c < end; ++c, v += image.cells)
#pragma GCC unroll 8
        for (int i = 0; i < V; ++i) {
          Vec<T> value = load(v + (i < V - 1 ? i * L : last));
          part[i] += value * (x ? broadcast(x[c]) : value);
        }
#pragma GCC unroll 8
      for (int i = 0; i < V; ++i) sums[i] += part[i];
    }
    for (int i = 0; i < V; ++i) store(out + first + (i < V - 1 ? i * L : last), sums[i]);
  };
  for (int64_t first = 0; first < image.cells; first += 8 * L) {
    int64_t left = (image.cells - first + L - 1) / L;
    dispatch_tile<8>(int(left < 8 ? left : 8), first, block);
  }
}

template <class T>
inline void inverse_norms(const Shape& s, const Image<T>& image, T* out) {
  if (s.normalized) channel_dots<T>(image, nullptr, out);
  for (int64_t p = 0; p < image.cells; ++p) out[p] = s.normalized ? safe_rsqrt(out[p], s.dtype) : T(1);
}

// out[c] = sum_p V[c, p] s[p], in sums of few cells, then of few such sums: less rounding error. scratch: (2,
// channels), for channels last.
template <class T>
inline void cell_dots(const Image<T>& image, const T* s, T* out, T* scratch, L2Prefetcher& prefetcher) {
  constexpr int L = kLanes<T>;
  int64_t channels = image.channels;
  if (image.channel_stride == 1) {
    constexpr int64_t kBlock = 32, kGroup = kBlock * kBlock;
    auto add = [&](T* sum, const T* row, T scale, bool to_zero) {
      int64_t c = 0;
      for (; c + L <= channels; c += L) store(sum + c, (to_zero ? Vec<T>{} : load(sum + c)) + load(row + c) * scale);
      for (; c < channels; ++c) sum[c] = (to_zero ? 0 : sum[c]) + row[c] * scale;
    };
    T *block = scratch, *group = scratch + channels;
    for (int64_t p = 0; p < image.cells; ++p) {
      prefetcher.prefetch_step();
      add(block, image.values + p * image.cell_stride, s[p], p % kBlock == 0);
      if ((p + 1) % kBlock && p + 1 < image.cells) continue;
      add(group, block, 1, p % kGroup < kBlock);
      if ((p + 1) % kGroup && p + 1 < image.cells) continue;
      add(out, group, 1, p < kGroup);
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    prefetcher.prefetch_step();
    const T* v = image.values + c * image.cells;
    Vec<T> total{};
    int64_t p = 0;
    while (p + L <= image.cells) {
      const int64_t end = p + 512 < image.cells ? p + 512 : image.cells;
      Vec<T> sums[4] = {};
      for (; p + 4 * L <= end; p += 4 * L)
        for (int i = 0; i < 4; ++i) sums[i] += load(v + p + i * L) * load(s + p + i * L);
      for (; p + L <= end; p += L) sums[0] += load(v + p) * load(s + p);
      total += (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
    T sum = sum_lanes<T>(total);
    for (; p < image.cells; ++p) sum += v[p] * s[p];
    out[c] = sum;
  }
}

// out[c, p] = s[p] x[c] - t[p] V[c, p], or added: gradient of V where its unit vectors are multiplied by a vector x.
template <bool kAdd, class T>
inline void rank1_gradient(const Image<T>& image, const T* x, const T* s, const T* t, T* out,
                           L2Prefetcher& prefetcher) {
  constexpr int L = kLanes<T>;
  bool last = image.channel_stride == 1;
  int64_t rows = last ? image.cells : image.channels, columns = last ? image.channels : image.cells;
  auto put = [](T* to, Vec<T> x) { store(to, kAdd ? load(to) + x : x); };
  for (int64_t r = 0; r < rows; ++r) {
    const T* v = image.values + r * columns;
    T* o = out + r * columns;
    int64_t i = 0;
    prefetcher.prefetch_step();
    if (last) {
      for (; i + L <= columns; i += L) put(o + i, load(x + i) * s[r] - load(v + i) * t[r]);
      for (; i < columns; ++i) o[i] = x[i] * s[r] - v[i] * t[r] + (kAdd ? o[i] : 0);
    } else {
      for (; i + L <= columns; i += L) put(o + i, load(s + i) * x[r] - load(v + i) * load(t + i));
      for (; i < columns; ++i) o[i] = x[r] * s[i] - v[i] * t[i] + (kAdd ? o[i] : 0);
    }
  }
}

// out[c, p] = D[p, c] - t[p] V[c, p], D (cells, kPanel), for up to a panel of channels: gradient of V where its unit
// vectors are multiplied by all audios.
template <class T>
inline void store_gradient_panel(const Image<T>& image, const T* D, const T* t, T* out) {
  constexpr int L = kLanes<T>, width = kPanel<T>;
  int64_t cells = image.cells, channels = image.channels;
  if (image.channel_stride == 1 || cells < L || channels < L) {
    for (int64_t p = 0; p < cells; ++p) {
      int64_t c = 0, at = p * image.cell_stride;
      if (image.channel_stride == 1)
        for (; c + L <= channels; c += L)
          store(out + at + c, load(D + p * width + c) - t[p] * load(image.values + at + c));
      for (at += c * image.channel_stride; c < channels; ++c, at += image.channel_stride)
        out[at] = D[p * width + c] - t[p] * image.values[at];
    }
    return;
  }
  // Transposed in L x L blocks; the last blocks overlap those before, and write the same values again.
  for (int64_t c = 0; c < channels; c += L) {
    c = c + L > channels ? channels - L : c;
    for (int64_t p = 0; p < cells; p += L) {
      p = p + L > cells ? cells - L : p;
      Vec<T> block[L], scale = load(t + p);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) block[i] = load(D + (p + i) * width + c);
      transpose<T>(block);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        int64_t at = (c + i) * cells + p;
        store(out + at, block[i] - scale * load(image.values + at));
      }
    }
  }
}

}  // namespace ssl_fast::SSL_FAST_ISA
