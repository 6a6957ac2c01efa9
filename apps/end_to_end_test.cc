// The program itself, run as users run it, with the bundled model.
#include <sys/stat.h>

#include <cmath>
#include <cstring>

#include "apps/test_program.h"

namespace croquis::apps {
namespace {

TEST_F(EndToEnd, RunPrintsTextAndFigures) {
  const Outcome plain = Croquis({"run", "-p", "It was a dark night", "-n", "12"});
  ASSERT_EQ(plain.code, 0) << plain.err;
  EXPECT_EQ(plain.err, "");  // no progress bar in a pipe
  for (const char* part : {"speed", "cache", "bits", "kernel"})
    EXPECT_NE(plain.out.find(part), std::string::npos) << part;

  const Outcome one = Croquis({"run", "-p", "It was a dark night", "-n", "12", "--json", "--threads", "1"});
  const Outcome two = Croquis({"run", "-p", "It was a dark night", "-n", "12", "--json", "--threads", "2"});
  ASSERT_EQ(one.code, 0) << one.err;
  ExpectColumns(one.Json(), {"kv", "prompt_tokens_per_s", "decode_tokens_per_s", "cache_bytes", "cache_bytes_f16",
                             "bits_per_number", "kernels"});
  const json row = one.Json()["rows"][0];
  EXPECT_EQ(row["generated_tokens"], 12);
  EXPECT_EQ(row["text"], two.Json()["rows"][0]["text"]);  // threads never change a result
  EXPECT_EQ(plain.out.rfind(row["text"].get<std::string>(), 0), 0u);
  const Outcome quiet = Croquis({"run", model_, "-p", "It was a dark night", "-n", "12", "-q"});
  EXPECT_EQ(quiet.out, row["text"].get<std::string>() + "\n");
}

TEST_F(EndToEnd, RunSamplesWithASeed) {
  const std::vector<std::string> args = {"run", "-p", "The old man", "-n", "16", "-q", "--temp", "1", "--top-k", "50"};
  const auto with = [&](const char* seed) {
    auto a = args;
    a.insert(a.end(), {"--seed", seed});
    return Croquis(a).out;
  };
  EXPECT_EQ(with("1"), with("1"));
  EXPECT_NE(with("1"), with("2"));  // 16 tokens of 50 choices each
}

// In f32 the order of sums is all that differs: the same tokens, greedy or sampled with the sequence's seed.
TEST_F(EndToEnd, ABatchIsItsPromptsRunAlone) {
  const std::vector<std::string> prompts = {"It was a dark night and the rain", "It was a dark night and the",
                                            "The old man"};
  const std::string file = Write("prompts.txt", prompts[0] + "\n\n" + prompts[1] + "\n" + prompts[2] + "\n");
  for (const char* temperature : {"0", "0.9"}) {
    const std::vector<std::string> options = {"-n",  "10",     "--kv",      "f32",   "--dtype",
                                              "f32", "--temp", temperature, "--json"};
    std::vector<std::string> args = {"run", "--batch", file, "--seed", "5"};
    args.insert(args.end(), options.begin(), options.end());
    const Outcome batch = Croquis(args);
    ASSERT_EQ(batch.code, 0) << batch.err;
    std::istringstream lines(batch.out);
    std::string line;
    for (size_t i = 0; i < prompts.size(); i++) {
      ASSERT_TRUE(std::getline(lines, line));
      const json row = json::parse(line);
      args = {"run", "-p", prompts[i], "--seed", std::to_string(5 + i)};
      args.insert(args.end(), options.begin(), options.end());
      EXPECT_EQ(row["prompt"], prompts[i]);
      EXPECT_EQ(row["text"], Croquis(args).Json()["rows"][0]["text"]) << i;
    }
    ASSERT_TRUE(std::getline(lines, line));
    const json last = json::parse(line);
    ExpectColumns(last, {"prompts", "prompt_tokens", "prompt_tokens_computed", "prompt_tokens_per_s",
                         "decode_tokens_per_s", "cache_bytes", "cache_bytes_unshared", "kernels"});
    EXPECT_LT(last["rows"][0]["prompt_tokens_computed"], last["rows"][0]["prompt_tokens"]);
  }
  const Outcome both = Croquis({"run", "--batch", file, "-p", "x"});
  EXPECT_EQ(both.code, 2);
  EXPECT_NE(both.err.find("do not go together"), std::string::npos) << both.err;
  EXPECT_EQ(Croquis({"run", "--batch", Write("none.txt", "\n")}).code, 2);
}

TEST_F(EndToEnd, ACachedTextIsEdited) {
  const std::string text = Write("text.txt", Read(book_).substr(5000, 2500));
  const Outcome o = Croquis({"edit", "-f", text, "--edit", "insert:100: an old", "--edit", "delete:300:310", "-n", "8",
                             "--kv", "f16", "--json"});
  ASSERT_EQ(o.code, 0) << o.err;
  ExpectColumns(o.Json(), {"text", "tokens", "computed", "ms", "kl", "same_top"});
  const json rows = o.Json()["rows"];
  ASSERT_EQ(rows.size(), 3u);
  const int inserted = o.Json()["inserted"];
  EXPECT_EQ(rows[0]["tokens"].get<int>(), rows[1]["tokens"].get<int>() + inserted - 10);
  EXPECT_EQ(rows[0]["computed"].get<int>(), inserted);
  // Twelve tokens of some 600, far from the end: the text goes on nearly as if it had been read again.
  EXPECT_LT(rows[0]["kl"].get<double>(), 0.05);
  ASSERT_TRUE(rows[2].contains("goes_on"));
  // A fact put in long before the question: the answer is that of the text read again, and not that of the old text.
  const std::string asks = Write(
      "asks.txt", Read(book_).substr(0, 4000) + " What is the secret number of river? The secret number of river is");
  const Outcome fact =
      Croquis({"edit", "-f", asks, "--edit", "insert:300: The secret number of river is 48213.", "-n", "8", "--json"});
  ASSERT_EQ(fact.code, 0) << fact.err;
  const auto answer = [&](size_t row) { return fact.Json()["rows"][row]["goes_on"].get<std::string>(); };
  EXPECT_NE(answer(0).find("48213"), std::string::npos) << answer(0);
  EXPECT_EQ(answer(1).find("48213"), std::string::npos) << answer(1);
  EXPECT_NE(answer(2).find("48213"), std::string::npos) << answer(2);
  const Outcome shown = Croquis({"edit", "-f", asks, "--edit", "delete:300:310", "-n", "4"});
  EXPECT_NE(shown.out.find("the text goes on, of its own:"), std::string::npos) << shown.out;
  for (const char* bad : {"insert:5", "delete:1", "delete:9:3", "replace:1:2", "delete:5:99999", "insert:x:y"})
    EXPECT_EQ(Croquis({"edit", "-f", text, "--edit", bad}).code, 2) << bad;
}

TEST_F(EndToEnd, CachesAreSavedAndRestored) {
  const std::string cache = Path("cache.bin");
  const std::vector<std::string> base = {"run", "-p", "It was a dark night", "-n", "6", "--kv", "eden:bits=3"};
  auto save = base;
  save.insert(save.end(), {"--save-cache", cache, "--json"});
  const Outcome saved = Croquis(save);
  ASSERT_EQ(saved.code, 0) << saved.err;
  const Outcome more =
      Croquis({"run", "-p", "and then", "-n", "4", "--kv", "eden:bits=3", "--load-cache", cache, "--json"});
  ASSERT_EQ(more.code, 0) << more.err;
  const json a = saved.Json()["rows"][0], b = more.Json()["rows"][0];
  EXPECT_EQ(b["tokens"].get<int>(), a["prompt_tokens"].get<int>() + 6 + b["prompt_tokens"].get<int>() + 3);
  // Another method, and a damaged file, are refused; the file that was there is not touched by a failed save.
  EXPECT_EQ(Croquis({"run", "-p", "x", "--kv", "f16", "--load-cache", cache}).code / 4, 0);  // 2 or 3
  const std::string bytes = Read(cache);
  const std::string cut = Write("cut.bin", bytes.substr(0, bytes.size() / 2));
  const Outcome damaged = Croquis({"run", "-p", "x", "--kv", "eden:bits=3", "--load-cache", cut});
  EXPECT_EQ(damaged.code, 3) << damaged.err;
  EXPECT_EQ(Croquis({"run", "-p", "x", "-n", "2", "--save-cache", Path("none/cache.bin")}).code, 3);
  EXPECT_EQ(Read(cache), bytes);
}

// A long prompt is read whole unless something speaks against it, which is said; in f32 both ways give the same text.
TEST_F(EndToEnd, LongPromptsAreReadWhole) {
  const std::string file = Write("prompt.txt", Read(book_).substr(3000, 2500));
  const auto run = [&](const std::vector<std::string>& more, const char* kv = "f32") {
    std::vector<std::string> args = {"run", model_, "-f", file, "-n", "16", "--dtype", "f32", "--json", "--kv", kv};
    args.insert(args.end(), more.begin(), more.end());
    const Outcome r = Croquis(args);
    EXPECT_EQ(r.code, 0) << r.err;
    return r.Json()["rows"][0];
  };
  const json whole = run({}), chunks = run({"--prefill", "chunks"}), exact = run({"--prefill", "exact"});
  ASSERT_GT(whole["prompt_tokens"].get<int>(), 256);
  EXPECT_EQ(whole["prefill"], "exact");
  EXPECT_TRUE(whole["prefill_chunks_because"].is_null());
  EXPECT_EQ(whole["pairs_share"], 1.0);
  EXPECT_EQ(chunks["prefill"], "chunks");
  EXPECT_EQ(whole["text"], chunks["text"]);
  EXPECT_EQ(whole["text"], exact["text"]);
  EXPECT_EQ(whole["cache_bytes"], chunks["cache_bytes"]);
  const json evicts = run({}, "h2o");
  EXPECT_EQ(evicts["prefill"], "chunks");
  EXPECT_NE(evicts["prefill_chunks_because"].get<std::string>().find("evicts"), std::string::npos);
  EXPECT_EQ(run({"--chunk", "4096"})["prefill"], "chunks");
  for (const auto& [prefill, says] : {std::pair{"exact", "prefill whole, exact: 100.0 %"},
                                      {"chunks", "prefill in chunks of 256 through the cache (asked for)"}}) {
    const Outcome text = Croquis({"run", model_, "-f", file, "-n", "2", "--prefill", prefill});
    EXPECT_EQ(text.code, 0) << text.err;
    EXPECT_NE(text.out.find(says), std::string::npos) << text.out;
  }
  EXPECT_EQ(Croquis({"run", "-p", "x", "--prefill", "chunks", "--prefill-layers", "0=exact"}).code, 2);
}

TEST_F(EndToEnd, LongPromptsNeedAContext) {
  std::string text;
  for (int i = 0; i < 2100; i++) text += "word ";
  const std::string file = Write("long.txt", text);
  const Outcome refused = Croquis({"run", "-f", file, "-n", "2"});
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.err.find("--ctx"), std::string::npos) << refused.err;
  const Outcome allowed = Croquis({"run", "-f", file, "-n", "2", "--ctx", "4000", "--json"});
  EXPECT_EQ(allowed.code, 0) << allowed.err;
  EXPECT_NE(allowed.err.find("note"), std::string::npos);
  EXPECT_GT(allowed.Json()["rows"][0]["prompt_tokens"], 2048);
}

TEST_F(EndToEnd, EvalComparesCaches) {
  const std::string plot = Path("quality.png");
  const Outcome r = Croquis({"eval", model_,    book_, "--kv",      "eden:bits=4", "--kv",    "eden:bits=2", "--kv",
                             "f16",  "--ctx",   "192", "--windows", "1",           "--sinks", "0",           "--ring",
                             "16",   "--chunk", "16",  "--json",    "--plot",      plot});
  ASSERT_EQ(r.code, 0) << r.err;
  ExpectColumns(r.Json(), {"kv", "bits_per_number", "ppl", "kl_mean", "kl_median", "kl_p99", "kl_p999", "same_top",
                           "kl_mean_decode"});
  const json rows = r.Json()["rows"];
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[2]["kl_mean"], 0);  // f16 against itself
  EXPECT_EQ(rows[2]["kl_mean_decode"], 0);
  EXPECT_EQ(rows[2]["same_top"], 1);
  for (const char* kl : {"kl_mean", "kl_mean_decode"}) {
    EXPECT_GT(rows[0][kl], 0) << kl;
    EXPECT_LT(rows[0][kl].get<double>() * 3, rows[1][kl].get<double>()) << kl;  // two bits cost about 14 times
  }
  EXPECT_NEAR(rows[0]["bits_per_number"], 4.25, 1e-9);  // head size 64: 16 bits of scale for 64 numbers
  EXPECT_EQ(rows[0]["positions"], 191);
  EXPECT_LT(rows[2]["ppl"], 1000);  // an untrained model has 4,096
  EXPECT_EQ(Read(plot).substr(1, 3), "PNG");
}

