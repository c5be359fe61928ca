// From Python's arguments to the structs of params.h, for the module and for the emulation of its CUDA kernels.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "params.h"

namespace ssl_fast {

namespace py = pybind11;
using Address = std::uintptr_t;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// (dtype, channels_last, images, audios, channels, cells)
inline Shape shape_of(const std::array<int64_t, 6>& s) { return {DType(s[0]), s[1] != 0, s[2], s[3], s[4], s[5]}; }

// `run(CellsParams, stream)`: threads count on the CPU, the stream (a cudaStream_t) on CUDA.
template <class Run>
void bind_cells(py::module_& m, const char* name, Run run) {
  m.def(
      name,
      [run](std::array<int64_t, 6> shape, Address visual, Address audio, Address weight, Address inverse_norm,
            Address out, Address grad_out, Address grad_visual, Address grad_audio, int threads, Address stream) {
        py::gil_scoped_release release;
        run(CellsParams{shape_of(shape), at(visual), at(audio), at(weight), at(inverse_norm), at(out), at(grad_out),
                        at(grad_visual), at(grad_audio), threads},
            at(stream));
      },
      py::arg("shape"), py::kw_only(), py::arg("visual"), py::arg("audio") = 0, py::arg("weight") = 0,
      py::arg("inverse_norm"), py::arg("out"), py::arg("grad_out") = 0, py::arg("grad_visual") = 0,
      py::arg("grad_audio") = 0, py::arg("threads") = 1, py::arg("stream") = 0);
}

}  // namespace ssl_fast
