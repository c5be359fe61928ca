// Epilogues of the GEMM of gemm_tile.cuh, whose tiles are alpha[n, m, p] = dot / (|v[n, p]| |a[m]|) for all pairs:
//
//   pool_scores   S[n, m] = pooling of alpha[n, m, :], and the residual that its backward pass needs
//   map_cells     out[n p, m] = slope: g[n, m] dS/dalpha[n, m, p] / (|v| |a|), which torch.mm multiplies with the
//   features;
//                 or alpha itself, for the product of SLAVC
//
//   Inputs   packed audios (M, K) and cells (N * P, K); inverse norms real (M), (N * P); g and S real (N, M)
//   Output   S, residual (N, M), real or int32; matrices (N * P, M padded to 8), 16 bits of bfloat16 features, else
//            real
//   Launch   that of gemm_tile.cuh: 256 threads, plan.blocks CTAs, plan.shared bytes
//
// A thread pools its cells of a pair in registers; the states of a pair are merged by shuffles within a quad of lanes,
// then through shared memory over the 4 warps of a warp group. No atomics: the order of merges is fixed.
#include "common.cuh"
#include "gemm_tile.cuh"

#include "../pooling.h"  // after the numbers it works on

namespace ssl_fast::cuda {
namespace {

template <class T>
__device__ T norm_at(const void* norms, int64_t i, int64_t count) {
  return i < count ? static_cast<const T*>(norms)[i] : T(0);
}

template <class X>
__device__ X shuffle_xor(X x, int lane_mask) {
  uint32_t words[sizeof(X) / 4];
  memcpy(words, &x, sizeof(X));
  for (uint32_t& word : words) word = __shfl_xor_sync(0xffffffffu, word, lane_mask);
  memcpy(&x, words, sizeof(X));
  return x;
}

// Writes f(r) of a thread's consecutive audios as they are stored in a matrix.
template <class Out, int kCount, class F>
__device__ void store_audios(Out* to, F f) {
  AlignedVector<Out, kCount> values;
  for (int r = 0; r < kCount; ++r) put(&values.at[r], f(r));
  constexpr int kPerStore = 16 / sizeof(Out);
  for (int r = 0; r < kCount; r += kPerStore) store_16(to + r, values.at + r);
}

template <class Math, class Cached, class Pool>
__global__ void __launch_bounds__(kThreads, 1) pool_scores(PairsParams p, Plan plan, Pool pool, void* scores,
                                                           void* residual, Cached* cached, int64_t cached_images) {
  using E = Engine<Math>;
  using T = typename E::T;
  using State = typename Pool::State;
  static_assert(sizeof(State) <= E::kScratchBytes);
  SSL_FAST_SHARED_BYTES(shared);
  E engine(p, plan, blockIdx.x, shared);
  State* partial = reinterpret_cast<State*>(engine.scratch);  // [warp of the group][audio of the tile]
  State total{};                                              // of an audio, over the tiles of an image
  const int64_t stride = stride_of(p.audios);
  engine.run([&](int64_t n, int cell, int low, int high, bool last) {
    const int64_t first = engine.first_audio + engine.audio(0);
    const bool caches = n < cached_images && first < stride;
    T audio_norm[E::kThreadAudios];
    State states[E::kThreadAudios]{};  // of this tile: shorter sums, less rounding error
    for (int r = 0; r < E::kThreadAudios; ++r)
      audio_norm[r] = norm_at<T>(p.audio_norm, engine.first_audio + engine.audio(r), p.audios);
    engine.for_columns(low, high, [&](int ni, int j, int column, bool inside) {
      const int here = cell + column - low;
      const T norm = engine.norms[column];
      T alpha[E::kThreadAudios];
      for (int r = 0; r < E::kThreadAudios; ++r) alpha[r] = rounded_product(engine.at(r, ni, j), audio_norm[r] * norm);
      if constexpr (!Pool::kSparse)
        if (caches && inside) {
          AlignedVector<Cached, E::kThreadAudios> values;
          for (int r = 0; r < E::kThreadAudios; ++r) put_rounded(&values.at[r], alpha[r]);
          *reinterpret_cast<AlignedVector<Cached, E::kThreadAudios>*>(cached + (n * p.cells + here) * stride + first) =
              values;
        }
      bool tail = false;
      if constexpr (Pool::kHasTail) {
        T top = alpha[0];
        for (T x : alpha) top = larger(x, top);
        tail = __all_sync(0xffffffffu, !inside || pool.in_tail(top));
      }
      if (!inside) return;
      if constexpr (Pool::kHasTail) {
        if (tail) {
          for (int r = 0; r < E::kThreadAudios; ++r) pool.absorb_tail(states[r], alpha[r], here);
          return;
        }
      }
      for (int r = 0; r < E::kThreadAudios; ++r) pool.absorb(states[r], alpha[r], here);
    });
    for (int r = 0; r < E::kThreadAudios; ++r) {
      for (int mask = 1; mask < 4; mask *= 2) pool.merge(states[r], shuffle_xor(states[r], mask));
      if (threadIdx.x % 4 == 0) partial[engine.warp_column * engine.tile_audios() + engine.audio(r)] = states[r];
    }
    engine.sync_group();
    const int row = engine.group_thread;
    if (row < engine.tile_audios() && engine.first_audio + row < p.audios) {
      State of_tile = partial[row];
#pragma unroll 1  // else SoftThreshold spills registers on sm_100
      for (int w = 1; w < kGroupWarps; ++w) pool.merge(of_tile, partial[w * engine.tile_audios() + row]);
      if (cell)
        pool.merge(total, of_tile);
      else
        total = of_tile;
      const int64_t pair = n * p.audios + engine.first_audio + row;
      if (last) {
        static_cast<T*>(scores)[pair] = pool.score(total);
        static_cast<typename Pool::Residual*>(residual)[pair] = pool.residual(total);
      }
    }
    engine.sync_group();
  });
}

// out[n p, m] = f(alpha, f.pair(n, m), 1 / (|v| |a|))
template <class Math, class Out, class F>
__device__ void map_cells(const PairsParams& p, const Plan& plan, unsigned block, F f, Out* out) {
  using E = Engine<Math>;
  using T = typename E::T;
  SSL_FAST_SHARED_BYTES(shared);
  E engine(p, plan, block, shared);
  const int64_t stride = stride_of(p.audios);
  engine.run([&](int64_t n, int cell, int low, int high, bool) {
    const int64_t first = engine.first_audio + engine.audio(0);
    if (first >= stride) return;
    T audio_norm[E::kThreadAudios];
    typename F::Pair pairs[E::kThreadAudios];
    for (int r = 0; r < E::kThreadAudios; ++r) {
      audio_norm[r] = norm_at<T>(p.audio_norm, first + r, p.audios);
      pairs[r] = first + r < p.audios ? f.pair(n * p.audios + first + r) : typename F::Pair{};
    }
    engine.for_columns(low, high, [&](int ni, int j, int column, bool inside) {
      if (!inside) return;
      const int64_t row = n * p.cells + cell + column - low;
      const T cell_norm = engine.norms[column];
      store_audios<Out, E::kThreadAudios>(out + row * stride + first, [&](int r) {
        const T scale = audio_norm[r] * cell_norm;
        return f(rounded_product(engine.at(r, ni, j), scale), pairs[r], scale);
      });
    });
  });
}

template <class Pool, class T>
struct Slope {
  Pool pool;
  const T *scores, *residual, *grad;
  struct Pair {
    T score, scale;
  };
  __device__ Pair pair(int64_t at) const { return {scores[at], residual[at] * grad[at]}; }
  __device__ T operator()(T alpha, Pair of, T scale) const { return pool.slope(alpha, of.score, of.scale) * scale; }
};
// The same slopes from cached alphas. Lanes over groups of kCount audios, warps over the cells of an image. Blocks an
// SM: for more occupancy it would spill registers.
template <class In, class Out, class T, class F>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 4)
    slopes_of_cached(PairsParams p, F f, const In* cached, Out* out) {
  constexpr int kCount = 8;
  const int64_t stride = stride_of(p.audios), parts = (stride / kCount + kWarpSize - 1) / kWarpSize;
  const int64_t n = blockIdx.x / parts, first = (blockIdx.x % parts * kWarpSize + threadIdx.x % kWarpSize) * kCount;
  if (first >= stride) return;
  T audio_norm[kCount];
  typename F::Pair pairs[kCount];
  for (int r = 0; r < kCount; ++r) {
    audio_norm[r] = norm_at<T>(p.audio_norm, first + r, p.audios);
    pairs[r] = first + r < p.audios ? f.pair(n * p.audios + first + r) : typename F::Pair{};
  }
  for (int64_t cell = threadIdx.x / kWarpSize; cell < p.cells; cell += kWarps) {
    const int64_t row = n * p.cells + cell;
    const T cell_norm = static_cast<const T*>(p.cell_norm)[row];
    const auto alphas = *reinterpret_cast<const AlignedVector<In, kCount>*>(cached + row * stride + first);
    store_audios<Out, kCount>(out + row * stride + first,
                              [&](int r) { return f(value(alphas.at[r]), pairs[r], audio_norm[r] * cell_norm); });
  }
}

template <class Math, class Out, class F>
__global__ void __launch_bounds__(kThreads, 1) map_slopes(PairsParams p, Plan plan, F f, Out* out) {
  map_cells<Math>(p, plan, blockIdx.x, f, out);
}

template <class T>
struct Alpha {
  struct Pair {};
  __device__ Pair pair(int64_t) const { return {}; }
  __device__ T operator()(T alpha, Pair, T) const { return alpha; }
};

template <class Out>
struct Spaces {
  PairsParams pairs[kMostSpaces];
  Out* out[kMostSpaces];
};
// `blocks` of the first space, then those of the second.
template <class Math, class Out>
__global__ void __launch_bounds__(kThreads, 1)
    map_alphas(const __grid_constant__ Spaces<Out> spaces, Plan plan, unsigned blocks) {
  const unsigned space = blockIdx.x / blocks;
  map_cells<Math>(spaces.pairs[space], plan, blockIdx.x % blocks, Alpha<typename Math::T>{}, spaces.out[space]);
}

constexpr const char* kSparsePooling = "the pooling is sparse";
constexpr const char* kNotResident = "features whose cells do not fit shared memory must be packed first";

// Calls f(Math()) with the math policy of gemm_tile.cuh.
template <class F>
const char* with_math(const PairsParams& p, F f) {
  switch (p.dtype) {
    case DType::float32: return p.tf32 ? f(TensorCore<float>()) : f(Exact<float>());
    case DType::bfloat16: return f(TensorCore<BFloat16>());
    case DType::float16: return f(TensorCore<__half>());
    default: return f(Exact<double>());
  }
}

// Element type of a matrix.
template <class Math, class OfBFloat16>
using InMatrix = std::conditional_t<std::is_same_v<typename Math::Stored, BFloat16>, OfBFloat16, typename Math::T>;

}  // namespace

