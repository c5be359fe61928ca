// What Python sees. It takes addresses and sizes that ssl_fast/ops has checked; tensors never cross.
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

int64_t bytes_of(const Shape& s, int64_t count) {
  return count * (s.dtype == DType::float64 ? 8 : s.dtype == DType::float32 ? 4 : 2);
}
int64_t visual_bytes(const Shape& s) { return bytes_of(s, s.images * s.channels * s.cells); }

// (visual, audio, inverse_norm, kept_alpha, grad_visual, grad_audio)
Features features_of(const std::array<Address, 6>& f) {
  return {at(f[0]), at(f[1]), at(f[2]), at(f[3]), at(f[4]), at(f[5])};
}

using AxisArguments = std::tuple<Address, Address, int64_t>;
using ResizeArguments = std::array<AxisArguments, 2>;
Resize resize_of(const ResizeArguments& r) {
  auto axis = [](const AxisArguments& a) {
    return Axis{at<int64_t>(std::get<0>(a)), at<double>(std::get<1>(a)), std::get<2>(a)};
  };
  return {axis(r[0]), axis(r[1])};
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled kernels of ssl_fast; use ssl_fast.ops.";
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
  cuda::bind(m.def_submodule("cuda", "The kernels that run on CUDA devices."));
#else
  m.attr("cuda_architectures") = "";
  m.attr("no_cuda") = SSL_FAST_NO_CUDA;
#endif

  m.def(
      "similarity",
      [](std::array<int64_t, 6> shape, std::array<Address, 6> features, int pooling, double epsilon, double beta,
         int64_t kept, Address positives, Address positive_map, Address scores, Address pair, Address grad_scores,
         Address grad_map, int threads) {
        py::gil_scoped_release release;
        Shape s = shape_of(shape);
        Features f = features_of(features);
        SimilarityParams p{s,          f,        Pooling(pooling),       epsilon,
                           beta,       kept,     at<int64_t>(positives), at(positive_map),
                           at(scores), at(pair), at(grad_scores),        at(grad_map),
                           threads};
        run(*(grad_scores ? kernels().similarity_backward : kernels().similarity), p,
            {{f.grad_visual, visual_bytes(s)}, {grad_scores ? nullptr : f.kept_alpha, kept * s.audios * s.cells * 4}});
      },
      py::arg("shape"), py::arg("features"), py::kw_only(), py::arg("pooling"), py::arg("epsilon"), py::arg("beta"),
      py::arg("kept"), py::arg("positives"), py::arg("positive_map"), py::arg("scores"), py::arg("pair"),
      py::arg("grad_scores") = 0, py::arg("grad_map") = 0, py::arg("threads"));

  m.def(
      "product",
      [](std::array<int64_t, 6> shape, std::array<Address, 6> loc, std::array<Address, 6> avc, double tau, int reduce,
         int instances, int64_t kept, Address scores, Address space_norm, Address instance_norm, Address best_cell,
         Address grad_scores, int threads) {
        py::gil_scoped_release release;
        Shape s = shape_of(shape);
        Features l = features_of(loc), a = features_of(avc);
        ProductParams p{s,
                        l,
                        a,
                        tau,
                        Reduce(reduce),
                        Instances(instances),
                        kept,
                        at(scores),
                        at(space_norm),
                        at(instance_norm),
                        at(best_cell),
                        at(grad_scores),
                        threads};
        int64_t kept_bytes = kept * s.audios * s.cells * 4;
        run(*(grad_scores ? kernels().product_backward : kernels().product), p,
            {{l.grad_visual, visual_bytes(s)},
             {a.grad_visual, visual_bytes(s)},
             {grad_scores ? nullptr : l.kept_alpha, kept_bytes},
             {grad_scores ? nullptr : a.kept_alpha, kept_bytes}});
      },
      py::arg("shape"), py::arg("loc"), py::arg("avc"), py::kw_only(), py::arg("tau"), py::arg("reduce"),
      py::arg("instances"), py::arg("kept"), py::arg("scores"), py::arg("space_norm"), py::arg("instance_norm"),
      py::arg("best_cell"), py::arg("grad_scores") = 0, py::arg("threads"));

  auto cells = [&m](const char* name, const Kernel<CellsParams>* KernelTable::* forward,
                    const Kernel<CellsParams>* KernelTable::* backward) {
    bind_cells(m, name, [=](const CellsParams& p, void*) {
      run(*(kernels().*(p.grad_out ? backward : forward)), p, {{p.grad_visual, visual_bytes(p.shape)}});
    });
  };
  cells("cosine", &KernelTable::cosine, &KernelTable::cosine_backward);
  cells("mean", &KernelTable::mean, &KernelTable::mean_backward);

  // resize: (first, weight, taps) of rows and of columns; rules: (kind, comparison, count, value)
  m.def(
      "map_metrics",
      [](std::array<int64_t, 6> shape, Address low, Address truth, bool bytes, std::array<ResizeArguments, 2> resize,
         const std::vector<std::tuple<int, int, int64_t, float>>& rules, float value, Address hit, Address outside,
         Address weight, Address objects, Address shared, int threads) {
        py::gil_scoped_release release;
        std::vector<MapRule> all;
        for (auto [kind, comparison, count, edge] : rules)
          all.push_back({RuleKind(kind), Comparison(comparison), count, edge});
        run(*kernels().map_metrics, MapParams{{shape[0], shape[1], shape[2], shape[3], shape[4], shape[5]},
                                              at<float>(low),
                                              at(truth),
                                              bytes,
                                              {resize_of(resize[0]), resize_of(resize[1])},
                                              all.data(),
                                              int64_t(all.size()),
                                              value,
                                              at<double>(hit),
                                              at<double>(outside),
                                              at<double>(weight),
                                              at<int64_t>(objects),
                                              at<int64_t>(shared),
                                              threads});
      },
      py::arg("shape"), py::kw_only(), py::arg("low"), py::arg("truth"), py::arg("bytes"), py::arg("resize"),
      py::arg("rules"), py::arg("value"), py::arg("hit"), py::arg("outside"), py::arg("weight"), py::arg("objects"),
      py::arg("shared"), py::arg("threads"));
}
