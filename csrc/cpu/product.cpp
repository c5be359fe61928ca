// SLAVC's product of a softmax over instances (feature space `avc`) and a softmax over cells (space `loc`), in log
// space. loc and avc are the cosines alpha[n, m, p] of the two spaces.
//
//   forward    a[n,m,p] = avc - tau log sum exp(avc / tau)      sum over audios m, or over images n
//              b[n,m,p] = loc - tau log sum_p exp(loc / tau)
//              S[n,m]   = log sum_p exp((a + b) / tau),         or max_p (a + b) / tau
//   backward   u        = grad exp((a + b) / tau - S),          or grad at the argmax; grad = dLoss/dS
//              d avc    = (u - exp(a / tau) R) / tau,           R = sum of u over the instances of the softmax
//              d loc    = (u - grad exp(b / tau)) / tau
//
//   scores (N, M) real; argmax (N, M) int32
//   pair_norm: of loc, and of a + loc, the maximum over p, and the log of the sum relative to it   (N, M) real
//   instance_norm: max avc, tau times the log of the sum   (N, cells), or over images [panel of audios][cell][lane]
//
// Alphas of the first cached_images come from the forward pass in [image][panel][cell][lane]; others are recomputed.
// Threads take contiguous ranges of images. Softmaxes over images need all images of a panel of audios first: threads
// take groups of panels in a pass before. Every exponent is 1 / tau times a difference of alphas from their maximum:
// nothing large cancels. Of the backward pass too, where so the same roundings meet: what is left of a small one is
// divided by tau.
#include "cross_entropy.h"
#include "dense_backward.h"
#include "kernel_table.h"

#include "../pooling.h"  // after the vectors it works on

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <class T>
using LSE = LogSumExp<Vec<T>, T>;

// Epilogue: stores alpha = product / |v| of a group of panels in [panel][cell][lane].
template <class T>
struct StoreAlpha {
  const T* inverse_norm;
  T* out;
  int64_t cells, first_panel;
  template <int R>
  void tile(const T* products, int64_t panel, int64_t cell) {
    T* to = out + ((panel - first_panel) * cells + cell) * kPanel<T>;
    for (int64_t r = 0; r < R; ++r)
      for (int v = 0; v < kVectors; ++v) {
        int64_t at = r * kPanel<T> + v * kLanes<T>;
        store(to + at, load(products + at) * inverse_norm[cell + r]);
      }
  }
};

// One image in both spaces, and 1 / |v| of its cells.
template <class T>
struct ImagePair {
  Image<T> loc, avc;
  const T *loc_norm, *avc_norm;
};

// What all threads share: packed audios, parameters, and where outputs lie.
template <class T>
struct Product {
  const ProductParams& p;
  const Shape& s;
  const T tau, per_tau;
  PackedAudios<T> loc, avc;
  T* R;  // instances = image: sum over images of u, [panel][cell][lane]
  static constexpr int W = kPanel<T>, L = kLanes<T>;

  explicit Product(const ProductParams& params)
      : p(params), s(params.shape), tau(T(params.tau)), per_tau(T(1 / params.tau)) {}

  bool over_images() const { return p.instances == Instances::image; }
  int64_t map_size() const { return loc.padded() * s.cells; }
  int64_t group_size() const { return panels_per_group(loc) * s.cells * W; }
  // Offset of max avc and of tau times the log of the sum: [cell] of image n, or over images [cell][lane] of a panel.
  int64_t instance_offset(int64_t n, int64_t panel) const { return over_images() ? panel * s.cells * W : n * s.cells; }
  T* instance_max(int64_t n, int64_t panel) const {
    return static_cast<T*>(p.instance_norm) + instance_offset(n, panel);
  }
  T* instance_log(int64_t n, int64_t panel) const {
    return instance_max(n, panel) + (over_images() ? avc.padded() : s.images) * s.cells;
  }
  // a of a cell and of vector v of its lanes. No product: a contraction to FMA would round in another way elsewhere.
  SSL_FAST_ALWAYS_INLINE Vec<T> log_instance(Vec<T> alpha, const T* max, const T* log, int64_t cell, int v) const {
    if (!over_images()) return (alpha - max[cell]) - log[cell];
    int64_t at = cell * W + v * L;
    return (alpha - load(max + at)) - load(log + at);
  }
  // One of the four matrices of pair_norm.
  enum { kLocMax, kLocLog, kMax, kLog };
  T* pair_norm(int64_t which) const { return static_cast<T*>(p.pair_norm) + which * s.images * s.audios; }
  int64_t lanes_in(int64_t panel) const { return s.audios - panel * W < W ? s.audios - panel * W : W; }

