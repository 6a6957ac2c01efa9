#include <gtest/gtest.h>

#include "croquis/base/rng.h"
#include "croquis/model/tokenizer_formats.h"
#include "croquis/model/tokenizer_test_util.h"
#include "croquis/model/unicode.h"

namespace croquis::model {
namespace {

using Json = nlohmann::json;

std::unique_ptr<Tokenizer> Load(const Json& json, const TokenizerHints& hints = {}) {
  const std::string text = json.dump();
  auto tokenizer = ParseTokenizerJson(AsBytes(text), hints);
  EXPECT_TRUE(tokenizer) << (tokenizer ? "" : tokenizer.error().message);
  return tokenizer ? *std::move(tokenizer) : nullptr;
}
std::string ErrorOf(const Json& json) {
  const std::string text = json.dump();
  const auto tokenizer = ParseTokenizerJson(AsBytes(text));
  return tokenizer ? "" : tokenizer.error().message;
}
Json Llama3() { return Json::parse(TestData("llama3.tokenizer.json")); }
Json Llama2() { return Json::parse(TestData("llama2.tokenizer.json")); }
int32_t IdOf(const Json& json, const std::string& token) {
  for (const auto& added : json["added_tokens"]) {
    if (added["content"] == token) return added["id"];
  }
  return json["model"]["vocab"].value(token, -1);
}

TEST(TokenizerJson, ByteLevelAsTheLibrary) { ExpectGolden(*Load(Llama3()), "llama3"); }
TEST(TokenizerJson, SentencePieceStyleAsTheLibrary) { ExpectGolden(*Load(Llama2()), "llama2"); }

TEST(TokenizerJson, BosAndStops) {
  const auto tokenizer = Load(Llama3());
  EXPECT_EQ(tokenizer->Bos(), 1);
  EXPECT_EQ(Encode(*tokenizer, "", true), Ids{1});
  EXPECT_EQ(Encode(*tokenizer, "a", true).front(), 1);
  const Json json = Llama3();
  const int32_t end = IdOf(json, "<|endoftext|>"), turn = IdOf(json, "<|im_end|>");
  EXPECT_EQ(Ids(tokenizer->StopTokens().begin(), tokenizer->StopTokens().end()), (Ids{end, turn}));
  TokenizerHints hints;
  hints.add_bos = false;
  hints.add_eos = true;
  hints.eos = "<|im_end|>";
  hints.stop_ids = {5, -1, 1 << 30};
  const auto other = Load(Llama3(), hints);
  EXPECT_EQ(Encode(*other, "", true), Ids{turn});
  EXPECT_EQ(Ids(other->StopTokens().begin(), other->StopTokens().end()), (Ids{turn, 5, end}));
}

TEST(TokenizerJson, MergesAsPairsAndAsStrings) {
  Json json = Llama3();
  Json pairs = Json::array(), strings = Json::array();
  for (const auto& merge : json["model"]["merges"]) {
    const std::string a = merge[0], b = merge[1];
    pairs.push_back({a, b});
    strings.push_back(a + " " + b);
  }
  json["model"]["merges"] = strings;
  ExpectGolden(*Load(json), "llama3");
}

TEST(TokenizerJson, InvalidUtf8BecomesReplacementCharacters) {
  const auto tokenizer = Load(Llama3());
  EXPECT_EQ(Encode(*tokenizer, "a\xFF\xE4\xBD b"), Encode(*tokenizer, "a\uFFFD\uFFFD b"));
  EXPECT_EQ(Encode(*tokenizer, std::string_view("a\0b", 3)).size(), 3u);
}

TEST(TokenizerJson, AddedTokensTakeWhatTheirFlagsSay) {
  const Json json = Llama3();
  const auto tokenizer = Load(json);
  const int32_t x = IdOf(json, "<x>"), xy = IdOf(json, "<xy>"), word = IdOf(json, "<word>"),
                call = IdOf(json, "<tool_call>");
  const auto only = [&](std::string_view text, int32_t id) { return Encode(*tokenizer, text) == Ids{id}; };
  EXPECT_TRUE(only(" \n <x>", x));                                                             // lstrip
  EXPECT_TRUE(only("<tool_call> \t", call));                                                   // rstrip
  EXPECT_TRUE(only("<xy>", xy));                                                               // the longest
  EXPECT_EQ(Encode(*tokenizer, "a<word>").size(), Encode(*tokenizer, "a<word>b").size() - 1);  // single_word: neither
  EXPECT_TRUE(only("<word>", word));
  // Special tokens are text unless they are asked for.
  EXPECT_GT(Encode(*tokenizer, "<|im_start|>").size(), 1u);
  EXPECT_EQ(Encode(*tokenizer, "<|im_start|>", false, true), Ids{IdOf(json, "<|im_start|>")});
}

// Every prefix of every token sequence: whole characters only, and all that can be known is out.
TEST(TokenizerJson, StreamingNeverSplitsCharacters) {
  for (const Json& json : {Llama3(), Llama2()}) {
    const auto tokenizer = Load(json);
    const Stream stream{3, Purpose("test.stream")};
    for (uint64_t trial = 0; trial < 2000; ++trial) {
      Ids ids;
      for (uint64_t i = 0; i < 1 + trial % 24; ++i) {
        ids.push_back(int32_t(stream.U32(trial * 32 + i) % uint64_t(tokenizer->VocabSize() + 2)));
      }
      StreamDecoder decoder(*tokenizer);
      std::string text;
      for (const int32_t id : ids) {
        const std::string piece = decoder.Push(id);
        ASSERT_TRUE(IsUtf8(piece));
        text += piece;
      }
      text += decoder.Flush();
      ASSERT_EQ(text, tokenizer->Decode(ids));
    }
  }
}

TEST(TokenizerJson, StreamingIsPrompt) {
  const auto tokenizer = Load(Llama3());
  StreamDecoder decoder(*tokenizer);
  std::string text;
  for (const int32_t id : Encode(*tokenizer, "\U0001f468\u200d\U0001f469 caf\u00e9")) {
    const std::string piece = decoder.Push(id);
    text += piece;
  }
  EXPECT_EQ(text, "\U0001f468\u200d\U0001f469 caf\u00e9");  // nothing waits for Flush
  EXPECT_EQ(decoder.Flush(), "");
  // Four bytes of a character, one by one: nothing until the last.
  const Json json = Llama3();
  StreamDecoder one(*tokenizer);
  std::string out;
  for (const unsigned char b : std::string("\U0001f642")) {
    std::string letter;
    AppendUtf8(letter, ByteToRune(b));
    EXPECT_EQ(out, "");
    out += one.Push(IdOf(json, letter));
  }
  EXPECT_EQ(out, "\U0001f642");
}

TEST(TokenizerJson, ContinuedTextKeepsItsSpace) {
  const auto tokenizer = Load(Llama2());
  const Ids ids = Encode(*tokenizer, "the");
  StreamDecoder fresh(*tokenizer), continued(*tokenizer, true);
  std::string a, b;
  for (const int32_t id : ids) a += fresh.Push(id), b += continued.Push(id);
  EXPECT_EQ(a + fresh.Flush(), "the");
  EXPECT_EQ(b + continued.Flush(), " the");
}

TEST(TokenizerJson, WhatIsNotSupportedIsNamed) {
  const auto with = [](const char* path, const Json& value) {
    Json json = Llama3();
    json[Json::json_pointer(path)] = value;
    return ErrorOf(json);
  };
  const std::tuple<const char*, Json, const char*> kCases[] = {
      {"/model/type", "Unigram", "'Unigram'"},
      {"/model/dropout", 0.1, "dropout"},
      {"/model/end_of_word_suffix", "</w>", "'</w>'"},
      {"/model/unk_token", "<nope>", "'<nope>'"},
      {"/normalizer", {{"type", "BertNormalizer"}}, "'BertNormalizer'"},
      {"/normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "Precompiled"}}}}}, "'Precompiled'"},
      {"/pre_tokenizer", {{"type", "UnicodeScripts"}}, "'UnicodeScripts'"},
      {"/pre_tokenizer/pretokenizers/2", {{"type", "Digits"}}, "'Digits' after ByteLevel"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "[a[b]]", "class inside a class"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "Sideways", "'Sideways'"},
      {"/decoder", {{"type", "WordPiece"}}, "'WordPiece'"},
      {"/decoder",
       {{"type", "Sequence"}, {"decoders", {{{"type", "Fuse"}}, {{"type", "ByteFallback"}}}}},
       "'ByteFallback'"},
      {"/post_processor", {{"type", "Other"}}, "'Other'"},
      {"/post_processor/processors/1/special_tokens", Json::object(), "'<s>'"},
      {"/model/merges/0", 7, "merge 0"},
      {"/model/vocab/a", -1, "'a'"},
      {"/model/vocab/a", 2000000000, "2000000000"},
      {"/model/ignore_merges", "yes", "ignore_merges"},
      {"/added_tokens/0/id", nullptr, "id"},
      {"/model/vocab", nullptr, "vocabulary"},
  };
  for (const auto& [path, value, named] : kCases) {
    const std::string error = with(path, value);
    EXPECT_NE(error.find(named), std::string::npos) << path << ": " << error;
  }
}

TEST(TokenizerJson, HostileBytes) {
  const auto parse = [](const std::string& s) { return bool(ParseTokenizerJson(AsBytes(s))); };
  EXPECT_FALSE(parse(""));
  EXPECT_FALSE(parse("[]"));
  EXPECT_FALSE(parse("{}"));
  EXPECT_FALSE(parse(std::string(1 << 20, '[')));
  EXPECT_FALSE(parse("{\"model\":" + std::string(1 << 20, '{')));
  EXPECT_FALSE(parse("{\"\xFF\":1}"));
  EXPECT_FALSE(parse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1e99},\"merges\":[]}}"));
  EXPECT_FALSE(parse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":18446744073709551615},\"merges\":[]}}"));
  EXPECT_TRUE(parse("{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}"));
  // Flipped, doubled and missing bytes: an error or a tokenizer that works, never a crash.
  const Stream stream{4, Purpose("test.hostile")};
  const std::string texts[] = {TestData("llama3.tokenizer.json"), TestData("llama2.tokenizer.json")};
  int accepted = 0;
  for (uint64_t trial = 0; trial < 600; ++trial) {
    std::string s = texts[trial % 2];
    const uint64_t base = trial * 16;
    for (uint64_t i = 0; i < 1 + trial % 3; ++i) {
      const size_t at = stream.U32(base + 3 * i) % s.size();
      const uint32_t what = stream.U32(base + 3 * i + 1), c = stream.U32(base + 3 * i + 2);
      if (what % 3 == 0) s[at] = trial % 4 < 2 ? char(c) : char('0' + c % 10);  // numbers often stay numbers
      if (what % 3 == 1) s.erase(at, 1 + c % 20);
      if (what % 3 == 2) s.insert(at, s.substr(c % s.size(), 1 + c % 20));
    }
    const auto tokenizer = ParseTokenizerJson(AsBytes(s));
    if (!tokenizer) {
      EXPECT_FALSE(tokenizer.error().message.empty());
      continue;
    }
    ++accepted;
    const auto ids = (*tokenizer)->Encode("It's 1234 \u4f60\u597d <x>\r\n", true, true);
    if (ids) (*tokenizer)->Decode(*ids);
  }
  EXPECT_GT(accepted, 20);
}

TEST(TokenizerJson, IdsOutsideTheVocabularyDecodeToNothing) {
  const auto tokenizer = Load(Llama3());
  EXPECT_EQ(tokenizer->Decode(Ids{-1, 1 << 30, int32_t(tokenizer->VocabSize())}), "");
  EXPECT_EQ(tokenizer->TokenBytes(-5), "");
}

}  // namespace
}  // namespace croquis::model
