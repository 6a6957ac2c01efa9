// Parallel loops. One pool, made by the application and passed by reference; the library starts no
// threads of its own and uses no OpenMP. Results never depend on the number of threads, because work
// is cut into pieces by the caller and pieces are only handed to whichever worker is free.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace croquis {

class Executor {
 public:
  // `threads` workers in all, the calling thread included; 1 runs everything in the caller.
  explicit Executor(int threads = 1);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  int threads() const { return threads_; }

  // Calls fn(task, worker) once for each task in [0, tasks), worker in [0, threads()). Returns when all
  // are done. Tasks are taken in order from a shared counter. fn must not throw and must not call
  // ParallelFor of the same executor.
  template <class F>
  void ParallelFor(int64_t tasks, const F& fn) {
    Run(
        tasks, [](const void* f, int64_t task, int worker) { (*static_cast<const F*>(f))(task, worker); }, &fn);
  }

 private:
  using Call = void (*)(const void* fn, int64_t task, int worker);
  void Run(int64_t tasks, Call call, const void* fn);
  struct Pool;
  int threads_;
  std::unique_ptr<Pool> pool_;
};

// Threads this process may use (its CPU affinity), at least 1.
int HardwareThreads();

}  // namespace croquis