TEST_F(EndToEnd, NeedleFillsItsGrid) {
  const std::string plot = Path("needle.svg");
  const Outcome r = Croquis({"needle", "--kv", "f16", "--kv", "eden:bits=3", "--lengths", "160,256", "--depths", "0,1",
                             "--trials", "1", "--ring", "16", "--json", "--plot", plot});
  ASSERT_EQ(r.code, 0) << r.err;
  ExpectColumns(r.Json(), {"kv", "depth", "length", "accuracy", "token_accuracy", "log_prob"});
  EXPECT_EQ(r.Json()["rows"].size(), 8u);
  const json rows = r.Json()["rows"];
  for (const json& row : rows) {
    EXPECT_GE(row["accuracy"], 0);
    EXPECT_LE(row["accuracy"], 1);
    EXPECT_LT(row["log_prob"], 0);
  }
  EXPECT_NE(Read(plot).find("<svg"), std::string::npos);
}

TEST_F(EndToEnd, BenchmarksPrintTheirColumns) {
  const Outcome a = Croquis({"bench", "attention", "--n", "600", "--heads", "4", "--kv-heads", "2", "--head-dim", "64",
                             "--layers", "1", "--reps", "2", "--center-pairs", "4", "--kv", "eden:bits=4", "--json"});
  ASSERT_EQ(a.code, 0) << a.err;
  ExpectColumns(a.Json(), {"kv", "bits_per_number", "bytes", "ms", "gb_per_s", "ratio_to_f16", "rel_error"});
  ASSERT_EQ(a.Json()["rows"].size(), 4u);  // f16, eden, and the two of centring
  // 600 tokens lie in any machine's last cache: the note says whose number of layers it was.
  EXPECT_NE(a.err.find("1 layer (asked for"), std::string::npos) << a.err;
  EXPECT_EQ(a.err.find("memory"), std::string::npos) << a.err;
  EXPECT_EQ(a.Json()["beyond_caches"], false);
  const Outcome small = Croquis({"bench", "attention", "--n", "16", "--heads", "1", "--kv-heads", "1", "--head-dim",
                                 "64", "--reps", "1", "--center-pairs", "0", "--kv", "f16"});
  ASSERT_EQ(small.code, 0) << small.err;
  EXPECT_NE(small.err.find("64 layers (the most that --layers auto takes"), std::string::npos) << small.err;
  const Outcome e = Croquis({"bench", "encode", "--kv", "eden:bits=3", "--reps", "2", "--json"});
  ASSERT_EQ(e.code, 0) << e.err;
  ExpectColumns(e.Json(), {"codec", "role", "ns", "bits_per_number"});
  const Outcome d = Croquis({"bench", "decode", "--n", "300", "--steps", "2", "--kv", "eden:bits=4", "--json"});
  ASSERT_EQ(d.code, 0) << d.err;
  ExpectColumns(d.Json(), {"kv", "ms", "decode_tokens_per_s", "ratio_to_f16", "cache_bytes"});
  const Outcome b = Croquis({"bench", "batch", "--sequences", "3", "--prefix", "400", "--own", "5", "--heads", "4",
                             "--kv-heads", "2", "--head-dim", "64", "--reps", "1", "--kv", "f32", "--json"});
  ASSERT_EQ(b.code, 0) << b.err;
  ExpectColumns(b.Json(), {"kv", "shared_ms", "alone_ms", "branches_ms", "speedup", "error", "shared_bytes"});
  EXPECT_LT(b.Json()["rows"][0]["error"], 2e-6);
}

