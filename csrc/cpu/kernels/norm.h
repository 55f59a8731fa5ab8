// RMS norms, and the drafter's input projection, of few rows: plain pointers, no PyTorch. Rows are
// contiguous float32.
#pragma once

#include <cstdint>

#include "cpu/kernels/kernels.h"

namespace dynaspec::cpu {

// out_i = x_i / rms(x_i) * weight for rows x [n, d].
void rms_norm(const float* x, const float* weight, int64_t n, int64_t d, float eps, float* out);

struct DrafterInput {
  const float* features;  // [n, d]
  const float* embedded;  // [(parts - 1) n, d]
  const float* norms;     // [parts, d]
  const float* gate;      // [d]
  Weight fc;              // [d, parts d]
  int64_t n, d, parts;
  float eps;
};

// out_i = fc [norm_0(f_i); norm_1(e_i); ...; norm_p-1(e_(p-2)n+i)] + gate * f_i. The p normed parts
// of a row are packed side by side, [n, p d], for one pass over fc.
void drafter_input(const DrafterInput& in, float* out);

}  // namespace dynaspec::cpu
