// GEMM main loop with a fused epilogue: dot[m, p] = sum_k audio[m, k] cell[p, k] for all audios m and cells p of all
// images, handed to the epilogue while the tile is in registers. The products never reach global memory.
//
//   Operands   packed (kernels.h), K contiguous: audios (M, K), cells (N * P, K); a k-block is 64 bytes of each row.
//              Resident cells may come as features (N, C, P): they are packed on the way to shared memory, and their
//              norms taken; both are written
//   Grid       plan.blocks = spaces * tiles of cells * plan.splits CTAs, which take the audio tiles in turn; a tile of
//              cells is as many whole images as fit kTileColumns, or one wider image, looped over in parts
//   Block      kThreads = 256, 8 warps; one CTA per SM
//   Shared     plan.shared bytes, dynamic: audio stages | epilogue scratch | norms of the cells | cells
//
// One CTA owns a tile of cells; two 4-warp groups ping-pong over audio tiles in a 3-stage cp.async pipeline: one warp
// group is in its epilogue while the other one multiplies. The cells are resident in shared memory; where they do not
// fit they are streamed through the stages as well, and all 8 warps are one warp group with audio tiles twice as tall.
// A warp computes kMTiles m16 tiles (audios) by up to kNTiles n8 tiles (every fourth one of the cells). Math policies:
//
//   TensorCore<S>   bfloat16, float16: mma.m16n8k16; float rounded to tf32: mma.m16n8k8. Accumulates in float.
//   Exact<T>        float or double: FMAs of that type on CUDA cores. Float is summed by fours: half the rounding error
//                   for one addition more
//
// Both leave their accumulators as fragments of mma.m16n8: at(r, ni, j) is the product of audio(r), consecutive in r,
// with column(ni, j) of the tile of cells.
#pragma once
#include "kernels.h"
#include "ptx.cuh"

namespace ssl_fast::cuda {

constexpr int kKBlock = 64;  // bytes of K of a row in one pipeline stage
constexpr int kStages = 3;   // of the cp.async pipeline
constexpr int kGroupWarps = 4, kMaxWarpGroups = 2;
static_assert(kGroupWarps * kMaxWarpGroups == kWarps);

// XOR swizzle: byte offset of a 16-byte chunk of a row in a stage, for conflict-free ldmatrix.
__device__ inline int swizzled_offset(int row, int chunk) { return row * kKBlock + (chunk ^ ((row >> 1) & 3)) * 16; }

template <class S>
struct TensorCore {
  using Stored = S;
  using T = float;
  static constexpr int kMTiles = 4, kNTiles = 7;  // of a warp

  // acc += products of one k-block with kCount n8 tiles: `cells` is the first one, the next ones follow 4 tiles apart.
  template <int kCount>
  static __device__ void multiply(const char* audios, const char* cells, float (&acc)[kMTiles][kNTiles][4]) {
    const int lane = threadIdx.x % kWarpSize;
    uint32_t a[2][kMTiles][4];
    for (int half = 0; half < 2; ++half)
      for (int mi = 0; mi < kMTiles; ++mi)
        ldmatrix_x4(a[half][mi], audios + swizzled_offset(mi * 16 + lane % 16, 2 * half + lane / 16));
    for (int ni = 0; ni < kCount; ++ni) {
      uint32_t b[4];
      ldmatrix_x4(b, cells + swizzled_offset(ni * kGroupWarps * 8 + lane % 8, lane / 8));
      for (int half = 0; half < 2; ++half)
        for (int mi = 0; mi < kMTiles; ++mi) mma_m16n8(acc[mi][ni], a[half][mi], b + 2 * half, S());
    }
  }
};

template <class S>
struct Exact {
  using Stored = S;
  using T = S;
  static constexpr int kMTiles = sizeof(T) == 8 ? 2 : 4, kNTiles = sizeof(T) == 8 ? 3 : 7;  // of a warp
  using Chunk = AlignedVector<T, 16 / sizeof(T)>;

