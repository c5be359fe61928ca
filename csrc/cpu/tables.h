// The kernels of one instruction set, each defined in the file of its name.
#pragma once
#include "kernels.h"

namespace ssl_fast::SSL_FAST_ISA {

extern const Kernel<SimilarityParams> similarity_kernel, similarity_backward_kernel;
extern const Kernel<ProductParams> product_kernel, product_backward_kernel;
extern const Kernel<CellsParams> cosine_kernel, cosine_backward_kernel, mean_kernel, mean_backward_kernel;
extern const Kernel<MapParams> map_metrics_kernel;

// f(T()) in the computing type of the call.
template <class Params, class F>
void with_type(const Params& p, F f) {
  p.shape.dtype == DType::float64 ? f(double()) : f(float());
}

// From a function that only lays its workspace out when it is asked for bytes.
template <class Params, void (*kRun)(const Params&, char*, int64_t*)>
constexpr Kernel<Params> make_kernel() {
  return {[](const Params& p) {
            int64_t bytes = 0;
            kRun(p, nullptr, &bytes);
            return bytes;
          },
          [](const Params& p, char* workspace) { kRun(p, workspace, nullptr); }};
}

}  // namespace ssl_fast::SSL_FAST_ISA
