#include <bit>
#include <cstdio>
#include <cstring>
#include <memory>

#include "croquis/attention/ntk_prefix/ntk_prefix.h"
#include "croquis/base/memory.h"

namespace croquis::attention {
namespace {

static_assert(std::endian::native == std::endian::little, "the file is little-endian");
constexpr char kMagic[8] = {'C', 'R', 'Q', 'N', 'T', 'K', 'P', '1'};

struct Header {
  char magic[8];
  uint32_t features, heads, dim, value_dim, count;
  float scale;
  uint64_t seed;
};
static_assert(sizeof(Header) == 40);

struct Close {
  void operator()(std::FILE* f) const { std::fclose(f); }
};
using File = std::unique_ptr<std::FILE, Close>;

bool Write(std::FILE* f, const void* data, size_t bytes) { return std::fwrite(data, 1, bytes, f) == bytes; }
bool Read(std::FILE* f, void* data, size_t bytes) { return std::fread(data, 1, bytes, f) == bytes; }

}  // namespace

Status NtkPrefix::Save(const std::string& path) const {
  Header header{{},
                uint32_t(config_.features),
                uint32_t(heads_),
                uint32_t(dim_),
                uint32_t(value_dim_),
                uint32_t(features()),
                config_.scale,
                config_.seed};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  File file(std::fopen(path.c_str(), "wb"));
  bool good = file != nullptr && Write(file.get(), &header, sizeof header);
  const int64_t state = map_.StateFloats(value_dim_);
  for (int64_t h = 0; h < heads_ && good; ++h)
    good = Write(file.get(), exponents_.data() + h * features(), size_t(features()) * 4) &&
           Write(file.get(), states_.data() + h * state, size_t(state) * 4);
  // Closing writes what is buffered, and may fail on it.
  if (file != nullptr) good = std::fclose(file.release()) == 0 && good;
  if (good) return {};
  return IoError("ntk-prefix: cannot write '" + path + "'; is the folder there and room on the disk?");
}

Result<NtkPrefix> NtkPrefix::Load(const std::string& path) {
  const File file(std::fopen(path.c_str(), "rb"));
  if (file == nullptr) return NotFound("ntk-prefix: cannot open '" + path + "'");
  const auto corrupt = [&](const std::string& what) { return Corrupt("ntk-prefix: '" + path + "' " + what); };
  Header header;
  if (!Read(file.get(), &header, sizeof header) || std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    return corrupt("is not a prefix file (it does not begin with CRQNTKP1)");
  PrefixConfig config;
  config.features = PrefixFeatures(header.features);
  config.scale = header.scale;
  config.seed = header.seed;
  if (config.features == PrefixFeatures::kFavor) config.favor = header.count;
  // The size first: a header that lies must not take memory.
  if (std::fseek(file.get(), 0, SEEK_END) != 0) return IoError("ntk-prefix: cannot read '" + path + "'");
  const long size = std::ftell(file.get());
  const auto head = CheckedMul(int64_t(header.count), int64_t(header.value_dim) + 2);
  const auto all = head ? CheckedMul(*head, int64_t(header.heads) * 4) : std::nullopt;
  if (!all || int64_t(size) != *all + int64_t(sizeof header))
    return corrupt("has " + std::to_string(size) + " bytes, which is not what its header says");
  auto made = Make(config, header.heads, header.dim, header.value_dim);
  if (!made)
    return made.error().code == Code::kNoMemory ? made.error() : corrupt("is damaged: " + made.error().message);
  if (made->features() != int64_t(header.count))
    return corrupt("holds " + std::to_string(header.count) + " features where its kind has " +
                   std::to_string(made->features()));
  if (std::fseek(file.get(), long(sizeof header), SEEK_SET) != 0)
    return IoError("ntk-prefix: cannot read '" + path + "'");
  const int64_t state = made->map_.StateFloats(made->value_dim_), features = made->features();
  for (int64_t h = 0; h < made->heads_; ++h)
    if (!Read(file.get(), made->exponents_.data() + h * features, size_t(features) * 4) ||
        !Read(file.get(), made->states_.data() + h * state, size_t(state) * 4))
      return IoError("ntk-prefix: cannot read '" + path + "'");
  if (const Status finite = made->CheckFinite("its numbers"); !finite)
    return corrupt("is damaged: " + finite.error().message);
  return made;
}

}  // namespace croquis::attention
