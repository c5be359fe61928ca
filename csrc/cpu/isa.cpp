// Runtime dispatch: the instruction sets that CPUID and the operating system support, in order of speed; the workspace
// of a call, huge pages, and how many threads it may use.
#include "isa.h"

#include <pthread.h>
#include <sys/mman.h>
#ifdef SSL_FAST_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <new>
#include <stdexcept>

namespace ssl_fast {

// Weak: null where the compiler lacks the instruction set.
namespace baseline {
extern const KernelTable table;
}
namespace avx2 {
extern const KernelTable table __attribute__((weak));
}
namespace avx512 {
extern const KernelTable table __attribute__((weak));
}
namespace avx512_bf16 {
extern const KernelTable table __attribute__((weak));
}
namespace amx {
extern const KernelTable table __attribute__((weak));
}

namespace {

#ifdef SSL_FAST_X86
// AMX tiles of bfloat16 are there, and the operating system lets this process use the tile registers.
bool amx_is_usable() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & (1u << 22)) || !(d & (1u << 24))) return false;
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

const std::vector<const KernelTable*>& tables() {
  static const std::vector<const KernelTable*> usable = [] {
    std::vector<const KernelTable*> all{&baseline::table};
#ifdef SSL_FAST_X86
    auto add = [&](const KernelTable* table) {
      if (table) all.push_back(table);
    };
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) add(&avx2::table);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      // Fastest last. On Intel processors vdpbf16ps is slower than float32 FMAs, and AMX is far faster.
      if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_is("intel")) add(&avx512_bf16::table);
      add(&avx512::table);
      if (__builtin_cpu_supports("avx512bf16") && !__builtin_cpu_is("intel")) add(&avx512_bf16::table);
      if (__builtin_cpu_supports("avx512bf16") && amx_is_usable()) add(&amx::table);
    }
#endif
    return all;
  }();
  return usable;
}

std::atomic<const KernelTable*> in_use{nullptr};

// The threads of an OpenMP pool do not survive fork(): a child uses one thread, or it would wait for them for ever.
std::atomic<bool> forked{false};
const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

__thread const char* last_instruction_set = nullptr;

const KernelTable& kernels() {
  const KernelTable* table = in_use.load();
  return table ? *table : *tables().back();
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const KernelTable* table : tables()) names.push_back(table->instruction_set);
  return names;
}

void use_instruction_set(const std::string& name) {
  for (const KernelTable* table : tables())
    if (name == table->instruction_set) {
      in_use = table;
      return;
    }
  throw std::invalid_argument("instruction set '" + name + "' is not built or not supported by this processor");
}

void* Workspace::allocate(int64_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (bytes > left) {
    // At least doubled: glibc returns freed memory to the system, to be faulted in again by the next call, where it is
    // more than twice the largest block.
    left = block_bytes = std::max(bytes, 2 * block_bytes);
    blocks.emplace_back(static_cast<char*>(std::aligned_alloc(64, left)), &std::free);
    next = blocks.back().get();
    if (!next) throw std::bad_alloc();
  }
  left -= bytes;
  return std::exchange(next, next + bytes);
}

// What threads share.
template <class Params>
int64_t rows_of(const Params& params) {
  return params.shape.images;
}
int64_t rows_of(const CrossEntropyParams& params) { return params.rows; }

template <class Params>
void run(Kernel<Params>& kernel, Params params, std::vector<std::pair<void*, int64_t>> large) {
  constexpr int64_t kHuge = 2 << 20;
  // half of the time of a memory-bound kernel is page faults of fresh memory
  for (auto [start, bytes] : large)
    if (start && bytes >= 2 * kHuge) {
      auto first = (reinterpret_cast<uintptr_t>(start) + kHuge - 1) / kHuge * kHuge;
      auto last = (reinterpret_cast<uintptr_t>(start) + bytes) / kHuge * kHuge;
      // a hint: failure changes nothing
      madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
    }
  params.threads = forked ? 1 : int(std::clamp<int64_t>(params.threads, 1, std::max<int64_t>(rows_of(params), 1)));
  Workspace workspace;
  kernel(params, workspace);
}

template void run(Kernel<SimilarityParams>&, SimilarityParams, std::vector<std::pair<void*, int64_t>>);
template void run(Kernel<ProductParams>&, ProductParams, std::vector<std::pair<void*, int64_t>>);
template void run(Kernel<CellsParams>&, CellsParams, std::vector<std::pair<void*, int64_t>>);
template void run(Kernel<MapParams>&, MapParams, std::vector<std::pair<void*, int64_t>>);
template void run(Kernel<CrossEntropyParams>&, CrossEntropyParams, std::vector<std::pair<void*, int64_t>>);

}  // namespace ssl_fast
