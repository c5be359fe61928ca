// Pooled similarity of all image-audio pairs, for each pooling of ../pooling.h:
//
//   forward    S[n, m] = pooling over p of alpha[n, m, p], alpha = v[n, p] . a[m] / (|v[n, p]| |a[m]|); residual (N, M)
//   backward   G[p, m] = g[n, m] dS/dalpha[n, m, p] / |v[n, p]|, then dv = G A and da = G^T V, and what the norms take
//
//   Inputs    visual (N, C, P) or channels last, audio (M, C) or tokens of clips, float32, float64, or 16 bits that
//             are converted; of C channels, those of one head
//   Outputs   S, residual, 1 / |v| (N, P); alpha of the first images, cached for the backward pass
//   Threads   share the images; the audio gradient is a sum per thread, added in the order of the threads
//
//   one pass   of a loss of the rows of S: forward and backward pass of each image in turn, alphas in between in cache
//
// One GEMM tile (cells x a panel of audios) at a time goes to an epilogue: PoolEpilogue keeps a running state per lane,
// SlopeEpilogue writes G. A sparse pooling has its backward pass in max_backward.h.
#include "cross_entropy.h"
#include "kernel_table.h"
#include "max_backward.h"

#include "../pooling.h"  // after the vectors it works on

namespace ssl_fast::SSL_FAST_ISA {
namespace {

// Maximum over the audios of each clip, for each cell of one image.
template <class T>
struct ClipMax {
  using Pool = Max<Vec<T>, T>;
  using State = typename Pool::State;
  int64_t audios, clip;
  T* scores;  // of the image: a row of cells for each clip, `stride` apart
  int32_t* argmax;
  int64_t stride;

  // alpha of R cells with a panel of audios: [R][kPanel]
  template <int R>
  void tile(const T* alpha, int64_t first_audio, int64_t cell) const {
    constexpr int L = kLanes<T>;
    for (int r = 0; r < R; r += L)
      for (int v = 0; v < kVectors; ++v) {
        const int rows = R - r < L ? R - r : L;
        Vec<T> block[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) block[i] = i < rows ? load(alpha + (r + i) * kPanel<T> + v * L) : Vec<T>{};
        transpose<T>(block);  // a lane for each cell
        absorb(block, first_audio + v * L, cell + r, rows);
      }
  }
  void absorb(const Vec<T>* block, int64_t first, int64_t cell, int rows) const {
    const int64_t end = audios - first < kLanes<T> ? audios : first + kLanes<T>;
    for (int64_t m = first; m < end;) {
      const int64_t number = m / clip, begin = number * clip, last = begin + clip < end ? begin + clip : end;
      T* best = scores + number * stride + cell;
      int32_t* at = argmax + number * stride + cell;
      State state{};
      if (m > begin)
        for (int i = 0; i < rows; ++i) state.best[i] = best[i], state.cell[i] = at[i];
      for (; m < last; ++m) Pool{}.absorb(state, block[m - first], int(m - begin));
      for (int i = 0; i < rows; ++i) best[i] = state.best[i], at[i] = int32_t(state.cell[i]);
    }
  }
};

template <class T, class Pool>
struct PoolEpilogue {
  Pool pool;
  const T* inverse_norm;
  T* cached;  // alpha in [panel][cell][lane], or null
  int64_t cells;
  ClipMax<T> clips;
  int64_t first_audio;  // of the block
  int64_t first_panel;  // of the group
  // Adding up in levels of so many keeps the rounding error of long sums small.
  static constexpr int kTiles = 32;
  struct PanelState {
    int tiles = 0;
    typename Pool::State total[kVectors]{}, state[kVectors]{};  // of all tiles before, and of the last ones
  } of_panel[kPanelGroup]{};

