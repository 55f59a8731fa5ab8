// RMS norms, and the drafter's input projection, of few rows: what costs little beside a draft
// step's products as long as nothing but arithmetic is paid for.
//
// Layout: rows are contiguous float32. drafter_input packs the p normed parts of a row side by
// side, [n, p d], and makes one pass over fc [d, p d].
#include <torch/library.h>

#include <string>

#include "common.h"
#include "cpu/kernels/decoder_kernels.h"
#include "cpu/ops/linear.h"

namespace dynaspec::cpu {

namespace {

void expect_rows(const char* op, const char* name, const at::Tensor& t, int64_t rows, int64_t d) {
  DYNASPEC_EXPECT(
      t.dim() == 2 && t.size(0) == rows && t.size(1) == d && t.scalar_type() == at::kFloat &&
          t.is_contiguous() && t.device().is_cpu(),
      op, name,
      "contiguous float32 [" + std::to_string(rows) + ", " + std::to_string(d) + "] on the CPU", t);
}

void check_eps(const char* op, double eps) {
  TORCH_CHECK_VALUE(eps >= 0 && eps < 1e30, op,
                    ": eps: expected a finite number of 0 or more, got ", eps);
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const char* op = "rms_norm";
  DYNASPEC_EXPECT(x.dim() == 2 && x.size(1) > 0, op, "x", "[n, d]", x);
  const int64_t n = x.size(0), d = x.size(1);
  expect_rows(op, "x", x, n, d);
  DYNASPEC_EXPECT(weight.scalar_type() == at::kFloat && weight.dim() == 1 && weight.size(0) == d &&
                      weight.is_contiguous() && weight.device().is_cpu(),
                  op, "weight", "contiguous float32 [" + std::to_string(d) + "] on the CPU",
                  weight);
  check_eps(op, eps);
  at::Tensor out = at::empty_like(x);
  const float* from = x.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const LayerKernels& table = *kernels().layer;
  for (int64_t i = 0; i < n; ++i) {
    table.rms_norm(from + i * d, weight.const_data_ptr<float>(), d, static_cast<float>(eps),
                   to + i * d);
  }
  return out;
}

// out_i = fc [norm_0(f_i); norm_1(e_i); ...; norm_p-1(e_(p-2)n+i)] + gate * f_i
at::Tensor drafter_input(const at::Tensor& features, const at::Tensor& embedded,
                         const at::Tensor& norms, const at::Tensor& fc, const at::Tensor& gate,
                         double eps) {
  const char* op = "drafter_input";
  DYNASPEC_EXPECT(norms.dim() == 2 && norms.size(0) >= 1 && norms.size(1) > 0, op, "norms",
                  "[p, d]", norms);
  const int64_t parts = norms.size(0), d = norms.size(1);
  const int64_t n = features.dim() == 2 ? features.size(0) : 0;
  expect_rows(op, "norms", norms, parts, d);
  expect_rows(op, "features", features, n, d);
  expect_rows(op, "embedded", embedded, (parts - 1) * n, d);
  DYNASPEC_EXPECT(
      fc.dim() == 2 && fc.size(0) == d && fc.size(1) == parts * d && fc.scalar_type() != at::kChar,
      op, "fc",
      "float32, bfloat16 or float16 [" + std::to_string(d) + ", " + std::to_string(parts * d) + "]",
      fc);
  DYNASPEC_EXPECT(gate.scalar_type() == at::kFloat && gate.dim() == 1 && gate.size(0) == d &&
                      gate.is_contiguous() && gate.device().is_cpu(),
                  op, "gate", "contiguous float32 [" + std::to_string(d) + "] on the CPU", gate);
  check_eps(op, eps);
  const Weight weight = describe_weight(op, "fc", fc, {});
  const LayerKernels& table = *kernels().layer;
  const float* f = features.const_data_ptr<float>();
  const float* e = embedded.const_data_ptr<float>();
  const float* scale = norms.const_data_ptr<float>();
  static thread_local Scratch scratch;
  float* x = reinterpret_cast<float*>(scratch.bytes(std::max<int64_t>(n * parts * d, 1) * 4));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t p = 0; p < parts; ++p) {
      const float* row = p == 0 ? f + i * d : e + ((p - 1) * n + i) * d;
      table.rms_norm(row, scale + p * d, d, static_cast<float>(eps), x + (i * parts + p) * d);
    }
  }
  at::Tensor out = at::empty({n, d}, at::kFloat);
  float* y = out.mutable_data_ptr<float>();
  if (n == 0) return out;
  linear(x, n, weight, d, y, d);
  const float* g = gate.const_data_ptr<float>();
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < d; ++j) y[i * d + j] += g[j] * f[i * d + j];
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(dynaspec, CPU, m) {
  m.impl("rms_norm", rms_norm);
  m.impl("drafter_input", drafter_input);
}

}  // namespace dynaspec::cpu
