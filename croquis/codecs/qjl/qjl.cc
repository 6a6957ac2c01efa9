// qjl: keys as the signs of random projections with an asymmetric unbiased estimator (arXiv 2406.03482); values as
// KIVI's 2-bit codes, as there.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "croquis/base/dtype.h"
#include "croquis/codecs/generic_codec.h"
#include "croquis/codecs/kivi/kivi.h"
#include "croquis/codecs/qjl/projection.h"
#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/sign_kernels.h"

namespace croquis::codecs {
namespace {

constexpr int64_t kGroup = 32, kGroups = kPageTokens / kGroup;  // tokens that share their outlier channels
constexpr int64_t kMaxOutliers = 32, kMaxM = 1024;
static_assert(kMaxM <= simd::kMaxProjections);
constexpr int kValueBits = 2;

constexpr ParamInfo kParams[] = {
    {"m", "256", 64, kMaxM, {}, "keys: projections, one bit each; a multiple of 64"},
    {"m_outlier",
     "256",
     64,
     kMaxM,
     {},
     "keys: projections of the outlier channels' own sketch; a multiple of 64, at most m"},
    {"outliers",
     "8",
     0,
     kMaxOutliers,
     {},
     "keys: channels of largest norm in 32 tokens that get a sketch of their own; 0 turns it off"},
    {"proj", "orth", 0, 0, "gauss|orth", "keys: independent Gaussian rows, or orthogonalised in runs of head_dim"},
};

struct Shape {
  int64_t dim, m, m_out, outliers;

  // A page: f16 norms of the tokens without their outlier channels; f16 norms of the outlier channels; four lists of
  // outlier channels; the sign blocks of the groups, and those of the outlier channels. With outliers = 0
  // only the first norms and blocks.
  int64_t OutNormsAt() const { return kPageTokens * 2; }
  int64_t ListsAt() const { return OutNormsAt() + (outliers > 0 ? kPageTokens * 2 : 0); }
  int64_t SignsAt(int64_t group) const { return (ListsAt() + kGroups * outliers + 7) / 8 * 8 + group * kGroup * m / 8; }
  int64_t OutSignsAt(int64_t group) const { return SignsAt(kGroups) + group * kGroup * m_out / 8; }
  size_t PageBytes() const { return RoundUp64(size_t(OutSignsAt(outliers > 0 ? kGroups : 0))); }
};

class QjlKeys final : public GenericCodec {
 public:
  QjlKeys(const CodecRequest& request, const Shape& shape, bool orthogonal)
      : GenericCodec(request),
        shape_(shape),
        projection_(Projection::Get(shape.dim, shape.m, orthogonal, request.seed)),
        scale_(float(SignScale(shape.dim, shape.m, orthogonal))),
        out_scale_(float(SignScale(shape.dim, shape.m_out, orthogonal))) {
    NameOwnKernels([](simd::Target t) { return std::string(simd::Signs(t).name) + ", sign bits"; });
  }

  size_t PageBytes() const noexcept override { return shape_.PageBytes(); }
  int64_t Granularity() const noexcept override { return kGroup; }

  void Encode(MatView<const float> x, int64_t first, std::byte* page) const noexcept override {
    for (int64_t begin = 0; begin < x.rows; begin += kGroup)
      EncodeGroup(x.Rows(begin, kGroup), (first + begin) / kGroup, page);
  }

  // A prepared query: rows of scale * q [dim], rows of their projections [m], the sums' SignQuery of each row, and the
  // bytes these point at. The last two are filled here only when no group changes them (outliers = 0).
  size_t QueryBytes(int64_t rows) const noexcept override { return size_t(BytesAt(rows) + RowBytes() * rows); }

  void Prepare(MatView<const float> q, float scale, std::byte* query) const noexcept override {
    const simd::SignKernels& kernels = simd::Signs();
    for (int64_t r = 0; r < q.rows; ++r) {
      float* scaled = reinterpret_cast<float*>(query) + r * shape_.dim;
      float* projected = reinterpret_cast<float*>(query + ProjectedAt(q.rows)) + r * shape_.m;
      for (int64_t i = 0; i < shape_.dim; ++i) scaled[i] = scale * q(r, i);
      kernels.combine(nullptr, scaled, nullptr, shape_.dim, projection_->channels.data(), shape_.m, projected);
      if (shape_.outliers > 0) continue;
      int8_t* bytes = reinterpret_cast<int8_t*>(query + BytesAt(q.rows) + r * RowBytes());
      const simd::SignQuery ready = kernels.quantise(projected, shape_.m, bytes, bytes + shape_.m);
      std::memcpy(query + SumsAt(q.rows) + r * int64_t(sizeof ready), &ready, sizeof ready);
    }
  }

