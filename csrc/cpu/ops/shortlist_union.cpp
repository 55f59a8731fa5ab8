#include "cpu/ops/shortlist_union.h"

#include <algorithm>
#include <limits>
#include <tuple>

namespace dynaspec::cpu {
namespace {

constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max() - 64;

}  // namespace

Blocks select_union(const char* op, const Tensor& cluster_scores, const Tensor& cluster_offsets,
                    const Tensor& extra_rows, int64_t core_rows, int64_t budget) {
  DYNASPEC_EXPECT(
      cluster_offsets.dim() == 1 && is(cluster_offsets, Dtype::kInt32) && cluster_offsets.is_cpu(),
      op, "cluster_offsets", "int32 [M + 1] on the CPU", cluster_offsets);
  DYNASPEC_EXPECT(extra_rows.dim() == 1 && is(extra_rows, Dtype::kInt32) && extra_rows.is_cpu(), op,
                  "extra_rows", "int32 [r] on the CPU", extra_rows);
  const Tensor offsets_row = as_contiguous(cluster_offsets), extras_row = as_contiguous(extra_rows);
  const int64_t borders = offsets_row.numel();
  UnionInput in{nullptr,
                0,
                std::max<int64_t>(borders - 1, 0),
                borders == 0 ? nullptr : data<int32_t>(offsets_row),
                data<int32_t>(extras_row),
                extras_row.numel(),
                core_rows,
                budget};
  for (int64_t c = 0; c < in.clusters; ++c) {
    DYNASPEC_CHECK(in.offsets[c] >= 0 && in.offsets[c] <= in.offsets[c + 1], op,
                   ": cluster_offsets: expected ascending borders from 0 on, got ", in.offsets[c],
                   " before ", in.offsets[c + 1], " at ", c);
  }
  DYNASPEC_CHECK(core_rows >= 0 && core_rows <= kMaxRows, op,
                 ": core_rows: expected 0 or more rows, got ", core_rows);
  DYNASPEC_CHECK(budget >= 0, op, ": budget: expected 0 or more rows, got ", budget);
  for (int64_t i = 0; i < in.num_extras; ++i) {
    DYNASPEC_CHECK(in.extras[i] >= 0 && in.extras[i] < kMaxRows, op,
                   ": extra_rows: expected rows from 0 on, got ", in.extras[i], " at ", i);
  }
  std::optional<Tensor> scores;
  if (!is_empty(cluster_scores)) {
    DYNASPEC_EXPECT(cluster_scores.dim() == 2 && is(cluster_scores, Dtype::kFloat32) &&
                        cluster_scores.size(1) == in.clusters && cluster_scores.is_cpu(),
                    op, "cluster_scores",
                    "float32 [n, " + std::to_string(in.clusters) + "] on the CPU", cluster_scores);
    scores = as_contiguous(cluster_scores);
    in.scores = data<float>(*scores);
    in.n = scores->size(0);
  }
  Blocks selected;
  DYNASPEC_CHECK(select_blocks(in, selected), op, ": cluster_scores: expected numbers, got a NaN");
  return selected;
}

Tensor blocks_tensor(const Blocks& selected) {
  Tensor blocks = empty({selected.count(), 2}, Dtype::kInt32, cpu_place());
  std::copy(selected.borders.begin(), selected.borders.end(), mutable_data<int32_t>(blocks));
  return blocks;
}

Tensor size_tensor(const Blocks& selected) {
  Tensor size = empty({}, Dtype::kInt64, cpu_place());
  *mutable_data<int64_t>(size) = selected.size;
  return size;
}

namespace {

std::tuple<Tensor, Tensor> shortlist_union(const Tensor& cluster_scores,
                                           const Tensor& cluster_offsets, const Tensor& extra_rows,
                                           int64_t core_rows, int64_t budget) {
  const Blocks selected = select_union("shortlist_union", cluster_scores, cluster_offsets,
                                       extra_rows, core_rows, budget);
  return {blocks_tensor(selected), size_tensor(selected)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CPU, m) {
  m.impl("shortlist_union", TORCH_BOX(&shortlist_union));
}

}  // namespace dynaspec::cpu
