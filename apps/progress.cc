#include "apps/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "apps/output.h"

namespace croquis::apps {
namespace {

int TerminalWidth() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

}  // namespace

bool WantProgress() {
  const char* term = std::getenv("TERM");
  return ::isatty(STDERR_FILENO) == 1 && term != nullptr && std::string_view(term) != "dumb";
}

bool WorthShowing(int64_t done, int64_t total, double seconds) {
  if (seconds > 2) return true;
  if (done <= 0 || seconds < 0.25) return false;  // too early to tell
  return seconds * double(total) / double(done) > 2;
}

std::string ProgressLine(const std::string& label, int64_t done, int64_t total, double seconds, int width) {
  const double share = total > 0 ? std::clamp(double(done) / double(total), 0.0, 1.0) : 0;
  std::string tail = Printf("] %3.0f %%", 100 * share);
  if (done > 0 && done < total) tail += Printf("  %.0f s left", seconds * (1 / share - 1));
  const int room = width - 1 - int(label.size()) - 2 - int(tail.size());
  if (room < 4) return Printf("%s %3.0f %%", label.c_str(), 100 * share).substr(0, size_t(std::max(width - 1, 0)));
  const int bar = std::min(room, 40), full = int(share * bar);
  return label + " [" + std::string(size_t(full), '#') + std::string(size_t(bar - full), '.') + tail;
}

Progress::Progress(std::string label, bool enabled)
    : label_(std::move(label)), enabled_(enabled), start_(Clock::now()), last_(start_) {}

Progress::~Progress() { Finish(); }

void Progress::Update(int64_t done, int64_t total) {
  if (!enabled_) return;
  const auto now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - start_).count();
  if (!shown_ && !WorthShowing(done, total, seconds)) return;
  if (shown_ && done < total && now - last_ < std::chrono::milliseconds(100)) return;
  last_ = now;
  shown_ = true;
  std::fprintf(stderr, "\r%s\033[K", ProgressLine(label_, done, total, seconds, TerminalWidth()).c_str());
  std::fflush(stderr);
}

void Progress::Finish() {
  if (shown_) {
    std::fputs("\r\033[K", stderr);
    std::fflush(stderr);
  }
  shown_ = false;
  enabled_ = false;
}

}  // namespace croquis::apps