  template <int kCount>
  static __device__ void multiply(const char* audios, const char* cells, T (&acc)[kMTiles][kNTiles][4]) {
    const int g = threadIdx.x % kWarpSize / 4, q = threadIdx.x % 4;  // as of mma_m16n8
    for (int c = 0; c < kKBlock / 16; ++c) {
      Chunk a[2 * kMTiles];
      for (int r = 0; r < 2 * kMTiles; ++r)
        a[r] = *reinterpret_cast<const Chunk*>(audios + swizzled_offset(r * 8 + g, c));
      for (int ni = 0; ni < kCount; ++ni)
        for (int j = 0; j < 2; ++j) {
          Chunk b = *reinterpret_cast<const Chunk*>(cells + swizzled_offset(ni * kGroupWarps * 8 + 2 * q + j, c));
          for (int r = 0; r < 2 * kMTiles; ++r) {
            T& to = acc[r / 2][ni][r % 2 * 2 + j];
            T sum = std::is_same_v<T, float> ? 0 : to;
            for (int e = 0; e < int(16 / sizeof(T)); ++e) sum += a[r].at[e] * b.at[e];
            to = std::is_same_v<T, float> ? to + sum : sum;
          }
        }
    }
  }
};

template <class Math>
struct Engine {
  using S = typename Math::Stored;
  using T = typename Math::T;
  static constexpr int kMTiles = Math::kMTiles, kNTiles = Math::kNTiles;
  // Audios (rows of accumulators) of a thread, a warp and the CTA; cells (columns) of a tile.
  static constexpr int kThreadAudios = 2 * kMTiles;
  static constexpr int kWarpAudios = 16 * kMTiles, kBlockAudios = kMaxWarpGroups * kWarpAudios;
  static constexpr int kTileColumns = 8 * kNTiles * kGroupWarps;
  static constexpr int kAudioBytes = kStages * kBlockAudios * kKBlock;  // stages of all warp groups
  static constexpr int kAudioCopies = kMTiles / 2;     // 16-byte cp.async of audios of a thread, for each k-block
  static constexpr int kScratchBytes = 2 * sizeof(T);  // of the epilogue: the pooling state of each audio of each warp

  // Norms of a tile of cells; twice, as those of the next one are loaded while this one's are in use.
  static constexpr int kNormBytes = 2 * kTileColumns * int(sizeof(T));
  static constexpr int kCellsOffset = kAudioBytes + kGroupWarps * kBlockAudios * kScratchBytes + kNormBytes;
  static_assert(kCellsOffset % 128 == 0 && kTileColumns <= kThreads);
  static_assert(kWarps * kTileColumns * int(sizeof(T)) <= kAudioBytes);  // sums of pack_resident_cells

  // Whole images in a tile of cells, or 1 where an image is wider than a tile.
  static __host__ __device__ int64_t images_per_tile(int64_t cells) {
    return cells < kTileColumns ? kTileColumns / cells : 1;
  }

  // Of `spaces` of the same sizes in one launch.
  static Plan plan(const PairsParams& p, const Device& device, int spaces) {
    const int64_t images = images_per_tile(p.cells), columns = (p.images < images ? p.images : images) * p.cells;
    // ldmatrix reads 8 rows at a time: up to 7 beyond the last column
    const int64_t resident = kCellsOffset + (columns * p.k_blocks + 7) * kKBlock;
    Plan plan{columns <= kTileColumns && resident <= device.shared, 1, 0, 0, INT64_MAX};
    plan.shared = plan.resident ? resident : kCellsOffset + kStages * kTileColumns * kKBlock;
    const int64_t audio_tiles = (p.audios + kBlockAudios - 1) / kBlockAudios;
    const int64_t cell_tiles = spaces * ((p.images + images - 1) / images);
    for (int64_t splits = 1; splits <= audio_tiles; ++splits) {
      const int64_t waves = (cell_tiles * splits + device.multiprocessors - 1) / device.multiprocessors;
      // + 1: loading the cells of a CTA takes as long as half an audio tile
      const int64_t time = waves * (2 * ((audio_tiles + splits - 1) / splits) + 1);
      if (time < plan.time) plan.splits = splits, plan.time = time;
    }
    plan.blocks = cell_tiles * plan.splits;
    return plan;
  }

