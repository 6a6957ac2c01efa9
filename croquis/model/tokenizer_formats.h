// Tokenizers from the formats that models carry them in. Bytes in, so that callers choose how files are read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "croquis/base/result.h"
#include "croquis/model/tokenizer.h"
#include "croquis/model/tokenizer_base.h"

namespace croquis::model {

// What files beside a tokenizer say about it.
struct TokenizerHints {
  std::optional<bool> add_bos, add_eos;  // unset: as the tokenizer's own file says
  std::string bos, eos;                  // tokens as written; empty: not said
  int32_t bos_id = -1;
  std::vector<int32_t> stop_ids;
  std::vector<AddedToken> added;   // with ids, or -1 for "the next free one"
  bool prefix_every_part = false;  // SentencePiece: a space also before text that follows a special token ("legacy")
};

// tokenizer.json with a BPE model. Errors name the part that is not supported, or what is missing.
Result<std::unique_ptr<Tokenizer>> ParseTokenizerJson(std::span<const std::byte> bytes,
                                                      const TokenizerHints& hints = {});

// vocab.json and merges.txt, byte-level. `qwen2`: Qwen2's pattern and NFC, else GPT-2's pattern.
Result<std::unique_ptr<Tokenizer>> ParseVocabMerges(std::span<const std::byte> vocab, std::span<const std::byte> merges,
                                                    bool qwen2, const TokenizerHints& hints = {});

// SentencePiece's tokenizer.model (BPE or unigram). Adds BOS unless the hints say no.
Result<std::unique_ptr<Tokenizer>> ParseSentencePiece(std::span<const std::byte> bytes,
                                                      const TokenizerHints& hints = {});

// The tokenizer.ggml.* metadata of a GGUF file.
struct GgufTokenizerData {
  std::string model;  // "llama": SentencePiece pieces with scores; "gpt2": byte-level BPE
  std::string pre;    // pre-tokenisation of "gpt2"; empty is "default"
  std::vector<std::string> tokens;
  std::vector<float> scores;   // "llama": one for each token
  std::vector<int32_t> types;  // 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; empty: all normal
  std::vector<std::string> merges;  // "gpt2": "left right"
  int32_t bos = -1, eos = -1, eot = -1, eom = -1, unk = -1;
  std::optional<bool> add_bos, add_eos, add_space_prefix;  // unset: the default of `model` and `pre`
};
Result<std::unique_ptr<Tokenizer>> MakeGgufTokenizer(const GgufTokenizerData& data);

// llama2.c's tokenizer.bin: int32 longest piece, then for each piece float score, int32 length, bytes.
Result<std::unique_ptr<Tokenizer>> MakeLlama2cTokenizer(std::span<const std::byte> bytes, int64_t vocab_size);

}  // namespace croquis::model
