// croquis attn: attention of NumPy tensors by any method, with what it cost and how wrong it is.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <limits>
#include <optional>

#include "apps/cli.h"
#include "apps/params.h"
#include "apps/save_prefix.h"
#include "croquis/attention/method.h"
#include "croquis/attention/partial.h"
#include "croquis/attention/reference.h"
#include "croquis/eval/attention_data.h"
#include "croquis/eval/metrics.h"
#include "croquis/eval/npy.h"

namespace croquis::apps {
namespace {

struct AttnOptions {
  Common common;
  std::string q, k, v, k2, v2, out, lse, save_prefix, layout = "heads-first", data = "gaussian";
  std::vector<std::string> methods;
  bool list = false, causal = false, bf16 = false, check = false;
  std::optional<int64_t> offset, random, key_length;
  std::optional<float> scale;
  int64_t window = 0, heads = 8, head_dim = 64, repeats = 1;
  std::optional<int64_t> kv_heads;
  uint64_t seed = 0;
};

// --- listing

// Whether changing a token never changes an earlier row: at the defaults, and the settings that change the answer.
bool Strict(const attention::MethodInfo& m, const std::string& spec) {
  const auto full = attention::ResolveSpec(spec);
  return full && m.causal && m.strict_causal != nullptr && m.strict_causal(*full);
}

std::vector<std::string> StrictSettings(const attention::MethodInfo& m) {
  std::vector<std::string> settings;
  for (const ParamInfo& p : m.params) {
    std::vector<std::string> values;
    for (std::string_view rest = p.choices; !rest.empty();) {
      const size_t bar = rest.find('|');
      values.emplace_back(rest.substr(0, bar));
      rest = bar == rest.npos ? "" : rest.substr(bar + 1);
    }
    if (p.choices.empty() && !p.IsReal() && p.max - p.min == 1) values = {std::to_string(p.min), std::to_string(p.max)};
    for (const std::string& value : values) {
      const std::string setting = std::string(p.name) + "=" + value;
      if (value != p.def && Strict(m, std::string(m.name) + ":" + setting)) settings.push_back(setting);
    }
  }
  return settings;
}

std::string CausalText(const attention::MethodInfo& m) {
  if (!m.causal) return "no causal form";
  if (Strict(m, std::string(m.name))) return "causal, strictly";
  std::string with;
  for (const std::string& s : StrictSettings(m)) with += (with.empty() ? "" : " or ") + s;
  return "causal, but later tokens may choose which keys are looked at" +
         (with.empty() ? "" : " (strict with " + with + ")");
}

Status List(const AttnOptions& o, int threads) {
  Json rows = Json::array();
  for (const attention::MethodInfo* m : attention::Methods()) {
    Json row = {{"method", m->name}, {"summary", m->summary}, {"paper", m->paper}, {"exact", m->exact}};
    row["softmax"] = m->softmax;
    row["causal"] = m->causal;
    row["strict_causal"] = Strict(*m, std::string(m->name));
    row["strict_causal_with"] = StrictSettings(*m);
    row["window"] = m->window;
    row["second"] = m->second;
    row["params"] = ParamsJson(m->params);
    rows.push_back(row);
  }
  if (o.common.json) {
    PrintRows(o.common, "attn", threads, {}, rows);
    return {};
  }
  for (const attention::MethodInfo* m : attention::Methods()) {
    std::cout << m->name << ": " << m->summary << " (" << m->paper << ")\n    "
              << (m->exact     ? "exact"
                  : m->softmax ? "approximates softmax attention"
                               : "its own score function")
              << "; " << CausalText(*m) << (m->window ? "; takes --window" : "; no window")
              << (m->second ? "; takes --k2 and --v2" : "") << "\n"
              << ParamLines(m->params);
  }
  return {};
}

// --- inputs

struct Inputs {
  eval::Tensor q, k, v, k2, v2;
  bool rows_first = false;
};

Result<Inputs> LoadInputs(const AttnOptions& o, Executor& executor) {
  Inputs in;
  if (o.random) {
    eval::AttentionDataOptions data;
    CROQUIS_TRY(data.kind, eval::ParseAttentionData(o.data));
    data.heads = o.heads, data.kv_heads = o.kv_heads.value_or(o.heads);
    data.queries = data.keys = *o.random;
    data.dim = data.value_dim = o.head_dim;
    data.causal = o.causal;
    data.seed = o.seed;
    data.type = o.bf16 ? simd::RowType::kBf16 : simd::RowType::kF32;
    CROQUIS_TRY(eval::AttentionTensors made, eval::MakeAttentionData(executor, data));
    in.q = std::move(made.q), in.k = std::move(made.k), in.v = std::move(made.v);
    return in;
  }
  in.rows_first = o.layout == "rows-first";
  const auto layout = in.rows_first ? eval::TensorLayout::kRowsFirst : eval::TensorLayout::kHeadsFirst;
  for (const auto& [path, to] : {std::pair{&o.q, &in.q}, std::pair{&o.k, &in.k}, std::pair{&o.v, &in.v},
                                 std::pair{&o.k2, &in.k2}, std::pair{&o.v2, &in.v2}}) {
    if (path->empty()) continue;
    CROQUIS_TRY(*to, eval::LoadNpy(*path, layout));
    if (o.bf16) {
      CROQUIS_TRY(*to, eval::Converted(executor, *to, simd::RowType::kBf16, *path + " in bf16"));
    }
    if (!o.q.empty() && to->batch != in.q.batch)
      return InvalidArgument(*path + ": a batch of " + std::to_string(to->batch) + ", but " + o.q + " has " +
                             std::to_string(in.q.batch));
  }
  return in;
}

attention::Problem ProblemOf(const AttnOptions& o, const Inputs& in) {
  attention::Problem p;
  p.q = in.q.view, p.k = in.k.view, p.v = in.v.view, p.k2 = in.k2.view, p.v2 = in.v2.view;
  p.scale = o.scale.value_or(float(1 / std::sqrt(double(std::max<int64_t>(1, p.q.dim)))));
  p.key_length = o.key_length.value_or(-1);
  p.mask = {o.causal, o.offset.value_or(p.Keys() - p.q.rows), o.window};
  return p;
}

// --- answers

std::vector<int64_t> ShapeOf(const AttnOptions& o, const Inputs& in, bool with_dim) {
  const int64_t heads = in.q.view.heads / in.q.batch;
  std::vector<int64_t> shape;
  if (in.q.batched) shape.push_back(in.q.batch);
  if (in.rows_first) shape.push_back(in.q.view.rows);
  if (in.q.headed || o.random) shape.push_back(heads);
  if (!in.rows_first) shape.push_back(in.q.view.rows);
  if (with_dim) shape.push_back(in.v.view.dim);
  return shape;
}

// An answer and its log-sum-exps, heads first.
struct Answer {
  eval::NpyFile out, lse;
  attention::Output view;
};

Result<Answer> MakeAnswer(const AttnOptions& o, const Inputs& in) {
  Inputs heads_first;
  heads_first.q.view = in.q.view, heads_first.v.view = in.v.view;
  heads_first.q.batch = in.q.batch, heads_first.q.batched = in.q.batched, heads_first.q.headed = in.q.headed;
  Answer a;
  CROQUIS_TRY(a.out, eval::NpyFile::Make(ShapeOf(o, heads_first, true), "the answer"));
  CROQUIS_TRY(a.lse, eval::NpyFile::Make(ShapeOf(o, heads_first, false), "the log-sum-exps"));
  const int64_t nq = in.q.view.rows, dv = in.v.view.dim;
  a.view = {a.out.numbers(), nq * dv, dv, a.lse.numbers()};
  return a;
}

// Moves rows of `dim` numbers from [batch, heads, rows] to [batch, rows, heads].
void RowsToFront(const Inputs& in, const float* from, int64_t dim, float* to) {
  const int64_t batch = in.q.batch, rows = in.q.view.rows, heads = in.q.view.heads / batch;
  for (int64_t b = 0; b < batch; b++)
    for (int64_t h = 0; h < heads; h++)
      for (int64_t r = 0; r < rows; r++, from += dim) std::copy_n(from, dim, to + ((b * rows + r) * heads + h) * dim);
}

Status WriteNpy(const std::string& path, const AttnOptions& o, const Inputs& in, eval::NpyFile& file, bool with_dim) {
  if (!in.rows_first) return WriteFileAtomic(path, file.bytes());
  CROQUIS_TRY(eval::NpyFile moved, eval::NpyFile::Make(ShapeOf(o, in, with_dim), path));
  RowsToFront(in, file.numbers(), with_dim ? in.v.view.dim : 1, moved.numbers());
  return WriteFileAtomic(path, moved.bytes());
}

Status WriteAnswer(const AttnOptions& o, const Inputs& in, Answer& a) {
  if (!o.out.empty()) CROQUIS_CHECK_OK(WriteNpy(o.out, o, in, a.out, true));
  if (o.lse.empty()) return {};
  // What NumPy users expect of a row that sees nothing.
  float* const lse = a.lse.numbers();
  std::replace(lse, lse + in.q.view.heads * in.q.view.rows, attention::kEmptyMax,
               -std::numeric_limits<float>::infinity());
  return WriteNpy(o.lse, o, in, a.lse, false);
}

// --- running and checking

// The error that a method made, against its own reference in double.
Status AddCheck(Executor& executor, const attention::MethodInfo& info, const attention::Method& method,
                const attention::Problem& problem, const AttnOptions& o, const Inputs& in, Answer& answer, Json& row) {
  attention::Problem p = problem;
  p.k.rows = p.v.rows = p.k2.rows = p.v2.rows = problem.Keys();
  p.key_length = -1;
  CROQUIS_TRY(Answer want, MakeAnswer(o, in));
  if (p.q.rows > 0 && (p.k.rows > 0 || method.HasOwnKeys())) {
    CROQUIS_CHECK_OK(method.RunReference(executor, p, want.view));
  } else {
    std::fill_n(want.lse.numbers(), p.q.heads * p.q.rows, attention::kEmptyMax);
  }
  // The norm of the attention matrix takes that matrix, a head a thread.
  const auto pairs = CheckedMul(p.q.rows, p.k.rows);
  const int64_t heads = std::min<int64_t>(executor.threads(), p.q.heads);
  const bool norm = info.softmax && !method.HasOwnKeys() && p.q.rows > 0 && p.k.rows > 0 && pairs &&
                    *pairs < AvailableMemory() / 4 / heads;
  const attention::ErrorReport e = attention::Compare(executor, p, answer.view, want.view, norm);
  row["op"] = norm ? Json(e.op) : Json(nullptr);
  row["frobenius"] = e.frobenius;
  row["row_mean"] = e.row_mean;
  row["row_median"] = e.row_median;
  row["row_p90"] = e.row_p90;
  row["row_p99"] = e.row_p99;
  row["row_max"] = e.row_max;
  row["lse_mean"] = e.lse_mean;
  row["lse_max"] = e.lse_max;
  const double estimate = row["est_error"].is_number() ? row["est_error"].get<double>() : 0;
  row["est_over_true"] = estimate > 0 && e.row_mean > 0 ? Json(estimate / e.row_mean) : Json(nullptr);
  return {};
}

Json EstimateOrNull(double x) { return x < 0 ? Json(nullptr) : Json(x); }

std::string ChosenText(std::vector<std::string> chosen) {
  std::sort(chosen.begin(), chosen.end());
  std::string text;
  for (auto at = chosen.begin(); at != chosen.end();) {
    const auto next = std::upper_bound(at, chosen.end(), *at);
    text +=
        (text.empty() ? "" : ", ") + *at + " for " + std::to_string(next - at) + (next - at == 1 ? " head" : " heads");
    at = next;
  }
  return text;
}

// Runs one method `repeats` times and fills its row.
Status RunMethod(Executor& executor, const std::string& text, const attention::Problem& problem, const AttnOptions& o,
                 const Inputs& in, Answer& answer, Json& row) {
  CROQUIS_TRY(const Spec spec, attention::ResolveSpec(text));
  CROQUIS_TRY(const attention::MethodInfo* info, attention::FindMethod(spec.name));
  CROQUIS_TRY(const auto method, attention::Make(text, o.seed));
  attention::RunReport report;
  std::vector<double> ms;
  for (int64_t i = 0; i < o.repeats; i++) {
    if (Interrupted()) return InterruptedError();
    const auto start = std::chrono::steady_clock::now();
    CROQUIS_CHECK_OK(attention::Run(executor, *info, *method, problem, answer.view, &report));
    ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  const int64_t numbers = problem.q.heads * problem.q.rows * problem.v.dim;
  if (!simd::Dense().all_below(answer.out.numbers(), numbers, std::numeric_limits<float>::max()))
    return Numeric(text + ": the answer has NaN or infinity in it");
  row["ms"] = eval::Median(ms);
  row["pairs"] = report.pairs;
  row["pairs_exact"] = report.exact_pairs;
  row["pairs_share"] = report.exact_pairs > 0 ? Json(report.pairs / report.exact_pairs) : Json(nullptr);
  row["est_error"] = EstimateOrNull(report.est_error);
  row["lse_std"] = EstimateOrNull(report.lse_std);
  row["rows"] = report.rows;
  row["fallback_rows"] = report.fallback_rows;
  if (!report.chosen.empty()) row["chosen"] = ChosenText(report.chosen);
  row["kernel"] = report.kernel;
  row["spec"] = ToString(spec);
  if (o.check) CROQUIS_CHECK_OK(AddCheck(executor, *info, *method, problem, o, in, answer, row));
  return {};
}

const std::vector<Column>& Columns() {
  static const std::vector<Column> columns = {{"method", "method"},
                                              {"ms", "ms", Format::kFixed3},
                                              {"pairs_share", "pairs", Format::kPercent},
                                              {"est_error", "est. error", Format::kScientific},
                                              {"row_mean", "error", Format::kScientific},
                                              {"est_over_true", "est./true", Format::kFixed2},
                                              {"row_median", "median", Format::kScientific},
                                              {"row_p90", "90 %", Format::kScientific},
                                              {"row_p99", "99 %", Format::kScientific},
                                              {"row_max", "largest", Format::kScientific},
                                              {"op", "operator", Format::kScientific},
                                              {"lse_mean", "lse", Format::kScientific},
                                              {"fallback_rows", "rows redone", Format::kInt},
                                              {"kernel", "kernel"},
                                              {"chosen", "chosen"},
                                              {"error", "refused"}};
  return columns;
}

Status CheckOptions(const AttnOptions& o) {
  const bool files = !o.q.empty() || !o.k.empty() || !o.v.empty() || !o.k2.empty() || !o.v2.empty();
  if (o.random && files) return InvalidArgument("--random makes its own tensors; leave --q, --k and --v out");
  if (!o.random && (o.q.empty() || o.k.empty() || o.v.empty()))
    return InvalidArgument("wanted --q, --k and --v (NumPy files), or --random N");
  if (o.methods.size() > 1 && (!o.out.empty() || !o.lse.empty()))
    return InvalidArgument("-o and --lse take the answer of one method, got " + std::to_string(o.methods.size()));
  if (!o.out.empty() && o.out == o.lse) return InvalidArgument("-o and --lse name the same file");
  for (const std::string& m : o.methods)
    if (auto spec = attention::ResolveSpec(m); !spec) {
      // A method that does not exist is a wrong option, not a missing file.
      const Error& e = spec.error();
      return Error{e.code == Code::kNotFound ? Code::kInvalidArgument : e.code, "--method " + m + ": " + e.message};
    }
  if (!o.out.empty()) CROQUIS_CHECK_OK(CheckWritable(o.out));
  if (!o.lse.empty()) CROQUIS_CHECK_OK(CheckWritable(o.lse));
  return {};
}

std::string Described(const attention::Problem& p, const AttnOptions& o) {
  std::string text =
      Printf("%s heads on %s, %s queries, %s keys, dim %s", Grouped(p.q.heads).c_str(), Grouped(p.k.heads).c_str(),
             Grouped(p.q.rows).c_str(), Grouped(p.Keys()).c_str(), Grouped(p.q.dim).c_str());
  if (p.v.dim != p.q.dim) text += ", value dim " + Grouped(p.v.dim);
  if (p.mask.causal) text += ", causal, the first query at key " + Grouped(p.mask.offset);
  if (p.mask.window > 0) text += ", window " + Grouped(p.mask.window);
  if (o.random) text += ", " + o.data + " data";
  return text;
}

Status ConvertPrefix(const AttnOptions& o) {
  const std::pair<bool, const char*> others[] = {
      {!o.q.empty(), "--q"},     {!o.k2.empty(), "--k2"}, {!o.v2.empty(), "--v2"},    {!o.out.empty(), "--output"},
      {!o.lse.empty(), "--lse"}, {o.causal, "--causal"},  {o.window > 0, "--window"}, {o.check, "--check"}};
  for (const auto& [given, name] : others)
    if (given) return InvalidArgument(std::string("--save-prefix takes keys and values only; leave ") + name + " out");
  if (!o.random && (o.k.empty() || o.v.empty()))
    return InvalidArgument("--save-prefix: wanted --k and --v (NumPy files), the keys and values of the prefix");
  const SavePrefixOptions options{o.common, o.save_prefix, o.methods, o.scale, o.seed};
  CROQUIS_CHECK_OK(CheckSavePrefix(options));
  CROQUIS_TRY(const auto executor, Start(o.common));
  CROQUIS_TRY(const Inputs in, LoadInputs(o, *executor));
  attention::TensorView k = in.k.view, v = in.v.view;
  if (o.key_length.value_or(0) > std::min(k.rows, v.rows))
    return OutOfRange("--key-length " + std::to_string(*o.key_length) + ", but there are " +
                      std::to_string(std::min(k.rows, v.rows)) + " keys");
  if (o.key_length) k.rows = v.rows = *o.key_length;
  return SavePrefix(options, *executor, k, v);
}

Status RunAttn(AttnOptions o) {
  if (o.list) {
    CROQUIS_TRY(const auto executor, Start(o.common));
    return List(o, executor->threads());
  }
  if (!o.save_prefix.empty()) return ConvertPrefix(o);
  if (o.methods.empty()) o.methods = {"exact"};
  CROQUIS_CHECK_OK(CheckOptions(o));
  CROQUIS_TRY(const auto executor, Start(o.common));
  CROQUIS_TRY(const Inputs in, LoadInputs(o, *executor));
  const attention::Problem problem = ProblemOf(o, in);
  CROQUIS_TRY(Answer answer, MakeAnswer(o, in));
  Json rows = Json::array();
  Status status;
  for (const std::string& method : o.methods) {
    Json row = {{"method", method}};
    Status one = RunMethod(*executor, method, problem, o, in, answer, row);
    if (!one) {
      if (o.methods.size() == 1 || Interrupted() || one.error().code != Code::kUnsupported) return one;
      row["error"] = one.error().message;
      status = std::move(one);
    }
    rows.push_back(row);
  }
  CROQUIS_CHECK_OK(WriteAnswer(o, in, answer));
  PrintRows(o.common, "attn", executor->threads(), Columns(), rows,
            {{"heads", problem.q.heads},
             {"kv_heads", problem.k.heads},
             {"batch", in.q.batch},
             {"queries", problem.q.rows},
             {"keys", problem.Keys()},
             {"dim", problem.q.dim},
             {"value_dim", problem.v.dim},
             {"scale", problem.scale},
             {"causal", problem.mask.causal},
             {"offset", problem.mask.offset},
             {"window", problem.mask.window},
             {"seed", o.seed}});
  if (!o.common.json) {
    std::cout << "\n"
              << Described(problem, o) << ", " << executor->threads() << " threads\n"
              << "pairs: of query and key, of those exact attention evaluates. est. error: the method's own estimate\n"
              << (o.check ? "error: mean over rows of |o - o'| / |o'|, o' in double (softmax, or the method's own "
                            "score); operator: |O - O'| / (|P| |V|)\n"
                          : "--check computes the true error\n");
    if (!o.out.empty()) std::cout << "answer: " << o.out << "\n";
    if (!o.lse.empty()) std::cout << "log-sum-exps: " << o.lse << "\n";
  }
  return status;
}

void AddInputs(CLI::App& c, AttnOptions& o) {
  c.add_option("--q", o.q,
               "Queries, a .npy of float32, float16 or bfloat16: [rows, dim], [heads, rows, dim] or "
               "[batch, heads, rows, dim]");
  c.add_option("--k", o.k, "Keys; the query heads must be a multiple of theirs");
  c.add_option("--v", o.v, "Values; their dim may differ from that of the keys");
  c.add_option("--k2", o.k2, "Second keys, for methods of third order (default: the keys)");
  c.add_option("--v2", o.v2, "Second values (default: the values)");
  c.add_option("--layout", o.layout,
               "heads-first as above, or rows-first: [rows, heads, dim], [batch, rows, heads, dim]")
      ->check(CLI::IsMember({"heads-first", "rows-first"}))
      ->capture_default_str();
  c.add_flag("--bf16", o.bf16,
             "Round the inputs to bfloat16 first; products are in bf16 then where the machine has it");
  c.add_option("--random", o.random, "Instead of files: that many queries and keys, made up")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 28));
  c.add_option("--data", o.data, "What is made up: gaussian, planted (one heavy key a query), clusters or sinks")
      ->check(CLI::IsMember({"gaussian", "planted", "clusters", "sinks"}))
      ->capture_default_str();
  c.add_option("--heads", o.heads, "Query heads of --random")->check(CLI::Range(1, 4096))->capture_default_str();
  c.add_option("--kv-heads", o.kv_heads, "Key and value heads of --random (default: --heads)")
      ->check(CLI::Range(1, 4096));
  c.add_option("--head-dim", o.head_dim, "Numbers of a vector of --random")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
}

}  // namespace