  __attribute__((noinline)) void merge(PanelState& panel) {
    for (int v = 0; v < kVectors; ++v) {
      pool.merge(panel.total[v], panel.state[v]);
      panel.state[v] = {};
    }
  }
  template <int R>
  __attribute__((noinline)) void tile(const T* products, int64_t panel, int64_t cell) {
    PanelState& sums = of_panel[panel - first_panel];
    if (++sums.tiles % kTiles == 0) merge(sums);
    alignas(64) T alphas[R * kPanel<T>];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      typename Pool::State s{};  // of this tile
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        Vec<T> alpha = rounded(load(products + r * kPanel<T> + v * kLanes<T>) * inverse_norm[cell + r]);
        if (cached) store(cached + (panel * cells + cell + r) * kPanel<T> + v * kLanes<T>, alpha);
        if (Pool::kSparse && clips.clip) store(alphas + r * kPanel<T> + v * kLanes<T>, alpha);
        pool.absorb(s, alpha, int(cell) + r);
      }
      pool.merge(sums.state[v], s);
    }
    if (Pool::kSparse && clips.clip) clips.template tile<R>(alphas, first_audio + panel * kPanel<T>, cell);
  }
};

template <class T, class Pool>
struct ImagePooling {
  const SimilarityParams& p;
  Pool pool;

  // Scores of image n with the audios of a block, and what else is wanted of them; alphas to `cached`, or null.
  void run(int64_t n, const Image<T>& image, const PackedAudios<T>& audios, T* cached) const {
    constexpr int W = kPanel<T>;
    const Shape& s = p.shape;
    T* inverse_norm = static_cast<T*>(p.features.inverse_norm) + n * s.cells;
    if (!audios.first) inverse_norms(s, image, inverse_norm);
    L2Prefetcher ahead = prefetch_image(s, p.features.visual, n + 1, prefetch_steps(image, audios));
    ClipMax<T> clips{};
    if (p.clip)
      clips = {s.audios, p.clip, static_cast<T*>(p.clip_scores) + n * s.cells, p.clip_argmax + n * s.cells,
               s.images * s.cells};
    for_panel_groups(audios, [&](int64_t first_panel, int64_t panels) {
      PoolEpilogue<T, Pool> epilogue{pool, inverse_norm, cached, s.cells, clips, audios.first, first_panel};
      similarities(image, audios, first_panel, panels, epilogue, ahead);
      for (int64_t panel = first_panel; panel < first_panel + panels; ++panel) {
        auto& sums = epilogue.of_panel[panel - first_panel];
        epilogue.merge(sums);
        int64_t first = audios.first + panel * W, count = s.audios - first < W ? s.audios - first : W;
        Vec<T> scores[kVectors];
        typename Pool::Residual residual[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          scores[v] = pool.score(sums.total[v]);
          residual[v] = pool.residual(sums.total[v]);
        }
        store_lanes(scores, static_cast<T*>(p.scores) + n * s.audios + first, count);
        int64_t at = n * s.audios + first;
        if constexpr (Pool::kSparse)
          store_lanes(residual, static_cast<int32_t*>(p.residual) + at, count);
        else
          store_lanes(residual, static_cast<T*>(p.residual) + at, count);
      }
    });
    const int64_t positive = p.positives ? p.positives[n] - audios.first : -1;
    if (positive >= 0 && positive < audios.count) {
      T* map = static_cast<T*>(p.positive_map) + n * s.cells;
      channel_dots(image, audios.rows + positive * audios.padded_channels(), map);
      for (int64_t c = 0; c < s.cells; ++c) map[c] *= inverse_norm[c];
    }
  }
};

// Packed audios of a block, which stays in L2 while the images pass.
constexpr int64_t kAudioBlockBytes = 512 << 10;

template <class T, class Pool>
void forward(const SimilarityParams& p, Pool pool, Workspace& workspace) {
  constexpr int W = kPanel<T>;
  const Shape& s = p.shape;
  const Features& f = p.features;
  const int64_t row_bytes = s.channels * (uses_bf16_gemm<T>(s) ? sizeof(Bf16) : sizeof(T));
  const int64_t block_size = round_up(kAudioBlockBytes / row_bytes + 1, W), scratch_size = image_scratch_size<T>(s);
  PackedAudios<T> block;
  block.allocate(workspace, s, false, s.audios < block_size ? s.audios : block_size);
  T* scratch = workspace.take<T>(p.threads * round_up(scratch_size, 64));
  const ImagePooling<T, Pool> pooling{p, pool};

  parallel(p.threads, [&] {
    AmxTileScope tiles;
    T* local = scratch + omp_get_thread_num() * round_up(scratch_size, 64);
    for (int64_t first = 0; first < s.audios; first += block_size) {
      const PackedAudios<T> audios = block.of(first, s.audios - first < block_size ? s.audios - first : block_size);
      parallel_for(audios.panels, [&](int64_t panel) { audios.pack(s, f.audio, panel, false); });
      if (T* norms = static_cast<T*>(p.audio_inverse_norm))
        parallel_for(audios.count, [&](int64_t m) { norms[first + m] = audios.inverse_norm[m]; });
      parallel_for(s.images, [&](int64_t n) {
        T* cached = n < p.cached_images
                        ? static_cast<T*>(f.cached_alphas) + (n * round_up(s.audios, W) + first) * s.cells
                        : nullptr;
        pooling.run(n, load_image(s, f.visual, n, local, true), audios, cached);
      });
    }
  });
}

