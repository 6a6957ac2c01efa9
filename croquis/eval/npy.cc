#include "croquis/eval/npy.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <optional>

namespace croquis::eval {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are taken from files as they are");

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr size_t kMaxDims = 32;  // NumPy's own limit before version 2

// What comes from a file and goes into a message: printable, and not much of it.
std::string Quote(std::string_view s) {
  std::string out = "'";
  for (const char c : s.substr(0, 40)) out += c >= 32 && c < 127 ? c : '?';
  return out + (s.size() > 40 ? "...'" : "'");
}

// The header: the literal of a Python dictionary, {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }.
class HeaderReader {
 public:
  explicit HeaderReader(std::string_view text) : rest_(text) {}

  Status Read() {
    if (!Take('{')) return Bad("does not start with {");
    while (!Take('}')) {
      const auto key = String();
      if (!key || !Take(':')) return Bad("wanted 'key': at " + Quote(rest_));
      if (*key == "descr" && !descr_) {
        if (Peek('[')) return Unsupported("records of several fields; save one array of plain numbers");
        descr_ = String();
        if (!descr_) return Bad("'descr' is not a string");
      } else if (*key == "fortran_order" && !fortran_) {
        fortran_ = Word("True") ? std::optional(true) : Word("False") ? std::optional(false) : std::nullopt;
        if (!fortran_) return Bad("'fortran_order' is neither True nor False");
      } else if (*key == "shape" && !shape_) {
        shape_ = Tuple();
        if (!shape_) return Bad("'shape' is not a tuple of at most 32 lengths");
      } else {
        return Bad("the key " + Quote(*key) + " is unknown or given twice");
      }
      if (!Take(',') && !Peek('}')) return Bad("wanted , or } at " + Quote(rest_));
    }
    Skip();
    if (!rest_.empty()) return Bad("something follows the }: " + Quote(rest_));
    if (!descr_ || !fortran_ || !shape_) return Bad("wanted 'descr', 'fortran_order' and 'shape'");
    return {};
  }
  std::string_view descr() const { return *descr_; }
  bool fortran() const { return *fortran_; }
  const std::vector<int64_t>& shape() const { return *shape_; }

 private:
  static Error Bad(const std::string& why) { return Corrupt("damaged header: " + why); }
  void Skip() {
    while (!rest_.empty() && (rest_[0] == ' ' || rest_[0] == '\n' || rest_[0] == '\t')) rest_.remove_prefix(1);
  }
  bool Peek(char c) {
    Skip();
    return !rest_.empty() && rest_[0] == c;
  }
  bool Take(char c) {
    if (!Peek(c)) return false;
    rest_.remove_prefix(1);
    return true;
  }
  bool Word(std::string_view word) {
    Skip();
    if (!rest_.starts_with(word)) return false;
    rest_.remove_prefix(word.size());
    return true;
  }
  std::optional<std::string_view> String() {
    Skip();
    if (rest_.empty() || (rest_[0] != '\'' && rest_[0] != '"')) return std::nullopt;
    const size_t end = rest_.find(rest_[0], 1);
    if (end == rest_.npos) return std::nullopt;
    const std::string_view text = rest_.substr(1, end - 1);
    rest_.remove_prefix(end + 1);
    return text;
  }
  std::optional<std::vector<int64_t>> Tuple() {
    std::vector<int64_t> lengths;
    if (!Take('(')) return std::nullopt;
    while (!Take(')')) {
      Skip();
      int64_t n = 0;
      const auto [end, ec] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), n);
      if (ec != std::errc() || n < 0 || lengths.size() == kMaxDims) return std::nullopt;
      lengths.push_back(n);
      rest_.remove_prefix(size_t(end - rest_.data()));
      Take('L');  // Python 2 wrote long integers so
      if (!Take(',') && !Peek(')')) return std::nullopt;
    }
    return lengths;
  }

  std::string_view rest_;
  std::optional<std::string_view> descr_;
  std::optional<bool> fortran_;
  std::optional<std::vector<int64_t>> shape_;
};

Result<simd::RowType> TypeOf(std::string_view descr) {
  if (descr == "<f4") return simd::RowType::kF32;
  if (descr == "<f2") return simd::RowType::kF16;
  if (descr == "<V2" || descr == "|V2") return simd::RowType::kBf16;
  if (descr.starts_with(">"))
    return Unsupported("big-endian numbers (" + Quote(descr) + "); save x.astype('<f4') instead");
  return Unsupported("wanted float32, float16 or bfloat16, got the type " + Quote(descr) +
                     "; save x.astype('<f4') instead");
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t n : shape) text += (text.empty() ? "" : ", ") + std::to_string(n);
  return "(" + text + ")";
}

// Moves rows of [batch, rows, heads, dim] to [batch, heads, rows, dim].
Result<Tensor> HeadsToFront(const NpyArray& a, const std::string& path) {
  const int64_t batch = a.shape[0], rows = a.shape[1], heads = a.shape[2], dim = a.shape[3];
  CROQUIS_TRY(Tensor t, MakeTensor(a.type, batch * heads, rows, dim, path));
  const int64_t bytes = dim * simd::RowTypeBytes(a.type);
  const std::byte* from = a.numbers.data();
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t h = 0; h < heads; ++h, from += bytes)
        std::memcpy(t.data() + ((b * heads + h) * rows + r) * bytes, from, size_t(bytes));
  return t;
}

}  // namespace

