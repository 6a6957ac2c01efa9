#include <algorithm>
#include <chrono>
#include <memory>

#include "croquis/codecs/codec.h"
#include "croquis/eval/attention_bench.h"
#include "croquis/eval/metrics.h"

namespace croquis::eval {

Result<std::vector<EncodeRow>> BenchEncode(const std::vector<std::string>& names, int64_t head_dim, int64_t reps,
                                           uint64_t seed, const ProgressFn& progress) {
  if (reps < 1) return OutOfRange("wanted at least 1 repetition, got " + std::to_string(reps));
  struct Lane {
    std::unique_ptr<const codecs::Codec> codec;
    Buffer pages;
    std::vector<double> ns;
  };
  constexpr int64_t kPages = 16;  // 2,048 vectors: 1 MiB of f32 at head_dim 128, the second-level cache
  std::vector<Lane> lanes;
  for (const std::string& name : names) {
    for (const codecs::Role role : {codecs::Role::kKey, codecs::Role::kValue}) {
      Lane lane;
      CROQUIS_TRY(lane.codec, codecs::Make(name, head_dim, role));
      lane.pages = Buffer(lane.codec->PageBytes() * size_t(kPages));
      lanes.push_back(std::move(lane));
    }
  }
  Matrix<float> x(kPages * codecs::kPageTokens, head_dim);
  FillGaussian(seed, 0, 0, x.rows() * x.cols(), x.data());
  for (int64_t round = -1; round < reps; round++) {  // round -1 warms up
    for (Lane& lane : lanes) {
      const auto start = std::chrono::steady_clock::now();
      for (int64_t p = 0; p < kPages; p++) {
        lane.codec->Encode(x.View().Rows(p * codecs::kPageTokens, codecs::kPageTokens), 0,
                           lane.pages.data() + size_t(p) * lane.codec->PageBytes());
      }
      const std::chrono::duration<double, std::nano> t = std::chrono::steady_clock::now() - start;
      if (round >= 0) lane.ns.push_back(t.count() / double(x.rows()));
    }
    if (progress && !progress(round + 2, reps + 1)) return Internal("interrupted");
  }
  std::vector<EncodeRow> rows;
  for (Lane& lane : lanes) {
    EncodeRow row;
    row.codec = names[rows.size() / 2];
    row.role = lane.codec->GetRole() == codecs::Role::kKey ? "key" : "value";
    row.kernel = lane.codec->Kernel();
    row.ns = Median(lane.ns);
    row.ns_best = *std::min_element(lane.ns.begin(), lane.ns.end());
    row.bits_per_number = lane.codec->BitsPerNumber();
    row.gb_per_s = double(head_dim) * 4 / row.ns;
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace croquis::eval