// Turns alpha into G = slope * upstream gradient / |v|, and adds up t[p] = sum_m G alpha by lanes.
template <class T, class Pool>
struct SlopeEpilogue {
  Pool pool;
  const T* inverse_norm;
  T* G;       // [panel][cell][lane], its panels `stride` apart
  Vec<T>* t;  // (cells)
  int64_t cells, stride;
  int64_t first_panel = 0;  // of the group
  Vec<T> score[kPanelGroup][kVectors] = {}, scale[kPanelGroup][kVectors] = {};

  SSL_FAST_ALWAYS_INLINE void row(const T* values, T scale, int64_t panel, int64_t cell) {
    const int64_t i = panel - first_panel;
    Vec<T> sum = t[cell];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Vec<T> alpha = rounded(load(values + v * kLanes<T>) * scale);  // as it was pooled
      Vec<T> g = pool.slope(alpha, score[i][v], this->scale[i][v]) * inverse_norm[cell];
      store(G + panel * stride + cell * kPanel<T> + v * kLanes<T>, g);
      sum += g * alpha;
    }
    t[cell] = sum;
  }
  template <int R>
  __attribute__((noinline)) void tile(const T* products, int64_t panel, int64_t cell) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) row(products + r * kPanel<T>, inverse_norm[cell + r], panel, cell + r);
  }
  // The same from cached alphas.
  void all_cells(const T* cached, int64_t panel) {
    for (int64_t cell = 0; cell < cells; ++cell) row(cached + (panel * cells + cell) * kPanel<T>, 1, panel, cell);
  }
};

// The gradient that arrives at the map of the positive pair joins G, and t, like that of any other cell.
template <class T>
void add_map_gradient(const SimilarityParams& p, int64_t n, const T* inverse_norm, T* G, int64_t stride, T* t) {
  int64_t cells = p.shape.cells, m = p.positives[n];
  for (int64_t c = 0; c < cells; ++c) {
    T g = inverse_norm[c] * static_cast<const T*>(p.grad_map)[n * cells + c];
    G[(m / kPanel<T>)*stride + c * kPanel<T> + m % kPanel<T>] += g;
    t[c] += g * static_cast<const T*>(p.positive_map)[n * cells + c];
  }
}

