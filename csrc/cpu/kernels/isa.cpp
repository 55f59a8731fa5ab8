#include "cpu/kernels/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define DYNASPEC_X86 1
#include <cpuid.h>
#endif

namespace dynaspec::cpu {
namespace {

constexpr const char* kNames[kLevels] = {"scalar", "avx2", "avx_vnni", "avx512", "avx512_bf16"};

#ifdef DYNASPEC_X86
// Before version 18 clang's __builtin_cpu_supports does not know the name.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

bool has_avx_vnni() {
#ifdef DYNASPEC_HAS_AVX_VNNI
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1u << 4) != 0;
#else
  return false;
#endif
}
#endif

// Can the processor run a level?
bool available(Level level) {
#ifdef DYNASPEC_X86
  __builtin_cpu_init();
  switch (level) {
    case Level::kScalar:
      return true;
    case Level::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    case Level::kAvxVnni:
      return available(Level::kAvx2) && has_avx_vnni();
    case Level::kAvx512:
      return available(Level::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq");
    case Level::kAvx512Bf16:
      return available(Level::kAvx512) && __builtin_cpu_supports("avx512bf16") &&
             __builtin_cpu_supports("avx512vnni");
  }
#endif
  return level == Level::kScalar;
}

Level choose() {
  const char* named = std::getenv("DYNASPEC_CPU_ISA");
  const std::string asked = named == nullptr ? "" : named;
  for (int i = kLevels - 1; i >= 0; --i) {
    const Level level = static_cast<Level>(i);
    if (asked.empty() && available(level)) return level;
    if (asked != kNames[i]) continue;
    if (available(level)) return level;
    throw std::runtime_error("DYNASPEC_CPU_ISA: this processor lacks " + asked + "; it has " +
                             available_levels());
  }
  throw std::runtime_error("DYNASPEC_CPU_ISA: expected one of " + available_levels() + ", got '" +
                           asked + "'");
}

}  // namespace

const char* level_name(Level level) { return kNames[static_cast<int>(level)]; }

Level level() {
  static const Level chosen = choose();
  return chosen;
}

std::string available_levels() {
  std::string names;
  for (int i = 0; i < kLevels; ++i) {
    if (available(static_cast<Level>(i)))
      names += (names.empty() ? "" : ",") + std::string(kNames[i]);
  }
  return names;
}

}  // namespace dynaspec::cpu
