// The tree ops on the CPU: checks and outputs.
#include "cpu/kernels/tree.h"

#include <torch/library.h>

#include <algorithm>
#include <string>
#include <tuple>

#include "common.h"

namespace dynaspec::cpu {
namespace {

std::string sizes(std::initializer_list<int64_t> values) {
  std::string text = "[";
  for (const int64_t value : values) text += (text.size() > 1 ? ", " : "") + std::to_string(value);
  return text + "]";
}

bool fits(const at::Tensor& t, at::ScalarType type, std::initializer_list<int64_t> shape) {
  return t.scalar_type() == type && t.device().is_cpu() && t.sizes() == at::IntArrayRef(shape);
}

const int64_t* ids(const char* op, const char* name, const at::Tensor& t, int64_t n) {
  DYNASPEC_EXPECT(fits(t, at::kLong, {n}) && t.is_contiguous(), op, name,
                  "contiguous int64 " + sizes({n}) + " on the CPU", t);
  return t.const_data_ptr<int64_t>();
}

// parents [n] of a tree, or of a forest whose root is no row.
const int64_t* check_parents(const char* op, const at::Tensor& parents, bool forest) {
  DYNASPEC_EXPECT(parents.dim() == 1 && (forest || parents.size(0) > 0), op, "parents",
                  forest ? "int64 of shape [n]" : "int64 of shape [n] with at least one row",
                  parents);
  DYNASPEC_EXPECT(
      parents.scalar_type() == at::kLong && parents.device().is_cpu() && parents.is_contiguous(),
      op, "parents", "dtype int64, contiguous, on the CPU", parents);
  const int64_t* data = parents.const_data_ptr<int64_t>();
  const int64_t bad = first_bad_parent(data, parents.size(0), forest);
  TORCH_CHECK_VALUE(bad < 0, op, ": parents[", bad, "]: expected ",
                    bad == 0 ? "-1" : (forest ? "-1 or a row before it" : "a row before it"),
                    ", got ", data[bad]);
  return data;
}

std::tuple<at::Tensor, at::Tensor> tree_mask_op(const at::Tensor& parents) {
  const int64_t* data = check_parents("tree_mask", parents, false);
  const int64_t n = parents.size(0);
  at::Tensor mask = at::empty({n, n}, parents.options().dtype(at::kBool)),
             depth = at::empty_like(parents);
  tree_mask(data, n, mask.mutable_data_ptr<bool>(), depth.mutable_data_ptr<int64_t>());
  return {mask, depth};
}

at::Tensor greedy_walk_op(const at::Tensor& tokens, const at::Tensor& parents,
                          const at::Tensor& choices) {
  const int64_t* parent = check_parents("greedy_walk", parents, false);
  const int64_t n = parents.size(0);
  const int64_t* token = ids("greedy_walk", "tokens", tokens, n);
  const int64_t* choice = ids("greedy_walk", "choices", choices, n);
  at::Tensor path = at::empty_like(parents);
  return path.narrow(0, 0, greedy_walk(token, parent, choice, n, path.mutable_data_ptr<int64_t>()))
      .clone();
}

WalkTarget check_target(const char* op, const at::Tensor& tokens, const at::Tensor& parents,
                        const at::Tensor& probs, const at::Tensor& uniforms) {
  WalkTarget target{};
  target.parents = check_parents(op, parents, false);
  target.n = parents.size(0);
  target.tokens = ids(op, "tokens", tokens, target.n);
  DYNASPEC_EXPECT(probs.dim() == 2 && probs.size(1) > 0 &&
                      fits(probs, at::kFloat, {target.n, probs.size(1)}) && probs.is_contiguous(),
                  op, "probs",
                  "contiguous float32 [" + std::to_string(target.n) + ", V] on the CPU", probs);
  target.probs = probs.const_data_ptr<float>();
  target.vocab = probs.size(1);
  DYNASPEC_EXPECT(fits(uniforms, at::kFloat, {target.n}) && uniforms.is_contiguous(), op,
                  "uniforms", "contiguous float32 " + sizes({target.n}) + " on the CPU", uniforms);
  target.uniforms = uniforms.const_data_ptr<float>();
  for (int64_t i = 0; i < target.n; ++i) {
    TORCH_CHECK_VALUE(target.tokens[i] >= 0 && target.tokens[i] < target.vocab, op,
                      ": tokens: expected ids within [0, ", target.vocab, "), got ",
                      target.tokens[i], " at row ", i);
    TORCH_CHECK_VALUE(target.uniforms[i] >= 0 && target.uniforms[i] < 1, op,
                      ": uniforms: expected numbers within [0, 1), got ", target.uniforms[i],
                      " at row ", i);
  }
  return target;
}

template <class Walk>
std::tuple<at::Tensor, at::Tensor> walk(const char* op, const at::Tensor& parents,
                                        const at::Tensor& probs, const Walk& run) {
  at::Tensor path = at::empty_like(parents), residual = at::empty({probs.size(1)}, probs.options());
  const WalkResult result =
      run(path.mutable_data_ptr<int64_t>(), residual.mutable_data_ptr<float>());
  TORCH_CHECK_VALUE(result.bad_row < 0, op,
                    ": probs: expected rows with a positive finite sum, got another in row ",
                    result.bad_row);
  TORCH_CHECK_VALUE(result.bad_draft < 0, op,
                    ": q: expected rows with a finite sum, got another for row ", result.bad_draft);
  return {path.narrow(0, 0, result.length).clone(), residual};
}

std::tuple<at::Tensor, at::Tensor> stochastic_walk_op(const at::Tensor& tokens,
                                                      const at::Tensor& parents,
                                                      const at::Tensor& probs,
                                                      const at::Tensor& uniforms) {
  const WalkTarget target = check_target("stochastic_walk", tokens, parents, probs, uniforms);
  return walk("stochastic_walk", parents, probs, [&](int64_t* path, float* residual) {
    return stochastic_walk(target, path, residual);
  });
}

std::tuple<at::Tensor, at::Tensor> sampled_walk_op(const at::Tensor& tokens,
                                                   const at::Tensor& parents,
                                                   const at::Tensor& probs,
                                                   const at::Tensor& uniforms, const at::Tensor& q,
                                                   const at::Tensor& q_ids,
                                                   const at::Tensor& q_rows, bool replacement) {
  constexpr const char* op = "sampled_walk";
  const WalkTarget target = check_target(op, tokens, parents, probs, uniforms);
  const bool dense = q_ids.numel() == 0;
  DYNASPEC_EXPECT(q.dim() == 2 && q.scalar_type() == at::kFloat && q.device().is_cpu() &&
                      q.is_contiguous() && (!dense || q.size(0) == 0 || q.size(1) == target.vocab),
                  op, "q",
                  dense ? "contiguous float32 [r, " + std::to_string(target.vocab) + "] on the CPU"
                        : std::string("contiguous float32 [r, S] on the CPU"),
                  q);
  const int64_t rows = q.size(0), size = q.size(1);
  WalkDraft draft{q.const_data_ptr<float>(), nullptr, size, ids(op, "q_rows", q_rows, target.n),
                  replacement};
  for (int64_t i = 0; i < target.n; ++i) {
    TORCH_CHECK_VALUE(draft.rows[i] >= -1 && draft.rows[i] < rows, op,
                      ": q_rows: expected -1 or a row of q below ", rows, ", got ", draft.rows[i],
                      " at row ", i);
  }
  if (!dense) {
    DYNASPEC_EXPECT(fits(q_ids, at::kLong, {rows, size}) && q_ids.is_contiguous(), op, "q_ids",
                    "contiguous int64 " + sizes({rows, size}) + " on the CPU", q_ids);
    draft.ids = q_ids.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < rows * size; ++i) {
      TORCH_CHECK_VALUE(draft.ids[i] >= -1 && draft.ids[i] < target.vocab, op,
                        ": q_ids: expected -1 or ids below ", target.vocab, ", got ", draft.ids[i],
                        " in row ", i / size);
    }
  }
  return walk(op, parents, probs, [&](int64_t* path, float* residual) {
    return sampled_walk(target, draft, path, residual);
  });
}

void kv_commit_op(at::TensorList caches, int64_t base_len, const at::Tensor& rows) {
  constexpr const char* op = "kv_commit";
  TORCH_CHECK_VALUE(base_len >= 0, op, ": base_len: expected 0 or more, got ", base_len);
  const int64_t count = rows.numel();
  const int64_t* row = ids(op, "rows", rows, count);
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK_VALUE(row[i] > (i > 0 ? row[i - 1] : -1), op,
                      ": rows: expected strictly ascending rows from 0 on, got ", row[i], " at ",
                      i);
  }
  const int64_t last = count > 0 ? row[count - 1] : -1;
  for (const at::Tensor& cache : caches) {
    DYNASPEC_EXPECT(cache.dim() > 0 && cache.is_contiguous() && cache.device().is_cpu() &&
                        (count == 0 || last < cache.size(0) - base_len),
                    op, "caches",
                    "contiguous tensors of more than " + std::to_string(base_len) + " + " +
                        std::to_string(last) + " rows on the CPU",
                    cache);
  }
  for (const at::Tensor& cache : caches) {
    if (cache.numel() == 0) continue;
    commit_rows(static_cast<char*>(cache.mutable_data_ptr()),
                static_cast<int64_t>(cache.nbytes()) / cache.size(0), base_len, row, count);
  }
}

