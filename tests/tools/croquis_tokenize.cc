// Tokenizes standard input for the peer tests.
// usage: croquis_tokenize TOKENIZER [--no-special] [--parse-special] [--decode] [--nul]
//   TOKENIZER: a Hugging Face folder, or llama2c:FILE:VOCAB_SIZE
//   Prints a JSON list of the ids of the text; with --decode reads such lists and prints a JSON list [whole, streamed]
//   of the decoded text; with --nul the input is several texts with a NUL byte after each, and one line is printed for
//   each.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "croquis/model/tokenizer.h"
#include "croquis/model/tokenizer_formats.h"

namespace {

using croquis::Result;
using croquis::model::Tokenizer;
using Json = nlohmann::json;

Result<std::unique_ptr<Tokenizer>> Open(const std::string& name) {
  if (!name.starts_with("llama2c:")) return Tokenizer::FromFolder(name);
  const size_t colon = name.rfind(':');
  std::ifstream file(name.substr(8, colon - 8), std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return croquis::model::MakeLlama2cTokenizer(std::as_bytes(std::span(text)), std::stoll(name.substr(colon + 1)));
}

Json Decode(const Tokenizer& tokenizer, const std::string& list) {
  const auto ids = Json::parse(list).get<std::vector<int32_t>>();
  croquis::model::StreamDecoder stream(tokenizer);
  std::string streamed;
  for (const int32_t id : ids) streamed += stream.Push(id);
  streamed += stream.Flush();
  return Json{tokenizer.Decode(ids), streamed};
}

}  // namespace

int main(int argc, char** argv) {
  bool special = true, parse = false, decode = false, nul = false;
  std::string name;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--no-special") {
      special = false;
    } else if (arg == "--parse-special") {
      parse = true;
    } else if (arg == "--decode") {
      decode = true;
    } else if (arg == "--nul") {
      nul = true;
    } else {
      name = arg;
    }
  }
  const auto tokenizer = Open(name);
  if (!tokenizer) {
    std::fprintf(stderr, "%s\n", tokenizer.error().message.c_str());
    return 1;
  }
  const std::string input{std::istreambuf_iterator<char>(std::cin), {}};
  for (size_t at = 0; at < input.size() || (!nul && at == 0);) {
    const size_t end = nul ? std::min(input.find('\0', at), input.size()) : input.size();
    const std::string text = input.substr(at, end - at);
    at = end + 1;
    if (decode) {
      std::printf("%s\n", Decode(**tokenizer, text).dump().c_str());
      continue;
    }
    const auto ids = (*tokenizer)->Encode(text, special, parse);
    if (!ids) {
      std::fprintf(stderr, "%s\n", ids.error().message.c_str());
      return 1;
    }
    std::printf("%s\n", Json(*ids).dump().c_str());
  }
  return 0;
}
