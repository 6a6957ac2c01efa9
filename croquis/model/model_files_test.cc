// What the loader refuses, and in which words; small operations against plain formulas.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "croquis/base/memory.h"
#include "croquis/base/rng.h"
#include "croquis/model/config.h"
#include "croquis/model/gguf.h"
#include "croquis/model/llama2c.h"
#include "croquis/model/model.h"
#include "croquis/model/safetensors.h"
#include "croquis/model/test_model_files.h"
#include "croquis/model/transformer_ops.h"
#include "croquis/model/weights.h"

namespace croquis::model {
namespace {

using nlohmann::json;

std::span<const std::byte> Bytes(const std::string& s) { return std::as_bytes(std::span(s)); }

std::string Header(const std::string& text, size_t data) {
  std::string file;
  AppendBytes(file, uint64_t(text.size()));
  return file + text + std::string(data, '\0');
}

template <class R>
void ExpectError(const R& result, const std::string& words, Code code = Code::kCorrupt) {
  ASSERT_FALSE(result) << "wanted an error with: " << words;
  EXPECT_EQ(result.error().code, code) << result.error().message;
  EXPECT_NE(result.error().message.find(words), std::string::npos) << result.error().message << "\nwanted: " << words;
}

TEST(Safetensors, ReadsATable) {
  const auto file =
      Header(R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
             R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   )",
             16);
  const auto table = ParseSafetensorsHeader(Bytes(file));
  ASSERT_TRUE(table) << table.error().message;
  ASSERT_EQ(table->size(), 2u);
  EXPECT_EQ((*table)[0].name, "a");
  EXPECT_EQ((*table)[0].shape.size(), 0u);
  EXPECT_EQ((*table)[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ((*table)[1].bytes.data() - reinterpret_cast<const std::byte*>(file.data()), int64_t(file.size()) - 12);
}

TEST(Safetensors, RefusesDamage) {
  const auto parse = [](const std::string& text, size_t data) {
    const std::string file = Header(text, data);
    return ParseSafetensorsHeader(Bytes(file));
  };
  const auto one = [&](const std::string& body, size_t data) { return parse(R"({"w":{)" + body + "}}", data); };
  ExpectError(ParseSafetensorsHeader(Bytes("abc")), "3 bytes");
  ExpectError(ParseSafetensorsHeader(Bytes(std::string(16, '\xff'))), "a header of 18446744073709551615 bytes");
  ExpectError(parse("{", 0), "not JSON");
  ExpectError(parse("[]", 0), "does not begin with '{'");
  ExpectError(parse("{} x", 0), "not JSON");
  ExpectError(parse(R"({"w":5})", 0), "a number where none belongs");
  ExpectError(parse(R"({"w":{}})", 0), "lacks its dtype");
  ExpectError(one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1)", 8), "a number where none belongs");
  ExpectError(one(R"("dtype":"F33","shape":[2],"data_offsets":[0,8])", 8), "unknown dtype 'F33'");
  ExpectError(one(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])", 8), "say 12");
  ExpectError(one(R"("dtype":"F32","shape":[2],"data_offsets":[0,9])", 8), "bytes 0 to 9 of 8");
  ExpectError(one(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])", 8), "bytes 8 to 0");
  ExpectError(one(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])", 8), "overlap or leave holes");
  ExpectError(one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])", 8), "4 bytes after the last tensor");
  ExpectError(one(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])", 8), "negative number");
  ExpectError(one(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])", 8), "fraction");
  ExpectError(one(R"("dtype":"F32","shape":[1152921504606846976,1152921504606846976],"data_offsets":[0,8])", 8),
              "64 bits");
  ExpectError(one(R"("dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8])", 8), "fraction");
  ExpectError(one(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8])", 8), "more than 8 dimensions");
  ExpectError(one(R"("dtype":"F32","shape":[[2]],"data_offsets":[0,8])", 8), "an array where none belongs");
  ExpectError(
      parse(
          R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"v":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
          6),
      "overlap");
  ExpectError(
      parse(
          R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
          8),
      "'w' is there twice");
  ExpectError(parse(R"({"w":)" + std::string(100000, '[') + "}", 0), "an array where none belongs");
}

TEST(Safetensors, IndexNamesPlainFiles) {
  const auto index =
      ParseSafetensorsIndex(R"({"metadata":{"total_size":8},"weight_map":{"b":"2.safetensors","a":"1.safetensors"}})");
  ASSERT_TRUE(index) << index.error().message;
  EXPECT_EQ(index->files, (std::vector<std::string>{"1.safetensors", "2.safetensors"}));
  EXPECT_EQ(index->tensors[1], (std::pair<std::string, size_t>{"b", 1}));
  for (const char* file : {"../x", "/etc/passwd", "a/b", "", "..", "a\\\\b"})
    ExpectError(ParseSafetensorsIndex(std::string(R"({"weight_map":{"a":")") + file + "\"}}"), "plain name");
  ExpectError(ParseSafetensorsIndex(R"({"weight_map":{"a":"1","a":"2"}})"), "twice");
  ExpectError(ParseSafetensorsIndex(R"({"weight_map":[1]})"), "not an object");
  ExpectError(ParseSafetensorsIndex("{}"), "no weight_map");
}

GgufWriter SmallGguf(uint32_t version = 3) {
  GgufWriter w(version);
  w.Text("general.architecture", "llama").Scalar("a.u8", 0, uint8_t{200}).Scalar("a.i16", 3, int16_t{-7});
  w.Scalar("a.f32", 6, 2.5f)
      .Scalar("a.f64", 12, -0.25)
      .Scalar("a.bool", 7, uint8_t{1})
      .Scalar("a.u64", 10, ~uint64_t{0});
  w.Strings("a.list", {"x", "", "yz"});
  w.Tensor({"t", {2, 3}, {1, 2, 3, 4, 5, 6}}).Tensor({"s", {1}, {7}});
  return w;
}

TEST(Gguf, ReadsAllKinds) {
  for (const uint32_t version : {2u, 3u}) {
    const std::string bytes = SmallGguf(version).Bytes();
    const auto file = ParseGguf(Bytes(bytes));
    ASSERT_TRUE(file) << file.error().message;
    EXPECT_EQ(file->version(), version);
    EXPECT_EQ(file->String("general.architecture"), "llama");
    EXPECT_EQ(file->Int("a.u8"), 200);
    EXPECT_EQ(file->Real("a.i16"), -7.0);
    EXPECT_EQ(file->Real("a.f32"), 2.5);
    EXPECT_EQ(file->Real("a.f64"), -0.25);
    EXPECT_EQ(file->Bool("a.bool"), true);
    EXPECT_EQ(file->Int("a.u64"), std::nullopt);  // does not fit
    EXPECT_EQ(file->Int("a.f32"), std::nullopt);
    EXPECT_EQ(file->Int("a.list"), std::nullopt);
    EXPECT_EQ(file->Strings("a.list"), (std::vector<std::string_view>{"x", "", "yz"}));
    const auto* t = file->FindTensor("t");
    ASSERT_NE(t, nullptr);
    EXPECT_EQ(t->shape, (std::vector<int64_t>{2, 3}));
    float last;
    std::memcpy(&last, t->bytes.data() + 20, 4);
    EXPECT_EQ(last, 6.f);
    EXPECT_EQ(file->FindTensor("u"), nullptr);
  }
}

TEST(Gguf, EveryCutIsAnError) {
  const std::string bytes = SmallGguf().Bytes();
  for (size_t n = 0; n + 29 < bytes.size(); ++n)  // the last tensor is 4 bytes and padding
    EXPECT_FALSE(ParseGguf(Bytes(bytes.substr(0, n)))) << n;
}

TEST(Gguf, RefusesDamage) {
  const auto with = [](const std::string& key, uint32_t type, const std::string& raw) {
    const std::string bytes = GgufWriter().Raw(key, type, raw).Bytes();
    return ParseGguf(Bytes(bytes));
  };
  std::string count, strings, nested;
  AppendBytes(count, uint32_t{4});
  AppendBytes(count, ~uint64_t{0});
  ExpectError(with("k", 9, count), "claims 18446744073709551615 elements");
  AppendBytes(strings, ~uint64_t{0});
  ExpectError(with("k", 8, strings), "ends inside");
  AppendBytes(nested, uint32_t{9});
  AppendBytes(nested, uint64_t{1});
  ExpectError(with("k", 9, nested), "array of arrays", Code::kUnsupported);
  ExpectError(with("k", 77, ""), "unknown type 77");
  ExpectError(with("general.alignment", 4, std::string("\x03\0\0\0", 4)), "not a power of two");
  ExpectError(ParseGguf(Bytes("GGUX")), "not a GGUF file");

  std::string bytes = SmallGguf().Bytes();
  bytes[4] = 9;
  ExpectError(ParseGguf(Bytes(bytes)), "version 9", Code::kUnsupported);
  bytes = SmallGguf().Bytes();
  std::fill_n(bytes.begin() + 8, 8, '\x7f');
  ExpectError(ParseGguf(Bytes(bytes)), "claims");
  const std::string twice = GgufWriter().Text("k", "a").Text("k", "b").Bytes();
  ExpectError(ParseGguf(Bytes(twice)), "'k' is there twice");
  const std::string same = GgufWriter().Tensor({"t", {1}, {1}}).Tensor({"t", {1}, {1}}).Bytes();
  ExpectError(ParseGguf(Bytes(same)), "'t' is there twice");

  // Name, dimensions, type and offset of one tensor, then 32 bytes of data.
  const auto tensor = [](std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
    std::string b = "GGUF";
    AppendBytes(b, uint32_t{3});
    AppendBytes(b, uint64_t{1});
    AppendBytes(b, uint64_t{0});
    AppendBytes(b, uint64_t{1});
    b += "t";
    AppendBytes(b, uint32_t(dims.size()));
    for (const uint64_t d : dims) AppendBytes(b, d);
    AppendBytes(b, type);
    AppendBytes(b, offset);
    b.resize((b.size() + 31) / 32 * 32 + 32);
    return ParseGguf(Bytes(b));
  };
  EXPECT_TRUE(tensor({8}, 0, 0));
  EXPECT_TRUE(tensor({32}, 2, 0));  // Q4_0: 18 bytes
  ExpectError(tensor({9}, 0, 0), "needs 36 bytes");
  ExpectError(tensor({33}, 2, 0), "does not fit its type");
  ExpectError(tensor({8}, 0, 64), "at 64 of 32");
  ExpectError(tensor({1}, 0, 8), "no multiple of 32");
  ExpectError(tensor({1}, 0, ~uint64_t{31}), "at 18446744073709551584 of");
  ExpectError(tensor({uint64_t{1} << 59, uint64_t{1} << 59}, 0, 0), "does not fit its type");
  ExpectError(tensor({~uint64_t{0}}, 0, 0), "dimension of");
  ExpectError(tensor({1, 1, 1, 1, 1}, 0, 0), "5 dimensions");
  ExpectError(tensor({8}, 200, 0), "type number 200", Code::kUnsupported);
}

int Touch(std::span<const std::byte> bytes) { return bytes.empty() ? 0 : int(bytes.front()) + int(bytes.back()); }

// 20,000 files with one to eight damaged bytes each: whatever the answer, every view lies in the file (the sanitizer
// build checks the reads).
TEST(Damage, NeverReadsOutside) {
  const Stream s{7, Purpose("test.damage")};
  const std::string gguf = SmallGguf().Bytes();
  const std::string safetensors = SafetensorsBytes({{"a", {2, 2}, {1, 2, 3, 4}}, {"b.c", {3}, {1, 2, 3}}});
  int good = 0, sum = 0;
  for (uint64_t i = 0; i < 20000; ++i) {
    std::string bytes = i % 2 == 0 ? gguf : safetensors;
    const uint32_t changes = 1 + s.U32(20 * i) % 8;
    for (uint64_t c = 0; c < changes; ++c) {
      const uint32_t at = s.U32(20 * i + 2 * c + 1) % uint32_t(bytes.size()), how = s.U32(20 * i + 2 * c + 2);
      bytes[at] = how % 3 == 0 ? char(how >> 8) : how % 3 == 1 ? char(bytes[at] ^ (1 << (how >> 8) % 8)) : char(0xff);
    }
    if (s.U32(20 * i + 19) % 4 == 0) bytes.resize(bytes.size() / 2 + s.U32(20 * i + 18) % bytes.size() / 2);
    const std::vector<char> exact(bytes.begin(), bytes.end());  // no spare capacity behind the end
    const auto view = std::as_bytes(std::span(exact));
    if (i % 2 == 0) {
      const auto file = ParseGguf(view);
      if (!file) continue;
      for (const auto& v : file->values()) {
        sum += Touch(v.bytes);
        sum += int(file->Strings(v.key).has_value()) + int(file->Reals(v.key).has_value());
        sum += int(file->Int(v.key).has_value()) + int(file->String(v.key).has_value());
      }
      for (const auto& t : file->tensors()) sum += Touch(t.bytes);
    } else {
      const auto table = ParseSafetensorsHeader(view);
      if (!table) continue;
      for (const auto& t : *table) sum += Touch(t.bytes);
    }
    ++good;
  }
  EXPECT_GT(good, 100);  // damage to names and values goes unnoticed
  EXPECT_GT(sum, 0);
}

std::string Llama2c(std::vector<int32_t> h, int64_t floats) {
  std::string b;
  for (const int32_t v : h) AppendBytes(b, v);
  b.append(size_t(floats) * 4, '\0');
  return b;
}

TEST(Llama2c, SizesMustAgree) {
  // dim 16, hidden 4, 1 layer, 2 heads, 1 kv head, vocab 3, seq 2.
  const int64_t body = 3 * 16 + 16 + 16 * 16 + 8 * 16 * 2 + 16 * 16 + 16 + 3 * 4 * 16 + 16 + 2 * 8;
  const auto parse = [](const std::string& b) { return ParseLlama2c(Bytes(b)); };
  const auto tied = parse(Llama2c({16, 4, 1, 2, 1, 3, 2}, body));
  ASSERT_TRUE(tied) << tied.error().message;
  EXPECT_TRUE(tied->config.tied_embeddings);
  EXPECT_EQ(tied->config.head_dim, 8);
  const auto untied = parse(Llama2c({16, 4, 1, 2, 1, -3, 2}, body + 3 * 16));
  ASSERT_TRUE(untied) << untied.error().message;
  EXPECT_FALSE(untied->config.tied_embeddings);
  EXPECT_EQ(untied->tensors.back().name, "lm_head.weight");
  ExpectError(parse(Llama2c({16, 4, 1, 2, 1, 3, 2}, body + 1)), "asks for");
  ExpectError(parse(Llama2c({16, 4, 1, 2, 1, 3, 2}, body - 1)), "asks for");
  ExpectError(parse(Llama2c({1 << 16, 1 << 18, 1 << 10, 2, 1, 1 << 22, 1 << 24}, 8)), "at least");
  ExpectError(parse(Llama2c({16, 4, 1, 3, 1, 3, 2}, body)), "do not divide");
  ExpectError(parse(Llama2c({16, 4, 1, 2, 1, INT32_MIN, 2}, body)), "vocab_size");
  ExpectError(parse(Llama2c({16, 4, -1, 2, 1, 3, 2}, body)), "n_layers is -1");
  ExpectError(parse(Llama2c({0x616b3432, 1, 1, 2, 1, 3, 2}, 4)), "version 1", Code::kUnsupported);
  ExpectError(parse("abc"), "3 bytes");
}

json BaseConfig() {
  return {{"model_type", "llama"},         {"hidden_size", 32},       {"num_hidden_layers", 1},
          {"num_attention_heads", 4},      {"intermediate_size", 48}, {"vocab_size", 10},
          {"num_key_value_heads", 2},      {"rms_norm_eps", 1e-5},    {"tie_word_embeddings", true},
          {"max_position_embeddings", 128}};
}

TEST(Config, RefusesWhatItCannotCompute) {
  const auto parse = [](const char* key, const json& value) {
    json c = BaseConfig();
    c[key] = value;
    return ParseHfConfig(c.dump());
  };
  ASSERT_TRUE(ParseHfConfig(BaseConfig().dump()));
  ExpectError(parse("model_type", "gemma3"), "'gemma3' is not known; known are llama, mistral, qwen2, qwen3",
              Code::kUnsupported);
  ExpectError(parse("architectures", {"LlamaForSequenceClassification"}), "LlamaForSequenceClassification",
              Code::kUnsupported);
  ExpectError(parse("hidden_act", "gelu"), "'gelu'", Code::kUnsupported);
  ExpectError(parse("rope_scaling", {{"type", "yarn"}, {"factor", 4}}), "'yarn'", Code::kUnsupported);
  ExpectError(parse("rope_scaling", {{"rope_type", "llama3"}}), "lacks 'factor'");
  ExpectError(parse("partial_rotary_factor", 0.5), "partial rotary", Code::kUnsupported);
  ExpectError(parse("quantization_config", {{"bits", 4}}), "quantised", Code::kUnsupported);
  ExpectError(parse("num_hidden_layers", nullptr), "lacks 'num_hidden_layers'");
  ExpectError(parse("num_hidden_layers", "two"), "not an integer");
  ExpectError(parse("num_hidden_layers", 1e300), "not an integer");
  ExpectError(parse("num_hidden_layers", -3), "layers is -3");
  ExpectError(parse("num_attention_heads", 0), "attention heads is 0");
  ExpectError(parse("num_key_value_heads", 3), "no multiple");
  ExpectError(parse("head_dim", 7), "head dimension is 7");
  ExpectError(parse("head_dim", 9), "is odd");
  ExpectError(parse("vocab_size", 9e15), "not an integer");
  ExpectError(parse("rms_norm_eps", -1), "epsilon");
  ExpectError(ParseHfConfig("{"), "config.json");
  ExpectError(ParseHfConfig("[1]"), "not a JSON object");
  ExpectError(ParseHfConfig("{}"), "names no architecture");
}

TEST(Config, WindowsAndScaling) {
  json c = BaseConfig();
  c["model_type"] = "mistral";
  EXPECT_EQ(ParseHfConfig(c.dump())->sliding_window, 4096);  // MistralConfig's default
  c["sliding_window"] = nullptr;
  EXPECT_EQ(ParseHfConfig(c.dump())->sliding_window, 0);
  c["model_type"] = "qwen2";
  c["sliding_window"] = 16;
  EXPECT_EQ(ParseHfConfig(c.dump())->sliding_window, 0);
  EXPECT_TRUE(ParseHfConfig(c.dump())->qkv_bias);
  c["use_sliding_window"] = true;
  c["max_window_layers"] = 0;
  EXPECT_EQ(ParseHfConfig(c.dump())->Window(0), 16);
  c = BaseConfig();
  c["rope_scaling"] = {{"type", "linear"}, {"factor", 2.0}};
  const auto linear = ParseHfConfig(c.dump());
  EXPECT_DOUBLE_EQ(RopeFrequencies(*linear)[0], 0.5);
  EXPECT_DOUBLE_EQ(RopeFrequencies(*linear, {4.f})[0], 0.125);
}

TEST(Model, NamesWhatIsMissing) {
  Executor executor(1);
  const TempFolder folder;
  ExpectError(Model::Load(folder.path() + "/none", executor), "/none", Code::kNotFound);
  ExpectError(Model::Load(folder.path(), executor), "config.json", Code::kNotFound);
  folder.Write("config.json", BaseConfig().dump());
  ExpectError(Model::Load(folder.path(), executor), "no .safetensors file", Code::kNotFound);

  std::vector<TestTensor> tensors;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    tensors.push_back({name, shape, GeneratedWeights(name, shape)});
  };
  const std::string l = "model.layers.0.";
  add("model.embed_tokens.weight", {10, 32});
  add("model.norm.weight", {32});
  add(l + "input_layernorm.weight", {32});
  add(l + "post_attention_layernorm.weight", {32});
  add(l + "self_attn.q_proj.weight", {32, 32});
  add(l + "self_attn.k_proj.weight", {16, 32});
  add(l + "self_attn.v_proj.weight", {16, 32});
  add(l + "self_attn.o_proj.weight", {32, 32});
  add(l + "mlp.gate_proj.weight", {48, 32});
  add(l + "mlp.up_proj.weight", {48, 32});
  add(l + "mlp.down_proj.weight", {32, 48});
  const auto load = [&](const std::vector<TestTensor>& t) {
    folder.Write("model.safetensors", SafetensorsBytes(t));
    return Model::Load(folder.path(), executor);
  };
  auto whole = load(tensors);
  ASSERT_TRUE(whole) << whole.error().message;
  for (size_t i = 0; i < tensors.size(); ++i) {
    auto t = tensors;
    const std::string name = t[i].name;
    t.erase(t.begin() + int64_t(i));
    ExpectError(load(t), name);
    t = tensors;
    t[i].shape.insert(t[i].shape.begin(), 1);
    ExpectError(load(t), "the configuration says");
  }
  auto more = tensors;
  more.push_back({l + "mlp.router.weight", {1}, {1}});
  ExpectError(load(more), "mlp.router.weight", Code::kUnsupported);
  more.back() = {l + "self_attn.rotary_emb.inv_freq", {1}, {1}};  // old Llama folders have it
  EXPECT_TRUE(load(more));

