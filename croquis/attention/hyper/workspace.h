// Runs of HyperAttention, and what one leaves to the next.
#pragma once

#include <memory>
#include <mutex>

#include "croquis/attention/hyper/options.h"
#include "croquis/attention/method.h"
#include "croquis/attention/tiles.h"
#include "croquis/base/executor.h"

namespace croquis::attention::hyper {

struct Workspace;

// Plans and memory of the last run, kept for one of the same shape: the layers of a model come one after the other, and
// fresh pages cost 5 to 7 % of a run. At most 1 GiB is kept, until this is destroyed or a run of another shape begins.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

 private:
  friend Status RunWith(const Options& options, TileType type, Executor& executor, const Problem& p,
                        const Output& output, RunReport* report, Scratch& scratch);
  // Runs may take place at the same time: only one of them finds something.
  std::unique_ptr<Workspace> Take();
  void Keep(std::unique_ptr<Workspace> workspace);

  std::mutex mutex_;
  std::unique_ptr<Workspace> kept_;
};

// Attention with these options, all heads; what methods' Run does. scratch: of these options alone.
Status RunWith(const Options& options, TileType type, Executor& executor, const Problem& p, const Output& output,
               RunReport* report, Scratch& scratch);

}  // namespace croquis::attention::hyper
