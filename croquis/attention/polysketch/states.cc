#include <algorithm>
#include <atomic>
#include <vector>

#include "croquis/attention/polysketch/pairs.h"
#include "croquis/attention/polysketch/runner.h"

namespace croquis::attention::polysketch {
namespace {

// Blocks are taken in waves of this many: their states, made in parallel, become the states before each of them by a
// scan, and are read in parallel. A wave's states stay in cache whatever the length, so the time a token takes does
// not depend on it, and no product is done twice (a scan over all blocks with few carries would add every key twice).
constexpr int64_t kWave = 16;
constexpr int64_t kQueryRows = 256;       // rows of a task
constexpr int64_t kScanFloats = 1 << 14;  // numbers of a task of the scan
// Of states of kv heads taken together. More tasks at a time, but states that leave the second cache, cost 10 % with
// 8 heads on 2 cores.
constexpr int64_t kRoundBytes = int64_t{4} << 20;

struct Job {
  int64_t block, first, rows;  // queries first .. first + rows; block -1: all keys are in the state
};

class StateRun {
 public:
  StateRun(Executor& executor, const PolyForm& form, const Problem& p, const Output& output)
      : executor_(executor),
        form_(form),
        p_(p),
        output_(output),
        block_(form.config().block),
        padded_(linear::Padded(block_)),
        blocks_((p.k.rows + block_ - 1) / block_),
        wave_(std::min(kWave, blocks_)),
        state_(form.map().StateFloats(p.v.dim)),
        inputs_(form.LocalInputs() * padded_),
        heads_(std::clamp<int64_t>(kRoundBytes / ((wave_ + 1) * state_ * 4), 1, p.k.heads)) {}

  Status Run(RunReport* report);

 private:
  struct Worker {
    std::vector<float> x, m, mt, scratch;
    PolyTile tile;
  };
  float* State(int64_t head, int64_t slot) { return states_.data() + (head * wave_ + slot) * state_; }
  float* Carry(int64_t head) { return carries_.data() + head * state_; }
  KeyBlock Keys(int64_t kv, int64_t head, int64_t block) const;

  void SumBlock(int64_t kv, int64_t head, int64_t block, Worker& w);
  void Scan(int64_t head, int64_t slots, int64_t first, int64_t n);
  std::vector<Job> JobsOf(int64_t first_block, int64_t slots) const;
  void RunJob(const Job& job, int64_t kv, int64_t head, int64_t q_head, Worker& w);
  void RunJobs(const std::vector<Job>& jobs, int64_t first_head, int64_t heads);

