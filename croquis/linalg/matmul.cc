#include "croquis/linalg/matmul.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "croquis/base/dtype.h"
#include "croquis/linalg/one_omp_thread.h"

namespace croquis::linalg {
namespace {

constexpr int64_t kPanel = 64;           // columns of the result in a panel
constexpr int64_t kInStep = 32;          // multiple of `in`
constexpr int64_t kMaxRows = 256;        // rows of x in one product; more are cut
constexpr int64_t kMaxPanels = 4;        // panels in a task
constexpr int64_t kTaskBytes = 1 << 16;  // of weights in a task with few rows: long beside the 0.5 us of a call

constexpr int64_t kAloneBytes = 1 << 17;  // a matrix of 2 us, about what handing work to another thread costs

constexpr int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr int64_t ElementBytes(WeightType t) { return t == WeightType::kF32 ? 4 : 2; }

// Row counts that primitives are made for; others are padded with rows of zeros. Bounds what the cache can hold.
int64_t PaddedRows(int64_t m) {
  if (m <= 1) return 1;
  if (m <= 16) return m <= 4 ? 4 : m <= 8 ? 8 : 16;
  return RoundUp(m, m <= 64 ? 16 : 32);
}

bool HasIsa(dnnl::cpu_isa isa) {
  const int bits = int(isa);
  return (int(dnnl::get_effective_cpu_isa()) & bits) == bits;
}

struct Key {
  WeightType type;
  int64_t rows, in, cols;
  bool operator==(const Key&) const = default;
};
struct KeyHash {
  size_t operator()(const Key& k) const {
    uint64_t h = uint64_t(k.type);
    for (const int64_t v : {k.rows, k.in, k.cols}) h = (h ^ uint64_t(v)) * 0x9E3779B97F4A7C15ull;
    return size_t(h ^ (h >> 29));
  }
};

// One primitive and, for each worker, the memory objects it is called with.
struct Plan {
  struct Worker {
    dnnl::memory x, w, y, scratch;
    Buffer scratch_bytes;
    std::array<dnnl_exec_arg_t, 4> args;
  };
  dnnl::matmul::primitive_desc desc;
  dnnl::matmul primitive;
  std::vector<Worker> workers;
};

}  // namespace

bool HasFastBf16() { return HasIsa(dnnl::cpu_isa::avx512_core_bf16); }

std::string Isa(WeightType type) {
  if (type == WeightType::kBf16) {
    if (HasIsa(dnnl::cpu_isa::avx512_core_amx)) return "AMX";
    return HasFastBf16() ? "AVX-512 BF16" : "bf16 without instructions";
  }
  if (HasIsa(dnnl::cpu_isa::avx512_core)) return "AVX-512";
  if (HasIsa(dnnl::cpu_isa::avx2)) return "AVX2";
  return "baseline";
}

PackedLinear::PackedLinear(int64_t out, int64_t in, WeightType type)
    : out_(out),
      in_(in),
      padded_in_(RoundUp(in, kInStep)),
      panel_bytes_(padded_in_ * kPanel * ElementBytes(type)),
      type_(type),
      weights_(size_t(Bytes(out, in, type))) {}

int64_t PackedLinear::Bytes(int64_t out, int64_t in, WeightType type) {
  constexpr int64_t kMost = int64_t{1} << 62;
  if (out < 0 || in < 0 || out > kMost || in > kMost) return -1;
  const auto numbers = CheckedMul(RoundUp(out, kPanel), RoundUp(in, kInStep));
  const auto bytes = numbers ? CheckedMul(*numbers, ElementBytes(type)) : std::nullopt;
  return bytes.value_or(-1);
}

void PackedLinear::SetRows(int64_t row, MatView<const float> w) {
  CROQUIS_DCHECK(row >= 0 && row + w.rows <= out_ && w.cols == in_);
  for (int64_t r = 0; r < w.rows; ++r) {
    const float* from = w.Row(r);
    const int64_t column = (row + r) % kPanel;
    std::byte* panel = weights_.data() + (row + r) / kPanel * panel_bytes_;
    if (type_ == WeightType::kF32) {
      float* to = reinterpret_cast<float*>(panel) + column;
      for (int64_t k = 0; k < in_; ++k) to[k * kPanel] = from[k];
    } else {
      bf16* to = reinterpret_cast<bf16*>(panel) + 2 * column;
      for (int64_t k = 0; k < in_; ++k) to[(k >> 1) * 2 * kPanel + (k & 1)] = FloatToBf16(from[k]);
    }
  }
}

void PackedLinear::SetBias(int64_t row, std::span<const float> b) {
  CROQUIS_DCHECK(row >= 0 && row + int64_t(b.size()) <= out_);
  if (bias_.empty()) bias_.assign(size_t(out_), 0.f);
  std::copy(b.begin(), b.end(), bias_.begin() + row);
}

struct Multiplier::Impl {
  explicit Impl(int64_t max_in)
      : engine(dnnl::engine::kind::cpu, 0),
        stream(engine),
        x_scratch(size_t(RoundUp(max_in, kInStep) * kMaxRows) * 4) {}

