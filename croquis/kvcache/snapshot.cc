// Snapshots: a cache as a file.
//
//   header   magic "CROQUIS-KV\n" and 5 zero bytes, u32 version, u32 0x01020304 (byte order), u64 bytes of the file
//   CONF     u64 length in tokens, then the configuration as text: one "name value" line each, the codecs of every head
//   EDIT     version 2 alone, which edited caches have: u64 segments, i64 cursor, then i64 begin, end, shift of each
//   LAYR     one a layer: by head the common part (when the plan has centring), the sinks, the ring in order of
//   position,
//            keys before values; then the units as they are
// A section is u32 tag, u32 layer, u64 payload bytes, payload, u32 CRC-32 of all that. Every size follows from the
// configuration and the length, so a reader knows them all before it takes memory or believes a byte.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <limits>
#include <optional>

#include "croquis/base/checksum.h"
#include "croquis/kvcache/impl.h"

namespace croquis::kvcache {
namespace {

constexpr char kMagic[16] = "CROQUIS-KV\n";
constexpr uint32_t kVersion = 1, kEditedVersion = 2, kByteOrder = 0x01020304;
constexpr uint32_t kConf = 0x464e4f43, kEdit = 0x54494445, kLayer = 0x5259414c;  // "CONF", "EDIT", "LAYR"
constexpr uint64_t kSegmentBytes = 24;
constexpr uint64_t kHeaderBytes = 32, kSectionBytes = 20;  // tag, layer, bytes and CRC around a payload
constexpr size_t kCenterBytes = 2 + sizeof(Center::pair) + sizeof(Center::mu);

std::string SystemError(const std::string& what, const std::string& path) {
  return "snapshot: cannot " + what + " " + path + ": " + std::strerror(errno);
}

// The configuration in words: two caches can exchange snapshots when these are equal. The capacity may differ.
std::string Describe(const Plan& plan) {
  const CacheConfig& c = plan.config;
  uint64_t rope = 1469598103934665603ull;
  for (const double w : c.rope.inv_freq) rope = (rope ^ std::bit_cast<uint64_t>(w)) * 1099511628211ull;
  char hex[2][17];
  std::snprintf(hex[0], sizeof hex[0], "%016" PRIx64, c.model_id);
  std::snprintf(hex[1], sizeof hex[1], "%016" PRIx64, rope);
  std::string s;
  s += "model " + std::string(hex[0]) + "\n";
  s += "layers " + std::to_string(c.layers) + "\nkv_heads " + std::to_string(c.kv_heads) + "\nhead_dim " +
       std::to_string(c.head_dim) + "\nsinks " + std::to_string(c.sinks) + "\nring " + std::to_string(c.ring) +
       "\nseed " + std::to_string(c.seed) + "\n";
  s += "rope " + std::to_string(c.rope.inv_freq.size()) + " pairs, " + (c.rope.interleaved ? "interleaved" : "halves") +
       ", " + hex[1] + "\n";
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    for (size_t h = 0; h < plan.layers[l].heads.size(); ++h) {
      const HeadPlan& head = plan.layers[l].heads[h];
      s += "layer " + std::to_string(l) + " head " + std::to_string(h) + " k=" + std::string(head.key->Method()) +
           " v=" + std::string(head.value->Method());
      if (plan.layers[l].policy != nullptr) s += " evict=" + std::string(plan.layers[l].policy->Method());
      s += "\n";
    }
  }
  return s;
}

std::string Printable(std::string_view s) {
  std::string out;
  for (const char c : s.substr(0, 120)) out += (c >= 32 && c < 127) ? c : '?';
  return out;
}

// An error that names the first line that differs, or success.
Status CompareConfig(std::string_view got, std::string_view wanted) {
  while (got != wanted) {
    const size_t a = got.find('\n'), b = wanted.find('\n');
    const std::string_view line = got.substr(0, a), want = wanted.substr(0, b);
    if (line != want || a == got.npos || b == wanted.npos)
      return InvalidArgument("snapshot: it was made with '" + Printable(line) + "', this cache has '" +
                             Printable(want) + "'; load it with the configuration that it was saved with");
    got.remove_prefix(a + 1), wanted.remove_prefix(b + 1);
  }
  return {};
}

struct Sizes {
  uint64_t conf = 0;
  std::vector<uint64_t> layers;
  uint64_t total = 0;
};

// Tokens in the ring of a layer at a length.
int64_t RingTokens(const Plan& plan, int64_t layer, int64_t length) {
  return std::max<int64_t>(0, length - plan.config.sinks - plan.Encoded(layer, length));
}

Sizes SizesAt(const Plan& plan, const std::string& description, int64_t length) {
  Sizes s;
  s.conf = 8 + description.size();
  s.total = kHeaderBytes + kSectionBytes + s.conf;
  for (int64_t l = 0; l < plan.config.layers; ++l) {
    const LayerPlan& layer = plan.layers[size_t(l)];
    const int64_t rows = std::min(plan.config.sinks, length) + RingTokens(plan, l, length);
    uint64_t bytes = uint64_t(plan.Units(l, length)) * layer.unit_bytes;
    if (layer.policy != nullptr) bytes += uint64_t(plan.Kept(l, length).bytes() * plan.config.kv_heads);
    for (const HeadPlan& h : layer.heads)
      bytes +=
          uint64_t(2 * rows * plan.config.head_dim * simd::RowTypeBytes(h.type)) + (plan.centering ? kCenterBytes : 0);
    s.layers.push_back(bytes);
    s.total += kSectionBytes + bytes;
  }
  return s;
}

// ---- writing ----

class Writer {
 public:
  explicit Writer(FILE* f) : f_(f) {}
  void Put(const void* data, size_t bytes) {
    if (bytes > 0) ok_ = ok_ && std::fwrite(data, 1, bytes, f_) == bytes;
    crc_ = Crc32(crc_, data, bytes);
  }
  template <class T>
  void Value(T v) {
    Put(&v, sizeof v);
  }
  void Begin(uint32_t tag, uint32_t layer, uint64_t bytes) {
    crc_ = 0;
    Value(tag), Value(layer), Value(bytes);
  }
  void End() { Value(crc_); }
  bool ok() const { return ok_; }

