// Weights in the form in which they are multiplied: made from a file's blocks, and read row by row.
#include <torch/library.h>

#include <atomic>

#include "common.h"
#include "cpu/kernels/formats.h"
#include "cpu/kernels/parallel.h"
#include "cpu/ops/linear.h"

namespace dynaspec::cpu {

namespace {

constexpr int64_t kRowsAtOnce = 64;

// uint8 [m, row bytes] of a file's blocks -> the same bytes in the kernels' order, in `out`.
void pack_blocks(const at::Tensor& blocks, int64_t format, int64_t columns, at::Tensor& out) {
  const char* op = "pack_blocks";
  const FormatInfo& facts = info(packed_format(op, format));
  TORCH_CHECK_VALUE(columns > 0 && facts.fits(columns), op, ": columns: expected a multiple of ",
                    facts.values, " values in ", facts.name, ", got ", columns);
  const int64_t row_bytes = facts.row_bytes(columns);
  for (const auto& [name, t] :
       {std::pair<const char*, const at::Tensor&>{"blocks", blocks}, {"out", out}}) {
    DYNASPEC_EXPECT(
        t.dim() == 2 && t.scalar_type() == at::kByte && t.is_contiguous() && t.device().is_cpu() &&
            t.size(0) == blocks.size(0) && t.size(1) == row_bytes,
        op, name,
        "contiguous uint8 [m, " + std::to_string(row_bytes) + "] (" + facts.name + ") on the CPU",
        t);
  }
  const int64_t m = blocks.size(0), chunks = (m + kRowsAtOnce - 1) / kRowsAtOnce;
  const uint8_t* from = blocks.const_data_ptr<uint8_t>();
  uint8_t* to = out.mutable_data_ptr<uint8_t>();
  TORCH_CHECK_VALUE(from + m * row_bytes <= to || to + m * row_bytes <= from, op,
                    ": out: expected memory of its own");
  std::atomic<int64_t> damaged{m};
  for_chunks(chunks, thread_slots(chunks), [&](int64_t c, int64_t) {
    for (int64_t r = c * kRowsAtOnce; r < std::min(m, (c + 1) * kRowsAtOnce); ++r) {
      if (facts.pack(from + r * row_bytes, columns, to + r * row_bytes)) continue;
      int64_t first = damaged.load();
      while (r < first && !damaged.compare_exchange_weak(first, r)) {
      }
    }
  });
  TORCH_CHECK_VALUE(damaged == m, op,
                    ": blocks: expected finite scales, got NaN or infinity in row ",
                    damaged.load());
}

// Rows `ids` int64 [n] in float32 [n, columns].
at::Tensor embed_rows(const at::Tensor& weight, const at::Tensor& ids, int64_t format,
                      int64_t columns) {
  const char* op = "embed_rows";
  const Weight w = describe_weight(op, "weight", weight, {}, format, columns);
  DYNASPEC_EXPECT(ids.dim() == 1 && ids.scalar_type() == at::kLong && ids.device().is_cpu() &&
                      ids.is_contiguous(),
                  op, "ids", "contiguous int64 [n] on the CPU", ids);
  TORCH_CHECK_VALUE(w.format != Format::kInt8, op, ": weight: expected rows without a scale");
  const int64_t n = ids.size(0), m = weight.size(0);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < n; ++i) {
    TORCH_CHECK_VALUE(id[i] >= 0 && id[i] < m, op, ": ids: expected rows below ", m, ", got ",
                      id[i], " at ", i);
  }
  at::Tensor out = at::empty({n, w.k}, at::kFloat);
  float* to = out.mutable_data_ptr<float>();
  const FormatInfo& facts = info(w.format);
  for_chunks(n, n * w.k < (1 << 15) ? 1 : thread_slots(n), [&](int64_t i, int64_t) {
    facts.unpack(w.data + id[i] * w.row_bytes, w.k, to + i * w.k);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(dynaspec, CPU, m) {
  m.impl("pack_blocks", pack_blocks);
  m.impl("embed_rows", embed_rows);
}

}  // namespace dynaspec::cpu
