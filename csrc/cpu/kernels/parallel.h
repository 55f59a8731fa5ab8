// Chunks of work over threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace dynaspec::cpu {

// Where the threads come from: whoever binds the kernels names his pool. Until then there is one.
struct ThreadPool {
  // Threads that a call may have now; 1 on a thread that the pool lends.
  int64_t (*size)();
  // Calls body(what, i) once for each i < n <= size(), each on a thread of its own where there is
  // one.
  void (*run)(int64_t n, void (*body)(void* what, int64_t i), void* what);
};

void use_threads(const ThreadPool& pool);
const ThreadPool& thread_pool();

// f(i) once for each i < n, on n threads.
template <class F>
void on_threads(int64_t n, const F& f) {
  if (n <= 1) {
    if (n == 1) f(int64_t{0});
    return;
  }
  thread_pool().run(
      n, [](void* what, int64_t i) { (*static_cast<const F*>(what))(i); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// Most threads that `for_chunks` will use for so many chunks: thread slots are 0 .. result - 1.
inline int64_t thread_slots(int64_t chunks) {
  return std::max<int64_t>(1, std::min<int64_t>(thread_pool().size(), chunks));
}

// Calls f(chunk, slot, after) once for each chunk. A slot takes chunks in ascending order,
// whichever is next: a thread that the machine holds up does not hold up the others. `after` is the
// chunk that the slot will take afterwards if the other threads, which began theirs before, end
// before it; it may be past the last one.
template <class F>
void for_chunks_ahead(int64_t chunks, int64_t slots, const F& f) {
  if (slots <= 1) {
    for (int64_t c = 0; c < chunks; ++c) f(c, int64_t{0}, c + 1);
    return;
  }
  std::atomic<int64_t> next{0};
  on_threads(slots, [&](int64_t slot) {
    for (int64_t c = next.fetch_add(1); c < chunks; c = next.fetch_add(1)) {
      f(c, slot, next.load(std::memory_order_relaxed) + slots - 1);
    }
  });
}

// The same for work that does not look ahead: f(chunk, slot).
template <class F>
void for_chunks(int64_t chunks, int64_t slots, const F& f) {
  for_chunks_ahead(chunks, slots, [&](int64_t c, int64_t slot, int64_t) { f(c, slot); });
}

}  // namespace dynaspec::cpu
