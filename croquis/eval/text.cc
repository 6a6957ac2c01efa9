#include "croquis/eval/text.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <system_error>

namespace croquis::eval {
namespace fs = std::filesystem;
namespace {

// Compressed files are a likely mistake here: the books come as .tar.xz.
std::string_view Compression(std::string_view bytes) {
  if (bytes.starts_with(std::string_view("\xFD"
                                         "7zXZ",
                                         5)))
    return "xz";
  if (bytes.starts_with("\x1F\x8B")) return "gzip";
  if (bytes.starts_with("BZh")) return "bzip2";
  if (bytes.starts_with("\x28\xB5\x2F\xFD")) return "zstd";
  if (bytes.starts_with("PK\x03\x04")) return "zip";
  return {};
}

Status CheckPlain(const std::string& path, const std::string& bytes) {
  const std::string_view kind = Compression(bytes);
  if (kind.empty()) return {};
  return Unsupported(path + " is " + std::string(kind) +
                     "-compressed; wanted plain text. Unpack it first (for .tar.xz: tar xJf " + path +
                     ") and name the file or folder that comes out");
}

}  // namespace

Result<std::string> ReadFile(const std::string& path, int64_t limit) {
  std::error_code ec;
  const fs::file_status status = fs::status(path, ec);
  if (!fs::exists(status)) return NotFound("no such file: " + path);
  if (fs::is_directory(status)) return InvalidArgument(path + " is a folder; wanted a file");
  if (fs::is_regular_file(status)) {
    const auto size = fs::file_size(path, ec);
    if (!ec && int64_t(size) > limit) {
      return OutOfRange(path + " has " + std::to_string(size) + " bytes; at most " + std::to_string(limit) +
                        " are read");
    }
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) return IoError("cannot open " + path + ": " + std::strerror(errno));
  std::string bytes;
  char block[1 << 16];
  while (in.read(block, sizeof(block)) || in.gcount() > 0) {  // pipes have no size: read until they end
    bytes.append(block, size_t(in.gcount()));
    if (int64_t(bytes.size()) > limit) return OutOfRange(path + " has more than " + std::to_string(limit) + " bytes");
  }
  if (in.bad()) return IoError("cannot read " + path + ": " + std::strerror(errno));
  return bytes;
}

Result<std::string> ReadText(const std::string& path) {
  std::error_code ec;
  if (!fs::is_directory(path, ec)) {
    CROQUIS_TRY(std::string text, ReadFile(path));
    CROQUIS_CHECK_OK(CheckPlain(path, text));
    if (text.empty()) return InvalidArgument(path + " is empty; wanted text");
    return text;
  }
  std::vector<std::string> files;
  for (fs::directory_iterator it(path, ec), end; !ec && it != end; it.increment(ec)) {
    if (it->path().extension() == ".txt") files.push_back(it->path().string());
  }
  if (ec) return IoError("cannot list " + path + ": " + ec.message());
  if (files.empty()) return NotFound("the folder " + path + " holds no *.txt file");
  std::sort(files.begin(), files.end());
  std::string all;
  for (const std::string& f : files) {
    CROQUIS_TRY(std::string text, ReadFile(f));
    CROQUIS_CHECK_OK(CheckPlain(f, text));
    if (!all.empty()) all += "\n\n";
    all += text;
  }
  if (all.empty()) return InvalidArgument("the *.txt files of " + path + " are empty; wanted text");
  return all;
}

std::string TextPrefix(const std::string& text, int64_t bytes) {
  if (bytes >= int64_t(text.size())) return text;
  size_t end = size_t(std::max<int64_t>(bytes, 0));
  while (end > 0 && (uint8_t(text[end]) & 0xC0) == 0x80) end--;  // continuation bytes belong to the character before
  return text.substr(0, end);
}

std::vector<int64_t> WindowStarts(int64_t tokens, int64_t body, int64_t limit) {
  std::vector<int64_t> starts;
  if (body <= 0) return starts;
  const int64_t have = tokens / body;
  const int64_t take = limit <= 0 ? have : std::min(limit, have);
  for (int64_t i = 0; i < take; i++) starts.push_back(i * have / take * body);
  return starts;
}

}  // namespace croquis::eval