  void pack(bool with_gradient_panels) {
    parallel_for(loc.panels, [&](int64_t panel) {
      loc.pack(s, p.loc.audio, panel, with_gradient_panels);
      avc.pack(s, p.avc.audio, panel, with_gradient_panels);
    });
  }
  ImagePair<T> load_images(int64_t n, T* loc_scratch, T* avc_scratch, bool bf16_cells,
                           bool bf16_channels = false) const {
    return {load_image(s, p.loc.visual, n, loc_scratch, bf16_cells, bf16_channels),
            load_image(s, p.avc.visual, n, avc_scratch, bf16_cells, bf16_channels),
            static_cast<const T*>(p.loc.inverse_norm) + n * s.cells,
            static_cast<const T*>(p.avc.inverse_norm) + n * s.cells};
  }
  void write_norms(int64_t n, const ImagePair<T>& images) const {
    inverse_norms(s, images.loc, static_cast<T*>(p.loc.inverse_norm) + n * s.cells);
    inverse_norms(s, images.avc, static_cast<T*>(p.avc.inverse_norm) + n * s.cells);
  }
  // Alphas of image n with a group of panels, [panel][cell][lane]: cached ones, else computed into `scratch`.
  // recompute: also those that are to be cached.
  const T* alphas(const Features& f, const Image<T>& image, const PackedAudios<T>& audios, const T* norm, int64_t n,
                  int64_t first_panel, int64_t panels, bool recompute, T* scratch, L2Prefetcher& prefetcher) const {
    T* out =
        n < p.cached_images ? static_cast<T*>(f.cached_alphas) + n * map_size() + first_panel * s.cells * W : scratch;
    if (!recompute && n < p.cached_images) return out;
    StoreAlpha<T> epilogue{norm, out, s.cells, first_panel};
    similarities(image, audios, first_panel, panels, epilogue, prefetcher);
    return out;
  }
  // Prefetcher of the next image, while `panels` panels pass image n.
  L2Prefetcher prefetch_next(const Features& f, const Image<T>& image, int64_t n, int64_t panels) const {
    return prefetch_image(s, f.visual, n + 1, prefetch_steps(image, loc) / loc.panels * panels);
  }
  // Worksharing loop over groups of panels, f(first panel, panels), smaller ones where there are too few for all
  // threads.
  template <class F>
  void parallel_for_panels(F f) const {
    int64_t share = loc.panels / omp_get_num_threads(), group = panels_per_group(loc);
    group = share < 1 ? 1 : share < group ? share : group;
    parallel_for((loc.panels + group - 1) / group,
                 [&](int64_t i) { f(i * group, loc.panels - i * group < group ? loc.panels - i * group : group); });
  }
  // Softmax over audios, of one image: for each cell max avc, and tau times the log of the sum.
  void instance_log_sum_exp(const T* avc, T* max, T* log) const {
    for (int64_t cell = 0; cell < s.cells; ++cell) {
      auto lanes = [&](int64_t m) { return avc + ((m / W) * s.cells + cell) * W + m % W; };
      int64_t full = s.audios / L * L;
      Vec<T> largest = broadcast(T(-2)), sum{};
      for (int64_t m = 0; m < full; m += L) {
        Vec<T> alpha = load(lanes(m));
        largest = select(alpha > largest, alpha, largest);
      }
      T most = max_lanes<T>(largest);
      for (int64_t m = full; m < s.audios; ++m) most = *lanes(m) > most ? *lanes(m) : most;
      for (int64_t m = 0; m < full; m += L) sum += exponential((load(lanes(m)) - most) * per_tau);
      T total = sum_lanes<T>(sum);
      for (int64_t m = full; m < s.audios; ++m) total += T(__builtin_exp(double((*lanes(m) - most) * per_tau)));
      max[cell] = most;
      log[cell] = T(p.tau * __builtin_log(double(total)));
    }
  }
  // Scores of image n with the audios of a panel, and what the backward pass needs of each pair. loc: alphas of the
  // panel, avc: of all.
  void score_panel(int64_t n, int64_t panel, const T* loc, const T* avc) const {
    const T *max = instance_max(n, panel), *sums = instance_log(n, panel);
    int64_t at = n * s.audios + panel * W, count = lanes_in(panel);
    Vec<T> largest[kVectors], norm[kVectors], top[kVectors], log[kVectors], score[kVectors];
    Index<Vec<T>> argmax[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      largest[v] = load(loc + v * L);
      for (int64_t cell = 1; cell < s.cells; ++cell) {
        Vec<T> alpha = load(loc + cell * W + v * L);
        largest[v] = select(alpha > largest[v], alpha, largest[v]);
      }
      auto y = [&](int64_t cell) { return load(loc + cell * W + v * L) - largest[v]; };
      auto x = [&](int64_t cell) {  // a + loc, relative to the largest loc
        return log_instance(load(avc + (panel * s.cells + cell) * W + v * L), max, sums, cell, v) + y(cell);
      };
      typename Max<Vec<T>, T>::State best{broadcast(T(-1e30)), {}};
      for (int64_t cell = 0; cell < s.cells; ++cell) Max<Vec<T>, T>{}.absorb(best, x(cell), int(cell));
      norm[v] = logarithm(sum_in_levels<Vec<T>>(s.cells, [&](int64_t cell) { return exponential(y(cell) * per_tau); }));
      top[v] = best.best, argmax[v] = best.cell, log[v] = Vec<T>{};
      if (p.reduce == Reduce::sum)
        log[v] = logarithm(
            sum_in_levels<Vec<T>>(s.cells, [&](int64_t cell) { return exponential((x(cell) - top[v]) * per_tau); }));
      score[v] = top[v] * per_tau - norm[v] + log[v];
    }
    store_lanes(largest, pair_norm(kLocMax) + at, count);
    store_lanes(norm, pair_norm(kLocLog) + at, count);
    store_lanes(top, pair_norm(kMax) + at, count);
    store_lanes(log, pair_norm(kLog) + at, count);
    store_lanes(score, static_cast<T*>(p.scores) + at, count);
    if (p.reduce == Reduce::max) store_lanes(argmax, static_cast<int32_t*>(p.argmax) + at, count);
  }
  // Scores of image n with all audios. avc_scratch: of a map; loc_scratch: of a group of panels or, with keep_loc, of a
  // map. Both have the alphas then, where they are not cached.
  void score_image(int64_t n, const ImagePair<T>& images, T* avc_scratch, T* loc_scratch, bool keep_loc) const {
    if (!over_images()) write_norms(n, images);
    const T* avc_alphas = nullptr;
    L2Prefetcher next_avc = prefetch_next(p.avc, images.avc, n, avc.panels),
                 next_loc = prefetch_next(p.loc, images.loc, n, loc.panels);
    for_panel_groups(avc, [&](int64_t first, int64_t panels) {
      const int64_t offset = first * s.cells * W;
      avc_alphas = alphas(p.avc, images.avc, avc, images.avc_norm, n, first, panels, !over_images(),
                          avc_scratch + offset, next_avc) -
                   offset;
    });
    if (!over_images()) instance_log_sum_exp(avc_alphas, instance_max(n, 0), instance_log(n, 0));
    for_panel_groups(loc, [&](int64_t first, int64_t panels) {
      const T* loc_alphas = alphas(p.loc, images.loc, loc, images.loc_norm, n, first, panels, true,
                                   loc_scratch + (keep_loc ? first * s.cells * W : 0), next_loc);
      for (int64_t i = 0; i < panels; ++i) score_panel(n, first + i, loc_alphas + i * s.cells * W, avc_alphas);
    });
  }
};