  const PairsParams& p;
  // Shared memory: audio stages of this warp group; all k-blocks (resident) or the stages (streamed) of the cells;
  // epilogue scratch of this warp group.
  char *audios, *cells, *scratch;
  T* norms;  // of the columns of the tile of cells
  bool resident;
  int64_t splits;
  unsigned block;             // of the space's grid
  int group_threads;          // threads of a warp group
  int warp_group;             // of this thread
  int group_thread;           // thread index in the warp group
  int warp_row, warp_column;  // position of the warp in the tile
  int k_blocks;               // of a row
  int audio_count;            // of the problem
  int first_audio;            // of the warp group's audio tile
  T acc[kMTiles][kNTiles][4];

  __device__ Engine(const PairsParams& p, const Plan& plan, unsigned block, char* shared)
      : p(p),
        resident(plan.resident),
        splits(plan.splits),
        block(block),
        group_threads(plan.resident ? kThreads / kMaxWarpGroups : kThreads),
        warp_group(threadIdx.x / group_threads),
        group_thread(threadIdx.x % group_threads),
        warp_row(group_thread / kWarpSize / kGroupWarps),
        // + 1 for the upper four warps: the two that have one n8 tile more lie on different SM sub-partitions
        warp_column((threadIdx.x / kWarpSize + threadIdx.x / kWarpSize / kGroupWarps) % kGroupWarps),
        k_blocks(int(p.k_blocks)),
        audio_count(int(p.audios)) {
    audios = shared + warp_group * (kStages * kWarpAudios * kKBlock);
    scratch = shared + kAudioBytes + warp_group * (kGroupWarps * kWarpAudios * kScratchBytes);
    norms = reinterpret_cast<T*>(shared + kCellsOffset - kNormBytes);
    cells = shared + kCellsOffset;
  }

  __device__ int tile_audios() const { return resident ? kWarpAudios : kBlockAudios; }  // of the warp group's tile
  // Audio of the tile, r < kThreadAudios, and column of the tile, j < 2.
  __device__ int audio(int r) const { return warp_row * kWarpAudios + threadIdx.x % kWarpSize / 4 * kThreadAudios + r; }
  __device__ int column(int ni, int j) const { return (ni * kGroupWarps + warp_column) * 8 + threadIdx.x % 4 * 2 + j; }
  __device__ T at(int r, int ni, int j) const { return acc[r / 2][ni][r % 2 * 2 + j]; }
  __device__ void sync_group() const { sync_warp_group(warp_group, group_threads); }

