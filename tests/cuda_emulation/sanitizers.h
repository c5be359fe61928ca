// Annotations of fibers for AddressSanitizer and ThreadSanitizer. To ThreadSanitizer each CUDA thread is a thread,
// ordered with others by barriers alone, so that a missing __syncthreads() is reported as a race; the emulation itself
// is compiled without it.
#pragma once
#include <cstddef>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(SSL_FAST_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read16(void*);
extern "C" void __tsan_write16(void*);
#endif

namespace emulation {

struct Context {
  const void* stack = nullptr;
  size_t size = 0;
  void *fake = nullptr, *fiber = nullptr;
};

#if defined(__SANITIZE_ADDRESS__)
inline void begin(Context& fiber, const void* stack, size_t size) {
  __asan_unpoison_memory_region(stack, size);  // frames of the fiber that ended there
  fiber = {stack, size, nullptr, nullptr};
}
inline void adopt(Context&) {}
inline void leave(Context& from, const Context& to, bool last) {
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake, to.stack, to.size);
}
inline void arrive(Context& here, Context& from) {
  __sanitizer_finish_switch_fiber(here.fake, &from.stack, &from.size);
}
#elif defined(SSL_FAST_THREAD_SANITIZER)
inline void begin(Context& fiber, const void*, size_t) {
  if (!fiber.fiber) fiber.fiber = __tsan_create_fiber(0);  // reused once it has ended: creating one is slow
}
inline void adopt(Context& running) { running.fiber = __tsan_get_current_fiber(); }
inline void leave(Context&, const Context& to, bool) {
  __tsan_switch_to_fiber(to.fiber, __tsan_switch_to_fiber_no_sync);
}
inline void arrive(Context&, Context&) {}
#else
inline void begin(Context&, const void*, size_t) {}
inline void adopt(Context&) {}
inline void leave(Context&, const Context&, bool) {}
inline void arrive(Context&, Context&) {}
#endif

// Happens-before edge: from what a thread did before release(at) to what any thread does after its acquire(at).
#if defined(SSL_FAST_THREAD_SANITIZER)
inline void release(void* at) { __tsan_release(at); }
inline void acquire(void* at) { __tsan_acquire(at); }
inline void read16(const void* at) { __tsan_read16(const_cast<void*>(at)); }
inline void wrote16(void* at) { __tsan_write16(at); }
#else
inline void release(void*) {}
inline void acquire(void*) {}
inline void read16(const void*) {}
inline void wrote16(void*) {}
#endif

}  // namespace emulation
