// What machine and which build produced a result.
#include <unistd.h>

#include <fstream>

#include "apps/commit.inc"
#include "apps/machine.h"
#include "apps/output.h"
#include "croquis/base/executor.h"
#include "croquis/simd/target.h"

namespace croquis::apps {
namespace {

std::string ProcessorName() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("model name")) {
      const size_t at = line.find(": ");
      if (at != std::string::npos) return line.substr(at + 2);
    }
  }
  return "unknown";
}

}  // namespace

int64_t CacheBytes(int level) {
  for (int index = 0; index < 8; index++) {
    const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    std::ifstream level_file(folder + "level"), size_file(folder + "size"), type_file(folder + "type");
    int l = 0;
    int64_t size = 0;
    char unit = 0;
    std::string type;
    if (!(level_file >> l) || !(size_file >> size >> unit) || !(type_file >> type)) continue;
    if (l != level || type == "Instruction") continue;
    return size * (unit == 'M' ? 1 << 20 : unit == 'K' ? 1 << 10 : 1);
  }
  return 0;
}

Json MachineInfo() {
  Json m;
  m["processor"] = ProcessorName();
  m["hardware_threads"] = HardwareThreads();
  m["l2_bytes"] = CacheBytes(2);
  m["l3_bytes"] = CacheBytes(3);
  m["memory_bytes"] = int64_t(::sysconf(_SC_PHYS_PAGES)) * int64_t(::sysconf(_SC_PAGESIZE));
  m["simd"] = simd::Name(simd::Active());
  return m;
}

std::string_view Commit() { return kCommit; }

}  // namespace croquis::apps
