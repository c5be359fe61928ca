// SLAVC: the product of a softmax over instances (space `avc`) and a softmax over cells (space `loc`), in log space.
//
//   a[n,m,p] = avc / tau - log-sum-exp of avc / tau over audios m (or over images n): log of the instance softmax
//   y[n,m,p] = (loc - the largest loc of the pair) / tau,   L[n,m] = log sum_p exp(y)
//   S[n,m]   = log-sum-exp (or max) over p of a + y,  minus L
// With u = grad[n,m] dS/da (grad times the share of cell p in S, or grad at the best cell), R = sum of u over
// instances:
//   d avc = (u - exp(a) R) / tau,   d loc = (u - grad exp(y - L)) / tau
// Every exponent is a difference from a largest value, taken in units of alpha: nothing large cancels.
#include "dense_backward.h"
#include "kernel_table.h"

#include "../pooling.h"  // after the vectors it works on

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <class T>
using LSE = LogSumExp<Vec<T>, T>;

// alpha = product / |v| of one panel, kept in [cell][lane].
template <class T>
struct KeepAlpha {
  const T* inverse_norm;
  T* kept;
  template <int R>
  void tile(const T* products, int64_t, int64_t cell) {
    for (int64_t r = 0; r < R; ++r)
      for (int v = 0; v < kVectors; ++v) {
        int64_t at = r * kPanel<T> + v * kLanes<T>;
        store(kept + cell * kPanel<T> + at, load(products + at) * inverse_norm[cell + r]);
      }
  }
};
template <class T>
void alphas(const Image<T>& image, const Audios<T>& audios, int64_t panel, const T* inverse_norm, T* out,
            Ahead& ahead) {
  KeepAlpha<T> epilogue{inverse_norm, out};
  similarities(image, audios, panel, epilogue, ahead);
}

// What a thread needs for one image.
template <class T>
struct Maps {
  Image<T> loc, avc;
  const T *loc_norm, *avc_norm;
};

template <class T>
struct Product {
  const ProductParams& p;
  const Shape& s;
  const T per_tau;
  Audios<T> loc, avc;
  T* R;  // instances = image: sum over images of u, [panel][cell][lane]
  static constexpr int W = kPanel<T>, L = kLanes<T>;

  explicit Product(const ProductParams& params) : p(params), s(params.shape), per_tau(T(1 / params.tau)) {}

  bool over_images() const { return p.instances == Instances::image; }
  int64_t map_size() const { return loc.padded() * s.cells; }
  // The largest avc and the log of the sum, by cells of image n or by cells and lanes of a panel.
  int64_t instance_at(int64_t n, int64_t panel) const { return over_images() ? panel * s.cells * W : n * s.cells; }
  T* instance_top(int64_t n, int64_t panel) const { return static_cast<T*>(p.instance_norm) + instance_at(n, panel); }
  T* instance_log(int64_t n, int64_t panel) const {
    return instance_top(n, panel) + (over_images() ? avc.padded() : s.images) * s.cells;
  }
  // Log of the instance softmax at a cell and vector of lanes.
  SSL_FAST_AI Vec<T> log_instance(Vec<T> alpha, const T* top, const T* log, int64_t cell, int v) const {
    if (!over_images()) return (alpha - top[cell]) * per_tau - log[cell];
    int64_t at = cell * W + v * L;
    return (alpha - load(top + at)) * per_tau - load(log + at);
  }
  int64_t lanes_in(int64_t panel) const { return s.audios - panel * W < W ? s.audios - panel * W : W; }

