// Runtime of the emulation: a cooperative scheduler of the CUDA threads of one block, each a fiber with a stack of its
// own. A thread runs until it waits at a barrier or for its warp.
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "sanitizers.h"
#ifndef __x86_64__
#error "the emulation switches stacks of x86-64"
#endif

// Context switch: pushes the callee-saved registers, stores the stack pointer in *from, and resumes the stack `to`.
extern "C" void ssl_fast_switch_stack(void** from, void* to);
asm(R"(
.text
.type ssl_fast_switch_stack,@function
ssl_fast_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");

extern "C" char static_shared_begin[], static_shared_end[];  // of static_shared.ld

namespace emulation {

Dim3 thread_index, block_index, block_size, grid_size;

namespace {

constexpr int kWarpSize = 32, kMaxThreads = 1024;
constexpr size_t kStack = 64 << 10;
constexpr int kBarriers = 15;
int multiprocessors = 3, max_shared = 99 << 10;  // shared memory that every GPU since sm_80 grants

enum class State { ready, at_barrier, at_warp, done };

// cp.async; from null: zero-fill
struct Copy {
  void* to;
  const void* from;
};
struct Thread {
  State state;
  void* stack_pointer;
  int barrier;  // that it waits at
  bool odd;     // which of the warp's two buffers it uses next
  std::vector<Copy> uncommitted;
  std::deque<std::vector<Copy>> commit_groups;
  Context context;
};
struct Warp {
  // double-buffered, so that a fast lane cannot overwrite what a slow one still reads
  alignas(16) unsigned char values[2][kWarpSize][kLaneBytes];
  unsigned arrived;  // mask of lanes
};

struct Barrier {
  int waiting;
  bool odd;       // phase: what a fast thread does at its next phase is not ordered with this one
  char order[2];  // addresses of ThreadSanitizer's happens-before edges, one for each phase
};

Barrier barriers[1 + kBarriers];  // 0 is that of __syncthreads
std::vector<Thread> threads;
std::vector<Warp> warps;
std::vector<std::unique_ptr<char[]>> stacks;
struct Free {
  void operator()(char* p) const { ::operator delete[](p, std::align_val_t(128)); }
};
std::unique_ptr<char[], Free> shared;
const std::function<void()>* kernel;
std::vector<uintptr_t> streams;
void* scheduler;
int running, live;
Context scheduler_context;
char launch_order, end_order;

void switch_to_scheduler(bool last = false) {
  Context& context = threads[running].context;
  leave(context, scheduler_context, last);
  ssl_fast_switch_stack(&threads[running].stack_pointer, scheduler);
  arrive(context, scheduler_context);
}

void run_thread(int i) {
  running = i;
  thread_index = {unsigned(i), 0, 0};
  leave(scheduler_context, threads[i].context, false);
  ssl_fast_switch_stack(&scheduler, threads[i].stack_pointer);
  arrive(scheduler_context, threads[i].context);
}

void release_barrier(int barrier) {
  barriers[barrier].waiting = 0;
  barriers[barrier].odd = !barriers[barrier].odd;
  for (Thread& thread : threads)
    if (thread.state == State::at_barrier && thread.barrier == barrier) thread.state = State::ready;
}

void wait_at(int barrier, int count) {
  char* order = &barriers[barrier].order[barriers[barrier].odd];
  release(order);
  threads[running].state = State::at_barrier, threads[running].barrier = barrier;
  if (++barriers[barrier].waiting == count) release_barrier(barrier);
  switch_to_scheduler();
  acquire(order);
}

void thread_main() {
  arrive(threads[running].context, scheduler_context);
  acquire(&launch_order);
  (*kernel)();
  release(&end_order);
  threads[running].state = State::done;
  if (--live && barriers[0].waiting == live) release_barrier(0);
  switch_to_scheduler(true);
  std::abort();
}

void start(int i) {
  Thread& thread = threads[i];
  begin(thread.context, stacks[i].get(), kStack);
  auto top = (reinterpret_cast<uintptr_t>(stacks[i].get()) + kStack) / 16 * 16;
  // at the entry of a function the stack pointer is 8 below a multiple of 16
  void** frame = reinterpret_cast<void**>(top) - 2;
  *frame = reinterpret_cast<void*>(thread_main);
  thread.state = State::ready, thread.stack_pointer = frame - 6, thread.odd = false;
  thread.uncommitted.clear(), thread.commit_groups.clear();
}

}  // namespace

void set_device(int processors, int shared) { multiprocessors = processors, max_shared = shared; }

void fail(const char* what) {
  std::fprintf(stderr, "emulation: block %u, thread %u: %s\n", block_index.x, thread_index.x, what);
  std::abort();
}

int lane() { return running % kWarpSize; }

void syncthreads() { wait_at(0, live); }

void named_barrier_sync(int barrier, int count) {
  if (barrier < 0 || barrier >= kBarriers || count < kWarpSize || count % kWarpSize) fail("no such barrier");
  wait_at(1 + barrier, count);
}

const unsigned char* warp_exchange(unsigned mask, const void* value, int bytes) {
  Thread& thread = threads[running];
  Warp& warp = warps[running / kWarpSize];
  if (!(mask >> lane() & 1)) fail("a warp exchange by a thread outside its mask");
  auto& values = warp.values[thread.odd];
  thread.odd = !thread.odd;
  // bytewise: ThreadSanitizer intercepts memcpy and would report a race, as it does not see that the exchange orders it
  for (int i = 0; i < bytes; ++i) values[lane()][i] = static_cast<const unsigned char*>(value)[i];
  warp.arrived |= 1u << lane();
  if ((warp.arrived & mask) == mask) {
    warp.arrived &= ~mask;
    for (int i = 0; i < kWarpSize; ++i)
      if (mask >> i & 1) threads[running / kWarpSize * kWarpSize + i].state = State::ready;
  } else {
    thread.state = State::at_warp;
    switch_to_scheduler();
  }
  return values[0];
}

void cp_async(void* to, const void* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    fail("a copy that is not aligned to 16 bytes");
  std::memset(to, 0xff, 16);
  wrote16(to);
  threads[running].uncommitted.push_back({to, valid ? from : nullptr});
}

void cp_async_commit() {
  Thread& thread = threads[running];
  thread.commit_groups.push_back(std::move(thread.uncommitted));
  thread.uncommitted.clear();
}

void cp_async_wait(int pending) {
  auto& groups = threads[running].commit_groups;
  for (; int(groups.size()) > pending; groups.pop_front())
    for (const Copy& copy : groups.front()) {
      copy.from ? std::memcpy(copy.to, copy.from, 16) : std::memset(copy.to, 0, 16);
      if (copy.from) read16(copy.from);
      wrote16(copy.to);
    }
}

char* shared_bytes() { return shared.get(); }

int64_t static_shared_bytes() { return static_shared_end - static_shared_begin; }

std::vector<uintptr_t> take_streams() { return std::exchange(streams, {}); }

void launch(int64_t blocks, int count, int64_t bytes, void* stream, const std::function<void()>& function) {
  streams.push_back(reinterpret_cast<uintptr_t>(stream));
  if (blocks < 1 || blocks > INT32_MAX || count < 1 || count > kMaxThreads || count % kWarpSize || bytes > max_shared)
    fail("bad size of a launch");
  shared.reset(new (std::align_val_t(128)) char[bytes]);
  kernel = &function;
  threads.resize(count), warps.resize(count / kWarpSize);
  while (int(stacks.size()) < count) stacks.emplace_back(new char[kStack]);
  adopt(scheduler_context);
  grid_size = {unsigned(blocks), 1, 1}, block_size = {unsigned(count), 1, 1};
  for (int64_t block = 0; block < blocks; ++block) {
    block_index = {unsigned(block), 0, 0};
    live = count;
    for (Barrier& barrier : barriers) barrier.waiting = 0;
    std::memset(shared.get(), 0xff, bytes);
#ifndef __SANITIZE_ADDRESS__
    std::memset(static_shared_begin, 0xff, static_shared_bytes());
#endif
    for (Warp& warp : warps) std::memset(&warp, 0xff, sizeof warp.values), warp.arrived = 0;
    for (int i = 0; i < count; ++i) start(i);
    release(&launch_order);
    while (live) {
      bool progress = false;
      for (int i = 0; i < count; ++i)
        if (threads[i].state == State::ready) run_thread(i), progress = true;
      if (!progress) fail("threads wait for each other at different barriers");
    }
    acquire(&end_order);
  }
}

}  // namespace emulation

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? emulation::multiprocessors : emulation::max_shared;
  return cudaSuccess;
}
