// The CPU kernels, by their C++ entry points, against double-precision loops: scores of every op and dtype, their
// gradients against finite differences, and counts of the evaluation. Without Python, so that it can be cross-compiled
// and run by an emulator (.ci/aarch64). Exit status: 0 if all agree.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>

#include "../csrc/cpu/isa.h"
#include "../csrc/pooling.h"

using namespace ssl_fast;
using Values = std::vector<double>;

namespace {

constexpr double kEpsilon = .2, kBeta = .1, kTau = .15, kMargin = .1;
constexpr int kThreads = 2;

std::mt19937 generator(1);
int failures = 0, checks = 0;

void check(const std::string& what, double error, double limit) {
  ++checks;
  if (error <= limit) return;  // false for NaN
  ++failures;
  std::printf("FAILED %s: error %.3g, at most %.3g\n", what.c_str(), error, limit);
}

struct Tensor {
  DType dtype;
  int64_t width;
  std::vector<char> bytes;

  Tensor(DType dtype, int64_t size)
      : dtype(dtype),
        width(dtype == DType::float64   ? 8
              : dtype == DType::float32 ? 4
                                        : 2),
        bytes(size * width) {}
  int64_t size() const { return int64_t(bytes.size()) / width; }
  template <class T>
  T at(int64_t i) const {
    T x;
    std::memcpy(&x, bytes.data() + i * width, sizeof(T));
    return x;
  }
  double get(int64_t i) const {
    if (dtype == DType::float64) return at<double>(i);
    if (dtype == DType::float32) return at<float>(i);
    const int bits = at<uint16_t>(i), digits = dtype == DType::float16 ? 10 : 7, bias = digits == 10 ? 15 : 127;
    const int exponent = (bits & 0x7fff) >> digits, fraction = bits & ((1 << digits) - 1);
    const double size =
        std::ldexp(exponent ? fraction + (1 << digits) : fraction, std::max(exponent, 1) - bias - digits);
    return exponent == 2 * bias + 1 ? NAN : bits & 0x8000 ? -size : size;
  }
  // A number that all dtypes can hold.
  void set(int64_t i, double x) {
    const float narrow = float(x);
    uint32_t bits;
    std::memcpy(&bits, &narrow, 4);
    const uint32_t half = x == 0 ? 0 : (bits >> 16 & 0x8000) | (((bits & 0x7fffffff) >> 13) - (112 << 10));
    const uint16_t sixteen = uint16_t(dtype == DType::float16 ? half : bits >> 16);
    const void* from = dtype == DType::float64   ? static_cast<const void*>(&x)
                       : dtype == DType::float32 ? static_cast<const void*>(&narrow)
                                                 : &sixteen;
    std::memcpy(bytes.data() + i * width, from, width);
  }
  Values values() const {
    Values all(size());
    for (int64_t i = 0; i < size(); ++i) all[i] = get(i);
    return all;
  }
};

Tensor random_tensor(DType dtype, int64_t size) {
  Tensor x(dtype, size);
  for (int64_t i = 0; i < size; ++i) x.set(i, (int(generator() % 255) - 127) / 64.);
  return x;
}

// ---- the definitions ----

struct Op {
  const char* name;
  enum Kind { pooling, product, cosine, mean } kind;
  Pooling pool;
  Reduce reduce;
  Instances instances;
  enum Loss { none, rows, rows_and_background } loss = none;  // of the scores, from one pass
};

int64_t positive_of(int64_t n, int64_t audios) { return (3 * n + 1) % audios; }

// Mean over rows of log(1 + sum over the others of exp((s - positive + margin) / tau)); background: one more of each
// row, or empty. columns: plus the same over the first N columns, whose positives are the diagonal.
double cross_entropy(const Values& scores, int64_t rows, int64_t width, const Values& background, double margin,
                     double tau, bool diagonal, bool columns) {
  double loss = 0;
  for (int64_t n = 0; n < rows; ++n) {
    const int64_t y = diagonal ? n : positive_of(n, width);
    const double positive = scores[n * width + y] - margin;
    double sum = background.empty() ? 0 : std::exp((background[n] - positive) / tau), below = 0;
    for (int64_t m = 0; m < width; ++m)
      if (m != y) sum += std::exp((scores[n * width + m] - positive) / tau);
    for (int64_t i = 0; i < rows; ++i)
      if (i != n) below += std::exp((scores[i * width + n] - positive) / tau);
    loss += (std::log1p(sum) + (columns ? std::log1p(below) : 0)) / rows;
  }
  return loss;
}

// alpha[n, m, p]
Values cosines(const Shape& s, const Values& visual, const Values& audio) {
  Values alpha(s.images * s.audios * s.cells);
  auto v = [&](int64_t n, int64_t c, int64_t p) {
    return visual[s.channels_last ? (n * s.cells + p) * s.channels + c : (n * s.channels + c) * s.cells + p];
  };
  for (int64_t n = 0, i = 0; n < s.images; ++n)
    for (int64_t m = 0; m < s.audios; ++m)
      for (int64_t p = 0; p < s.cells; ++p, ++i) {
        double dot = 0, vv = 0, aa = 0;
        for (int64_t c = 0; c < s.channels; ++c) {
          const double a = audio[m * s.channels + c];
          dot += v(n, c, p) * a, vv += v(n, c, p) * v(n, c, p), aa += a * a;
        }
        alpha[i] = dot / std::sqrt(vv * aa);
      }
  return alpha;
}

double pooled(Pooling pool, const double* alpha, int64_t cells) {
  double top = alpha[0], exponentials = 0, weights = 0, weighted = 0;
  for (int64_t p = 0; p < cells; ++p) {
    const double w = 1 / (1 + std::exp((kEpsilon - alpha[p]) / kBeta));
    top = std::max(top, alpha[p]), exponentials += std::exp(alpha[p] / kTau), weights += w, weighted += w * alpha[p];
  }
  if (pool == Pooling::max) return top;
  return pool == Pooling::soft_threshold ? weighted / weights : kTau * std::log(exponentials / cells);
}

// `features`: visual features of all spaces, then audio features.
Values scores_of(const Op& op, const Shape& s, const std::vector<Values>& features) {
  Values out;
  if (op.kind == Op::mean) {  // the cosines with unit vectors along the axes
    Shape axes = s;
    axes.audios = s.channels;
    Values identity(s.channels * s.channels);
    for (int64_t c = 0; c < s.channels; ++c) identity[c * s.channels + c] = 1;
    const Values alpha = cosines(axes, features[0], identity);
    for (int64_t i = 0; i < s.images * s.channels; ++i) {
      double sum = 0;
      for (int64_t p = 0; p < s.cells; ++p) sum += alpha[i * s.cells + p] / s.cells;
      out.push_back(sum);
    }
    return out;
  }
  const Values alpha = cosines(s, features[0], features[op.kind == Op::product ? 2 : 1]);
  if (op.kind == Op::cosine)
    for (int64_t n = 0; n < s.images; ++n)
      for (int64_t p = 0; p < s.cells; ++p) out.push_back(alpha[(n * s.audios + n) * s.cells + p]);
  if (op.kind == Op::pooling)
    for (int64_t i = 0; i < s.images * s.audios; ++i) out.push_back(pooled(op.pool, &alpha[i * s.cells], s.cells));
  if (op.kind != Op::product) return out;
  const Values avc = cosines(s, features[1], features[3]);
  Values instances((op.instances == Instances::audio ? s.images : s.audios) * s.cells);
  auto instance = [&](int64_t n, int64_t m, int64_t p) -> double& {
    return instances[(op.instances == Instances::audio ? n : m) * s.cells + p];
  };
  auto for_all = [&](auto f) {
    for (int64_t n = 0; n < s.images; ++n)
      for (int64_t m = 0; m < s.audios; ++m) f(n, m, (n * s.audios + m) * s.cells);
  };
  for_all([&](int64_t n, int64_t m, int64_t at) {
    for (int64_t p = 0; p < s.cells; ++p) instance(n, m, p) += std::exp(avc[at + p] / kTau);
  });
  for_all([&](int64_t n, int64_t m, int64_t at) {
    double space = 0, sum = 0, most = 0;
    for (int64_t p = 0; p < s.cells; ++p) space += std::exp(alpha[at + p] / kTau);
    for (int64_t p = 0; p < s.cells; ++p) {
      const double x = std::exp((avc[at + p] + alpha[at + p]) / kTau) / instance(n, m, p) / space;
      sum += x, most = std::max(most, x);
    }
    out.push_back(std::log(op.reduce == Reduce::sum ? sum : most));
  });
  return out;
}

// The background of image n: the mean of the map of its positive weighted by sigmoid((epsilon - alpha) / beta).
double background_of(const Shape& s, const Values& alpha, int64_t n) {
  const double* map = &alpha[(n * s.audios + positive_of(n, s.audios)) * s.cells];
  double weights = 0, weighted = 0;
  for (int64_t p = 0; p < s.cells; ++p) {
    const double w = 1 / (1 + std::exp((map[p] - kEpsilon) / kBeta));
    weights += w, weighted += w * map[p];
  }
  return weighted / weights;
}

Values outputs_of(const Op& op, const Shape& s, const std::vector<Values>& features) {
  const Values scores = scores_of(op, s, features);
  if (op.loss == Op::none) return scores;
  Values background;
  if (op.loss == Op::rows_and_background) {
    const Values alpha = cosines(s, features[0], features[1]);
    for (int64_t n = 0; n < s.images; ++n) background.push_back(background_of(s, alpha, n));
  }
  const bool product = op.kind == Op::product;
  return {
      cross_entropy(scores, s.images, s.audios, background, product ? 0 : kMargin, product ? 1 : kTau, false, false)};
}

// ---- the kernels ----

struct Result {
  Values outputs;
  std::vector<Values> gradients;
};

// One image has its cosines cached for the backward pass, the others do not.
Result run_kernels(const Op& op, const Shape& s, std::vector<Tensor>& features, Tensor& grad_outputs) {
  const DType real = s.dtype == DType::float64 ? DType::float64 : DType::float32;
  const int64_t panel = real == DType::float64 ? kernels().panel_double : kernels().panel_float;
  const int64_t pairs = s.images * s.audios, padded = (s.audios + panel - 1) / panel * panel;
  Tensor outputs(real, grad_outputs.size()), residual(DType::float64, pairs), argmax(DType::float32, pairs);
  Tensor pair_norm(real, 4 * pairs), instance_norm(real, 2 * std::max(s.images, padded) * s.cells);
  std::vector<Tensor> norms, alphas, gradients;
  const size_t spaces = op.kind == Op::product ? 2 : 1;
  for (size_t i = 0; i < spaces; ++i)
    norms.emplace_back(real, s.images * s.cells), alphas.emplace_back(real, padded * s.cells);
  for (const Tensor& x : features)
    gradients.emplace_back(op.kind == Op::cosine && &x != &features[0] ? real : s.dtype, x.size());
  auto space = [&](size_t i) -> Features {
    const size_t audio = features.size() > spaces ? spaces + i : i;
    return {features[i].bytes.data(), features[audio].bytes.data(), norms[i].bytes.data(),
            alphas[i].bytes.data(),   gradients[i].bytes.data(),    gradients[audio].bytes.data()};
  };
  // of one pass: what it computes besides
  Tensor scores(real, pairs), grad_scores(real, pairs), map(real, s.images * s.cells), grad_map(real, map.size());
  std::vector<int64_t> positives;
  for (int64_t n = 0; n < s.images; ++n) positives.push_back(positive_of(n, s.audios));
  CrossEntropyParams loss{};
  loss.float64 = real == DType::float64, loss.of_rows = true, loss.rows = s.images, loss.columns = s.audios;
  loss.tau = op.kind == Op::product ? 1 : kTau, loss.margin = op.kind == Op::product ? 0 : kMargin;
  loss.positives = positives.data(), loss.scores = scores.bytes.data(), loss.grad_scores = grad_scores.bytes.data();
  loss.loss = outputs.bytes.data();
  if (op.loss == Op::rows_and_background) {
    loss.maps = map.bytes.data(), loss.grad_maps = grad_map.bytes.data(), loss.cells = s.cells;
    loss.epsilon = kEpsilon, loss.beta = kBeta;
  }
  if (op.kind == Op::pooling) {
    SimilarityParams p{};
    p.shape = s, p.features = space(0), p.pooling = op.pool, p.cached_images = 1, p.threads = kThreads;
    const double soft[] = {kEpsilon, kBeta};
    if (op.pool == Pooling::soft_threshold) std::copy(soft, soft + 2, p.parameters);
    if (op.pool == Pooling::log_mean_exp) p.parameters[0] = kTau;
    p.scores = op.loss ? scores.bytes.data() : outputs.bytes.data(), p.residual = residual.bytes.data();
    p.grad_scores = op.loss ? grad_scores.bytes.data() : grad_outputs.bytes.data();
    if (op.loss) p.row_loss = &loss, p.cached_images = 0;
    if (op.loss == Op::rows_and_background)
      p.positives = loss.positives, p.positive_map = map.bytes.data(), p.grad_map = grad_map.bytes.data();
    if (!op.loss) run(*kernels().similarity, p);
    run(*kernels().similarity_backward, p);
  } else if (op.kind == Op::product) {
    ProductParams p{};
    p.shape = s, p.loc = space(0), p.avc = space(1), p.tau = kTau, p.reduce = op.reduce, p.instances = op.instances;
    p.cached_images = 1, p.threads = kThreads;
    p.scores = op.loss ? scores.bytes.data() : outputs.bytes.data(), p.pair_norm = pair_norm.bytes.data();
    p.instance_norm = instance_norm.bytes.data(), p.argmax = argmax.bytes.data();
    p.grad_scores = op.loss ? grad_scores.bytes.data() : grad_outputs.bytes.data();
    if (op.loss) p.row_loss = &loss, p.cached_images = 0;
    if (!op.loss) run(*kernels().product, p);
    run(*kernels().product_backward, p);
  } else {
    const bool mean = op.kind == Op::mean;
    CellsParams p{};
    p.shape = s, p.visual = features[0].bytes.data(), p.audio = mean ? nullptr : features[1].bytes.data(), p.means = 1;
    p.inverse_norm = norms[0].bytes.data(), p.out = outputs.bytes.data(), p.threads = kThreads;
    run(*(mean ? kernels().mean : kernels().cosine), p);
    p.grad_out = grad_outputs.bytes.data(), p.grad_visual = gradients[0].bytes.data();
    p.grad_audio = mean ? nullptr : gradients[1].bytes.data();
    run(*(mean ? kernels().mean_backward : kernels().cosine_backward), p);
  }
  Result result{outputs.values(), {}};
  for (const Tensor& gradient : gradients) result.gradients.push_back(gradient.values());
  return result;
}

double inner(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

void check_op(const Op& op, const Shape& s) {
  const int64_t visual = s.images * s.channels * s.cells, audio = s.audios * s.channels;
  std::vector<Tensor> features;
  for (int i = 0; i < (op.kind == Op::product ? 2 : 1); ++i) features.push_back(random_tensor(s.dtype, visual));
  for (int i = 0; i < (op.kind == Op::product ? 2 : op.kind == Op::mean ? 0 : 1); ++i)
    features.push_back(random_tensor(s.dtype, audio));
  std::vector<Values> x;
  for (const Tensor& feature : features) x.push_back(feature.values());
  const Values want = outputs_of(op, s, x);
  const bool exact = s.dtype == DType::float64;
  Tensor grad_outputs = random_tensor(exact ? DType::float64 : DType::float32, int64_t(want.size()));
  if (op.loss) grad_outputs.set(0, 1);
  const Result got = run_kernels(op, s, features, grad_outputs);

  const char* dtypes[] = {"float32", "bfloat16", "float16", "float64"};
  const double rounding[] = {1e-5, 1e-2, 2e-3, 1e-7};  // of gradients, to their dtype
  const std::string name = std::string(kernels().instruction_set) + " " + op.name + " " + dtypes[int(s.dtype)] +
                           (s.channels_last ? " channels last" : "") + " " + std::to_string(s.channels) + " channels";
  double error = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double one = std::fabs(got.outputs[i] - want[i]);
    error = std::max(error, std::isnan(one) ? INFINITY : one);
  }
  check(name + ", outputs", error, exact ? 1e-12 : 2e-5);
  const Values grad = grad_outputs.values();
  for (size_t i = 0; i < x.size(); ++i)
    for (int repeat = 0; repeat < 2; ++repeat) {  // along a random direction of signs
      Values direction(x[i].size());
      for (double& d : direction) d = generator() % 2 ? 1 : -1;
      const double step = 1e-6;
      auto loss_at = [&](double distance) {
        std::vector<Values> moved = x;
        for (size_t k = 0; k < direction.size(); ++k) moved[i][k] += distance * direction[k];
        return inner(outputs_of(op, s, moved), grad);
      };
      const double slope = (loss_at(step) - loss_at(-step)) / (2 * step);
      check(name + ", gradient of feature " + std::to_string(i), std::fabs(inner(got.gradients[i], direction) - slope),
            rounding[int(s.dtype)] * std::sqrt(inner(got.gradients[i], got.gradients[i])) + 2e-8);  // of the loss
    }
}

// Rows and columns at once, where there are more columns than rows.
void check_cross_entropy(DType dtype, bool of_columns) {
  const int64_t rows = 21, width = of_columns ? 40 : 37;
  Tensor scores = random_tensor(dtype, rows * width), grad(dtype, rows * width), loss(dtype, 1);
  std::vector<int64_t> positives;
  for (int64_t n = 0; n < rows; ++n) positives.push_back(positive_of(n, width));
  CrossEntropyParams p{};
  p.float64 = dtype == DType::float64, p.of_rows = true, p.of_columns = of_columns, p.rows = rows, p.columns = width;
  p.tau = kTau, p.margin = kMargin, p.positives = of_columns ? nullptr : positives.data(), p.threads = kThreads;
  p.scores = scores.bytes.data(), p.grad_scores = grad.bytes.data(), p.loss = loss.bytes.data();
  run(*kernels().cross_entropy, p);
  const std::string name = std::string(kernels().instruction_set) + " cross-entropy" + (of_columns ? ", columns" : "");
  const Values x = scores.values();
  auto loss_of = [&](const Values& at) {
    return cross_entropy(at, rows, width, {}, kMargin, kTau, of_columns, of_columns);
  };
  const double want = loss_of(x), limit = p.float64 ? 1e-12 : 1e-6;
  check(name, std::fabs(loss.get(0) - want), limit * want);
  for (int repeat = 0; repeat < 4; ++repeat) {
    Values direction(x.size()), up = x, down = x;
    for (double& d : direction) d = generator() % 2 ? 1 : -1;
    for (size_t i = 0; i < x.size(); ++i) up[i] += 1e-6 * direction[i], down[i] -= 1e-6 * direction[i];
    const double slope = (loss_of(up) - loss_of(down)) / 2e-6;
    check(name + ", gradient", std::fabs(inner(grad.values(), direction) - slope), p.float64 ? 1e-7 : 2e-6);
  }
}

// ---- evaluation ----

void check_map_metrics(bool bytes) {
  const MapShape s{3, 2, 5, 7, 19, 23};
  const int64_t pixels = s.rows * s.columns, cells = s.cell_rows * s.cell_columns;
  std::vector<float> low(s.images * s.maps * cells), weights(s.images * pixels);
  std::vector<uint8_t> flags(weights.size());
  for (float& x : low) x = std::normal_distribution<float>()(generator);
  for (size_t i = 0; i < weights.size(); ++i)
    flags[i] = generator() % 3 == 0, weights[i] = bytes ? flags[i] : flags[i] * (1 + generator() % 8) / 8.f;
  std::vector<int64_t> first[2];
  Values weight[2];
  const int64_t sizes[2][2] = {{s.rows, s.cell_rows}, {s.columns, s.cell_columns}};
  for (int axis = 0; axis < 2; ++axis)
    for (int64_t i = 0; i < sizes[axis][0]; ++i) {
      const double at = double(i) * (sizes[axis][1] - 1) / sizes[axis][0], part = at - std::floor(at);
      first[axis].push_back(int64_t(at)), weight[axis].push_back(1 - part), weight[axis].push_back(part);
    }
  const MapRule rules[] = {{RuleKind::fraction, Comparison::exact, pixels / 3, 0},
                           {RuleKind::truth, Comparison::above, 1, 0},
                           {RuleKind::value, Comparison::at_least, 0, .25f}};
  Values hit(s.images * 3), outside(s.images * 3), sums(s.images);
  std::vector<int64_t> objects(s.images), shared(s.images * s.maps * s.maps);
  const Resize resize{{first[0].data(), weight[0].data(), 2}, {first[1].data(), weight[1].data(), 2}};
  MapParams p{};
  p.shape = s, p.low = low.data(), p.bytes = bytes;
  p.truth = bytes ? static_cast<const void*>(flags.data()) : weights.data();
  p.resize[0] = p.resize[1] = resize, p.rule = rules, p.rules = 3, p.value = .5f, p.threads = kThreads;
  p.hit = hit.data(), p.outside = outside.data(), p.weight = sums.data(), p.objects = objects.data();
  p.shared = shared.data();
  run(*kernels().map_metrics, p);

  const std::string name = std::string(kernels().instruction_set) + " map metrics" + (bytes ? ", bytes" : "");
  auto compare = [&](const char* what, double got, double want) {
    check(name + ", " + what, std::fabs(got - want), 0);
  };
  for (int64_t n = 0; n < s.images; ++n) {
    std::vector<float> map[2];
    for (int k = 0; k < 2; ++k)
      for (int64_t y = 0; y < s.rows; ++y)
        for (int64_t x = 0; x < s.columns; ++x) {
          double sum = 0;
          for (int i = 0; i < 4; ++i)
            sum += weight[0][2 * y + i / 2] * weight[1][2 * x + i % 2] *
                   low[(n * s.maps + k) * cells + (first[0][y] + i / 2) * s.cell_columns + first[1][x] + i % 2];
          map[k].push_back(float(sum));
        }
    const float* truth = &weights[n * pixels];
    const int64_t count = std::count_if(truth, truth + pixels, [](float w) { return w > 0; });
    double sum = 0;
    for (int64_t i = 0; i < pixels; ++i) sum += truth[i];
    compare("objects", double(objects[n]), double(count));
    compare("weight", sums[n], sum);
    std::vector<float> sorted = map[0];
    std::sort(sorted.begin(), sorted.end(), std::greater<float>());
    for (int r = 0; r < 3; ++r) {
      const float edge = r == 0 ? sorted[rules[0].count - 1] : r == 1 ? sorted[count - 1] : rules[2].value;
      double inside = 0, beside = 0;
      for (int64_t i = 0; i < pixels; ++i)
        if (r == 1 ? map[0][i] > edge : map[0][i] >= edge) inside += truth[i], beside += truth[i] == 0;
      compare("hit", hit[n * 3 + r], inside);
      compare("outside", outside[n * 3 + r], beside);
    }
    for (int j = 0; j < 4; ++j) {
      int64_t both = 0;
      for (int64_t i = 0; i < pixels; ++i) both += map[j / 2][i] > p.value && map[j % 2][i] > p.value;
      compare("shared", double(shared[n * 4 + j]), double(both));
    }
  }
}

}  // namespace

