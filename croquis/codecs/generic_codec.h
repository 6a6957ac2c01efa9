// Base of codecs that need only say how a tile of at most 16 rows is decoded: the tile goes into scratch, then dense
// kernels run on it. Works for any byte format; slower, and says so in Kernel() and HasFastPath(). A method that has
// kernels of its own for a product overrides that product and gives their names; the query is prepared as f32 rows.
#pragma once

#include <optional>

#include "croquis/codecs/codec_base.h"
#include "croquis/transforms/rotation.h"

namespace croquis::codecs {

class GenericCodec : public CodecBase {
 public:
  static constexpr int64_t kTileRows = 16;
  static constexpr int64_t kMaxDim = 256;  // of BasisDim

  bool HasFastPath() const noexcept final { return own_kernels_ && CodecBase::HasFastPath(); }

  void Decode(const std::byte* page, int64_t first, MatView<float> x) const noexcept final;

  size_t QueryBytes(int64_t rows) const noexcept override;
  void Prepare(MatView<const float> q, float scale, std::byte* query) const noexcept override;
  void Score(const std::byte* page, const std::byte* query, int64_t rows, const simd::Upcoming& next, float* logits,
             std::byte* scratch) const noexcept override;

  int64_t AccDim() const noexcept final { return BasisDim(); }
  void Accumulate(const std::byte* page, const float* p, const float* p_scale, int64_t rows, const simd::Upcoming& next,
                  MatView<float> acc, std::byte* scratch) const noexcept override;
  void Finish(MatView<const float> acc, MatView<float> out) const noexcept final;
  // A decoded tile; a method that overrides this one must leave at least as much to Accumulate.
  size_t ScratchBytes(int64_t rows) const noexcept override;

 protected:
  // With a rotation, DecodeTile works in rotated coordinates (BasisDim = PaddedDim): queries are rotated once in
  // Prepare and outputs back in Finish, never the stored rows. Encode gets rows as they come and rotates itself.
  explicit GenericCodec(const CodecRequest& request, std::optional<transforms::Rotation> rotation = std::nullopt);
  // For methods with kernels of their own: name(target) is what computes there.
  template <class F>
  void NameOwnKernels(const F& name) {
    own_kernels_ = true;
    NameKernels(name);
  }

  // x [count, BasisDim], contiguous: tokens first .. first + count, count <= 16. Finite whatever the bytes of
  // slots that were never written (zeros).
  virtual void DecodeTile(const std::byte* page, int64_t first, int64_t count, float* x) const noexcept = 0;

  int64_t BasisDim() const noexcept { return rotation_ ? rotation_->PaddedDim() : HeadDim(); }
  const transforms::Rotation* GetRotation() const noexcept { return rotation_ ? &*rotation_ : nullptr; }

 private:
  std::optional<transforms::Rotation> rotation_;
  bool own_kernels_ = false;
};

}  // namespace croquis::codecs
