#include "cpu/kernels/norm.h"

#include <algorithm>

#include "cpu/kernels/decoder_kernels.h"
#include "cpu/kernels/linear.h"

namespace dynaspec::cpu {

void rms_norm(const float* x, const float* weight, int64_t n, int64_t d, float eps, float* out) {
  const LayerKernels& table = *kernels().layer;
  for (int64_t i = 0; i < n; ++i) table.rms_norm(x + i * d, weight, d, eps, out + i * d);
}

void drafter_input(const DrafterInput& in, float* out) {
  if (in.n == 0) return;
  const LayerKernels& table = *kernels().layer;
  const int64_t n = in.n, d = in.d, parts = in.parts;
  static thread_local Scratch scratch;
  float* x = reinterpret_cast<float*>(scratch.bytes(n * parts * d * sizeof(float)));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t p = 0; p < parts; ++p) {
      const float* row = p == 0 ? in.features + i * d : in.embedded + ((p - 1) * n + i) * d;
      table.rms_norm(row, in.norms + p * d, d, in.eps, x + (i * parts + p) * d);
    }
  }
  linear(x, n, in.fc, d, out, d);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < d; ++j) out[i * d + j] += in.gate[j] * in.features[i * d + j];
  }
}

}  // namespace dynaspec::cpu
