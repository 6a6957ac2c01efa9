// For tests/peer/gguf_blocks.py: turns rows into ggml's blocks or back, standard input to standard output.
// usage: croquis_blocks quantise|dequantise TYPE_NUMBER
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "croquis/codecs/ggml/blocks.h"

int main(int argc, char** argv) {
  using namespace croquis::codecs;
  if (argc != 3) return 2;
  const GgmlType type = GgmlType(std::atoi(argv[2]));
  std::vector<std::byte> in, out;
  for (std::byte chunk[65536]; const size_t got = std::fread(chunk, 1, sizeof chunk, stdin);) {
    in.insert(in.end(), chunk, chunk + got);
  }
  if (BlockSize(type) == 0) return 2;
  croquis::Status status;
  if (std::strcmp(argv[1], "quantise") == 0) {
    const size_t n = in.size() / 4;
    std::vector<float> x(n);
    std::memcpy(x.data(), in.data(), n * 4);
    out.resize(n / size_t(BlockSize(type)) * BlockBytes(type));
    status = Quantize(type, x.data(), int64_t(n), out.data());
  } else {
    const size_t n = in.size() / BlockBytes(type) * size_t(BlockSize(type));
    std::vector<float> x(n);
    status = Dequantize(type, in.data(), int64_t(n), x.data());
    out.resize(n * 4);
    std::memcpy(out.data(), x.data(), out.size());
  }
  if (!status) {
    std::fprintf(stderr, "%s\n", status.error().message.c_str());
    return 1;
  }
  return std::fwrite(out.data(), 1, out.size(), stdout) == out.size() ? 0 : 1;
}
