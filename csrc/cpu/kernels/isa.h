// Instruction-set levels. One binary holds the kernels of all.
#pragma once

#include <string>

namespace dynaspec::cpu {

// Worst first.
enum class Level : int { kScalar, kAvx2, kAvx512, kAvx512Bf16 };

constexpr int kLevels = 4;

const char* level_name(Level level);

// The level in use: the best one that the processor has, or DYNASPEC_CPU_ISA. Throws
// std::runtime_error for a level that is unknown or missing here.
Level level();

// Levels that this processor can run, worst first, separated by commas.
std::string available_levels();

}  // namespace dynaspec::cpu
