// Instruction sets: the table of kernels that each fills in, which one runs, and the call itself: workspace, threads,
// huge pages. `bytes` is the workspace a call needs.
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

// For tests: of the kernel that ran last on this thread. It need not be the set in use, see kernel_table.h. __thread,
// as a thread_local would be read through an inline function that the linker could take from another instruction set.
extern __thread const char* last_instruction_set;

// Runs a kernel with its workspace. `large` are outputs whose pages it is about to touch for the first time.
template <class Params>
void run(const Kernel<Params>& kernel, Params params, std::vector<std::pair<void*, int64_t>> large = {});

extern template void run(const Kernel<SimilarityParams>&, SimilarityParams, std::vector<std::pair<void*, int64_t>>);
extern template void run(const Kernel<ProductParams>&, ProductParams, std::vector<std::pair<void*, int64_t>>);
extern template void run(const Kernel<CellsParams>&, CellsParams, std::vector<std::pair<void*, int64_t>>);
extern template void run(const Kernel<MapParams>&, MapParams, std::vector<std::pair<void*, int64_t>>);

}  // namespace ssl_fast
