// Declarations of the kernels of one instruction set, each defined in the file of its name. A set with the bfloat16
// GEMM compiles only what uses it, similarity and product of bfloat16 features; all other calls go to `plain`, the set
// without it (avx512).
#pragma once
#include "bf16_gemm.h"
#include "isa.h"

#if defined(__AVX512BF16__)
#define SSL_FAST_PLAIN_ISA avx512
#else
#define SSL_FAST_PLAIN_ISA SSL_FAST_ISA
#endif

namespace ssl_fast::SSL_FAST_PLAIN_ISA {

Kernel<SimilarityParams> similarity_kernel, similarity_backward_kernel;
Kernel<ProductParams> product_kernel, product_backward_kernel;
Kernel<CellsParams> cosine_kernel, cosine_backward_kernel, mean_kernel, mean_backward_kernel;
Kernel<MapParams> map_metrics_kernel;
Kernel<CrossEntropyParams> cross_entropy_kernel;

}  // namespace ssl_fast::SSL_FAST_PLAIN_ISA

namespace ssl_fast::SSL_FAST_ISA {

namespace plain = SSL_FAST_PLAIN_ISA;
Kernel<SimilarityParams> similarity_kernel, similarity_backward_kernel;
Kernel<ProductParams> product_kernel, product_backward_kernel;

// f(T()) in the computing type of a call: float or double.
template <class Params, class F>
void with_compute_type(const Params& p, F f) {
  if constexpr (kBf16Gemm)
    f(float());
  else
    p.shape.dtype == DType::float64 ? f(double()) : f(float());
}

}  // namespace ssl_fast::SSL_FAST_ISA
