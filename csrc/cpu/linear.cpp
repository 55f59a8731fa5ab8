#include "cpu/linear.h"

#include <torch/library.h>

#include <algorithm>

#include "common.h"
#include "cpu/parallel.h"

namespace dynaspec::cpu {

namespace {

// Rows of x that pass over the weight together: as packed rows they stay in the L2 cache.
constexpr int64_t kXBlock = 96;
// Below this much weight a second thread costs more than it brings.
constexpr int64_t kMinBytesPerThread = 32 << 10;

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

PackedRows pack(const float* x, int64_t n, int64_t k, WeightType type, Scratch& scratch) {
  const Kernels& table = kernels();
  const int64_t stride = table.packed_stride(type, k);
  char* data = scratch.bytes(std::max<int64_t>(stride * n, 1));
  const int64_t slots = n * k < (1 << 16) ? 1 : thread_slots(n);
  for_chunks(n, slots,
             [&](int64_t i, int64_t) { table.pack_row(type, x + i * k, k, data + i * stride); });
  return {data, stride, n};
}

PackedRows pack(const at::Tensor& x, WeightType type, Scratch& scratch) {
  const at::Tensor rows = x.to(at::kFloat).contiguous();
  return pack(rows.const_data_ptr<float>(), rows.size(0), rows.size(1), type, scratch);
}

void linear(const PackedRows& x, const Weight& weight, int64_t m, float* out, int64_t ldo) {
  const Kernels& table = kernels();
  const int64_t row_bytes = std::max<int64_t>(weight.row_bytes(), 1);
  const int64_t useful = std::max<int64_t>(1, m * row_bytes / kMinBytesPerThread);
  const int64_t slots = std::min(useful, thread_slots(m));
  // Several chunks a thread, so that they end together; chunks of at least 16 rows, so that each
  // streams.
  const int64_t rows_per_chunk =
      slots == 1 ? m : std::clamp<int64_t>((m / (slots * 6) + 15) / 16 * 16, 16, 512);
  const int64_t chunks = (m + rows_per_chunk - 1) / std::max<int64_t>(rows_per_chunk, 1);
  for (int64_t i = 0; i < x.n; i += kXBlock) {
    const PackedRows part{x.data + i * x.stride, x.stride, std::min(kXBlock, x.n - i)};
    const auto rows_of = [&](int64_t c) {
      const int64_t first = c * rows_per_chunk;
      return RowSet{nullptr, first, std::clamp<int64_t>(m - first, 0, rows_per_chunk)};
    };
    for_chunks_ahead(chunks, slots, [&](int64_t c, int64_t, int64_t after) {
      const int64_t first = c * rows_per_chunk;
      const RowSet next = rows_of(after);
      RowSet rows = rows_of(c);
      rows.next = &next;
      table.dot_rows(weight, rows, part, out + i * ldo + first, ldo);
    });
  }
}

void linear(const float* x, int64_t n, const Weight& weight, int64_t m, float* out, int64_t ldo) {
  static thread_local Scratch scratch;
  linear(pack(x, n, weight.k, weight.type, scratch), weight, m, out, ldo);
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
