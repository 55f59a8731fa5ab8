// Steps of a computation, each cut into tasks, run by however many threads come.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dynaspec::cpu {

// A task of phase p starts when all tasks of phase p - 1 are done. Tasks are claimed in order, so
// whoever waits, waits for tasks that a running thread holds: one thread suffices, more are faster,
// and none can be missing. This replaces one parallel region (and its 5 to 10 microseconds) a
// phase.
class Phases {
 public:
  static constexpr int kMax = 16;

  void add(int64_t tasks) {
    first_[count_ + 1] = first_[count_] + (tasks > 0 ? tasks : 1);
    ++count_;
  }

  // Calls body(phase, task) until no task is left.
  template <class Body>
  void work(const Body& body) {
    int phase = 0;
    for (;;) {
      const int64_t claimed = next_.fetch_add(1, std::memory_order_relaxed);
      if (claimed >= first_[count_]) return;
      while (claimed >= first_[phase + 1]) ++phase;
      if (phase > 0) wait(phase - 1);
      body(phase, claimed - first_[phase]);
      done_[phase].value.fetch_add(1, std::memory_order_release);
    }
  }

 private:
  static constexpr int kSpins = 2000;  // some 30 microseconds; then the processor is left to others

  void wait(int phase) {
    const int64_t all = first_[phase + 1] - first_[phase];
    for (int spin = 0; done_[phase].value.load(std::memory_order_acquire) < all; ++spin) {
      if (spin >= kSpins) {
        std::this_thread::yield();
      } else {
#if defined(__x86_64__)
        _mm_pause();
#endif
      }
    }
  }

  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };

  Counter done_[kMax];
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) int64_t first_[kMax + 1] = {0};
  int count_ = 0;
};

}  // namespace dynaspec::cpu