template <class T, class Pool>
void backward(const SimilarityParams& p, Pool pool, Workspace& workspace) {
  constexpr int W = kPanel<T>;
  const Shape& s = p.shape;
  const Features& f = p.features;
  PackedAudios<T> audios;
  audios.allocate(workspace, s, f.grad_visual);
  auto* scratch = workspace.take<BackwardScratch<T>>(p.threads);
  for (int i = 0; i < p.threads; ++i) scratch[i].allocate(workspace, s, audios);
  // of one pass over the products: alphas of one image, in each thread, and the loss of each row
  const int64_t map_size = s.cells * audios.padded(), gaps = cross_entropy_scratch(s.audios);
  T* maps = p.row_loss ? workspace.take<T>(p.threads * (map_size + gaps)) : nullptr;
  double* losses = p.row_loss ? workspace.take<double>(s.images) : nullptr;
  const ImagePooling<T, Pool> pooling{p, pool};

  parallel(p.threads, [&] {
    AmxTileScope tiles;
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    BackwardScratch<T>& local = scratch[thread];
    T* map = p.row_loss ? maps + thread * (map_size + gaps) : nullptr;
    if (f.grad_audio) local.zero_dA(audios);
    parallel_for(audios.panels, [&](int64_t panel) { audios.pack(s, f.audio, panel, f.grad_visual); });

    int64_t begin = s.images * thread / threads, end = s.images * (thread + 1) / threads;
    for (int64_t first = begin, group = images_per_group(s); first < end; first += group) {
      int64_t last = first + group < end ? first + group : end;
      for (int64_t n = first; n < last; ++n) {
        const Image<T>& image = local.images[n - first] = load_image(
            s, f.visual, n, local.image_scratch + (n - first) * local.image_size, n >= p.cached_images, f.grad_audio);
        if (p.row_loss) {
          pooling.run(n, image, audios, map);
          CrossEntropy<T>{*p.row_loss, losses}.row(n, map + map_size);
        }
        const T* inverse_norm = static_cast<const T*>(f.inverse_norm) + n * s.cells;
        T* G = local.G + (n - first) * s.cells * W;
        local.zero_t(s);
        L2Prefetcher ahead = prefetch_image(s, f.visual, n + 1, prefetch_steps(image, audios));
        SlopeEpilogue<T, Pool> epilogue{pool, inverse_norm, G, local.t_lanes, s.cells, local.panel_stride};
        for_panel_groups(audios, [&](int64_t first_panel, int64_t panels) {
          epilogue.first_panel = first_panel;
          for (int64_t i = 0; i < panels; ++i) {
            int64_t lane = (first_panel + i) * W, count = s.audios - lane < W ? s.audios - lane : W;
            int64_t at = n * s.audios + lane;
            Vec<T> grad[kVectors];
            load_lanes(static_cast<const T*>(p.scores) + at, count, epilogue.score[i]);
            load_lanes(static_cast<const T*>(p.residual) + at, count, epilogue.scale[i]);
            load_lanes(static_cast<const T*>(p.grad_scores) + at, count, grad);
            for (int v = 0; v < kVectors; ++v) epilogue.scale[i][v] *= grad[v];
          }
          if (!p.row_loss && n >= p.cached_images)
            return similarities(image, audios, first_panel, panels, epilogue, ahead);
          const T* cached = p.row_loss ? map : static_cast<const T*>(f.cached_alphas) + n * map_size;
          for (int64_t i = 0; i < panels; ++i) epilogue.all_cells(cached, first_panel + i);
        });
        local.reduce_t(s);
        if (p.grad_map) add_map_gradient(p, n, inverse_norm, G, local.panel_stride, local.t);
        if (f.grad_visual) local.store_visual_gradient(s, f, image, audios, n, G, inverse_norm, n < p.cached_images);
      }
      if (f.grad_audio)
        audio_gradient(local.images, last - first, local.G, local.panel_stride, audios.panels, local.dA, local.bf16_G);
    }
    GOMP_barrier();
    if (f.grad_audio) reduce_audio_gradient(s, f, audios, scratch);
  });
  if (p.row_loss) store_loss<T>(*p.row_loss, losses);
}

template <bool kBackward>
void call(const SimilarityParams& p, Workspace& workspace) {
  if (kBf16Gemm && p.shape.dtype != DType::bfloat16)
    return (kBackward ? plain::similarity_backward_kernel : plain::similarity_kernel)(p, workspace);
  with_compute_type(p, [&](auto zero) {
    using T = decltype(zero);
    with_pooling<Vec<T>, T>(p.pooling, p.parameters, p.shape.cells, [&](auto pool) {
      if constexpr (!kBackward)
        forward<T>(p, pool, workspace);
      else if constexpr (!decltype(pool)::kSparse)
        backward<T>(p, pool, workspace);
      else if constexpr (kBf16Gemm)  // no product
        plain::similarity_backward_kernel(p, workspace);
      else
        max_backward<T>(p, workspace);
    });
  });
}

}  // namespace

void similarity_kernel(const SimilarityParams& p, Workspace& workspace) { call<false>(p, workspace); }
void similarity_backward_kernel(const SimilarityParams& p, Workspace& workspace) { call<true>(p, workspace); }

}  // namespace ssl_fast::SSL_FAST_ISA
