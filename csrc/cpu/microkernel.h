// Register-blocked GEMM micro-kernel, the split of rows into tiles, and an L2 software prefetcher.
//
//   tile[r, lane] (+)= sum_k rows[r, k] panel[k, lane]     r < R <= kTileRows, lane < kPanel
//
//   tile    R * kVectors vector accumulators in registers (MR x NR in the terms of BLIS), then row-major in memory
//   rows    left operand, read in place with any strides: a scalar broadcast for every kVectors FMAs
//   panel   right operand, packed: the kPanel lanes of each k are contiguous
//
// Each R is an instantiation of its own. for_tiles splits rows into tiles of nearly equal height, so that no tile is
// much less efficient than the others. All of this runs in one thread; the kernels split images over threads.
#pragma once
#include "isa.h"
#include "simd.h"

namespace ssl_fast::SSL_FAST_ISA {

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// L2 software prefetcher of `bytes` of memory (none where it is null), paced over the `steps` k-blocks, tiles or rows
// of a running loop, each of which calls prefetch_step().
struct L2Prefetcher {
  const char* next;
  int64_t lines_left, lines_per_step;
  L2Prefetcher(const void* memory, int64_t bytes, int64_t steps)
      : next(static_cast<const char*>(memory)),
        lines_left(memory ? bytes / 64 : 0),
        lines_per_step(lines_left / steps + 1) {}
  template <bool kForWrite = false>
  SSL_FAST_ALWAYS_INLINE void prefetch_step() {
    for (int64_t i = lines_left < lines_per_step ? lines_left : lines_per_step; i > 0; --i, --lines_left, next += 64)
      __builtin_prefetch(next, kForWrite, 2);
  }
};

// ---- micro-kernel ---------------------------------------------------------------------------------------------------
// Left operand of depth K = blocks * depth: values[block * block_stride + r * row_stride + k * depth_stride].
template <class T>
struct LeftOperand {
  const T* values;
  int64_t row_stride, depth_stride, blocks, block_stride;
};

// tile[r, lane] (+)= sum over blocks and k < depth of rows[block, r, k] panel[block, k, lane].
// Out of line, so that all accumulators stay in registers. kRowStride = 0: row_stride is read at run time.
template <int kRowStride, bool kAdd, int R, class T>
__attribute__((noinline)) void gemm_microkernel(T* tile, int64_t tile_stride, const LeftOperand<T>& left, int64_t depth,
                                                const T* panel) {
  const int64_t row_stride = kRowStride ? kRowStride : left.row_stride, depth_stride = left.depth_stride;
  Vec<T> sums[R][kVectors] = {};
  for (int64_t block = 0; block < left.blocks; ++block) {
    const T* rows = left.values + block * left.block_stride;
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

template <int R>
struct TileHeight {
  static constexpr int value = R;
};
// Calls f(TileHeight<rows>{}, first): from a number known at run time to an instantiation.
template <int R = kTileRows, class F>
SSL_FAST_ALWAYS_INLINE void dispatch_tile(int rows, int64_t first, F& f) {
  if (rows == R)
    f(TileHeight<R>{}, first);
  else if constexpr (R > 1)
    dispatch_tile<R - 1>(rows, first, f);
}
// Calls f(TileHeight<R>{}, first row) for tiles of nearly equal height that cover `rows` rows.
template <class F>
SSL_FAST_ALWAYS_INLINE void for_tiles(int64_t rows, F&& f) {
  int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t t = 0, first = 0; t < tiles; ++t) {
    int height = int(rows / tiles + (t < rows % tiles));
    dispatch_tile(height, first, f);
    first += height;
  }
}

}  // namespace ssl_fast::SSL_FAST_ISA
