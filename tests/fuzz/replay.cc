// Feeds every file of the given folders to a fuzz target, then each file cut short at many lengths and with bytes
// flipped: a deterministic test in builds without libFuzzer.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
  int64_t inputs = 0;
  for (int a = 1; a < argc; ++a) {
    if (!std::filesystem::is_directory(argv[a])) return std::printf("no corpus folder %s\n", argv[a]), 1;
    for (const auto& entry : std::filesystem::directory_iterator(argv[a])) {
      std::ifstream in(entry.path(), std::ios::binary);
      const std::vector<uint8_t> bytes((std::istreambuf_iterator<char>(in)), {});
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
      const size_t step = bytes.size() / 200 + 1;
      for (size_t n = 0; n < bytes.size(); n += step) {
        // A copy of its own size, so that a sanitizer sees a read beyond the end.
        std::vector<uint8_t> cut(bytes.begin(), bytes.begin() + std::ptrdiff_t(n));
        LLVMFuzzerTestOneInput(cut.data(), cut.size());
        std::vector<uint8_t> flipped = bytes;
        flipped[n] ^= uint8_t(1u << (n % 8));
        LLVMFuzzerTestOneInput(flipped.data(), flipped.size());
        inputs += 2;
      }
      ++inputs;
    }
  }
  std::printf("%lld inputs\n", static_cast<long long>(inputs));
  return inputs == 0;
}
