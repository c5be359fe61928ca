// The micro-kernel of the engine, and what it stands on: memory pieces, prefetching, tiles of rows.
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
    T* piece = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(base) + used);  // null + used would be undefined
    used += round_up(count * sizeof(T), 64);
    return piece;
  }
};

// Brings memory that is needed next into the second-level cache, a little at each of `steps` steps of a running
// product.
struct Ahead {
  const char* at;
  int64_t lines, per_step;
  Ahead(const void* memory, int64_t bytes, int64_t steps)
      : at(static_cast<const char*>(memory)), lines(memory ? bytes / 64 : 0), per_step(lines / steps + 1) {}
  template <bool kToWrite = false>
  SSL_FAST_AI void step() {
    for (int64_t i = lines < per_step ? lines : per_step; i > 0; --i, --lines, at += 64)
      __builtin_prefetch(at, kToWrite, 2);
  }
};

// ---- the micro-kernel -----------------------------------------------------------------------------------------------
// Where a product finds its rows: rows[block * block_stride + r * row_stride + k * depth_stride].
template <class T>
struct Rows {
  const T* values;
  int64_t row_stride, depth_stride, blocks, block_stride;
};

// tile[r, lane] (+)= sum over blocks and k < depth of rows[block, r, k] panel[block, k, lane].
// Out of line, so that all accumulators stay in registers. kRowStride = 0: the stride is given at run time.
template <int kRowStride, bool kAdd, int R, class T>
__attribute__((noinline)) void multiply(T* tile, int64_t tile_stride, const Rows<T>& from, int64_t depth,
                                        const T* panel) {
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

}  // namespace ssl_fast::SSL_FAST_ISA
