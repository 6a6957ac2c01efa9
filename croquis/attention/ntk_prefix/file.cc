#include <bit>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>

#include "croquis/attention/ntk_prefix/ntk_prefix.h"
#include "croquis/base/checksum.h"
#include "croquis/base/file.h"
#include "croquis/base/layer_heads.h"
#include "croquis/base/memory.h"

namespace croquis::attention {
namespace {

static_assert(std::endian::native == std::endian::little, "the file is little-endian");
constexpr char kMagic[7] = {'C', 'R', 'Q', 'N', 'T', 'K', 'P'};
constexpr char kVersion = '2';  // 1 had no checksum

struct Header {
  char magic[7], version;
  uint32_t features, heads, dim, value_dim, count;
  float scale;
  uint64_t seed;
};
static_assert(sizeof(Header) == 40);
constexpr int64_t kChecksumBytes = 4;

// Bytes of a whole file, if they can be counted.
std::optional<int64_t> BytesOf(const Header& h) {
  const auto head = CheckedMul(int64_t(h.count), int64_t(h.value_dim) + 2);
  const auto all = head ? CheckedMul(*head, int64_t(h.heads) * 4) : std::nullopt;
  return all ? std::optional(*all + int64_t(sizeof h) + kChecksumBytes) : std::nullopt;
}

struct Close {
  void operator()(std::FILE* f) const { std::fclose(f); }
};

// Reads and sums up.
class Reader {
 public:
  explicit Reader(const std::string& path) : file_(std::fopen(path.c_str(), "rb")) {}
  bool open() const { return file_ != nullptr; }
  bool Read(void* data, size_t bytes) {
    if (std::fread(data, 1, bytes, file_.get()) != bytes) return false;
    sum_ = Crc32(sum_, data, bytes);
    return true;
  }
  uint32_t sum() const { return sum_; }
  // Bytes of the file; -1 where that cannot be told. Reading goes on where it was.
  int64_t Size() {
    const long at = std::ftell(file_.get());
    if (at < 0 || std::fseek(file_.get(), 0, SEEK_END) != 0) return -1;
    const long size = std::ftell(file_.get());
    return std::fseek(file_.get(), at, SEEK_SET) == 0 ? int64_t(size) : -1;
  }

 private:
  std::unique_ptr<std::FILE, Close> file_;
  uint32_t sum_ = 0;
};

}  // namespace

Status NtkPrefix::Save(const std::string& path) const {
  Header header{{},
                kVersion,
                uint32_t(config_.features),
                uint32_t(heads_),
                uint32_t(dim_),
                uint32_t(value_dim_),
                uint32_t(features()),
                config_.scale,
                config_.seed};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  CROQUIS_CHECK_OK(CheckMemory(bytes(), "the file of a prefix"));
  std::string file;
  file.reserve(size_t(*BytesOf(header)));
  const auto put = [&](const void* data, size_t bytes) { file.append(static_cast<const char*>(data), bytes); };
  put(&header, sizeof header);
  const int64_t state = map_.StateFloats(value_dim_);
  for (int64_t h = 0; h < heads_; ++h) {
    put(exponents_.data() + h * features(), size_t(features()) * 4);
    put(states_.data() + h * state, size_t(state) * 4);
  }
  const uint32_t sum = Crc32(0, file.data(), file.size());
  put(&sum, sizeof sum);
  const Status written = WriteFileAtomic(path, file);
  return written ? Status() : IoError("ntk-prefix: " + written.error().message);
}

Result<NtkPrefix> NtkPrefix::Load(const std::string& path) {
  Reader file(path);
  if (!file.open())
    return NotFound("ntk-prefix: cannot open " + Quoted(path) + "; croquis attn --save-prefix makes one");
  const auto corrupt = [&](const std::string& what) { return Corrupt("ntk-prefix: " + Quoted(path) + " " + what); };
  const auto unreadable = [&] { return IoError("ntk-prefix: cannot read " + Quoted(path)); };
  Header header;
  if (!file.Read(&header, sizeof header) || std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    return corrupt("is not a prefix file (it does not begin with CRQNTKP)");
  if (header.version != kVersion)
    return Unsupported("ntk-prefix: " + Quoted(path) + " is of version " + Quoted({&header.version, 1}) +
                       "; this program reads version " + std::string(1, kVersion) + ": convert the prefix again");
  PrefixConfig config;
  config.features = PrefixFeatures(header.features);
  config.scale = header.scale;
  config.seed = header.seed;
  if (config.features == PrefixFeatures::kFavor) config.favor = header.count;
  // The size first: a header that lies must not take memory.
  const int64_t size = file.Size();
  if (size < 0) return unreadable();
  if (BytesOf(header) != size)
    return corrupt("has " + std::to_string(size) + " bytes, which is not what its header says");
  auto made = Make(config, header.heads, header.dim, header.value_dim);
  if (!made)
    return made.error().code == Code::kNoMemory ? made.error() : corrupt("is damaged: " + made.error().message);
  if (made->features() != int64_t(header.count))
    return corrupt("holds " + std::to_string(header.count) + " features where its kind has " +
                   std::to_string(made->features()));
  const int64_t state = made->map_.StateFloats(made->value_dim_), features = made->features();
  for (int64_t h = 0; h < made->heads_; ++h)
    if (!file.Read(made->exponents_.data() + h * features, size_t(features) * 4) ||
        !file.Read(made->states_.data() + h * state, size_t(state) * 4))
      return unreadable();
  const uint32_t sum = file.sum();
  uint32_t kept = 0;
  if (!file.Read(&kept, sizeof kept)) return unreadable();
  if (kept != sum) return corrupt("is damaged: it fails its checksum");
  if (const Status finite = made->CheckFinite("its numbers"); !finite)
    return corrupt("is damaged: " + finite.error().message);
  return made;
}

}  // namespace croquis::attention