  void Score(const std::byte* page, const std::byte* query, int64_t rows, const simd::Upcoming& /*next*/, float* logits,
             std::byte* scratch) const noexcept override {
    for (int64_t group = 0; group < kGroups; ++group) {
      const simd::SignQuery* sums = shape_.outliers > 0
                                        ? SplitQuery(page, group, query, rows, scratch)
                                        : reinterpret_cast<const simd::SignQuery*>(query + SumsAt(rows));
      ScoreGroup(page, group, sums, rows, logits + group * kGroup);
    }
  }

  // A group's two SignQuery of each row, their bytes, and one projection.
  size_t ScratchBytes(int64_t rows) const noexcept override {
    const size_t score =
        RoundUp64(size_t(rows) * 2 * sizeof(simd::SignQuery)) + size_t(rows * 2 * RowBytes()) + size_t(kMaxM * 4);
    return std::max(score, GenericCodec::ScratchBytes(rows));
  }

 private:
  // The linear reconstruction: x^ = A |x| S^T signs on the inlier channels, and the same of the outliers' sketch.
  void DecodeTile(const std::byte* page, int64_t first, int64_t count, float* x) const noexcept override {
    for (int64_t t = first; t < first + count; ++t, x += shape_.dim) {
      const int64_t group = t / kGroup;
      Reconstruct(page + shape_.SignsAt(group), t % kGroup, shape_.m, scale_ * Norm(page, t), x);
      if (shape_.outliers == 0) continue;
      float out[kMaxDim];
      Reconstruct(page + shape_.OutSignsAt(group), t % kGroup, shape_.m_out, out_scale_ * OutNorm(page, t), out);
      const uint8_t* list = List(page, group);
      for (int64_t c = 0; c < shape_.outliers; ++c) x[list[c]] = out[list[c]];
    }
  }

  int64_t ProjectedAt(int64_t rows) const noexcept { return int64_t(RoundUp64(size_t(rows * shape_.dim * 4))); }
  int64_t SumsAt(int64_t rows) const noexcept { return ProjectedAt(rows) + rows * shape_.m * 4; }
  int64_t BytesAt(int64_t rows) const noexcept {
    return SumsAt(rows) + int64_t(RoundUp64(size_t(rows) * sizeof(simd::SignQuery)));
  }
  int64_t RowBytes() const noexcept { return 2 * shape_.m; }  // high and low bytes of one row

  static float Norm(const std::byte* page, int64_t t) noexcept {
    return F16ToFloat(reinterpret_cast<const f16*>(page)[t]);
  }
  float OutNorm(const std::byte* page, int64_t t) const noexcept {
    return F16ToFloat(reinterpret_cast<const f16*>(page + shape_.OutNormsAt())[t]);
  }
  const uint8_t* List(const std::byte* page, int64_t group) const noexcept {
    return reinterpret_cast<const uint8_t*>(page + shape_.ListsAt() + group * shape_.outliers);
  }

  static f16 NormOf(double energy) noexcept {
    const double norm = std::sqrt(energy);
    return FloatToF16(norm < 65504 ? float(norm) : norm >= 65504 ? 65504.f : 0.f);  // NaN gives 0
  }

  // The channels of largest norm over the group first, in order of their number; then the others.
  void SplitChannels(MatView<const float> x, uint8_t* order) const noexcept {
    double energy[kMaxDim] = {};
    for (int64_t t = 0; t < kGroup; ++t) {
      for (int64_t i = 0; i < shape_.dim; ++i) energy[i] += double(x(t, i)) * double(x(t, i));
    }
    for (int64_t i = 0; i < shape_.dim; ++i) order[i] = uint8_t(i);
    const auto larger = [&](uint8_t a, uint8_t b) { return energy[a] != energy[b] ? energy[a] > energy[b] : a < b; };
    std::nth_element(order, order + shape_.outliers, order + shape_.dim, larger);
    std::sort(order, order + shape_.outliers);
    std::sort(order + shape_.outliers, order + shape_.dim);
  }

