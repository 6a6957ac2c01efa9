#include "croquis/model/sentencepiece_proto.h"

#include <bit>
#include <cstring>

#include "croquis/model/unicode.h"

namespace croquis::model {
namespace {

// Protocol buffers' wire format: a sequence of (field number, value); values are varints, 4 or 8 bytes, or byte
// strings.
class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : rest_(bytes) {}
  struct Field {
    uint32_t number = 0, wire_type = 0;
    uint64_t value = 0;      // wire types 0, 1, 5
    std::string_view bytes;  // wire type 2
  };
  bool done() const { return rest_.empty(); }
  // False when the bytes are no field.
  bool Next(Field& field) {
    uint64_t tag = 0;
    if (!Varint(tag) || (tag >> 3) == 0 || (tag >> 3) > 0x1FFFFFFF) return false;
    field = {uint32_t(tag >> 3), uint32_t(tag & 7), 0, {}};
    switch (field.wire_type) {
      case 0:
        return Varint(field.value);
      case 1:
        return Fixed(8, field.value);
      case 5:
        return Fixed(4, field.value);
      case 2: {
        uint64_t length = 0;
        if (!Varint(length) || length > rest_.size()) return false;
        field.bytes = rest_.substr(0, size_t(length));
        rest_.remove_prefix(size_t(length));
        return true;
      }
      default:  // groups are not used in this format
        return false;
    }
  }

 private:
  bool Varint(uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const uint8_t b = uint8_t(rest_[0]);
      rest_.remove_prefix(1);
      value |= uint64_t(b & 0x7F) << shift;
      if (b < 0x80) return true;
    }
    return false;
  }
  bool Fixed(size_t n, uint64_t& value) {
    if (rest_.size() < n) return false;
    for (size_t i = 0; i < n; ++i) value |= uint64_t(uint8_t(rest_[i])) << (8 * i);
    rest_.remove_prefix(n);
    return true;
  }
  std::string_view rest_;
};

Error Broken(const std::string& what) { return Corrupt("tokenizer.model: " + what); }

using Proto = SentencePieceProto;

// Longer pieces would be no vocabulary, and the library takes unused pieces apart recursively.
constexpr size_t kMaxPiece = 4096;

Status ReadPiece(std::string_view bytes, Proto& out) {
  Proto::Piece piece;
  const std::string name = "piece " + std::to_string(out.pieces.size());
  for (WireReader reader(bytes); !reader.done();) {
    WireReader::Field field;
    if (!reader.Next(field)) return Broken(name + " is broken");
    if (field.number == 1 && field.wire_type == 2) {
      piece.text = field.bytes;
    } else if (field.number == 2 && field.wire_type == 5) {
      piece.score = std::bit_cast<float>(uint32_t(field.value));
    } else if (field.number == 3 && field.wire_type == 0) {
      if (field.value < 1 || field.value > 6)
        return Broken(name + " has the unknown type " + std::to_string(field.value));
      piece.type = Proto::Type(field.value);
    }
  }
  if (piece.text.empty() || piece.text.size() > kMaxPiece || piece.text.find('\0') != std::string_view::npos ||
      !IsUtf8(piece.text)) {
    return Broken(name + " should be 1 to " + std::to_string(kMaxPiece) + " bytes of UTF-8 without NUL, has " +
                  std::to_string(piece.text.size()) + " bytes");
  }
  if (!(piece.score >= -1e30f && piece.score <= 1e30f)) return Broken(name + " has no finite score");
  out.pieces.push_back(piece);
  return {};
}

uint32_t Little32(std::string_view bytes, size_t at) {
  uint32_t v = 0;
  for (size_t i = 0; i < 4; ++i) v |= uint32_t(uint8_t(bytes[at + i])) << (8 * i);
  return v;
}

