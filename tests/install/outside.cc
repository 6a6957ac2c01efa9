// Encodes one page and scores a query against it, using only what is installed.
#include <cstdio>
#include <memory>
#include <vector>

#include "croquis/codecs/codec.h"
#include "croquis/model/model.h"

int main() {
  using namespace croquis;
  auto codec = codecs::Make("eden:bits=4", 64, codecs::Role::kKey);
  if (!codec) return std::printf("%s\n", codec.error().message.c_str()), 1;
  Matrix<float> x(128, 64), y(128, 64);
  for (int64_t i = 0; i < 128 * 64; ++i) x.data()[i] = float(i % 13) - 6;
  Buffer page((*codec)->PageBytes());
  (*codec)->Encode(x.View(), 0, page.data());
  (*codec)->Decode(page.data(), 0, y.View());
  double error = 0, norm = 0;
  for (int64_t i = 0; i < 128 * 64; ++i) {
    const double d = double(x.data()[i]) - y.data()[i];
    error += d * d;
    norm += double(x.data()[i]) * x.data()[i];
  }
  std::printf("%s: relative error %.4f\n", std::string((*codec)->Method()).c_str(), error / norm);
  Executor executor(1);
  const auto missing = model::Model::Load("no-such-model", executor);
  return error / norm < 0.02 && !missing ? 0 : 1;
}
