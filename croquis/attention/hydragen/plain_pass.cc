#include "croquis/attention/hydragen/plain_pass.h"

#include <algorithm>
#include <cstring>

#include "croquis/attention/workspace.h"
#include "croquis/simd/page_kernels.h"
#include "croquis/simd/split_kernels.h"

namespace croquis::attention {
namespace {
constexpr int64_t kPage = codecs::kPageTokens;
constexpr int64_t kAhead = 2;  // pages of the next pass that are fetched
}  // namespace

bool PagesAreRows(const kvcache::HeadView& head) {
  return head.center == nullptr && head.key->PlainRows() == head.type && head.value->PlainRows() == head.type;
}

bool PlainQuery::Takes(const kvcache::HeadView& head, int64_t rows) {
  const simd::SplitKernels* kernels = simd::Split();
  return kernels != nullptr && rows >= kernels->least_rows && head.center == nullptr && head.key->PlainRows() &&
         head.value->PlainRows();
}

size_t PlainQuery::Bytes(int64_t rows, int64_t dim) { return Round64(simd::Split()->query_bytes(rows, dim)); }

size_t PlainQuery::WorkBytes(int64_t rows, int64_t dim, int64_t pages) {
  return 2 * Round64(size_t(pages + kAhead) * sizeof(std::byte*)) + 2 * Round64(size_t(rows) * 4) +
         Round64(simd::Split()->attend_bytes(rows, dim));
}

PlainQuery::PlainQuery(const kvcache::HeadView& head, MatView<const float> q, std::span<const Visible> visible,
                       std::byte* memory)
    : head_(head), visible_(visible), dim_(q.cols), prepared_(memory) {
  simd::Split()->prepare(q, memory);
}

void PlainQuery::Attend(int64_t begin, int64_t end, const Pages& next, StreamState state, std::byte* work) const {
  const auto rows = int64_t(visible_.size()), pages = end - begin;
  std::memset(state.sums.data, 0, size_t(rows * dim_) * 4);
  std::fill_n(state.max, rows, simd::kMasked);
  std::fill_n(state.mass, rows, 0.f);
  Pieces pieces(work);
  const auto keys = pieces.Take<const std::byte*>(size_t(pages + kAhead)),
             values = pieces.Take<const std::byte*>(size_t(pages + kAhead));
  for (int64_t j = 0; j < pages; ++j) keys[j] = head_.KeyPage(begin + j), values[j] = head_.ValuePage(begin + j);
  const int64_t ahead = std::min(kAhead, next.end - next.begin);
  for (int64_t j = 0; j < ahead; ++j) {
    keys[pages + j] = next.head->KeyPage(next.begin + j);
    values[pages + j] = next.head->ValuePage(next.begin + j);
  }
  const auto first = pieces.Take<int32_t>(size_t(rows)), last = pieces.Take<int32_t>(size_t(rows));
  const int64_t start = head_.sinks + begin * kPage, tokens = std::min(pages * kPage, head_.encoded - begin * kPage);
  bool all = tokens == pages * kPage;
  for (int64_t r = 0; r < rows; ++r) {
    const Visible& v = visible_[size_t(r)];
    first[r] = int32_t(std::clamp<int64_t>(v.first - start, 0, tokens));
    last[r] = int32_t(std::clamp<int64_t>(v.last - start, first[r], tokens));
    all &= first[r] == 0 && last[r] == tokens;
  }
  simd::SplitCall call;
  call.key_type = *head_.key->PlainRows(), call.value_type = *head_.value->PlainRows();
  call.query = prepared_, call.rows = rows, call.pages = pages;
  call.keys = keys, call.values = values, call.ahead = ahead;
  if (!all) call.first = first, call.last = last;
  call.sums = state.sums, call.max = state.max, call.mass = state.mass;
  call.scratch = pieces.rest();
  simd::Split()->attend(call);
}

}  // namespace croquis::attention
