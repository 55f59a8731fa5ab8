#include "cpu/ops/linear.h"

#include <torch/library.h>

#include "common.h"

namespace dynaspec::cpu {

namespace {

WeightType weight_type(const char* op, const char* name, const at::Tensor& weight) {
  switch (weight.scalar_type()) {
    case at::kFloat:
      return WeightType::kFloat32;
    case at::kBFloat16:
      return WeightType::kBFloat16;
    case at::kHalf:
      return WeightType::kFloat16;
    case at::kChar:
      return WeightType::kInt8;
    default:
      TORCH_CHECK_VALUE(false, op, ": ", name,
                        ": expected float32, bfloat16, float16 or int8, got ", describe(weight));
  }
}

}  // namespace

Weight describe_weight(const char* op, const char* name, const at::Tensor& weight,
                       const at::Tensor& scale) {
  DYNASPEC_EXPECT(weight.dim() == 2 && weight.is_contiguous() && weight.device().is_cpu(), op, name,
                  "a contiguous matrix [rows, k] on the CPU", weight);
  const WeightType type = weight_type(op, name, weight);
  Weight described{static_cast<const char*>(weight.const_data_ptr()), type, weight.size(1), nullptr,
                   nullptr};
  const bool scaled = scale.defined() && scale.numel() != 0;
  if (type == WeightType::kInt8) {
    TORCH_CHECK_VALUE(scaled, op, ": ", name, ": int8 rows need their scale, got none");
    TORCH_CHECK_VALUE(weight.size(1) <= 65536, op, ": ", name,
                      ": expected int8 rows of at most 65536 values, got ", weight.size(1));
  }
  if (scaled) {
    DYNASPEC_EXPECT(scale.scalar_type() == at::kFloat && scale.is_contiguous() &&
                        scale.dim() == 1 && scale.size(0) == weight.size(0),
                    op, "scale", "contiguous float32 [" + std::to_string(weight.size(0)) + "]",
                    scale);
    described.scale = scale.const_data_ptr<float>();
  }
  return described;
}

PackedRows pack(const at::Tensor& x, WeightType type, Scratch& scratch) {
  const at::Tensor rows = x.to(at::kFloat).contiguous();
  return pack(rows.const_data_ptr<float>(), rows.size(0), rows.size(1), type, scratch);
}

namespace {

at::Tensor linear_op(const at::Tensor& x, const at::Tensor& weight,
                     const std::optional<at::Tensor>& bias,
                     const std::optional<at::Tensor>& scale) {
  Weight w = describe_weight("linear", "weight", weight, scale.value_or(at::Tensor()));
  DYNASPEC_EXPECT(x.dim() == 2 && x.size(1) == w.k && x.device().is_cpu() && is_activation(x),
                  "linear", "x",
                  "float32, bfloat16 or float16 [n, " + std::to_string(w.k) + "] on the CPU", x);
  at::Tensor wide_bias;
  if (bias.has_value() && bias->defined()) {
    DYNASPEC_EXPECT(
        bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->is_floating_point(), "linear",
        "bias", "floating-point [" + std::to_string(weight.size(0)) + "]", *bias);
    wide_bias = bias->to(at::kFloat).contiguous();
    w.bias = wide_bias.const_data_ptr<float>();
  }
  at::Tensor out = at::empty({x.size(0), weight.size(0)}, x.options().dtype(at::kFloat));
  static thread_local Scratch scratch;
  linear(pack(x, w.type, scratch), w, weight.size(0), out.mutable_data_ptr<float>(),
         weight.size(0));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(dynaspec, CPU, m) { m.impl("linear", linear_op); }

}  // namespace dynaspec::cpu
