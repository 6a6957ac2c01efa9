// The machine's own speed limit: how fast a plain loop reads memory with the executor's threads.
#pragma once

#include <cstdint>

#include "croquis/base/executor.h"
#include "croquis/base/memory.h"

namespace croquis::eval {

// A buffer that is read from end to end. Passes are meant to be interleaved with what is compared with them.
class ReadProbe {
 public:
  // `bytes`: well above the last cache; taken and written at once, so check it with CheckMemory first.
  explicit ReadProbe(Executor& executor, int64_t bytes);
  // Reads all of it once with every thread; returns bytes per second. The two loops that compilers and processors
  // treat differently (with and without software prefetch) are tried in turn from pass to pass.
  double Pass();
  // A value that depends on all that was read, so that reads cannot be left out.
  uint64_t checksum() const { return checksum_; }
  int64_t bytes() const { return int64_t(buffer_.size()); }

 private:
  Executor& executor_;
  Buffer buffer_;
  uint64_t checksum_ = 0;
  int64_t passes_ = 0;
};

}  // namespace croquis::eval
