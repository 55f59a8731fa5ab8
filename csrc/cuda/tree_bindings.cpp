// The tree ops on CUDA: checks and outputs. As in bindings.cpp nothing waits for the device, so the
// values of a tree are not checked here; a path has the tree's size and ends with -1.
#include <tuple>
#include <vector>

#include "cuda/bindings.h"

namespace dynaspec::cuda {
namespace {

// parents [n] of a tree.
Tensor take_tree(const char* op, const Tensor& parents) {
  const Tensor taken = take(op, "parents", parents, Dtype::kInt64, {-1}, place_of(parents));
  DYNASPEC_CHECK(taken.size(0) >= 1 && taken.size(0) <= DYNASPEC_MAX_TREE, op,
                 ": parents: expected a tree of 1 to ", static_cast<int64_t>(DYNASPEC_MAX_TREE),
                 " rows, got ", taken.size(0));
  return taken;
}

std::tuple<Tensor, Tensor> tree_mask(const Tensor& parents) {
  const char* op = "tree_mask";
  const auto guard = device_of(op, "parents", parents);
  const Tensor tree = take_tree(op, parents);
  const int64_t n = tree.size(0);
  const Place device = place_of(tree);
  Tensor mask = empty({n, n}, Dtype::kBool, device), depth = empty({n}, Dtype::kInt64, device);
  check_launch(op, dynaspec_tree_mask(data<int64_t>(tree), n, mutable_data<bool>(mask),
                                      mutable_data<int64_t>(depth), stream(device)));
  return {mask, depth};
}

Tensor greedy_walk(const Tensor& tokens, const Tensor& parents, const Tensor& choices) {
  const char* op = "greedy_walk";
  const auto guard = device_of(op, "parents", parents);
  const Tensor tree = take_tree(op, parents);
  const int64_t n = tree.size(0);
  const Place device = place_of(tree);
  const Tensor token = take(op, "tokens", tokens, Dtype::kInt64, {n}, device);
  const Tensor choice = take(op, "choices", choices, Dtype::kInt64, {n}, device);
  Tensor path = empty({n}, Dtype::kInt64, device), length = empty({1}, Dtype::kInt64, device);
  check_launch(op, dynaspec_greedy_walk(data<int64_t>(token), data<int64_t>(tree),
                                        data<int64_t>(choice), n, mutable_data<int64_t>(path),
                                        mutable_data<int64_t>(length), stream(device)));
  return path;
}

// Both walks: `draft` null for deterministic drafts.
std::tuple<Tensor, Tensor> walk(const char* op, const Tensor& tokens, const Tensor& parents,
                                const Tensor& probs, const Tensor& uniforms,
                                const dynaspec_draft* draft) {
  const Tensor tree = take_tree(op, parents);
  const int64_t n = tree.size(0);
  const Place device = place_of(tree);
  const Tensor token = take(op, "tokens", tokens, Dtype::kInt64, {n}, device);
  const Tensor p = take(op, "probs", probs, Dtype::kFloat32, {n, -1}, device);
  const Tensor u = take(op, "uniforms", uniforms, Dtype::kFloat32, {n}, device);
  DYNASPEC_CHECK(p.size(1) > 0, op, ": probs: expected a vocabulary, got none");
  dynaspec_walk given{};
  given.tokens = data<int64_t>(token);
  given.parents = data<int64_t>(tree);
  given.n = n;
  given.vocab = p.size(1);
  given.probs = data<float>(p);
  given.uniforms = data<float>(u);
  Tensor path = empty({n}, Dtype::kInt64, device), length = empty({1}, Dtype::kInt64, device),
         residual = empty({given.vocab}, Dtype::kFloat32, device);
  check_launch(op, dynaspec_stochastic_walk(&given, draft, mutable_data<int64_t>(path),
                                            mutable_data<int64_t>(length),
                                            mutable_data<float>(residual), stream(device)));
  return {path, residual};
}

std::tuple<Tensor, Tensor> stochastic_walk(const Tensor& tokens, const Tensor& parents,
                                           const Tensor& probs, const Tensor& uniforms) {
  const char* op = "stochastic_walk";
  const auto guard = device_of(op, "parents", parents);
  return walk(op, tokens, parents, probs, uniforms, nullptr);
}

std::tuple<Tensor, Tensor> sampled_walk(const Tensor& tokens, const Tensor& parents,
                                        const Tensor& probs, const Tensor& uniforms,
                                        const Tensor& q, const Tensor& q_ids, const Tensor& q_rows,
                                        bool replacement) {
  const char* op = "sampled_walk";
  const auto guard = device_of(op, "parents", parents);
  const Place device = place_of(parents);
  const bool dense = is_empty(q_ids);
  const Tensor values = take(op, "q", q, Dtype::kFloat32, {-1, -1}, device);
  const Tensor rows = take(op, "q_rows", q_rows, Dtype::kInt64, {parents.numel()}, device);
  DYNASPEC_EXPECT(
      !dense || values.size(0) == 0 || (probs.dim() == 2 && values.size(1) == probs.size(1)), op,
      "q", "as many columns as probs where q_ids is empty", q);
  std::optional<Tensor> ids;
  if (!dense)
    ids = take(op, "q_ids", q_ids, Dtype::kInt64, {values.size(0), values.size(1)}, device);
  dynaspec_draft draft{};
  draft.values = data<float>(values);
  draft.ids = static_cast<const int64_t*>(data_or_null(ids));
  draft.rows = values.size(0);
  draft.size = values.size(1);
  draft.row_of = data<int64_t>(rows);
  draft.replacement = replacement;
  return walk(op, tokens, parents, probs, uniforms, &draft);
}

void kv_commit(const std::vector<Tensor>& caches, int64_t base_len, const Tensor& rows) {
  const char* op = "kv_commit";
  const auto guard = device_of(op, "rows", rows);
  DYNASPEC_CHECK(base_len >= 0, op, ": base_len: expected 0 or more, got ", base_len);
  const Place device = place_of(rows);
  const Tensor path = take(op, "rows", rows, Dtype::kInt64, {-1}, device);
  std::vector<dynaspec_cache> raw;
  for (const Tensor& cache : caches) {
    DYNASPEC_EXPECT(cache.dim() > 0 && cache.is_contiguous() && place_of(cache) == device &&
                        cache.size(0) >= base_len,
                    op, "caches",
                    "contiguous tensors of more than " + std::to_string(base_len) + " rows on " +
                        place_text(device),
                    cache);
    if (cache.numel() == 0) continue;
    raw.push_back({mutable_data<void>(cache), cache.size(0), row_bytes(cache)});
  }
  check_launch(op, dynaspec_kv_commit(raw.data(), static_cast<int64_t>(raw.size()), base_len,
                                      data<int64_t>(path), path.size(0), stream(device)));
}

std::tuple<Tensor, Tensor> topk_expand(const Tensor& parent_scores, const Tensor& log_q,
                                       int64_t width) {
  const char* op = "topk_expand";
  const auto guard = device_of(op, "log_q", log_q);
  DYNASPEC_CHECK(width > 0, op, ": width: expected 1 or more, got ", width);
  const Place device = place_of(log_q);
  const Tensor scores = take(op, "log_q", log_q, Dtype::kFloat32, {-1, -1}, device);
  const int64_t w = scores.size(0), k = scores.size(1), count = std::min(width, w * k);
  const Tensor above = take(op, "parent_scores", parent_scores, Dtype::kFloat32, {w}, device);
  Tensor index = empty({count}, Dtype::kInt64, device),
         score = empty({count}, Dtype::kFloat32, device);
  if (count == 0) return {index, score};
  DYNASPEC_CHECK(w * k <= 0xffff && count <= 1024, op,
                 ": expected at most 65,535 candidates and 1,024 chosen ones, got ", w * k, " and ",
                 count);
  check_launch(op, dynaspec_topk_expand(data<float>(above), data<float>(scores), w, k, count,
                                        mutable_data<int64_t>(index), mutable_data<float>(score),
                                        stream(device)));
  return {index, score};
}

std::tuple<Tensor, Tensor> tree_rerank(const Tensor& scores, const Tensor& parents, int64_t size) {
  const char* op = "tree_rerank";
  const auto guard = device_of(op, "parents", parents);
  DYNASPEC_CHECK(size > 0, op, ": size: expected 1 or more, got ", size);
  const Place device = place_of(parents);
  const Tensor tree = take(op, "parents", parents, Dtype::kInt64, {-1}, device);
  const int64_t n = tree.size(0), count = std::min(size, n);
  DYNASPEC_CHECK(n <= 0xffff, op, ": parents: expected at most 65,535 candidates, got ", n);
  const Tensor value = take(op, "scores", scores, Dtype::kFloat32, {n}, device);
  Tensor index = empty({count}, Dtype::kInt64, device),
         above = empty({count}, Dtype::kInt64, device);
  if (count == 0) return {index, above};
  const Tensor space = workspace(dynaspec_rerank_workspace(n), device);
  check_launch(op, dynaspec_tree_rerank(data<float>(value), data<int64_t>(tree), n, count,
                                        mutable_data<int64_t>(index), mutable_data<int64_t>(above),
                                        mutable_data<void>(space), stream(device)));
  return {index, above};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CUDA, m) {
  m.impl("tree_mask", TORCH_BOX(&tree_mask));
  m.impl("greedy_walk", TORCH_BOX(&greedy_walk));
  m.impl("stochastic_walk", TORCH_BOX(&stochastic_walk));
  m.impl("sampled_walk", TORCH_BOX(&sampled_walk));
  m.impl("kv_commit", TORCH_BOX(&kv_commit));
  m.impl("topk_expand", TORCH_BOX(&topk_expand));
  m.impl("tree_rerank", TORCH_BOX(&tree_rerank));
}

}  // namespace dynaspec::cuda
