// What Python sees. It takes addresses and sizes that ssl_fast/ops has checked; tensors never cross.
#include "bindings.h"
#include "cpu/dispatch.h"
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
Features features_of(const std::array<Address, 6>& f) { return {at(f[0]), at(f[1]), at(f[2]), at(f[3]), at(f[4]), at(f[5])}; }

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled kernels of ssl_fast; use ssl_fast.ops.";
  m.def("instruction_set", [] { return kernels().instruction_set; });
  m.def("instruction_sets", &instruction_sets);
  m.def("use_instruction_set", &use_instruction_set);
  m.def("panel", [](bool float64) { return float64 ? kernels().panel_double : kernels().panel_float; });
#ifdef SSL_FAST_CUDA
  m.attr("cuda_architectures") = SSL_FAST_CUDA;
  m.def("cuda_status", [] {
    int count = 0;
    const char* error = cuda::device_count(&count);
    return py::make_tuple(count, error ? py::object(py::str(error)) : py::object(py::none()));
  });
  cuda::bind(m.def_submodule("cuda", "The kernels that run on CUDA devices."));
#else
  m.attr("cuda_architectures") = "";
#endif

  m.def(
      "similarity",
      [](std::array<int64_t, 6> shape, std::array<Address, 6> features, int pooling, double epsilon, double beta,
         int64_t kept, Address positives, Address positive_map, Address scores, Address pair, Address grad_scores,
         Address grad_map, int threads) {
        py::gil_scoped_release release;
        Shape s = shape_of(shape);
        Features f = features_of(features);
        SimilarityParams p{s,          f,        Pooling(pooling), epsilon,         beta,         kept,   at<int64_t>(positives),
                           at(positive_map), at(scores), at(pair), at(grad_scores), at(grad_map), threads};
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
        ProductParams p{s,    l,          a,              tau,               Reduce(reduce), Instances(instances),
                        kept, at(scores), at(space_norm), at(instance_norm), at(best_cell),  at(grad_scores),
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

  auto cells = [&m](const char* name, const Kernel<CellsParams>* KernelTable::*forward,
                    const Kernel<CellsParams>* KernelTable::*backward) {
    bind_cells(m, name, [=](const CellsParams& p, void*) {
      run(*(kernels().*(p.grad_out ? backward : forward)), p, {{p.grad_visual, visual_bytes(p.shape)}});
    });
  };
  cells("cosine", &KernelTable::cosine, &KernelTable::cosine_backward);
  cells("mean", &KernelTable::mean, &KernelTable::mean_backward);
}
