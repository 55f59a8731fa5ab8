// Choice of the instruction-set level at run time.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/kernels/kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define DYNASPEC_X86 1
#include <cpuid.h>
#endif

namespace dynaspec::cpu {

namespace scalar {
const Kernels& table();
}
#ifdef DYNASPEC_X86
namespace avx2 {
const Kernels& table();
}
namespace avx512 {
const Kernels& table();
}
namespace avx512_bf16 {
const Kernels& table();
}
#endif

namespace {

#ifdef DYNASPEC_X86
// Before version 18 clang's __builtin_cpu_supports does not know the name.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

struct Level {
  const char* name;
  bool available;
  const Kernels& (*table)();
};

struct Levels {
  Level levels[4];
  int count = 0;
  std::string names;
};

const Levels& levels() {
  static const Levels all = [] {
    Levels found;
    auto add = [&](const char* name, bool available, const Kernels& (*table)()) {
      found.levels[found.count++] = {name, available, table};
      if (available) found.names += (found.names.empty() ? "" : ",") + std::string(name);
    };
    add("scalar", true, scalar::table);
#ifdef DYNASPEC_X86
    __builtin_cpu_init();
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const bool has_avx512 =
        has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool has_bf16 =
        has_avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
    add("avx2", has_avx2, avx2::table);
    add("avx512", has_avx512, avx512::table);
    add("avx512_bf16", has_bf16, avx512_bf16::table);
#endif
    return found;
  }();
  return all;
}

const Kernels& choose() {
  const Levels& all = levels();
  const char* asked = std::getenv("DYNASPEC_CPU_ISA");
  if (asked == nullptr || *asked == '\0') {
    for (int i = all.count - 1; i > 0; --i) {
      if (all.levels[i].available) return all.levels[i].table();
    }
    return all.levels[0].table();
  }
  for (int i = 0; i < all.count; ++i) {
    if (all.levels[i].name == std::string(asked)) {
      if (all.levels[i].available) return all.levels[i].table();
      throw std::runtime_error("DYNASPEC_CPU_ISA: this processor lacks " + std::string(asked) +
                               "; it has " + all.names);
    }
  }
  throw std::runtime_error("DYNASPEC_CPU_ISA: expected one of " + all.names + ", got '" + asked +
                           "'");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const char* available_levels() { return levels().names.c_str(); }

}  // namespace dynaspec::cpu
