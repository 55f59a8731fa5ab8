// The tree ops on CUDA: checks and outputs. As in bindings.cpp nothing waits for the device, so the
// values of a tree are not checked here; a path has the tree's size and ends with -1.
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "cuda/bindings.h"

namespace dynaspec::cuda {
namespace {

// parents [n] of a tree.
Tensor take_tree(const char* op, const Tensor& parents) {
  const Tensor taken = take(op, "parents", parents, at::kLong, {-1}, parents.device());
  TORCH_CHECK_VALUE(taken.size(0) >= 1 && taken.size(0) <= DYNASPEC_MAX_TREE, op,
                    ": parents: expected a tree of 1 to ", static_cast<int64_t>(DYNASPEC_MAX_TREE),
                    " rows, got ", taken.size(0));
  return taken;
}

std::tuple<Tensor, Tensor> tree_mask(const Tensor& parents) {
  const char* op = "tree_mask";
  const auto guard = device_of(op, "parents", parents);
  const Tensor tree = take_tree(op, parents);
  const int64_t n = tree.size(0);
  Tensor mask = at::empty({n, n}, tree.options().dtype(at::kBool)), depth = at::empty_like(tree);
  check_launch(op,
               dynaspec_tree_mask(tree.const_data_ptr<int64_t>(), n, mask.mutable_data_ptr<bool>(),
                                  depth.mutable_data_ptr<int64_t>(), stream()));
  return {mask, depth};
}

Tensor greedy_walk(const Tensor& tokens, const Tensor& parents, const Tensor& choices) {
  const char* op = "greedy_walk";
  const auto guard = device_of(op, "parents", parents);
  const Tensor tree = take_tree(op, parents);
  const int64_t n = tree.size(0);
  const Tensor token = take(op, "tokens", tokens, at::kLong, {n}, tree.device());
  const Tensor choice = take(op, "choices", choices, at::kLong, {n}, tree.device());
  Tensor path = at::empty_like(tree), length = at::empty({1}, tree.options());
  check_launch(op, dynaspec_greedy_walk(
                       token.const_data_ptr<int64_t>(), tree.const_data_ptr<int64_t>(),
                       choice.const_data_ptr<int64_t>(), n, path.mutable_data_ptr<int64_t>(),
                       length.mutable_data_ptr<int64_t>(), stream()));
  return path;
}

// Both walks: `draft` null for deterministic drafts.
std::tuple<Tensor, Tensor> walk(const char* op, const Tensor& tokens, const Tensor& parents,
                                const Tensor& probs, const Tensor& uniforms,
                                const dynaspec_draft* draft) {
  const Tensor tree = take_tree(op, parents);
  const int64_t n = tree.size(0);
  const at::Device device = tree.device();
  const Tensor token = take(op, "tokens", tokens, at::kLong, {n}, device);
  const Tensor p = take(op, "probs", probs, at::kFloat, {n, -1}, device);
  const Tensor u = take(op, "uniforms", uniforms, at::kFloat, {n}, device);
  TORCH_CHECK_VALUE(p.size(1) > 0, op, ": probs: expected a vocabulary, got none");
  dynaspec_walk given{};
  given.tokens = token.const_data_ptr<int64_t>();
  given.parents = tree.const_data_ptr<int64_t>();
  given.n = n;
  given.vocab = p.size(1);
  given.probs = p.const_data_ptr<float>();
  given.uniforms = u.const_data_ptr<float>();
  Tensor path = at::empty_like(tree), length = at::empty({1}, tree.options()),
         residual = at::empty({given.vocab}, p.options());
  check_launch(op, dynaspec_stochastic_walk(&given, draft, path.mutable_data_ptr<int64_t>(),
                                            length.mutable_data_ptr<int64_t>(),
                                            residual.mutable_data_ptr<float>(), stream()));
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
  const at::Device device = parents.device();
  const bool dense = is_empty(q_ids);
  const Tensor values = take(op, "q", q, at::kFloat, {-1, -1}, device);
  const Tensor rows = take(op, "q_rows", q_rows, at::kLong, {parents.numel()}, device);
  DYNASPEC_EXPECT(
      !dense || values.size(0) == 0 || (probs.dim() == 2 && values.size(1) == probs.size(1)), op,
      "q", "as many columns as probs where q_ids is empty", q);
  Tensor ids;
  if (!dense) ids = take(op, "q_ids", q_ids, at::kLong, {values.size(0), values.size(1)}, device);
  dynaspec_draft draft{};
  draft.values = values.const_data_ptr<float>();
  draft.ids = static_cast<const int64_t*>(data_or_null(ids));
  draft.rows = values.size(0);
  draft.size = values.size(1);
  draft.row_of = rows.const_data_ptr<int64_t>();
  draft.replacement = replacement;
  return walk(op, tokens, parents, probs, uniforms, &draft);
}

void kv_commit(at::TensorList caches, int64_t base_len, const Tensor& rows) {
  const char* op = "kv_commit";
  const auto guard = device_of(op, "rows", rows);
  TORCH_CHECK_VALUE(base_len >= 0, op, ": base_len: expected 0 or more, got ", base_len);
  const Tensor path = take(op, "rows", rows, at::kLong, {-1}, rows.device());
  std::vector<dynaspec_cache> raw;
  for (const Tensor& cache : caches) {
    DYNASPEC_EXPECT(cache.dim() > 0 && cache.is_contiguous() && cache.device() == path.device() &&
                        cache.size(0) >= base_len,
                    op, "caches",
                    "contiguous tensors of more than " + std::to_string(base_len) + " rows on " +
                        path.device().str(),
                    cache);
    if (cache.numel() == 0) continue;
    raw.push_back({cache.mutable_data_ptr(), cache.size(0),
                   static_cast<int64_t>(cache.nbytes()) / cache.size(0)});
  }
  check_launch(op, dynaspec_kv_commit(raw.data(), static_cast<int64_t>(raw.size()), base_len,
                                      path.const_data_ptr<int64_t>(), path.size(0), stream()));
}

std::tuple<Tensor, Tensor> topk_expand(const Tensor& parent_scores, const Tensor& log_q,
                                       int64_t width) {
  const char* op = "topk_expand";
  const auto guard = device_of(op, "log_q", log_q);
  TORCH_CHECK_VALUE(width > 0, op, ": width: expected 1 or more, got ", width);
  const Tensor scores = take(op, "log_q", log_q, at::kFloat, {-1, -1}, log_q.device());
  const int64_t w = scores.size(0), k = scores.size(1), count = std::min(width, w * k);
  const Tensor above = take(op, "parent_scores", parent_scores, at::kFloat, {w}, log_q.device());
  Tensor index = at::empty({count}, scores.options().dtype(at::kLong)),
         score = at::empty({count}, scores.options());
  if (count == 0) return {index, score};
  TORCH_CHECK_VALUE(w * k <= 0xffff && count <= 1024, op,
                    ": expected at most 65,535 candidates and 1,024 chosen ones, got ", w * k,
                    " and ", count);
  check_launch(
      op, dynaspec_topk_expand(above.const_data_ptr<float>(), scores.const_data_ptr<float>(), w, k,
                               count, index.mutable_data_ptr<int64_t>(),
                               score.mutable_data_ptr<float>(), stream()));
  return {index, score};
}

std::tuple<Tensor, Tensor> tree_rerank(const Tensor& scores, const Tensor& parents, int64_t size) {
  const char* op = "tree_rerank";
  const auto guard = device_of(op, "parents", parents);
  TORCH_CHECK_VALUE(size > 0, op, ": size: expected 1 or more, got ", size);
  const Tensor tree = take(op, "parents", parents, at::kLong, {-1}, parents.device());
  const int64_t n = tree.size(0), count = std::min(size, n);
  TORCH_CHECK_VALUE(n <= 0xffff, op, ": parents: expected at most 65,535 candidates, got ", n);
  const Tensor value = take(op, "scores", scores, at::kFloat, {n}, tree.device());
  Tensor index = at::empty({count}, tree.options()), above = at::empty({count}, tree.options());
  if (count == 0) return {index, above};
  const Tensor space = workspace(dynaspec_rerank_workspace(n), tree.device());
  check_launch(op, dynaspec_tree_rerank(
                       value.const_data_ptr<float>(), tree.const_data_ptr<int64_t>(), n, count,
                       index.mutable_data_ptr<int64_t>(), above.mutable_data_ptr<int64_t>(),
                       space.mutable_data_ptr(), stream()));
  return {index, above};
}

}  // namespace

TORCH_LIBRARY_IMPL(dynaspec, CUDA, m) {
  m.impl("tree_mask", tree_mask);
  m.impl("greedy_walk", greedy_walk);
  m.impl("stochastic_walk", stochastic_walk);
  m.impl("sampled_walk", sampled_walk);
  m.impl("kv_commit", kv_commit);
  m.impl("topk_expand", topk_expand);
  m.impl("tree_rerank", tree_rerank);
}

}  // namespace dynaspec::cuda