void AddAttn(CLI::App& app, Action* action) {
  auto o = std::make_shared<AttnOptions>();
  auto* c = app.add_subcommand("attn", "Attention of NumPy tensors by any method: time, pairs, certificate, error");
  AddInputs(*c, *o);
  c->add_option("--method", o->methods, "A method, as hyper:block=128; may be given several times (default: exact)")
      ->take_all()
      ->expected(1);
  c->add_flag("--list", o->list, "List the methods: parameters, causality, windows");
  c->add_option("-o,--output", o->out, "Write the answer, float32 in the layout of the queries");
  c->add_option("--lse", o->lse, "Write the natural log-sum-exp of each row's logits; -inf where no key is seen");
  c->add_option(
      "--save-prefix", o->save_prefix,
      "Instead: make --k and --v a state of ntk-prefix (features and m of --method) and write it to this file, "
      "for --method ntk-prefix:file=FILE");
  c->add_flag("--causal", o->causal, "Query i sees the keys up to position offset + i");
  c->add_option("--offset", o->offset, "Position of the first query (default: keys - queries, so that the last meets)");
  c->add_option("--window", o->window, "Do not see keys N or more before the own position; 0: no window")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 40))
      ->capture_default_str();
  c->add_option("--key-length", o->key_length, "Keys that count, from the first on (default: all)")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 40));
  c->add_option("--scale", o->scale, "Factor of the logits (default: 1 / sqrt(dim))");
  c->add_option("--seed", o->seed, "Seed of random methods and data")->capture_default_str();
  c->add_option("--repeats", o->repeats, "Run so often; the median time is shown")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  c->add_flag("--check", o->check, "Compute the true error too, against double precision: slow for long inputs");
  AddCommon(*c, o->common);
  c->footer(
      "\nExamples:\n"
      "  croquis attn --q q.npy --k k.npy --v v.npy --method hyper --causal -o out.npy --lse lse.npy\n"
      "  croquis attn --random 4096 --data planted --method exact --method hyper --check\n"
      "  croquis attn --k k.npy --v v.npy --method ntk-prefix:features=taylor2 --save-prefix p.ntk\n"
      "  croquis attn --list\n\n" +
      ExitCodeHelp());
  c->callback([o, action] { *action = [o] { return RunAttn(*o); }; });
}

}  // namespace croquis::apps
