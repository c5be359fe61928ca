// Evaluation: low-resolution maps to counts of pixels. A thread holds one up-sampled map at a time; predictions and ground
// truth are sets of bits, 64 pixels a word.
#include <omp.h>

#include "engine.h"
#include "tables.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

constexpr int kSamples = 256;
constexpr float kNothing = -__builtin_inff();  // pads the last word: above no threshold

typedef float Narrow __attribute__((vector_size(kVectorBytes / 2)));
typedef float NarrowUnaligned __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));

struct Map {
  double* rows;  // (cell rows, width): the map up-sampled along its rows, each padded to whole vectors
  float *pixels, *candidates, *samples;
  uint64_t *truth, *predicted, *above;  // (words), (words), (maps, words)
  int64_t width, words;
  float lowest, highest;

  void lay_out(Arena& arena, const MapShape& s) {
    width = round_up(s.columns, kLanes<double>), words = (s.rows * s.columns + 63) / 64;
    rows = arena.take<double>(s.cell_rows * width);
    pixels = arena.take<float>(64 * words + width);
    candidates = arena.take<float>(64 * words + kLanes<float>);
    samples = arena.take<float>(kSamples);
    truth = arena.take<uint64_t>(words);
    predicted = arena.take<uint64_t>(words);
    above = arena.take<uint64_t>(s.maps * words);
  }
};

// ---- up-sampling: in float64, rounded once ----

void upsample(const MapShape& s, const float* low, const Resize& resize, Map& map) {
  constexpr int L = kLanes<double>;
  using V = Vec<double>;
  double floor = low[0], ceiling = low[0];
  for (int64_t i = 1; i < s.cell_rows * s.cell_columns; ++i) {
    floor = low[i] < floor ? low[i] : floor;
    ceiling = low[i] > ceiling ? low[i] : ceiling;
  }
  for (int64_t r = 0; r < s.cell_rows; ++r)
    for (int64_t x = 0; x < map.width; ++x) {
      double sum = 0;
      if (x < s.columns)
        for (int64_t j = 0; j < resize.columns.taps; ++j)
          sum += resize.columns.weight[x * resize.columns.taps + j] * low[r * s.cell_columns + resize.columns.first[x] + j];
      map.rows[r * map.width + x] = sum;
    }
  V least = broadcast(__builtin_inf()), most = -least;
  for (int64_t y = 0; y < s.rows; ++y) {
    const double* weight = resize.rows.weight + y * resize.rows.taps;
    for (int64_t x = 0; x < s.columns; x += L) {
      const double* from = map.rows + resize.rows.first[y] * map.width + x;
      V sum = {};
      for (int64_t j = 0; j < resize.rows.taps; ++j) sum += load(from + j * map.width) * weight[j];
      if (resize.clip) {  // rounding may leave the range by an ulp
        sum = select(sum < floor, broadcast(floor), sum);
        sum = select(sum > ceiling, broadcast(ceiling), sum);
      }
      if (x + L > s.columns)
        for (int64_t i = s.columns - x; i < L; ++i) sum[i] = sum[0];  // not a pixel: must not count as an extreme
      least = select(sum < least, sum, least);
      most = select(sum > most, sum, most);
      // a row's last vector may run into the next row, which is written later
      *reinterpret_cast<NarrowUnaligned*>(map.pixels + y * s.columns + x) = __builtin_convertvector(sum, Narrow);
    }
  }
  for (int64_t i = s.rows * s.columns; i < 64 * map.words; ++i) map.pixels[i] = kNothing;
  map.lowest = -float(max_lanes<double>(-least)), map.highest = float(max_lanes<double>(most));
}

// ---- sets of pixels ----

// One bit for each lane: x > edge, or with kFrom x >= edge.
template <bool kFrom>
SSL_FAST_AI uint64_t bits_above(Vec<float> x, Vec<float> edge) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)edge, kFrom ? _CMP_GE_OQ : _CMP_GT_OQ);
#else
  Vec<int32_t> mask = kFrom ? (Vec<int32_t>)(x >= edge) : (Vec<int32_t>)(x > edge);
#if defined(__AVX2__)
  return uint8_t(_mm256_movemask_ps((__m256)mask));
#else
  uint64_t bits = 0;
  for (int i = 0; i < kLanes<float>; ++i) bits |= uint64_t(mask[i] & 1) << i;
  return bits;
#endif
#endif
}