Result<NpyArray> ParseNpy(std::span<const std::byte> file) {
  const std::string_view bytes(reinterpret_cast<const char*>(file.data()), file.size());
  if (!bytes.starts_with(kMagic) || bytes.size() < 10) return Corrupt("not a NumPy array file (.npy)");
  const int version = uint8_t(bytes[6]);
  if (version < 1 || version > 3)
    return Unsupported("version " + std::to_string(version) + " of the format; versions 1 to 3 are read");
  const size_t start = version == 1 ? 10 : 12;
  if (bytes.size() < start) return Corrupt("cut short inside the header");
  size_t length = 0;
  for (size_t i = start; i-- > 8;) length = length << 8 | uint8_t(bytes[i]);
  if (length > bytes.size() - start) return Corrupt("cut short inside the header");
  HeaderReader header(bytes.substr(start, length));
  CROQUIS_CHECK_OK(header.Read());
  NpyArray a;
  CROQUIS_TRY(a.type, TypeOf(header.descr()));
  a.shape = header.shape();
  std::optional<int64_t> want = simd::RowTypeBytes(a.type);
  // A length of 0 makes the product 0 whatever the others are, but they must still be numbers that can be used.
  for (const int64_t n : a.shape) want = want ? CheckedMul(*want, std::max<int64_t>(1, n)) : want;
  if (!want) return Corrupt("the shape " + ShapeText(a.shape) + " has more numbers than can be counted");
  if (std::find(a.shape.begin(), a.shape.end(), 0) != a.shape.end()) want = 0;
  if (header.fortran() && a.shape.size() > 1)
    return Unsupported("Fortran order; save numpy.ascontiguousarray(x) instead");
  const int64_t have = int64_t(bytes.size() - start - length);
  if (have < *want)
    return Corrupt("cut short: the shape " + ShapeText(a.shape) + " takes " + std::to_string(*want) +
                   " bytes after the header, but there are " + std::to_string(have));
  a.numbers = file.subspan(start + length, size_t(*want));
  return a;
}

Result<Tensor> LoadNpy(const std::string& path, TensorLayout layout) {
  CROQUIS_TRY(auto file, model::MappedFile::Open(path));
  auto parsed = ParseNpy(file->bytes());
  if (!parsed) return Error{parsed.error().code, path + ": " + parsed.error().message};
  const NpyArray& a = *parsed;
  const bool rows_first = layout == TensorLayout::kRowsFirst;
  if (a.shape.size() < 2 || a.shape.size() > 4)
    return InvalidArgument(path + ": wanted [rows, dim], " +
                           (rows_first ? "[rows, heads, dim] or [batch, rows, heads, dim]"
                                       : "[heads, rows, dim] or [batch, heads, rows, dim]") +
                           ", got the shape " + ShapeText(a.shape));
  std::vector<int64_t> s(4 - a.shape.size(), 1);
  s.insert(s.end(), a.shape.begin(), a.shape.end());
  if (rows_first && a.shape.size() == 2) std::swap(s[1], s[2]);  // [rows, dim]: the heads go between
  NpyArray full = a;
  full.shape = s;
  const int64_t heads = rows_first ? s[2] : s[1], rows = rows_first ? s[1] : s[2], dim = s[3];
  Tensor t;
  if (rows_first && s[0] > 1 && heads > 1) {
    CROQUIS_TRY(t, HeadsToFront(full, path));
  } else {
    const std::byte* data = a.numbers.data();
    if (reinterpret_cast<uintptr_t>(data) % size_t(simd::RowTypeBytes(a.type)) != 0) {
      CROQUIS_CHECK_OK(CheckMemory(int64_t(a.numbers.size()), path));
      t.buffer = Buffer(a.numbers.size());
      std::memcpy(t.buffer.data(), data, a.numbers.size());
      data = t.buffer.data();
    } else {
      t.file = std::move(file);
    }
    t.view = {data, a.type, s[0] * heads, rows, dim, rows * dim, dim};
    if (rows_first && heads > 1) t.view.head_stride = dim, t.view.row_stride = heads * dim;
  }
  t.batch = s[0];
  t.batched = a.shape.size() == 4;
  t.headed = a.shape.size() >= 3;
  return t;
}

Result<NpyFile> NpyFile::Make(const std::vector<int64_t>& shape, const std::string& what) {
  std::string dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  std::optional<int64_t> bytes = int64_t(sizeof(float));
  for (const int64_t n : shape) {
    dict += std::to_string(n) + ", ";
    bytes = bytes ? CheckedMul(*bytes, n) : bytes;
  }
  dict += "), }";
  if (!bytes) return OutOfRange(what + ": more numbers than can be counted");
  // Blanks up to a multiple of 64, which keeps the numbers aligned where the file is mapped, and a line's end.
  const size_t start = 10, length = (start + dict.size() + 1 + 63) / 64 * 64 - start;
  dict.resize(length - 1, ' ');
  const std::string header =
      std::string(kMagic) + '\x01' + '\0' + char(length & 0xFF) + char(length >> 8) + dict + '\n';
  CROQUIS_CHECK_OK(CheckMemory(*bytes + int64_t(header.size()), what));
  NpyFile file;
  file.header_ = header.size();
  file.buffer_ = Buffer(header.size() + size_t(*bytes));
  std::memcpy(file.buffer_.data(), header.data(), header.size());
  return file;
}

}  // namespace croquis::eval
