// The CUDA kernels, with the signatures of their CPU twins.
#pragma once
#include <stdexcept>
#include <string>

#include "../bindings.h"
#include "kernels.h"

namespace ssl_fast::cuda {

inline void bind(py::module_ m) {
  auto cells = [&m](const char* name, const char* (*kernel)(const CellsParams&, void*)) {
    bind_cells(m, name, [=](const CellsParams& p, void* stream) {
      if (const char* error = kernel(p, stream)) throw std::runtime_error(std::string(name) + ": CUDA: " + error);
    });
  };
  cells("cosine", cosine);
  cells("mean", mean);
}

}  // namespace ssl_fast::cuda
