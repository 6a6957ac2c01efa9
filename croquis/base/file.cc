#include "croquis/base/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

namespace croquis {
namespace {

namespace fs = std::filesystem;

std::string TemporaryName(const std::string& path) { return path + ".tmp." + std::to_string(::getpid()); }

}  // namespace

Status CheckWritable(const std::string& path) {
  std::error_code ec;
  if (fs::is_directory(path, ec)) return IoError("cannot write " + path + ": it is a folder; name a file");
  const std::string temporary = TemporaryName(path);
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return IoError("cannot write " + path + ": " + std::strerror(errno));
  ::close(fd);
  ::unlink(temporary.c_str());
  return {};
}

Status WriteFileAtomic(const std::string& path, std::string_view bytes) {
  const std::string temporary = TemporaryName(path);
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return IoError("cannot write " + path + ": " + std::strerror(errno));
  const auto fail = [&] {
    const std::string why = std::strerror(errno);
    ::unlink(temporary.c_str());
    return IoError("cannot write " + path + ": " + why + "; what was there before is unchanged");
  };
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::write(fd, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int saved = errno;
      ::close(fd);
      errno = saved;
      return fail();
    }
    done += size_t(n);
  }
  if (::fsync(fd) != 0 || ::close(fd) != 0) return fail();
  if (::rename(temporary.c_str(), path.c_str()) != 0) return fail();
  return {};
}

}  // namespace croquis
