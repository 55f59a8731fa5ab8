#include "cpu/kernels/linear.h"

#include <algorithm>

#include "cpu/kernels/parallel.h"

namespace dynaspec::cpu {

namespace {

// Rows of x that pass over the weight together: as packed rows they stay in the L2 cache.
constexpr int64_t kXBlock = 96;
// Below this much weight a second thread costs more than it brings.
constexpr int64_t kMinBytesPerThread = 32 << 10;

}  // namespace

PackedRows pack(const float* x, int64_t n, int64_t k, Format format, Scratch& scratch) {
  const FormatKernels& table = kernels().of(format);
  const int64_t stride = table.packed_stride(k);
  char* data = scratch.bytes(std::max<int64_t>(stride * n, 1));
  const int64_t slots = n * k < (1 << 16) ? 1 : thread_slots(n);
  for_chunks(n, slots,
             [&](int64_t i, int64_t) { table.pack_row(x + i * k, k, data + i * stride); });
  return {data, stride, n};
}

void linear(const PackedRows& x, const Weight& weight, int64_t m, float* out, int64_t ldo) {
  const FormatKernels& table = kernels().of(weight.format);
  const int64_t row_bytes = std::max<int64_t>(weight.row_bytes, 1);
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
  linear(pack(x, n, weight.k, weight.format, scratch), weight, m, out, ldo);
}

}  // namespace dynaspec::cpu