  Executor& executor_;
  const PolyForm& form_;
  const Problem& p_;
  const Output& output_;
  const int64_t block_, padded_, blocks_, wave_, state_, inputs_, heads_;
  Matrix<float> states_, carries_, inputs_of_, values_of_;  // of the round's heads: [heads, wave], [heads], ...
  std::vector<Worker> workers_;
  std::atomic<bool> finite_{true};
};

KeyBlock StateRun::Keys(int64_t kv, int64_t head, int64_t block) const {
  const int64_t slot = head * wave_ + block % wave_, first = block * block_, n = std::min(block_, p_.k.rows - first);
  const RowsView v = p_.v.Head(kv).Rows(first, n);
  const MatView<const float> values =
      v.type == simd::RowType::kF32 ? MatView<const float>(reinterpret_cast<const float*>(v.data), n, v.dim, v.stride)
                                    : MatView<const float>(values_of_.data() + slot * block_ * v.dim, n, v.dim);
  return {inputs_of_.data() + slot * inputs_, padded_, values};
}

// The block's state, and what its own queries need of it.
void StateRun::SumBlock(int64_t kv, int64_t head, int64_t block, Worker& w) {
  const int64_t slot = head * wave_ + block % wave_, first = block * block_, n = std::min(block_, p_.k.rows - first);
  const int64_t rank = form_.rank(), dim = p_.q.dim;
  form_.Prepare(p_.k.Head(kv).Rows(first, n), false, w.x.data());
  form_.Sketch(w.x.data(), n, w.m.data(), rank, w.scratch.data());
  if (p_.v.type != simd::RowType::kF32)
    AsF32(p_.v.Head(kv).Rows(first, n), values_of_.data() + slot * block_ * p_.v.dim);
  float* const inputs = inputs_of_.data() + slot * inputs_;
  float* const mt = form_.ExactLocal() ? w.mt.data() : inputs;
  if (form_.ExactLocal()) linear::Transpose(w.x.data(), dim, n, dim, inputs, padded_);
  linear::Transpose(w.m.data(), rank, n, rank, mt, padded_);
  float* const state = State(head, block % wave_);
  std::fill_n(state, state_, 0.f);
  form_.map().Add(mt, padded_, Keys(kv, head, block).v, state, w.scratch.data());
}

void StateRun::Scan(int64_t head, int64_t slots, int64_t first, int64_t n) {
  for (int64_t slot = 0; slot < slots; ++slot)
    simd::FeatureLoops().scan_step(State(head, slot) + first, Carry(head) + first, n);
}

// Under a causal mask a query belongs to the block that its last key lies in; queries that see no key to the first.
std::vector<Job> StateRun::JobsOf(int64_t first_block, int64_t slots) const {
  std::vector<Job> jobs;
  for (int64_t block = first_block; block < first_block + slots; ++block) {
    const int64_t nq = p_.q.rows, begin = block == 0 ? 0 : std::clamp<int64_t>(block * block_ - p_.mask.offset, 0, nq),
                  end = block == blocks_ - 1 ? nq : std::clamp<int64_t>((block + 1) * block_ - p_.mask.offset, 0, nq);
    for (int64_t i = begin; i < end; i += kQueryRows) jobs.push_back({block, i, std::min(kQueryRows, end - i)});
  }
  return jobs;
}

void StateRun::RunJob(const Job& job, int64_t kv, int64_t head, int64_t q_head, Worker& w) {
  int64_t sees[kQueryRows], last[kQueryRows];
  for (int64_t r = 0; r < job.rows; ++r) {
    sees[r] = p_.Visible(job.first + r).last;
    last[r] = sees[r] - job.block * block_;
  }
  w.tile.Load(p_.q.Head(q_head), job.first, job.rows);
  if (job.block < 0) {
    w.tile.AddState(Carry(head));
  } else {
    if (job.block > 0) w.tile.AddState(State(head, job.block % wave_));
    w.tile.AddPairs(Keys(kv, head, job.block), last);
  }
  float* const lse = output_.lse == nullptr ? nullptr : output_.lse + q_head * p_.q.rows + job.first;
  const MatView<float> out = output_.Head(q_head, p_.q.rows, p_.v.dim).Rows(job.first, job.rows);
  if (!w.tile.Finish(out, lse, sees)) finite_ = false;
}

void StateRun::RunJobs(const std::vector<Job>& jobs, int64_t first_head, int64_t heads) {
  const int64_t group = p_.Group(), each = int64_t(jobs.size()) * group;
  executor_.ParallelFor(heads * each, [&](int64_t task, int worker) {
    const int64_t head = task / each, kv = first_head + head, q_head = kv * group + task % group;
    RunJob(jobs[size_t(task % each / group)], kv, head, q_head, workers_[size_t(worker)]);
  });
}

Status StateRun::Run(RunReport* report) {
  const int64_t dim = p_.q.dim, dv = p_.v.dim, rank = form_.rank();
  const int64_t values = p_.v.type == simd::RowType::kF32 ? 0 : block_ * dv;
  CROQUIS_CHECK_OK(CheckMemory(heads_ * (wave_ + 1) * state_ * 4 + heads_ * wave_ * (inputs_ + values) * 4,
                               "the states of " + std::to_string(heads_) + " heads"));
  states_ = Matrix<float>(heads_ * wave_, state_);
  carries_ = Matrix<float>(heads_, state_);
  inputs_of_ = Matrix<float>(heads_ * wave_, inputs_);
  values_of_ = Matrix<float>(heads_ * wave_, values);
  for (int i = 0; i < executor_.threads(); ++i) {
    const int64_t scratch = std::max(form_.ScratchFloats(block_), form_.map().ScratchFloats(block_));
    workers_.push_back({std::vector<float>(size_t(block_ * dim)),
                        std::vector<float>(size_t(block_ * rank + simd::kFeatureSlack)),
                        std::vector<float>(size_t(form_.ExactLocal() ? rank * padded_ : 0)),
                        std::vector<float>(static_cast<size_t>(scratch)), PolyTile(form_, kQueryRows, dv)});
  }
  for (int64_t head = 0; head < p_.k.heads; head += heads_) {
    const int64_t heads = std::min(heads_, p_.k.heads - head);
    std::fill_n(carries_.data(), heads * state_, 0.f);
    for (int64_t block = 0; block < blocks_; block += wave_) {
      const int64_t slots = std::min(wave_, blocks_ - block);
      executor_.ParallelFor(heads * slots, [&](int64_t task, int worker) {
        SumBlock(head + task / slots, task / slots, block + task % slots, workers_[size_t(worker)]);
      });
      const int64_t pieces = (state_ + kScanFloats - 1) / kScanFloats;
      executor_.ParallelFor(heads * pieces, [&](int64_t task, int) {
        const int64_t first = task % pieces * kScanFloats;
        Scan(task / pieces, slots, first, std::min(kScanFloats, state_ - first));
      });
      if (p_.mask.causal) RunJobs(JobsOf(block, slots), head, heads);
    }
    if (p_.mask.causal) continue;
    std::vector<Job> jobs;
    for (int64_t i = 0; i < p_.q.rows; i += kQueryRows) jobs.push_back({-1, i, std::min(kQueryRows, p_.q.rows - i)});
    RunJobs(jobs, head, heads);
  }
  const double features = double(form_.map().features());
  report->pairs = features * (double(p_.k.heads * p_.k.rows) + double(p_.q.heads * p_.q.rows));
  if (p_.mask.causal)
    for (int64_t i = 0; i < p_.q.rows; ++i) {
      const int64_t last = p_.Visible(i).last, before = last > 0 ? (last - 1) / block_ * block_ : 0;
      report->pairs += double(p_.q.heads * (last - before));
    }
  if (finite_) return {};
  return Numeric("polysketch: weights of degree " + std::to_string(form_.config().degree) +
                 " do not fit f32; use normalise=1 or a smaller scale");
}

}  // namespace

Status RunStates(Executor& executor, const PolyForm& form, const Problem& p, const Output& output, RunReport* report) {
  return StateRun(executor, form, p, output).Run(report);
}

}  // namespace croquis::attention::polysketch
