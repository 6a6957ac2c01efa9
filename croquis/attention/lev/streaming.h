// Universal sets of keys in one pass, with bounded memory: which of the keys so far some query can still find heavy.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "croquis/attention/lev/leverage.h"
#include "croquis/attention/lev/leverage_factor.h"
#include "croquis/base/view.h"
#include "croquis/linalg/factor.h"

namespace croquis::attention::lev {

// Keys come in order; Kept() always holds every key whose sensitivity (leverage.h) among all keys so far is eps or
// more. That is a statement about all queries, and it is not probabilistic: the sensitivity of a key can only fall as
// keys are added, so a key is dropped once an upper bound of it is below eps, and never has to come back.
//
//   p = 2       The bound is the leverage against the factor of all keys so far (LevAttention's streaming form).
//   1 <= p < 2  Online Lewis weights: a key's weight is fixed when it comes, w_j >= the leverage of row j of
//               W^(1/2 - 1/p) K then and ever after, so that the bound w_j (t_j / w_j)^(p/2) of SensitivityBounds needs
//               the factor of the scaled rows only.
//   p > 2       Lewis weights can grow, so keys are kept until a reduction computes them anew for the kept keys plus
//   one
//               stand-in for the n dropped ones, sum |<k_l, y>|^p >= n^(1 - p/2) (sum <k_l, y>^2)^(p/2) (merge and
//               reduce). The set is within d^(p/2) / eps only, which is useful for small d.
//
// Keys are taken in chunks of 64; those of a chunk not yet full are all kept. The factor takes chunks in by eights of
// what it holds: a key is first judged against the keys before that, of which A has a form a = k^T A^-1 k and the key
// itself makes a leverage of at most a / (1 + a). The first dim / eps keys (or `top`) are all kept: judging them could
// hardly drop any. Against rounding, keys are dropped below eps (1 - Margin()) only.
// Not thread-safe. Takes any finite keys.
class StreamingLeverage {
 public:
  struct Options {
    int64_t dim = 0;
    double p = 2;      // 1 .. 8
    double eps = .05;  // > 0
    // 0: by eps. Otherwise about the `top` keys with the largest bounds (at most 1.25 top + 128) whatever eps is; see
    // Epsilon() for what that guarantees.
    int64_t top = 0;
    double ridge = kDefaultRidge;  // at least kLeastRidge
  };
  static constexpr int64_t kChunk = 64;

  explicit StreamingLeverage(const Options& options);

  // The next keys [n, dim].
  void Append(MatView<const float> keys);
  int64_t seen() const { return seen_; }
  // Numbers of the kept keys, from 0 and ascending, a chunk not yet full included; valid until the next Append or
  // Prune.
  std::span<const int64_t> Kept() const { return index_; }
  // Checks all kept keys, those of the open chunk too. With p = 2 and no `top`, |Kept()| <= dim / (eps (1 - Margin()))
  // then, as at the end of every chunk.
  void Prune();
  // How often the set was checked as a whole and keys dropped. In between, Kept() as it is at the ends of chunks only
  // grows at its end.
  int64_t generation() const { return generation_; }

  // Kept() is universal for this eps (and all above): at most Options::eps, or with `top` the largest bound dropped.
  double Epsilon() const;
  // What rounding can do to a bound, relative; see LeverageFactor::Error().
  double Margin() const;
  // Bytes it holds.
  int64_t bytes() const;

 private:
  void CloseChunk();
  bool WarmingUp() const;
  void Judge(MatView<const float> chunk, double below);
  void TakeInPending();
  void AdmitWeighted(MatView<const float> chunk);
  void RaiseRidge();
  void BoundsForSmallP(MatView<const float> keys, std::span<double> bounds) const;
  void SweepIfDue();
  void Sweep();
  void ReweighForLargeP();
  bool Evict(int64_t first, double below);
  MatView<const float> Rows(int64_t first) const;

  Options o_;
  int64_t seen_ = 0, open_ = 0;  // of the last keys kept, those of the chunk not yet full
  std::vector<int64_t> index_;   // kept keys
  std::vector<float> keys_;      // their rows
  std::vector<double> weights_, bounds_;
  LeverageFactor leverage_;     // p = 2
  std::vector<float> pending_;  // p = 2: keys that leverage_ does not hold yet
  linalg::Cholesky factor_;     // p < 2: of all scaled keys and the ridge; p > 2: of the dropped keys
  double trace_ = 0, ridge_in_ = 0;
  double dropped_ = 0, group_weight_ = 0;  // p > 2: number of dropped keys, the stand-in's weight
  double lost_ = 0;                        // largest bound dropped
  double cut_ = 0;                         // with `top`: the smallest bound kept at the last sweep
  int64_t swept_kept_ = 0, swept_seen_ = 0, chunks_ = 0, generation_ = 0;
};

}  // namespace croquis::attention::lev
