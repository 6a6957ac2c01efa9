// Removing the common part of a head's keys, exactly (spec kv-cache 0.4).
//
// A key is k_p = R_p (u_p + mu): R_p is RoPE at position p, mu what the un-rotated keys of a head have in common. The
// error of a codec is proportional to what it stores, so pages hold u_p' = k_p - R_p mu, and attention adds
// <q, R_p mu> back to the logits. That is exact for any mu, so a poor estimate costs precision, never correctness.
#pragma once

#include <array>
#include <complex>
#include <cstdint>
#include <utility>
#include <vector>

#include "croquis/base/dtype.h"
#include "croquis/base/view.h"
#include "croquis/codecs/codec.h"
#include "croquis/kvcache/cache.h"

namespace croquis::kvcache {

// The rotation of every complex pair over the 128 positions of a page; shared by all pages, heads and layers.
// Pairs below turning() rotate; the others (beyond a partial rotary, or all without RoPE) stand still.
class RopeTable {
 public:
  RopeTable(const RopeInfo& rope, int64_t head_dim);

  int64_t pairs() const { return pairs_; }
  int64_t turning() const { return int64_t(frequency_.size()); }
  // The dims of a pair's real and imaginary part.
  std::pair<int64_t, int64_t> Dims(int64_t pair) const {
    if (pair >= turning()) return {2 * pair, 2 * pair + 1};
    if (interleaved_) return {2 * pair, 2 * pair + 1};
    return {pair, pair + turning()};
  }
  double Frequency(int64_t pair) const { return pair < turning() ? frequency_[size_t(pair)] : 0; }
  // cos(w delta) and -sin(w delta) for delta in [0, 128), of a turning pair.
  const float* Cos(int64_t pair) const { return rows_.Row(2 * pair); }
  const float* MinusSin(int64_t pair) const { return rows_.Row(2 * pair + 1); }
  // cos(w (b + 1/2)) for b in [0, 32), then sin(w (b + 1/2)), of a turning pair: from the middle of 64 positions
  // outwards.
  const float* Waves(int64_t pair) const { return waves_.Row(pair); }
  // e^{i 64 w}: from one half of a page to the next.
  std::complex<double> Step(int64_t pair) const { return step_[size_t(pair)]; }
  // Bytes of the table for a head of `head_dim` under `rope`.
  static int64_t Bytes(const RopeInfo& rope, int64_t head_dim);

 private:
  int64_t pairs_;
  bool interleaved_;
  std::vector<double> frequency_;
  std::vector<std::complex<double>> step_;
  Matrix<float> rows_, waves_;
};

// What is removed from one head: the pairs kept and mu on them, rounded to f16 first so that encoding and the
// correction use the same numbers. Frozen once decided; part of a snapshot.
struct Center {
  bool decided = false;  // made before the first token is encoded; pairs = 0 means that nothing is removed
  uint8_t pairs = 0;
  std::array<uint8_t, 128> pair{};  // ascending, so turning pairs come first
  std::array<f16, 256> mu{};        // real and imaginary part by kept pair

  int64_t Turning(const RopeTable& table) const;
};

// Collects keys and decides. Numbers are summed in a fixed order: the same keys give the same bits.
class CenterEstimate {
 public:
  explicit CenterEstimate(const RopeTable& table);
  // k [head_dim] at position p, after RoPE.
  void Add(const float* k, int64_t position);
  // kAuto centres only where it pays (kPays); kRope always.
  Center Decide(codecs::Center mode) const;

  // Pairs are kept, largest first, until what is left of |mu|^2 is below this share of the residual energy
  // E|k|^2 - |mu|^2: from there on more pairs cannot lower the stored energy, hence the error, by more than 5 %.
  static constexpr double kLeftOver = 0.05;
  // kAuto: the kept part must be at least this share of the residual energy. The stored energy, to which the divergence
  // is proportional, then falls by 44 % or more: .42 bit a number, a tenth of the bytes at 4 bits, for a quarter of the
  // attention time. On croquis-4m .8 diverges least at 4 and 3 bits (1.63e-4, 6.5e-4; .5: 1.74e-4, 6.7e-4; 2: 1.60e-4,
  // 7.4e-4).
  static constexpr double kPays = 0.8;

 private:
  void CloseBlock();
  const RopeTable& table_;
  int64_t tokens_ = 0, block_ = -1;
  double energy_ = 0;
  std::vector<double> mu_, in_block_;  // real, imaginary by pair
};

// x [rows, head_dim] += sign * R_p mu, for positions page_start + first + row. page_start + [0, 128) is the page.
void AddCommon(const RopeTable& table, const Center& center, int64_t page_start, int64_t first, float sign,
               MatView<float> x);

}  // namespace croquis::kvcache