template <class T>
void forward(const ProductParams& p, Workspace& workspace) {
  constexpr int L = kLanes<T>;
  Product<T> product(p);
  const Shape& s = p.shape;
  product.loc.allocate(workspace, s, false);
  product.avc.allocate(workspace, s, false);
  struct Scratch {
    T *loc_image, *avc_image, *loc_alphas, *avc_alphas;
    typename LSE<T>::State* instance;
  };
  auto* scratch = workspace.take<Scratch>(p.threads);
  for (int i = 0; i < p.threads; ++i)
    scratch[i] = {workspace.take<T>(image_scratch_size<T>(s)), workspace.take<T>(image_scratch_size<T>(s)),
                  workspace.take<T>(product.group_size()), workspace.take<T>(product.map_size()),
                  workspace.take<typename LSE<T>::State>(product.group_size() / L)};
  const LSE<T> lse{product.per_tau};

  parallel(p.threads, [&] {
    AmxTileScope tiles;
    Scratch& local = scratch[omp_get_thread_num()];
    product.pack(false);
    if (product.over_images()) {  // threads own groups of panels and see all images, so norms come first
      parallel_for(s.images, [&](int64_t n) {
        product.write_norms(n, product.load_images(n, local.loc_image, local.avc_image, false));
      });
      product.parallel_for_panels([&](int64_t first, int64_t panels) {
        const int64_t vectors = panels * s.cells * kVectors;
        for (int64_t i = 0; i < vectors; ++i) local.instance[i] = {};
        for (int64_t n = 0; n < s.images; ++n) {
          ImagePair<T> images = product.load_images(n, local.loc_image, local.avc_image, true);
          L2Prefetcher next_avc = product.prefetch_next(p.avc, images.avc, n, panels);
          const T* avc = product.alphas(p.avc, images.avc, product.avc, images.avc_norm, n, first, panels, true,
                                        local.avc_alphas, next_avc);
          for (int64_t i = 0; i < vectors; ++i) lse.absorb(local.instance[i], load(avc + i * L));
        }
        for (int64_t i = 0; i < vectors; ++i) {
          store(product.instance_max(0, first) + i * L, local.instance[i].top);
          store(product.instance_log(0, first) + i * L, logarithm(local.instance[i].sum) * product.tau);
        }
      });
    }
    parallel_for(s.images, [&](int64_t n) {
      ImagePair<T> images = product.load_images(n, local.loc_image, local.avc_image, true);
      product.score_image(n, images, local.avc_alphas, local.loc_alphas, false);
    });
  });
}

