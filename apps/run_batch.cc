#include "apps/run_batch.h"

#include <algorithm>
#include <chrono>
#include <iostream>
#include <iterator>
#include <limits>

#include "apps/progress.h"
#include "croquis/attention/hydragen/attend_batch.h"
#include "croquis/eval/text.h"
#include "croquis/model/prompt_tree.h"

namespace croquis::apps {
namespace {

using Clock = std::chrono::steady_clock;
using kvcache::KvCache;

double Seconds(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool Blank(std::string_view s) { return s.find_first_not_of(" \t\r\f\v") == s.npos; }

Result<std::string> PromptOf(std::string_view line, const std::string& where) {
  const Json object = Json::parse(line, nullptr, false);
  const char* wanted = "; wanted an object with the prompt as a string, as in {\"prompt\": \"It was\"}";
  if (object.is_discarded()) return InvalidArgument(where + " is not JSON, but the first line is" + wanted);
  if (!object.is_object() || !object.contains("prompt") || !object["prompt"].is_string())
    return InvalidArgument(where + " has no string \"prompt\"" + wanted);
  return object["prompt"].get<std::string>();
}

// One sequence of the batch while it generates.
struct Sequence {
  std::string prompt, text;
  std::vector<int32_t> history;  // for the repetition penalty
  std::vector<int32_t> tokens;
  int64_t prompt_tokens = 0, most = 0;  // tokens it may generate
  const char* stop = "length";
  bool done = false;
};

struct Totals {
  int64_t given = 0, computed = 0, generated = 0, steps = 0;
  double prompt_seconds = 0, decode_seconds = 0;
};

class Batch {
 public:
  Batch(const BatchOptions& o, Executor& executor, model::Model& model) : o_(o), executor_(executor), model_(model) {}

  Status Run(const std::vector<std::string>& prompts, const kvcache::KvPolicy& policy) {
    CROQUIS_CHECK_OK(Tokenize(prompts));
    CROQUIS_CHECK_OK(Read(policy));
    CROQUIS_CHECK_OK(Decode());
    Print(policy);
    if (Interrupted()) return InterruptedError();
    return {};
  }

 private:
  Status Tokenize(const std::vector<std::string>& prompts) {
    CROQUIS_TRY(const model::Tokenizer* tokenizer, NeedTokenizer(model_));
    const int64_t limit = o_.ctx > 0 ? o_.ctx : model_.config().max_position;
    for (const std::string& prompt : prompts) {
      const std::string name = "prompt " + std::to_string(ids_.size() + 1);
      CROQUIS_TRY(std::vector<int32_t> ids, tokenizer->Encode(prompt, !o_.no_bos));
      const auto n = int64_t(ids.size());
      if (n == 0) return InvalidArgument(name + " is empty");
      if (n >= limit)
        return InvalidArgument(name + " has " + Grouped(n) + " tokens and the context holds " + Grouped(limit) +
                               "; shorten it, or raise the context with --ctx " +
                               std::to_string(n + o_.generate.max_tokens));
      Sequence& s = sequences_.emplace_back();
      s.prompt = prompt, s.prompt_tokens = n, s.most = std::min(o_.generate.max_tokens, limit - n);
      if (o_.generate.penalise_prompt) s.history = ids;
      longest_ = std::max(longest_, n + s.most);
      short_of_room_ = short_of_room_ || s.most < o_.generate.max_tokens;
      ids_.push_back(std::move(ids));
    }
    if (longest_ > model_.config().max_position)
      Note(model_.config().name + " was made for " + Grouped(model_.config().max_position) +
           " tokens; beyond them its text gets worse");
    if (short_of_room_) Note("some prompts leave less room than -n asks for; raise --ctx for more");
    return {};
  }

  Status Read(const kvcache::KvPolicy& policy) {
    kvcache::CacheConfig config = model_.CacheTemplate();
    config.sinks = o_.cache.sinks, config.ring = o_.cache.ring, config.seed = o_.cache.seed;
    config.policy = policy;
    config.capacity = longest_;
    const model::PromptTree tree(ids_);
    totals_.given = tree.given(), totals_.computed = tree.computed();
    Progress bar("prompts", WantProgress() && !o_.common.json);
    const auto progress = [&](int64_t done) {
      bar.Update(done, tree.computed());
      return !Interrupted();
    };
    int64_t more = longest_;
    for (const Sequence& s : sequences_) more = std::min(more, s.most);
    const auto start = Clock::now();
    auto read = model::ReadPrompts(executor_, model_, ids_, tree, config, more, o_.generate.chunk, progress);
    bar.Finish();
    if (Interrupted()) return InterruptedError();
    if (!read) return read.error();
    totals_.prompt_seconds = Seconds(start);
    caches_ = std::move(read->caches);
    logits_ = std::move(read->logits);
    const int64_t group = model_.config().heads / model_.config().kv_heads;
    sharing_ = attention::DescribeSharing(Caches(), 0, group);
    return {};
  }

  std::vector<KvCache*> Caches() const {
    std::vector<KvCache*> all;
    for (const auto& cache : caches_) all.push_back(cache.get());
    return all;
  }

  // The next token of sequence i from its logits; marks it as done where it stops.
  void Choose(int64_t i, std::span<const float> logits, int64_t step) {
    Sequence& s = sequences_[size_t(i)];
    const int32_t id = samplers_[size_t(i)].Sample(logits, s.history, step);
    const auto stops = model_.tokenizer()->StopTokens();
    if (!o_.generate.ignore_stop && std::find(stops.begin(), stops.end(), id) != stops.end()) {
      s.stop = "stop token";
      s.done = true;
      return;
    }
    s.tokens.push_back(id);
    s.history.push_back(id);
    s.text += decoders_[size_t(i)].Push(id);
    s.done = int64_t(s.tokens.size()) >= s.most;
  }

  Status Decode() {
    for (size_t i = 0; i < sequences_.size(); ++i) {
      model::SamplerOptions sampler = o_.generate.sampler;
      sampler.seed += uint64_t(i);  // as `run --seed SEED + i` of one prompt
      CROQUIS_TRY(auto made, model::Sampler::Make(sampler));
      samplers_.push_back(made);
      decoders_.emplace_back(*model_.tokenizer(), /*continues=*/true);
    }
    Progress bar("generation", WantProgress() && !o_.common.json);
    std::vector<int64_t> active(sequences_.size());
    for (size_t i = 0; i < active.size(); ++i) active[i] = int64_t(i);
    const auto start = Clock::now();
    for (int64_t step = 0;; ++step) {
      for (size_t row = 0; row < active.size(); ++row) Choose(active[row], logits_.View()[int64_t(row)], step);
      std::erase_if(active, [&](int64_t i) { return sequences_[size_t(i)].done; });
      bar.Update(step + 1, o_.generate.max_tokens);
      if (active.empty() || Interrupted()) break;
      std::vector<int32_t> ids;
      std::vector<KvCache*> caches;
      for (const int64_t i : active) {
        ids.push_back(sequences_[size_t(i)].tokens.back());
        caches.push_back(caches_[size_t(i)].get());
      }
      CROQUIS_CHECK_OK(model_.ForwardBatch(executor_, ids, caches, logits_.View().Rows(0, int64_t(active.size()))));
      totals_.generated += int64_t(active.size());
      ++totals_.steps;
    }
    totals_.decode_seconds = Seconds(start);
    for (size_t i = 0; i < sequences_.size(); ++i) sequences_[i].text += decoders_[i].Flush();
    for (const int64_t i : active) sequences_[size_t(i)].stop = "interrupted";
    return {};
  }

  Json Figures(const kvcache::KvPolicy& policy) const {
    const auto rate = [](int64_t n, double seconds) {
      return seconds > 0 ? double(n) / seconds : std::numeric_limits<double>::quiet_NaN();
    };
    int64_t without = 0, tokens = 0;
    for (const KvCache* cache : Caches()) without += cache->GetReport().total();
    for (const Sequence& s : sequences_) tokens += int64_t(s.tokens.size());
    const kvcache::Report report = caches_[0]->GetReport();
    Json row;
    row["kv"] = policy.text;
    row["model"] = model_.config().name;
    row["compute"] = model_.Compute();
    row["prompts"] = sequences_.size();
    row["prompt_tokens"] = totals_.given;
    row["prompt_tokens_computed"] = totals_.computed;
    row["generated_tokens"] = tokens;
    row["prompt_tokens_per_s"] = rate(totals_.given, totals_.prompt_seconds);
    row["decode_tokens_per_s"] = rate(totals_.generated, totals_.decode_seconds);
    row["decode_steps"] = totals_.steps;
    row["cache_bytes"] = kvcache::BytesTogether(Caches());
    row["cache_bytes_unshared"] = without;
    row["shared_nodes"] = sharing_.nodes;
    row["pages_read_share"] = sharing_.share_read();
    row["kernels"] = report.kernels;
    row["fast_path"] = report.all_fast;
    return row;
  }

  void PrintFigures(const Json& row) const {
    const auto number = [&](const char* key, Format format) { return FormatCell(row[key], format); };
    std::cout << "\nmodel   " << model_.config().name << ", " << model_.Compute() << "\n"
              << "prompts " << number("prompts", Format::kInt) << " of " << number("prompt_tokens", Format::kInt)
              << " tokens together, " << number("prompt_tokens_computed", Format::kInt)
              << " computed: common beginnings are read once\n"
              << "speed   prompts " << number("prompt_tokens_per_s", Format::kFixed1) << " tokens a second, then "
              << number("generated_tokens", Format::kInt) << " tokens at "
              << number("decode_tokens_per_s", Format::kFixed1) << " a second, all sequences together\n"
              << "cache   " << number("cache_bytes", Format::kBytes) << " with sharing, "
              << number("cache_bytes_unshared", Format::kBytes) << " without\n"
              << "reading " << number("shared_nodes", Format::kInt) << " common runs of pages; "
              << number("pages_read_share", Format::kPercent)
              << " of the pages are read at a step, against one by one\n";
    for (const auto& kernel : row["kernels"]) std::cout << "kernel  " << kernel.get<std::string>() << "\n";
    if (!row["fast_path"].get<bool>())
      std::cout << "warning a method has no fast path on this machine: its pages are read by generic code\n";
  }

  void Print(const kvcache::KvPolicy& policy) const {
    for (size_t i = 0; i < sequences_.size(); ++i) {
      const Sequence& s = sequences_[i];
      if (o_.common.json) {
        const Json row = {{"index", i},
                          {"prompt", s.prompt},
                          {"text", s.text},
                          {"prompt_tokens", s.prompt_tokens},
                          {"generated_tokens", s.tokens.size()},
                          {"stop", s.stop}};
        std::cout << row.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
      } else {
        std::cout << (i > 0 ? "\n" : "") << "[" << i + 1 << "] " << s.prompt << s.text << "\n";
      }
    }
    const Json row = Figures(policy);
    if (o_.common.json) {
      std::cout << Envelope("run --batch", executor_.threads(), Json::array({row}))
                       .dump(-1, ' ', false, Json::error_handler_t::replace)
                << "\n";
    } else if (!o_.quiet) {
      PrintFigures(row);
    }
  }

  const BatchOptions& o_;
  Executor& executor_;
  model::Model& model_;
  std::vector<std::vector<int32_t>> ids_;
  std::vector<Sequence> sequences_;
  std::vector<model::Sampler> samplers_;
  std::vector<model::StreamDecoder> decoders_;
  std::vector<std::unique_ptr<KvCache>> caches_;
  Matrix<float> logits_;
  attention::SharingReport sharing_;
  Totals totals_;
  int64_t longest_ = 0;
  bool short_of_room_ = false;
};

}  // namespace

Result<std::vector<std::string>> ParsePrompts(std::string_view text, const std::string& name) {
  std::vector<std::string> prompts;
  bool json = false;
  int64_t number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    at = end + 1;
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (Blank(line)) continue;
    if (prompts.empty()) json = line.starts_with('{');
    if (json) {
      CROQUIS_TRY(std::string prompt, PromptOf(line, name + ", line " + std::to_string(number)));
      prompts.push_back(std::move(prompt));
    } else {
      prompts.emplace_back(line);
    }
  }
  if (prompts.empty())
    return InvalidArgument(name + " holds no prompts; wanted one a line, or JSON objects with \"prompt\"");
  return prompts;
}

Status RunBatch(const BatchOptions& o) {
  const std::string name = o.file == "-" ? "standard input" : o.file;
  std::string text;
  if (o.file == "-") {
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
  } else {
    CROQUIS_TRY(text, eval::ReadText(o.file));
  }
  CROQUIS_TRY(const std::vector<std::string> prompts, ParsePrompts(text, name));
  CROQUIS_TRY(const auto executor, Start(o.common));
  CROQUIS_TRY(const auto model, LoadModel(o.model, *executor));
  CROQUIS_TRY(const std::vector<kvcache::KvPolicy> policies, ParseCaches(o.cache, model->config().head_dim));
  return Batch(o, *executor, *model).Run(prompts, policies[0]);
}

}  // namespace croquis::apps
