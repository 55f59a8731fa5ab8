// The head ops on CUDA: checks of shapes, dtypes and devices, outputs, workspaces. Only
// bindings.h, this file and commit_bindings.cpp include PyTorch's headers, its stable ones.
//
// Values on the device cannot be checked without waiting for it. Where the CPU ops raise, these
// therefore go on in a defined way: rows outside the head and ids of -1 are padding, a NaN shows in
// the result. Outputs whose size depends on data have a fixed capacity and are padded: blocks with
// empty ranges, paths with -1, the best k of fewer than k rows with log-probability -inf and id -1.
#include "cuda/bindings.h"

#include <optional>
#include <tuple>

namespace dynaspec::cuda {
namespace {

// Row numbers of a union without a head to bound them.
constexpr int64_t kMaxRows = int64_t{1} << 20;
// Largest number of clusters that the selection's keys can tell apart.
constexpr int64_t kMaxClusters = 0xffff;

// Thread blocks that stream the head: two a multiprocessor, whatever the number of rows, so that a
// row's result does not depend on the rows beside it.
int64_t stream_grid(const Place& device) {
  int count = 0;
  check_launch("stream_grid",
               cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device.index));
  return 2 * count;
}

struct Head {
  Tensor weight;
  std::optional<Tensor> scale, row_ids;  // keep alive
  dynaspec_head raw{};