// u of image n, one panel at a time.
template <class T>
struct ScoreGradient {
  const Product<T>& product;
  int64_t n;
  Vec<T> grad[kVectors], largest[kVectors], norm[kVectors], top[kVectors], log[kVectors], best[kVectors];

  void load_panel(int64_t panel) {
    const ProductParams& p = product.p;
    int64_t at = n * product.s.audios + panel * kPanel<T>, count = product.lanes_in(panel);
    load_lanes(static_cast<const T*>(p.grad_scores) + at, count, grad);
    load_lanes(product.pair_norm(product.kLocMax) + at, count, largest);
    load_lanes(product.pair_norm(product.kLocLog) + at, count, norm);
    load_lanes(product.pair_norm(product.kMax) + at, count, top, T(1e30));  // of padding, u = 0
    load_lanes(product.pair_norm(product.kLog) + at, count, log);
    for (int64_t i = 0; i < kPanel<T> && p.reduce == Reduce::max; ++i)
      best[i / kLanes<T>][i % kLanes<T>] = i < count ? T(static_cast<const int32_t*>(p.argmax)[at + i]) : T(-1);
  }
  // f(cell, v, u, b / tau) for all cells and vectors of lanes.
  template <class F>
  SSL_FAST_ALWAYS_INLINE void for_cells(int64_t panel, const T* loc, const T* avc, F&& f) {
    constexpr int W = kPanel<T>, L = kLanes<T>;
    const T *instance_max = product.instance_max(n, panel), *instance_log = product.instance_log(n, panel);
    for (int64_t cell = 0; cell < product.s.cells; ++cell)
      for (int v = 0; v < kVectors; ++v) {
        int64_t at = cell * W + v * L;
        Vec<T> y = load(loc + at) - largest[v];
        Vec<T> x = product.log_instance(load(avc + at), instance_max, instance_log, cell, v) + y;
        Vec<T> u = product.p.reduce == Reduce::sum ? grad[v] * exponential((x - top[v]) * product.per_tau - log[v])
                                                   : select(best[v] == T(cell), grad[v], Vec<T>{});
        f(cell, v, u, y * product.per_tau - norm[v]);
      }
  }
};