  void EncodeGroup(MatView<const float> x, int64_t group, std::byte* page) const noexcept {
    std::array<uint8_t, kMaxDim> order{};
    if (shape_.outliers > 0) {
      SplitChannels(x, order.data());
      std::memcpy(page + shape_.ListsAt() + group * shape_.outliers, order.data(), size_t(shape_.outliers));
    } else {
      for (int64_t i = 0; i < shape_.dim; ++i) order[size_t(i)] = uint8_t(i);
    }
    f16* norms = reinterpret_cast<f16*>(page) + group * kGroup;
    f16* out_norms = reinterpret_cast<f16*>(page + shape_.OutNormsAt()) + group * kGroup;
    const uint8_t* inliers = order.data() + shape_.outliers;
    for (int64_t t = 0; t < kGroup; ++t) {
      norms[t] = Sketch(x.Row(t), inliers, shape_.dim - shape_.outliers, shape_.m, t, page + shape_.SignsAt(group));
      if (shape_.outliers == 0) continue;
      out_norms[t] = Sketch(x.Row(t), order.data(), shape_.outliers, shape_.m_out, t, page + shape_.OutSignsAt(group));
    }
  }

  // Writes the signs of the first m projections of x restricted to `channels`; returns the norm of that part.
  f16 Sketch(const float* x, const uint8_t* channels, int64_t count, int64_t m, int64_t t,
             std::byte* signs) const noexcept {
    float coef[kMaxDim];
    alignas(64) float projected[kMaxM];
    double energy = 0;
    for (int64_t c = 0; c < count; ++c) {
      coef[c] = x[channels[c]];
      energy += double(coef[c]) * double(coef[c]);
    }
    simd::Signs().combine(nullptr, coef, channels, count, projection_->channels.data(), shape_.m, projected);
    uint64_t* words = reinterpret_cast<uint64_t*>(signs) + (t / simd::kSignTokens) * m / 4;
    const int shift = int(t % simd::kSignTokens) * 4;
    for (int64_t k = 0; k < m / 4; ++k) {
      const float* v = projected + 4 * k;
      const uint64_t four =
          uint64_t(v[0] > 0) | uint64_t(v[1] > 0) << 1 | uint64_t(v[2] > 0) << 2 | uint64_t(v[3] > 0) << 3;
      words[k] = (words[k] & ~(uint64_t{15} << shift)) | four << shift;
    }
    return NormOf(energy);
  }

  // row[i] = scale * sum_j sign_j S[j][i].
  void Reconstruct(const std::byte* signs, int64_t t, int64_t m, float scale, float* row) const noexcept {
    alignas(64) float sign[kMaxM];
    const uint64_t* words = reinterpret_cast<const uint64_t*>(signs) + (t / simd::kSignTokens) * m / 4;
    const int shift = int(t % simd::kSignTokens) * 4;
    for (int64_t j = 0; j < m; ++j) sign[j] = (words[j / 4] >> (shift + j % 4) & 1) != 0 ? scale : -scale;
    simd::Dense().score_rows(simd::RowType::kF32, {sign, 1, m},
                             reinterpret_cast<const std::byte*>(projection_->channels.data()), shape_.m * 4, shape_.dim,
                             row, kMaxDim);
  }

  // The query's projections without and with only the group's outlier channels, quantised: rows of the former, then
  // rows of the latter.
  const simd::SignQuery* SplitQuery(const std::byte* page, int64_t group, const std::byte* query, int64_t rows,
                                    std::byte* scratch) const noexcept {
    const simd::SignKernels& kernels = simd::Signs();
    simd::SignQuery* sums = reinterpret_cast<simd::SignQuery*>(scratch);
    int8_t* bytes = reinterpret_cast<int8_t*>(scratch + RoundUp64(size_t(rows) * 2 * sizeof(simd::SignQuery)));
    float* projected = reinterpret_cast<float*>(bytes + rows * 2 * RowBytes());
    const uint8_t* list = List(page, group);
    const float* table = projection_->channels.data();
    for (int64_t r = 0; r < rows; ++r, bytes += 2 * RowBytes()) {
      const float* q = reinterpret_cast<const float*>(query) + r * shape_.dim;
      const float* all = reinterpret_cast<const float*>(query + ProjectedAt(rows)) + r * shape_.m;
      float plus[kMaxOutliers], minus[kMaxOutliers];
      for (int64_t c = 0; c < shape_.outliers; ++c) plus[c] = q[list[c]], minus[c] = -q[list[c]];
      kernels.combine(all, minus, list, shape_.outliers, table, shape_.m, projected);
      sums[r] = kernels.quantise(projected, shape_.m, bytes, bytes + shape_.m);
      kernels.combine(nullptr, plus, list, shape_.outliers, table, shape_.m, projected);
      sums[rows + r] = kernels.quantise(projected, shape_.m_out, bytes + RowBytes(), bytes + RowBytes() + shape_.m);
    }
    return sums;
  }

