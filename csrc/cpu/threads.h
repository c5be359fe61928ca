// Parallel regions and loops with a static schedule, on the threads of torch's own OpenMP pool. By the entry points of
// libgomp, which GCC's OpenMP calls: Clang's OpenMP would load LLVM's runtime, a second pool beside torch's, whose idle
// threads spin while regions of the other run.
#pragma once
#include <cstdint>

#include "isa.h"

extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
void GOMP_barrier();
int omp_get_thread_num();
int omp_get_num_threads();
}

namespace ssl_fast::SSL_FAST_ISA {

extern const KernelTable table;

// Parallel region: body() on each of `threads` threads. Each run of a kernel calls this once, in its own instruction
// set.
template <class Body>
void parallel(int threads, Body body) {
  last_instruction_set = table.instruction_set;
  GOMP_parallel([](void* data) { (*static_cast<Body*>(data))(); }, &body, threads, 0);
}

// Worksharing loop, in `parallel`: f(i) for i < count, contiguous chunks of equal size, then a barrier.
template <class F>
void parallel_for(int64_t count, F f) {
  int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
  for (int64_t i = count * thread / threads, end = count * (thread + 1) / threads; i < end; ++i) f(i);
  GOMP_barrier();
}

}  // namespace ssl_fast::SSL_FAST_ISA