  Head(const char* op, const Tensor& head, const Tensor& head_scale, const Tensor& ids)
      : weight(take_weight(op, "head", head, -1, place_of(head))) {
    const Place device = place_of(head);
    const int64_t rows = weight.size(0);
    DYNASPEC_CHECK(rows > 0 && weight.size(1) > 0, op, ": head: expected rows, got none");
    DYNASPEC_CHECK(!is(weight, Dtype::kInt8) || !is_empty(head_scale), op,
                   ": head_scale: expected a scale with int8 rows, got none");
    if (!is_empty(head_scale))
      scale = take(op, "head_scale", head_scale, Dtype::kFloat32, {rows}, device);
    if (!is_empty(ids)) row_ids = take(op, "row_ids", ids, Dtype::kInt32, {rows}, device);
    DYNASPEC_CHECK(is(weight, Dtype::kInt8) || is_empty(head_scale), op,
                   ": head_scale: expected none with floating-point rows, got ",
                   describe(head_scale));
    check_int8_width(op, "head", weight);
    raw.weight = data<void>(weight);
    raw.scale = static_cast<const float*>(data_or_null(scale));
    raw.row_ids = static_cast<const int32_t*>(data_or_null(row_ids));
    raw.rows = rows;
    raw.dim = weight.size(1);
    raw.dtype = dtype_code(weight);
  }
};

struct Union {
  Tensor blocks, size;
};

Union select_union(const char* op, const Tensor& cluster_scores, const Tensor& cluster_offsets,
                   const Tensor& extra_rows, int64_t core_rows, int64_t budget, int64_t rows) {
  const Place device = place_of(cluster_offsets);
  DYNASPEC_CHECK(core_rows >= 0 && core_rows <= rows, op,
                 ": core_rows: expected 0 or more rows within the head, got ", core_rows);
  DYNASPEC_CHECK(budget >= 0, op, ": budget: expected 0 or more rows, got ", budget);
  const Tensor offsets = take(op, "cluster_offsets", cluster_offsets, Dtype::kInt32, {-1}, device);
  const Tensor extra = take(op, "extra_rows", extra_rows, Dtype::kInt32, {-1}, device);
  int64_t clusters = std::max<int64_t>(offsets.size(0) - 1, 0), n = 0;
  std::optional<Tensor> scores;
  if (!is_empty(cluster_scores)) {
    scores = take(op, "cluster_scores", cluster_scores, Dtype::kFloat32, {-1, clusters}, device);
    n = scores->size(0);
  } else {
    clusters = 0;
  }
  DYNASPEC_CHECK(clusters <= kMaxClusters, op, ": cluster_offsets: expected at most ", kMaxClusters,
                 " clusters, got ", clusters);
  const int64_t capacity = dynaspec_union_capacity(rows, clusters, extra.size(0), core_rows);
  Union out{empty({capacity, 2}, Dtype::kInt32, device), empty({}, Dtype::kInt64, device)};
  const Tensor count = empty({1}, Dtype::kInt32, device);
  const Tensor space = workspace(dynaspec_union_workspace(rows, clusters), device);
  check_launch(
      op, dynaspec_shortlist_union(
              static_cast<const float*>(data_or_null(scores)), n, clusters, data<int32_t>(offsets),
              data<int32_t>(extra), extra.size(0), core_rows, rows, budget,
              mutable_data<int32_t>(out.blocks), capacity, mutable_data<int32_t>(count),
              mutable_data<int64_t>(out.size), mutable_data<void>(space), stream(device)));
  return out;
}

std::tuple<Tensor, Tensor> shortlist_union(const Tensor& cluster_scores,
                                           const Tensor& cluster_offsets, const Tensor& extra_rows,
                                           int64_t core_rows, int64_t budget) {
  const auto guard = device_of("shortlist_union", "cluster_offsets", cluster_offsets);
  const Union out = select_union("shortlist_union", cluster_scores, cluster_offsets, extra_rows,
                                 core_rows, budget, kMaxRows);
  return {out.blocks, out.size};
}

std::tuple<Tensor, Tensor, Tensor> best(const char* op, const Tensor& hidden_rows, const Head& head,
                                        const Tensor& blocks, int64_t k, double temperature) {
  check_temperature(op, temperature);
  DYNASPEC_CHECK(k >= 1 && k <= DYNASPEC_MAX_TOPK, op, ": k: expected 1 to ",
                 static_cast<int64_t>(DYNASPEC_MAX_TOPK), ", got ", k);
  const Place device = place_of(head.weight);
  const Tensor hidden = take_rows(op, "hidden", hidden_rows, head.raw.dim, device);
  const Tensor borders = take(op, "blocks", blocks, Dtype::kInt32, {-1, 2}, device);
  DYNASPEC_CHECK(borders.size(0) > 0, op, ": blocks: expected at least one block, got none");
  const int64_t n = hidden.size(0), grid = stream_grid(device);
  Tensor log_q = empty({n, k}, Dtype::kFloat32, device), ids = empty({n, k}, Dtype::kInt64, device),
         lse = empty({n}, Dtype::kFloat32, device);
  const int64_t most = std::min<int64_t>(n, DYNASPEC_MAX_HEAD_ROWS);
  const Tensor space =
      workspace(dynaspec_head_workspace(&head.raw, most, borders.size(0), k, grid), device);
  for (int64_t i = 0; i < n; i += DYNASPEC_MAX_HEAD_ROWS) {
    const int64_t rows = std::min<int64_t>(n - i, DYNASPEC_MAX_HEAD_ROWS);
    check_launch(op,
                 dynaspec_shortlist_topk(
                     &head.raw, row(hidden, i), dtype_code(hidden), rows, data<int32_t>(borders),
                     borders.size(0), k, static_cast<float>(temperature), grid,
                     mutable_data<float>(log_q) + i * k, mutable_data<int64_t>(ids) + i * k,
                     mutable_data<float>(lse) + i, mutable_data<void>(space), stream(device)));
  }
  return {log_q, ids, lse};
}

std::tuple<Tensor, Tensor, Tensor> shortlist_topk(const Tensor& hidden, const Tensor& head,
                                                  const Tensor& head_scale, const Tensor& row_ids,
                                                  const Tensor& blocks, int64_t k,
                                                  double temperature, int64_t format, bool gather) {
  const char* op = "shortlist_topk";
  check_dense(op, format, gather);
  const auto guard = device_of(op, "head", head);
  return best(op, hidden, Head(op, head, head_scale, row_ids), blocks, k, temperature);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> draft_head(
    const Tensor& hidden, const Tensor& head, const Tensor& head_scale, const Tensor& row_ids,
    const Tensor& cluster_scores, const Tensor& cluster_offsets, const Tensor& extra_rows,
    int64_t core_rows, int64_t budget, int64_t k, double temperature, int64_t format, bool gather) {
  const char* op = "draft_head";
  check_dense(op, format, gather);
  const auto guard = device_of(op, "head", head);
  const Head described(op, head, head_scale, row_ids);
  const Union selected = select_union(op, cluster_scores, cluster_offsets, extra_rows, core_rows,
                                      budget, described.raw.rows);
  const auto [log_q, ids, lse] = best(op, hidden, described, selected.blocks, k, temperature);
  return {log_q, ids, lse, selected.size, selected.blocks};
}

std::tuple<Tensor, Tensor, Tensor> shortlist_log_probs_padded(
    const Tensor& hidden_rows, const Tensor& head, const Tensor& head_scale, const Tensor& row_ids,
    const Tensor& blocks, int64_t width, double temperature) {
  const char* op = "shortlist_log_probs";
  const auto guard = device_of(op, "head", head);
  check_temperature(op, temperature);
  DYNASPEC_CHECK(width >= 1, op, ": width: expected at least 1, got ", width);
  const Head described(op, head, head_scale, row_ids);
  const Place device = place_of(head);
  const Tensor hidden = take_rows(op, "hidden", hidden_rows, described.raw.dim, device);
  const Tensor borders = take(op, "blocks", blocks, Dtype::kInt32, {-1, 2}, device);
  DYNASPEC_CHECK(borders.size(0) > 0, op, ": blocks: expected at least one block, got none");
  const int64_t n = hidden.size(0), grid = stream_grid(device);
  Tensor log_q = empty({n, width}, Dtype::kFloat32, device),
         ids = empty({width}, Dtype::kInt64, device), lse = empty({n}, Dtype::kFloat32, device);
  if (n == 0) torch::stable::fill_(ids, -1);  // no launch writes them
  const int64_t most = std::min<int64_t>(n, DYNASPEC_MAX_HEAD_ROWS);
  const Tensor space =
      workspace(dynaspec_head_workspace(&described.raw, most, borders.size(0), 0, grid), device);
  for (int64_t i = 0; i < n; i += DYNASPEC_MAX_HEAD_ROWS) {
    const int64_t rows = std::min<int64_t>(n - i, DYNASPEC_MAX_HEAD_ROWS);
    check_launch(
        op, dynaspec_shortlist_log_probs(
                &described.raw, row(hidden, i), dtype_code(hidden), rows, data<int32_t>(borders),
                borders.size(0), width, static_cast<float>(temperature), grid,
                mutable_data<float>(log_q) + i * width, mutable_data<int64_t>(ids),
                mutable_data<float>(lse) + i, mutable_data<void>(space), stream(device)));
  }
  return {log_q, ids, lse};
}

// The one op that waits for the device: its result is as wide as the selection, a number that lies
// there. Policies that know a bound call shortlist_log_probs_padded instead.
std::tuple<Tensor, Tensor, Tensor> shortlist_log_probs(const Tensor& hidden, const Tensor& head,
                                                       const Tensor& head_scale,
                                                       const Tensor& row_ids, const Tensor& blocks,
                                                       double temperature, int64_t format,
                                                       bool gather) {
  check_dense("shortlist_log_probs", format, gather);
  const Tensor borders =
      take("shortlist_log_probs", "blocks", blocks, Dtype::kInt32, {-1, 2}, place_of(head));
  const Tensor here = torch::stable::to(borders, torch::headeronly::DeviceType::CPU);
  const int32_t* border = data<int32_t>(here);
  int64_t size = 0;
  for (int64_t b = 0; b < here.size(0); ++b) size += border[2 * b + 1] - border[2 * b];
  DYNASPEC_CHECK(size >= 1, "shortlist_log_probs: blocks: expected at least one row, got none");
  return shortlist_log_probs_padded(hidden, head, head_scale, row_ids, blocks, size, temperature);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dynaspec, m) {
  m.def(
      "shortlist_log_probs_padded(Tensor hidden, Tensor head, Tensor head_scale, Tensor row_ids,"
      " Tensor blocks, int width, float temperature) -> (Tensor log_q, Tensor ids, Tensor lse)");
}

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CUDA, m) {
  m.impl("shortlist_union", TORCH_BOX(&shortlist_union));
  m.impl("shortlist_topk", TORCH_BOX(&shortlist_topk));
  m.impl("shortlist_log_probs", TORCH_BOX(&shortlist_log_probs));
  m.impl("shortlist_log_probs_padded", TORCH_BOX(&shortlist_log_probs_padded));
  m.impl("draft_head", TORCH_BOX(&draft_head));
}

}  // namespace dynaspec::cuda