template <bool kFrom>
SSL_FAST_AI uint64_t word_above(const float* pixels, Vec<float> edge) {
  uint64_t word = 0;
  for (int i = 0; i < 64; i += kLanes<float>) word |= bits_above<kFrom>(load(pixels + i), edge) << i;
  return word;
}
void set_above(const float* pixels, int64_t words, float value, bool from, uint64_t* out) {
  Vec<float> edge = broadcast(value);
  for (int64_t w = 0; w < words; ++w)
    out[w] = from ? word_above<true>(pixels + 64 * w, edge) : word_above<false>(pixels + 64 * w, edge);
}
int64_t size_of(const uint64_t* set, int64_t words) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(set[w]);
  return count;
}
int64_t shared_size(const uint64_t* a, const uint64_t* b, int64_t words) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(a[w] & b[w]);
  return count;
}

// ---- order statistic ----

// Floats in the order of these integers; its own inverse.
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

int64_t count_from(const float* values, int64_t padded, float edge) {  // values >= edge
  Vec<int32_t> count = {};
  for (int64_t i = 0; i < padded; i += kLanes<float>) count -= (Vec<int32_t>)(load(values + i) >= edge);
  int64_t sum = 0;
  for (int i = 0; i < kLanes<float>; ++i) sum += count[i];
  return sum;
}

float smallest_from(const float* values, int64_t padded, float edge) {
  Vec<float> least = broadcast(__builtin_inff());
  for (int64_t i = 0; i < padded; i += kLanes<float>) {
    Vec<float> x = load(values + i);
    least = select(x >= edge, select(x < least, x, least), least);
  }
  return -max_lanes<float>(-least);
}

// Sorted pixels from all over the map (each from another column), which bracket any order statistic.
void draw_samples(const Map& map, int64_t pixels) {
  int64_t stride = pixels / kSamples;
  for (int i = 0; i < kSamples; ++i)
    map.samples[i] = stride ? map.pixels[i * stride + i * 37 % stride] : map.pixels[i % pixels];
  constexpr int kGaps[] = {57, 23, 10, 4, 1};
  for (int gap : kGaps)
    for (int i = gap; i < kSamples; ++i) {
      float value = map.samples[i];
      int j = i;
      for (; j >= gap && map.samples[j - gap] > value; j -= gap) map.samples[j] = map.samples[j - gap];
      map.samples[j] = value;
    }
}

// The `rank`-th largest pixel, 1 <= rank <= pixels: pixels between two samples are collected, then their values bisected.
float largest(const Map& map, int64_t pixels, int64_t rank) {
  constexpr int L = kLanes<float>;
  int64_t centre = (pixels - rank) * kSamples / pixels;
  for (int64_t reach = 8;; reach *= 4) {
    float low = centre - reach < 0 ? map.lowest : map.samples[centre - reach];
    float high = centre + reach >= kSamples ? map.highest : map.samples[centre + reach];
    int64_t over = 0, found = 0;
    const float* pixel = map.pixels;
    float* out = map.candidates;
    Vec<float> lower = broadcast(low), upper = broadcast(high);
    for (const float* end = pixel + 64 * map.words; pixel < end; pixel += L) {
      Vec<float> x = load(pixel);
      uint64_t higher = bits_above<false>(x, upper), inside = bits_above<true>(x, lower) & ~higher;
      over += __builtin_popcountll(higher);
#if defined(__AVX512F__)
      _mm512_storeu_ps(out, _mm512_maskz_compress_ps(__mmask16(inside), (__m512)x));
      out += __builtin_popcountll(inside);
#else
      for (; inside; inside &= inside - 1) *out++ = pixel[__builtin_ctzll(inside)];
#endif
    }
    found = out - map.candidates;
    if (over >= rank || over + found < rank) continue;
    int64_t padded = round_up(found, L);
    for (int64_t i = found; i < padded; ++i) map.candidates[i] = kNothing;
    int64_t least = key_of(low), most = key_of(high);  // the answer's key is among these
    for (double at_least = over + found, at_most = over; least < most;) {
      // where a straight line between the counts at both ends meets the rank; the middle, where that gains little
      double share = (at_least - rank + .5) / (at_least - at_most + 1);
      int64_t width = most - least, step = int64_t(share * width);
      int64_t middle = least + (step < width / 8 ? width / 8 : step > width - width / 8 ? width - width / 8 : step) + 1;
      middle = middle > most ? most : middle;
      float edge = value_of(int32_t(middle));
      int64_t count = over + count_from(map.candidates, padded, edge);
      if (count == rank) return smallest_from(map.candidates, padded, edge);
      if (count > rank)
        least = middle, at_least = count;
      else
        most = middle - 1, at_most = count;
    }
    return value_of(int32_t(least));
  }
}

// ---- rules ----

