// From Python's arguments to the structs of params.h, for the module and for the emulation of its CUDA kernels. Sizes
// are checked once more: a swapped argument is an error and not memory that is overwritten.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "params.h"
#include "pooling.h"

namespace ssl_fast {

namespace py = pybind11;

// A tensor's memory from some element on: (address, bytes), or None.
struct Buffer {
  std::uintptr_t address = 0;
  int64_t bytes = 0;

  explicit operator bool() const { return address != 0; }
  template <class T = void>
  T* at() const {
    return reinterpret_cast<T*>(address);
  }
};

}  // namespace ssl_fast

namespace pybind11::detail {
template <>
struct type_caster<ssl_fast::Buffer> {
  PYBIND11_TYPE_CASTER(ssl_fast::Buffer, const_name("tuple[int, int] | None"));
  bool load(handle source, bool) {
    if (source.is_none()) return true;
    make_caster<std::tuple<std::uintptr_t, int64_t>> pair;
    if (!pair.load(source, false)) return false;
    std::tie(value.address, value.bytes) = cast_op<std::tuple<std::uintptr_t, int64_t>>(pair);
    return true;
  }
};
}  // namespace pybind11::detail

namespace ssl_fast {

// std::invalid_argument unless `buffer` holds `bytes`, or is null where it is `optional`.
template <class T = void>
T* need(const char* name, const Buffer& buffer, int64_t bytes, bool optional = false) {
  if (buffer ? buffer.bytes < bytes : !optional && bytes > 0)
    throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(bytes) + " bytes, got " +
                                (buffer ? std::to_string(buffer.bytes) : "null"));
  return buffer.at<T>();
}

// std::invalid_argument for a negative size, or for more bytes than an address has room for.
inline void check_sizes(const char* name, std::initializer_list<int64_t> sizes) {
  int64_t bytes = 8;
  for (int64_t size : sizes)
    if (size < 0) throw std::invalid_argument(std::string(name) + ": negative size");
  for (int64_t size : sizes)
    if (__builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes))
      throw std::invalid_argument(std::string(name) + ": sizes whose product is too large");
}

inline int64_t bytes_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }
inline int64_t real_bytes(DType dtype) { return dtype == DType::float64 ? 8 : 4; }
inline int64_t visual_bytes(const Shape& s) { return s.images * s.all_channels * s.cells * bytes_of(s.dtype); }
inline int64_t audio_bytes(const Shape& s) { return s.audios * s.all_channels * bytes_of(s.dtype); }

#define SSL_FAST_TRAITS(name, Pool, parameters, sparse) {#name, parameters, sparse},
struct PoolingTraits {
  const char* name;
  size_t parameters;
  bool sparse;
};
constexpr PoolingTraits kPoolings[] = {SSL_FAST_POOLINGS(SSL_FAST_TRAITS)};
#undef SSL_FAST_TRAITS
inline bool is_sparse(Pooling pooling) { return kPoolings[int(pooling)].sparse; }

// Into a struct that has `pooling` and `parameters`.
template <class Params>
void set_pooling(Params& p, Pooling pooling, const std::vector<double>& parameters) {
  const size_t count = kPoolings[int(pooling)].parameters;
  if (parameters.size() != count)
    throw std::invalid_argument("parameters: expected " + std::to_string(count) + ", got " +
                                std::to_string(parameters.size()));
  p.pooling = pooling;
  std::copy(parameters.begin(), parameters.end(), p.parameters);
}

