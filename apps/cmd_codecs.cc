// croquis codecs: every method, its parameters, its bits and its measured error.
#include <iostream>

#include "apps/cli.h"
#include "apps/params.h"
#include "apps/progress.h"
#include "croquis/codecs/codec.h"
#include "croquis/codecs/measure.h"
#include "croquis/kvcache/policies/policy.h"

namespace croquis::apps {
namespace {

struct CodecsOptions {
  Common common;
  int64_t head_dim = 128, rows = 0;
  std::string kind = "gaussian", role = "auto";
  std::vector<std::string> methods;
  bool list = false;
};

// What the table of the documentation lists: every method at its defaults, and the settings people choose between.
std::vector<std::string> DefaultRows() {
  std::vector<std::string> rows;
  for (const codecs::MethodInfo* method : codecs::Methods()) {
    const std::string name(method->name);
    std::vector<std::string> settings;
    for (const ParamInfo& p : method->params) {
      if (p.name == "bits" && p.choices.empty()) {
        for (int64_t b = p.min; b <= p.max; b++) settings.push_back(name + ":bits=" + std::to_string(b));
      } else if (p.name == "bits") {
        const std::string words = std::string(p.choices) + "|";
        for (size_t at = 0, end; (end = words.find('|', at)) != std::string::npos; at = end + 1) {
          settings.push_back(name + ":bits=" + words.substr(at, end - at));
        }
      } else if (p.name == "hadamard") {
        settings.push_back(name);
        settings.push_back(name + ":hadamard=1");
      }
    }
    const bool modes = std::any_of(method->params.begin(), method->params.end(), [](const ParamInfo& p) {
      return p.name == "mode" && p.choices.find("prod") != std::string_view::npos;
    });
    if (settings.empty()) settings.push_back(name);
    for (const std::string& s : settings) rows.push_back(s);
    if (modes) {
      for (const std::string& s : settings)
        rows.push_back(s + (s.find(':') == std::string::npos ? ":" : ",") + "mode=prod");
    }
  }
  return rows;
}

Status List(const CodecsOptions& o, int threads) {
  Json rows = Json::array();
  for (const codecs::MethodInfo* m : codecs::Methods()) {
    rows.push_back(
        {{"codec", m->name}, {"summary", m->summary}, {"paper", m->paper}, {"params", ParamsJson(m->params)}});
  }
  for (const kvcache::PolicyInfo* p : kvcache::Policies()) {
    rows.push_back({{"codec", p->name},
                    {"summary", p->summary},
                    {"paper", p->paper},
                    {"params", ParamsJson(p->params)},
                    {"evicts", true}});
  }
  if (o.common.json) {
    PrintRows(o.common, "codecs", threads, {}, rows);
    return {};
  }
  const auto print = [](const auto& m) {
    std::cout << m.name << ": " << m.summary << (m.paper.empty() ? "" : " (" + std::string(m.paper) + ")") << "\n";
    std::cout << ParamLines(m.params);
  };
  for (const codecs::MethodInfo* m : codecs::Methods()) print(*m);
  std::cout << "\nCache policies: they keep fewer rows, in f16. What they evict is gone.\n";
  for (const kvcache::PolicyInfo* p : kvcache::Policies()) print(*p);
  return {};
}

// Whether keys and values are stored differently (kivi): only then both are listed by default.
bool RolesDiffer(const std::string& method, int64_t head_dim) {
  const auto info = codecs::FindMethod(method.substr(0, method.find(':')));
  const auto spec = codecs::ResolveSpec(method);
  if (!info || !spec) return false;
  const auto key = (*info)->contract(head_dim, codecs::Role::kKey, *spec);
  const auto value = (*info)->contract(head_dim, codecs::Role::kValue, *spec);
  if (!key || !value) return key.has_value() != value.has_value();
  return key->bits_per_number != value->bits_per_number || key->rel_mse != value->rel_mse;
}

Status Run(const CodecsOptions& o) {
  CROQUIS_TRY(const auto executor, Start(o.common));
  if (o.list) return List(o, executor->threads());
  CROQUIS_TRY(const codecs::Rows kind, codecs::ParseRows(o.kind));
  const std::vector<std::string> methods = o.methods.empty() ? DefaultRows() : o.methods;
  std::vector<std::pair<std::string, codecs::Role>> work;
  for (const std::string& m : methods) {
    if (auto spec = codecs::ResolveSpec(m); !spec) return InvalidArgument(spec.error().message);
    const bool differ = o.role == "auto" && RolesDiffer(m, o.head_dim);
    if (o.role != "value") work.emplace_back(m, codecs::Role::kKey);
    if (o.role == "value" || o.role == "both" || differ) work.emplace_back(m, codecs::Role::kValue);
  }
  Json rows = Json::array();
  Progress bar("codecs", WantProgress() && !o.common.json);
  for (const auto& [method, role] : work) {
    if (Interrupted()) return InterruptedError();
    bar.Update(int64_t(rows.size()), int64_t(work.size()));
    Json row;
    row["codec"] = method;
    row["role"] = role == codecs::Role::kKey ? "key" : "value";
    const auto codec = codecs::Make(method, o.head_dim, role);
    const auto m = codec ? codecs::Measure(method, o.head_dim, role, kind, 1, o.rows) : codec.error();
    if (!m) {
      if (!o.methods.empty()) return m.error();  // asked for by name: an error; else a row that says why
      row["error"] = m.error().message;
      rows.push_back(row);
      continue;
    }
    row["bits_per_number"] = m->bits_per_number;
    row["rel_mse"] = m->rel_mse;
    row["slope"] = m->slope;
    row["slope_error"] = m->slope_error;
    row["ip_error"] = m->ip_error;
    row["encode_ns"] = m->encode_ns;
    row["rows_measured"] = m->rows;
    CROQUIS_TRY(const codecs::MethodInfo* info, codecs::FindMethod(method.substr(0, method.find(':'))));
    CROQUIS_TRY(const Spec spec, codecs::ResolveSpec(method));
    if (const auto contract = info->contract(o.head_dim, role, spec)) {
      row["promised_rel_mse"] = contract->rel_mse;
      row["unbiased"] = contract->unbiased;
    }
    row["method"] = m->method;
    row["kernel"] = (*codec)->Kernel();
    row["fast_path"] = (*codec)->HasFastPath();
    rows.push_back(row);
  }
  bar.Finish();
  static const std::vector<Column> columns = {{"codec", "codec"},
                                              {"role", "role"},
                                              {"bits_per_number", "bits", Format::kFixed3},
                                              {"rel_mse", "rel. MSE", Format::kScientific},
                                              {"slope", "slope", Format::kFixed3},
                                              {"slope_error", "+-", Format::kScientific},
                                              {"ip_error", "IP error", Format::kScientific},
                                              {"encode_ns", "encode ns", Format::kFixed1},
                                              {"kernel", "kernel"},
                                              {"error", "error"}};
  Json methods_json = Json::array();
  for (const codecs::MethodInfo* m : codecs::Methods()) {
    methods_json.push_back(
        {{"codec", m->name}, {"summary", m->summary}, {"paper", m->paper}, {"params", ParamsJson(m->params)}});
  }
  PrintRows(o.common, "codecs", executor->threads(), columns, rows,
            {{"head_dim", o.head_dim}, {"rows_kind", o.kind}, {"methods", methods_json}});
  if (!o.common.json) {
    std::cout << "\nhead size " << o.head_dim << ", " << o.kind
              << " rows. bits: all that is stored. rel. MSE: |x - x'|^2 / |x|^2. slope: <x, x'> / |x|^2\n"
                 "and its standard error; 1 is unbiased. IP error: variance of estimated inner products, times d. "
                 "encode: a vector, one core.\n\n";
    return List(o, executor->threads());
  }
  return {};
}

}  // namespace

void AddCodecs(CLI::App& app, Action* action) {
  auto o = std::make_shared<CodecsOptions>();
  auto* c = app.add_subcommand("codecs", "List the methods: parameters, stored bits, measured error");
  c->add_option("METHOD", o->methods, "Methods to measure (default: all, at the settings people choose between)");
  c->add_option("--head-dim", o->head_dim, "Numbers of a vector")->check(CLI::Range(8, 256))->capture_default_str();
  c->add_option("--rows-kind", o->kind, "gaussian, heavy-tailed, sparse or constant rows")->capture_default_str();
  c->add_option("--rows", o->rows, "Vectors measured, a multiple of 128; 0: 16,384")->check(CLI::Range(0, 1 << 24));
  c->add_option("--role", o->role, "key, value, both, or auto: keys, and values where they differ")
      ->check(CLI::IsMember({"auto", "key", "value", "both"}))
      ->capture_default_str();
  c->add_flag("--list", o->list, "Names, parameters and papers only; nothing is measured");
  AddCommon(*c, o->common);
  c->footer("\nExample:\n  croquis codecs eden:bits=3 q4_0:hadamard=1 --rows-kind sparse\n\n" + ExitCodeHelp());
  c->callback([o, action] { *action = [o] { return Run(*o); }; });
}

}  // namespace croquis::apps