// The set that a rule predicts.
void predict(const Map& map, int64_t pixels, const MapRule& rule, int64_t objects, uint64_t* out) {
  if (rule.kind == RuleKind::value)
    return set_above(map.pixels, map.words, rule.value, rule.comparison == Comparison::at_least, out);
  int64_t rank = rule.kind == RuleKind::truth && objects ? objects : rule.count;
  bool exact = rule.comparison == Comparison::exact;
  float edge = exact && map.lowest == map.highest ? map.lowest : largest(map, pixels, rank);
  set_above(map.pixels, map.words, edge, rule.comparison != Comparison::above, out);
  if (!exact || map.lowest == map.highest || size_of(out, map.words) == rank) return;
  int64_t left = rank;  // too many equal ones: the first of them in row-major order
  set_above(map.pixels, map.words, edge, false, out);
  left -= size_of(out, map.words);
  for (int64_t i = 0; left > 0; ++i)
    if (map.pixels[i] == edge) out[i / 64] |= uint64_t(1) << (i % 64), --left;
}

// Bits of the ground truth, its pixels (-1 where a weight is not within [0, 1]) and its weight; whether all weights are
// 0 or 1.
bool set_truth(const float* truth, int64_t pixels, Map& map, double& weight, int64_t& objects) {
  constexpr int L = kLanes<float>;
  uint64_t between = 0, valid = ~uint64_t(0) >> (64 - L);
  float last[64] = {};
  for (int64_t w = 0; w < map.words; ++w) {
    const float* from = truth + 64 * w;
    if (64 * (w + 1) > pixels) {
      for (int64_t i = 64 * w; i < pixels; ++i) last[i % 64] = truth[i];
      from = last;
    }
    map.truth[w] = word_above<false>(from, Vec<float>{});
    between |= map.truth[w] & ~word_above<true>(from, broadcast(1.f));
    for (int i = 0; i < 64; i += L) {
      Vec<float> g = load(from + i);
      valid &= bits_above<true>(g, Vec<float>{}) & bits_above<true>(broadcast(1.f), g);
    }
  }
  weight = objects = size_of(map.truth, map.words);
  if (between) {
    weight = 0;
    for (int64_t i = 0; i < pixels; ++i) weight += truth[i];
  }
  if (valid != ~uint64_t(0) >> (64 - L)) objects = -1;
  return !between;
}

void one_image(const MapParams& p, int64_t n, Map& map) {
  const MapShape& s = p.shape;
  int64_t pixels = s.rows * s.columns, cells = s.cell_rows * s.cell_columns, objects;
  const float* truth = p.truth + n * pixels;
  bool binary = set_truth(truth, pixels, map, p.weight[n], objects);
  p.objects[n] = objects;
  if (objects < 0) return;
  for (int64_t k = 0; k < (p.shared ? s.maps : 1); ++k) {
    upsample(s, p.low + (n * s.maps + k) * cells, p.resize[k > 0], map);
    if (p.shared) set_above(map.pixels, map.words, p.value, false, map.above + k * map.words);
    if (k) continue;
    draw_samples(map, pixels);
    for (int64_t r = 0; r < p.rules; ++r) {
      predict(map, pixels, p.rule[r], objects, map.predicted);
      int64_t inside = shared_size(map.predicted, map.truth, map.words);
      double hit = inside;
      if (!binary) {
        hit = 0;
        for (int64_t w = 0; w < map.words; ++w)
          for (uint64_t both = map.predicted[w] & map.truth[w]; both; both &= both - 1)
            hit += truth[64 * w + __builtin_ctzll(both)];
      }
      p.hit[n * p.rules + r] = hit;
      p.outside[n * p.rules + r] = double(size_of(map.predicted, map.words) - inside);
    }
  }
  if (!p.shared) return;
  for (int64_t j = 0; j < s.maps; ++j)
    for (int64_t k = 0; k < s.maps; ++k)
      p.shared[(n * s.maps + j) * s.maps + k] =
          shared_size(map.above + j * map.words, map.above + k * map.words, map.words);
}

void run_map_metrics(const MapParams& p, char* workspace, int64_t* bytes) {
  Arena arena{workspace};
  Map* maps = arena.take<Map>(p.threads);
  Map sizes;
  for (int i = 0; i < p.threads; ++i) (workspace ? maps[i] : sizes).lay_out(arena, p.shape);
  if (bytes) return void(*bytes = arena.used);
#pragma omp parallel for schedule(static) num_threads(p.threads)
  for (int64_t n = 0; n < p.shape.images; ++n) one_image(p, n, maps[omp_get_thread_num()]);
}

}  // namespace

const Kernel<MapParams> map_metrics_kernel = make_kernel<MapParams, run_map_metrics>();

}  // namespace ssl_fast::SSL_FAST_ISA