std::tuple<at::Tensor, at::Tensor> topk_expand_op(const at::Tensor& parent_scores,
                                                  const at::Tensor& log_q, int64_t width) {
  constexpr const char* op = "topk_expand";
  DYNASPEC_EXPECT(parent_scores.dim() == 1 && parent_scores.scalar_type() == at::kFloat &&
                      parent_scores.device().is_cpu() && parent_scores.is_contiguous(),
                  op, "parent_scores", "contiguous float32 [w] on the CPU", parent_scores);
  const int64_t w = parent_scores.size(0);
  DYNASPEC_EXPECT(
      log_q.dim() == 2 && fits(log_q, at::kFloat, {w, log_q.size(1)}) && log_q.is_contiguous(), op,
      "log_q", "contiguous float32 [" + std::to_string(w) + ", k] on the CPU", log_q);
  TORCH_CHECK_VALUE(width > 0, op, ": width: expected 1 or more, got ", width);
  const int64_t k = log_q.size(1), count = std::min(width, w * k);
  at::Tensor index = at::empty({count}, log_q.options().dtype(at::kLong)),
             score = at::empty({count}, log_q.options());
  TORCH_CHECK_VALUE(
      topk_expand(parent_scores.const_data_ptr<float>(), log_q.const_data_ptr<float>(), w, k, count,
                  index.mutable_data_ptr<int64_t>(), score.mutable_data_ptr<float>()),
      op, ": log_q: expected log-probabilities, got a NaN");
  return {index, score};
}