 private:
  FILE* f_;
  bool ok_ = true;
  uint32_t crc_ = 0;
};

void WriteLayer(Writer& w, KvCache::Impl& impl, int64_t layer) {
  const Plan& plan = *impl.plan;
  const LayerPlan& lp = plan.layers[size_t(layer)];
  const LayerState& state = impl.layers[size_t(layer)];
  const int64_t sinks = std::min(plan.config.sinks, impl.length), encoded = plan.Encoded(layer, impl.length);
  for (int64_t h = 0; h < plan.config.kv_heads; ++h) {
    if (plan.centering) {
      const Center& c = state.centers[size_t(h)];
      w.Value(uint8_t(c.decided)), w.Value(c.pairs);
      w.Put(c.pair.data(), sizeof c.pair);
      w.Put(c.mu.data(), sizeof c.mu);
    }
    const auto rows = impl.Rows(layer, h);
    w.Put(rows.sink_k, size_t(sinks * rows.row_bytes));
    w.Put(rows.sink_v, size_t(sinks * rows.row_bytes));
    for (const std::byte* ring : {rows.ring_k, rows.ring_v})
      for (int64_t t = 0; t < RingTokens(plan, layer, impl.length); ++t)
        w.Put(ring + (encoded + t) % lp.slots * rows.row_bytes, size_t(rows.row_bytes));
  }
  for (const PolicyState& kept : state.kept) w.Put(kept.bytes().data(), kept.bytes().size());
  for (const Unit* unit : state.units) w.Put(unit->data(), lp.unit_bytes);
}

// ---- reading ----

class Source {
 public:
  virtual ~Source() = default;
  virtual bool Read(void* to, size_t bytes) = 0;
  virtual uint64_t size() const = 0;
};

class MemorySource final : public Source {
 public:
  explicit MemorySource(std::span<const std::byte> bytes) : bytes_(bytes) {}
  bool Read(void* to, size_t bytes) override {
    if (bytes > bytes_.size() - at_) return false;
    if (bytes > 0) std::memcpy(to, bytes_.data() + at_, bytes);
    at_ += bytes;
    return true;
  }
  uint64_t size() const override { return bytes_.size(); }

 private:
  std::span<const std::byte> bytes_;
  size_t at_ = 0;
};

class FileSource final : public Source {
 public:
  FileSource(FILE* f, uint64_t size) : f_(f), size_(size) {}
  ~FileSource() override { std::fclose(f_); }
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;
  bool Read(void* to, size_t bytes) override { return std::fread(to, 1, bytes, f_) == bytes; }
  uint64_t size() const override { return size_; }

