// Threads of torch's own OpenMP pool, by the functions of libgomp that GCC's OpenMP stands on. Clang's OpenMP would
// load LLVM's runtime: a second pool beside torch's, and while a region of the one runs, idle threads of the other
// spin.
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

// Calls body() on each of `threads` threads. Each run of a kernel calls this once, in its own instruction set.
template <class Body>
void parallel(int threads, Body body) {
  last_instruction_set = table.instruction_set;
  GOMP_parallel([](void* data) { (*static_cast<Body*>(data))(); }, &body, threads, 0);
}

// Within `parallel`: f(i) for each i < count, a run of them on each thread, and a barrier.
template <class F>
void parallel_for(int64_t count, F f) {
  int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
  for (int64_t i = count * thread / threads, end = count * (thread + 1) / threads; i < end; ++i) f(i);
  GOMP_barrier();
}

}  // namespace ssl_fast::SSL_FAST_ISA