  void pack(bool with_columns) {
    parallel_for(loc.panels, [&](int64_t panel) {
      loc.pack(s, p.loc.audio, panel, with_columns);
      avc.pack(s, p.avc.audio, panel, with_columns);
    });
  }
  Maps<T> maps_of(int64_t n, T* loc_scratch, T* avc_scratch, bool by_cell, bool by_channel = false) const {
    return {image_at(s, p.loc.visual, n, loc_scratch, by_cell, by_channel),
            image_at(s, p.avc.visual, n, avc_scratch, by_cell, by_channel),
            static_cast<const T*>(p.loc.inverse_norm) + n * s.cells,
            static_cast<const T*>(p.avc.inverse_norm) + n * s.cells};
  }
  void write_norms(int64_t n, const Maps<T>& maps) const {
    inverse_norms(maps.loc, static_cast<T*>(p.loc.inverse_norm) + n * s.cells);
    inverse_norms(maps.avc, static_cast<T*>(p.avc.inverse_norm) + n * s.cells);
  }
  // One panel of alphas: from the kept ones where there are any, else computed into `scratch` (and kept if wanted).
  const T* panel_of(const Features& f, const Image<T>& image, const Audios<T>& audios, const T* norm, int64_t n,
                    int64_t panel, bool fresh, T* scratch, Ahead ahead = {nullptr, 0, 1}) const {
    T* place = n < p.kept ? static_cast<T*>(f.kept_alpha) + n * map_size() + panel * s.cells * W : scratch;
    if (fresh || n >= p.kept) alphas(image, audios, panel, norm, place, ahead);
    return place;
  }
  // A share of the next image, to be brought in while one panel is worked on.
  Ahead ahead_of(const Features& f, const Image<T>& image, int64_t n, int64_t panel) const {
    int64_t steps = steps_of(image, loc);
    Ahead all = image_ahead(s, f.visual, n + 1, steps);
    int64_t share = (all.lines + loc.panels - 1) / loc.panels, left = all.lines - panel * share;
    return {all.at + panel * share * 64, (left < share ? left : share) * 64, steps / loc.panels};
  }
  // log of the softmax over audios, of one image: the largest avc of each cell, and the log of the sum.
  void normalise_instances(const T* avc, T* top, T* log) const {
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
      top[cell] = most;
      log[cell] = T(__builtin_log(double(total)));
    }
  }
};