// The types of the arguments, as attributes of a module; each extension module has its own.
inline void bind_types(py::module_& m) {
  py::enum_<DType>(m, "DType", py::module_local())
      .value("float32", DType::float32)
      .value("bfloat16", DType::bfloat16)
      .value("float16", DType::float16)
      .value("float64", DType::float64);
  py::enum_<Pooling> poolings(m, "Pooling", py::module_local());
  py::dict traits;  // name: (number of parameters, sparse)
  for (const PoolingTraits& one : kPoolings) {
    poolings.value(one.name, Pooling(&one - kPoolings));
    traits[one.name] = py::make_tuple(one.parameters, one.sparse);
  }
  m.attr("poolings") = traits;
  py::enum_<Reduce>(m, "Reduce", py::module_local()).value("sum", Reduce::sum).value("max", Reduce::max);
  py::enum_<Instances>(m, "Instances", py::module_local())
      .value("audio", Instances::audio)
      .value("image", Instances::image);
  py::class_<Shape>(m, "Shape", py::module_local())
      .def(py::init([](DType dtype, bool channels_last, int64_t images, int64_t audios, int64_t channels, int64_t cells,
                       bool normalized, std::optional<int64_t> all_channels, int64_t first_channel, int64_t tokens) {
             const int64_t all = all_channels.value_or(channels);
             check_sizes("shape", {images, std::max(audios, all), cells});
             check_sizes("shape", {images, audios, cells});
             check_sizes("shape", {audios, all});
             if (channels < 1 || cells < 1) throw std::invalid_argument("shape: expected channels and cells");
             if (first_channel < 0 || first_channel > all - channels)
               throw std::invalid_argument("shape: expected channels within all_channels");
             if (tokens < 1 || audios % tokens) throw std::invalid_argument("shape: expected audios of whole clips");
             return Shape{dtype, channels_last, images, audios,        channels,
                          cells, normalized,    all,    first_channel, tokens};
           }),
           py::kw_only(), py::arg("dtype"), py::arg("channels_last"), py::arg("images"), py::arg("audios"),
           py::arg("channels"), py::arg("cells"), py::arg("normalized") = true, py::arg("all_channels") = py::none(),
           py::arg("first_channel") = 0, py::arg("tokens") = 1)
      .def_readonly("channels_last", &Shape::channels_last);
}

// `name`_forward and `name`_backward of cosine maps, or with `mean` of the mean unit vectors. `run(CellsParams, bool
// backward, stream)`: threads count on the CPU, the stream (a cudaStream_t) on CUDA.
template <class Run>
void bind_cells(py::module_& m, const std::string& name, bool mean, Run run) {
  // the other side of the pairs, and what is computed: real
  auto params = [mean](const Shape& s, const Buffer& visual, const Buffer& audio, const Buffer& weight, int64_t means,
                       const Buffer& inverse_norm) {
    const int64_t real = real_bytes(s.dtype);
    if (means < 1 || (means > 1 && !weight)) throw std::invalid_argument("means: expected as many as weights");
    check_sizes("means", {means, s.images, std::max(s.channels, s.cells)});
    CellsParams p{};
    p.shape = s;
    p.visual = need("visual", visual, visual_bytes(s));
    if (!mean) p.audio = need("audio", audio, s.images * s.channels * bytes_of(s.dtype));
    p.weight = need("weight", weight, means * s.images * s.cells * real, true);
    p.means = means;
    p.inverse_norm = need("inverse_norm", inverse_norm, s.images * s.cells * real);
    return p;
  };
  m.def((name + "_forward").c_str(),
        [=](const Shape& s, Buffer visual, Buffer audio, Buffer weight, int64_t means, Buffer inverse_norm, Buffer out,
            int threads, std::uintptr_t stream) {
          CellsParams p = params(s, visual, audio, weight, means, inverse_norm);
          p.out = need("out", out, s.images * (mean ? means * s.channels : s.cells) * real_bytes(s.dtype));
          p.threads = threads;
          py::gil_scoped_release release;
          run(p, false, reinterpret_cast<void*>(stream));
        },
        py::arg("shape"), py::kw_only(), py::arg("visual"), py::arg("audio") = py::none(),
        py::arg("weight") = py::none(), py::arg("means") = 1, py::arg("inverse_norm"), py::arg("out"),
        py::arg("threads") = 1, py::arg("stream") = 0);
  m.def((name + "_backward").c_str(),
        [=](const Shape& s, Buffer visual, Buffer audio, Buffer weight, int64_t means, Buffer inverse_norm, Buffer out,
            Buffer grad_out, Buffer grad_visual, Buffer grad_audio, int threads, std::uintptr_t stream) {
          CellsParams p = params(s, visual, audio, weight, means, inverse_norm);
          const int64_t real = real_bytes(s.dtype), size = s.images * (mean ? means * s.channels : s.cells) * real;
          p.out = need("out", out, size, mean);
          p.grad_out = need("grad_out", grad_out, size);
          p.grad_visual = need("grad_visual", grad_visual, visual_bytes(s), true);
          p.grad_audio = need("grad_audio", grad_audio, s.images * s.channels * real, true);
          p.threads = threads;
          py::gil_scoped_release release;
          run(p, true, reinterpret_cast<void*>(stream));
        },
        py::arg("shape"), py::kw_only(), py::arg("visual"), py::arg("audio") = py::none(),
        py::arg("weight") = py::none(), py::arg("means") = 1, py::arg("inverse_norm"), py::arg("out") = py::none(),
        py::arg("grad_out"), py::arg("grad_visual") = py::none(), py::arg("grad_audio") = py::none(),
        py::arg("threads") = 1, py::arg("stream") = 0);
}

}  // namespace ssl_fast
