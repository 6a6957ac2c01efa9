#include "croquis/attention/hydragen/attend_batch.h"

#include <algorithm>
#include <string>
#include <vector>

#include "croquis/attention/hydragen/batch_call.h"
#include "croquis/attention/hydragen/common_rows.h"
#include "croquis/attention/hydragen/prefix_tree.h"
#include "croquis/attention/observe.h"
#include "croquis/kvcache/layer_view.h"

namespace croquis::attention {
namespace {

std::string Shape(int64_t rows, int64_t cols) { return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]"; }

Status Check(const BatchInputs& in) {
  const auto sequences = int64_t(in.caches.size());
  const auto& first = in.caches[0]->config();
  for (int64_t b = 0; b < sequences; ++b) {
    const auto& c = in.caches[size_t(b)]->config();
    if (c.layers != first.layers || c.kv_heads != first.kv_heads || c.head_dim != first.head_dim)
      return InvalidArgument("attention: the cache of sequence " + std::to_string(b) + " has " +
                             std::to_string(c.layers) + " layers of " + Shape(c.kv_heads, c.head_dim) +
                             ", that of sequence 0 " + std::to_string(first.layers) + " of " +
                             Shape(first.kv_heads, first.head_dim));
  }
  std::vector<kvcache::KvCache*> sorted(in.caches.begin(), in.caches.end());
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
    return InvalidArgument("attention: a cache comes twice among the sequences; give each its own with Branch");
  if (in.q.rows != sequences || in.k.rows != sequences || in.v.rows != sequences)
    return InvalidArgument("attention: " + std::to_string(sequences) + " sequences need as many rows, got queries " +
                           Shape(in.q.rows, in.q.cols) + ", keys " + Shape(in.k.rows, in.k.cols) + ", values " +
                           Shape(in.v.rows, in.v.cols));
  CROQUIS_CHECK_OK(CheckQueries(in.caches[0]->config(), in.options, in.q, sequences, in.out));
  for (int64_t b = 0; b < sequences; ++b) {
    const Status s = kvcache::CheckAppend(*in.caches[size_t(b)], in.options.layer, in.k.Rows(b, 1), in.v.Rows(b, 1));
    if (!s) return Error{s.error().code, "sequence " + std::to_string(b) + ": " + s.error().message};
  }
  return {};
}

// Rows that an eviction policy keeps belong to one sequence alone: nothing is shared. In an edited cache queries are
// turned segment by segment.
Status OneByOne(Executor& executor, const BatchInputs& in) {
  for (const kvcache::KvCache* cache : in.caches) CROQUIS_CHECK_OK(CheckEviction(*cache, in.options));
  for (size_t b = 0; b < in.caches.size(); ++b) {
    const auto r = int64_t(b);
    CROQUIS_CHECK_OK(AttendAndAppend(executor, *in.caches[b], in.options, in.q.Rows(r, 1), in.k.Rows(r, 1),
                                     in.v.Rows(r, 1), in.out.Rows(r, 1)));
  }
  return {};
}

}  // namespace

Status AttendBatch(Executor& executor, std::span<kvcache::KvCache* const> caches, const AttendOptions& options,
                   MatView<const float> q, MatView<const float> k, MatView<const float> v, MatView<float> out) {
  if (caches.empty()) return {};
  const BatchInputs in{caches, options, q, k, v, out};
  CROQUIS_CHECK_OK(Check(in));
  const auto alone = [&](const kvcache::KvCache* c) {
    return c->edited() || kvcache::ViewHead(*c, options.layer, 0).evicts;
  };
  if (std::any_of(caches.begin(), caches.end(), alone)) return OneByOne(executor, in);
  return AttendTogether(executor, in);
}

SharingReport DescribeSharing(std::span<kvcache::KvCache* const> caches, int64_t layer, int64_t group) {
  SharingReport r;
  const PrefixTree tree = BatchTree(caches, layer, group);
  std::vector<int64_t> depth(caches.size());
  for (const SharedRun& run : tree.runs) {
    r.pages += run.pages * run.sequences;
    r.pages_read += run.pages;
    if (run.sequences < 2) continue;
    ++r.nodes;
    for (int64_t i = run.first; i < run.first + run.sequences; ++i)
      r.depth = std::max(r.depth, ++depth[size_t(tree.order[size_t(i)])]);
  }
  return r;
}

}  // namespace croquis::attention