TEST_F(EndToEnd, CodecsListsAndMeasures) {
  const Outcome list = Croquis({"codecs", "--list", "--json"});
  ASSERT_EQ(list.code, 0) << list.err;
  ExpectColumns(list.Json(), {"codec", "summary", "params"});
  EXPECT_GE(list.Json()["rows"].size(), 10u);
  const Outcome r = Croquis({"codecs", "eden:bits=3", "q4_0", "--rows", "1280", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  ExpectColumns(r.Json(), {"codec", "bits_per_number", "rel_mse", "slope", "slope_error"});
  EXPECT_NEAR(r.Json()["rows"][0]["rel_mse"], .0348, .0348 * .05);  // 1,280 rows: a sampling error of about 1 %
  EXPECT_NEAR(r.Json()["rows"][0]["bits_per_number"], 3.125, 1e-12);
}

TEST_F(EndToEnd, DemoFitsAScreen) {
  const Outcome r = Croquis({"demo", "--context", "400", "-n", "12"});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_NE(r.out.find("times f16"), std::string::npos);
  EXPECT_LE(std::count(r.out.begin(), r.out.end(), '\n'), 45);
}

// A model whose values are NaN, or too large for f16, is the model's fault and not the command line's: exit code 6.
TEST_F(EndToEnd, NumbersThatAreNotFiniteHaveTheirOwnCode) {
  const std::string weights = Read(model_ + "/model.safetensors");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, weights.data(), 8);
  const json at = json::parse(weights.substr(8, header_bytes))["model.layers.1.self_attn.v_proj.weight"];
  ASSERT_EQ(at["dtype"], "BF16");
  const size_t first = 8 + header_bytes + at["data_offsets"][0].get<size_t>();
  const size_t last = 8 + header_bytes + at["data_offsets"][1].get<size_t>();
  const std::string folder = Path("numbers");
  fs::create_directories(folder);
  for (const char* name : {"config.json", "tokenizer.model"}) fs::copy_file(model_ + "/" + name, folder + "/" + name);
  const auto with = [&](uint16_t bits) {  // every value weight
    std::string changed = weights;
    for (size_t i = first; i < last; i += 2) std::memcpy(&changed[i], &bits, 2);
    std::ofstream(folder + "/model.safetensors", std::ios::binary) << changed;
  };
  with(0x7fc0);
  const Outcome nan = Croquis({"run", folder, "-p", "x", "-n", "2"});
  EXPECT_EQ(nan.code, 6) << nan.err;
  EXPECT_NE(nan.err.find("layer 1"), std::string::npos) << nan.err;
  EXPECT_EQ(Croquis({"eval", folder, book_, "--ctx", "128", "--windows", "1", "--kv", "eden:bits=4"}).code, 6);
  with(0x4c00);  // 2^25
  const Outcome large = Croquis({"run", folder, "-p", "x", "-n", "2"});
  EXPECT_EQ(large.code, 6) << large.err;
  EXPECT_NE(large.err.find("65504"), std::string::npos) << large.err;
  EXPECT_EQ(Croquis({"run", folder, "-p", "x", "-n", "2", "--kv", "bf16"}).code, 0);  // what the message advises
}

TEST_F(EndToEnd, ErrorsSayWhatToDoAndHaveTheirCodes) {
  const std::string broken = Path("broken");
  fs::create_directories(broken);
  for (const char* name : {"config.json", "tokenizer.model"}) fs::copy_file(model_ + "/" + name, broken + "/" + name);
  std::ofstream(broken + "/model.safetensors", std::ios::binary)
      << Read(model_ + "/model.safetensors").substr(0, 100000);
  const std::string packed = Write("books.txt", std::string("\xFD"
                                                            "7zXZ\0abc",
                                                            9));
  const std::vector<Refusal> cases = {
      {{}, 2, "--help"},
      {{"fly"}, 2, "--help"},
      {{"run"}, 2, "-p"},
      {{"run", "-p", "x", "-f", "y"}, 2, "not both"},
      {{"run", "-f", Path("none.txt")}, 3, "none.txt"},
      {{"run", "-p", "x", "--kv", "nothing:bits=4"}, 2, "eden"},  // lists what there is
      {{"run", "-p", "x", "--kv", "eden:bits=9"}, 2, "bits"},
      {{"run", "-p", "x", "--kv", "k=eden:bits=4"}, 2, "v="},
      {{"run", "-p", "x", "--kv-layers", "9-1=f16"}, 2, "9-1"},
      {{"run", "-p", "x", "--ring", "-1"}, 2, "ring"},
      {{"run", "-p", "x", "-n", "0"}, 2, "-n"},
      {{"run", "-p", "x", "--temp", "-1"}, 2, "temperature"},
      {{"run", "-p", "x", "--top-p", "7"}, 2, "top"},
      {{"run", "-p", "x", "--simd", "mmx"}, 2, "avx2"},
      {{"run", "-p", "x", "--threads", "0"}, 2, "threads"},
      {{"run", Path("none"), "-p", "x"}, 3, "none"},
      {{"run", broken, "-p", "x"}, 3, "safetensors"},
      {{"eval", model_}, 2, "TEXT"},
      {{"eval", model_, packed}, 4, "tar xJf"},
      {{"eval", model_, book_, "--ctx", "128", "--windows", "1", "--plot", Path("x.pdf")}, 2, ".svg"},
      {{"eval", model_, book_, "--ctx", "128", "--windows", "1", "--plot", Path("none/x.svg")}, 3, "x.svg"},
      {{"eval", model_, Write("short.txt", "too short"), "--ctx", "128"}, 2, "fewer"},
      {{"needle", "--lengths", "40"}, 2, "128"},
      {{"bench", "attention", "--heads", "3", "--kv-heads", "2", "--n", "64"}, 2, "multiple"},
      {{"bench", "attention", "--n", "268435456", "--layers", "9"}, 5, "GiB"},
      {{"bench", "attention", "--layers", "many"}, 2, "auto"},
      {{"codecs", "nothing"}, 2, "eden"},
      {{"codecs", "eden", "--rows-kind", "odd"}, 2, "gaussian"},
  };
  for (const Refusal& c : cases) ExpectRefused(c);
}

TEST_F(EndToEnd, HelpHasExamples) {
  for (const std::vector<std::string>& args : std::vector<std::vector<std::string>>{{"--help"},
                                                                                    {"run", "--help"},
                                                                                    {"eval", "--help"},
                                                                                    {"needle", "--help"},
                                                                                    {"bench", "--help"},
                                                                                    {"bench", "attention", "--help"},
                                                                                    {"bench", "encode", "--help"},
                                                                                    {"bench", "decode", "--help"},
                                                                                    {"bench", "prefill", "--help"},
                                                                                    {"codecs", "--help"},
                                                                                    {"attn", "--help"},
                                                                                    {"demo", "--help"}}) {
    const Outcome r = Croquis(args);
    EXPECT_EQ(r.code, 0) << args[0];
    EXPECT_NE(r.out.find("Example"), std::string::npos) << args[0];
    EXPECT_NE(r.out.find("Exit codes"), std::string::npos) << args[0];
    EXPECT_EQ(r.err, "");
  }
  EXPECT_EQ(Croquis({"--version"}).out.rfind("croquis ", 0), 0u);
}

TEST_F(EndToEnd, AForcedInstructionSetIsTheOneInUse) {
  const Outcome r = Croquis({"run", "-p", "x", "-n", "2", "--simd", "scalar", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(r.Json()["machine"]["simd"], "scalar");
}

TEST_F(EndToEnd, AnInterruptEndsWithTheFigures) {
  const Outcome r =
      Croquis({"run", "-p", "It was", "-n", "1900", "--ignore-stop"}, [](pid_t pid) { ::kill(pid, SIGINT); });
  EXPECT_EQ(r.code, 130) << r.err;
  EXPECT_NE(r.out.find("speed"), std::string::npos);
  EXPECT_EQ(r.err, "croquis: interrupted\n");
}

}  // namespace
}  // namespace croquis::apps
