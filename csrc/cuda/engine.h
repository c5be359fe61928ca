// The tile engine: products of all audios with all cells, handed on while they are in registers.
//
// A block owns kRows audios and, at a time, up to kColumns cells: as many whole images as fit, or a part of one image. Raw
// features stream through shared memory in slabs of 64 bytes a row; eight warps (2 by audios, 4 by cells) multiply them:
//
//   TensorCore<S>   bfloat16, float16: mma m16n8k16; float: mma m16n8k8 on tf32. Sums in float.
//   Exact<T>        float or double: multiply-adds of that type.
//
// Whatever multiplies, a thread ends with the same part of the tile: of audio(r) and column(ni, j), at(r, ni, j).
#pragma once
#include "kernels.h"
#include "tensor_core.h"

namespace ssl_fast::cuda {

constexpr int kSlab = 64;   // bytes of a row that are multiplied at a time
constexpr int kStages = 4;  // slabs in flight
constexpr int kWarpRows = 2, kWarpColumns = 4;
static_assert(kWarpRows * kWarpColumns == kWarps);

// Place in shared memory of 16 bytes of a row: eight rows of one column lie in different banks.
__device__ inline int place_of(int row, int chunk) { return row * kSlab + (chunk ^ ((row >> 1) & 3)) * 16; }

template <class S>
struct TensorCore {
  using Stored = S;
  using T = float;
  static constexpr int kTallTiles = 4, kWideTiles = 7;

  static __device__ void multiply(const char* audios, const char* cells, float (&sums)[kTallTiles][kWideTiles][4]) {
    const int lane = threadIdx.x % kWarp;
    uint32_t a[2][kTallTiles][4];
    for (int half = 0; half < 2; ++half)
      for (int mi = 0; mi < kTallTiles; ++mi)
        load_matrices(a[half][mi], audios + place_of(mi * 16 + lane % 16, 2 * half + lane / 16), S());
    for (int ni = 0; ni < kWideTiles; ++ni) {
      uint32_t b[4];
      load_matrices(b, cells + place_of(ni * 8 + lane % 8, lane / 8), S());
      for (int half = 0; half < 2; ++half)
        for (int mi = 0; mi < kTallTiles; ++mi) multiply_tile(sums[mi][ni], a[half][mi], b + 2 * half, S());
    }
  }
};

template <class S>
struct Exact {
  using Stored = S;
  using T = S;
  static constexpr int kTallTiles = sizeof(T) == 8 ? 2 : 4, kWideTiles = sizeof(T) == 8 ? 3 : 7;
  struct alignas(16) Chunk {
    T at[16 / sizeof(T)];
  };

  static __device__ void multiply(const char* audios, const char* cells, T (&sums)[kTallTiles][kWideTiles][4]) {
    const int group = threadIdx.x % kWarp / 4, quad = threadIdx.x % 4;
    for (int c = 0; c < kSlab / 16; ++c) {
      Chunk a[2 * kTallTiles];
      for (int r = 0; r < 2 * kTallTiles; ++r) a[r] = *reinterpret_cast<const Chunk*>(audios + place_of(r * 8 + group, c));
      for (int ni = 0; ni < kWideTiles; ++ni)
        for (int j = 0; j < 2; ++j) {
          Chunk b = *reinterpret_cast<const Chunk*>(cells + place_of(ni * 8 + 2 * quad + j, c));
          for (int r = 0; r < 2 * kTallTiles; ++r)
            for (int e = 0; e < int(16 / sizeof(T)); ++e) sums[r / 2][ni][r % 2 * 2 + j] += a[r].at[e] * b.at[e];
        }
    }
  }
};

template <class Math>
struct Engine {
  using T = typename Math::T;
  static constexpr int kTall = Math::kTallTiles, kWide = Math::kWideTiles;
  static constexpr int kAudios = 2 * kTall;  // of a thread
  static constexpr int kRows = 16 * kTall * kWarpRows, kColumns = 8 * kWide * kWarpColumns;
  static constexpr int kStage = (kRows + kColumns) * kSlab, kShared = kStage * kStages;

  const PairsParams& p;
  char* shared;  // kShared bytes
  int64_t first_audio;  // of this block
  T sums[kTall][kWide][4];

  __device__ Engine(const PairsParams& p, char* shared)
      : p(p), shared(shared), first_audio(blockIdx.x % tall_tiles(p.audios) * kRows) {}

