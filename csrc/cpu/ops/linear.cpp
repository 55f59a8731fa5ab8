#include "cpu/ops/linear.h"

#include <optional>

#include "cpu/kernels/formats.h"

namespace dynaspec::cpu {
namespace {

std::optional<Format> dense_format(const Tensor& weight) {
  if (is(weight, Dtype::kFloat32)) return Format::kFloat32;
  if (is(weight, Dtype::kBFloat16)) return Format::kBFloat16;
  if (is(weight, Dtype::kFloat16)) return Format::kFloat16;
  if (is(weight, Dtype::kInt8)) return Format::kInt8;
  return std::nullopt;
}

}  // namespace

Format packed_format(const char* op, int64_t format) {
  DYNASPEC_CHECK(
      format >= 0 && format < kNumFormats && info(static_cast<Format>(format)).pack != nullptr, op,
      ": format: expected that of packed rows, got ", format);
  return static_cast<Format>(format);
}

Weight describe_packed(const char* op, const char* name, const Tensor& weight, int64_t format,
                       int64_t columns) {
  const Format form = packed_format(op, format);
  const FormatInfo& facts = info(form);
  DYNASPEC_CHECK(columns > 0 && facts.fits(columns), op, ": ", name,
                 ": expected rows of a multiple of ", facts.values, " values in ", facts.name,
                 ", got ", columns);
  const int64_t row_bytes = facts.row_bytes(columns);
  DYNASPEC_EXPECT(
      weight.dim() == 2 && weight.is_contiguous() && weight.is_cpu() && is(weight, Dtype::kUInt8) &&
          weight.size(1) == row_bytes,
      op, name,
      "contiguous uint8 [rows, " + std::to_string(row_bytes) + "] (" + facts.name + ") on the CPU",
      weight);
  return {data<char>(weight), form, columns, row_bytes};
}

Weight describe_weight(const char* op, const char* name, const Tensor& weight,
                       const Tensor* scale) {
  DYNASPEC_EXPECT(weight.dim() == 2 && weight.is_contiguous() && weight.is_cpu(), op, name,
                  "a contiguous matrix [rows, k] on the CPU", weight);
  const std::optional<Format> form = dense_format(weight);
  DYNASPEC_EXPECT(form.has_value(), op, name, "float32, bfloat16, float16 or int8", weight);
  Weight described{data<char>(weight), *form, weight.size(1),
                   info(*form).row_bytes(weight.size(1))};
  const bool scaled = scale != nullptr && !is_empty(*scale);
  if (form == Format::kInt8) {
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

Weight describe_weight(const char* op, const char* name, const Tensor& weight, const Tensor* scale,
                       int64_t format, const Tensor& x) {
  if (format < 0) return describe_weight(op, name, weight, scale);
  return describe_packed(op, name, weight, format, x.dim() == 2 ? x.size(1) : 0);
}

Tensor wide_bias(const char* op, const char* name, const Tensor& bias, int64_t size) {
  DYNASPEC_EXPECT(has_shape(bias, {size}) && is_floating_point(bias) && bias.is_cpu(), op, name,
                  "floating-point " + shape_text({size}), bias);
  return as_float32(bias);
}

PackedRows pack(const Tensor& x, Format format, Scratch& scratch) {
  const Tensor rows = as_float32(x);
  return pack(data<float>(rows), rows.size(0), rows.size(1), format, scratch);
}

namespace {

Tensor linear_op(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                 const std::optional<Tensor>& scale, int64_t format) {
  constexpr const char* op = "linear";
  Weight w =
      describe_weight(op, "weight", weight, scale.has_value() ? &*scale : nullptr, format, x);
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
  linear(pack(x, w.format, scratch), w, m, mutable_data<float>(out), m);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CPU, m) { m.impl("linear", TORCH_BOX(&linear_op)); }

}  // namespace dynaspec::cpu
