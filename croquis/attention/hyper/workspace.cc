#include "croquis/attention/hyper/workspace.h"

#include <utility>
#include <vector>

#include "croquis/attention/hyper/engine.h"
#include "croquis/base/memory.h"

namespace croquis::attention::hyper {
namespace {

constexpr int64_t kMostKept = int64_t{1} << 30;  // bytes

bool SameShape(const TensorView& a, const TensorView& b) {
  return a.type == b.type && a.heads == b.heads && a.rows == b.rows && a.dim == b.dim &&
         a.head_stride == b.head_stride && a.row_stride == b.row_stride;
}
bool SameShape(const Problem& a, const Problem& b) {
  return SameShape(a.q, b.q) && SameShape(a.k, b.k) && SameShape(a.v, b.v) && a.scale == b.scale &&
         a.mask.causal == b.mask.causal && a.mask.offset == b.mask.offset && a.mask.window == b.mask.window &&
         a.key_length == b.key_length;
}

// Threads that take a head each, which keeps them busier than sharing one (a head's sorting and its levels wait for
// each other); 1 where heads are few, do not go round, or would need more memory together than there is to spare.
int Lanes(int threads, int64_t heads, int64_t bytes) {
  const bool even = heads % threads == 0 || heads >= 4 * threads;
  const auto together = CheckedMul(bytes, threads);
  return even && together && *together <= AvailableMemory() / 2 ? threads : 1;
}

}  // namespace

// Engines refer to what stands before them.
struct Workspace {
  Workspace(const Options& o, TileType t, int n, const Problem& p)
      : options(o), type(t), threads(n), problem(p), plan(MakePlan(p, o)) {}
  // Takes the memory.
  Status Open() {
    const int64_t each = Engine::Bytes(problem, plan, type);
    CROQUIS_CHECK_OK(CheckMemory(each, "the sorted keys of a head"));
    const int lanes = Lanes(threads, problem.k.heads, each);
    bytes = each * lanes;
    for (int i = 0; i < lanes; ++i) {
      if (lanes > 1) alone.push_back(std::make_unique<Executor>());
      engines.push_back(std::make_unique<Engine>(lanes > 1 ? 1 : threads, problem, output, options, plan, type));
    }
    return {};
  }
  bool Fits(TileType other, int other_threads, const Problem& p) const {
    return type == other && threads == other_threads && SameShape(problem, p);
  }

  const Options options;
  const TileType type;
  const int threads;
  int64_t bytes = 0;
  Problem problem;
  Output output;
  const Plan plan;
  std::vector<std::unique_ptr<Executor>> alone;  // of each lane, where there are several
  std::vector<std::unique_ptr<Engine>> engines;
};

Scratch::Scratch() = default;
Scratch::~Scratch() = default;

std::unique_ptr<Workspace> Scratch::Take() {
  const std::lock_guard lock(mutex_);
  return std::move(kept_);
}

void Scratch::Keep(std::unique_ptr<Workspace> workspace) {
  if (workspace->bytes > kMostKept) return;
  const std::lock_guard lock(mutex_);
  kept_ = std::move(workspace);
}

Status RunWith(const Options& options, TileType type, Executor& executor, const Problem& p, const Output& output,
               RunReport* report, Scratch& scratch) {
  std::unique_ptr<Workspace> work = scratch.Take();
  if (work == nullptr || !work->Fits(type, executor.threads(), p)) {
    work.reset();  // first, so that its memory counts as free
    work = std::make_unique<Workspace>(options, type, executor.threads(), p);
    CROQUIS_CHECK_OK(work->Open());
  }
  work->problem = p, work->output = output;
  std::vector<RunReport> reports(static_cast<size_t>(p.k.heads));  // summed in order: the same on any number of threads
  if (work->alone.empty()) {
    for (int64_t kv = 0; kv < p.k.heads; ++kv) work->engines[0]->RunHead(executor, kv, &reports[size_t(kv)]);
  } else {
    executor.ParallelFor(p.k.heads, [&](int64_t kv, int worker) {
      work->engines[size_t(worker)]->RunHead(*work->alone[size_t(worker)], kv, &reports[size_t(kv)]);
    });
  }
  for (const RunReport& r : reports) {
    report->pairs += r.pairs, report->fallback_rows += r.fallback_rows;
    report->est_error += r.est_error, report->lse_std += r.lse_std;
  }
  const bool estimates = work->plan.segments.empty() || options.probes > 0 || SplitsSamples(options.residual);
  report->est_error = estimates ? report->est_error / double(report->rows) : -1;
  report->lse_std = estimates ? report->lse_std / double(report->rows) : -1;
  report->kernel = simd::Tiles(type).name;
  scratch.Keep(std::move(work));
  return {};
}

}  // namespace croquis::attention::hyper