  // The next k-block to prefetch, of the audio tile from `audio` on and, where cells are streamed, of the tile of cells
  // from the CTA's cell number `cell` on; and the stage to fill.
  struct Prefetch {
    int audio, cell, k_block, stage;
  };
  // A thread's copies of an audio k-block: kAudioCopies chunks of 16 bytes, of audios `audio_stride` apart. Row r * 8 +
  // g of a warp's rows in a stage is audio g * kThreadAudios + r, so that a thread's accumulators are of consecutive
  // audios.
  struct ThreadCopy {
    int offset, audio, audio_stride;
  };
  __device__ ThreadCopy thread_copy() const {
    const int row = group_thread / 4, in_warp = row % kWarpAudios;
    return {swizzled_offset(row, group_thread % 4), row - in_warp + in_warp % 8 * kThreadAudios + in_warp / 8,
            resident ? group_threads / 32 : kWarpAudios};
  }
  // Fills one stage, and moves `next` on. Commits a group even past the end, so that groups count stages.
  __device__ void prefetch(Prefetch& next, const ThreadCopy& copy, int64_t first_cell, int cell_count,
                           int audio_step) const {
    if (next.audio < audio_count) {
      const int chunk = group_thread % 4, rows_at_once = group_threads / 4;
      const char* from =
          static_cast<const char*>(p.packed_audios) + ((next.audio + copy.audio) * p.k_blocks + next.k_block) * kKBlock;
      char* to = audios + next.stage * tile_audios() * kKBlock + copy.offset;
      for (int i = 0; i < kAudioCopies; ++i)
        cp_async_16(to + i * rows_at_once * kKBlock, from + i * copy.audio_stride * p.k_blocks * kKBlock + chunk * 16,
                    next.audio + copy.audio + i * copy.audio_stride < audio_count);
      if (!resident) {
        from = static_cast<const char*>(p.packed_cells) +
               ((first_cell + next.cell + group_thread / 4) * p.k_blocks + next.k_block) * kKBlock;
        to = cells + next.stage * kTileColumns * kKBlock + copy.offset;
        for (int row = group_thread / 4; row < kTileColumns; row += rows_at_once) {
          cp_async_16(to, from + chunk * 16, next.cell + row < cell_count);
          to += rows_at_once * kKBlock, from += rows_at_once * p.k_blocks * kKBlock;
        }
      }
      next.stage = next.stage + 1 == kStages ? 0 : next.stage + 1;
      if (++next.k_block == k_blocks) {
        next.k_block = 0, next.cell += kTileColumns;
        if (next.cell >= cell_count) next.cell = 0, next.audio += audio_step;
      }
    }
    cp_async_commit();
  }
  __device__ void load_resident_cells(int64_t first, int columns) const {
    const int chunk = threadIdx.x % 4;
    for (int row = threadIdx.x / 4; row < columns; row += kThreads / 4)
      for (int k_block = 0; k_block < k_blocks; ++k_block)
        cp_async_16(
            cells + k_block * columns * kKBlock + swizzled_offset(row, chunk),
            static_cast<const char*>(p.packed_cells) + ((first + row) * p.k_blocks + k_block) * kKBlock + chunk * 16,
            true);
    cp_async_commit();
    load_norms(first, columns, threadIdx.x, kThreads);
  }
  __device__ void load_norms(int64_t first, int columns, int thread, int threads) const {
    for (int i = thread; i < columns; i += threads) norms[i] = static_cast<const T*>(p.cell_norm)[first + i];
  }
  // Resident cells from features (N, C, P): a thread packs 16 bytes of a cell, lanes over cells, warps over channels.
  // Sums of squares go through the audio stages, which are empty yet. One of the CTAs of a tile of cells `writes`
  // norms and rows.
  __device__ void pack_resident_cells(int64_t first_image, int columns, char* stages, bool writes) const {
    constexpr int kCount = 16 / sizeof(S);
    using Chunk = AlignedVector<S, kCount>;
    T* squares = reinterpret_cast<T*>(stages);  // [warp][column]
    const int warp = threadIdx.x / kWarpSize, image_cells = int(p.cells), channels = int(p.channels);
    for (int column = threadIdx.x % kWarpSize; column < columns; column += kWarpSize) {
      const int image = column / image_cells;
      const S* from = static_cast<const S*>(p.features) + (first_image + image) * channels * p.cells +
                      (column - image * image_cells);
      T square = 0;
#pragma unroll 4  // loads in flight
      for (int chunk = warp; chunk < 4 * k_blocks; chunk += kWarps) {
        Chunk packed{};
        for (int i = 0; i < kCount; ++i) {
          const int c = chunk * kCount + i;
          if (c < channels) {
            const S x = from[int64_t(c) * image_cells];
            square += T(value(x)) * T(value(x));
            packed.at[i] = mma_operand(x, p.tf32);
          }
        }
        *reinterpret_cast<Chunk*>(cells + chunk / 4 * columns * kKBlock + swizzled_offset(column, chunk % 4)) = packed;
      }
      squares[warp * kTileColumns + column] = square;
    }
    __syncthreads();
    const int column = threadIdx.x;
    if (column < columns) {
      T square = 0;
      for (int w = 0; w < kWarps; ++w) square += squares[w * kTileColumns + column];
      const T norm = norms[column] = p.normalized ? safe_rsqrt<S>(square) : T(1);
      if (writes) static_cast<T*>(p.cell_norm)[first_image * p.cells + column] = norm;
    }
    if (writes && p.packed_cells)
      for (int row = threadIdx.x / 4; row < columns; row += kThreads / 4)
        for (int k_block = 0, chunk = threadIdx.x % 4; k_block < k_blocks; ++k_block)
          *reinterpret_cast<Chunk*>(static_cast<char*>(p.packed_cells) +
                                    ((first_image * p.cells + row) * p.k_blocks + k_block) * kKBlock + chunk * 16) =
              *reinterpret_cast<const Chunk*>(cells + k_block * columns * kKBlock + swizzled_offset(row, chunk));
    __syncthreads();  // before the stages are filled
  }
  // Dispatches the warp's number of n8 tiles to a constant.
  template <int kCount = kNTiles>
  __device__ void multiply(int n_tiles, const char* stage_audios, const char* stage_cells) {
    if (n_tiles == kCount)
      Math::template multiply<kCount>(stage_audios, stage_cells, acc);
    else if constexpr (kCount > 1)
      multiply<kCount - 1>(n_tiles, stage_audios, stage_cells);
  }

