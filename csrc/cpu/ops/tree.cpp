// The tree ops on the CPU: checks and outputs.
#include "cpu/kernels/tree.h"

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "common.h"

namespace dynaspec::cpu {
namespace {

bool fits(const Tensor& t, Dtype type, std::initializer_list<int64_t> shape) {
  return is(t, type) && t.is_cpu() && has_shape(t, shape);
}

Tensor ints(int64_t n) { return empty({n}, Dtype::kInt64, cpu_place()); }
Tensor floats(int64_t n) { return empty({n}, Dtype::kFloat32, cpu_place()); }

// The path that a walk wrote, at its own length.
Tensor path_tensor(const std::vector<int64_t>& path, int64_t length) {
  Tensor rows = ints(length);
  std::copy_n(path.begin(), length, mutable_data<int64_t>(rows));
  return rows;
}

const int64_t* ids(const char* op, const char* name, const Tensor& t, int64_t n) {
  DYNASPEC_EXPECT(fits(t, Dtype::kInt64, {n}) && t.is_contiguous(), op, name,
                  "contiguous int64 " + shape_text({n}) + " on the CPU", t);
  return data<int64_t>(t);
}

// parents [n] of a tree, or of a forest whose root is no row.
const int64_t* check_parents(const char* op, const Tensor& parents, bool forest) {
  DYNASPEC_EXPECT(parents.dim() == 1 && (forest || parents.size(0) > 0), op, "parents",
                  forest ? "int64 of shape [n]" : "int64 of shape [n] with at least one row",
                  parents);
  DYNASPEC_EXPECT(is(parents, Dtype::kInt64) && parents.is_cpu() && parents.is_contiguous(), op,
                  "parents", "dtype int64, contiguous, on the CPU", parents);
  const int64_t* rows = data<int64_t>(parents);
  const int64_t bad = first_bad_parent(rows, parents.size(0), forest);
  DYNASPEC_CHECK(bad < 0, op, ": parents[", bad, "]: expected ",
                 bad == 0 ? "-1" : (forest ? "-1 or a row before it" : "a row before it"), ", got ",
                 rows[bad]);
  return rows;
}

std::tuple<Tensor, Tensor> tree_mask_op(const Tensor& parents) {
  const int64_t* parent = check_parents("tree_mask", parents, false);
  const int64_t n = parents.size(0);
  Tensor mask = empty({n, n}, Dtype::kBool, cpu_place()), depth = ints(n);
  tree_mask(parent, n, mutable_data<bool>(mask), mutable_data<int64_t>(depth));
  return {mask, depth};
}

Tensor greedy_walk_op(const Tensor& tokens, const Tensor& parents, const Tensor& choices) {
  const int64_t* parent = check_parents("greedy_walk", parents, false);
  const int64_t n = parents.size(0);
  const int64_t* token = ids("greedy_walk", "tokens", tokens, n);
  const int64_t* choice = ids("greedy_walk", "choices", choices, n);
  std::vector<int64_t> path(n);
  return path_tensor(path, greedy_walk(token, parent, choice, n, path.data()));
}

WalkTarget check_target(const char* op, const Tensor& tokens, const Tensor& parents,
                        const Tensor& probs, const Tensor& uniforms) {
  WalkTarget target{};
  target.parents = check_parents(op, parents, false);
  target.n = parents.size(0);
  target.tokens = ids(op, "tokens", tokens, target.n);
  DYNASPEC_EXPECT(
      probs.dim() == 2 && probs.size(1) > 0 &&
          fits(probs, Dtype::kFloat32, {target.n, probs.size(1)}) && probs.is_contiguous(),
      op, "probs", "contiguous float32 [" + std::to_string(target.n) + ", V] on the CPU", probs);
  target.probs = data<float>(probs);
  target.vocab = probs.size(1);
  DYNASPEC_EXPECT(fits(uniforms, Dtype::kFloat32, {target.n}) && uniforms.is_contiguous(), op,
                  "uniforms", "contiguous float32 " + shape_text({target.n}) + " on the CPU",
                  uniforms);
  target.uniforms = data<float>(uniforms);
  for (int64_t i = 0; i < target.n; ++i) {
    DYNASPEC_CHECK(target.tokens[i] >= 0 && target.tokens[i] < target.vocab, op,
                   ": tokens: expected ids within [0, ", target.vocab, "), got ", target.tokens[i],
                   " at row ", i);
    DYNASPEC_CHECK(target.uniforms[i] >= 0 && target.uniforms[i] < 1, op,
                   ": uniforms: expected numbers within [0, 1), got ", target.uniforms[i],
                   " at row ", i);
  }
  return target;
}

template <class Walk>
std::tuple<Tensor, Tensor> walk(const char* op, const WalkTarget& target, const Walk& run) {
  std::vector<int64_t> path(target.n);
  Tensor residual = floats(target.vocab);
  const WalkResult result = run(path.data(), mutable_data<float>(residual));
  DYNASPEC_CHECK(result.bad_row < 0, op,
                 ": probs: expected rows with a positive finite sum, got another in row ",
                 result.bad_row);
  DYNASPEC_CHECK(result.bad_draft < 0, op,
                 ": q: expected rows with a finite sum, got another for row ", result.bad_draft);
  return {path_tensor(path, result.length), residual};
}

std::tuple<Tensor, Tensor> stochastic_walk_op(const Tensor& tokens, const Tensor& parents,
                                              const Tensor& probs, const Tensor& uniforms) {
  const WalkTarget target = check_target("stochastic_walk", tokens, parents, probs, uniforms);
  return walk("stochastic_walk", target, [&](int64_t* path, float* residual) {
    return stochastic_walk(target, path, residual);
  });
}

std::tuple<Tensor, Tensor> sampled_walk_op(const Tensor& tokens, const Tensor& parents,
                                           const Tensor& probs, const Tensor& uniforms,
                                           const Tensor& q, const Tensor& q_ids,
                                           const Tensor& q_rows, bool replacement) {
  constexpr const char* op = "sampled_walk";
  const WalkTarget target = check_target(op, tokens, parents, probs, uniforms);
  const bool dense = q_ids.numel() == 0;
  DYNASPEC_EXPECT(q.dim() == 2 && is(q, Dtype::kFloat32) && q.is_cpu() && q.is_contiguous() &&
                      (!dense || q.size(0) == 0 || q.size(1) == target.vocab),
                  op, "q",
                  dense ? "contiguous float32 [r, " + std::to_string(target.vocab) + "] on the CPU"
                        : std::string("contiguous float32 [r, S] on the CPU"),
                  q);
  const int64_t rows = q.size(0), size = q.size(1);
  WalkDraft draft{data<float>(q), nullptr, size, ids(op, "q_rows", q_rows, target.n), replacement};
  for (int64_t i = 0; i < target.n; ++i) {
    DYNASPEC_CHECK(draft.rows[i] >= -1 && draft.rows[i] < rows, op,
                   ": q_rows: expected -1 or a row of q below ", rows, ", got ", draft.rows[i],
                   " at row ", i);
  }
  if (!dense) {
    DYNASPEC_EXPECT(fits(q_ids, Dtype::kInt64, {rows, size}) && q_ids.is_contiguous(), op, "q_ids",
                    "contiguous int64 " + shape_text({rows, size}) + " on the CPU", q_ids);
    draft.ids = data<int64_t>(q_ids);
    for (int64_t i = 0; i < rows * size; ++i) {
      DYNASPEC_CHECK(draft.ids[i] >= -1 && draft.ids[i] < target.vocab, op,
                     ": q_ids: expected -1 or ids below ", target.vocab, ", got ", draft.ids[i],
                     " in row ", i / size);
    }
  }
  return walk(op, target, [&](int64_t* path, float* residual) {
    return sampled_walk(target, draft, path, residual);
  });
}

void kv_commit_op(const std::vector<Tensor>& caches, int64_t base_len, const Tensor& rows) {
  constexpr const char* op = "kv_commit";
  DYNASPEC_CHECK(base_len >= 0, op, ": base_len: expected 0 or more, got ", base_len);
  const int64_t count = rows.numel();
  const int64_t* row = ids(op, "rows", rows, count);
  for (int64_t i = 0; i < count; ++i) {
    DYNASPEC_CHECK(row[i] > (i > 0 ? row[i - 1] : -1), op,
                   ": rows: expected strictly ascending rows from 0 on, got ", row[i], " at ", i);
  }
  const int64_t last = count > 0 ? row[count - 1] : -1;
  for (const Tensor& cache : caches) {
    DYNASPEC_EXPECT(cache.dim() > 0 && cache.is_contiguous() && cache.is_cpu() &&
                        (count == 0 || last < cache.size(0) - base_len),
                    op, "caches",
                    "contiguous tensors of more than " + std::to_string(base_len) + " + " +
                        std::to_string(last) + " rows on the CPU",
                    cache);
  }
  for (const Tensor& cache : caches) {
    if (cache.numel() == 0) continue;
    commit_rows(mutable_data<char>(cache), row_bytes(cache), base_len, row, count);
  }
}

std::tuple<Tensor, Tensor> topk_expand_op(const Tensor& parent_scores, const Tensor& log_q,
                                          int64_t width) {
  constexpr const char* op = "topk_expand";
  DYNASPEC_EXPECT(parent_scores.dim() == 1 && is(parent_scores, Dtype::kFloat32) &&
                      parent_scores.is_cpu() && parent_scores.is_contiguous(),
                  op, "parent_scores", "contiguous float32 [w] on the CPU", parent_scores);
  const int64_t w = parent_scores.size(0);
  DYNASPEC_EXPECT(
      log_q.dim() == 2 && fits(log_q, Dtype::kFloat32, {w, log_q.size(1)}) && log_q.is_contiguous(),
      op, "log_q", "contiguous float32 [" + std::to_string(w) + ", k] on the CPU", log_q);
  DYNASPEC_CHECK(width > 0, op, ": width: expected 1 or more, got ", width);
  const int64_t k = log_q.size(1), count = std::min(width, w * k);
  Tensor index = ints(count), score = floats(count);
  DYNASPEC_CHECK(topk_expand(data<float>(parent_scores), data<float>(log_q), w, k, count,
                             mutable_data<int64_t>(index), mutable_data<float>(score)),
                 op, ": log_q: expected log-probabilities, got a NaN");
  return {index, score};
}

std::tuple<Tensor, Tensor> tree_rerank_op(const Tensor& scores, const Tensor& parents,
                                          int64_t size) {
  constexpr const char* op = "tree_rerank";
  const int64_t* parent = check_parents(op, parents, true);
  const int64_t n = parents.size(0), count = std::min(size, n);
  DYNASPEC_EXPECT(fits(scores, Dtype::kFloat32, {n}) && scores.is_contiguous(), op, "scores",
                  "contiguous float32 " + shape_text({n}) + " on the CPU", scores);
  DYNASPEC_CHECK(size > 0, op, ": size: expected 1 or more, got ", size);
  Tensor index = ints(count), new_parents = ints(count);
  DYNASPEC_CHECK(tree_rerank(data<float>(scores), parent, n, count, mutable_data<int64_t>(index),
                             mutable_data<int64_t>(new_parents)),
                 op, ": scores: expected log-probabilities, got a NaN");
  return {index, new_parents};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CPU, m) {
  m.impl("tree_mask", TORCH_BOX(&tree_mask_op));
  m.impl("greedy_walk", TORCH_BOX(&greedy_walk_op));
  m.impl("stochastic_walk", TORCH_BOX(&stochastic_walk_op));
  m.impl("sampled_walk", TORCH_BOX(&sampled_walk_op));
  m.impl("kv_commit", TORCH_BOX(&kv_commit_op));
  m.impl("topk_expand", TORCH_BOX(&topk_expand_op));
  m.impl("tree_rerank", TORCH_BOX(&tree_rerank_op));
}

}  // namespace dynaspec::cpu
