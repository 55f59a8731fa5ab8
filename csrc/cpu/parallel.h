// Chunks of work over ATen's threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace dynaspec::cpu {

// Most threads that `for_chunks` will use for so many chunks: thread slots are 0 .. result - 1.
inline int64_t thread_slots(int64_t chunks) {
  if (at::in_parallel_region()) return 1;
  return std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), chunks));
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
  at::parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      for (int64_t c = next.fetch_add(1); c < chunks; c = next.fetch_add(1)) {
        f(c, slot, next.load(std::memory_order_relaxed) + slots - 1);
      }
    }
  });
}

// The same for work that does not look ahead: f(chunk, slot).
template <class F>
void for_chunks(int64_t chunks, int64_t slots, const F& f) {
  for_chunks_ahead(chunks, slots, [&](int64_t c, int64_t slot, int64_t) { f(c, slot); });
}

}  // namespace dynaspec::cpu
