// The CUDA kernels, as the module calls them: on the current device, in order on `stream` (a cudaStream_t). They return
// null, or what went wrong at the launch. Pointers are to device memory; p.threads means nothing here.
#pragma once
#include "../params.h"

namespace ssl_fast::cuda {

const char* cosine(const CellsParams& p, void* stream);  // backward where p.grad_out is given
const char* mean(const CellsParams& p, void* stream);

}  // namespace ssl_fast::cuda
