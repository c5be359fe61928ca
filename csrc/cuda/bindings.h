// The CUDA kernels, with the signatures of their CPU twins.
#pragma once
#include <stdexcept>
#include <string>

#include "../bindings.h"
#include "kernels.h"

namespace ssl_fast::cuda {

// Bytes of k columns (channels, padded) of a packed row, and of a row of a matrix with a column for each audio.
constexpr int64_t kKBlockBytes = 64;
inline int64_t matrix_columns(int64_t audios) { return (audios + 7) / 8 * 8; }
inline int64_t matrix_bytes(DType dtype) { return dtype == DType::bfloat16 ? 2 : real_bytes(dtype); }

// The pairs of all audios with the cells of some images; rows and norms as `pack` wrote them.
struct PairBuffers {
  PairsParams params;
  int64_t pairs, matrix;  // numbers of scores; bytes of a matrix
};

inline void bind(py::module_ m) {
  auto check = [](const char* name, const char* error) {
    if (error) throw std::runtime_error(std::string(name) + ": CUDA: " + error);
  };
  using Stream = std::uintptr_t;
  auto stream_of = [](Stream stream) { return reinterpret_cast<void*>(stream); };
  bind_cells(m, "cosine", false, [=](const CellsParams& p, bool, void* stream) { check("cosine", cosine(p, stream)); });
  bind_cells(m, "mean", true, [=](const CellsParams& p, bool, void* stream) { check("mean", mean(p, stream)); });

  py::class_<PairBuffers>(m, "Pairs", py::module_local())
      .def(py::init([](DType dtype, bool tf32, int64_t audios, int64_t images, int64_t cells, int64_t k_blocks,
                       Buffer packed_audios, Buffer packed_cells, Buffer audio_norm, Buffer cell_norm, Buffer features,
                       int64_t channels, bool normalized) {
             check_sizes("pairs", {audios, kKBlockBytes, k_blocks});
             check_sizes("pairs", {images, cells, kKBlockBytes, k_blocks});
             check_sizes("pairs", {images, cells, audios});
             const int64_t real = real_bytes(dtype), rows = images * cells;
             if (channels < 0 || channels * bytes_of(dtype) > k_blocks * kKBlockBytes)
               throw std::invalid_argument("pairs: more channels than rows have room for");
             PairsParams p{dtype,
                           tf32,
                           audios,
                           images,
                           cells,
                           k_blocks,
                           need("packed_audios", packed_audios, audios * k_blocks * kKBlockBytes),
                           need("packed_cells", packed_cells, rows * k_blocks * kKBlockBytes, true),
                           need("audio_norm", audio_norm, audios * real),
                           need("cell_norm", cell_norm, rows * real),
                           need("features", features, rows * channels * bytes_of(dtype), true),
                           channels,
                           normalized};
             return PairBuffers{p, images * audios, rows * matrix_columns(audios) * matrix_bytes(dtype)};
           }),
           py::kw_only(), py::arg("dtype"), py::arg("tf32"), py::arg("audios"), py::arg("images"), py::arg("cells"),
           py::arg("k_blocks"), py::arg("packed_audios"), py::arg("packed_cells") = py::none(), py::arg("audio_norm"),
           py::arg("cell_norm"), py::arg("features") = py::none(), py::arg("channels") = 0,
           py::arg("normalized") = true);
  // The cells of pairs that a kernel multiplies, which are packed or, where it can pack them, features.
  auto need_cells = [](const PairBuffers& pairs, bool features) {
    const PairsParams& p = pairs.params;
    if (pairs.pairs && !p.packed_cells && !(features && p.features))
      throw std::invalid_argument("packed_cells: expected a buffer, got null");
  };

  m.def(
      "good_chunk",
      [](DType dtype, bool tf32, int64_t audios, int64_t cells, int64_t k_blocks, int64_t most, int spaces) {
        PairsParams p{};
        p.dtype = dtype, p.tf32 = tf32, p.audios = audios, p.cells = cells, p.k_blocks = k_blocks;
        return good_chunk(p, most, spaces);
      },
      py::kw_only(), py::arg("dtype"), py::arg("tf32"), py::arg("audios"), py::arg("cells"), py::arg("k_blocks"),
      py::arg("most"), py::arg("spaces"));

  m.def(
      "plan",
      [](DType dtype, bool tf32, int64_t audios, int64_t images, int64_t cells, int64_t k_blocks, int multiprocessors,
         int shared) {
        PairsParams p{};
        p.dtype = dtype, p.tf32 = tf32, p.audios = audios, p.images = images, p.cells = cells, p.k_blocks = k_blocks;
        const Device device{multiprocessors, shared};
        const Plan plan = plan_of(p, multiprocessors ? &device : nullptr);
        py::dict found;
        found["resident"] = plan.resident, found["warp_groups"] = plan.warp_groups();
        found["splits"] = plan.splits, found["blocks"] = plan.blocks, found["shared"] = plan.shared;
        return found;
      },
      py::kw_only(), py::arg("dtype"), py::arg("tf32"), py::arg("audios"), py::arg("images"), py::arg("cells"),
      py::arg("k_blocks"), py::arg("multiprocessors") = 0, py::arg("shared") = 0);

  auto cached_bytes = [](const PairBuffers& pairs, int64_t images) {
    const int64_t bytes = bytes_of(pairs.params.dtype);  // 16 bits for both kinds of half precision
    return images * pairs.params.cells * matrix_columns(pairs.params.audios) * bytes;
  };
  auto pool_params = [](const PairBuffers& pairs, Pooling pooling, const std::vector<double>& parameters,
                        const Buffer& scores, const Buffer& residual) {
    const int64_t real = real_bytes(pairs.params.dtype);
    PoolParams p{};
    p.pairs = pairs.params;
    set_pooling(p, pooling, parameters);
    p.scores = need("scores", scores, pairs.pairs * real);
    p.residual = need("residual", residual, pairs.pairs * (is_sparse(pooling) ? 4 : real));
    return p;
  };
  m.def(
      "pool_forward",
      [=](const PairBuffers& pairs, Pooling pooling, const std::vector<double>& parameters, Buffer scores,
          Buffer residual, Buffer cached, int64_t cached_images, Stream stream) {
        PoolParams p = pool_params(pairs, pooling, parameters, scores, residual);
        need_cells(pairs, true);
        if (cached_images < 0 || cached_images > (is_sparse(pooling) ? 0 : pairs.params.images))
          throw std::invalid_argument("cached_images: expected at most the images, got " +
                                      std::to_string(cached_images));
        p.cached_images = cached_images;
        p.cached = need("cached", cached, cached_bytes(pairs, cached_images));
        check("pool_forward", pool_forward(p, stream_of(stream)));
      },
      py::arg("pairs"), py::kw_only(), py::arg("pooling"), py::arg("parameters"), py::arg("scores"),
      py::arg("residual"), py::arg("cached") = py::none(), py::arg("cached_images") = 0, py::arg("stream") = 0);
  m.def(
      "pool_slopes",
      [=](const PairBuffers& pairs, Pooling pooling, const std::vector<double>& parameters, Buffer scores,
          Buffer residual, Buffer grad_scores, Buffer slopes, Buffer cached, Stream stream) {
        PoolParams p = pool_params(pairs, pooling, parameters, scores, residual);
        p.grad_scores = need("grad_scores", grad_scores, pairs.pairs * real_bytes(pairs.params.dtype));
        p.slopes = need("slopes", slopes, pairs.matrix);
        p.cached = need("cached", cached, cached_bytes(pairs, pairs.params.images), true);
        if (!p.cached) need_cells(pairs, false);
        check("pool_slopes", p.cached ? cached_slopes(p, stream_of(stream)) : pool_slopes(p, stream_of(stream)));
      },
      py::arg("pairs"), py::kw_only(), py::arg("pooling"), py::arg("parameters"), py::arg("scores"),
      py::arg("residual"), py::arg("grad_scores"), py::arg("slopes"), py::arg("cached") = py::none(),
      py::arg("stream") = 0);
  m.def(
      "alphas",
      [=](const std::vector<PairBuffers>& spaces, const std::vector<Buffer>& out, Stream stream) {
        if (spaces.empty() || spaces.size() > kMostSpaces || out.size() != spaces.size())
          throw std::invalid_argument("alphas: expected 1 or 2 spaces and as many matrices, got " +
                                      std::to_string(spaces.size()) + " and " + std::to_string(out.size()));
        auto sizes = [](const PairsParams& p) {
          return std::make_tuple(p.dtype, p.tf32, p.audios, p.images, p.cells, p.k_blocks);
        };
        PairsParams pairs[kMostSpaces];
        void* matrices[kMostSpaces];
        for (size_t i = 0; i < spaces.size(); ++i) {
          need_cells(spaces[i], true);
          if (sizes(spaces[i].params) != sizes(spaces[0].params))
            throw std::invalid_argument("alphas: expected spaces of the same sizes");
          pairs[i] = spaces[i].params, matrices[i] = need("out", out[i], spaces[i].matrix);
        }
        check("alphas", alphas(pairs, matrices, int(spaces.size()), stream_of(stream)));
      },
      py::arg("spaces"), py::kw_only(), py::arg("out"), py::arg("stream") = 0);

  // bytes of gradients of `count` packed rows
  auto gradient_bytes = [](int64_t count, DType dtype, int64_t k_blocks, bool real) {
    return count * k_blocks * kKBlockBytes / bytes_of(dtype) * (real ? real_bytes(dtype) : bytes_of(dtype));
  };
  m.def(
      "max_backward_visual",
      [=](const PairBuffers& pairs, Buffer grad_scores, Buffer argmax, Buffer gradient, bool real_gradient,
          Stream stream) {
        const PairsParams& p = pairs.params;
        need_cells(pairs, false);
        const int64_t bytes = gradient_bytes(p.images * p.cells, p.dtype, p.k_blocks, real_gradient);
        check("max_backward_visual",
              max_backward_visual(p, need("grad_scores", grad_scores, pairs.pairs * real_bytes(p.dtype)),
                                  need<int32_t>("argmax", argmax, pairs.pairs * 4), need("gradient", gradient, bytes),
                                  real_gradient, stream_of(stream)));
      },
      py::arg("pairs"), py::kw_only(), py::arg("grad_scores"), py::arg("argmax"), py::arg("gradient"),
      py::arg("real_gradient"), py::arg("stream") = 0);
  m.def(
      "max_backward_audio",
      [=](const PairBuffers& pairs, Buffer grad_scores, Buffer argmax, Buffer sums, Stream stream) {
        const PairsParams& p = pairs.params;
        need_cells(pairs, false);
        check("max_backward_audio",
              max_backward_audio(p, need("grad_scores", grad_scores, pairs.pairs * real_bytes(p.dtype)),
                                 need<int32_t>("argmax", argmax, pairs.pairs * 4),
                                 need("sums", sums, gradient_bytes(p.audios, p.dtype, p.k_blocks, true)),
                                 stream_of(stream)));
      },
      py::arg("pairs"), py::kw_only(), py::arg("grad_scores"), py::arg("argmax"), py::arg("sums"),
      py::arg("stream") = 0);

  auto pack_params = [](const Shape& s, int64_t k_blocks, const Buffer& features, const Buffer& packed,
                        const Buffer& inverse_norm, bool tf32, bool optional) {
    const int64_t count = s.images * s.cells;
    return PackParams{s,
                      k_blocks,
                      need("features", features, visual_bytes(s)),
                      need("packed", packed, count * k_blocks * kKBlockBytes, optional),
                      need("inverse_norm", inverse_norm, count * real_bytes(s.dtype), optional),
                      tf32};
  };
  py::class_<PackParams>(m, "Pack", py::module_local())
      .def(
          py::init([=](const Shape& shape, int64_t k_blocks, Buffer features, Buffer packed, Buffer inverse_norm,
                       bool tf32) { return pack_params(shape, k_blocks, features, packed, inverse_norm, tf32, true); }),
          py::arg("shape"), py::kw_only(), py::arg("k_blocks"), py::arg("features"), py::arg("packed"),
          py::arg("inverse_norm"), py::arg("tf32") = false);
  py::class_<UnpackParams>(m, "Unpack", py::module_local())
      .def(py::init([=](const Shape& shape, int64_t k_blocks, Buffer features, Buffer packed, Buffer inverse_norm,
                        Buffer gradient, bool real_gradient, Buffer scale) {
             const int64_t bytes = gradient_bytes(shape.images * shape.cells, shape.dtype, k_blocks, real_gradient);
             return UnpackParams{pack_params(shape, k_blocks, features, packed, inverse_norm, false, false),
                                 need("gradient", gradient, bytes), real_gradient,
                                 need("scale", scale, real_bytes(shape.dtype), true)};
           }),
           py::arg("shape"), py::kw_only(), py::arg("k_blocks"), py::arg("features"), py::arg("packed"),
           py::arg("inverse_norm"), py::arg("gradient"), py::arg("real_gradient"), py::arg("scale") = py::none());
  auto check_packed = [](const char* name, const auto& items, auto shape_of) {
    if (items.empty() || items.size() > kMostPacked)
      throw std::invalid_argument(std::string(name) + ": expected 1 to " + std::to_string(kMostPacked) +
                                  " tensors, got " + std::to_string(items.size()));
    for (const auto& item : items)
      if (shape_of(item).dtype != shape_of(items[0]).dtype)
        throw std::invalid_argument(std::string(name) + ": expected tensors of one dtype");
  };
  m.def(
      "pack",
      [=](const std::vector<PackParams>& features, Stream stream) {
        check_packed("pack", features, [](const PackParams& p) { return p.shape; });
        check("pack", pack(features.data(), int(features.size()), stream_of(stream)));
      },
      py::arg("features"), py::kw_only(), py::arg("stream") = 0);
  m.def(
      "unpack",
      [=](const std::vector<UnpackParams>& gradients, Stream stream) {
        check_packed("unpack", gradients, [](const UnpackParams& p) { return p.rows.shape; });
        check("unpack", unpack(gradients.data(), int(gradients.size()), stream_of(stream)));
      },
      py::arg("gradients"), py::kw_only(), py::arg("stream") = 0);

  // A chunk of images of SLAVC's product: ProductChunk of kernels.h.
  py::class_<ProductChunk>(m, "ProductChunk", py::module_local())
      .def(py::init([](DType dtype, Reduce reduce, Instances instances, double tau, int64_t images, int64_t audios,
                       int64_t cells, Buffer loc, Buffer avc, Buffer instance_top, Buffer instance_log, Buffer loc_top,
                       Buffer loc_log, Buffer top, Buffer log, Buffer scores, Buffer argmax, Buffer grad_scores,
                       Buffer grad_sums, Buffer loc_audio_norm, Buffer loc_cell_norm, Buffer avc_audio_norm,
                       Buffer avc_cell_norm, Buffer loc_slopes, Buffer avc_slopes) {
             check_sizes("product", {images, audios, cells});
             const int64_t real = real_bytes(dtype), pairs = images * audios * real, rows = images * cells;
             const int64_t matrix = rows * matrix_columns(audios) * matrix_bytes(dtype);
             const int64_t softmaxes = (instances == Instances::audio ? rows : cells * audios) * real;
             return ProductChunk{dtype,
                                 reduce,
                                 instances,
                                 tau,
                                 images,
                                 audios,
                                 cells,
                                 need("loc", loc, matrix),
                                 need("avc", avc, matrix),
                                 need("instance_top", instance_top, softmaxes),
                                 need("instance_log", instance_log, softmaxes),
                                 need("loc_top", loc_top, pairs),
                                 need("loc_log", loc_log, pairs),
                                 need("top", top, pairs),
                                 need("log", log, pairs),
                                 need("scores", scores, pairs),
                                 need<int32_t>("argmax", argmax, reduce == Reduce::max ? images * audios * 4 : 0),
                                 need("grad_scores", grad_scores, pairs, true),
                                 need("grad_sums", grad_sums, softmaxes, true),
                                 need("loc_audio_norm", loc_audio_norm, audios * real, true),
                                 need("loc_cell_norm", loc_cell_norm, rows * real, true),
                                 need("avc_audio_norm", avc_audio_norm, audios * real, true),
                                 need("avc_cell_norm", avc_cell_norm, rows * real, true),
                                 need("loc_slopes", loc_slopes, matrix, true),
                                 need("avc_slopes", avc_slopes, matrix, true)};
           }),
           py::kw_only(), py::arg("dtype"), py::arg("reduce"), py::arg("instances"), py::arg("tau"), py::arg("images"),
           py::arg("audios"), py::arg("cells"), py::arg("loc"), py::arg("avc"), py::arg("instance_top"),
           py::arg("instance_log"), py::arg("loc_top"), py::arg("loc_log"), py::arg("top"), py::arg("log"),
           py::arg("scores"), py::arg("argmax"), py::arg("grad_scores") = py::none(), py::arg("grad_sums") = py::none(),
           py::arg("loc_audio_norm") = py::none(), py::arg("loc_cell_norm") = py::none(),
           py::arg("avc_audio_norm") = py::none(), py::arg("avc_cell_norm") = py::none(),
           py::arg("loc_slopes") = py::none(), py::arg("avc_slopes") = py::none());
  auto given = [](const char* name, const void* pointer) {
    if (!pointer) throw std::invalid_argument(std::string(name) + ": expected a buffer, got null");
  };
  m.def(
      "product_instances",
      [=](const ProductChunk& chunk, bool first, bool last, Stream stream) {
        check("product_instances", product_instances(chunk, first, last, stream_of(stream)));
      },
      py::arg("chunk"), py::kw_only(), py::arg("first"), py::arg("last"), py::arg("stream") = 0);
  m.def(
      "product_scores",
      [=](const ProductChunk& chunk, Stream stream) {
        check("product_scores", product_scores(chunk, stream_of(stream)));
      },
      py::arg("chunk"), py::kw_only(), py::arg("stream") = 0);
  m.def(
      "product_grad_sums",
      [=](const ProductChunk& chunk, bool first, Stream stream) {
        given("grad_scores", chunk.grad_scores), given("grad_sums", chunk.grad_sums);
        check("product_grad_sums", product_grad_sums(chunk, first, stream_of(stream)));
      },
      py::arg("chunk"), py::kw_only(), py::arg("first"), py::arg("stream") = 0);
  m.def(
      "product_slopes",
      [=](const ProductChunk& chunk, Stream stream) {
        given("grad_scores", chunk.grad_scores), given("loc_audio_norm", chunk.loc_audio_norm);
        given("loc_cell_norm", chunk.loc_cell_norm), given("avc_audio_norm", chunk.avc_audio_norm);
        given("avc_cell_norm", chunk.avc_cell_norm);
        given("loc_slopes", chunk.loc_slopes), given("avc_slopes", chunk.avc_slopes);
        if (chunk.instances == Instances::image) given("grad_sums", chunk.grad_sums);
        check("product_slopes", product_slopes(chunk, stream_of(stream)));
      },
      py::arg("chunk"), py::kw_only(), py::arg("stream") = 0);
}

}  // namespace ssl_fast::cuda
