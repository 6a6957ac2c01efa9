// llama2.c's checkpoint format, the original one without magic number (github.com/karpathy/llama2.c, export.py
// "legacy_export"): seven int32 and then f32 tensors in a fixed order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "croquis/base/result.h"
#include "croquis/model/model.h"

namespace croquis::model {

struct Llama2cFile {
  ModelConfig config;
  struct Tensor {
    std::string name;  // as in a Hugging Face folder: "model.layers.0.self_attn.q_proj.weight"
    std::vector<int64_t> shape;
    std::span<const std::byte> bytes;  // f32, into the memory that was parsed
  };
  std::vector<Tensor> tensors;
};

// Errors: sizes out of range, a file that is not exactly as long as its header says, the newer versions ("ak42").
Result<Llama2cFile> ParseLlama2c(std::span<const std::byte> file);

}  // namespace croquis::model