  more.back() = {l + "self_attn.k_proj.bias", {16}, std::vector<float>(16, 1.f)};  // not demanded, but used
  EXPECT_TRUE(load(more));

  // Ids, capacity, and numbers that are not finite, each with its place; the cache stays as it was.
  auto config = (*whole)->CacheTemplate();
  config.capacity = 8;
  config.policy = *kvcache::ParseKvPolicy("f32");
  auto cache = *kvcache::KvCache::Make(config);
  const std::vector<int32_t> ids = {1, 2, 10}, nine(9, 1), two = {1, 2};
  Matrix<float> logits(2, 10);
  ExpectError((*whole)->Forward(executor, ids, *cache, {}), "token id 10", Code::kOutOfRange);
  ExpectError((*whole)->Forward(executor, nine, *cache, {}), "9 more tokens do not fit", Code::kOutOfRange);
  ExpectError((*whole)->Forward(executor, two, *cache, {logits.data(), 2, 9}), "vocabulary", Code::kInvalidArgument);
  ASSERT_TRUE((*whole)->Forward(executor, two, *cache, logits.View(), 1));
  EXPECT_EQ(cache->length(), 2);
  auto bad = tensors;
  bad[0].values[5 * 32] = std::numeric_limits<float>::quiet_NaN();  // token 5
  auto broken = load(bad);
  ASSERT_TRUE(broken) << broken.error().message;
  const std::vector<int32_t> mixed = {1, 5};
  const auto nan = (*broken)->Forward(executor, mixed, *cache, {});
  ASSERT_FALSE(nan);
  EXPECT_EQ(nan.error().code, Code::kNumeric);
  EXPECT_NE(nan.error().message.find("position 3"), std::string::npos) << nan.error().message;
  EXPECT_NE(nan.error().message.find("layer 0"), std::string::npos) << nan.error().message;
  EXPECT_EQ(cache->length(), 2);
  bad = tensors;
  bad.back().values[0] = std::numeric_limits<float>::infinity();  // down_proj: found after the last layer
  broken = load(bad);
  ExpectError((*broken)->Forward(executor, two, *cache, {}), "after layer 0", Code::kNumeric);
  EXPECT_EQ(cache->length(), 2);
  EXPECT_TRUE((*whole)->Forward(executor, two, *cache, {}));
}

TEST(Model, SizesAreCheckedBeforeMemoryIsTaken) {
  // A header that is honest about its bytes cannot ask for much; a configuration can, but must match the tensors.
  json c = BaseConfig();
  c["vocab_size"] = 1 << 24;
  c["hidden_size"] = 1 << 18;
  c["head_dim"] = 256;
  const TempFolder folder;
  folder.Write("config.json", c.dump());
  folder.Write("model.safetensors",
               SafetensorsBytes({{"model.embed_tokens.weight", {10, 32}, std::vector<float>(320)}}));
  Executor executor(1);
  ExpectError(Model::Load(folder.path(), executor), "the configuration says [16777216, 262144]");
}

TEST(Ops, EqualTheirFormulas) {
  const Stream s{1, Purpose("test.ops")};
  for (const int64_t n : {1, 7, 16, 64, 704}) {
    std::vector<float> x(static_cast<size_t>(n)), w(x), out(x), gate(x);
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = s.Gaussian(i);
      w[i] = s.Gaussian(i + 1000);
      gate[i] = s.Gaussian(i + 2000) * (i % 5 == 0 ? 60.f : 3.f);
    }
    double sum = 0;
    for (const float v : x) sum += double(v) * double(v);
    RmsNorm(x.data(), w.data(), 1e-5, n, out.data());
    for (size_t i = 0; i < x.size(); ++i)
      EXPECT_NEAR(out[i], double(x[i]) / std::sqrt(sum / double(n) + 1e-5) * double(w[i]),
                  1e-6 * std::fabs(double(out[i])) + 1e-12);
    SiluMul(gate.data(), w.data(), n, out.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const double g = double(gate[i]), want = g / (1 + std::exp(-g)) * double(w[i]);
      EXPECT_NEAR(out[i], want, 5e-7 * std::fabs(want) + 1e-35) << gate[i];
    }
    EXPECT_TRUE(AllFinite(x.data(), n));
    for (const float bad :
         {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), std::nanf("")}) {
      auto y = x;
      y[size_t(n / 2)] = bad;
      EXPECT_FALSE(AllFinite(y.data(), n));
    }
  }
  float head[4] = {1, 2, 3, 4}, split[4] = {1, 3, 2, 4};
  const float cos[2] = {0.6f, 0.8f}, sin[2] = {0.8f, 0.6f};
  Rope(cos, sin, 2, true, head);
  Rope(cos, sin, 2, false, split);
  const float want[4] = {1 * 0.6f - 2 * 0.8f, 1 * 0.8f + 2 * 0.6f, 3 * 0.8f - 4 * 0.6f, 3 * 0.6f + 4 * 0.8f};
  for (int i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(head[i], want[i]);
  for (int i = 0; i < 2; ++i) {
    EXPECT_FLOAT_EQ(split[i], want[2 * i]);
    EXPECT_FLOAT_EQ(split[i + 2], want[2 * i + 1]);
  }
}

TEST(Names, TranslateBothWays) {
  for (const char* name : {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "rope_freqs.weight",
                           "model.layers.31.self_attn.q_proj.bias", "model.layers.0.self_attn.k_norm.weight",
                           "model.layers.7.mlp.down_proj.weight", "model.layers.7.post_attention_layernorm.weight"})
    EXPECT_EQ(NameFromGguf(NameToGguf(name)), name);
  EXPECT_EQ(NameToGguf("model.layers.3.self_attn.o_proj.weight"), "blk.3.attn_output.weight");
  EXPECT_EQ(NameFromGguf("blk.3.attn_sinks.weight"), "blk.3.attn_sinks.weight");
}

}  // namespace
}  // namespace croquis::model
