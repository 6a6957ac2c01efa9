// Attention on tensors behind a C function, so that a Python process can time it between other libraries' calls.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "croquis/attention/method.h"
#include "croquis/base/executor.h"
#include "croquis/simd/target.h"

using namespace croquis;
using namespace croquis::attention;

// Contiguous q [heads, nq, dim], k [kv_heads, nk, dim], v [kv_heads, nk, value_dim] of a type (0 f32, 1 f16, 2 bf16);
// out [heads, nq, value_dim] and lse [heads, nq] (or null) in f32. The queries stand at the last keys. checked: through
// attention::Run, which reads all numbers first. Returns 0, or 1 with words in `error`.
struct CroquisAttention {
  const char *method, *simd;
  int64_t heads, kv_heads, nq, nk, dim, value_dim, window;
  int32_t type, causal, threads, checked;
  float scale;
  const void *q, *k, *v;
  float *out, *lse;
  char kernel[64];
  char error[256];
};

extern "C" [[gnu::visibility("default")]] int croquis_attention(CroquisAttention* a) {
  static std::unique_ptr<Executor> executor;
  if (executor == nullptr || executor->threads() != a->threads) executor = std::make_unique<Executor>(a->threads);
  const auto fail = [&](const std::string& message) {
    std::snprintf(a->error, sizeof a->error, "%s", message.c_str());
    return 1;
  };
  if (const Status forced = simd::Force(a->simd); !forced) return fail(forced.error().message);
  const auto type = simd::RowType(a->type);
  const auto tensor = [&](const void* data, int64_t heads, int64_t rows, int64_t dim) {
    return TensorView{static_cast<const std::byte*>(data), type, heads, rows, dim, rows * dim, dim};
  };
  const Problem problem{tensor(a->q, a->heads, a->nq, a->dim),
                        tensor(a->k, a->kv_heads, a->nk, a->dim),
                        tensor(a->v, a->kv_heads, a->nk, a->value_dim),
                        a->scale,
                        {a->causal != 0, a->nk - a->nq, a->window}};
  const Output output{a->out, a->nq * a->value_dim, a->value_dim, a->lse};
  const auto method = Make(a->method);
  if (!method) return fail(method.error().message);
  const std::string name(a->method);
  const auto info = FindMethod(name.substr(0, name.find(':')));
  if (!info) return fail(info.error().message);
  RunReport report;
  const Status ran = a->checked ? Run(*executor, **info, **method, problem, output, &report)
                                : (*method)->Run(*executor, problem, output, &report);
  if (!ran) return fail(ran.error().message);
  std::snprintf(a->kernel, sizeof a->kernel, "%s", report.kernel.c_str());
  return 0;
}
