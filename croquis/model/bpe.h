// Byte-pair encoding: merging neighbours in order of priority, and the model that does it by ranked pairs of ids.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "croquis/base/result.h"

namespace croquis::model {

// One part of a word, linked to its neighbours; `length` 0 once it is merged into the one before it.
struct BpeSymbol {
  int32_t prev = -1, next = -1;
  int32_t id = -1;
  uint32_t begin = 0, length = 0;  // bytes of the word
};

template <class Priority>
struct BpeCandidate {
  Priority priority;  // smaller goes first; equal ones go left to right
  int32_t left, right, id;
  uint32_t length;  // of both symbols when the candidate was made: it is stale once the sum differs
};

template <class Priority>
struct BpeWorkspace {
  std::vector<BpeSymbol> symbols;
  std::vector<BpeCandidate<Priority>> heap;

  void Add(int32_t id, size_t begin, size_t length) {
    const int32_t n = int32_t(symbols.size());
    if (n > 0) symbols.back().next = n;
    symbols.push_back({n - 1, -1, id, uint32_t(begin), uint32_t(length)});
  }
};

// Merges workspace.symbols until no pair is left that `find` knows, always the pair of smallest priority first, the
// leftmost of equals: O(n log n) for n symbols, whatever the text.
// find(const BpeSymbol& left, const BpeSymbol& right, Priority& priority, int32_t& id) -> bool.
template <class Priority, class Find>
void MergeSymbols(BpeWorkspace<Priority>& workspace, const Find& find) {
  using Candidate = BpeCandidate<Priority>;
  auto& symbols = workspace.symbols;
  auto& heap = workspace.heap;
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.priority > b.priority || (a.priority == b.priority && a.left > b.left);
  };
  const auto candidate = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return false;
    const BpeSymbol &a = symbols[size_t(left)], &b = symbols[size_t(right)];
    Candidate c{Priority{}, left, right, -1, a.length + b.length};
    if (!find(a, b, c.priority, c.id)) return false;
    heap.push_back(c);
    return true;
  };
  heap.clear();
  for (size_t i = 1; i < symbols.size(); ++i) candidate(int32_t(i) - 1, int32_t(i));
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Candidate c = heap.back();
    heap.pop_back();
    BpeSymbol &a = symbols[size_t(c.left)], &b = symbols[size_t(c.right)];
    if (a.length == 0 || b.length == 0 || a.length + b.length != c.length) continue;
    a.id = c.id;
    a.length = c.length;
    a.next = b.next;
    b.length = 0;
    if (b.next >= 0) symbols[size_t(b.next)].prev = c.left;
    if (candidate(a.prev, c.left)) std::push_heap(heap.begin(), heap.end(), later);
    if (candidate(c.left, a.next)) std::push_heap(heap.begin(), heap.end(), later);
  }
}

// (left id, right id) -> (rank, merged id). Open addressing: half the time of std::unordered_map, which is most of the
// time of encoding.
class PairTable {
 public:
  struct Value {
    int32_t rank = 0, id = -1;
  };
  void Reserve(size_t n);
  void Set(int32_t left, int32_t right, Value value);  // the last value of a pair stays
  const Value* Find(int32_t left, int32_t right) const {
    if (slots_.empty()) return nullptr;
    const uint64_t key = Key(left, right);
    for (size_t i = Hash(key) & mask_;; i = (i + 1) & mask_) {
      if (slots_[i].key == key) return &slots_[i].value;
      if (slots_[i].key == kEmpty) return nullptr;
    }
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};  // ids are not negative
  struct Slot {
    uint64_t key = kEmpty;
    Value value;
  };
  static uint64_t Key(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }
  static size_t Hash(uint64_t key) { return size_t((key * 0x9E3779B97F4A7C15ull) >> 20); }
  std::vector<Slot> slots_;
  size_t mask_ = 0, used_ = 0;
};

// A vocabulary with merges as tokenizer.json, vocab.json + merges.txt and GGUF give it.
struct BpeData {
  std::vector<std::pair<std::string, int32_t>> vocab;       // as written in the file; ids are not negative
  std::vector<std::pair<std::string, std::string>> merges;  // in order of rank
  std::string unk_token;                                    // empty: characters outside the vocabulary are dropped
  bool byte_level = false;     // tokens are written in GPT-2's byte alphabet, and words are bytes
  bool byte_fallback = false;  // a character outside the vocabulary becomes tokens "<0xE4>" of its bytes
  bool fuse_unk = false;       // neighbouring unknown characters make one unknown token
  bool ignore_merges = false;  // a word that is a token is not cut
};

class BpeModel {
 public:
  using Workspace = BpeWorkspace<int32_t>;
  // Errors: merges of or into tokens that are not in the vocabulary, an unknown token that is not.
  static Result<BpeModel> Make(const BpeData& data);
  // Appends the ids of a word: well-formed UTF-8, or with byte_level any bytes; shorter than 2^31 bytes.
  void Encode(std::string_view word, Workspace& workspace, std::vector<int32_t>& out) const;

 private:
  void AddCharacters(std::string_view word, Workspace& workspace) const;

  PairTable merges_;
  std::array<int32_t, 256> byte_id_{};              // byte_level: of a byte's letter; else of "<0xXX>"; -1: none
  std::unordered_map<char32_t, int32_t> rune_id_;   // not byte_level: tokens of one character
  std::unordered_map<std::string, int32_t> words_;  // ignore_merges: every token
  int32_t unk_ = -1;
  bool byte_level_ = false, byte_fallback_ = false, fuse_unk_ = false, ignore_merges_ = false;
};

}  // namespace croquis::model
