// Instruction-set levels. One binary holds the kernels of all.
#pragma once

#include <string>

// Compilers that know AVX-VNNI: without it the level is left out of the binary.
#if defined(__x86_64__) && \
    (defined(__clang__) ? __clang_major__ >= 12 : defined(__GNUC__) && __GNUC__ >= 11)
#define DYNASPEC_HAS_AVX_VNNI 1
#endif

namespace dynaspec::cpu {

// Worst first.
enum class Level : int { kScalar, kAvx2, kAvxVnni, kAvx512, kAvx512Bf16 };

constexpr int kLevels = 5;

const char* level_name(Level level);

// The level in use: the best one that the processor has, or DYNASPEC_CPU_ISA. Throws
// std::runtime_error for a level that is unknown or missing here.
Level level();

// Levels that this processor can run, worst first, separated by commas.
std::string available_levels();

}  // namespace dynaspec::cpu
