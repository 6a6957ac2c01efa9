#include "croquis/model/bpe.h"

#include <bit>

#include "croquis/model/unicode.h"

namespace croquis::model {
namespace {

std::string ByteToken(int byte) {
  constexpr char kHex[] = "0123456789ABCDEF";
  return std::string("<0x") + kHex[byte >> 4] + kHex[byte & 15] + ">";
}

std::string Shown(std::string_view token) { return "'" + ToUtf8(token.substr(0, 80)) + "'"; }

}  // namespace

void PairTable::Reserve(size_t n) {
  // At most half full, so that runs of taken slots stay short.
  const size_t size = std::bit_ceil(std::max<size_t>(16, 2 * n + 2));
  if (size <= slots_.size()) return;
  const std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(size));
  mask_ = size - 1;
  used_ = 0;
  for (const Slot& slot : old) {
    if (slot.key != kEmpty) Set(int32_t(slot.key >> 32), int32_t(uint32_t(slot.key)), slot.value);
  }
}

void PairTable::Set(int32_t left, int32_t right, Value value) {
  Reserve(used_ + 1);
  const uint64_t key = Key(left, right);
  size_t i = Hash(key) & mask_;
  while (slots_[i].key != kEmpty && slots_[i].key != key) i = (i + 1) & mask_;
  if (slots_[i].key == kEmpty) ++used_;
  slots_[i] = {key, value};
}

Result<BpeModel> BpeModel::Make(const BpeData& data) {
  BpeModel m;
  m.byte_level_ = data.byte_level;
  m.byte_fallback_ = data.byte_fallback;
  m.fuse_unk_ = data.fuse_unk;
  m.ignore_merges_ = data.ignore_merges;
  m.byte_id_.fill(-1);

  std::unordered_map<std::string_view, int32_t> ids;
  ids.reserve(data.vocab.size());
  for (const auto& [token, id] : data.vocab) {
    ids[token] = id;
    if (data.ignore_merges) {
      bool mapped = true;
      std::string bytes = data.byte_level ? BytesOfByteLevel(token, &mapped) : token;
      if (mapped) m.words_[std::move(bytes)] = id;
    }
    if (token.empty() || token.size() > 4) continue;
    const Utf8Step step = DecodeUtf8(token);
    if (step.kind != Utf8Step::Kind::kCharacter || step.length != token.size()) continue;
    if (!data.byte_level) {
      m.rune_id_[step.rune] = id;
    } else if (const int byte = RuneToByte(step.rune); byte >= 0) {
      m.byte_id_[size_t(byte)] = id;
    }
  }
  const auto find = [&](std::string_view token) {
    const auto it = ids.find(token);
    return it == ids.end() ? -1 : it->second;
  };
  if (data.byte_fallback && !data.byte_level) {
    for (int b = 0; b < 256; ++b) m.byte_id_[size_t(b)] = find(ByteToken(b));
  }
  if (!data.unk_token.empty()) {
    m.unk_ = find(data.unk_token);
    if (m.unk_ < 0) return Corrupt("BPE: the unknown token " + Shown(data.unk_token) + " is not in the vocabulary");
  }
  m.merges_.Reserve(data.merges.size());
  std::string joined;
  for (size_t rank = 0; rank < data.merges.size(); ++rank) {
    const auto& [a, b] = data.merges[rank];
    joined = a;
    joined += b;
    const int32_t left = find(a), right = find(b), merged = find(joined);
    if (left < 0 || right < 0 || merged < 0) {
      const std::string_view missing = left < 0 ? std::string_view(a) : right < 0 ? std::string_view(b) : joined;
      return Corrupt("BPE: merge " + std::to_string(rank) + " (" + Shown(a) + " + " + Shown(b) + ") needs the token " +
                     Shown(missing) + ", which is not in the vocabulary");
    }
    m.merges_.Set(left, right, {int32_t(rank), merged});
  }
  return m;
}

// The parts that merging starts from: characters, or their byte tokens, or the unknown token.
void BpeModel::AddCharacters(std::string_view word, Workspace& workspace) const {
  bool unknown_open = false;  // an unknown token waits for neighbours to fuse with
  size_t unknown_begin = 0, unknown_end = 0;
  const auto close_unknown = [&] {
    if (unknown_open) workspace.Add(unk_, unknown_begin, unknown_end - unknown_begin);
    unknown_open = false;
  };
  for (size_t at = 0; at < word.size();) {
    size_t length = 1;
    int32_t id = -1;
    if (byte_level_) {
      id = byte_id_[uint8_t(word[at])];
    } else {
      const Utf8Step step = DecodeUtf8(word.substr(at));
      length = step.length;
      if (const auto it = rune_id_.find(step.rune); it != rune_id_.end()) id = it->second;
    }
    const size_t end = at + length;
    bool bytes = id < 0 && byte_fallback_ && !byte_level_;
    for (size_t i = at; bytes && i < end; ++i) bytes = byte_id_[uint8_t(word[i])] >= 0;
    if (id >= 0) {
      close_unknown();
      workspace.Add(id, at, length);
    } else if (bytes) {  // an open unknown token stays open over byte tokens, as in `tokenizers`
      for (size_t i = at; i < end; ++i) workspace.Add(byte_id_[uint8_t(word[i])], i, 1);
    } else if (unk_ >= 0) {
      if (!fuse_unk_) close_unknown();
      if (!unknown_open) unknown_begin = at;
      unknown_open = true;
      unknown_end = end;
    }
    at = end;
  }
  close_unknown();
}

void BpeModel::Encode(std::string_view word, Workspace& workspace, std::vector<int32_t>& out) const {
  if (ignore_merges_) {
    if (const auto it = words_.find(std::string(word)); it != words_.end()) {
      out.push_back(it->second);
      return;
    }
  }
  workspace.symbols.clear();
  AddCharacters(word, workspace);
  MergeSymbols(workspace, [&](const BpeSymbol& a, const BpeSymbol& b, int32_t& rank, int32_t& id) {
    const PairTable::Value* value = merges_.Find(a.id, b.id);
    if (value == nullptr) return false;
    rank = value->rank;
    id = value->id;
    return true;
  });
  for (const BpeSymbol& symbol : workspace.symbols) {
    if (symbol.length > 0) out.push_back(symbol.id);
  }
}

}  // namespace croquis::model
