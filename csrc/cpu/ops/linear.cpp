#include "cpu/ops/linear.h"

#include <torch/library.h>

#include "common.h"
#include "cpu/kernels/formats.h"

namespace dynaspec::cpu {

namespace {

Format dense_format(const char* op, const char* name, const at::Tensor& weight) {
  switch (weight.scalar_type()) {
    case at::kFloat:
      return Format::kFloat32;
    case at::kBFloat16:
      return Format::kBFloat16;
    case at::kHalf:
      return Format::kFloat16;
    case at::kChar:
      return Format::kInt8;
    default:
      TORCH_CHECK_VALUE(false, op, ": ", name,
                        ": expected float32, bfloat16, float16 or int8, got ", describe(weight));
  }
}

}  // namespace

Format packed_format(const char* op, int64_t format) {
  TORCH_CHECK_VALUE(
      format >= 0 && format < kNumFormats && info(static_cast<Format>(format)).pack != nullptr, op,
      ": format: expected that of packed rows, got ", format);
  return static_cast<Format>(format);
}

Weight describe_weight(const char* op, const char* name, const at::Tensor& weight,
                       const at::Tensor& scale, int64_t format, int64_t columns) {
  DYNASPEC_EXPECT(weight.dim() == 2 && weight.is_contiguous() && weight.device().is_cpu(), op, name,
                  "a contiguous matrix [rows, k] on the CPU", weight);
  if (format >= 0) {
    const Format form = packed_format(op, format);
    const FormatInfo& facts = info(form);
    TORCH_CHECK_VALUE(columns > 0 && facts.fits(columns), op, ": ", name,
                      ": expected rows of a multiple of ", facts.values, " values in ", facts.name,
                      ", got ", columns);
    DYNASPEC_EXPECT(
        weight.scalar_type() == at::kByte && weight.size(1) == facts.row_bytes(columns), op, name,
        "uint8 [rows, " + std::to_string(facts.row_bytes(columns)) + "] (" + facts.name + ")",
        weight);
    return {static_cast<const char*>(weight.const_data_ptr()), form, columns,
            facts.row_bytes(columns)};
  }
  const Format form = dense_format(op, name, weight);
  Weight described{static_cast<const char*>(weight.const_data_ptr()), form, weight.size(1),
                   info(form).row_bytes(weight.size(1))};
  const bool scaled = scale.defined() && scale.numel() != 0;
  if (form == Format::kInt8) {
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

PackedRows pack(const at::Tensor& x, Format format, Scratch& scratch) {
  const at::Tensor rows = x.to(at::kFloat).contiguous();
  return pack(rows.const_data_ptr<float>(), rows.size(0), rows.size(1), format, scratch);
}

namespace {

at::Tensor linear_op(const at::Tensor& x, const at::Tensor& weight,
                     const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& scale,
                     int64_t format) {
  Weight w = describe_weight("linear", "weight", weight, scale.value_or(at::Tensor()), format,
                             x.dim() == 2 ? x.size(1) : 0);
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
  linear(pack(x, w.format, scratch), w, weight.size(0), out.mutable_data_ptr<float>(),
         weight.size(0));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(dynaspec, CPU, m) { m.impl("linear", linear_op); }

}  // namespace dynaspec::cpu
