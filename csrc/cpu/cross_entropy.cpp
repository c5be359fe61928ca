// The kernel of cross_entropy.h. Threads share rows, then columns.
#include "cross_entropy.h"

#include "kernel_table.h"
#include "threads.h"

namespace ssl_fast::SSL_FAST_ISA {
namespace {

template <class T>
void cross_entropy(const CrossEntropyParams& p, Workspace& workspace) {
  constexpr int L = kLanes<T>;
  const CrossEntropy<T> of{p, workspace.take<double>(2 * p.rows)};
  const int64_t of_row = cross_entropy_scratch(p.columns), of_columns = round_up(p.rows * L, 64);
  const int64_t size = of_row > of_columns ? of_row : of_columns;
  T* scratch = workspace.take<T>(p.threads * size);
  parallel(p.threads, [&] {
    T* local = scratch + omp_get_thread_num() * size;
    parallel_for(p.rows, [&](int64_t i) {
      if (p.of_rows)
        of.row(i, local);
      else if (of.grad)
        for (int64_t j = 0; j < p.columns; ++j) of.grad[i * p.columns + j] = 0;
    });
    if (p.of_columns) parallel_for((p.rows + L - 1) / L, [&](int64_t block) { of.column_block(block * L, local); });
  });
  store_loss<T>(p, of.loss);
}

}  // namespace

void cross_entropy_kernel(const CrossEntropyParams& p, Workspace& workspace) {
  p.float64 ? cross_entropy<double>(p, workspace) : cross_entropy<float>(p, workspace);
}

}  // namespace ssl_fast::SSL_FAST_ISA