// Walks every state of the double array (Aoe's, as in the Darts-clone library) that text can lead to.
Status CheckCharsMap(std::string_view map) {
  if (map.empty()) return {};
  const Error error = Broken("the normalisation table leads outside itself");
  if (map.size() < 8) return error;
  const size_t trie_bytes = Little32(map, 0);
  if (trie_bytes < 1024 || trie_bytes % 1024 != 0 || trie_bytes >= map.size() - 4) return error;
  const std::string_view texts = map.substr(4 + trie_bytes);
  if (texts.empty() || texts.back() != '\0') return error;
  const size_t units = trie_bytes / 4;
  const auto unit = [&](size_t i) { return Little32(map, 4 + 4 * i); };
  const auto offset = [](uint32_t u) { return size_t(u >> 10) << ((u & (1u << 9)) >> 6); };
  std::vector<bool> seen(units, false);
  std::vector<size_t> waiting = {0};
  seen[0] = true;
  while (!waiting.empty()) {
    const size_t node = waiting.back();
    waiting.pop_back();
    const uint32_t u = unit(node);
    const size_t base = node ^ offset(u);
    if (base >= units) return error;
    if ((u >> 8 & 1) != 0) {  // has a value, at label 0
      if (size_t(unit(base) & 0x7FFFFFFF) >= texts.size()) return error;
    }
    for (uint32_t label = 0; label < 256; ++label) {
      const size_t child = base ^ label;
      if (child >= units) return error;  // the library looks at every child that the text names
      if ((unit(child) & 0x800000FFu) != label || seen[child]) continue;
      seen[child] = true;
      waiting.push_back(child);
    }
  }
  return {};
}

Status ReadTrainerSpec(std::string_view bytes, Proto& out) {
  for (WireReader reader(bytes); !reader.done();) {
    WireReader::Field field;
    if (!reader.Next(field)) return Broken("the trainer's settings are broken");
    if (field.wire_type != 0) continue;
    if (field.number == 3) out.model_type = int32_t(field.value);
    if (field.number == 24 && field.value != 0) {
      return Unsupported("tokenizer.model: treat_whitespace_as_suffix is not supported");
    }
    if (field.number == 41) out.bos = int32_t(field.value);
    if (field.number == 42) out.eos = int32_t(field.value);
  }
  return {};
}

Status ReadNormalizerSpec(std::string_view bytes, bool main, Proto& out) {
  for (WireReader reader(bytes); !reader.done();) {
    WireReader::Field field;
    if (!reader.Next(field)) return Broken("the normaliser's settings are broken");
    if (field.number == 2 && field.wire_type == 2) {
      CROQUIS_CHECK_OK(CheckCharsMap(field.bytes));
      if (main) out.charsmap = field.bytes;
    }
    if (main && field.number == 3 && field.wire_type == 0) out.add_dummy_prefix = field.value != 0;
    if (main && field.number == 4 && field.wire_type == 0) out.remove_extra_whitespaces = field.value != 0;
  }
  return {};
}

}  // namespace

Result<SentencePieceProto> ParseSentencePieceProto(std::string_view bytes) {
  Proto out;
  for (WireReader reader(bytes); !reader.done();) {
    WireReader::Field field;
    if (!reader.Next(field)) return Broken("not a SentencePiece model, or broken");
    if (field.wire_type != 2) continue;
    if (field.number == 1) CROQUIS_CHECK_OK(ReadPiece(field.bytes, out));
    if (field.number == 2) CROQUIS_CHECK_OK(ReadTrainerSpec(field.bytes, out));
    if (field.number == 3) CROQUIS_CHECK_OK(ReadNormalizerSpec(field.bytes, true, out));
    if (field.number == 5) CROQUIS_CHECK_OK(ReadNormalizerSpec(field.bytes, false, out));
  }
  if (out.pieces.empty()) return Broken("no pieces");
  if (out.model_type != 1 && out.model_type != 2) {
    return Unsupported("tokenizer.model: SentencePiece model type " + std::to_string(out.model_type) +
                       " is not supported; Croquis reads unigram (1) and BPE (2)");
  }
  return out;
}

}  // namespace croquis::model
