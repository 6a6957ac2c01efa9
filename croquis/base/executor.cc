#include "croquis/base/executor.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace croquis {
namespace {
// Decoding one token dispatches some hundred short loops: a worker that sleeps between them costs more
// than the work. It spins for about 50 us, then sleeps.
constexpr int kSpins = 4000;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}
}  // namespace

struct Executor::Pool {
  std::atomic<uint64_t> generation{0};
  std::atomic<int64_t> next{0};
  std::atomic<int> running{0};
  std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false};
  int64_t tasks = 0;
  Call call = nullptr;
  const void* fn = nullptr;
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> threads;

  void Work(int worker) {
    for (int64_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) call(fn, t, worker);
  }
  void Loop(int worker) {
    for (uint64_t seen = 0;;) {
      for (int spins = 0; generation.load(std::memory_order_acquire) == seen; ++spins) {
        if (spins < kSpins) {
          Pause();
          continue;
        }
        std::unique_lock lock(mutex);
        sleepers.fetch_add(1);
        wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
        sleepers.fetch_sub(1);
      }
      seen = generation.load(std::memory_order_acquire);
      if (stop) return;
      Work(worker);
      running.fetch_sub(1, std::memory_order_release);
    }
  }
  void Announce() {
    {
      // Under the mutex, so that a worker between its test and its wait is not missed.
      std::lock_guard lock(mutex);
      generation.fetch_add(1, std::memory_order_release);
    }
    if (sleepers.load() > 0) wake.notify_all();
  }
};

Executor::Executor(int threads) : threads_(std::max(1, threads)) {
  if (threads_ == 1) return;
  pool_ = std::make_unique<Pool>();
  for (int i = 1; i < threads_; ++i) pool_->threads.emplace_back([this, i] { pool_->Loop(i); });
}

Executor::~Executor() {
  if (!pool_) return;
  pool_->stop = true;
  pool_->Announce();
  for (auto& t : pool_->threads) t.join();
}

void Executor::Run(int64_t tasks, Call call, const void* fn) {
  if (!pool_ || tasks <= 1) {
    for (int64_t t = 0; t < tasks; ++t) call(fn, t, 0);
    return;
  }
  Pool& p = *pool_;
  p.tasks = tasks;
  p.call = call;
  p.fn = fn;
  p.next.store(0, std::memory_order_relaxed);
  p.running.store(threads_ - 1, std::memory_order_relaxed);
  p.Announce();
  p.Work(0);
  for (int spins = 0; p.running.load(std::memory_order_acquire) > 0; ++spins) {
    if (spins < kSpins)
      Pause();
    else
      std::this_thread::yield();
  }
}

int HardwareThreads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return int(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace croquis