template <class T>
void forward(const ProductParams& p, char* workspace, int64_t* bytes) {
  constexpr int W = kPanel<T>, L = kLanes<T>;
  Product<T> work(p);
  const Shape& s = p.shape;
  Arena arena{workspace};
  work.loc.lay_out(arena, s, false);
  work.avc.lay_out(arena, s, false);
  struct Scratch {
    T *loc_image, *avc_image, *loc, *avc;
    typename LSE<T>::State* instance;
  };
  auto* scratch = arena.take<Scratch>(p.threads);
  for (int i = 0; i < p.threads; ++i) {
    Scratch mine{arena.take<T>(image_scratch<T>(s)), arena.take<T>(image_scratch<T>(s)), arena.take<T>(s.cells * W),
                 arena.take<T>(work.map_size()), arena.take<typename LSE<T>::State>(s.cells * kVectors)};
    if (workspace) scratch[i] = mine;
  }
  if (bytes) return void(*bytes = arena.used);
  const LSE<T> lse{work.per_tau};

  parallel(p.threads, [&] {
    TileScope tiles;
    Scratch& my = scratch[omp_get_thread_num()];
    work.pack(false);
    if (work.over_images()) {  // threads own panels and see all images, so norms come first
      parallel_for(s.images,
                   [&](int64_t n) { work.write_norms(n, work.maps_of(n, my.loc_image, my.avc_image, false)); });
      parallel_for(work.avc.panels, [&](int64_t panel) {
        for (int64_t i = 0; i < s.cells * kVectors; ++i) my.instance[i] = {};
        for (int64_t n = 0; n < s.images; ++n) {
          Maps<T> maps = work.maps_of(n, my.loc_image, my.avc_image, true);
          const T* avc = work.panel_of(p.avc, maps.avc, work.avc, maps.avc_norm, n, panel, true, my.avc);
          for (int64_t i = 0; i < s.cells * kVectors; ++i) lse.absorb(my.instance[i], load(avc + i * L));
        }
        for (int64_t i = 0; i < s.cells * kVectors; ++i) {
          store(work.instance_top(0, panel) + i * L, my.instance[i].top);
          store(work.instance_log(0, panel) + i * L, logarithm(my.instance[i].sum));
        }
      });
    }
    parallel_for(s.images, [&](int64_t n) {
      Maps<T> maps = work.maps_of(n, my.loc_image, my.avc_image, true);
      if (!work.over_images()) work.write_norms(n, maps);
      const T* avc = nullptr;
      for (int64_t panel = 0; panel < work.avc.panels; ++panel)
        avc = work.panel_of(p.avc, maps.avc, work.avc, maps.avc_norm, n, panel, !work.over_images(),
                            my.avc + panel * s.cells * W, work.ahead_of(p.avc, maps.avc, n, panel)) -
              panel * s.cells * W;
      if (!work.over_images()) work.normalise_instances(avc, work.instance_top(n, 0), work.instance_log(n, 0));
      for (int64_t panel = 0; panel < work.loc.panels; ++panel) {
        const T* loc = work.panel_of(p.loc, maps.loc, work.loc, maps.loc_norm, n, panel, true, my.loc,
                                     work.ahead_of(p.loc, maps.loc, n, panel));
        const T *top = work.instance_top(n, panel), *log = work.instance_log(n, panel);
        int64_t at = n * s.audios + panel * W, count = work.lanes_in(panel);
        Vec<T> largest[kVectors], norm[kVectors], score[kVectors];
        Index<Vec<T>> best_cell[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          largest[v] = load(loc + v * L);
          for (int64_t cell = 1; cell < s.cells; ++cell) {
            Vec<T> alpha = load(loc + cell * W + v * L);
            largest[v] = select(alpha > largest[v], alpha, largest[v]);
          }
          auto y = [&](int64_t cell) { return (load(loc + cell * W + v * L) - largest[v]) * work.per_tau; };
          auto x = [&](int64_t cell) {
            return work.log_instance(load(avc + (panel * s.cells + cell) * W + v * L), top, log, cell, v) + y(cell);
          };
          typename Max<Vec<T>, T>::State best{broadcast(T(-1e30)), {}};
          for (int64_t cell = 0; cell < s.cells; ++cell) Max<Vec<T>, T>{}.absorb(best, x(cell), int(cell));
          Vec<T> sum{}, total{};
          for (int64_t first = 0; first < s.cells; first += 16) {  // in two levels: less rounding error
            int64_t last = first + 16 < s.cells ? first + 16 : s.cells;
            Vec<T> part{}, part_of_total{};
            for (int64_t cell = first; cell < last; ++cell) part += exponential(y(cell));
            for (int64_t cell = first; cell < last && p.reduce == Reduce::sum; ++cell)
              part_of_total += exponential(x(cell) - best.best);
            sum += part;
            total += part_of_total;
          }
          norm[v] = logarithm(sum);
          score[v] = best.best - norm[v];
          if (p.reduce == Reduce::sum) score[v] += logarithm(total);
          best_cell[v] = best.cell;
        }
        store_lanes(largest, static_cast<T*>(p.space_norm) + at, count);
        store_lanes(norm, static_cast<T*>(p.space_norm) + s.images * s.audios + at, count);
        store_lanes(score, static_cast<T*>(p.scores) + at, count);
        if (p.reduce == Reduce::max) store_lanes(best_cell, static_cast<int32_t*>(p.best_cell) + at, count);
      }
    });
  });
}

// u of one panel of one image, by cells: f(cell, v, u, log of the space softmax).
template <class T>
struct Shares {
  const Product<T>& work;
  int64_t n;
  Vec<T> grad[kVectors], score[kVectors], largest[kVectors], norm[kVectors], best[kVectors];

  void open(int64_t panel) {
    const ProductParams& p = work.p;
    int64_t at = n * work.s.audios + panel * kPanel<T>, count = work.lanes_in(panel);
    load_lanes(static_cast<const T*>(p.grad_scores) + at, count, grad);
    load_lanes(static_cast<const T*>(p.scores) + at, count, score);
    load_lanes(static_cast<const T*>(p.space_norm) + at, count, largest);
    load_lanes(static_cast<const T*>(p.space_norm) + work.s.images * work.s.audios + at, count, norm);
    for (int64_t i = 0; i < kPanel<T> && p.reduce == Reduce::max; ++i)
      best[i / kLanes<T>][i % kLanes<T>] = i < count ? T(static_cast<const int32_t*>(p.best_cell)[at + i]) : T(-1);
  }
  template <class F>
  SSL_FAST_AI void for_cells(int64_t panel, const T* loc, const T* avc, F&& f) {
    constexpr int W = kPanel<T>, L = kLanes<T>;
    const T *top = work.instance_top(n, panel), *log = work.instance_log(n, panel);
    for (int64_t cell = 0; cell < work.s.cells; ++cell)
      for (int v = 0; v < kVectors; ++v) {
        int64_t at = cell * W + v * L;
        Vec<T> log_space = (load(loc + at) - largest[v]) * work.per_tau - norm[v];
        Vec<T> a = work.log_instance(load(avc + at), top, log, cell, v);
        Vec<T> u = work.p.reduce == Reduce::sum ? grad[v] * exponential(a + log_space - score[v])
                                                : select(best[v] == T(cell), grad[v], Vec<T>{});
        f(cell, v, u, log_space);
      }
  }
};

