// The program itself, run as users run it: for tests.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

extern char** environ;

namespace croquis::apps {
namespace fs = std::filesystem;
using nlohmann::json;

struct Outcome {
  int code = -1;
  std::string out, err;
  json Json() const { return json::parse(out, nullptr, false); }
};

// Runs the program. `on_start`: called with the process once it has written something.
inline Outcome Croquis(const std::vector<std::string>& args, void (*on_output)(pid_t) = nullptr) {
  int out[2], err[2];
  if (::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(err, O_CLOEXEC) != 0) return {};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  posix_spawn_file_actions_adddup2(&actions, err[1], 2);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  std::vector<std::string> words = {CROQUIS_BINARY};
  words.insert(words.end(), args.begin(), args.end());
  std::vector<char*> argv;
  for (std::string& w : words) argv.push_back(w.data());
  argv.push_back(nullptr);
  pid_t pid = 0;
  Outcome result;
  if (::posix_spawn(&pid, CROQUIS_BINARY, &actions, nullptr, argv.data(), environ) != 0) return result;
  ::close(out[1]);
  ::close(err[1]);
  posix_spawn_file_actions_destroy(&actions);
  pollfd fds[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
  for (int open = 2; open > 0;) {
    if (::poll(fds, 2, 240'000) <= 0) {
      ::kill(pid, SIGKILL);
      break;
    }
    for (int i = 0; i < 2; i++) {
      if (fds[i].fd < 0 || fds[i].revents == 0) continue;
      char block[4096];
      const ssize_t n = ::read(fds[i].fd, block, sizeof(block));
      if (n <= 0) {
        ::close(fds[i].fd);
        fds[i].fd = -1;
        open--;
        continue;
      }
      (i == 0 ? result.out : result.err).append(block, size_t(n));
      if (i == 0 && on_output != nullptr) {
        on_output(pid);
        on_output = nullptr;
      }
    }
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  return result;
}

class EndToEnd : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("croquis_cli_test." + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  std::string Write(const std::string& name, const std::string& bytes) const {
    std::ofstream(Path(name), std::ios::binary) << bytes;
    return Path(name);
  }
  static std::string Read(const std::string& path) {
    std::stringstream s;
    s << std::ifstream(path, std::ios::binary).rdbuf();
    return s.str();
  }
  fs::path folder_;
  const std::string model_ = CROQUIS_SOURCE_DIR "/models/croquis-7m";
  const std::string book_ = CROQUIS_SOURCE_DIR "/models/texts/frankenstein.txt";
};

// Arguments that the program refuses: its exit code, and a word of its message.
struct Refusal {
  std::vector<std::string> args;
  int code;
  const char* says;
};
// Nothing on standard output, and a message that begins with the program's name.
inline void ExpectRefused(const Refusal& c) {
  const Outcome r = Croquis(c.args);
  std::string line;
  for (const std::string& a : c.args) line += a + " ";
  EXPECT_EQ(r.code, c.code) << line << "\n" << r.err;
  EXPECT_NE(r.err.find(c.says), std::string::npos) << line << "\n" << r.err;
  EXPECT_EQ(r.err.rfind("croquis: ", 0), 0u) << line << "\n" << r.err;
  EXPECT_EQ(r.out, "") << line;
}

inline void ExpectColumns(const json& o, std::initializer_list<const char*> columns) {
  ASSERT_TRUE(o.is_object());
  for (const char* key : {"machine", "commit", "threads", "rows"}) EXPECT_TRUE(o.contains(key)) << key;
  ASSERT_FALSE(o["rows"].empty());
  for (const json& row : o["rows"]) {
    for (const char* c : columns) {
      EXPECT_TRUE(row.contains(c)) << c;
    }
  }
}

}  // namespace croquis::apps
