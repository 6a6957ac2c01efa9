#include "croquis/simd/target.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace croquis::simd {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"scalar", "avx2", "avxvnni", "avx512", "amx"};
constexpr int kUnknown = -1;

#if defined(__x86_64__)
struct CpuidLeaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  CpuidLeaf(unsigned leaf, unsigned sub) {
    if (!__get_cpuid_count(leaf, sub, &a, &b, &c, &d)) a = b = c = d = 0;
  }
};

// Which register states the operating system saves; an instruction set counts only when its registers are among them.
uint64_t SavedStates() {
  uint32_t lo, hi;
  asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (uint64_t(hi) << 32) | lo;
}

constexpr bool HasAll(uint64_t word, uint64_t bits) { return (word & bits) == bits; }
constexpr uint64_t Bit(int i) { return uint64_t{1} << i; }

// Tile registers must be asked for, once a process (Linux, arch_prctl(2): ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
bool AmxPermitted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Target Highest() {
  const CpuidLeaf one(1, 0), seven(7, 0), seven1(7, 1);
  if (!HasAll(one.c, Bit(27))) return Target::kScalar;  // OSXSAVE
  const uint64_t saved = SavedStates();
  constexpr uint64_t kYmm = Bit(1) | Bit(2), kZmm = Bit(5) | Bit(6) | Bit(7), kTiles = Bit(17) | Bit(18);
  const bool avx2 = HasAll(saved, kYmm) && HasAll(one.c, Bit(12) | Bit(28) | Bit(29)) && HasAll(seven.b, Bit(5));
  if (!avx2) return Target::kScalar;  // FMA, AVX, F16C; AVX2
  // F, DQ, BW, VL; VBMI, VNNI; BF16.
  const bool avx512 = HasAll(saved, kZmm) && HasAll(seven.b, Bit(16) | Bit(17) | Bit(30) | Bit(31)) &&
                      HasAll(seven.c, Bit(1) | Bit(11)) && HasAll(seven1.a, Bit(5));
  if (!avx512) return HasAll(seven1.a, Bit(4)) ? Target::kAvxVnni : Target::kAvx2;
  const bool amx = HasAll(saved, kTiles) && HasAll(seven.d, Bit(22) | Bit(24) | Bit(25)) && AmxPermitted();
  return amx ? Target::kAmx : Target::kAvx512;
}
bool HasAvxVnni() { return HasAll(CpuidLeaf(7, 1).a, Bit(4)); }
#else
Target Highest() { return Target::kScalar; }
bool HasAvxVnni() { return false; }
#endif

struct ReachableList {
  std::array<Target, 5> list{};
  size_t count = 0;
  ReachableList() {
    const Target top = Highest();
    for (int t = 0; t <= int(top); ++t) {
      // Some machines have AVX-512 VNNI but not its ymm encoding.
      if (Target(t) == Target::kAvxVnni && !HasAvxVnni()) continue;
      list[count++] = Target(t);
    }
  }
};

Result<Target> Find(std::string_view name) {
  std::string reachable;
  for (const Target t : Reachable()) {
    if (Name(t) == name) return t;
    reachable += (reachable.empty() ? "" : ", ") + std::string(Name(t));
  }
  for (const std::string_view known : kNames) {
    if (known == name) {
      return Unsupported("instruction set '" + std::string(name) +
                         "' cannot run here (machine, kernel or build); use one of: " + reachable);
    }
  }
  return InvalidArgument("unknown instruction set '" + std::string(name) + "'; use one of: " + reachable);
}

// The environment's choice, or else the best; VerifyForced tells of the environment's errors.
Target Default() {
  const char* env = std::getenv("CROQUIS_SIMD");
  if (env != nullptr && *env != '\0')
    if (const auto target = Find(env)) return *target;
  return Reachable().back();
}

// What Active returns once it has been asked or told: kernels are looked up several times a page.
constinit std::atomic<int> active{kUnknown};

}  // namespace

std::string_view Name(Target target) { return kNames[size_t(target)]; }

std::span<const Target> Reachable() {
  static const ReachableList reachable;
  return {reachable.list.data(), reachable.count};
}

Target Active() {
  int target = active.load(std::memory_order_relaxed);
  if (target == kUnknown) {
    const int first = int(Default());
    // Force may have come between: its choice, then in target, stays.
    if (active.compare_exchange_strong(target, first)) target = first;
  }
  return Target(target);
}

Status Force(std::string_view name) {
  if (name.empty()) {
    active.store(int(Reachable().back()), std::memory_order_relaxed);
    return {};
  }
  CROQUIS_TRY(const Target target, Find(name));
  active.store(int(target), std::memory_order_relaxed);
  return {};
}

Status VerifyForced() {
  const char* env = std::getenv("CROQUIS_SIMD");
  if (env == nullptr || *env == '\0') return {};
  const auto target = Find(env);
  if (!target) return Error{target.error().code, "CROQUIS_SIMD: " + target.error().message};
  return {};
}

}  // namespace croquis::simd
