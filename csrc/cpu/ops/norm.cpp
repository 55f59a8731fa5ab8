// Norms of few rows and the drafter's input: checks and outputs.
#include "cpu/kernels/norm.h"

#include "common.h"
#include "cpu/ops/linear.h"

namespace dynaspec::cpu {
namespace {

const float* floats(const char* op, const char* name, const Tensor& t,
                    std::initializer_list<int64_t> shape) {
  DYNASPEC_EXPECT(has_shape(t, shape) && is(t, Dtype::kFloat32) && t.is_contiguous() && t.is_cpu(),
                  op, name, "contiguous float32 " + shape_text(shape) + " on the CPU", t);
  return data<float>(t);
}

float check_eps(const char* op, double eps) {
  DYNASPEC_CHECK(eps >= 0 && eps < 1e30, op, ": eps: expected a finite number of 0 or more, got ",
                 eps);
  return static_cast<float>(eps);
}

Tensor rms_norm_op(const Tensor& x, const Tensor& weight, double eps) {
  constexpr const char* op = "rms_norm";
  DYNASPEC_EXPECT(x.dim() == 2 && x.size(1) > 0, op, "x", "[n, d]", x);
  const int64_t n = x.size(0), d = x.size(1);
  const float* from = floats(op, "x", x, {n, d});
  const float* scale = floats(op, "weight", weight, {d});
  const float epsilon = check_eps(op, eps);
  Tensor out = empty({n, d}, Dtype::kFloat32, cpu_place());
  rms_norm(from, scale, n, d, epsilon, mutable_data<float>(out));
  return out;
}

Tensor drafter_input_op(const Tensor& features, const Tensor& embedded, const Tensor& norms,
                        const Tensor& fc, const Tensor& gate, double eps) {
  constexpr const char* op = "drafter_input";
  DYNASPEC_EXPECT(norms.dim() == 2 && norms.size(0) >= 1 && norms.size(1) > 0, op, "norms",
                  "[p, d]", norms);
  DrafterInput in{};
  in.parts = norms.size(0);
  in.d = norms.size(1);
  in.n = features.dim() == 2 ? features.size(0) : 0;
  in.norms = floats(op, "norms", norms, {in.parts, in.d});
  in.features = floats(op, "features", features, {in.n, in.d});
  in.embedded = floats(op, "embedded", embedded, {(in.parts - 1) * in.n, in.d});
  DYNASPEC_EXPECT(has_shape(fc, {in.d, in.parts * in.d}) && !is(fc, Dtype::kInt8), op, "fc",
                  "float32, bfloat16 or float16 " + shape_text({in.d, in.parts * in.d}), fc);
  in.gate = floats(op, "gate", gate, {in.d});
  in.eps = check_eps(op, eps);
  in.fc = describe_weight(op, "fc", fc);
  Tensor out = empty({in.n, in.d}, Dtype::kFloat32, cpu_place());
  drafter_input(in, mutable_data<float>(out));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm_op));
  m.impl("drafter_input", TORCH_BOX(&drafter_input_op));
}

}  // namespace dynaspec::cpu
