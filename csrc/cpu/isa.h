// Runtime dispatch over instruction sets: a table of kernels for each, which one is in use, and the call of a kernel
// with its workspace, threads and huge pages. Kernel::bytes is the size of the workspace.
#pragma once
#include <string>
#include <utility>
#include <vector>

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

const KernelTable& kernels();                  // of the instruction set in use
std::vector<std::string> instruction_sets();   // built and supported by this processor, best last
void use_instruction_set(const std::string&);  // for tests; throws std::invalid_argument

// Runs a kernel with its workspace. large: outputs in fresh memory, for which huge pages are requested.
template <class Params>
void run(const Kernel<Params>& kernel, Params params, std::vector<std::pair<void*, int64_t>> large = {});

extern template void run(const Kernel<SimilarityParams>&, SimilarityParams, std::vector<std::pair<void*, int64_t>>);
extern template void run(const Kernel<ProductParams>&, ProductParams, std::vector<std::pair<void*, int64_t>>);
extern template void run(const Kernel<CellsParams>&, CellsParams, std::vector<std::pair<void*, int64_t>>);
extern template void run(const Kernel<MapParams>&, MapParams, std::vector<std::pair<void*, int64_t>>);

}  // namespace ssl_fast
