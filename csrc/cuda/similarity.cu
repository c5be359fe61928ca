// Epilogues of the GEMM of gemm_tile.cuh, whose tiles are alpha[n, m, p] = dot / (|v[n, p]| |a[m]|) for all pairs:
//
//   pool_scores   S[n, m] = pooling of alpha[n, m, :], and the residual that its backward pass needs
//   map_cells     out[n p, m] = slope: g[n, m] dS/dalpha[n, m, p] / (|v| |a|), which torch.mm multiplies with the
//   features;
//                 or alpha itself, for the product of SLAVC
//
//   Inputs   packed audios (M, K) and cells (N * P, K); inverse norms real (M), (N * P); g and S real (N, M)
//   Output   S, residual (N, M), real or int32; matrices (N * P, M padded to 8), 16 bits of bfloat16 features, else
//   real Launch   that of gemm_tile.cuh: 256 threads, plan.blocks CTAs, plan.shared bytes
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

template <class Math, class Pool>
__global__ void __launch_bounds__(kThreads, 1)
    pool_scores(PairsParams p, Plan plan, Pool pool, void* scores, void* residual) {
  using E = Engine<Math>;
  using T = typename E::T;
  using State = typename Pool::State;
  static_assert(sizeof(State) <= E::kScratchBytes);
  SSL_FAST_SHARED_BYTES(shared);
  E engine(p, plan, shared);
  State* partial = reinterpret_cast<State*>(engine.scratch);  // [warp of the group][audio of the tile]
  State total{};                                              // of an audio, over the tiles of an image
  engine.run([&](int64_t n, int cell, int low, int high, bool last) {
    T audio_norm[E::kThreadAudios];
    State states[E::kThreadAudios]{};  // of this tile: shorter sums, less rounding error
    for (int r = 0; r < E::kThreadAudios; ++r)
      audio_norm[r] = norm_at<T>(p.audio_norm, engine.first_audio + engine.audio(r), p.audios);
    engine.for_columns(low, high, [&](int ni, int j, int column) {
      const int here = cell + column - low;
      const T norm = static_cast<const T*>(p.cell_norm)[n * p.cells + here];
      for (int r = 0; r < E::kThreadAudios; ++r)
        pool.absorb(states[r], rounded_product(engine.at(r, ni, j), audio_norm[r] * norm), here);
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
__global__ void __launch_bounds__(kThreads, 1) map_cells(PairsParams p, Plan plan, F f, Out* out) {
  using E = Engine<Math>;
  using T = typename E::T;
  SSL_FAST_SHARED_BYTES(shared);
  E engine(p, plan, shared);
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
    engine.for_columns(low, high, [&](int ni, int j, int column) {
      const int64_t row = n * p.cells + cell + column - low;
      const T cell_norm = static_cast<const T*>(p.cell_norm)[row];
      AlignedVector<Out, E::kThreadAudios> values;
      for (int r = 0; r < E::kThreadAudios; ++r) {
        const T scale = audio_norm[r] * cell_norm;
        put(&values.at[r], f(rounded_product(engine.at(r, ni, j), scale), pairs[r], scale));
      }
      *reinterpret_cast<AlignedVector<Out, E::kThreadAudios>*>(out + row * stride + first) = values;
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
template <class T>
struct Alpha {
  struct Pair {};
  __device__ Pair pair(int64_t) const { return {}; }
  __device__ T operator()(T alpha, Pair, T) const { return alpha; }
};

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
    const Plan plan = Engine<Math>::plan(p.pairs, this_device());
    with_pooling<T, T>(p.pooling, p.parameters, p.pairs.cells, [&](auto pool) {
      SSL_FAST_LAUNCH_SHARED((pool_scores<Math, decltype(pool)>), plan.blocks, kThreads, plan.shared, stream, p.pairs,
                             plan, pool, p.scores, p.residual);
    });
    return last_error();
  });
}

const char* pool_slopes(const PoolParams& p, void* stream) {
  return with_math(p.pairs, [&](auto math) {
    using Math = decltype(math);
    using T = typename Math::T;
    using Out = InMatrix<Math, BFloat16>;
    const Plan plan = Engine<Math>::plan(p.pairs, this_device());
    return with_pooling<T, T>(p.pooling, p.parameters, p.pairs.cells, [&](auto pool) -> const char* {
      if constexpr (decltype(pool)::kSparse) {
        return "the pooling is sparse";
      } else {
        using F = Slope<decltype(pool), T>;
        F f{pool, static_cast<const T*>(p.scores), static_cast<const T*>(p.residual),
            static_cast<const T*>(p.grad_scores)};
        SSL_FAST_LAUNCH_SHARED((map_cells<Math, Out, F>), plan.blocks, kThreads, plan.shared, stream, p.pairs, plan, f,
                               static_cast<Out*>(p.slopes));
        return last_error();
      }
    });
  });
}

const char* alphas(const PairsParams& p, void* out, void* stream) {
  return with_math(p, [&](auto math) {
    using Math = decltype(math);
    using T = typename Math::T;
    using Out = InMatrix<Math, Cosine16>;
    const Plan plan = Engine<Math>::plan(p, this_device());
    SSL_FAST_LAUNCH_SHARED((map_cells<Math, Out, Alpha<T>>), plan.blocks, kThreads, plan.shared, stream, p, plan,
                           Alpha<T>{}, static_cast<Out*>(out));
    return last_error();
  });
}

Plan plan_of(const PairsParams& p, const Device* device) {
  Plan plan{};
  with_math(p, [&](auto math) {
    plan = Engine<decltype(math)>::plan(p, device ? *device : this_device());
    return nullptr;
  });
  return plan;
}

int64_t good_chunk(PairsParams p, int64_t most) {
  const Device device = this_device();
  int64_t good = most, time = INT64_MAX;  // of `good` images
  with_math(p, [&](auto math) {
    for (int64_t images = most; images > most / 2; images -= 1 + most / 1024) {
      p.images = images;
      const int64_t of_these = Engine<decltype(math)>::plan(p, device).time;
      if (time == INT64_MAX || of_these * good < time * images) good = images, time = of_these;
    }
    return nullptr;
  });
  return good;
}

}  // namespace ssl_fast::cuda
