// The table of kernels that each instruction set fills in. `bytes` is the workspace a call needs.
#pragma once
#include "../params.h"

namespace ssl_fast {

template <class Params>
struct Kernel {
  int64_t (*bytes)(const Params&);
  void (*run)(const Params&, char* workspace);
};

// Constant-initialised: loading the module runs no code that was compiled for another processor.
struct KernelTable {
  const char* instruction_set;
  int panel_float, panel_double;  // audios are padded to a multiple of this where the engine keeps alpha
  const Kernel<SimilarityParams>*similarity, *similarity_backward;
  const Kernel<ProductParams>*product, *product_backward;
  const Kernel<CellsParams>*cosine, *cosine_backward, *mean, *mean_backward;
  const Kernel<MapParams>* map_metrics;
};

}  // namespace ssl_fast
