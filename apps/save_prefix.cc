#include "apps/save_prefix.h"

#include <chrono>
#include <cmath>
#include <iostream>

#include "croquis/attention/method.h"
#include "croquis/attention/ntk_prefix/ntk_prefix.h"
#include "croquis/base/memory.h"

namespace croquis::apps {
namespace {

std::string MethodText(const SavePrefixOptions& o) { return o.methods.empty() ? "ntk-prefix" : o.methods[0]; }

// As attention::Run does for its inputs, which this is not.
Status CheckNumbers(const attention::TensorView& t, const char* what) {
  std::vector<float> row(static_cast<size_t>(t.dim));
  for (int64_t h = 0; h < t.heads; h++)
    for (int64_t r = 0; r < t.rows; r++) {
      t.Head(h).Read(r, row.data());
      for (const float x : row)
        if (!std::isfinite(x))
          return Numeric(std::string("--save-prefix: NaN or infinity in ") + what + ", head " + std::to_string(h) +
                         ", row " + std::to_string(r));
    }
  return {};
}

}  // namespace

Status CheckSavePrefix(const SavePrefixOptions& o) {
  const std::string text = MethodText(o);
  CROQUIS_TRY(const Spec given, ParseSpec(text));
  if (o.methods.size() > 1 || given.name != "ntk-prefix")
    return InvalidArgument(
        "--save-prefix makes a state of ntk-prefix; wanted one --method ntk-prefix:features=...,m=... or none, got " +
        (o.methods.size() > 1 ? std::to_string(o.methods.size()) : text));
  for (const auto& [name, value] : given.params)
    if (name != "features" && name != "m")
      return InvalidArgument("--save-prefix takes all of --k and --v (or the first --key-length); leave " + name +
                             " out");
  CROQUIS_CHECK_OK(attention::ResolveSpec(text));
  return CheckWritable(o.out);
}

Status SavePrefix(const SavePrefixOptions& o, Executor& executor, const attention::TensorView& k,
                  const attention::TensorView& v) {
  CROQUIS_TRY(const Spec spec, attention::ResolveSpec(MethodText(o)));
  CROQUIS_CHECK_OK(CheckNumbers(k, "--k"));
  CROQUIS_CHECK_OK(CheckNumbers(v, "--v"));
  const float scale = o.scale.value_or(float(1 / std::sqrt(double(std::max<int64_t>(1, k.dim)))));
  const auto start = std::chrono::steady_clock::now();
  CROQUIS_TRY(const auto state,
              attention::NtkPrefix::FromKeysValues(executor, k, v, attention::PrefixConfig::From(spec, scale, o.seed)));
  const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  CROQUIS_CHECK_OK(state.Save(o.out));
  Json row = {{"file", o.out},
              {"spec", ToString(spec)},
              {"kv_heads", state.heads()},
              {"keys", k.rows},
              {"dim", state.dim()},
              {"value_dim", state.value_dim()},
              {"features", state.features()},
              {"scale", scale},
              {"bytes", state.bytes()},
              {"bytes_of_keys", 2 * k.heads * k.rows * (k.dim + v.dim)},  // in 16 bits
              {"ms", ms}};
  if (o.common.json) {
    PrintRows(o.common, "attn", executor.threads(), {}, Json::array({row}), {{"seed", o.seed}});
    return {};
  }
  std::cout << "prefix of " << Grouped(k.rows) << " keys, " << Grouped(k.heads) << " kv heads, dim " << Grouped(k.dim)
            << ", as " << Grouped(state.features()) << " features a head: " << HumanBytes(double(state.bytes()))
            << " (the keys and values take " << HumanBytes(row["bytes_of_keys"].get<double>()) << " in 16 bits), "
            << Printf("%.3f", ms) << " ms\n"
            << "written: " << o.out << "\n"
            << "use it: croquis attn --q Q --k K --v V --method ntk-prefix:file=" << o.out << "\n";
  return {};
}

}  // namespace croquis::apps
