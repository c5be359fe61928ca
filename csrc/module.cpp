// What Python sees. It takes addresses and sizes of tensors that ssl_fast/ops has checked; tensors never cross.
#include <array>
#include <optional>
#include <utility>

#include "bindings.h"
#include "cpu/isa.h"
#ifdef SSL_FAST_CUDA
#include "cuda/bindings.h"
#include "cuda/device.h"
#endif

using namespace ssl_fast;

namespace {

// Of one space of cosines; Features of params.h with sizes.
struct FeatureBuffers {
  Buffer visual, audio, inverse_norm, cached_alphas, grad_visual, grad_audio;
};

int64_t padded_audios(const Shape& s) {
  const int64_t panel = s.dtype == DType::float64 ? kernels().panel_double : kernels().panel_float;
  return (s.audios + panel - 1) / panel * panel;
}
int64_t cached_bytes(const Shape& s, int64_t cached_images) {
  return cached_images * padded_audios(s) * s.cells * real_bytes(s.dtype);
}
Features features_of(const Shape& s, const FeatureBuffers& f, int64_t cached_images) {
  if (cached_images < 0 || cached_images > s.images)
    throw std::invalid_argument("cached_images: expected at most " + std::to_string(s.images) + ", got " +
                                std::to_string(cached_images));
  if (s.audios < 1) throw std::invalid_argument("shape: expected audios");
  return {need("visual", f.visual, visual_bytes(s)),
          need("audio", f.audio, audio_bytes(s)),
          need("inverse_norm", f.inverse_norm, s.images * s.cells * real_bytes(s.dtype)),
          need("cached_alphas", f.cached_alphas, cached_bytes(s, cached_images)),
          need("grad_visual", f.grad_visual, visual_bytes(s), true),
          need("grad_audio", f.grad_audio, audio_bytes(s), true)};
}

// Columns (rows) of the positives, or null. std::invalid_argument, also for one that does not exist.
const int64_t* need_positives(const Buffer& buffer, int64_t rows, int64_t columns) {
  const auto* positives = need<int64_t>("positives", buffer, rows * 8, true);
  if (!positives || rows == 0) return positives;
  const auto [low, high] = std::minmax_element(positives, positives + rows);
  if (*low < 0 || *high >= columns)
    throw std::invalid_argument("positives: expected columns in [0, " + std::to_string(columns) + "), got " +
                                std::to_string(*low) + ".." + std::to_string(*high));
  return positives;
}

SimilarityParams similarity_params(const Shape& s, const FeatureBuffers& f, Pooling pooling,
                                   const std::vector<double>& parameters, int64_t cached_images,
                                   const Buffer& positives, const Buffer& positive_map, const Buffer& scores,
                                   const Buffer& residual, int threads) {
  const int64_t real = real_bytes(s.dtype), pairs = s.images * s.audios;
  SimilarityParams p{};
  p.shape = s;
  p.features = features_of(s, f, cached_images);
  set_pooling(p, pooling, parameters);
  p.cached_images = cached_images;
  p.positives = need_positives(positives, s.images, s.audios);
  if (positives) p.positive_map = need("positive_map", positive_map, s.images * s.cells * real);
  p.scores = need("scores", scores, pairs * real);
  p.residual = need("residual", residual, pairs * (is_sparse(pooling) ? 4 : real));
  p.threads = threads;
  return p;
}

ProductParams product_params(const Shape& s, const FeatureBuffers& loc, const FeatureBuffers& avc, double tau,
                             Reduce reduce, Instances instances, int64_t cached_images, const Buffer& scores,
                             const Buffer& pair_norm, const Buffer& instance_norm, const Buffer& argmax, int threads) {
  const int64_t real = real_bytes(s.dtype), pairs = s.images * s.audios;
  ProductParams p{};
  p.shape = s;
  p.loc = features_of(s, loc, cached_images), p.avc = features_of(s, avc, cached_images);
  p.tau = tau, p.reduce = reduce, p.instances = instances;
  p.cached_images = cached_images;
  p.scores = need("scores", scores, pairs * real);
  p.pair_norm = need("pair_norm", pair_norm, 4 * pairs * real);
  p.instance_norm = need("instance_norm", instance_norm,
                         2 * (instances == Instances::audio ? s.images : padded_audios(s)) * s.cells * real);
  p.argmax = need("argmax", argmax, reduce == Reduce::max ? pairs * 4 : 0);
  p.threads = threads;
  return p;
}

CrossEntropyParams cross_entropy_params(bool float64, bool of_rows, bool of_columns, int64_t rows, int64_t columns,
                                        double tau, double margin, const int64_t* positives, int64_t cells,
                                        double epsilon, double beta, const Buffer& scores, const Buffer& maps,
                                        const Buffer& loss, const Buffer& grad_scores, const Buffer& grad_maps,
                                        int threads) {
  check_sizes("scores", {rows, columns});
  check_sizes("maps", {rows, cells});
  if (rows < 1 || columns < 1) throw std::invalid_argument("scores: expected rows and columns");
  if (columns < rows && (of_columns || !positives))
    throw std::invalid_argument("positives: expected, and no loss of columns, of less columns than rows");
  if (maps && cells < 1) throw std::invalid_argument("maps: expected cells");
  const int64_t real = float64 ? 8 : 4;
  CrossEntropyParams p{};
  p.float64 = float64, p.of_rows = of_rows, p.of_columns = of_columns;
  p.rows = rows, p.columns = columns;
  p.tau = tau, p.margin = margin;
  p.positives = positives;
  p.scores = need("scores", scores, rows * columns * real);
  p.maps = need("maps", maps, rows * cells * real, true);
  p.cells = cells, p.epsilon = epsilon, p.beta = beta;
  p.loss = need("loss", loss, real);
  p.grad_scores = need("grad_scores", grad_scores, rows * columns * real, true);
  p.grad_maps = need("grad_maps", grad_maps, rows * cells * real, !grad_scores || !maps);
  p.threads = threads;
  return p;
}

// Interpolation along one axis: first cell and weights of each pixel, taps.
using AxisArguments = std::tuple<Buffer, Buffer, int64_t>;
Axis axis_of(const AxisArguments& a, int64_t pixels) {
  const auto& [first, weight, taps] = a;
  check_sizes("resize", {pixels, taps});
  return {need<int64_t>("resize", first, pixels * 8), need<double>("resize", weight, pixels * taps * 8), taps};
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled kernels of ssl_fast; use ssl_fast.ops.";
  bind_types(m);
  m.attr("interface") = 6;  // raised when what ssl_fast/ops calls changes
  m.def("instruction_set", [] { return kernels().instruction_set; });
  m.def("instruction_sets", &instruction_sets);
  m.def("use_instruction_set", &use_instruction_set);
  // For tests. None: no kernel has run on this thread since the last call.
  m.def("take_last_instruction_set", [] { return std::exchange(last_instruction_set, nullptr); });
  m.def("panel", [](bool float64) { return float64 ? kernels().panel_double : kernels().panel_float; });
#ifdef SSL_FAST_CUDA
  m.attr("cuda_architectures") = SSL_FAST_CUDA;
  m.def("cuda_status", [] {
    int count = 0;
    const char* error = cuda::device_count(&count);
    return py::make_tuple(count, error ? py::object(py::str(error)) : py::object(py::none()));
  });
  m.def("cuda_error", [](int device) -> std::optional<std::tuple<std::string, std::string, int, int>> {
    py::gil_scoped_release release;
    cuda::LoadError error = cuda::load_error(device);
    if (!error.name) return std::nullopt;
    return std::make_tuple(error.name, error.text, error.runtime, error.driver);
  });
  py::module_ on_cuda = m.def_submodule("cuda", "The kernels that run on CUDA devices.");
  for (const char* type : {"DType", "Pooling", "Reduce", "Instances", "Shape"}) on_cuda.attr(type) = m.attr(type);
  cuda::bind(on_cuda);
#else
  m.attr("cuda_architectures") = "";
  m.attr("no_cuda") = SSL_FAST_NO_CUDA;
#endif

  py::class_<FeatureBuffers>(m, "Features", py::module_local())
      .def(py::init<Buffer, Buffer, Buffer, Buffer, Buffer, Buffer>(), py::kw_only(), py::arg("visual"),
           py::arg("audio"), py::arg("inverse_norm"), py::arg("cached_alphas"), py::arg("grad_visual") = py::none(),
           py::arg("grad_audio") = py::none());

  m.def(
      "similarity_forward",
      [](const Shape& s, const FeatureBuffers& features, Pooling pooling, const std::vector<double>& parameters,
         int64_t cached_images, Buffer positives, Buffer positive_map, Buffer scores, Buffer residual, int threads,
         int64_t clip, Buffer clip_scores, Buffer clip_argmax, Buffer audio_inverse_norm) {
        SimilarityParams p = similarity_params(s, features, pooling, parameters, cached_images, positives, positive_map,
                                               scores, residual, threads);
        if (clip) {
          if (clip < 0 || s.audios % clip || pooling != Pooling::max)
            throw std::invalid_argument("clip: expected a divisor of the audios, and the maximum");
          const int64_t cells = s.audios / clip * s.images * s.cells;
          p.clip = clip;
          p.clip_scores = need("clip_scores", clip_scores, cells * real_bytes(s.dtype));
          p.clip_argmax = need<int32_t>("clip_argmax", clip_argmax, cells * 4);
          p.audio_inverse_norm = need("audio_inverse_norm", audio_inverse_norm, s.audios * real_bytes(s.dtype));
        }
        py::gil_scoped_release release;
        run(*kernels().similarity, p, {{p.features.cached_alphas, cached_bytes(s, cached_images)}});
      },
      py::arg("shape"), py::arg("features"), py::kw_only(), py::arg("pooling"), py::arg("parameters"),
      py::arg("cached_images"), py::arg("positives"), py::arg("positive_map"), py::arg("scores"), py::arg("residual"),
      py::arg("threads"), py::arg("clip") = 0, py::arg("clip_scores") = py::none(), py::arg("clip_argmax") = py::none(),
      py::arg("audio_inverse_norm") = py::none());
  m.def(
      "similarity_backward",
      [](const Shape& s, const FeatureBuffers& features, Pooling pooling, const std::vector<double>& parameters,
         int64_t cached_images, Buffer positives, Buffer positive_map, Buffer scores, Buffer residual,
         Buffer grad_scores, Buffer grad_map, int threads) {
        SimilarityParams p = similarity_params(s, features, pooling, parameters, cached_images, positives, positive_map,
                                               scores, residual, threads);
        p.grad_scores = need("grad_scores", grad_scores, s.images * s.audios * real_bytes(s.dtype));
        p.grad_map = need("grad_map", grad_map, s.images * s.cells * real_bytes(s.dtype), true);
        if (grad_map && !positives) throw std::invalid_argument("positives: expected with grad_map, got null");
        py::gil_scoped_release release;
        run(*kernels().similarity_backward, p, {{p.features.grad_visual, visual_bytes(s)}});
      },
      py::arg("shape"), py::arg("features"), py::kw_only(), py::arg("pooling"), py::arg("parameters"),
      py::arg("cached_images"), py::arg("positives"), py::arg("positive_map"), py::arg("scores"), py::arg("residual"),
      py::arg("grad_scores"), py::arg("grad_map"), py::arg("threads"));

  // Scores, their loss of rows, and the gradients of the features, from one pass over the products. The other tensors
  // are scratch: see SimilarityParams. background: epsilon and beta of the map of each positive, or null.
  m.def(
      "similarity_row_loss",
      [](const Shape& s, const FeatureBuffers& features, Pooling pooling, const std::vector<double>& parameters,
         Buffer positives, Buffer positive_map, Buffer scores, Buffer residual, Buffer grad_scores, Buffer grad_map,
         double tau, double margin, std::optional<std::pair<double, double>> background, Buffer loss, int threads) {
        if (is_sparse(pooling)) throw std::invalid_argument("pooling: expected one with a gradient of every cell");
        if (background && !positives) throw std::invalid_argument("positives: expected with background, got null");
        const auto* positive_columns = need_positives(positives, s.images, s.audios);
        const auto [epsilon, beta] = background.value_or(std::pair(0.0, 1.0));
        const CrossEntropyParams of_rows =
            cross_entropy_params(s.dtype == DType::float64, true, false, s.images, s.audios, tau, margin,
                                 positive_columns, s.cells, epsilon, beta, scores, background ? positive_map : Buffer{},
                                 loss, grad_scores, background ? grad_map : Buffer{}, threads);
        SimilarityParams p = similarity_params(s, features, pooling, parameters, 0, background ? positives : Buffer{},
                                               positive_map, scores, residual, threads);
        p.grad_scores = need("grad_scores", grad_scores, s.images * s.audios * real_bytes(s.dtype));
        p.grad_map = of_rows.grad_maps;
        p.row_loss = &of_rows;
        py::gil_scoped_release release;
        run(*kernels().similarity_backward, p, {{p.features.grad_visual, visual_bytes(s)}});
      },
      py::arg("shape"), py::arg("features"), py::kw_only(), py::arg("pooling"), py::arg("parameters"),
      py::arg("positives"), py::arg("positive_map"), py::arg("scores"), py::arg("residual"), py::arg("grad_scores"),
      py::arg("grad_map"), py::arg("tau"), py::arg("margin"), py::arg("background"), py::arg("loss"),
      py::arg("threads"));

  m.def(
      "product_forward",
      [](const Shape& s, const FeatureBuffers& loc, const FeatureBuffers& avc, double tau, Reduce reduce,
         Instances instances, int64_t cached_images, Buffer scores, Buffer pair_norm, Buffer instance_norm,
         Buffer argmax, int threads) {
        ProductParams p = product_params(s, loc, avc, tau, reduce, instances, cached_images, scores, pair_norm,
                                         instance_norm, argmax, threads);
        const int64_t bytes = cached_bytes(s, cached_images);
        py::gil_scoped_release release;
        run(*kernels().product, p, {{p.loc.cached_alphas, bytes}, {p.avc.cached_alphas, bytes}});
      },
      py::arg("shape"), py::kw_only(), py::arg("loc"), py::arg("avc"), py::arg("tau"), py::arg("reduce"),
      py::arg("instances"), py::arg("cached_images"), py::arg("scores"), py::arg("pair_norm"), py::arg("instance_norm"),
      py::arg("argmax"), py::arg("threads"));
  m.def(
      "product_backward",
      [](const Shape& s, const FeatureBuffers& loc, const FeatureBuffers& avc, double tau, Reduce reduce,
         Instances instances, int64_t cached_images, Buffer scores, Buffer pair_norm, Buffer instance_norm,
         Buffer argmax, Buffer grad_scores, int threads) {
        ProductParams p = product_params(s, loc, avc, tau, reduce, instances, cached_images, scores, pair_norm,
                                         instance_norm, argmax, threads);
        p.grad_scores = need("grad_scores", grad_scores, s.images * s.audios * real_bytes(s.dtype));
        py::gil_scoped_release release;
        run(*kernels().product_backward, p,
            {{p.loc.grad_visual, visual_bytes(s)}, {p.avc.grad_visual, visual_bytes(s)}});
      },
      py::arg("shape"), py::kw_only(), py::arg("loc"), py::arg("avc"), py::arg("tau"), py::arg("reduce"),
      py::arg("instances"), py::arg("cached_images"), py::arg("scores"), py::arg("pair_norm"), py::arg("instance_norm"),
      py::arg("argmax"), py::arg("grad_scores"), py::arg("threads"));
  // The same as similarity_row_loss, of logits that are scores.
  m.def(
      "product_row_loss",
      [](const Shape& s, const FeatureBuffers& loc, const FeatureBuffers& avc, double tau, Reduce reduce,
         Buffer positives, Buffer scores, Buffer pair_norm, Buffer instance_norm, Buffer argmax, Buffer grad_scores,
         Buffer loss, int threads) {
        const CrossEntropyParams of_rows =
            cross_entropy_params(s.dtype == DType::float64, true, false, s.images, s.audios, 1, 0,
                                 need_positives(positives, s.images, s.audios), 0, 0, 1, scores, Buffer{}, loss,
                                 grad_scores, Buffer{}, threads);
        ProductParams p = product_params(s, loc, avc, tau, reduce, Instances::audio, 0, scores, pair_norm,
                                         instance_norm, argmax, threads);
        p.grad_scores = need("grad_scores", grad_scores, s.images * s.audios * real_bytes(s.dtype));
        p.row_loss = &of_rows;
        py::gil_scoped_release release;
        run(*kernels().product_backward, p,
            {{p.loc.grad_visual, visual_bytes(s)}, {p.avc.grad_visual, visual_bytes(s)}});
      },
      py::arg("shape"), py::kw_only(), py::arg("loc"), py::arg("avc"), py::arg("tau"), py::arg("reduce"),
      py::arg("positives"), py::arg("scores"), py::arg("pair_norm"), py::arg("instance_norm"), py::arg("argmax"),
      py::arg("grad_scores"), py::arg("loss"), py::arg("threads"));

  bind_cells(m, "cosine", false, [](const CellsParams& p, bool backward, void*) {
    run(*(backward ? kernels().cosine_backward : kernels().cosine), p, {{p.grad_visual, visual_bytes(p.shape)}});
  });
  bind_cells(m, "mean", true, [](const CellsParams& p, bool backward, void*) {
    run(*(backward ? kernels().mean_backward : kernels().mean), p, {{p.grad_visual, visual_bytes(p.shape)}});
  });

  m.def(
      "cross_entropy",
      [](bool float64, bool of_rows, bool of_columns, int64_t rows, int64_t columns, double tau, double margin,
         Buffer positives, Buffer scores, Buffer maps, int64_t cells, double epsilon, double beta, Buffer loss,
         Buffer grad_scores, Buffer grad_maps, int threads) {
        const CrossEntropyParams p = cross_entropy_params(float64, of_rows, of_columns, rows, columns, tau, margin,
                                                          need_positives(positives, rows, columns), cells, epsilon,
                                                          beta, scores, maps, loss, grad_scores, grad_maps, threads);
        py::gil_scoped_release release;
        run(*kernels().cross_entropy, p);
      },
      py::kw_only(), py::arg("float64"), py::arg("of_rows"), py::arg("of_columns"), py::arg("rows"), py::arg("columns"),
      py::arg("tau"), py::arg("margin"), py::arg("positives"), py::arg("scores"), py::arg("maps"), py::arg("cells"),
      py::arg("epsilon"), py::arg("beta"), py::arg("loss"), py::arg("grad_scores"), py::arg("grad_maps"),
      py::arg("threads"));

  py::enum_<RuleKind>(m, "RuleKind", py::module_local())
      .value("fraction", RuleKind::fraction)
      .value("truth", RuleKind::truth)
      .value("value", RuleKind::value);
  py::enum_<Comparison>(m, "Comparison", py::module_local())
      .value("exact", Comparison::exact)
      .value("above", Comparison::above)
      .value("at_least", Comparison::at_least);
  // shape: images, maps, rows and columns of a map, and of the ground truth; resize: of rows and of columns, of the
  // first map and of the others; rules: (kind, comparison, count, value)
  m.def(
      "map_metrics",
      [](const std::array<int64_t, 6>& shape, Buffer low, Buffer truth, bool bytes,
         const std::array<std::array<AxisArguments, 2>, 2>& resize,
         const std::vector<std::tuple<RuleKind, Comparison, int64_t, float>>& rules, float value, Buffer hit,
         Buffer outside, Buffer weight, Buffer objects, Buffer shared, int threads) {
        const auto [images, maps, cell_rows, cell_columns, rows, columns] = shape;
        if (*std::min_element(shape.begin() + 1, shape.end()) < 1)
          throw std::invalid_argument("shape: expected maps, cells and pixels");
        check_sizes("shape", {images, maps, maps});
        check_sizes("shape", {images, maps, cell_rows, cell_columns});
        check_sizes("shape", {images, rows, columns});
        std::vector<MapRule> all;
        for (auto [kind, comparison, count, edge] : rules) all.push_back({kind, comparison, count, edge});
        MapParams p{};
        p.shape = {images, maps, cell_rows, cell_columns, rows, columns};
        p.low = need<float>("low", low, images * maps * cell_rows * cell_columns * 4);
        p.truth = need("truth", truth, images * rows * columns * (bytes ? 1 : 4));
        p.bytes = bytes;
        for (int i = 0; i < 2; ++i) p.resize[i] = {axis_of(resize[i][0], rows), axis_of(resize[i][1], columns)};
        p.rule = all.data(), p.rules = int64_t(all.size());
        p.value = value;
        p.hit = need<double>("hit", hit, images * p.rules * 8);
        p.outside = need<double>("outside", outside, images * p.rules * 8);
        p.weight = need<double>("weight", weight, images * 8);
        p.objects = need<int64_t>("objects", objects, images * 8);
        p.shared = need<int64_t>("shared", shared, images * maps * maps * 8, true);
        p.threads = threads;
        py::gil_scoped_release release;
        run(*kernels().map_metrics, p);
      },
      py::arg("shape"), py::kw_only(), py::arg("low"), py::arg("truth"), py::arg("bytes"), py::arg("resize"),
      py::arg("rules"), py::arg("value"), py::arg("hit"), py::arg("outside"), py::arg("weight"), py::arg("objects"),
      py::arg("shared"), py::arg("threads"));
}