std::tuple<at::Tensor, at::Tensor> tree_rerank_op(const at::Tensor& scores,
                                                  const at::Tensor& parents, int64_t size) {
  constexpr const char* op = "tree_rerank";
  const int64_t* parent = check_parents(op, parents, true);
  const int64_t n = parents.size(0), count = std::min(size, n);
  DYNASPEC_EXPECT(fits(scores, at::kFloat, {n}) && scores.is_contiguous(), op, "scores",
                  "contiguous float32 " + sizes({n}) + " on the CPU", scores);
  TORCH_CHECK_VALUE(size > 0, op, ": size: expected 1 or more, got ", size);
  at::Tensor index = at::empty({count}, parents.options()),
             new_parents = at::empty({count}, parents.options());
  TORCH_CHECK_VALUE(
      tree_rerank(scores.const_data_ptr<float>(), parent, n, count,
                  index.mutable_data_ptr<int64_t>(), new_parents.mutable_data_ptr<int64_t>()),
      op, ": scores: expected log-probabilities, got a NaN");
  return {index, new_parents};
}

}  // namespace

TORCH_LIBRARY_IMPL(dynaspec, CPU, m) {
  m.impl("tree_mask", tree_mask_op);
  m.impl("greedy_walk", greedy_walk_op);
  m.impl("stochastic_walk", stochastic_walk_op);
  m.impl("sampled_walk", sampled_walk_op);
  m.impl("kv_commit", kv_commit_op);
  m.impl("topk_expand", topk_expand_op);
  m.impl("tree_rerank", tree_rerank_op);
}

}  // namespace dynaspec::cpu
