// The CUDA kernels, with the signatures of their CPU twins.
#pragma once
#include <stdexcept>
#include <string>

#include "../bindings.h"
#include "kernels.h"

namespace ssl_fast::cuda {

// ((dtype, tf32, audios, images, cells, slabs), (audio_rows, cell_rows, audio_norm, cell_norm))
using Pairs = std::pair<std::array<int64_t, 6>, std::array<Address, 4>>;
inline PairsParams params_of(const Pairs& pairs) {
  const auto& [sizes, rows] = pairs;
  return {DType(sizes[0]), sizes[1] != 0, sizes[2],    sizes[3],    sizes[4],
          sizes[5],        at(rows[0]),   at(rows[1]), at(rows[2]), at(rows[3])};
}

inline void bind(py::module_ m) {
  auto check = [](const char* name, const char* error) {
    if (error) throw std::runtime_error(std::string(name) + ": CUDA: " + error);
  };
  auto cells = [&](const char* name, const char* (*kernel)(const CellsParams&, void*)) {
    bind_cells(m, name, [=](const CellsParams& p, void* stream) { check(name, kernel(p, stream)); });
  };
  cells("cosine", cosine);
  cells("mean", mean);

  m.def("good_chunk", [](Pairs pairs, int64_t most) { return good_chunk(params_of(pairs), most); });
  m.def(
      "similarity",
      [check](Pairs pairs, int pooling, double epsilon, double beta, Address scores, Address kept, Address grad_scores,
              Address slopes, Address stream) {
        PoolParams p{params_of(pairs), Pooling(pooling), epsilon,         beta,
                     at(scores),       at(kept),         at(grad_scores), at(slopes)};
        check("similarity", (slopes ? cuda::slopes : cuda::scores)(p, at(stream)));
      },
      py::arg("pairs"), py::kw_only(), py::arg("pooling"), py::arg("epsilon"), py::arg("beta"), py::arg("scores"),
      py::arg("kept"), py::arg("grad_scores") = 0, py::arg("slopes") = 0, py::arg("stream") = 0);
  m.def(
      "alphas",
      [check](Pairs pairs, Address out, Address stream) {
        check("alphas", alphas(params_of(pairs), at(out), at(stream)));
      },
      py::arg("pairs"), py::kw_only(), py::arg("out"), py::arg("stream") = 0);
  m.def(
      "gather_visual",
      [check](Pairs pairs, Address grad_scores, Address best, Address gradient, bool real_gradient, Address stream) {
        check("gather_visual", gather_visual(params_of(pairs), at(grad_scores), at<int32_t>(best), at(gradient),
                                             real_gradient, at(stream)));
      },
      py::arg("pairs"), py::kw_only(), py::arg("grad_scores"), py::arg("best"), py::arg("gradient"),
      py::arg("real_gradient"), py::arg("stream") = 0);
  m.def(
      "gather_audio",
      [check](Pairs pairs, Address grad_scores, Address best, Address sums, Address stream) {
        check("gather_audio", gather_audio(params_of(pairs), at(grad_scores), at<int32_t>(best), at(sums), at(stream)));
      },
      py::arg("pairs"), py::kw_only(), py::arg("grad_scores"), py::arg("best"), py::arg("sums"), py::arg("stream") = 0);
  m.def(
      "pack",
      [check](std::array<int64_t, 6> shape, int64_t slabs, Address features, Address rows, Address inverse_norm,
              bool tf32, Address stream) {
        check("pack", pack({shape_of(shape), slabs, at(features), at(rows), at(inverse_norm), tf32}, at(stream)));
      },
      py::arg("shape"), py::kw_only(), py::arg("slabs"), py::arg("features"), py::arg("rows") = 0,
      py::arg("inverse_norm") = 0, py::arg("tf32") = false, py::arg("stream") = 0);
  m.def(
      "unpack",
      [check](std::array<int64_t, 6> shape, int64_t slabs, Address features, Address rows, Address inverse_norm,
              Address gradient, bool real_gradient, Address stream) {
        PackParams p{shape_of(shape), slabs, at(features), at(rows), at(inverse_norm), false};
        check("unpack", unpack(p, at(gradient), real_gradient, at(stream)));
      },
      py::arg("shape"), py::kw_only(), py::arg("slabs"), py::arg("features"), py::arg("rows"), py::arg("inverse_norm"),
      py::arg("gradient"), py::arg("real_gradient"), py::arg("stream") = 0);

  // Stages of the product: "instances", "scores", "shares", "slopes".
  m.def(
      "product",
      [check](const std::string& stage, std::array<int64_t, 6> sizes, double tau, std::array<Address, 2> cosines,
              std::array<Address, 2> instance_norm, std::array<Address, 2> space_norm, Address scores,
              Address best_cell, Address grad_scores, Address shares, std::array<Address, 4> norms, bool first,
              bool last, Address stream) {
        ProductChunk p{DType(sizes[0]),
                       Reduce(sizes[1]),
                       Instances(sizes[2]),
                       tau,
                       sizes[3],
                       sizes[4],
                       sizes[5],
                       at(cosines[0]),
                       at(cosines[1]),
                       at(instance_norm[0]),
                       at(instance_norm[1]),
                       at(space_norm[0]),
                       at(space_norm[1]),
                       at(scores),
                       at<int32_t>(best_cell),
                       at(grad_scores),
                       at(shares),
                       at(norms[0]),
                       at(norms[1]),
                       at(norms[2]),
                       at(norms[3])};
        check("product", stage == "instances" ? product_instances(p, first, last, at(stream))
                         : stage == "scores"  ? product_scores(p, at(stream))
                         : stage == "shares"  ? product_grad_sums(p, first, at(stream))
                                              : product_slopes(p, at(stream)));
      },
      py::arg("stage"), py::arg("sizes"), py::kw_only(), py::arg("tau"), py::arg("cosines"), py::arg("instance_norm"),
      py::arg("space_norm"), py::arg("scores"), py::arg("best_cell"), py::arg("grad_scores") = 0, py::arg("shares") = 0,
      py::arg("norms") = std::array<Address, 4>{}, py::arg("first") = true, py::arg("last") = true,
      py::arg("stream") = 0);
}

}  // namespace ssl_fast::cuda
