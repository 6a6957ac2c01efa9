// croquis attn and bench prefill, run as users run them.
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "apps/test_program.h"
#include "croquis/attention/method.h"
#include "croquis/eval/attention_data.h"
#include "croquis/eval/npy.h"

namespace croquis::apps {
namespace {

class Attn : public EndToEnd {
 protected:
  // A file whose rows are those of a tensor, in the given shape.
  std::string Save(const std::string& name, const std::vector<int64_t>& shape, const eval::Tensor& t) const {
    auto file = eval::NpyFile::Make(shape, name);
    for (int64_t h = 0; h < t.view.heads; h++)
      for (int64_t r = 0; r < t.view.rows; r++)
        t.view.Head(h).Read(r, file->numbers() + (h * t.view.rows + r) * t.view.dim);
    return Write(name, std::string(file->bytes()));
  }
  std::vector<std::string> Files(int64_t n) const {
    Executor executor(1);
    eval::AttentionDataOptions o;
    o.heads = 4, o.kv_heads = 2, o.queries = o.keys = n, o.dim = o.value_dim = 16;
    const auto t = eval::MakeAttentionData(executor, o);
    return {"attn",
            "--q",
            Save("q.npy", {4, n, 16}, t->q),
            "--k",
            Save("k.npy", {2, n, 16}, t->k),
            "--v",
            Save("v.npy", {2, n, 16}, t->v)};
  }
  static std::vector<std::string> With(std::vector<std::string> args, const std::vector<std::string>& more) {
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
};

TEST_F(Attn, AnswersAreWrittenAndChecked) {
  const auto files = Files(200);
  const Outcome r = Croquis(
      With(files, {"--causal", "--offset", "-3", "--check", "--json", "-o", Path("o.npy"), "--lse", Path("l.npy")}));
  ASSERT_EQ(r.code, 0) << r.err;
  ExpectColumns(r.Json(), {"method", "ms", "pairs", "pairs_share", "est_error", "fallback_rows", "kernel", "op",
                           "row_mean", "row_p99", "lse_max", "est_over_true"});
  const json row = r.Json()["rows"][0];
  EXPECT_EQ(row["pairs_share"], 1.0);
  EXPECT_LT(row["row_max"], 1e-4);
  EXPECT_LT(row["op"], 1e-5);
  const auto out = eval::LoadNpy(Path("o.npy")), lse = eval::LoadNpy(Path("l.npy"));
  ASSERT_TRUE(out && lse);
  EXPECT_EQ(out->view.heads, 4);
  EXPECT_EQ(out->view.rows, 200);
  std::vector<float> o(16), l(200);
  lse->view.Head(0).Read(1, l.data());
  for (int i = 0; i < 200; i++) EXPECT_EQ(std::isinf(l[size_t(i)]), i < 3) << i;  // the first three see no key
  out->view.Head(1).Read(2, o.data());
  EXPECT_EQ(std::count(o.begin(), o.end(), 0.f), 16);
  // Row 3 sees one key, whose value it takes.
  std::vector<float> v(16);
  out->view.Head(3).Read(3, o.data());
  eval::LoadNpy(Path("v.npy"))->view.Head(1).Read(0, v.data());
  for (size_t i = 0; i < 16; i++) EXPECT_NEAR(o[i], v[i], 1e-5);
}

TEST_F(Attn, SeveralMethodsAreCompared) {
  const Outcome r = Croquis(With(Files(300), {"--method", "exact:precision=f32", "--method", "hyper", "--check"}));
  ASSERT_EQ(r.code, 0) << r.err;
  for (const char* part : {"exact:precision=f32", "hyper", "est. error", "operator", "4 heads on 2, 300 queries"})
    EXPECT_NE(r.out.find(part), std::string::npos) << part;
  // One that refuses is a row with the reason, and the command's failure.
  const Outcome w = Croquis(With(Files(64), {"--method", "hyper", "--method", "exact", "--window", "5"}));
  EXPECT_EQ(w.code, 4);
  EXPECT_NE(w.out.find("takes no sliding window"), std::string::npos) << w.out;
}

TEST_F(Attn, MadeUpTensorsNeedNoFiles) {
  for (const char* data : {"gaussian", "planted", "clusters", "sinks"}) {
    const Outcome r = Croquis({"attn", "--random", "128", "--heads", "4", "--kv-heads", "2", "--head-dim", "32",
                               "--data", data, "--bf16", "--causal", "--check", "--json"});
    ASSERT_EQ(r.code, 0) << r.err;
    EXPECT_LT(r.Json()["rows"][0]["row_mean"], 2e-2) << data;
    EXPECT_EQ(r.Json()["kv_heads"], 2);
  }
}

TEST_F(Attn, TheListMarksWhatIsStrictlyCausal) {
  const Outcome r = Croquis({"attn", "--list", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  ExpectColumns(r.Json(), {"method", "summary", "paper", "exact", "causal", "strict_causal", "window", "params"});
  ASSERT_EQ(r.Json()["rows"].size(), attention::Methods().size());
  const Outcome text = Croquis({"attn", "--list"});
  for (const json& row : r.Json()["rows"]) {
    const auto m = attention::FindMethod(row["method"].get<std::string>());
    ASSERT_TRUE(m);
    const auto spec = attention::ResolveSpec((*m)->name);
    EXPECT_EQ(row["strict_causal"], (*m)->causal && (*m)->strict_causal != nullptr && (*m)->strict_causal(*spec));
    EXPECT_EQ(row["params"].size(), (*m)->params.size());
    EXPECT_NE(text.out.find(std::string((*m)->name) + ": " + std::string((*m)->summary)), std::string::npos);
  }
  EXPECT_NE(text.out.find("causal, strictly"), std::string::npos);
}

TEST_F(Attn, ErrorsSayWhatToDoAndHaveTheirCodes) {
  const auto files = Files(20);
  const std::string cut = Write("cut.npy", Read(Path("k.npy")).substr(0, 300));
  const std::string text = Write("text.npy", "these are no numbers");
  std::string nan = Read(Path("k.npy"));
  nan.replace(nan.size() - 4, 4, std::string("\0\0\xC0\x7F", 4));
  Write("nan.npy", nan);
  const auto keys = [&](const std::string& k) {
    std::vector<std::string> args = files;
    args[4] = k;
    return args;
  };
  const Refusal cases[] = {
      {{"attn"}, 2, "--random"},
      {{"attn", "--random", "5", "--q", "q.npy"}, 2, "--random"},
      {keys(Path("none.npy")), 3, "none.npy"},
      {keys(cut), 3, "cut short"},
      {keys(text), 3, "not a NumPy"},
      {keys(Path("nan.npy")), 6, "head 1, row 19"},
      {With(files, {"--layout", "sideways"}), 2, "heads-first"},
      {With(files, {"--method", "nothing"}), 2, "exact"},
      {With(files, {"--method", "exact:precision=f8"}), 2, "bf16"},
      {With(files, {"--method", "hyper", "--window", "3"}), 4, "window"},
      {With(files, {"--method", "hyper", "--method", "exact", "-o", Path("o.npy")}), 2, "one method"},
      {With(files, {"-o", Path("none/o.npy")}), 3, "o.npy"},
      {With(files, {"-o", Path("o.npy"), "--lse", Path("o.npy")}), 2, "same file"},
      {With(files, {"--key-length", "21"}), 2, "key_length"},
      {{"attn", "--random", "9", "--heads", "3", "--kv-heads", "2"}, 2, "multiple"},
      {{"attn", "--random", "268435456", "--heads", "64"}, 5, "TiB"},
  };
  for (const Refusal& c : cases) ExpectRefused(c);
  EXPECT_FALSE(fs::exists(Path("o.npy")));
}

// A file that is there stays as it was when the work fails.
TEST_F(Attn, NothingIsHalfWritten) {
  const auto files = Files(20);
  const std::string out = Write("o.npy", "kept");
  EXPECT_EQ(Croquis(With(files, {"-o", out, "--key-length", "21"})).code, 2);
  EXPECT_EQ(Read(out), "kept");
  EXPECT_EQ(Croquis(With(files, {"-o", out})).code, 0);
  EXPECT_TRUE(eval::LoadNpy(out));
  for (const auto& entry : fs::directory_iterator(folder_))
    EXPECT_EQ(entry.path().string().find(".tmp."), std::string::npos) << entry.path();
}

// A prefix made into a file and read again stands before the keys, as keys of its own would.
TEST_F(Attn, PrefixesAreConvertedAndLoaded) {
  const auto files = Files(200);
  const std::string file = Path("p.ntk");
  const std::vector<std::string> convert = {"attn", "--k", Path("k.npy"), "--v", Path("v.npy"), "--save-prefix", file};
  const Outcome made =
      Croquis(With(convert, {"--method", "ntk-prefix:features=taylor2", "--key-length", "150", "--json"}));
  ASSERT_EQ(made.code, 0) << made.err;
  ExpectColumns(made.Json(), {"file", "spec", "kv_heads", "keys", "dim", "value_dim", "features", "scale", "bytes"});
  const json row = made.Json()["rows"][0];
  EXPECT_EQ(row["keys"], 150);
  EXPECT_EQ(row["kv_heads"], 2);
  EXPECT_EQ(row["features"], 153);  // 17 * 18 / 2
  EXPECT_GE(int64_t(fs::file_size(file)), row["bytes"].get<int64_t>());
  // The state alone stands for the first 150 keys, of which rows up to 149 see all.
  const auto answer = [&](const std::vector<std::string>& more) {
    const Outcome r = Croquis(With(files, With({"-o", Path("o.npy"), "--json"}, more)));
    EXPECT_EQ(r.code, 0) << r.err;
    return eval::LoadNpy(Path("o.npy"));
  };
  const auto want = answer({"--method", "ntk-prefix:features=taylor2,prefix=150", "--key-length", "150"});
  const auto got = answer({"--method", "ntk-prefix:file=" + file, "--key-length", "0", "--check"});
  ASSERT_TRUE(want && got);
  std::vector<float> a(16), b(16);
  for (int64_t h = 0; h < 4; h++)
    for (int64_t i = 0; i < 200; i++) {
      want->view.Head(h).Read(i, a.data());
      got->view.Head(h).Read(i, b.data());
      for (size_t c = 0; c < 16; c++) ASSERT_NEAR(a[c], b[c], 1e-5) << h << " " << i;
    }
  const Outcome checked =
      Croquis(With(files, {"--method", "ntk-prefix:file=" + file, "--causal", "--check", "--json"}));
  ASSERT_EQ(checked.code, 0) << checked.err;
  EXPECT_LT(checked.Json()["rows"][0]["row_max"], 1e-4);
  EXPECT_TRUE(checked.Json()["rows"][0]["est_error"].is_null());
  const Outcome text = Croquis(convert);
  ASSERT_EQ(text.code, 0) << text.err;
  EXPECT_NE(text.out.find("ntk-prefix:file=" + file), std::string::npos) << text.out;

  const std::string damaged = Write("damaged.ntk", Read(file).replace(100, 1, "?"));
  const std::string older = Write("older.ntk", Read(file).replace(7, 1, "1"));
  const std::string kept = Write("kept.ntk", "kept");
  const Refusal cases[] = {
      {With(files, {"--method", "ntk-prefix:file=" + Path("none.ntk")}), 3, "none.ntk"},
      {With(files, {"--method", "ntk-prefix:file=" + Path("k.npy")}), 3, "not a prefix file"},
      {With(files, {"--method", "ntk-prefix:file=" + damaged}), 3, "checksum"},
      {With(files, {"--method", "ntk-prefix:file=" + older}), 4, "version"},
      {With(files, {"--method", "ntk-prefix:prefix=3,file=" + file}), 2, "prefix"},
      {With(files, {"--method", "ntk-prefix:file=" + file, "--scale", "3"}), 2, "scale"},
      {With(convert, {"--method", "hyper"}), 2, "ntk-prefix"},
      {With(convert, {"--method", "ntk-prefix:prefix=3"}), 2, "prefix"},
      {With(convert, {"--q", Path("q.npy")}), 2, "--q"},
      {With(convert, {"--key-length", "201"}), 2, "200 keys"},
      {{"attn", "--k", Path("k.npy"), "--save-prefix", kept}, 2, "--v"},
      {{"attn", "--k", Path("none.npy"), "--v", Path("v.npy"), "--save-prefix", kept}, 3, "none.npy"},
      {{"attn", "--k", Path("k.npy"), "--v", Path("v.npy"), "--save-prefix", Path("none/p.ntk")}, 3, "p.ntk"},
      {{"run", model_, "-p", "x", "--prefill", "ntk-prefix:file=" + file}, 4, "cache"},
  };
  for (const Refusal& c : cases) ExpectRefused(c);
  EXPECT_EQ(Read(kept), "kept");
}

TEST_F(Attn, PrefillIsMeasuredOverLengths) {
  const Outcome r = Croquis({"bench", "prefill", "--lengths", "128,256", "--method", "hyper", "--method", "polysketch",
                             "--heads", "2", "--head-dim", "32", "--repeats", "1", "--plot", Path("p.svg"), "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  ExpectColumns(r.Json(), {"n", "method", "ms", "ratio_to_exact", "pairs_share", "error_mean", "est_error", "kernel"});
  ASSERT_EQ(r.Json()["rows"].size(), 6u);
  ASSERT_EQ(r.Json()["curves"].size(), 3u);
  EXPECT_TRUE(r.Json()["curves"][1]["exponent"].is_number());
  EXPECT_NE(Read(Path("p.svg")).find("<svg"), std::string::npos);
  const Outcome text = Croquis({"bench", "prefill", "--lengths", "100", "--heads", "1", "--head-dim", "16", "--repeats",
                                "1", "--no-causal", "--precision", "bf16", "--data", "planted"});
  ASSERT_EQ(text.code, 0) << text.err;
  for (const char* part :
       {"exact:precision=bf16", "times exact", "faster than exact from n*", "no mask, bf16, planted"})
    EXPECT_NE(text.out.find(part), std::string::npos) << part << "\n" << text.out;
  for (const auto& [args, code] : std::vector<std::pair<std::vector<std::string>, int>>{
           {{"bench", "prefill", "--lengths", "0"}, 2},
           {{"bench", "prefill", "--method", "nothing"}, 2},
           {{"bench", "prefill", "--plot", "x.pdf"}, 2},
           {{"bench", "prefill", "--lengths", "16777216", "--heads", "512"}, 5},
           {{"bench", "prefill", "--plot", Path("none/x.svg")}, 3}}) {
    const Outcome bad = Croquis(args);
    EXPECT_EQ(bad.code, code) << args.back() << bad.err;
    EXPECT_EQ(bad.err.rfind("croquis: ", 0), 0u) << bad.err;
  }
}

}  // namespace
}  // namespace croquis::apps
