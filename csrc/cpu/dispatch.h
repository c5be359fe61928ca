// Which instruction set runs, and the call itself: workspace, threads, huge pages.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace ssl_fast {

const KernelTable& kernels();                  // of the instruction set in use
std::vector<std::string> instruction_sets();   // built and supported by this processor, best last
void use_instruction_set(const std::string&);  // for tests; throws std::invalid_argument

// Runs a kernel with its workspace. `large` are outputs whose pages it is about to touch for the first time.
template <class Params>
void run(const Kernel<Params>& kernel, Params params, std::vector<std::pair<void*, int64_t>> large = {});

extern template void run(const Kernel<SimilarityParams>&, SimilarityParams, std::vector<std::pair<void*, int64_t>>);
extern template void run(const Kernel<ProductParams>&, ProductParams, std::vector<std::pair<void*, int64_t>>);
extern template void run(const Kernel<CellsParams>&, CellsParams, std::vector<std::pair<void*, int64_t>>);
extern template void run(const Kernel<MapParams>&, MapParams, std::vector<std::pair<void*, int64_t>>);

}  // namespace ssl_fast
