// The parts of a SentencePiece model file that are read here rather than by its library: the pieces, and the checks
// without which a hostile file makes the library read out of bounds.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "croquis/base/result.h"

namespace croquis::model {

struct SentencePieceProto {
  // Types of sentencepiece_model.proto.
  enum Type : uint8_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
  struct Piece {
    std::string_view text;  // of the parsed bytes
    float score = 0;
    Type type = kNormal;
  };
  std::vector<Piece> pieces;
  int32_t model_type = 1;  // 1 unigram, 2 BPE; 3 word, 4 char
  bool add_dummy_prefix = true, remove_extra_whitespaces = true;
  int32_t bos = 1, eos = 2;
  std::string_view charsmap;  // normalisation rules: int32 bytes of a double array, the array, replacement texts
};

// Errors: a broken wire format, pieces that are empty, too long or no UTF-8, a normalisation table that leads outside
// itself.
Result<SentencePieceProto> ParseSentencePieceProto(std::string_view bytes);

}  // namespace croquis::model
