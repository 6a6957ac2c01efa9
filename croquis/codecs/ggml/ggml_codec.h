// The six small formats of ggml as page codecs: the codes, scales and minima of its blocks, rearranged into the
// interleaved page of simd/page_kernels.h, so that scores and sums are integer dot products. Each method folder beside
// this one holds only its record.
#pragma once

#include "croquis/codecs/ggml/blocks.h"
#include "croquis/codecs/scalar_page_codec.h"

namespace croquis::codecs {

inline constexpr ParamInfo kGgmlParams[] = {kHadamardParam, kPrecisionParam};

// The page of head_dim (a multiple of 32) numbers a token: one scale (and minimum) for each block of 32.
simd::PageLayout GgmlPageLayout(GgmlType type, int64_t head_dim);

// Rows first .. first + rows of a page, as the codec stored them, as ggml's blocks: head_dim / 32 * BlockBytes(type)
// bytes a row, equal to Quantize of the rows that were encoded (after the rotation, with hadamard=1) as long as
// their scales are finite in f16.
void ExportBlocks(GgmlType type, int64_t head_dim, Role role, const std::byte* page, int64_t first, int64_t rows,
                  std::byte* out);

Result<Contract> GgmlContract(GgmlType type, int64_t head_dim);
Result<std::unique_ptr<const Codec>> MakeGgmlCodec(GgmlType type, const CodecRequest& request);

template <GgmlType kType>
constexpr MethodInfo GgmlMethod(std::string_view name, std::string_view summary) {
  return {name,
          summary,
          "ggml (llama.cpp), GGUF block formats",
          kGgmlParams,
          [](int64_t head_dim, Role, const Spec&) { return GgmlContract(kType, head_dim); },
          [](const CodecRequest& request) { return MakeGgmlCodec(kType, request); }};
}

}  // namespace croquis::codecs
