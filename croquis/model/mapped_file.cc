#include "croquis/model/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace croquis::model {
namespace {

Error SystemError(const std::string& path, const char* what) {
  const int code = errno;
  const std::string message = path + ": cannot " + what + ": " + std::strerror(code);
  return code == ENOENT || code == ENOTDIR ? NotFound(message) : IoError(message);
}

}  // namespace

Result<std::shared_ptr<const MappedFile>> MappedFile::Open(const std::string& path) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer; regular files ignore it.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return SystemError(path, "open");
  struct stat info {};
  if (fstat(fd, &info) != 0) {
    Error error = SystemError(path, "read its size");
    close(fd);
    return error;
  }
  if (!S_ISREG(info.st_mode) || info.st_size <= 0) {
    close(fd);
    return Corrupt(path + (S_ISREG(info.st_mode) ? ": the file is empty" : ": not a regular file"));
  }
  void* data = mmap(nullptr, size_t(info.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
  if (data == MAP_FAILED) {
    Error error = SystemError(path, "map");
    close(fd);
    return error;
  }
  close(fd);
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->data_ = static_cast<const std::byte*>(data);
  file->size_ = size_t(info.st_size);
  file->path_ = path;
  return std::shared_ptr<const MappedFile>(std::move(file));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

Result<std::string> ReadTextFile(const std::string& path, int64_t limit) {
  CROQUIS_TRY(auto file, MappedFile::Open(path));
  const auto bytes = file->bytes();
  if (int64_t(bytes.size()) > limit)
    return Corrupt(path + ": " + std::to_string(bytes.size()) + " bytes, more than the " + std::to_string(limit) +
                   " that such a file may have");
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

}  // namespace croquis::model