 private:
  FILE* f_;
  uint64_t size_;
};

class Reader {
 public:
  explicit Reader(Source& source) : source_(source) {}
  void Get(void* to, size_t bytes) {
    ok_ = ok_ && source_.Read(to, bytes);
    if (!ok_) std::memset(to, 0, bytes);
    crc_ = Crc32(crc_, to, bytes);
  }
  template <class T>
  T Value() {
    T v{};
    Get(&v, sizeof v);
    return v;
  }
  // The payload size of the section that follows, which must have that tag and layer.
  std::optional<uint64_t> Begin(uint32_t tag, uint32_t layer) {
    crc_ = 0;
    const auto t = Value<uint32_t>();
    const auto l = Value<uint32_t>();
    const auto bytes = Value<uint64_t>();
    if (!ok_ || t != tag || l != layer) return std::nullopt;
    return bytes;
  }
  bool End() {
    const uint32_t want = crc_;
    return Value<uint32_t>() == want && ok_;
  }
  bool ok() const { return ok_; }

 private:
  Source& source_;
  bool ok_ = true;
  uint32_t crc_ = 0;
};

bool ReadCenter(Reader& r, Center& c, bool encoded, const Plan& plan) {
  const auto decided = r.Value<uint8_t>();
  c.decided = decided == 1;
  c.pairs = r.Value<uint8_t>();
  r.Get(c.pair.data(), sizeof c.pair);
  r.Get(c.mu.data(), sizeof c.mu);
  if (decided != (encoded ? 1 : 0) || c.pairs > plan.config.head_dim / 2 || (c.pairs > 0 && !encoded)) return false;
  for (size_t s = 0; s < c.pairs; ++s) {
    if (c.pair[s] >= plan.config.head_dim / 2 || (s > 0 && c.pair[s] <= c.pair[s - 1])) return false;
    if ((c.mu[2 * s] & 0x7c00) == 0x7c00 || (c.mu[2 * s + 1] & 0x7c00) == 0x7c00) return false;  // NaN or infinite
  }
  return true;
}

bool ReadRow(Reader& r, simd::RowType type, int64_t d, std::byte* row) {
  r.Get(row, size_t(d * simd::RowTypeBytes(type)));
  alignas(64) std::array<float, 256> x;
  WidenRow(type, row, d, x.data());
  return simd::Dense().all_below(x.data(), d, std::numeric_limits<float>::max());
}

Status ReadLayer(Reader& r, KvCache::Impl& impl, int64_t layer) {
  const Plan& plan = *impl.plan;
  const LayerPlan& lp = plan.layers[size_t(layer)];
  LayerState& state = impl.layers[size_t(layer)];
  const int64_t d = plan.config.head_dim, sinks = std::min(plan.config.sinks, impl.length);
  const int64_t encoded = plan.Encoded(layer, impl.length), ring = RingTokens(plan, layer, impl.length);
  bool valid = true;
  for (int64_t h = 0; h < plan.config.kv_heads && valid; ++h) {
    if (plan.centering) valid = ReadCenter(r, state.centers[size_t(h)], encoded > 0, plan);
    const simd::RowType type = lp.heads[size_t(h)].type;
    const auto rows = impl.Rows(layer, h);
    for (std::byte* to : {rows.sink_k, rows.sink_v})
      for (int64_t t = 0; t < sinks; ++t) valid = ReadRow(r, type, d, to + t * rows.row_bytes) && valid;
    for (std::byte* to : {rows.ring_k, rows.ring_v})
      for (int64_t t = 0; t < ring; ++t)
        valid = ReadRow(r, type, d, to + (encoded + t) % lp.slots * rows.row_bytes) && valid;
  }
  for (PolicyState& kept : state.kept) {
    kept = PolicyState(plan.Kept(layer, impl.length));
    r.Get(kept.bytes().data(), kept.bytes().size());
    for (size_t i = 0; i < kept.layout().count; ++i)
      valid = valid && (kept.layout().parts[i].holds == StatePart::Holds::kTables || kept.Finite(i));
    valid = valid && r.ok() && kept.header().left == encoded && lp.policy->Valid(kept);
  }
  for (int64_t u = 0; u < plan.Units(layer, impl.length) && valid && r.ok(); ++u) {
    state.units.push_back(impl.pool->New(lp.unit_bytes));
    r.Get(state.units.back()->data(), lp.unit_bytes);
  }
  if (!r.ok()) return Corrupt("snapshot: the file ends in layer " + std::to_string(layer));
  if (!valid) return Corrupt("snapshot: layer " + std::to_string(layer) + " holds numbers that a cache cannot hold");
  return {};
}

struct Header {
  uint64_t total = 0;  // bytes of the file
  bool edited = false;
};

Result<Header> ReadHeader(Reader& r, uint64_t size) {
  char magic[sizeof kMagic];
  r.Get(magic, sizeof magic);
  if (!r.ok() || std::memcmp(magic, kMagic, sizeof magic) != 0)
    return Corrupt("snapshot: not a Croquis cache snapshot (its first bytes are not CROQUIS-KV)");
  const auto version = r.Value<uint32_t>();
  const auto order = r.Value<uint32_t>();
  const auto total = r.Value<uint64_t>();
  if (!r.ok()) return Corrupt("snapshot: the file ends in its header");
  if (order != kByteOrder) return Unsupported("snapshot: written on a machine of another byte order, or corrupt");
  if (version != kVersion && version != kEditedVersion)
    return Unsupported("snapshot: format version " + std::to_string(version) + ", this build reads versions " +
                       std::to_string(kVersion) + " and " + std::to_string(kEditedVersion));
  if (total != size)
    return Corrupt("snapshot: the file should have " + std::to_string(total) + " bytes, it has " +
                   std::to_string(size));
  return Header{total, version == kEditedVersion};
}

// Where the tokens of an edited cache stand; the bytes of the section.
Result<uint64_t> ReadEdits(Reader& r, EditMap& edits, int64_t slots) {
  const auto bytes = r.Begin(kEdit, 0);
  const auto count = r.Value<uint64_t>();
  const auto insert_at = r.Value<int64_t>();
  // A segment holds a token at least, so this bounds what is taken.
  if (!bytes || !r.ok() || count > uint64_t(slots) || *bytes != 16 + kSegmentBytes * count)
    return Corrupt("snapshot: the section of edits is damaged");
  std::vector<EditSegment> segments;
  for (uint64_t i = 0; i < count && r.ok(); ++i) {
    EditSegment s;
    s.begin = r.Value<int64_t>(), s.end = r.Value<int64_t>(), s.shift = r.Value<int64_t>();
    segments.push_back(s);
  }
  if (!r.ok()) return Corrupt("snapshot: the file ends in its edits");
  if (!edits.Restore(std::move(segments), insert_at, slots))
    return Corrupt("snapshot: its edits put tokens where none can stand");
  if (!r.End()) return Corrupt("snapshot: the edits fail their checksum");
  return kSectionBytes + *bytes;
}

// The configuration section, which must equal `description`; the length in tokens.
Result<uint64_t> ReadConfig(Reader& r, const std::string& description) {
  const auto bytes = r.Begin(kConf, 0);
  if (!bytes || *bytes < 8) return Corrupt("snapshot: the configuration section is damaged");
  const auto length = r.Value<uint64_t>();
  // A longer text than ours cannot be equal; its beginning is enough to say where it differs.
  std::string text(size_t(std::min<uint64_t>(*bytes - 8, description.size() + 256)), '\0');
  r.Get(text.data(), text.size());
  if (!r.ok()) return Corrupt("snapshot: the file ends in its configuration");
  CROQUIS_CHECK_OK(CompareConfig(text, description));
  if (!r.End()) return Corrupt("snapshot: the configuration fails its checksum");
  return length;
}

Result<std::unique_ptr<KvCache::Impl>> ReadAll(Source& source, const CacheConfig& expected) {
  Reader r(source);
  CROQUIS_TRY(const Header header, ReadHeader(r, source.size()));
  CROQUIS_TRY(auto plan, Plan::Make(expected));
  const std::string description = Describe(*plan);
  CROQUIS_TRY(const uint64_t length, ReadConfig(r, description));
  if (length > uint64_t(expected.capacity))
    return OutOfRange("snapshot: it holds " + std::to_string(length) + " tokens, this cache takes " +
                      std::to_string(expected.capacity) + "; load it with a larger capacity");
  const Sizes sizes = SizesAt(*plan, description, int64_t(length));
  EditMap edits;
  uint64_t edit_bytes = 0;
  if (header.edited) {
    CROQUIS_TRY(edit_bytes, ReadEdits(r, edits, int64_t(length)));
  }
  if (sizes.total + edit_bytes != header.total)
    return Corrupt("snapshot: " + std::to_string(length) + " tokens take " + std::to_string(sizes.total + edit_bytes) +
                   " bytes, the file has " + std::to_string(header.total));
  CROQUIS_TRY(const Report full, plan->Formula(int64_t(length)));
  CROQUIS_CHECK_OK(CheckMemory(full.total(), "the snapshot's cache"));
  auto impl = std::make_unique<KvCache::Impl>(plan);
  impl->length = int64_t(length);
  impl->edits = std::move(edits);
  for (int64_t l = 0; l < plan->config.layers; ++l) {
    const std::string name = "layer " + std::to_string(l);
    if (r.Begin(kLayer, uint32_t(l)) != sizes.layers[size_t(l)])
      return Corrupt("snapshot: the section of " + name + " is damaged");
    CROQUIS_CHECK_OK(ReadLayer(r, *impl, l));
    if (!r.End()) return Corrupt("snapshot: " + name + " fails its checksum");
  }
  return impl;
}

// The folder a path is in.
std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == path.npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

bool WriteSnapshot(FILE* f, KvCache::Impl& impl) {
  const std::string description = Describe(*impl.plan);
  const Sizes sizes = SizesAt(*impl.plan, description, impl.length);
  const auto segments = impl.edits.segments();
  const uint64_t edit_bytes = 16 + kSegmentBytes * segments.size();
  const bool edited = impl.edits.edited();
  Writer w(f);
  w.Put(kMagic, sizeof kMagic);
  w.Value(edited ? kEditedVersion : kVersion), w.Value(kByteOrder);
  w.Value(sizes.total + (edited ? kSectionBytes + edit_bytes : 0));
  w.Begin(kConf, 0, sizes.conf);
  w.Value(uint64_t(impl.length));
  w.Put(description.data(), description.size());
  w.End();
  if (edited) {
    w.Begin(kEdit, 0, edit_bytes);
    w.Value(uint64_t(segments.size())), w.Value(impl.edits.insert_at());
    for (const EditSegment& s : segments) w.Value(s.begin), w.Value(s.end), w.Value(s.shift);
    w.End();
  }
  for (int64_t l = 0; l < impl.plan->config.layers; ++l) {
    w.Begin(kLayer, uint32_t(l), sizes.layers[size_t(l)]);
    WriteLayer(w, impl, l);
    w.End();
  }
  return w.ok();
}

Status KvCache::Save(const std::string& path) const {
  if (impl_->Pending()) return Branch()->Save(path);  // a branch holds what is committed
  std::string temporary = path + ".XXXXXX";
  const int fd = mkstemp(temporary.data());
  if (fd < 0) return IoError(SystemError("create", temporary));
  FILE* f = fdopen(fd, "wb");
  bool ok = f != nullptr && WriteSnapshot(f, *impl_) && std::fflush(f) == 0 && fchmod(fd, 0644) == 0 && fsync(fd) == 0;
  std::string message = ok ? "" : SystemError("write", temporary);
  if (f != nullptr ? std::fclose(f) != 0 : close(fd) != 0) {
    if (ok) message = SystemError("close", temporary);
    ok = false;
  }
  if (ok && std::rename(temporary.c_str(), path.c_str()) != 0) {
    message = SystemError("rename to", path);
    ok = false;
  }
  if (!ok) {
    unlink(temporary.c_str());
    return IoError(std::move(message));
  }
  // The name must survive a power cut too.
  const int folder = open(FolderOf(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return IoError(SystemError("open the folder of", path));
  const bool synced = fsync(folder) == 0;
  message = synced ? "" : SystemError("sync the folder of", path);
  close(folder);
  if (!synced) return IoError(std::move(message));
  return {};
}

Result<std::unique_ptr<KvCache>> KvCache::Load(const std::string& path, const CacheConfig& expected) {
  FILE* f = std::fopen(path.c_str(), "rbe");
  if (f == nullptr) return Error{errno == ENOENT ? Code::kNotFound : Code::kIo, SystemError("open", path)};
  struct stat info {};
  const bool regular = fstat(fileno(f), &info) == 0 && S_ISREG(info.st_mode);
  FileSource source(f, regular ? uint64_t(info.st_size) : 0);
  if (!regular) return IoError("snapshot: " + path + " is not a file");
  auto impl = ReadAll(source, expected);
  if (!impl) return Error{impl.error().code, path + ": " + impl.error().message};
  return std::unique_ptr<KvCache>(new KvCache(*std::move(impl)));
}

Result<std::unique_ptr<KvCache>> KvCache::LoadFromMemory(std::span<const std::byte> bytes,
                                                         const CacheConfig& expected) {
  MemorySource source(bytes);
  CROQUIS_TRY(auto impl, ReadAll(source, expected));
  return std::unique_ptr<KvCache>(new KvCache(std::move(impl)));
}

}  // namespace croquis::kvcache