template <class T>
void backward(const ProductParams& p, Workspace& workspace) {
  constexpr int W = kPanel<T>, L = kLanes<T>;
  Product<T> product(p);
  const Shape& s = p.shape;
  bool visual = p.loc.grad_visual || p.avc.grad_visual, audio = p.loc.grad_audio || p.avc.grad_audio;
  product.loc.allocate(workspace, s, visual);
  product.avc.allocate(workspace, s, visual);
  product.R = product.over_images() ? workspace.take<T>(product.map_size()) : nullptr;
  struct Scratch {
    T *loc_alphas, *avc_alphas;  // of a group of panels, with p.row_loss of one image; of one image
    T* gaps;                     // of the loss of one row
    Vec<T>* R;                   // (cells): R before the sum over lanes
    BackwardScratch<T> loc_grads, avc_grads;
  };
  double* losses = p.row_loss ? workspace.take<double>(s.images) : nullptr;
  auto* scratch = workspace.take<Scratch>(p.threads);
  auto* by_space = workspace.take<BackwardScratch<T>>(2 * p.threads);  // loc of all threads, then avc
  for (int i = 0; i < p.threads; ++i) {
    Scratch& local = scratch[i];
    local.loc_alphas = workspace.take<T>(p.row_loss ? product.map_size() : product.group_size());
    local.avc_alphas = workspace.take<T>(product.map_size());
    local.gaps = p.row_loss ? workspace.take<T>(cross_entropy_scratch(s.audios)) : nullptr;
    local.R = workspace.take<Vec<T>>(s.cells);
    local.loc_grads.allocate(workspace, s, product.loc);
    local.avc_grads.allocate(workspace, s, product.avc);
    by_space[i] = local.loc_grads;
    by_space[p.threads + i] = local.avc_grads;
  }

  parallel(p.threads, [&] {
    AmxTileScope tiles;
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    Scratch& local = scratch[thread];
    product.pack(visual);
    if (audio) local.loc_grads.zero_dA(product.loc), local.avc_grads.zero_dA(product.avc);
    if (product.over_images()) {  // R[m,p]: threads own groups of panels and see all images
      product.parallel_for_panels([&](int64_t first, int64_t panels) {
        for (int64_t i = 0; i < panels * s.cells * W; ++i) product.R[first * s.cells * W + i] = 0;
        for (int64_t n = 0; n < s.images; ++n) {
          ImagePair<T> images = product.load_images(n, local.loc_grads.image_scratch, local.avc_grads.image_scratch,
                                                    n >= p.cached_images);
          L2Prefetcher next_avc = product.prefetch_next(p.avc, images.avc, n, panels),
                       next_loc = product.prefetch_next(p.loc, images.loc, n, panels);
          const T* avc = product.alphas(p.avc, images.avc, product.avc, images.avc_norm, n, first, panels, false,
                                        local.avc_alphas, next_avc);
          const T* loc = product.alphas(p.loc, images.loc, product.loc, images.loc_norm, n, first, panels, false,
                                        local.loc_alphas, next_loc);
          for (int64_t i = 0; i < panels; ++i) {
            ScoreGradient<T> gradient{product, n, {}, {}, {}, {}, {}, {}};
            gradient.load_panel(first + i);
            T* R = product.R + (first + i) * s.cells * W;
            auto add = [&](int64_t cell, int v, Vec<T> u, Vec<T>) {
              T* sum = R + cell * W + v * L;
              store(sum, load(sum) + u);
            };
            gradient.for_cells(first + i, loc + i * s.cells * W, avc + i * s.cells * W, add);
          }
        }
      });
    }
    int64_t begin = s.images * thread / threads, end = s.images * (thread + 1) / threads;
    const int64_t stride = local.loc_grads.panel_stride;
    for (int64_t first = begin, group = images_per_group(s); first < end; first += group) {
      int64_t last = first + group < end ? first + group : end;
      for (int64_t n = first; n < last; ++n) {
        int64_t offset = (n - first) * local.loc_grads.image_size;
        ImagePair<T> images = product.load_images(n, local.loc_grads.image_scratch + offset,
                                                  local.avc_grads.image_scratch + offset, n >= p.cached_images, audio);
        local.loc_grads.images[n - first] = images.loc, local.avc_grads.images[n - first] = images.avc;
        if (p.row_loss) {
          product.score_image(n, images, local.avc_alphas, local.loc_alphas, true);
          CrossEntropy<T>{*p.row_loss, losses}.row(n, local.gaps);
        }
        T *G_loc = local.loc_grads.G + (n - first) * s.cells * W,
          *G_avc = local.avc_grads.G + (n - first) * s.cells * W;
        local.loc_grads.zero_t(s), local.avc_grads.zero_t(s);
        for (int64_t c = 0; c < s.cells; ++c) local.R[c] = Vec<T>{};
        const T* avc = nullptr;
        // First u, in the memory of G_avc, R and the gradient of loc; then the gradient of avc.
        L2Prefetcher next_avc = product.prefetch_next(p.avc, images.avc, n, product.avc.panels),
                     next_loc = product.prefetch_next(p.loc, images.loc, n, product.loc.panels);
        for_panel_groups(product.avc, [&](int64_t first_panel, int64_t panels) {
          const int64_t offset = first_panel * s.cells * W;
          avc = local.avc_alphas;
          const T* loc = local.loc_alphas + offset;
          if (!p.row_loss) {
            avc = product.alphas(p.avc, images.avc, product.avc, images.avc_norm, n, first_panel, panels, false,
                                 local.avc_alphas + offset, next_avc) -
                  offset;
            loc = product.alphas(p.loc, images.loc, product.loc, images.loc_norm, n, first_panel, panels, false,
                                 local.loc_alphas, next_loc);
          }
          for (int64_t panel = first_panel; panel < first_panel + panels; ++panel, loc += s.cells * W) {
            ScoreGradient<T> gradient{product, n, {}, {}, {}, {}, {}, {}};
            gradient.load_panel(panel);
            auto add = [&](int64_t cell, int v, Vec<T> u, Vec<T> log_space) {
              int64_t at = cell * W + v * L;
              store(G_avc + panel * stride + at, u);
              local.R[cell] += u;
              Vec<T> g = (u - gradient.grad[v] * exponential(log_space)) * (product.per_tau * images.loc_norm[cell]);
              store(G_loc + panel * stride + at, g);
              local.loc_grads.t_lanes[cell] += g * load(loc + at);
            };
            gradient.for_cells(panel, loc, avc + panel * s.cells * W, add);
          }
        });
        for (int64_t cell = 0; cell < s.cells; ++cell) local.R[cell] = broadcast(sum_lanes<T>(local.R[cell]));
        for (int64_t panel = 0; panel < product.avc.panels; ++panel) {
          const T *max = product.instance_max(n, panel), *log = product.instance_log(n, panel);
          for (int64_t cell = 0; cell < s.cells; ++cell)
            for (int v = 0; v < kVectors; ++v) {
              const int64_t m = panel * W + v * L, at = panel * s.cells * W + cell * W + v * L;
              T* u = G_avc + panel * stride + cell * W + v * L;
              Vec<T> alpha = load(avc + at);
              Vec<T> a = product.log_instance(alpha, max, log, cell, v);
              Vec<T> sum = product.over_images() ? load(product.R + at) : local.R[cell];
              Vec<T> g = (load(u) - exponential(a * product.per_tau) * sum) * (product.per_tau * images.avc_norm[cell]);
              for (int64_t i = s.audios - m < 0 ? 0 : s.audios - m; i < L; ++i) g[i] = 0;
              store(u, g);
              local.avc_grads.t_lanes[cell] += g * alpha;
            }
        }
        if (visual) {
          local.loc_grads.reduce_t(s);
          local.loc_grads.store_visual_gradient(s, p.loc, images.loc, product.loc, n, G_loc, images.loc_norm,
                                                n < p.cached_images);
          local.avc_grads.reduce_t(s);
          local.avc_grads.store_visual_gradient(s, p.avc, images.avc, product.avc, n, G_avc, images.avc_norm,
                                                n < p.cached_images);
        }
      }
      BackwardScratch<T>* spaces[] = {&local.loc_grads, &local.avc_grads};
      for (BackwardScratch<T>* space : spaces)
        if (audio)
          audio_gradient(space->images, last - first, space->G, stride, product.loc.panels, space->dA, space->bf16_G);
    }
    GOMP_barrier();
    if (audio) {
      reduce_audio_gradient(s, p.loc, product.loc, by_space);
      reduce_audio_gradient(s, p.avc, product.avc, by_space + p.threads);
    }
  });
  if (p.row_loss) store_loss<T>(*p.row_loss, losses);
}

template <bool kBackward>
void call(const ProductParams& p, Workspace& workspace) {
  if (kBf16Gemm && p.shape.dtype != DType::bfloat16)
    return (kBackward ? plain::product_backward_kernel : plain::product_kernel)(p, workspace);
  with_compute_type(p, [&](auto zero) {
    if constexpr (kBackward)
      backward<decltype(zero)>(p, workspace);
    else
      forward<decltype(zero)>(p, workspace);
  });
}

}  // namespace

void product_kernel(const ProductParams& p, Workspace& workspace) { call<false>(p, workspace); }
void product_backward_kernel(const ProductParams& p, Workspace& workspace) { call<true>(p, workspace); }

}  // namespace ssl_fast::SSL_FAST_ISA