const char* pool_forward(const PoolParams& p, void* stream) {
  return with_math(p.pairs, [&](auto math) {
    using Math = decltype(math);
    using T = typename Math::T;
    using Cached = std::conditional_t<sizeof(typename Math::Stored) == 2, Cosine16, T>;
    const Plan plan = Engine<Math>::plan(p.pairs, this_device(), 1);
    if (p.pairs.features && !plan.resident) return kNotResident;
    with_pooling<T, T>(p.pooling, p.parameters, p.pairs.cells, [&](auto pool) {
      SSL_FAST_LAUNCH_SHARED((pool_scores<Math, Cached, decltype(pool)>), plan.blocks, kThreads, plan.shared, stream,
                             p.pairs, plan, pool, p.scores, p.residual, static_cast<Cached*>(p.cached),
                             p.cached_images);
    });
    return last_error();
  });
}

const char* pool_slopes(const PoolParams& p, void* stream) {
  return with_math(p.pairs, [&](auto math) {
    using Math = decltype(math);
    using T = typename Math::T;
    using Out = InMatrix<Math, BFloat16>;
    const Plan plan = Engine<Math>::plan(p.pairs, this_device(), 1);
    return with_pooling<T, T>(p.pooling, p.parameters, p.pairs.cells, [&](auto pool) -> const char* {
      if constexpr (decltype(pool)::kSparse) {
        return kSparsePooling;
      } else {
        using F = Slope<decltype(pool), T>;
        const F f{pool, static_cast<const T*>(p.scores), static_cast<const T*>(p.residual),
                  static_cast<const T*>(p.grad_scores)};
        SSL_FAST_LAUNCH_SHARED((map_slopes<Math, Out, F>), plan.blocks, kThreads, plan.shared, stream, p.pairs, plan, f,
                               static_cast<Out*>(p.slopes));
        return last_error();
      }
    });
  });
}

