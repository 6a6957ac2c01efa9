// What the caches promise on the bundled model, and on a copy of it whose keys have a large common part.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "croquis/base/dtype.h"
#include "croquis/base/rng.h"
#include "croquis/eval/compare.h"
#include "croquis/eval/text.h"
#include "croquis/kvcache/layer_view.h"

namespace croquis::eval {
namespace {
namespace fs = std::filesystem;

const char kModel[] = CROQUIS_SOURCE_DIR "/models/croquis-4m";
const char kBook[] = CROQUIS_SOURCE_DIR "/models/texts/frankenstein.txt";

std::unique_ptr<model::Model> Load(const std::string& path, Executor& executor) {
  model::LoadOptions options;
  options.dtype = model::LoadOptions::Dtype::kF32;
  auto model = model::Model::Load(path, executor, options);
  EXPECT_TRUE(model) << model.error().message;
  return model ? *std::move(model) : nullptr;
}

// Mean KL of each cache, chunked.
std::map<std::string, double> MeanKl(Executor& executor, model::Model& model, const std::vector<std::string>& caches,
                                     int64_t ctx, int64_t windows) {
  const auto text = ReadText(kBook);
  const auto tokens = model.tokenizer()->Encode(*text, false);
  CompareOptions o;
  for (const std::string& kv : caches) o.caches.push_back(*kvcache::ParseKvPolicy(kv));
  o.reference = *kvcache::ParseKvPolicy("f16");
  o.ctx = ctx;
  o.windows = windows;
  o.decode = false;
  o.sinks = 0;
  o.ring = 0;
  const auto result = CompareCaches(executor, model, *tokens, o);
  EXPECT_TRUE(result) << result.error().message;
  std::map<std::string, double> kl;
  for (size_t i = 0; result && i < caches.size(); i++) kl[caches[i]] = result->caches[i].chunked.kl_mean;
  return kl;
}

// 6 windows of 1,024 positions. Over 12 windows of five other books the ratios were .73, .52, .82 and 4.06; from half
// of the windows to the other they moved by 10 to 15 %. The limits are the project's targets.
TEST(Quality, EdenAgainstGgmlFormatsOfMoreBits) {
  Executor executor(HardwareThreads());
  const auto model = Load(kModel, executor);
  ASSERT_NE(model, nullptr);
  auto kl = MeanKl(executor, *model,
                   {"eden:bits=5", "k=eden:bits=5,v=eden:bits=4", "eden:bits=4", "eden:bits=3", "q5_0:hadamard=1",
                    "q4_1:hadamard=1", "q4_0:hadamard=1"},
                   1024, 6);
  EXPECT_LE(kl["eden:bits=4"], kl["q4_0:hadamard=1"]);
  EXPECT_LE(kl["k=eden:bits=5,v=eden:bits=4"], .75 * kl["q4_1:hadamard=1"]);
  EXPECT_LE(kl["eden:bits=5"], 1.1 * kl["q5_0:hadamard=1"]);
  EXPECT_LE(kl["eden:bits=3"], 4.5 * kl["eden:bits=4"]);
  EXPECT_GT(kl["eden:bits=5"], 1e-6);  // something was read from codes
  EXPECT_LT(kl["eden:bits=3"], 1e-2);
}

// Biases of q, k and v that were trained, not written in: in its first layers the common part of the keys is longer
// than what tells them apart. Over 4 windows of five books centring lowered the divergence by a tenth at 4 bits.
TEST(Quality, CentringTrainedBiases) {
  Executor executor(HardwareThreads());
  const auto model = Load(CROQUIS_SOURCE_DIR "/models/croquis-1m-bias", executor);
  ASSERT_NE(model, nullptr);
  auto kl = MeanKl(executor, *model,
                   {"eden:bits=4", "eden:bits=4,center=none", "eden:bits=3", "eden:bits=3,center=none"}, 1024, 4);
  EXPECT_LT(kl["eden:bits=4"], kl["eden:bits=4,center=none"]);
  EXPECT_GT(kl["eden:bits=4"], 1e-6);  // something was read from codes
}

// Mean norm of the keys of each layer, over all heads and 512 tokens of the book. RoPE does not change norms.
std::vector<double> KeyNorms(Executor& executor, model::Model& model) {
  kvcache::CacheConfig config = model.CacheTemplate();
  config.policy = *kvcache::ParseKvPolicy("f16");
  config.capacity = config.ring = 512;
  config.sinks = 0;
  auto cache = kvcache::KvCache::Make(config);
  const auto tokens = model.tokenizer()->Encode(*ReadText(kBook), false);
  EXPECT_TRUE(model.Forward(executor, std::span(*tokens).first(512), **cache, {}));
  std::vector<double> norms;
  for (int64_t layer = 0; layer < config.layers; layer++) {
    double sum = 0;
    for (int64_t h = 0; h < config.kv_heads; h++) {
      const kvcache::HeadView view = kvcache::ViewHead(**cache, layer, h);
      std::vector<float> k(size_t(config.head_dim));
      for (int64_t p = 0; p < view.length; p++) {
        kvcache::WidenRow(view.type, view.ring_k + p % view.slots * view.row_bytes, config.head_dim, k.data());
        double square = 0;
        for (float x : k) square += double(x) * x;
        sum += std::sqrt(square);
      }
    }
    norms.push_back(sum / double(config.kv_heads * 512));
  }
  return norms;
}

// A copy of the bundled model as Qwen2, whose k_proj has a random bias of `factor` times the mean norm of the keys.
void WriteBiasedModel(const fs::path& folder, const std::vector<double>& norms, double factor) {
  fs::create_directories(folder);
  fs::copy_file(std::string(kModel) + "/tokenizer.model", folder / "tokenizer.model");
  auto config = nlohmann::json::parse(*ReadFile(std::string(kModel) + "/config.json"));
  config["architectures"] = {"Qwen2ForCausalLM"};
  config["model_type"] = "qwen2";
  std::ofstream(folder / "config.json") << config;
  const int64_t d = config["head_dim"], heads = config["num_attention_heads"], kv_heads = config["num_key_value_heads"];

  const std::string file = *ReadFile(std::string(kModel) + "/model.safetensors");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), 8);
  auto header = nlohmann::json::parse(file.substr(8, header_bytes));
  std::string data = file.substr(8 + header_bytes);
  for (size_t layer = 0; layer < norms.size(); layer++) {
    for (const auto& [name, rows] :
         {std::pair{"q", heads * d}, std::pair{"k", kv_heads * d}, std::pair{"v", kv_heads * d}}) {
      std::vector<bf16> bias(size_t(rows), 0);
      if (*name == 'k') {
        const Stream stream = Stream{1, Purpose("test.bias")}.Sub(layer);
        for (int64_t i = 0; i < rows; i++) {
          bias[size_t(i)] =
              FloatToBf16(float(factor * norms[layer] / std::sqrt(double(d)) * stream.Gaussian(uint64_t(i))));
        }
      }
      header["model.layers." + std::to_string(layer) + ".self_attn." + name + "_proj.bias"] = {
          {"dtype", "BF16"}, {"shape", {rows}}, {"data_offsets", {data.size(), data.size() + size_t(2 * rows)}}};
      data.append(reinterpret_cast<const char*>(bias.data()), size_t(2 * rows));
    }
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  header_bytes = text.size();
  std::ofstream out(folder / "model.safetensors", std::ios::binary);
  out.write(reinterpret_cast<const char*>(&header_bytes), 8);
  out << text << data;
}

TEST(Quality, CentringSavesModelsWithBiasedKeys) {
  Executor executor(HardwareThreads());
  const auto plain = Load(kModel, executor);
  ASSERT_NE(plain, nullptr);
  const fs::path folder = fs::temp_directory_path() / ("croquis_biased." + std::to_string(::getpid()));
  WriteBiasedModel(folder, KeyNorms(executor, *plain), 8);
  const auto model = Load(folder.string(), executor);
  fs::remove_all(folder);
  ASSERT_NE(model, nullptr);
  const std::string with = "eden:bits=4,center=auto", without = "eden:bits=4,center=none";
  auto kl = MeanKl(executor, *model, {with, without, "q5_0:hadamard=1"}, 1024, 3);
  EXPECT_LE(kl[with], kl[without] / 6);
  EXPECT_LE(kl[with], kl["q5_0:hadamard=1"] / 3);
  EXPECT_GT(kl[with], 0);
  for (const auto& [kv, value] : kl) RecordProperty(kv, std::to_string(value));
}

}  // namespace
}  // namespace croquis::eval