  // Main loop. After each tile calls epilogue(image, cell, low, high, last) for each image in it: columns [low, high)
  // are the image's cells from `cell` on; `last` unless more cells of the image follow in the next tile.
  template <class Epilogue>
  __device__ void run(Epilogue epilogue) {
    const int64_t images = images_per_tile(p.cells), first_image = block / splits * images;
    const int64_t end_image = first_image + images < p.images ? first_image + images : p.images;
    const int warp_groups = kThreads / group_threads, audio_step = int(splits) * warp_groups * tile_audios();
    const int64_t first_cell = first_image * p.cells;
    const int cell_count = int((end_image - first_image) * p.cells);  // of the CTA
    const ThreadCopy copy = thread_copy();
    int stage = 0;
    first_audio = (int(block % splits) * warp_groups + warp_group) * tile_audios();
    Prefetch next{first_audio, 0, 0, 0};
    if (resident && p.features)
      pack_resident_cells(first_image, cell_count, audios - warp_group * (kStages * kWarpAudios * kKBlock),
                          block % splits == 0);
    else if (resident)
      load_resident_cells(first_cell, cell_count);
    T* const both_norms = norms;
    for (int i = 0; i < kStages - 1; ++i) prefetch(next, copy, first_cell, cell_count, audio_step);
    if (resident) {
      cp_async_wait<kStages - 1>();
      __syncthreads();
    }
    for (; first_audio < audio_count; first_audio += audio_step)
      for (int tile_cell = 0; tile_cell < cell_count; tile_cell += kTileColumns) {
        const int columns = cell_count - tile_cell < kTileColumns ? cell_count - tile_cell : kTileColumns;
        if (!resident) {  // each half in turn: the barriers of the k-blocks keep the epilogue of the tile before apart
          norms = norms == both_norms ? both_norms + kTileColumns : both_norms;
          load_norms(first_cell + tile_cell, columns, group_thread, group_threads);
        }
        const int n_tiles = ((columns + 7) / 8 - warp_column + kGroupWarps - 1) / kGroupWarps;
        for (auto& m_tile : acc)
          for (auto& n_tile : m_tile)
            for (T& x : n_tile) x = 0;
        for (int k_block = 0; k_block < k_blocks; ++k_block) {
          cp_async_wait<kStages - 2>();
          sync_group();  // stage full; the stage to refill is no longer read
          prefetch(next, copy, first_cell, cell_count, audio_step);
          multiply(n_tiles, audios + (stage * tile_audios() + warp_row * kWarpAudios) * kKBlock,
                   cells + ((resident ? k_block * columns : stage * kTileColumns) + warp_column * 8) * kKBlock);
          stage = stage + 1 == kStages ? 0 : stage + 1;
        }
        for (int64_t n = first_image; n < end_image; ++n) {
          const int low = int((n - first_image) * p.cells) - tile_cell, high = low + int(p.cells);
          const int from = low > 0 ? low : 0, to = high < columns ? high : columns;
          epilogue(n, from - low, from, to, high <= columns);
        }
      }
    cp_async_wait<0>();
  }
  // f(ni, j, column, whether it is in [low, high)) by all threads of the warp, for the n8 tiles with columns in it.
  template <class F>
  __device__ void for_columns(int low, int high, F f) const {
#pragma unroll
    for (int ni = 0; ni < kNTiles; ++ni) {
      const int first = column(ni, 0) - threadIdx.x % 4 * 2;
      if (first >= high || first + 8 <= low) continue;  // warp-uniform
#pragma unroll
      for (int j = 0; j < 2; ++j) f(ni, j, column(ni, j), column(ni, j) >= low && column(ni, j) < high);
    }
  }
};

}  // namespace ssl_fast::cuda