template <class T>
void backward(const ProductParams& p, char* workspace, int64_t* bytes) {
  constexpr int W = kPanel<T>, L = kLanes<T>;
  Product<T> work(p);
  const Shape& s = p.shape;
  bool visual = p.loc.grad_visual || p.avc.grad_visual, audio = p.loc.grad_audio || p.avc.grad_audio;
  Arena arena{workspace};
  work.loc.lay_out(arena, s, visual);
  work.avc.lay_out(arena, s, visual);
  work.R = work.over_images() ? arena.take<T>(work.map_size()) : nullptr;
  struct Scratch {
    T *loc, *avc;  // alphas of one panel; of one image
    Vec<T>* R;     // (cells), by lanes
    Gradients<T> of_loc, of_avc;
  };
  auto* scratch = arena.take<Scratch>(p.threads);
  auto* shares = arena.take<Gradients<T>>(2 * p.threads);
  for (int i = 0; i < p.threads; ++i) {
    Scratch mine;
    mine.loc = arena.take<T>(s.cells * W);
    mine.avc = arena.take<T>(work.map_size());
    mine.R = arena.take<Vec<T>>(s.cells);
    mine.of_loc.lay_out(arena, s, work.loc);
    mine.of_avc.lay_out(arena, s, work.avc);
    if (!workspace) continue;
    scratch[i] = mine;
    shares[i] = mine.of_loc;
    shares[p.threads + i] = mine.of_avc;
  }
  if (bytes) return void(*bytes = arena.used);

  parallel(p.threads, [&] {
    TileScope tiles;
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    Scratch& my = scratch[thread];
    work.pack(visual);
    if (audio) my.of_loc.clear(work.loc), my.of_avc.clear(work.avc);
    if (work.over_images()) {  // R[m,p]: threads own panels and see all images
      parallel_for(work.avc.panels, [&](int64_t panel) {
        T* R = work.R + panel * s.cells * W;
        for (int64_t i = 0; i < s.cells * W; ++i) R[i] = 0;
        for (int64_t n = 0; n < s.images; ++n) {
          Maps<T> maps = work.maps_of(n, my.of_loc.image, my.of_avc.image, n >= p.kept);
          const T* avc = work.panel_of(p.avc, maps.avc, work.avc, maps.avc_norm, n, panel, false, my.avc);
          const T* loc = work.panel_of(p.loc, maps.loc, work.loc, maps.loc_norm, n, panel, false, my.loc);
          Shares<T> share{work, n, {}, {}, {}, {}, {}};
          share.open(panel);
          share.for_cells(panel, loc, avc, [&](int64_t cell, int v, Vec<T> u, Vec<T>) {
            T* sum = R + cell * W + v * L;
            store(sum, load(sum) + u);
          });
        }
      });
    }
    int64_t begin = s.images * thread / threads, end = s.images * (thread + 1) / threads;
    const int64_t stride = my.of_loc.panel_stride;
    for (int64_t first = begin, group = group_of(s); first < end; first += group) {
      int64_t last = first + group < end ? first + group : end;
      for (int64_t n = first; n < last; ++n) {
        int64_t image = (n - first) * my.of_loc.image_size;
        Maps<T> maps = work.maps_of(n, my.of_loc.image + image, my.of_avc.image + image, n >= p.kept, audio);
        my.of_loc.images[n - first] = maps.loc, my.of_avc.images[n - first] = maps.avc;
        T *G_loc = my.of_loc.G + (n - first) * s.cells * W, *G_avc = my.of_avc.G + (n - first) * s.cells * W;
        my.of_loc.open(s), my.of_avc.open(s);
        for (int64_t c = 0; c < s.cells; ++c) my.R[c] = Vec<T>{};
        const T* avc = nullptr;
        // First u, in place of G_avc, with R and the gradient of loc; then the gradient of avc.
        for (int64_t panel = 0; panel < work.avc.panels; ++panel) {
          const T* avc_panel = work.panel_of(p.avc, maps.avc, work.avc, maps.avc_norm, n, panel, false,
                                             my.avc + panel * s.cells * W, work.ahead_of(p.avc, maps.avc, n, panel));
          const T* loc = work.panel_of(p.loc, maps.loc, work.loc, maps.loc_norm, n, panel, false, my.loc,
                                       work.ahead_of(p.loc, maps.loc, n, panel));
          avc = avc_panel - panel * s.cells * W;
          Shares<T> share{work, n, {}, {}, {}, {}, {}};
          share.open(panel);
          share.for_cells(panel, loc, avc_panel, [&](int64_t cell, int v, Vec<T> u, Vec<T> log_space) {
            int64_t at = cell * W + v * L;
            store(G_avc + panel * stride + at, u);
            my.R[cell] += u;
            Vec<T> g = (u - share.grad[v] * exponential(log_space)) * (work.per_tau * maps.loc_norm[cell]);
            store(G_loc + panel * stride + at, g);
            my.of_loc.t_lanes[cell] += g * load(loc + at);
          });
        }
        for (int64_t cell = 0; cell < s.cells; ++cell) {
          T R = sum_lanes<T>(my.R[cell]), scale = work.per_tau * maps.avc_norm[cell];
          for (int64_t m = 0; m < s.audios; m += L) {
            int64_t at = ((m / W) * s.cells + cell) * W + m % W;
            Vec<T> alpha = load(avc + at);
            Vec<T> a =
                work.log_instance(alpha, work.instance_top(n, m / W), work.instance_log(n, m / W), cell, m % W / L);
            Vec<T> sum = work.over_images() ? load(work.R + at) : broadcast(R);
            T* place = G_avc + (m / W) * stride + cell * W + m % W;
            Vec<T> g = (load(place) - exponential(a) * sum) * scale;
            for (int64_t i = s.audios - m; i < L; ++i) g[i] = 0;
            store(place, g);
            my.of_avc.t_lanes[cell] += g * alpha;
          }
          for (int64_t m = round_up(s.audios, L); m < work.avc.padded(); m += L)
            store(G_avc + (m / W) * stride + cell * W + m % W, Vec<T>{});
        }
        if (visual) {
          my.of_loc.close(s);
          my.of_loc.publish_visual(s, p.loc, maps.loc, work.loc, n, G_loc, maps.loc_norm, n < p.kept);
          my.of_avc.close(s);
          my.of_avc.publish_visual(s, p.avc, maps.avc, work.avc, n, G_avc, maps.avc_norm, n < p.kept);
        }
      }
      Gradients<T>* both[] = {&my.of_loc, &my.of_avc};
      for (Gradients<T>* of : both)
        if (audio) audio_gradient(of->images, last - first, of->G, stride, work.loc.panels, of->dA, of->half);
    }
    GOMP_barrier();
    if (audio) {
      finish_audios(s, p.loc, work.loc, shares, false);
      finish_audios(s, p.avc, work.avc, shares + p.threads, false);
    }
  });
}

template <bool kBackward>
void call(const ProductParams& p, char* workspace, int64_t* bytes) {
  if (kHalfProducts && p.shape.dtype != DType::bfloat16)
    return hand_over(kBackward ? plain::product_backward_kernel : plain::product_kernel, p, workspace, bytes);
  with_type(p, [&](auto zero) {
    if constexpr (kBackward)
      backward<decltype(zero)>(p, workspace, bytes);
    else
      forward<decltype(zero)>(p, workspace, bytes);
  });
}

}  // namespace

const Kernel<ProductParams> product_kernel = make_kernel<ProductParams, call<false>>();
const Kernel<ProductParams> product_backward_kernel = make_kernel<ProductParams, call<true>>();

}  // namespace ssl_fast::SSL_FAST_ISA
