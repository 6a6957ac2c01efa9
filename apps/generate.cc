#include "apps/generate.h"

#include <chrono>
#include <cmath>
#include <limits>

#include "apps/cli.h"
#include "apps/progress.h"

namespace croquis::apps {
namespace {

double Seconds(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

double Generated::PromptRate(int64_t prompt_tokens) const { return double(prompt_tokens) / prompt_seconds; }

double Generated::DecodeRate() const {
  return decode_steps > 0 ? double(decode_steps) / decode_seconds : std::numeric_limits<double>::quiet_NaN();
}

Result<Generated> Generate(Executor& executor, model::Model& model, kvcache::KvCache& cache,
                           std::span<const int32_t> prompt, const GenerateOptions& options,
                           const std::function<void(const std::string&)>& on_text, bool progress) {
  if (prompt.empty()) return InvalidArgument("the prompt is empty; give some text with -p or -f");
  CROQUIS_TRY(const model::Sampler sampler, model::Sampler::Make(options.sampler));
  Generated out;
  Matrix<float> logits(1, model.config().vocab);
  Progress bar("prompt", progress);
  const auto on_chunk = [](void* context, int64_t done, int64_t total) {
    static_cast<Progress*>(context)->Update(done, total);
    return !Interrupted();
  };
  auto start = std::chrono::steady_clock::now();
  const Status prefill =
      options.prefill == nullptr
          ? model.Forward(executor, prompt, cache, logits.View(), options.chunk, on_chunk, &bar)
          : model.Prefill(executor, prompt, cache, *options.prefill, logits.View(), options.chunk, on_chunk, &bar);
  bar.Finish();
  if (Interrupted()) return InterruptedError();
  if (!prefill) return prefill.error();
  out.prompt_seconds = Seconds(start);

  std::vector<int32_t> history;
  if (options.penalise_prompt) history.assign(prompt.begin(), prompt.end());
  const std::span<const int32_t> stops = model.tokenizer()->StopTokens();
  model::StreamDecoder decoder(*model.tokenizer(), /*continues=*/true);
  const auto emit = [&](const std::string& piece) {
    out.text += piece;
    if (on_text && !piece.empty()) on_text(piece);
  };
  start = std::chrono::steady_clock::now();
  for (int64_t step = 0; step < options.max_tokens; step++) {
    const int32_t id = sampler.Sample(logits.View()[0], history, step);
    if (!options.ignore_stop && std::find(stops.begin(), stops.end(), id) != stops.end()) {
      out.stop = "stop token";
      break;
    }
    out.tokens.push_back(id);
    history.push_back(id);
    emit(decoder.Push(id));
    if (Interrupted()) {
      out.stop = "interrupted";
      break;
    }
    if (step + 1 == options.max_tokens) break;
    CROQUIS_CHECK_OK(model.Forward(executor, std::span(&id, 1), cache, logits.View(), 1));
    out.decode_steps++;
  }
  out.decode_seconds = Seconds(start);
  emit(decoder.Flush());
  return out;
}

void AddCacheColumns(const kvcache::Report& report, Json& row) {
  row["tokens"] = report.tokens;
  row["cache_bytes"] = report.total();
  row["cache_bytes_f16"] = report.f16_bytes;
  row["bits_per_number"] = report.bits_per_number;
  row["page_bits_per_number"] = (report.key_bits + report.value_bits) / 2;
  row["key_bits"] = report.key_bits;
  row["value_bits"] = report.value_bits;
  row["page_bytes"] = report.key_pages + report.value_pages;
  row["ring_bytes"] = report.ring;
  row["sink_bytes"] = report.sinks;
  row["table_bytes"] = report.tables;
  row["centered_heads"] = report.centered_heads;
  row["kernels"] = report.kernels;
  row["fast_path"] = report.all_fast;
}

}  // namespace croquis::apps