int main() {
  const Op ops[] = {{"soft threshold", Op::pooling, Pooling::soft_threshold, {}, {}},
                    {"max", Op::pooling, Pooling::max, {}, {}},
                    {"log mean exp", Op::pooling, Pooling::log_mean_exp, {}, {}},
                    {"product, sum, audio", Op::product, {}, Reduce::sum, Instances::audio},
                    {"product, max, audio", Op::product, {}, Reduce::max, Instances::audio},
                    {"product, sum, image", Op::product, {}, Reduce::sum, Instances::image},
                    {"product, max, image", Op::product, {}, Reduce::max, Instances::image},
                    {"cosine map", Op::cosine, {}, {}, {}},
                    {"mean", Op::mean, {}, {}, {}},
                    {"loss of soft threshold", Op::pooling, Pooling::soft_threshold, {}, {}, Op::rows},
                    {"loss of log mean exp", Op::pooling, Pooling::log_mean_exp, {}, {}, Op::rows},
                    {"loss with background", Op::pooling, Pooling::soft_threshold, {}, {}, Op::rows_and_background},
                    {"loss of product, sum", Op::product, {}, Reduce::sum, Instances::audio, Op::rows},
                    {"loss of product, max", Op::product, {}, Reduce::max, Instances::audio, Op::rows}};
  // images, audios, channels (from 129 on in blocks), cells (from 128 on an audio gradient for each image)
  const int64_t sizes[][4] = {{2, 5, 3, 1}, {3, 19, 37, 21}, {3, 9, 150, 15}, {3, 4, 9, 130}};
  for (const std::string& name : instruction_sets()) {
    use_instruction_set(name);
    for (DType dtype : {DType::float32, DType::bfloat16, DType::float16, DType::float64})
      for (bool channels_last : {false, true})
        for (auto [images, audios, channels, cells] : sizes)
          for (const Op& op : ops)
            check_op(op, {dtype, channels_last, images, op.kind == Op::cosine ? images : audios, channels, cells, true,
                          channels, 0, 1});
    for (bool of_columns : {false, true})
      for (DType dtype : {DType::float32, DType::float64}) check_cross_entropy(dtype, of_columns);
    for (bool bytes : {false, true}) check_map_metrics(bytes);
    std::printf("%s: %d checks so far, %d failed\n", name.c_str(), checks, failures);
  }
  return failures > 0;
}
