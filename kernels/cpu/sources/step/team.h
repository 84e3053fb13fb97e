// Threads that work through a decode step together: each takes the next piece of work until none is left.
#pragma once

#include "types.h"

#include <sched.h>

#include <atomic>
#include <memory>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

class Team {
public:
  // phases: most calls of share in one step.
  explicit Team(int64_t phases) : taken(new Taken[phases]), phases(phases) {}

  // By one thread, before the others start.
  void start(int threads) {
    size = threads;
    arrived.store(0, std::memory_order_relaxed);
    for (int64_t phase = 0; phase < phases; ++phase) taken[phase].next.store(0, std::memory_order_relaxed);
  }

  // Every thread calls this for the same phases in the same order: `run` gets each unit once, in any thread.
  // Returns when all are done.
  template <class Run> void share(int64_t phase, int64_t units, Run &&run) {
    for (int64_t unit; (unit = taken[phase].next.fetch_add(1, std::memory_order_relaxed)) < units;) run(unit);
    wait();
  }

private:
  // A thread that waits spins for some microseconds. Where others need its core, it then lets them have it.
  void wait() {
    const int64_t now = generation.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived.store(0, std::memory_order_relaxed);
      generation.store(now + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; generation.load(std::memory_order_acquire) == now; ++spins) {
      if (spins >= PATIENCE) sched_yield();
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
  }

  static constexpr int PATIENCE = 1000;
  struct alignas(64) Taken {
    std::atomic<int64_t> next{0};
  };
  std::unique_ptr<Taken[]> taken;
  int64_t phases;
  int size = 1;
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<int64_t> generation{0};
};
