// Evaluation kernel: low-resolution maps to counts of pixels, without up-sampled maps in memory.
//
//   pixel[y, x]   = sum_i,j rows.weight[y, i] columns.weight[x, j] low[i, j]    float64, rounded once to float32
//   prediction    = pixels above a value, or from the pixel of a given rank on (order statistic), by each rule
//   hit, outside  = weight of the ground truth under a prediction, and predicted pixels without ground truth
//   shared[j, k]  = pixels above `value` in both of maps j and k
//
//   low (images, maps, cell rows, cell columns) float32; truth (images, rows, columns) float32, or bytes 0 and 1
//   results (images, rules), (images), (images, maps, maps)
//
// Threads take contiguous ranges of images; scratch of a thread is one up-sampled map. Predictions and ground truth are
// bitmaps of 64 pixels a word: SIMD compares write them, popcounts count them.
#include "gemm_tile.h"
#include "kernel_table.h"
#include "threads.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

// Fibonacci numbers: a lattice that samples the map most evenly.
constexpr int kSamples = 144, kStep = 89;
// Padding of the last word: above no threshold.
constexpr float kPadding = -__builtin_inff();

typedef float Narrow __attribute__((vector_size(kVectorBytes / 2)));
typedef float NarrowUnaligned __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));

// Scratch of one thread.
struct MapScratch {
  double* rows;  // (cell rows, width): the map up-sampled along its rows, each padded to whole vectors
  float *pixels, *candidates, *samples;
  uint64_t *truth, *predicted, *above;  // (words), (words), (maps, words)
  int64_t width, words;

  void allocate(Workspace& workspace, const MapShape& s) {
    width = round_up(s.columns, kLanes<double>), words = (s.rows * s.columns + 63) / 64;
    rows = workspace.take<double>(s.cell_rows * width);
    pixels = workspace.take<float>(64 * words + width);
    candidates = workspace.take<float>(64 * words + kLanes<float>);
    samples = workspace.take<float>(kSamples);
    truth = workspace.take<uint64_t>(words);
    predicted = workspace.take<uint64_t>(words);
    above = workspace.take<uint64_t>(s.maps * words);
  }
};

// ---- up-sampling: in float64, rounded once ----
// Where rounding in float64 leaves a value outside the range of its float32 cells, rounding to float32 brings it back.

// kTaps: number of taps along both axes, where it is known at compile time; else 0.
template <int kTaps>
void upsample_by(const MapShape& s, const float* low, const Resize& resize, const MapScratch& map) {
  const int64_t width = map.width, columns = s.columns, rows = s.rows;
  const int64_t taps = kTaps ? kTaps : resize.columns.taps, down = kTaps ? kTaps : resize.rows.taps;
  for (int64_t x = 0; x < columns; ++x) {
    const double* weight = resize.columns.weight + x * taps;
    const float* from = low + resize.columns.first[x];
    double* out = map.rows + x;
    for (int64_t r = 0; r < s.cell_rows; ++r, from += s.cell_columns, out += width) {
      double sum = 0;
      for (int64_t j = 0; j < taps; ++j) sum += weight[j] * from[j];
      *out = sum;
    }
  }
  float* out = map.pixels;
  for (int64_t y = 0; y < rows; ++y, out += columns) {
    const double *weight = resize.rows.weight + y * down, *from = map.rows + resize.rows.first[y] * width;
    for (int64_t x = 0; x < columns; x += kLanes<double>) {
      Vec<double> sum = {};
      for (int64_t j = 0; j < down; ++j) sum += load(from + j * width + x) * weight[j];
      // a row's last vector may run into the next row, which is written later
      *reinterpret_cast<NarrowUnaligned*>(out + x) = __builtin_convertvector(sum, Narrow);
    }
  }
  for (int64_t i = rows * columns; i < 64 * map.words; ++i) map.pixels[i] = kPadding;
}

void upsample(const MapShape& s, const float* low, const Resize& resize, const MapScratch& map) {
  int64_t taps = resize.columns.taps == resize.rows.taps ? resize.rows.taps : 0;
  (taps == 2 ? upsample_by<2> : taps == 4 ? upsample_by<4> : upsample_by<0>)(s, low, resize, map);
}

