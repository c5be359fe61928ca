// The kernels of one instruction set, each defined in the file of its name. A set with bfloat16 products compiles only
// what uses them, the similarities and products of bfloat16 features; `plain`, the set without them, serves all other
// calls.
#pragma once
#include "bf16_gemm.h"
#include "isa.h"

#if defined(__AVX512BF16__)
#define SSL_FAST_PLAIN_ISA avx512
#else
#define SSL_FAST_PLAIN_ISA SSL_FAST_ISA
#endif

namespace ssl_fast::SSL_FAST_PLAIN_ISA {

extern const Kernel<SimilarityParams> similarity_kernel, similarity_backward_kernel;
extern const Kernel<ProductParams> product_kernel, product_backward_kernel;
extern const Kernel<CellsParams> cosine_kernel, cosine_backward_kernel, mean_kernel, mean_backward_kernel;
extern const Kernel<MapParams> map_metrics_kernel;

}  // namespace ssl_fast::SSL_FAST_PLAIN_ISA

namespace ssl_fast::SSL_FAST_ISA {

namespace plain = SSL_FAST_PLAIN_ISA;
extern const Kernel<SimilarityParams> similarity_kernel, similarity_backward_kernel;
extern const Kernel<ProductParams> product_kernel, product_backward_kernel;

// f(T()) in the computing type of a call that this set serves.
template <class Params, class F>
void with_type(const Params& p, F f) {
  if constexpr (kHalfProducts)
    f(float());
  else
    p.shape.dtype == DType::float64 ? f(double()) : f(float());
}

template <class Params>
void hand_over(const Kernel<Params>& kernel, const Params& p, char* workspace, int64_t* bytes) {
  bytes ? void(*bytes = kernel.bytes(p)) : kernel.run(p, workspace);
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
