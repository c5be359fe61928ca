// The tile engine: products of all audios with all cells, handed on while they are in registers.
//
// A block has the cells of some images: as many whole images as fit a tile of kColumns, or one wider image, part by
// part. Their features stay in shared memory, and its two teams of four warps take turns with tiles of audios, which
// stream through shared memory in slabs of 64 bytes a row: while one team pools its tile, the other multiplies. Where
// the cells do not fit, they stream as well, and all warps are one team with tiles twice as tall. A warp has kTall x 16
// audios, and of the cells every fourth group of 8. What multiplies:
//
//   TensorCore<S>   bfloat16, float16: mma m16n8k16; float, rounded to tf32: mma m16n8k8. Sums in float.
//   Exact<T>        float or double: multiply-adds of that type.
//
// Whatever multiplies, a thread ends with at(r, ni, j) of audio(r), consecutive in r, and of column(ni, j).
#pragma once
#include "kernels.h"
#include "ptx.cuh"

namespace ssl_fast::cuda {

constexpr int kSlab = 64;   // bytes of a row that are multiplied at a time
constexpr int kStages = 3;  // slabs in flight
constexpr int kTeamWarps = 4, kMostTeams = 2;
static_assert(kTeamWarps * kMostTeams == kWarps);

// Place in shared memory of 16 bytes of a row: eight rows of one column lie in different banks.
__device__ inline int place_of(int row, int chunk) { return row * kSlab + (chunk ^ ((row >> 1) & 3)) * 16; }

template <class S>
struct TensorCore {
  using Stored = S;
  using T = float;
  static constexpr int kTallTiles = 4, kWideTiles = 7;