  void ScoreGroup(const std::byte* page, int64_t group, const simd::SignQuery* sums, int64_t rows,
                  float* logits) const noexcept {
    const simd::SignKernels& kernels = simd::Signs();
    kernels.sums(Words(page + shape_.SignsAt(group)), 2, shape_.m, sums, rows, logits, kPageTokens);
    float weight[kGroup], out_weight[kGroup];
    for (int64_t t = 0; t < kGroup; ++t) weight[t] = scale_ * Norm(page, group * kGroup + t);
    if (shape_.outliers > 0) {
      for (int64_t t = 0; t < kGroup; ++t) out_weight[t] = out_scale_ * OutNorm(page, group * kGroup + t);
    }
    for (int64_t r = 0; r < rows; ++r) {
      float* row = logits + r * kPageTokens;
      for (int64_t t = 0; t < kGroup; ++t) row[t] *= weight[t];
      if (shape_.outliers == 0) continue;
      float out[kGroup];
      kernels.sums(Words(page + shape_.OutSignsAt(group)), 2, shape_.m_out, sums + rows + r, 1, out, kGroup);
      for (int64_t t = 0; t < kGroup; ++t) row[t] += out_weight[t] * out[t];
    }
  }

  static const uint64_t* Words(const std::byte* p) noexcept { return reinterpret_cast<const uint64_t*>(p); }

  Shape shape_;
  std::shared_ptr<const Projection> projection_;
  float scale_, out_scale_;
};

Result<Shape> ShapeOf(int64_t head_dim, const Spec& spec) {
  const Shape s = {head_dim, spec.Int("m"), spec.Int("m_outlier"), spec.Int("outliers")};
  if (s.m % 64 != 0 || (s.outliers > 0 && (s.m_out % 64 != 0 || s.m_out > s.m))) {
    return InvalidArgument("qjl: m and m_outlier must be multiples of 64 with m_outlier at most m; got m=" +
                           std::to_string(s.m) + ", m_outlier=" + std::to_string(s.m_out));
  }
  if (s.outliers >= head_dim) {
    return InvalidArgument("qjl: outliers=" + std::to_string(s.outliers) +
                           " must be less than head_dim=" + std::to_string(head_dim));
  }
  return s;
}

Result<Contract> ContractOf(int64_t head_dim, Role role, const Spec& spec) {
  CROQUIS_TRY(const Shape s, ShapeOf(head_dim, spec));
  if (role == Role::kValue) return KiviValues::ContractOf(head_dim, kValueBits);
  const bool orthogonal = spec.Word("proj") == "orth";
  const double out = TopEnergy(head_dim, s.outliers);
  double mse = (1 - out) * SignMse(head_dim, s.m, orthogonal, head_dim - s.outliers);
  if (s.outliers > 0) mse += out * SignMse(head_dim, s.m_out, orthogonal, s.outliers);
  return Contract{8 * double(s.PageBytes()) / double(kPageTokens * head_dim), mse, true};
}

Result<std::unique_ptr<const Codec>> MakeCodec(const CodecRequest& request) {
  CROQUIS_TRY(const Shape s, ShapeOf(request.head_dim, request.spec));
  if (request.role == Role::kValue) return KiviValues::Make(request, kValueBits, ResolvePrecision("auto", kValueBits));
  return std::unique_ptr<const Codec>(new QjlKeys(request, s, request.spec.Word("proj") == "orth"));
}

}  // namespace

extern const MethodInfo kMethod_qjl;
const MethodInfo kMethod_qjl = {
    "qjl",
    "signs of random projections, unbiased, with a sketch of its own for outlier channels; values as kivi:bits=2",
    "arXiv 2406.03482",
    kParams,
    ContractOf,
    MakeCodec};

}  // namespace croquis::codecs
