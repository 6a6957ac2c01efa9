// The decoder-only transformer of Llama, Mistral and Qwen models.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "croquis/linalg/matmul.h"
#include "croquis/model/model.h"
#include "croquis/model/weights.h"

namespace croquis::model {

// All weights as the forward pass wants them.
struct TransformerWeights {
  struct Layer {
    std::vector<float> attn_norm, mlp_norm, q_norm, k_norm;  // q_norm, k_norm: [head_dim], empty if none
    linalg::PackedLinear qkv, o, gate_up, down;              // rows of q, k, v (gate, up) one after another
  };
  std::vector<Layer> layers;
  std::vector<float> final_norm;
  linalg::PackedLinear head;
  WeightTensor embedding;        // [vocab, hidden], read row by row from the file
  std::vector<double> inv_freq;  // [head_dim / 2]
  linalg::WeightType type = linalg::WeightType::kF32;

  int64_t Bytes() const;
};

// Packs the tensors of `set`. Errors: missing tensors, wrong shapes, tensors that the architecture does not use, not
// enough memory (checked before any is taken), a bf16 request where the machine has none.
Result<TransformerWeights> LoadTransformer(const WeightSet& set, const ModelConfig& config, Executor& executor,
                                           LoadOptions::Dtype dtype);

// A model of these parts. `set` keeps the files mapped.
std::unique_ptr<Model> MakeTransformer(ModelConfig config, TransformerWeights weights, WeightSet set,
                                       std::unique_ptr<Tokenizer> tokenizer);

}  // namespace croquis::model