  Result<Plan*> GetPlan(const Key& key, int workers);
  void Convert(Executor& executor, const PackedLinear& w, MatView<const float> x, int64_t rows);
  Status Piece(Executor& executor, const PackedLinear& w, MatView<const float> x, MatView<float> y);

  dnnl::engine engine;
  dnnl::stream stream;
  Buffer x_scratch;                      // [rows, in] of one piece, in the weight type, both padded
  std::vector<Matrix<float>> y_scratch;  // for each worker: a slice of y, dense
  std::unordered_map<Key, std::unique_ptr<Plan>, KeyHash> plans;
};

// Without AVX-512 oneDNN has no kernel for panels of f32, but one panel is also a plain row-major [in, 64].
Result<Plan*> Multiplier::Impl::GetPlan(const Key& key, int workers) {
  using dnnl::memory;
  auto& plan = plans[key];
  try {
    const OneOmpThread one;
    if (!plan) {
      const bool f32 = key.type == WeightType::kF32;
      const auto type = f32 ? memory::data_type::f32 : memory::data_type::bf16;
      const memory::desc x({key.rows, key.in}, type, memory::format_tag::ab);
      // Dense: oneDNN 2.6 falls back to its reference implementation, a thousand times slower, for rows with a stride.
      const memory::desc y({key.rows, key.cols}, memory::data_type::f32, memory::format_tag::ab);
      const bool plain = f32 && !HasIsa(dnnl::cpu_isa::avx512_core);
      const memory::desc w({key.in, key.cols}, type,
                           plain ? memory::format_tag::ab
                           : f32 ? memory::format_tag::BA16a64b
                                 : memory::format_tag::BA16a64b2a);
      dnnl::primitive_attr attr;
      attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
      auto made = std::make_unique<Plan>();
      made->desc = dnnl::matmul::primitive_desc(dnnl::matmul::desc(x, w, y), attr, engine);
      made->primitive = dnnl::matmul(made->desc);
      plan = std::move(made);
    }
    while (int(plan->workers.size()) < workers) {
      auto& worker = plan->workers.emplace_back();
      const auto& d = plan->desc;
      worker.scratch_bytes = Buffer(d.scratchpad_desc().get_size() + 64);
      worker.x = memory(d.src_desc(), engine, nullptr);
      worker.w = memory(d.weights_desc(), engine, nullptr);
      worker.y = memory(d.dst_desc(), engine, nullptr);
      worker.scratch = memory(d.scratchpad_desc(), engine, worker.scratch_bytes.data());
      worker.args = {{{DNNL_ARG_SRC, worker.x.get()},
                      {DNNL_ARG_WEIGHTS, worker.w.get()},
                      {DNNL_ARG_DST, worker.y.get()},
                      {DNNL_ARG_SCRATCHPAD, worker.scratch.get()}}};
    }
  } catch (const dnnl::error& e) {
    plans.erase(key);
    return Internal(std::string("oneDNN cannot make a product of ") + std::to_string(key.rows) + " x " +
                    std::to_string(key.in) + " x " + std::to_string(key.cols) + ": " + e.what());
  }
  return plan.get();
}

// x_scratch = x in the weight type, padded with zeros to [PaddedRows, padded in].
void Multiplier::Impl::Convert(Executor& executor, const PackedLinear& w, MatView<const float> x, int64_t rows) {
  const int64_t in = w.in_, padded = w.padded_in_;
  const auto row = [&](int64_t r, int) {
    std::byte* to = x_scratch.data() + r * padded * ElementBytes(w.type_);
    if (r >= x.rows) {
      std::memset(to, 0, size_t(padded * ElementBytes(w.type_)));
    } else if (w.type_ == WeightType::kF32) {
      std::memcpy(to, x.Row(r), size_t(in) * 4);
      std::memset(to + in * 4, 0, size_t(padded - in) * 4);
    } else {
      const float* from = x.Row(r);
      bf16* out = reinterpret_cast<bf16*>(to);
      for (int64_t k = 0; k < in; ++k) out[k] = FloatToBf16(from[k]);
      std::memset(out + in, 0, size_t(padded - in) * 2);
    }
  };
  if (rows * padded >= 1 << 16) {
    executor.ParallelFor(rows, row);
  } else {
    for (int64_t r = 0; r < rows; ++r) row(r, 0);
  }
}

Status Multiplier::Impl::Piece(Executor& executor, const PackedLinear& w, MatView<const float> x, MatView<float> y) {
  const int64_t rows = PaddedRows(x.rows), panels = RoundUp(w.out_, kPanel) / kPanel;
  const bool plain = w.type_ == WeightType::kF32 && !HasIsa(dnnl::cpu_isa::avx512_core);
  // With few rows a task should move enough weights to be worth its call; with many, wide slices reuse x better as
  // long as 16 tasks remain to be shared out.
  int64_t wide = rows <= 16 ? kTaskBytes / w.panel_bytes_ : panels / 16;
  wide = plain ? 1 : std::clamp<int64_t>(wide, 1, kMaxPanels);
  const int64_t tasks = RoundUp(panels, wide) / wide, last_panels = panels - (tasks - 1) * wide;
  const int64_t last_cols = w.out_ - (tasks - 1) * wide * kPanel;  // of y; fewer than the panels hold
  const int64_t slice = wide * kPanel, last_slice = last_panels * kPanel;
  const int workers = executor.threads();
  Plan *full = nullptr, *last = nullptr;
  if (tasks > 1) {
    CROQUIS_TRY(full, GetPlan({w.type_, rows, w.padded_in_, slice}, workers));
  }
  CROQUIS_TRY(last, GetPlan({w.type_, rows, w.padded_in_, last_slice}, workers));
  while (int(y_scratch.size()) < workers) y_scratch.emplace_back(kMaxRows, kMaxPanels * kPanel);
  Convert(executor, w, x, rows);

  std::atomic<bool> failed{false};
  const auto run = [&](int64_t task, int id) {
    const OneOmpThread one;
    const bool is_last = task == tasks - 1;
    Plan& plan = is_last ? *last : *full;
    const int64_t column = task * slice, cols = is_last ? last_cols : slice, stride = is_last ? last_slice : slice;
    const bool direct = rows == 1 && cols == stride;
    float* out = direct ? y.data + column : y_scratch[size_t(id)].data();
    auto& worker = plan.workers[size_t(id)];
    // No layout here has padding, so setting a handle writes nothing.
    bool ok = dnnl_memory_set_data_handle(worker.x.get(), x_scratch.data()) == dnnl_success;
    ok &= dnnl_memory_set_data_handle(worker.w.get(), const_cast<std::byte*>(w.Panel(task * wide))) == dnnl_success;
    ok &= dnnl_memory_set_data_handle(worker.y.get(), out) == dnnl_success;
    ok = ok && dnnl_primitive_execute(plan.primitive.get(), stream.get(), int(worker.args.size()),
                                      worker.args.data()) == dnnl_success;
    if (!ok) {
      failed.store(true, std::memory_order_relaxed);
      return;
    }
    const float* bias = w.bias_.empty() ? nullptr : w.bias_.data() + column;
    if (direct && bias == nullptr) return;
    for (int64_t r = 0; r < x.rows; ++r) {
      float* to = y.Row(r) + column;
      const float* from = direct ? to : out + r * stride;
      if (bias != nullptr) {
        for (int64_t c = 0; c < cols; ++c) to[c] = from[c] + bias[c];
      } else {
        std::memcpy(to, from, size_t(cols) * sizeof(float));
      }
    }
  };
  if (rows <= 16 && panels * w.panel_bytes_ <= kAloneBytes) {
    for (int64_t task = 0; task < tasks; ++task) run(task, 0);
  } else {
    executor.ParallelFor(tasks, run);
  }
  if (failed)
    return Internal("oneDNN failed to run a product of " + std::to_string(rows) + " x " + std::to_string(w.in_) +
                    " x " + std::to_string(w.out_));
  return {};
}

Multiplier::Multiplier(int64_t max_in) : impl_(std::make_unique<Impl>(max_in)) {}
Multiplier::~Multiplier() = default;

std::vector<std::string> Multiplier::Implementations() const {
  std::vector<std::string> names;
  for (const auto& [key, plan] : impl_->plans) names.emplace_back(plan->desc.impl_info_str());
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

Status Multiplier::Apply(Executor& executor, const PackedLinear& w, MatView<const float> x, MatView<float> y) {
  CROQUIS_DCHECK(x.cols == w.in_ && y.cols == w.out_ && x.rows == y.rows);
  for (int64_t r = 0; r < x.rows; r += kMaxRows) {
    const int64_t n = std::min(kMaxRows, x.rows - r);
    CROQUIS_CHECK_OK(impl_->Piece(executor, w, x.Rows(r, n), y.Rows(r, n)));
  }
  return {};
}

}  // namespace croquis::linalg
