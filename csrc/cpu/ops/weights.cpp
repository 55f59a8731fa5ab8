// Weights in the form in which they are multiplied: made from a file's blocks, and read row by row.
#include <algorithm>
#include <atomic>

#include "common.h"
#include "cpu/kernels/formats.h"
#include "cpu/kernels/parallel.h"
#include "cpu/ops/linear.h"

namespace dynaspec::cpu {

namespace {

constexpr int64_t kRowsAtOnce = 64;

// uint8 [m, row bytes] of a file's blocks -> the same bytes in the kernels' order, in `out`.
void pack_blocks(const Tensor& blocks, int64_t format, int64_t columns, Tensor& out) {
  const char* op = "pack_blocks";
  const FormatInfo& facts = info(packed_format(op, format));
  DYNASPEC_CHECK(columns > 0 && facts.fits(columns), op, ": columns: expected a multiple of ",
                 facts.values, " values in ", facts.name, ", got ", columns);
  const int64_t row_bytes = facts.row_bytes(columns);
  for (const auto& [name, t] :
       {std::pair<const char*, const Tensor&>{"blocks", blocks}, {"out", out}}) {
    DYNASPEC_EXPECT(
        t.dim() == 2 && is(t, Dtype::kUInt8) && t.is_contiguous() && t.is_cpu() &&
            t.size(0) == blocks.size(0) && t.size(1) == row_bytes,
        op, name,
        "contiguous uint8 [m, " + std::to_string(row_bytes) + "] (" + facts.name + ") on the CPU",
        t);
  }
  const int64_t m = blocks.size(0), chunks = (m + kRowsAtOnce - 1) / kRowsAtOnce;
  const uint8_t* from = data<uint8_t>(blocks);
  uint8_t* to = mutable_data<uint8_t>(out);
  DYNASPEC_CHECK(from + m * row_bytes <= to || to + m * row_bytes <= from, op,
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
  DYNASPEC_CHECK(damaged == m, op, ": blocks: expected finite scales, got NaN or infinity in row ",
                 damaged.load());
}

// Rows `ids` int64 [n] in float32 [n, columns].
Tensor embed_rows(const Tensor& weight, const Tensor& ids, int64_t format, int64_t columns) {
  const char* op = "embed_rows";
  const Weight w = describe_packed(op, "weight", weight, format, columns);
  DYNASPEC_EXPECT(ids.dim() == 1 && is(ids, Dtype::kInt64) && ids.is_cpu() && ids.is_contiguous(),
                  op, "ids", "contiguous int64 [n] on the CPU", ids);
  const int64_t n = ids.size(0), m = weight.size(0);
  const int64_t* id = data<int64_t>(ids);
  for (int64_t i = 0; i < n; ++i) {
    DYNASPEC_CHECK(id[i] >= 0 && id[i] < m, op, ": ids: expected rows below ", m, ", got ", id[i],
                   " at ", i);
  }
  Tensor out = empty({n, w.k}, Dtype::kFloat32, cpu_place());
  float* to = mutable_data<float>(out);
  const FormatInfo& facts = info(w.format);
  for_chunks(n, n * w.k < (1 << 15) ? 1 : thread_slots(n), [&](int64_t i, int64_t) {
    facts.unpack(w.data + id[i] * w.row_bytes, w.k, to + i * w.k);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CPU, m) {
  m.impl("pack_blocks", TORCH_BOX(&pack_blocks));
  m.impl("embed_rows", TORCH_BOX(&embed_rows));
}

}  // namespace dynaspec::cpu
