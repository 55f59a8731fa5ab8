#include "cpu/ops/linear.h"

#include <optional>

namespace dynaspec::cpu {
namespace {

std::optional<WeightType> weight_type(const Tensor& weight) {
  if (is(weight, Dtype::kFloat32)) return WeightType::kFloat32;
  if (is(weight, Dtype::kBFloat16)) return WeightType::kBFloat16;
  if (is(weight, Dtype::kFloat16)) return WeightType::kFloat16;
  if (is(weight, Dtype::kInt8)) return WeightType::kInt8;
  return std::nullopt;
}

}  // namespace

Weight describe_weight(const char* op, const char* name, const Tensor& weight,
                       const Tensor* scale) {
  DYNASPEC_EXPECT(weight.dim() == 2 && weight.is_contiguous() && weight.is_cpu(), op, name,
                  "a contiguous matrix [rows, k] on the CPU", weight);
  const std::optional<WeightType> type = weight_type(weight);
  DYNASPEC_EXPECT(type.has_value(), op, name, "float32, bfloat16, float16 or int8", weight);
  Weight described{data<char>(weight), *type, weight.size(1), nullptr, nullptr};
  const bool scaled = scale != nullptr && !is_empty(*scale);
  if (type == WeightType::kInt8) {
    DYNASPEC_CHECK(scaled, op, ": ", name, ": int8 rows need their scale, got none");
    DYNASPEC_CHECK(weight.size(1) <= 65536, op, ": ", name,
                   ": expected int8 rows of at most 65536 values, got ", weight.size(1));
  }
  if (scaled) {
    DYNASPEC_EXPECT(is(*scale, Dtype::kFloat32) && scale->is_contiguous() && scale->is_cpu() &&
                        has_shape(*scale, {weight.size(0)}),
                    op, "scale", "contiguous float32 " + shape_text({weight.size(0)}), *scale);
    described.scale = data<float>(*scale);
  }
  return described;
}

Tensor wide_bias(const char* op, const char* name, const Tensor& bias, int64_t size) {
  DYNASPEC_EXPECT(has_shape(bias, {size}) && is_floating_point(bias) && bias.is_cpu(), op, name,
                  "floating-point " + shape_text({size}), bias);
  return as_float32(bias);
}

PackedRows pack(const Tensor& x, WeightType type, Scratch& scratch) {
  const Tensor rows = as_float32(x);
  return pack(data<float>(rows), rows.size(0), rows.size(1), type, scratch);
}

namespace {

Tensor linear_op(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                 const std::optional<Tensor>& scale) {
  constexpr const char* op = "linear";
  Weight w = describe_weight(op, "weight", weight, scale.has_value() ? &*scale : nullptr);
  DYNASPEC_EXPECT(x.dim() == 2 && x.size(1) == w.k && x.is_cpu() && is_activation(x), op, "x",
                  "float32, bfloat16 or float16 [n, " + std::to_string(w.k) + "] on the CPU", x);
  const int64_t n = x.size(0), m = weight.size(0);
  std::optional<Tensor> wide;
  if (bias.has_value()) {
    wide = wide_bias(op, "bias", *bias, m);
    w.bias = data<float>(*wide);
  }
  Tensor out = empty({n, m}, Dtype::kFloat32, cpu_place());
  static thread_local Scratch scratch;
  linear(pack(x, w.type, scratch), w, m, mutable_data<float>(out), m);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CPU, m) { m.impl("linear", TORCH_BOX(&linear_op)); }

}  // namespace dynaspec::cpu