// ---- bitmaps of pixels ----

// Compare mask, a bit for each lane: x > edge, or with kOrEqual x >= edge.
template <bool kOrEqual>
SSL_FAST_ALWAYS_INLINE uint64_t bits_above(Vec<float> x, Vec<float> edge) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)edge, kOrEqual ? _CMP_GE_OQ : _CMP_GT_OQ);
#else
  Vec<int32_t> mask = kOrEqual ? (Vec<int32_t>)(x >= edge) : (Vec<int32_t>)(x > edge);
#if defined(__AVX2__)
  return uint8_t(_mm256_movemask_ps((__m256)mask));
#else
  uint64_t bits = 0;
  for (int i = 0; i < kLanes<float>; ++i) bits |= uint64_t(mask[i] & 1) << i;
  return bits;
#endif
#endif
}

template <bool kOrEqual>
SSL_FAST_ALWAYS_INLINE uint64_t word_above(const float* pixels, Vec<float> edge) {
  uint64_t word = 0;
  for (int i = 0; i < 64; i += kLanes<float>) word |= bits_above<kOrEqual>(load(pixels + i), edge) << i;
  return word;
}
void threshold(const float* pixels, int64_t words, float value, bool or_equal, uint64_t* out) {
  Vec<float> edge = broadcast(value);
  for (int64_t w = 0; w < words; ++w)
    out[w] = or_equal ? word_above<true>(pixels + 64 * w, edge) : word_above<false>(pixels + 64 * w, edge);
}
int64_t popcount(const uint64_t* bitmap, int64_t words) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(bitmap[w]);
  return count;
}
int64_t popcount_and(const uint64_t* a, const uint64_t* b, int64_t words) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(a[w] & b[w]);
  return count;
}

// ---- order statistic ----

