// Runtime dispatch over instruction sets: a table of kernels for each, which one is in use, and the call of a kernel
// with its workspace, threads and huge pages.
#pragma once
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../params.h"

namespace ssl_fast {

// Bump allocator for the scratch memory of one call, freed with it.
class Workspace {
 public:
  void* allocate(int64_t bytes);  // aligned to 64 bytes; throws std::bad_alloc

  // Always inlined: no copy compiled for one instruction set can be linked into another's kernels.
  template <class T>
  __attribute__((always_inline)) T* take(int64_t count) {
    return static_cast<T*>(allocate(count * sizeof(T)));
  }

 private:
  std::vector<std::unique_ptr<char, decltype(&std::free)>> blocks;
  char* next = nullptr;  // free memory of the last block
  int64_t left = 0, block_bytes = 1 << 15;
};

template <class Params>
using Kernel = void(const Params&, Workspace&);

// Constant-initialised: loading the module runs no code that was compiled for another processor.
struct KernelTable {
  const char* instruction_set;
  int panel_float, panel_double;  // audios are padded to a multiple of this in cached alphas
  Kernel<SimilarityParams>*similarity, *similarity_backward;
  Kernel<ProductParams>*product, *product_backward;
  Kernel<CellsParams>*cosine, *cosine_backward, *mean, *mean_backward;
  Kernel<MapParams>* map_metrics;
  Kernel<CrossEntropyParams>* cross_entropy;
};

const KernelTable& kernels();                  // of the instruction set in use
std::vector<std::string> instruction_sets();   // built and supported by this processor, best last
void use_instruction_set(const std::string&);  // for tests; throws std::invalid_argument

// For tests: of the kernel that ran last on this thread. It need not be the set in use, see kernel_table.h. __thread,
// as a thread_local would be read through an inline function that the linker could take from another instruction set.
extern __thread const char* last_instruction_set;

// Runs a kernel with its workspace. large: outputs in fresh memory, for which huge pages are requested.
template <class Params>
void run(Kernel<Params>& kernel, Params params, std::vector<std::pair<void*, int64_t>> large = {});

extern template void run(Kernel<SimilarityParams>&, SimilarityParams, std::vector<std::pair<void*, int64_t>>);
extern template void run(Kernel<ProductParams>&, ProductParams, std::vector<std::pair<void*, int64_t>>);
extern template void run(Kernel<CellsParams>&, CellsParams, std::vector<std::pair<void*, int64_t>>);
extern template void run(Kernel<MapParams>&, MapParams, std::vector<std::pair<void*, int64_t>>);
extern template void run(Kernel<CrossEntropyParams>&, CrossEntropyParams, std::vector<std::pair<void*, int64_t>>);

}  // namespace ssl_fast
