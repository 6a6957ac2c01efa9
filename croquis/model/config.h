// A model's shape, read from Hugging Face's config.json or from GGUF metadata.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "croquis/base/result.h"
#include "croquis/model/gguf.h"
#include "croquis/model/model.h"

namespace croquis::model {

// "llama, mistral, qwen2, qwen3".
std::string KnownArchitectures();

// The text of a config.json. Both spellings of RoPE settings are read: `rope_theta` with `rope_scaling`, and
// `rope_parameters` of transformers 5. Missing members take the defaults of transformers' configuration classes.
// Errors: not JSON, unknown architectures (kUnsupported, with those known), features that are not computed (other
// activations, partial rotary embeddings, other RoPE scalings, quantised weights), missing sizes, sizes out of range.
Result<ModelConfig> ParseHfConfig(std::string_view text);

// From GGUF metadata (`llama.block_count` and so on) and the shape of the token embedding.
Result<ModelConfig> ConfigFromGguf(const GgufFile& file);

// Ranges of all sizes and that heads divide. Errors: kCorrupt, naming the value and what is allowed.
Status CheckConfig(const ModelConfig& config);

// Angle per position of each of the head_dim / 2 pairs, after scaling. `factors`: divisors of GGUF's rope_freqs tensor,
// empty if none. Llama 3's scaling is that of transformers' _compute_llama3_parameters.
std::vector<double> RopeFrequencies(const ModelConfig& config, const std::vector<float>& factors = {});

}  // namespace croquis::model