// From the bits of a float to an integer in the same order, and back: it is its own inverse.
int32_t ordered(int32_t bits) { return bits < 0 ? bits ^ 0x7fffffff : bits; }
int32_t key_of(float x) {
  int32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return ordered(bits);
}
float value_of(int32_t key) {
  int32_t bits = ordered(key);
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

// Number of values >= edge.
int64_t count_at_least(const float* values, int64_t padded, float edge) {
  Vec<int32_t> count = {};
  for (int64_t i = 0; i < padded; i += kLanes<float>) count -= (Vec<int32_t>)(load(values + i) >= edge);
  int64_t sum = 0;
  for (int i = 0; i < kLanes<float>; ++i) sum += count[i];
  return sum;
}

// The smallest value >= edge.
float min_at_least(const float* values, int64_t padded, float edge) {
  Vec<float> least = broadcast(__builtin_inff());
  for (int64_t i = 0; i < padded; i += kLanes<float>) {
    Vec<float> x = load(values + i);
    least = select(x >= edge, select(x < least, x, least), least);
  }
  return -max_lanes<float>(-least);
}

// Sorted pixels from a lattice over the map, which bracket any order statistic. A sample's index is the number of
// samples below it, or equal and before it: vectorised compares instead of branches that mispredict.
void draw_samples(const MapShape& s, const MapScratch& map) {
  float drawn[kSamples];
  for (int64_t i = 0; i < kSamples; ++i)
    drawn[i] = map.pixels[i * s.rows / kSamples * s.columns + i * kStep % kSamples * s.columns / kSamples];
  for (int i = 0; i < kSamples; ++i) {
    int index = 0;
    for (int j = 0; j < i; ++j) index += drawn[j] <= drawn[i];
    for (int j = i; j < kSamples; ++j) index += drawn[j] < drawn[i];
    map.samples[index] = drawn[i];
  }
}

// The `rank`-th largest pixel, 1 <= rank <= pixels. The pixels between two samples that bracket it are compressed into
// `candidates`; then the integer keys of floats are bisected.
float order_statistic(const MapScratch& map, int64_t pixels, int64_t rank) {
  constexpr int L = kLanes<float>;
  int64_t centre = (pixels - rank) * kSamples / pixels;
  for (int64_t reach = 4;; reach *= 4) {
    float low = centre - reach < 0 ? -__FLT_MAX__ : map.samples[centre - reach];
    float high = centre + reach >= kSamples ? __FLT_MAX__ : map.samples[centre + reach];
    int64_t over = 0;
    float* out = map.candidates;
    Vec<float> lower = broadcast(low), upper = broadcast(high);
    for (int64_t w = 0; w < map.words; ++w) {
      const float* from = map.pixels + 64 * w;
      uint64_t higher = word_above<false>(from, upper), inside = word_above<true>(from, lower) & ~higher;
      over += __builtin_popcountll(higher);
      if (!inside) continue;
#if defined(__AVX512F__)
      for (int i = 0; i < 64; i += L) {
        __mmask16 lanes = __mmask16(inside >> i);
        _mm512_storeu_ps(out, _mm512_maskz_compress_ps(lanes, (__m512)load(from + i)));
        out += __builtin_popcount(lanes);
      }
#else
      for (; inside; inside &= inside - 1) *out++ = from[__builtin_ctzll(inside)];
#endif
    }
    int64_t found = out - map.candidates;
    if (over >= rank || over + found < rank) continue;
    int64_t padded = round_up(found, L);
    for (int64_t i = found; i < padded; ++i) map.candidates[i] = kPadding;
    int64_t least = key_of(low), most = key_of(high);  // the answer's key is among these
    for (double at_least = over + found, at_most = over; least < most;) {
      // regula falsi, where a straight line between the counts at both ends meets the rank, clamped to [1/8, 7/8]
      double share = (at_least - rank + .5) / (at_least - at_most + 1);
      int64_t width = most - least, step = int64_t(share * width);
      int64_t middle = least + (step < width / 8 ? width / 8 : step > width - width / 8 ? width - width / 8 : step) + 1;
      middle = middle > most ? most : middle;
      float edge = value_of(int32_t(middle));
      int64_t count = over + count_at_least(map.candidates, padded, edge);
      if (count == rank) return min_at_least(map.candidates, padded, edge);
      if (count > rank)
        least = middle, at_least = count;
      else
        most = middle - 1, at_most = count;
    }
    return value_of(int32_t(least));
  }
}

// ---- rules ----

// The prediction by a rule.
void apply_rule(const MapScratch& map, int64_t pixels, const MapRule& rule, int64_t objects, uint64_t* out) {
  if (rule.kind == RuleKind::value)
    return threshold(map.pixels, map.words, rule.value, rule.comparison == Comparison::at_least, out);
  int64_t rank = rule.kind == RuleKind::truth && objects ? objects : rule.count;
  float edge = order_statistic(map, pixels, rank);
  threshold(map.pixels, map.words, edge, rule.comparison != Comparison::above, out);
  int64_t reached = popcount(out, map.words);
  if (rule.comparison != Comparison::exact || reached == rank) return;
  // too many: of the equal ones the first in row-major order; all of a constant map
  threshold(map.pixels, map.words, edge, false, out);
  int64_t left = rank - popcount(out, map.words);
  if (left == rank && reached == pixels) left = pixels;
  for (int64_t i = 0; left > 0; ++i)
    if (map.pixels[i] == edge) out[i / 64] |= uint64_t(1) << (i % 64), --left;
}

// ---- ground truth ----

struct GroundTruth {
  double weight;    // sum of weights
  int64_t objects;  // pixels
  bool binary;      // all weights are 0 or 1
  bool valid;       // all weights are within [0, 1]
};

// Calls word(w, pixels 64 w ... 64 w + 63) for all words; the last one is padded with zeros.
template <class T, class Word>
SSL_FAST_ALWAYS_INLINE void for_words(const T* truth, int64_t pixels, Word word) {
  for (int64_t w = 0; w < pixels / 64; ++w) word(w, truth + 64 * w);
  T last[64] = {};
  for (int64_t i = pixels / 64 * 64; i < pixels; ++i) last[i % 64] = truth[i];
  if (pixels % 64) word(pixels / 64, static_cast<const T*>(last));
}

GroundTruth read_truth(const uint8_t* truth, int64_t pixels, MapScratch& map) {  // bytes 0 and 1
  for_words(truth, pixels, [&](int64_t w, const uint8_t* from) __attribute__((always_inline)) {
#if defined(__AVX512BW__)
    map.truth[w] = _mm512_test_epi8_mask(_mm512_loadu_si512(from), _mm512_set1_epi8(1));
#else
    uint64_t word = 0;
    for (int i = 0; i < 64; i += 8) {
      uint64_t bytes;  // the product brings the lowest bit of each byte into the highest byte
      __builtin_memcpy(&bytes, from + i, 8);
      word |= (bytes * 0x0102040810204080u >> 56) << i;
    }
    map.truth[w] = word;
#endif
  });
  int64_t objects = popcount(map.truth, map.words);
  return {double(objects), objects, true, true};
}
GroundTruth read_truth(const float* truth, int64_t pixels, MapScratch& map) {
  uint64_t between = 0, wrong = 0;
  Vec<float> zero = {}, one = broadcast(1.f);
  for_words(truth, pixels, [&](int64_t w, const float* from) __attribute__((always_inline)) {
    map.truth[w] = word_above<false>(from, zero);
    between |= map.truth[w] & ~word_above<true>(from, one);
    wrong |= ~word_above<true>(from, zero) | word_above<false>(from, one);
  });
  GroundTruth found{0, popcount(map.truth, map.words), !between, !wrong};
  found.weight = double(found.objects);
  if (between) {
    found.weight = 0;
    for (int64_t i = 0; i < pixels; ++i) found.weight += truth[i];
  }
  return found;
}

void one_image(const MapParams& p, int64_t n, MapScratch& map) {
  const MapShape& s = p.shape;
  int64_t pixels = s.rows * s.columns, cells = s.cell_rows * s.cell_columns;
  const float* weights = static_cast<const float*>(p.truth) + n * pixels;
  GroundTruth truth = p.bytes ? read_truth(static_cast<const uint8_t*>(p.truth) + n * pixels, pixels, map)
                              : read_truth(weights, pixels, map);
  p.weight[n] = truth.weight, p.objects[n] = truth.valid ? truth.objects : -1;
  if (!truth.valid) return;
  for (int64_t k = 0; k < (p.shared ? s.maps : 1); ++k) {
    upsample(s, p.low + (n * s.maps + k) * cells, p.resize[k > 0], map);
    if (p.shared) threshold(map.pixels, map.words, p.value, false, map.above + k * map.words);
    if (k) continue;
    draw_samples(s, map);
    for (int64_t r = 0; r < p.rules; ++r) {
      apply_rule(map, pixels, p.rule[r], truth.objects, map.predicted);
      int64_t inside = popcount_and(map.predicted, map.truth, map.words);
      double hit = inside;
      if (!truth.binary) {
        hit = 0;
        for (int64_t w = 0; w < map.words; ++w)
          for (uint64_t both = map.predicted[w] & map.truth[w]; both; both &= both - 1)
            hit += weights[64 * w + __builtin_ctzll(both)];
      }
      p.hit[n * p.rules + r] = hit;
      p.outside[n * p.rules + r] = double(popcount(map.predicted, map.words) - inside);
    }
  }
  if (!p.shared) return;
  for (int64_t j = 0; j < s.maps; ++j)
    for (int64_t k = 0; k < s.maps; ++k)
      p.shared[(n * s.maps + j) * s.maps + k] =
          popcount_and(map.above + j * map.words, map.above + k * map.words, map.words);
}

}  // namespace

void map_metrics_kernel(const MapParams& p, Workspace& workspace) {
  MapScratch* maps = workspace.take<MapScratch>(p.threads);
  for (int i = 0; i < p.threads; ++i) maps[i].allocate(workspace, p.shape);
  parallel(p.threads,
           [&] { parallel_for(p.shape.images, [&](int64_t n) { one_image(p, n, maps[omp_get_thread_num()]); }); });
}

}  // namespace ssl_fast::SSL_FAST_ISA
