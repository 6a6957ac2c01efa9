// SentencePiece models through their library. The library cuts text; the table of tokens and the decoding are the same
// as for the other vocabularies, so that streaming and whole decoding agree.
#include <sentencepiece_processor.h>

#include <algorithm>
#include <exception>

#include "croquis/model/sentencepiece_proto.h"
#include "croquis/model/tokenizer_bpe.h"
#include "croquis/model/tokenizer_formats.h"
#include "croquis/model/unicode.h"

namespace croquis::model {
namespace {

using Processor = sentencepiece::SentencePieceProcessor;
using Proto = SentencePieceProto;

class SentencePieceTokenizer final : public VocabTokenizer {
 public:
  SentencePieceTokenizer(TokenizerParts parts, std::vector<AddedToken> added, bool prefix_every_part, bool by_words,
                         std::unique_ptr<Processor> first, std::unique_ptr<Processor> rest)
      : VocabTokenizer(std::move(parts)),
        added_(std::move(added)),
        prefix_every_part_(prefix_every_part),
        by_words_(by_words),
        first_(std::move(first)),
        rest_(std::move(rest)) {}

 protected:
  Status EncodeText(std::string_view text, bool parse_special, std::vector<int32_t>& out) const override {
    std::vector<AddedTokenMatcher::Part> parts;
    added_.Split(text, parse_special, parts);
    for (const auto& part : parts) {
      if (part.id >= 0) {
        out.push_back(part.id);
        continue;
      }
      bool prefix = part.begin == 0 || prefix_every_part_;
      std::vector<int> ids;
      for (std::string_view rest = text.substr(part.begin, part.end - part.begin); !rest.empty(); prefix = false) {
        const size_t n = by_words_ ? PartBeforeMark(rest, " ", kChunk) : rest.size();
        const auto status = (prefix ? *first_ : *rest_).Encode(rest.substr(0, n), &ids);
        if (!status.ok()) return Internal("SentencePiece could not encode the text: " + status.ToString());
        out.insert(out.end(), ids.begin(), ids.end());
        rest.remove_prefix(n);
      }
    }
    return {};
  }

 private:
  // 1 MB of English takes the library 2.4 to 3.2 s in one call, and 0.6 to 0.9 s in calls of about 64 bytes.
  static constexpr size_t kChunk = 64;

  AddedTokenMatcher added_;
  bool prefix_every_part_;
  bool by_words_;                            // text may be cut before spaces that follow something else
  std::unique_ptr<Processor> first_, rest_;  // with and without the model's dummy prefix
};

Result<std::unique_ptr<Processor>> LoadProcessor(std::string_view bytes) {
  // Failed checks of the library come back as a Status; its trie builder throws.
  try {
    auto processor = std::make_unique<Processor>();
    const auto status = processor->LoadFromSerializedProto(bytes);
    if (!status.ok()) return Corrupt("tokenizer.model: SentencePiece refuses it: " + status.ToString());
    return processor;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& e) {
    return Corrupt(std::string("tokenizer.model: SentencePiece refuses it: ") + e.what());
  }
}

// Normalisation that looks no further than a character, and pieces that hold spaces at their start alone.
bool CanCutAtSpaces(const Proto& proto) {
  if (!proto.charsmap.empty() || proto.remove_extra_whitespaces) return false;
  for (const Proto::Piece& piece : proto.pieces) {
    if (piece.type == Proto::kControl || piece.type == Proto::kUnknown || piece.type == Proto::kByte) continue;
    if (!MarksOnlyLead(piece.text, kSpaceMark) || piece.text.find(' ') != std::string_view::npos) return false;
  }
  return true;
}

void FillTable(const Proto& proto, VocabTable& table) {
  for (size_t i = 0; i < proto.pieces.size(); ++i) {
    const Proto::Piece& piece = proto.pieces[i];
    const int byte = piece.type == Proto::kByte ? ByteOfByteToken(piece.text) : -1;
    if (piece.type == Proto::kControl || piece.type == Proto::kUnknown) continue;
    if (byte >= 0) {
      table.Set(int32_t(i), TokenText::Kind::kByte, std::string(1, char(byte)));
    } else {
      table.SetPiece(int32_t(i), ReplaceAll(piece.text, kSpaceMark, " "),
                     proto.add_dummy_prefix || proto.remove_extra_whitespaces);
    }
  }
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> ParseSentencePiece(std::span<const std::byte> bytes, const TokenizerHints& hints) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  CROQUIS_TRY(const Proto proto, ParseSentencePieceProto(text));
  int64_t size = int64_t(proto.pieces.size());
  TokenLookup ids;
  std::vector<AddedToken> added;
  for (size_t i = 0; i < proto.pieces.size(); ++i) {
    const Proto::Piece& piece = proto.pieces[i];
    ids[piece.text] = int32_t(i);
    if (piece.type == Proto::kControl || piece.type == Proto::kUnknown) {
      added.push_back({.content = std::string(piece.text), .id = int32_t(i), .special = true});
    }
  }
  for (AddedToken token : hints.added) {  // a fine-tune's tokens beyond the model's
    if (token.content.empty() || ids.contains(token.content)) continue;
    if (token.id < 0) token.id = int32_t(size);
    size = std::max<int64_t>(size, int64_t(token.id) + 1);
    added.push_back(std::move(token));
  }
  if (size > int64_t(proto.pieces.size() + added.size()) + kMaxIdGap) {
    return Corrupt("tokenizer.model has " + std::to_string(proto.pieces.size()) + " pieces and added ids up to " +
                   std::to_string(size - 1));
  }
  TokenizerParts parts;
  parts.table = VocabTable(size);
  FillTable(proto, parts.table);
  for (const AddedToken& token : added) {
    ids[token.content] = token.id;
    if (!token.special) parts.table.Set(token.id, TokenText::Kind::kText, token.content);
  }
  // Where white space is removed, it is also removed from the start of decoded text.
  parts.rule = {TextRule::BadBytes::kPerByte, 0, proto.remove_extra_whitespaces};

  TokenizerHints filled = hints;
  const auto is_control = [&](int32_t id) {
    return id >= 0 && size_t(id) < proto.pieces.size() && proto.pieces[size_t(id)].type == Proto::kControl;
  };
  if (is_control(proto.bos)) parts.bos = proto.bos;
  if (is_control(proto.eos) && filled.eos.empty()) filled.stop_ids.insert(filled.stop_ids.begin(), proto.eos);
  if (!filled.add_bos.has_value()) filled.add_bos = true;
  ApplyHints(ids, added, filled, parts);

  CROQUIS_TRY(std::unique_ptr<Processor> first, LoadProcessor(text));
  // A message's field may occur twice, and the parts are merged: normalizer_spec { add_dummy_prefix: false }.
  CROQUIS_TRY(std::unique_ptr<Processor> rest, LoadProcessor(std::string(text) + std::string("\x1A\x02\x18\x00", 4)));
  return std::unique_ptr<Tokenizer>(
      std::make_unique<SentencePieceTokenizer>(std::move(parts), std::move(added), hints.prefix_every_part,
                                               CanCutAtSpaces(proto), std::move(first), std::move(rest)));
}

}  // namespace croquis::model
