// The shortlisted LM head: checks and outputs.
#include "cpu/kernels/head.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "common.h"
#include "cpu/ops/linear.h"
#include "cpu/ops/shortlist_union.h"

namespace dynaspec::cpu {
namespace {

// A head whose row ids, if they had to be copied, live as long as it does.
struct OwnedHead : Head {
  std::optional<Tensor> ids;
};

OwnedHead describe_head(const char* op, const Tensor& hidden, const Tensor& head,
                        const Tensor& head_scale, const Tensor& row_ids, int64_t format,
                        bool gather) {
  OwnedHead described;
  described.weight = describe_weight(op, "head", head, &head_scale, format, hidden);
  described.rows = head.size(0);
  described.row_ids = nullptr;
  described.gather = gather;
  DYNASPEC_EXPECT(
      hidden.dim() == 2 && hidden.size(1) == described.weight.k && hidden.is_cpu() &&
          is_activation(hidden),
      op, "hidden",
      "float32, bfloat16 or float16 [n, " + std::to_string(described.weight.k) + "] on the CPU",
      hidden);
  if (gather) {
    DYNASPEC_CHECK(!is_empty(row_ids) && described.weight.scale == nullptr, op,
                   ": gather: expected row_ids, and a head without a scale");
    described.rows = row_ids.numel();
  }
  if (!is_empty(row_ids)) {
    DYNASPEC_EXPECT(
        is(row_ids, Dtype::kInt32) && has_shape(row_ids, {described.rows}) && row_ids.is_cpu(), op,
        "row_ids", "int32 " + shape_text({described.rows}) + " on the CPU, or empty", row_ids);
    described.ids = as_contiguous(row_ids);
    described.row_ids = data<int32_t>(*described.ids);
  }
  return described;
}

void check_blocks(const char* op, const int32_t* borders, int64_t blocks, int64_t rows) {
  int32_t last = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const int32_t lo = borders[2 * b], hi = borders[2 * b + 1];
    DYNASPEC_CHECK(lo >= last && hi >= lo && hi <= rows, op,
                   ": blocks: expected ascending, disjoint ranges within [0, ", rows, "), got [",
                   lo, ", ", hi, ") at ", b);
    last = hi;
  }
}

// The gathered rows of some blocks lie within the weight's `rows`.
void check_gathered(const char* op, const Head& head, int64_t rows, const int32_t* borders,
                    int64_t blocks) {
  for (int64_t b = 0; head.gather && b < blocks; ++b) {
    for (int64_t r = borders[2 * b]; r < borders[2 * b + 1]; ++r) {
      DYNASPEC_CHECK(head.row_ids[r] >= 0 && head.row_ids[r] < rows, op,
                     ": row_ids: expected rows of the head, below ", rows, ", got ",
                     head.row_ids[r], " at ", r);
    }
  }
}

// Blocks that the caller gave, of a head whose weight has `rows` rows.
Selection select(const char* op, const Tensor& blocks, const Head& head, int64_t rows) {
  DYNASPEC_EXPECT(
      blocks.dim() == 2 && blocks.size(1) == 2 && is(blocks, Dtype::kInt32) && blocks.is_cpu(), op,
      "blocks", "int32 [b, 2] on the CPU", blocks);
  const Tensor in_order = as_contiguous(blocks);
  const int32_t* borders = data<int32_t>(in_order);
  check_blocks(op, borders, blocks.size(0), head.rows);
  check_gathered(op, head, rows, borders, blocks.size(0));
  return Selection(borders, blocks.size(0));
}

void check_size(const char* op, const Selection& selection) {
  DYNASPEC_CHECK(selection.size() >= 1, op, ": blocks: expected at least one row, got none");
}

void check_finite(const char* op, int64_t bad_row) {
  DYNASPEC_CHECK(bad_row < 0, op, ": hidden: expected finite logits, got NaN or infinity in row ",
                 bad_row);
}

struct Best {
  Tensor log_q, ids, lse;
};

Best topk(const char* op, const Tensor& hidden, const Head& head, const Selection& selection,
          int64_t k, double temperature) {
  check_temperature(op, temperature);
  DYNASPEC_CHECK(k >= 1, op, ": k: expected at least 1, got ", k);
  check_size(op, selection);
  k = std::min(k, selection.size());
  const int64_t n = hidden.size(0);
  Best best{empty({n, k}, Dtype::kFloat32, cpu_place()), empty({n, k}, Dtype::kInt64, cpu_place()),
            empty({n}, Dtype::kFloat32, cpu_place())};
  static thread_local Scratch scratch;
  check_finite(op, head_topk(head, pack(hidden, head.weight.format, scratch), selection, k,
                             static_cast<float>(temperature), mutable_data<float>(best.log_q),
                             mutable_data<int64_t>(best.ids), mutable_data<float>(best.lse)));
  return best;
}

std::tuple<Tensor, Tensor, Tensor> shortlist_topk(const Tensor& hidden, const Tensor& head,
                                                  const Tensor& head_scale, const Tensor& row_ids,
                                                  const Tensor& blocks, int64_t k,
                                                  double temperature, int64_t format, bool gather) {
  constexpr const char* op = "shortlist_topk";
  const OwnedHead described = describe_head(op, hidden, head, head_scale, row_ids, format, gather);
  const Best best =
      topk(op, hidden, described, select(op, blocks, described, head.size(0)), k, temperature);
  return {best.log_q, best.ids, best.lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> draft_head(
    const Tensor& hidden, const Tensor& head, const Tensor& head_scale, const Tensor& row_ids,
    const Tensor& cluster_scores, const Tensor& cluster_offsets, const Tensor& extra_rows,
    int64_t core_rows, int64_t budget, int64_t k, double temperature, int64_t format, bool gather) {
  constexpr const char* op = "draft_head";
  const OwnedHead described = describe_head(op, hidden, head, head_scale, row_ids, format, gather);
  const Blocks selected =
      select_union(op, cluster_scores, cluster_offsets, extra_rows, core_rows, budget);
  check_blocks(op, selected.borders.data(), selected.count(), described.rows);
  check_gathered(op, described, head.size(0), selected.borders.data(), selected.count());
  const Selection selection(selected.borders.data(), selected.count());
  const Best best = topk(op, hidden, described, selection, k, temperature);
  return {best.log_q, best.ids, best.lse, size_tensor(selected), blocks_tensor(selected)};
}

std::tuple<Tensor, Tensor, Tensor> shortlist_log_probs(const Tensor& hidden, const Tensor& head,
                                                       const Tensor& head_scale,
                                                       const Tensor& row_ids, const Tensor& blocks,
                                                       double temperature, int64_t format,
                                                       bool gather) {
  constexpr const char* op = "shortlist_log_probs";
  check_temperature(op, temperature);
  const OwnedHead described = describe_head(op, hidden, head, head_scale, row_ids, format, gather);
  const Selection selection = select(op, blocks, described, head.size(0));
  check_size(op, selection);
  const int64_t n = hidden.size(0), size = selection.size();
  Tensor log_q = empty({n, size}, Dtype::kFloat32, cpu_place()),
         ids = empty({size}, Dtype::kInt64, cpu_place()),
         lse = empty({n}, Dtype::kFloat32, cpu_place());
  static thread_local Scratch scratch;
  check_finite(op,
               head_log_probs(described, pack(hidden, described.weight.format, scratch), selection,
                              static_cast<float>(temperature), mutable_data<float>(log_q),
                              mutable_data<int64_t>(ids), mutable_data<float>(lse)));
  return {log_q, ids, lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CPU, m) {
  m.impl("shortlist_topk", TORCH_BOX(&shortlist_topk));
  m.impl("shortlist_log_probs", TORCH_BOX(&shortlist_log_probs));
  m.impl("draft_head", TORCH_BOX(&draft_head));
}

}  // namespace dynaspec::cpu