  // sums += products with kGroups times 8 columns, of which `cells` are the first and the next ones come 4 times 8
  // later.
  template <int kGroups>
  static __device__ void multiply(const char* audios, const char* cells, float (&sums)[kTallTiles][kWideTiles][4]) {
    const int lane = threadIdx.x % kWarp;
    uint32_t a[2][kTallTiles][4];
    for (int half = 0; half < 2; ++half)
      for (int mi = 0; mi < kTallTiles; ++mi)
        load_matrices(a[half][mi], audios + place_of(mi * 16 + lane % 16, 2 * half + lane / 16));
    for (int ni = 0; ni < kGroups; ++ni) {
      uint32_t b[4];
      load_matrices(b, cells + place_of(ni * kTeamWarps * 8 + lane % 8, lane / 8));
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
  using Chunk = Numbers<T, 16 / sizeof(T)>;

  template <int kGroups>
  static __device__ void multiply(const char* audios, const char* cells, T (&sums)[kTallTiles][kWideTiles][4]) {
    const int group = threadIdx.x % kWarp / 4, quad = threadIdx.x % 4;
    for (int c = 0; c < kSlab / 16; ++c) {
      Chunk a[2 * kTallTiles];
      for (int r = 0; r < 2 * kTallTiles; ++r)
        a[r] = *reinterpret_cast<const Chunk*>(audios + place_of(r * 8 + group, c));
      for (int ni = 0; ni < kGroups; ++ni)
        for (int j = 0; j < 2; ++j) {
          Chunk b = *reinterpret_cast<const Chunk*>(cells + place_of(ni * kTeamWarps * 8 + 2 * quad + j, c));
          for (int r = 0; r < 2 * kTallTiles; ++r)
            for (int e = 0; e < int(16 / sizeof(T)); ++e) sums[r / 2][ni][r % 2 * 2 + j] += a[r].at[e] * b.at[e];
        }
    }
  }
};

// How the work is cut up, chosen on the host.
struct Plan {
  bool resident;   // the cells of a block stay in shared memory
  int64_t splits;  // blocks that share the cells of the same images
  int64_t blocks, shared;
  int64_t time;  // as long as it takes to multiply half a tile of audios with one of cells
};

template <class Math>
struct Engine {
  using T = typename Math::T;
  static constexpr int kTall = Math::kTallTiles, kWide = Math::kWideTiles;
  static constexpr int kAudios = 2 * kTall;  // of a thread
  static constexpr int kWarpRows = 16 * kTall, kBlockRows = kMostTeams * kWarpRows, kColumns = 8 * kWide * kTeamWarps;
  static constexpr int kAudioBytes = kStages * kBlockRows * kSlab;
  static constexpr int kLoads = kTall / 2;  // of 16 bytes of audios, of a thread, for each slab
  static constexpr int kPartBytes = 16;     // for each audio of each warp, to be used by f

  // Whole images in a tile, or, where an image is wider than a tile, 1.
  static __host__ __device__ int64_t images_per_tile(int64_t cells) { return cells < kColumns ? kColumns / cells : 1; }

  static Plan plan(const PairsParams& p, const Device& device) {
    const int64_t group = images_per_tile(p.cells), columns = (p.images < group ? p.images : group) * p.cells;
    const int64_t audios_and_parts = kAudioBytes + kTeamWarps * kBlockRows * kPartBytes;
    const int64_t resident = audios_and_parts + (columns * p.slabs + 7) * kSlab;  // the last 8 columns may lack 7
    Plan plan{columns <= kColumns && resident <= device.shared, 1, 0, 0, INT64_MAX};
    plan.shared = plan.resident ? resident : audios_and_parts + kStages * kColumns * kSlab;
    const int64_t tiles = (p.audios + kBlockRows - 1) / kBlockRows, groups = (p.images + group - 1) / group;
    for (int64_t splits = 1; splits <= tiles; ++splits) {  // to load the cells of a block takes as long as half a tile
      const int64_t waves = (groups * splits + device.processors - 1) / device.processors;
      const int64_t time = waves * (2 * ((tiles + splits - 1) / splits) + 1);
      if (time < plan.time) plan.splits = splits, plan.time = time;
    }
    plan.blocks = groups * plan.splits;
    return plan;
  }

  const PairsParams& p;
  char *audios, *cells,
      *parts;  // in shared memory: stages of this team, stages or slabs of all cells, what f has to share
  bool resident;
  int64_t splits;
  int threads, team, mine, warp_row,
      warp_column;                        // threads of a team; of this thread: team, number in it, place of its warp
  int slabs, audios_of_all, first_audio;  // the latter of the tile
  T sums[kTall][kWide][4];

  __device__ Engine(const PairsParams& p, const Plan& plan, char* shared)
      : p(p),
        resident(plan.resident),
        splits(plan.splits),
        threads(plan.resident ? kThreads / kMostTeams : kThreads),
        team(threadIdx.x / threads),
        mine(threadIdx.x % threads),
        warp_row(mine / kWarp / kTeamWarps),
        warp_column((threadIdx.x / kWarp + team) % kTeamWarps),  // a warp with most columns beside one with less
        slabs(int(p.slabs)),
        audios_of_all(int(p.audios)) {
    audios = shared + team * (kStages * kWarpRows * kSlab);
    parts = shared + kAudioBytes + team * (kTeamWarps * kWarpRows * kPartBytes);
    cells = shared + kAudioBytes + kTeamWarps * kBlockRows * kPartBytes;
  }

  __device__ int rows() const { return resident ? kWarpRows : kBlockRows; }  // of the team's tile
  // Audio of the tile, r < kAudios, and column of the tile, j < 2.
  __device__ int audio(int r) const { return warp_row * kWarpRows + threadIdx.x % kWarp / 4 * kAudios + r; }
  __device__ int column(int ni, int j) const { return (ni * kTeamWarps + warp_column) * 8 + threadIdx.x % 4 * 2 + j; }
  __device__ T at(int r, int ni, int j) const { return sums[r / 2][ni][r % 2 * 2 + j]; }
  __device__ void wait_for_team() const { ssl_fast::cuda::wait_for_team(team, threads); }

  // A slab of a tile of audios and, unless they are resident, of a tile of cells, counted from the block's first one;
  // and the stage that they go to.
  struct Step {
    int audio, cell, slab, stage;
  };
  // What a thread copies of each slab of audios: kLoads times 16 bytes, of rows so far apart. Row r * 8 + g of a warp's
  // part of a stage holds audio g * kAudios + r.
  struct Share {
    int place, audio, audios_apart;
  };
  __device__ Share share() const {
    const int row = mine / 4, in_warp = row % kWarpRows;
    return {place_of(row, mine % 4), row - in_warp + in_warp % 8 * kAudios + in_warp / 8,
            resident ? threads / 32 : kWarpRows};
  }
  __device__ void load(Step& s, const Share& share, int64_t first_cell, int cells_of_block, int next_audio) const {
    if (s.audio < audios_of_all) {
      const int chunk = mine % 4, rows_at_once = threads / 4;
      const char* from = static_cast<const char*>(p.audio_rows) + ((s.audio + share.audio) * p.slabs + s.slab) * kSlab;
      char* to = audios + s.stage * rows() * kSlab + share.place;
      for (int i = 0; i < kLoads; ++i)
        copy_async(to + i * rows_at_once * kSlab, from + i * share.audios_apart * p.slabs * kSlab + chunk * 16,
                   s.audio + share.audio + i * share.audios_apart < audios_of_all);
      if (!resident) {
        from = static_cast<const char*>(p.cell_rows) + ((first_cell + s.cell + mine / 4) * p.slabs + s.slab) * kSlab;
        to = cells + s.stage * kColumns * kSlab + share.place;
        for (int row = mine / 4; row < kColumns; row += rows_at_once) {
          copy_async(to, from + chunk * 16, s.cell + row < cells_of_block);
          to += rows_at_once * kSlab, from += rows_at_once * p.slabs * kSlab;
        }
      }
      s.stage = s.stage + 1 == kStages ? 0 : s.stage + 1;
      if (++s.slab == slabs) {
        s.slab = 0, s.cell += kColumns;
        if (s.cell >= cells_of_block) s.cell = 0, s.audio += next_audio;
      }
    }
    close_copies();
  }
  __device__ void load_resident(int64_t first, int columns) const {
    const int chunk = threadIdx.x % 4;
    for (int row = threadIdx.x / 4; row < columns; row += kThreads / 4)
      for (int slab = 0; slab < slabs; ++slab)
        copy_async(cells + slab * columns * kSlab + place_of(row, chunk),
                   static_cast<const char*>(p.cell_rows) + ((first + row) * p.slabs + slab) * kSlab + chunk * 16, true);
    close_copies();
  }
  template <int kGroups = kWide>
  __device__ void multiply(int groups, const char* of_audios, const char* of_cells) {
    if (groups == kGroups)
      Math::template multiply<kGroups>(of_audios, of_cells, sums);
    else if constexpr (kGroups > 1)
      multiply<kGroups - 1>(groups, of_audios, of_cells);
  }

  // After the products of each tile, calls f(image, first cell, low, high, last) for each image in it: its cells from
  // the first one on are in columns [low, high), `last` if no cells of the image follow in another tile.
  template <class F>
  __device__ void run(F f) {
    const int64_t group = images_per_tile(p.cells), first_image = blockIdx.x / splits * group;
    const int64_t end_image = first_image + group < p.images ? first_image + group : p.images;
    const int teams = kThreads / threads, next_audio = int(splits) * teams * rows();
    const int64_t first_cell = first_image * p.cells;
    const int cells_of_block = int((end_image - first_image) * p.cells);
    const Share share = this->share();
    int stage = 0;
    first_audio = (int(blockIdx.x % splits) * teams + team) * rows();
    Step ahead{first_audio, 0, 0, 0};
    if (resident) load_resident(first_cell, cells_of_block);
    for (int i = 0; i < kStages - 1; ++i) load(ahead, share, first_cell, cells_of_block, next_audio);
    if (resident) {
      wait_for_copies<kStages - 1>();
      __syncthreads();
    }
    for (; first_audio < audios_of_all; first_audio += next_audio)
      for (int first = 0; first < cells_of_block; first += kColumns) {
        const int columns = cells_of_block - first < kColumns ? cells_of_block - first : kColumns;
        const int groups = ((columns + 7) / 8 - warp_column + kTeamWarps - 1) / kTeamWarps;
        for (auto& tall : sums)
          for (auto& wide : tall)
            for (T& sum : wide) sum = 0;
        for (int slab = 0; slab < slabs; ++slab) {
          wait_for_copies<kStages - 2>();
          wait_for_team();  // all have copied what is multiplied now, and multiplied what is copied over now
          load(ahead, share, first_cell, cells_of_block, next_audio);
          multiply(groups, audios + (stage * rows() + warp_row * kWarpRows) * kSlab,
                   cells + ((resident ? slab * columns : stage * kColumns) + warp_column * 8) * kSlab);
          stage = stage + 1 == kStages ? 0 : stage + 1;
        }
        for (int64_t n = first_image; n < end_image; ++n) {
          const int low = int((n - first_image) * p.cells) - first, high = low + int(p.cells);
          const int from = low > 0 ? low : 0, to = high < columns ? high : columns;
          f(n, from - low, from, to, high <= columns);
        }
      }
    wait_for_copies<0>();
  }
  // f(ni, j, column) for the columns of this thread in [low, high).
  template <class F>
  __device__ void for_columns(int low, int high, F f) const {
#pragma unroll
    for (int ni = 0; ni < kWide; ++ni) {
      const int first = column(ni, 0) - threadIdx.x % 4 * 2;
      if (first >= high || first + 8 <= low) continue;  // the same for the whole warp
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (column(ni, j) >= low && column(ni, j) < high) f(ni, j, column(ni, j));
    }
  }
};

}  // namespace ssl_fast::cuda
