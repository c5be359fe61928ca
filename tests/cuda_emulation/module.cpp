// Python module of the emulated CUDA kernels, with the bindings of csrc/cuda/bindings.h. Built by the tests.
#include "../../csrc/cuda/bindings.h"
#include "cuda_runtime.h"

PYBIND11_MODULE(ssl_fast_emulation, m) {
  ssl_fast::bind_types(m);
  ssl_fast::cuda::bind(m);
  m.def("set_device", emulation::set_device);
  m.def("static_shared_bytes", emulation::static_shared_bytes);
  m.def("take_streams", emulation::take_streams);
}
