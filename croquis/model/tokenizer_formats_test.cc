// SentencePiece, GGUF, llama2.c, folders.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>

#include "croquis/base/rng.h"
#include "croquis/model/sentencepiece_proto.h"
#include "croquis/model/tokenizer_formats.h"
#include "croquis/model/tokenizer_test_util.h"
#include "croquis/model/unicode.h"

namespace croquis::model {
namespace {

namespace fs = std::filesystem;

constexpr char kBundled[] = CROQUIS_SOURCE_DIR "/models/croquis-4m";
constexpr char kShared[] = CROQUIS_SOURCE_DIR "/../shared";

std::unique_ptr<Tokenizer> Bundled() {
  auto tokenizer = Tokenizer::FromFolder(kBundled);
  EXPECT_TRUE(tokenizer) << (tokenizer ? "" : tokenizer.error().message);
  return *std::move(tokenizer);
}

TEST(SentencePiece, AsTheLibrary) {
  const auto tokenizer = Bundled();
  ExpectGolden(*tokenizer, "sentencepiece");
  EXPECT_EQ(tokenizer->VocabSize(), 4096);
  EXPECT_EQ(tokenizer->Bos(), 1);
  EXPECT_EQ(Ids(tokenizer->StopTokens().begin(), tokenizer->StopTokens().end()), Ids{2});
  EXPECT_EQ(Encode(*tokenizer, "", true), Ids{1});
  EXPECT_EQ(Encode(*tokenizer, "Hello world", true), (Ids{1, 429, 288, 4032, 890}));
  EXPECT_EQ(tokenizer->TokenBytes(890), " world");
  EXPECT_EQ(tokenizer->TokenBytes(1), "");
  EXPECT_EQ(Encode(*tokenizer, "x\xFFy"), Encode(*tokenizer, "x\uFFFDy"));
}

TEST(SentencePiece, BrokenCharactersOfByteTokens) {
  const auto tokenizer = Bundled();
  const auto byte = [](int b) { return int32_t(3 + b); };
  EXPECT_EQ(tokenizer->Decode(Ids{byte(0xE4), byte(0xBD), byte(0xA0)}), "\u4f60");
  EXPECT_EQ(tokenizer->Decode(Ids{byte(0xE4), byte(0xBD)}), "\uFFFD\uFFFD");  // one for each byte
  EXPECT_EQ(tokenizer->Decode(Ids{byte(0xE4), byte(0xBD), 890}), "\uFFFD\uFFFD world");
  EXPECT_EQ(tokenizer->Decode(Ids{byte('a'), byte(0xFF), byte('b')}), "a\uFFFDb");
  StreamDecoder stream(*tokenizer);  // complete characters do not wait for the end of the run
  EXPECT_EQ(stream.Push(byte(0xE4)), "");
  EXPECT_EQ(stream.Push(byte(0xBD)), "");
  EXPECT_EQ(stream.Push(byte(0xA0)), "\u4f60");
}

TEST(SentencePiece, CorruptModelsAreErrors) {
  const std::string model = ReadAll(std::string(kBundled) + "/tokenizer.model");
  EXPECT_FALSE(ParseSentencePiece({}));
  const Stream stream{5, Purpose("test.corrupt")};
  int refused = 0;
  for (uint64_t trial = 0; trial < 120; ++trial) {
    std::string s = model;
    if (trial % 4 == 0) {
      s.resize(stream.U32(4 * trial) % s.size());
    } else {  // near the end stand the settings
      const size_t range = trial % 4 == 1 ? s.size() : 200;
      s[s.size() - 1 - stream.U32(4 * trial + 1) % range] = char(stream.U32(4 * trial + 2));
    }
    const auto tokenizer = ParseSentencePiece(AsBytes(s));
    if (!tokenizer) {
      ++refused;
    } else if (const auto ids = (*tokenizer)->Encode("Hello \u4f60 x", true, true)) {
      (*tokenizer)->Decode(*ids);
    }
  }
  EXPECT_GT(refused, 30);
}

// A table of normalisation rules that sends the library out of bounds.
TEST(SentencePiece, HostileNormalisationTables) {
  const std::string model = ReadAll(std::string(kBundled) + "/tokenizer.model");
  const auto varint = [](size_t n) {
    std::string out;
    for (; n >= 128; n >>= 7) out += char(n | 128);
    return out + char(n);
  };
  const auto with_map = [&](const std::string& map) {
    const std::string spec = "\x12" + varint(map.size()) + map;
    return model + "\x1A" + varint(spec.size()) + spec;
  };
  const auto map = [](uint32_t first_unit, const std::string& texts) {
    std::string out("\x00\x04\x00\x00", 4);  // 1024 bytes of units
    for (int i = 0; i < 4; ++i) out += char(first_unit >> (8 * i));
    return out + std::string(1020, '\0') + texts;
  };
  EXPECT_FALSE(ParseSentencePieceProto(with_map("x")));
  EXPECT_FALSE(ParseSentencePieceProto(with_map(map(0xFFFFFFFF, std::string("a\0", 2)))));  // children far outside
  EXPECT_FALSE(ParseSentencePieceProto(with_map(map(0x00000100, ""))));                     // no texts
  EXPECT_FALSE(ParseSentencePieceProto(with_map(map(0, "not ended"))));
  EXPECT_TRUE(ParseSentencePieceProto(with_map(map(0, std::string("a\0", 2)))));
}

GgufTokenizerData GgufOfBundled(const std::string& model_bytes) {
  const auto proto = ParseSentencePieceProto(model_bytes);
  EXPECT_TRUE(proto);
  GgufTokenizerData data;
  data.model = "llama";
  for (const auto& piece : proto->pieces) {
    data.tokens.emplace_back(piece.text);
    data.scores.push_back(piece.score);
    data.types.push_back(piece.type);
  }
  data.bos = 1, data.eos = 2, data.unk = 0;
  return data;
}

// The library and our own merging by scores, given the same pieces, are each other's oracle.
TEST(Gguf, PiecesWithScoresAsSentencePiece) {
  const std::string model = ReadAll(std::string(kBundled) + "/tokenizer.model");
  GgufTokenizerData data = GgufOfBundled(model);
  auto tokenizer = MakeGgufTokenizer(data);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  for (const GoldenRow& row : Golden("sentencepiece")) {
    EXPECT_EQ(Encode(**tokenizer, row.text), row.text.empty() ? Ids{} : row.ids) << row.text;
    EXPECT_EQ((*tokenizer)->Decode(row.ids), row.decoded);
  }
  const auto bundled = Bundled();
  const std::string book = ReadAll(CROQUIS_SOURCE_DIR "/LICENSE");
  EXPECT_EQ(Encode(**tokenizer, book), Encode(*bundled, book));
  EXPECT_EQ(Encode(**tokenizer, "a", true).front(), 1);
  EXPECT_EQ(Encode(**tokenizer, "a</s>", false, true).back(), 2);
  EXPECT_EQ(Ids((*tokenizer)->StopTokens().begin(), (*tokenizer)->StopTokens().end()), Ids{2});
  data.add_bos = false;
  data.add_space_prefix = false;
  const auto plain = MakeGgufTokenizer(data);
  ASSERT_TRUE(plain);
  EXPECT_EQ((*plain)->Decode(Encode(**plain, " x", true)), " x");
  EXPECT_EQ((*plain)->Decode(Encode(**plain, "x", true)), "x");
}

// An unused piece is taken apart into what it was merged from.
TEST(Gguf, UnusedPieces) {
  GgufTokenizerData data;
  data.model = "llama";
  data.tokens = {"<unk>", "a", "b", "ab", "abc", "c"};
  data.scores = {0, -9, -9, -1, -2, -9};
  data.types = {2, 1, 1, 5, 1, 1};
  data.unk = 0;
  data.add_space_prefix = false;
  const auto tokenizer = MakeGgufTokenizer(data);
  ASSERT_TRUE(tokenizer);
  EXPECT_EQ(Encode(**tokenizer, "ababc"), (Ids{1, 2, 4}));
  EXPECT_EQ(Encode(**tokenizer, "xa"), (Ids{0, 1}));  // no byte tokens: unknown
}

TEST(Gguf, ByteLevelAsTokenizerJson) {
  const auto json = nlohmann::json::parse(TestData("llama3.tokenizer.json"));
  GgufTokenizerData data;
  data.model = "gpt2";
  data.pre = "llama-bpe";
  data.bos = 1;
  for (const auto& [token, id] : json["model"]["vocab"].items()) {
    data.tokens.resize(std::max(data.tokens.size(), size_t(id) + 1));
    data.tokens[size_t(id)] = token;
  }
  data.types.assign(data.tokens.size(), 1);
  for (const auto& added : json["added_tokens"]) {
    const size_t id = added["id"];
    data.tokens.resize(std::max(data.tokens.size(), id + 1));
    data.types.resize(data.tokens.size(), 1);
    data.tokens[id] = added["content"];
    data.types[id] = added["special"] ? 3 : 4;
  }
  for (const auto& merge : json["model"]["merges"]) {
    data.merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  const auto tokenizer = MakeGgufTokenizer(data);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  int compared = 0;
  for (const GoldenRow& row : Golden("llama3")) {
    // GGUF has no flags for white space and words around added tokens.
    if (row.text.find("<x") != std::string::npos || row.text.find("<word") != std::string::npos ||
        row.text.find("<tool") != std::string::npos || row.text.find("<|im_end") != std::string::npos) {
      continue;
    }
    ++compared;
    EXPECT_EQ(Encode(**tokenizer, row.text), row.ids) << row.text;
    EXPECT_EQ(Encode(**tokenizer, row.text, false, true), row.ids_special) << row.text;
    EXPECT_EQ((*tokenizer)->Decode(row.ids), row.decoded);
  }
  EXPECT_GT(compared, 30);
  EXPECT_EQ(Encode(**tokenizer, "a", true).front(), 1);  // llama-bpe asks for BOS
}

TEST(Gguf, ErrorsNameWhatIsWrong) {
  GgufTokenizerData data;
  const auto error = [&] {
    const auto t = MakeGgufTokenizer(data);
    return t ? std::string() : t.error().message;
  };
  EXPECT_NE(error().find("tokens"), std::string::npos);
  data.tokens = {"a", "b"};
  data.model = "bert";
  EXPECT_NE(error().find("'bert'"), std::string::npos);
  data.model = "llama";
  EXPECT_NE(error().find("0 scores"), std::string::npos);
  data.scores = {0, NAN};
  EXPECT_NE(error().find("no number"), std::string::npos);
  data.scores = {0, 0};
  EXPECT_EQ(error(), "");
  data.types = {1};
  EXPECT_NE(error().find("1 token types"), std::string::npos);
  data.types.clear();
  data.model = "gpt2";
  data.pre = "nobody";
  EXPECT_NE(error().find("'nobody'"), std::string::npos);
  data.pre = "gpt-2";
  data.merges = {"a b"};
  EXPECT_NE(error().find("'ab'"), std::string::npos);
  data.merges = {"nospace"};
  EXPECT_NE(error().find("no space"), std::string::npos);
  data.merges.clear();
  data.bos = 77, data.eos = -7;  // outside the vocabulary: left out
  EXPECT_EQ(error(), "");
}

TEST(Llama2c, Stories) {
  const std::string path = std::string(kShared) + "/models/stories260K/tok512.bin";
  if (!fs::exists(path)) GTEST_SKIP() << "no ../shared";
  const std::string bytes = ReadAll(path);
  const auto tokenizer = MakeLlama2cTokenizer(AsBytes(bytes), 512);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  EXPECT_EQ(Encode(**tokenizer, "Once upon a time", true), (Ids{1, 403, 407, 261, 378}));
  EXPECT_EQ((*tokenizer)->Decode(Ids{1, 403, 407, 261, 378}), "Once upon a time");
  EXPECT_EQ((*tokenizer)->Decode(Encode(**tokenizer, "x \u4f60  y")), "x \u4f60  y");
  for (const size_t cut : {size_t{0}, size_t{3}, size_t{11}, bytes.size() / 2, bytes.size() - 1}) {
    EXPECT_FALSE(MakeLlama2cTokenizer(AsBytes(bytes).first(cut), 512));
  }
  EXPECT_FALSE(MakeLlama2cTokenizer(AsBytes(bytes), 511));
  EXPECT_FALSE(MakeLlama2cTokenizer(AsBytes(bytes), int64_t{1} << 60));
}

class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("croquis_tokenizer_" + std::to_string(::getpid()))) {
    fs::create_directories(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  void Write(const std::string& name, const std::string& text) const { std::ofstream(path_ / name) << text; }
  std::string path() const { return path_.string(); }

 private:
  fs::path path_;
};

TEST(FromFolder, VocabAndMerges) {
  const Folder folder;
  // The bytes' letters as tokens, and two merges.
  nlohmann::json vocab;
  for (int b = 0; b < 256; ++b) {
    std::string letter;
    AppendUtf8(letter, ByteToRune(uint8_t(b)));
    vocab[letter] = b;
  }
  vocab["11"] = 256;
  vocab["\u00c3\u00a9"] = 257;  // the two bytes of e with acute
  folder.Write("vocab.json", vocab.dump());
  folder.Write("merges.txt", "#version: 0.2\r\n1 1\r\n\u00c3 \u00a9\r\n");
  auto gpt2 = Tokenizer::FromFolder(folder.path());
  ASSERT_TRUE(gpt2) << gpt2.error().message;
  EXPECT_EQ(Encode(**gpt2, "11", true), Ids{256});
  EXPECT_EQ(Encode(**gpt2, "e\u0301"), (Ids{'e', 0xCC, 0x81}));
  EXPECT_EQ(Encode(**gpt2, "<|endoftext|>", false, true), Ids{258});
  EXPECT_EQ((*gpt2)->Bos(), 258);
  folder.Write("tokenizer_config.json", R"({"tokenizer_class": "Qwen2Tokenizer", "eos_token": {"content": "<|im_end|>"},
    "added_tokens_decoder": {"300": {"content": "<|im_end|>", "special": true}, "258": {"content": "<think>", "special": false}}})");
  folder.Write("generation_config.json", R"({"eos_token_id": [300, 257]})");
  auto qwen = Tokenizer::FromFolder(folder.path());
  ASSERT_TRUE(qwen) << qwen.error().message;
  EXPECT_EQ(Encode(**qwen, "11"), (Ids{'1', '1'}));  // digits stand alone
  EXPECT_EQ(Encode(**qwen, "e\u0301"), Ids{257});    // NFC
  EXPECT_EQ(Encode(**qwen, "<think>"), Ids{258});    // not special: always parsed
  EXPECT_EQ(Encode(**qwen, "<|im_end|>", true, true), Ids{300});
  EXPECT_EQ((*qwen)->VocabSize(), 301);
  EXPECT_EQ((*qwen)->Decode(Ids{258, 300, 270, 257}), "<think>\u00e9");
  EXPECT_EQ(Ids((*qwen)->StopTokens().begin(), (*qwen)->StopTokens().end()), (Ids{300, 257}));
  folder.Write("tokenizer_config.json", "{\"added_tokens_decoder\": {\"x\": {}}}");
  EXPECT_FALSE(Tokenizer::FromFolder(folder.path()));
  folder.Write("tokenizer_config.json", "{");
  const auto broken = Tokenizer::FromFolder(folder.path());
  ASSERT_FALSE(broken);
  EXPECT_NE(broken.error().message.find("tokenizer_config.json"), std::string::npos) << broken.error().message;
}

TEST(FromFolder, NothingThere) {
  const auto none = Tokenizer::FromFolder("/nonexistent");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, Code::kNotFound);
  EXPECT_NE(none.error().message.find("tokenizer.model"), std::string::npos);
}

TEST(FromFolder, BigVocabularies) {
  const std::string base = std::string(kShared) + "/data/tokenizers/";
  if (!fs::exists(base + "gpt2")) GTEST_SKIP() << "no ../shared";
  const auto gpt2 = Tokenizer::FromFolder(base + "gpt2");
  ASSERT_TRUE(gpt2) << gpt2.error().message;
  EXPECT_EQ(Encode(**gpt2, "Hello world"), (Ids{15496, 995}));
  EXPECT_EQ(Encode(**gpt2, "<|endoftext|>", false, true), Ids{50256});
  const std::string license = ReadAll(CROQUIS_SOURCE_DIR "/LICENSE");
  EXPECT_EQ((*gpt2)->Decode(Encode(**gpt2, license)), license);
}

}  // namespace
}  // namespace croquis::model