const char* cached_slopes(const PoolParams& p, void* stream) {
  return with_math(p.pairs, [&](auto math) {
    using Math = decltype(math);
    using T = typename Math::T;
    using In = std::conditional_t<sizeof(typename Math::Stored) == 2, Cosine16, T>;
    using Out = InMatrix<Math, BFloat16>;
    return with_pooling<T, T>(p.pooling, p.parameters, p.pairs.cells, [&](auto pool) -> const char* {
      if constexpr (decltype(pool)::kSparse) {
        return kSparsePooling;
      } else {
        using F = Slope<decltype(pool), T>;
        const F f{pool, static_cast<const T*>(p.scores), static_cast<const T*>(p.residual),
                  static_cast<const T*>(p.grad_scores)};
        const int64_t groups = stride_of(p.pairs.audios) / 8, parts = (groups + kWarpSize - 1) / kWarpSize;
        SSL_FAST_LAUNCH((slopes_of_cached<In, Out, T, F>), p.pairs.images * parts, kThreads, stream, p.pairs, f,
                        static_cast<const In*>(p.cached), static_cast<Out*>(p.slopes));
        return last_error();
      }
    });
  });
}

const char* alphas(const PairsParams* pairs, void* const* out, int count, void* stream) {
  return with_math(pairs[0], [&](auto math) {
    using Math = decltype(math);
    using Out = InMatrix<Math, Cosine16>;
    const Plan plan = Engine<Math>::plan(pairs[0], this_device(), count);
    Spaces<Out> spaces{};
    for (int i = 0; i < count; ++i) {
      if (pairs[i].features && !plan.resident) return kNotResident;
      spaces.pairs[i] = pairs[i], spaces.out[i] = static_cast<Out*>(out[i]);
    }
    SSL_FAST_LAUNCH_SHARED((map_alphas<Math, Out>), plan.blocks, kThreads, plan.shared, stream, spaces, plan,
                           unsigned(plan.blocks / count));
    return last_error();
  });
}

Plan plan_of(const PairsParams& p, const Device* device) {
  Plan plan{};
  with_math(p, [&](auto math) {
    plan = Engine<decltype(math)>::plan(p, device ? *device : this_device(), 1);
    return nullptr;
  });
  return plan;
}

int64_t good_chunk(PairsParams p, int64_t most, int spaces) {
  const Device device = this_device();
  int64_t good = most, time = INT64_MAX;  // of `good` images
  with_math(p, [&](auto math) {
    for (int64_t images = most; images > most / 2; images -= 1 + most / 1024) {
      p.images = images;
      const int64_t of_these = Engine<decltype(math)>::plan(p, device, spaces).time;
      if (time == INT64_MAX || of_these * good < time * images) good = images, time = of_these;
    }
    return nullptr;
  });
  return good;
}

}  // namespace ssl_fast::cuda
