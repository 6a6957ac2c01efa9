#include "croquis/model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "croquis/base/rng.h"

namespace croquis::model {
namespace {

struct Candidate {
  float logit;
  int32_t id;
};

// Best first; of equals the lowest id.
bool Better(const Candidate& a, const Candidate& b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// CTRL's rule: a token that occurred loses `penalty` times its logit, whatever its sign; once, however often it
// occurred.
void Penalise(std::span<const int32_t> history, double penalty, std::vector<Candidate>& all) {
  std::vector<bool> seen(all.size(), false);
  for (const int32_t id : history) {
    if (id < 0 || size_t(id) >= all.size() || seen[size_t(id)]) continue;
    seen[size_t(id)] = true;
    float& logit = all[size_t(id)].logit;
    logit = float(logit < 0 ? logit * penalty : logit / penalty);
  }
}

// Keeps the k best and those equal to the k-th, in any order.
void KeepTopK(int64_t k, std::vector<Candidate>& all) {
  if (k <= 0 || size_t(k) >= all.size()) return;
  std::nth_element(all.begin(), all.begin() + (k - 1), all.end(), Better);
  const float least = all[size_t(k) - 1].logit;
  std::erase_if(all, [&](const Candidate& c) { return c.logit < least; });
}

// exp(logit - best), also where both are infinite.
double Weight(float logit, float best, double temperature) {
  return logit == best ? 1 : std::exp((double(logit) - double(best)) / temperature);
}

// Keeps the best candidates whose better ones hold less than p of the probability. Sorts no more of them than needed.
void KeepTopP(double p, float best, double temperature, std::vector<Candidate>& all) {
  double total = 0;
  for (const Candidate& c : all) total += Weight(c.logit, best, temperature);
  double mass = 0;
  size_t kept = 0, sorted = 0;
  for (size_t chunk = 64; kept < all.size() && mass < p * total; ++kept) {
    if (kept == sorted) {
      sorted = std::min(all.size(), sorted + chunk);
      std::partial_sort(all.begin() + int64_t(kept), all.begin() + int64_t(sorted), all.end(), Better);
      chunk *= 8;
    }
    mass += Weight(all[kept].logit, best, temperature);
  }
  all.resize(std::max<size_t>(kept, 1));
}

Error Range(const char* name, const std::string& range, double got) {
  return OutOfRange(std::string("sampler: ") + name + " should be " + range + ", is " + std::to_string(got));
}

}  // namespace

Result<Sampler> Sampler::Make(const SamplerOptions& o) {
  // Written so that NaN fails too.
  if (!(o.temperature >= 0 && o.temperature <= 1e6))
    return Range("temperature", "0 (greedy) to 1000000", o.temperature);
  if (o.top_k < 0) return Range("top_k", "0 (off) or more", double(o.top_k));
  if (!(o.top_p > 0 && o.top_p <= 1)) return Range("top_p", "above 0 and at most 1 (off)", o.top_p);
  if (!(o.min_p >= 0 && o.min_p <= 1)) return Range("min_p", "0 (off) to 1", o.min_p);
  if (!(o.repetition_penalty > 0 && o.repetition_penalty <= 1e6)) {
    return Range("repetition_penalty", "above 0 (1: off) and at most 1000000", o.repetition_penalty);
  }
  return Sampler(o);
}

int32_t Sampler::Sample(std::span<const float> logits, std::span<const int32_t> history, int64_t step) const {
  if (logits.empty()) return -1;
  std::vector<Candidate> all(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    all[i] = {std::isnan(logits[i]) ? kLowest : logits[i], int32_t(i)};
  }
  if (options_.repetition_penalty != 1) Penalise(history, options_.repetition_penalty, all);
  const Candidate best = *std::min_element(all.begin(), all.end(), Better);
  // Differences of logits divided by a tiny temperature are greedy all the same, and exp(-inf) is 0.
  if (options_.temperature == 0 || best.logit == kLowest) return best.id;
  const double temperature = options_.temperature;
  KeepTopK(options_.top_k, all);
  if (options_.top_p < 1) KeepTopP(options_.top_p, best.logit, temperature, all);
  if (options_.min_p > 0) {
    std::erase_if(all, [&](const Candidate& c) { return Weight(c.logit, best.logit, temperature) < options_.min_p; });
  }
  // In the order of ids, so that the choice does not depend on how the candidates were sorted.
  const auto by_id = [](const Candidate& a, const Candidate& b) { return a.id < b.id; };
  if (!std::is_sorted(all.begin(), all.end(), by_id)) std::sort(all.begin(), all.end(), by_id);
  double total = 0;
  for (const Candidate& c : all) total += Weight(c.logit, best.logit, temperature);
  const Stream stream{options_.seed, Purpose("model.sampler")};
  const uint64_t word = uint64_t(step) * 2;
  const uint64_t bits = uint64_t(stream.U32(word)) << 32 | stream.U32(word + 1);
  double left = double(bits >> 11) * 0x1p-53 * total;
  const Candidate* last = nullptr;
  for (const Candidate& c : all) {
    const double weight = Weight(c.logit, best.logit, temperature);
    if (weight <= 0) continue;
    last = &c;
    if (left < weight) break;
    left -= weight;
  }
  return last->id;  // the best one has weight 1, so there is one
}

}  // namespace croquis::model
