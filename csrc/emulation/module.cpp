// The CUDA kernels of this project, run on the CPU. Built by the tests.
#include "../cuda/bindings.h"

PYBIND11_MODULE(ssl_fast_emulation, m) { ssl_fast::cuda::bind(m); }