  __device__ static int warp_row() { return threadIdx.x / kWarp / kWarpColumns; }
  __device__ static int warp_column() { return threadIdx.x / kWarp % kWarpColumns; }
  // Audio of the tile, r < kAudios, and column of the tile, j < 2.
  __device__ static int audio(int r) { return warp_row() * 16 * kTall + r * 8 + threadIdx.x % kWarp / 4; }
  __device__ static int column(int ni, int j) { return (warp_column() * kWide + ni) * 8 + threadIdx.x % 4 * 2 + j; }
  __device__ T at(int r, int ni, int j) const { return sums[r / 2][ni][r % 2 * 2 + j]; }

  __device__ void load(int64_t slab, int64_t first_cell, int64_t end_cell) const {
    char* stage = shared + slab % kStages * kStage;
    for (int i = threadIdx.x; i < (kRows + kColumns) * (kSlab / 16); i += kThreads) {
      const int row = i / (kSlab / 16), chunk = i % (kSlab / 16);
      const bool of_audio = row < kRows;
      const int64_t source = of_audio ? first_audio + row : first_cell + row - kRows;
      const bool valid = source < (of_audio ? p.audios : end_cell);
      const char* values = static_cast<const char*>(of_audio ? p.audio_rows : p.cell_rows);
      copy_async(stage + place_of(row, chunk), values + ((valid ? source : 0) * p.slabs + slab) * kSlab + chunk * 16, valid);
    }
  }
  // sums = raw products of the block's audios with cells [first, end).
  __device__ void multiply(int64_t first, int64_t end) {
    for (auto& tall : sums)
      for (auto& wide : tall)
        for (T& sum : wide) sum = 0;
    for (int64_t slab = 0; slab < kStages - 1; ++slab) {
      if (slab < p.slabs) load(slab, first, end);
      close_copies();
    }
    for (int64_t slab = 0; slab < p.slabs; ++slab) {
      wait_for_copies<kStages - 2>();
      __syncthreads();
      if (slab + kStages - 1 < p.slabs) load(slab + kStages - 1, first, end);
      close_copies();
      const char* stage = shared + slab % kStages * kStage;
      Math::multiply(stage + warp_row() * 16 * kTall * kSlab, stage + (kRows + warp_column() * 8 * kWide) * kSlab, sums);
    }
    __syncthreads();  // the next tile writes where this one was read
  }
  // f(ni, j, column) for the columns of this thread in [low, high).
  template <class F>
  __device__ static void for_columns(int low, int high, F f) {
#pragma unroll
    for (int ni = 0; ni < kWide; ++ni) {
      const int first = column(ni, 0) - threadIdx.x % 4 * 2;
      if (first >= high || first + 8 <= low) continue;  // the same for the whole warp
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (column(ni, j) >= low && column(ni, j) < high) f(ni, j, column(ni, j));
    }
  }
  // Whole images in a tile, or, where an image is wider than a tile, 1.
  static __host__ __device__ int64_t images_per_tile(int64_t cells) { return cells < kColumns ? kColumns / cells : 1; }
  static __host__ __device__ int64_t tall_tiles(int64_t audios) { return (audios + kRows - 1) / kRows; }
  static int64_t blocks(const PairsParams& p) {
    const int64_t group = images_per_tile(p.cells);
    return (p.images + group - 1) / group * tall_tiles(p.audios);
  }
  // After the products of each tile, calls f(image, first cell, low, high, last) for each image in it: its cells from the
  // first one on are in columns [low, high), `last` if no cells of the image follow in another tile.
  template <class F>
  __device__ void run(F f) {
    const int64_t group = images_per_tile(p.cells), first_image = blockIdx.x / tall_tiles(p.audios) * group;
    const int64_t end_image = first_image + group < p.images ? first_image + group : p.images;
    const int64_t end = end_image * p.cells;
    for (int64_t first = first_image * p.cells; first < end; first += kColumns) {
      const int64_t last = first + kColumns < end ? first + kColumns : end;
      multiply(first, last);
      for (int64_t n = first_image; n < end_image; ++n) {
        const int64_t low = n * p.cells - first, high = low + p.cells;
        const int from = low > 0 ? int(low) : 0, to = high < last - first ? int(high) : int(last - first);
        f(n, from - low, from, to, high <= last - first);
      }
    }
  }
};

}  // namespace ssl_fast::cuda
