// A progress bar for long work: on a terminal only, and only when more than two seconds are expected.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace croquis::apps {

class Progress {
 public:
  // `label` stands before the bar. enabled: what WantProgress says, or false for --json and tests.
  Progress(std::string label, bool enabled);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Call as often as convenient; draws at most ten times a second.
  void Update(int64_t done, int64_t total);
  // Takes the bar off the screen.
  void Finish();

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  bool enabled_, shown_ = false;
  Clock::time_point start_, last_;
};

// Whether stderr is a terminal that understands a carriage return.
bool WantProgress();
// The bar as one line of at most `width` characters: "prompt [#####.....] 50 %  2 s left".
std::string ProgressLine(const std::string& label, int64_t done, int64_t total, double seconds, int width);
// Whether work with this much done after `seconds` is expected to take more than two seconds in all.
bool WorthShowing(int64_t done, int64_t total, double seconds);

}  // namespace croquis::apps
