// Steps of a computation, each cut into tasks, run by however many threads come.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dynaspec::cpu {

// All tasks of a phase are done before the next phase begins. A phase's tasks are dealt to
// `workers` in contiguous portions, so that each streams through memory of its own; who has
// finished his takes from the others'. Nobody waits for a worker that has not come: he waits for
// claimed tasks only, and these are being run. So one thread suffices and more are faster. This
// replaces a parallel region, and its 5 to 10 microseconds, a phase.
class Phases {
 public:
  static constexpr int kMax = 12;

  explicit Phases(int workers) : workers_(workers), next_(new Counter[kMax * workers]) {}

  void add(int64_t tasks) { tasks_[count_++] = tasks; }

  // First task of a worker's portion.
  int64_t first(int phase, int worker) const { return tasks_[phase] * worker / workers_; }

  // Calls body(phase, task) until no task is left, and idle(phase) after a phase's last task,
  // before the others' are waited for.
  template <class Body, class Idle>
  void work(int worker, const Body& body, const Idle& idle) {
    for (int phase = 0; phase < count_; ++phase) {
      int64_t ran = 0;
      for (int turn = 0; turn < workers_; ++turn) {
        const int owner = (worker + turn) % workers_;
        const int64_t begin = first(phase, owner), end = first(phase, owner + 1);
        std::atomic<int64_t>& next = next_[phase * workers_ + owner].value;
        if (turn > 0 && next.load(std::memory_order_relaxed) >= end - begin) continue;
        for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < end - begin;
             i = next.fetch_add(1, std::memory_order_relaxed)) {
          body(phase, begin + i);
          ++ran;
        }
      }
      if (ran > 0) done_[phase].value.fetch_add(ran, std::memory_order_acq_rel);
      idle(phase);
      wait(phase);
    }
  }

 private:
  static constexpr int kSpins = 2000;  // some 30 microseconds; then the processor is left to others

  void wait(int phase) const {
    for (int spin = 0; done_[phase].value.load(std::memory_order_acquire) < tasks_[phase]; ++spin) {
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

  const int workers_;
  int count_ = 0;
  int64_t tasks_[kMax] = {};
  Counter done_[kMax];
  const std::unique_ptr<Counter[]> next_;
};

}  // namespace dynaspec::cpu
