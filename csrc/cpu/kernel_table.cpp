// Table of the kernels of one instruction set.
#include "kernel_table.h"
#include "gemm_tile.h"

#define SSL_FAST_STRING_(x) #x
#define SSL_FAST_STRING(x) SSL_FAST_STRING_(x)

namespace ssl_fast::SSL_FAST_ISA {

extern const KernelTable table;
const KernelTable table{SSL_FAST_STRING(SSL_FAST_ISA),
                        kPanel<float>,
                        kPanel<double>,
                        &similarity_kernel,
                        &similarity_backward_kernel,
                        &product_kernel,
                        &product_backward_kernel,
                        &plain::cosine_kernel,
                        &plain::cosine_backward_kernel,
                        &plain::mean_kernel,
                        &plain::mean_backward_kernel,
                        &plain::map_metrics_kernel,
                        &plain::cross_entropy_kernel};

}  // namespace ssl_fast::SSL_FAST_ISA
