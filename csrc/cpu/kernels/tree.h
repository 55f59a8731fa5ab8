// Draft-tree kernels: plain pointers, no PyTorch. A tree of n rows is parents[n] with parents[0] =
// -1 and 0 <= parents[i] < i; siblings are tried in row order.
#pragma once

#include <cstdint>

namespace dynaspec::cpu {

// First row whose parent breaks the rule above, or -1. `forest`: -1 is allowed anywhere (children
// of a root that is no row itself).
int64_t first_bad_parent(const int64_t* parents, int64_t n, bool forest);

// mask[i * n + j]: row j is i or an ancestor of i. depth[i]: the root has 0.
void tree_mask(const int64_t* parents, int64_t n, bool* mask, int64_t* depth);

// Rows of the accepted path, root first; returns their number. `path` holds n.
int64_t greedy_walk(const int64_t* tokens, const int64_t* parents, const int64_t* choices,
                    int64_t n, int64_t* path);

// What a walk verifies against: p [n, vocab] after each row, one uniform draw a row.
struct WalkTarget {
  const int64_t* tokens;
  const int64_t* parents;
  int64_t n;
  const float* probs;
  int64_t vocab;
  const float* uniforms;
};

// The distribution each row's children were drawn from: values [*, size] of tokens ids [*, size]
// (-1: padding; ids == nullptr: entry = token), row of each node in rows[n] (-1: none).
struct WalkDraft {
  const float* values;
  const int64_t* ids;
  int64_t size;
  const int64_t* rows;
  bool replacement;
};

struct WalkResult {
  int64_t length;          // of the path
  int64_t bad_row;         // row of probs without a positive finite sum, or -1
  int64_t bad_draft = -1;  // node whose row of the draft's values has no finite sum, or -1
};

// Deterministic drafts: child x is accepted when u < p(x), else p(x) = 0 and p is renormalised.
// `residual` [vocab] receives what is left of p at the path's end, normalised.
WalkResult stochastic_walk(const WalkTarget& target, int64_t* path, float* residual);

// Sampled drafts: child x is accepted when u D(x) < R(x), else R = norm(max(R - D, 0)) and,
// without replacement, D(x) = 0 and D = norm(D).
WalkResult sampled_walk(const WalkTarget& target, const WalkDraft& draft, int64_t* path,
                        float* residual);

// Moves rows base + rows[i] to base + i, rows strictly ascending.
void commit_rows(char* cache, int64_t row_bytes, int64_t base, const int64_t* rows, int64_t count);

// Best `count` of parent_scores[i] + log_q[i * k + j], best first, a tie to the lower index.
// Returns false when a score is NaN.
bool topk_expand(const float* parent_scores, const float* log_q, int64_t w, int64_t k,
                 int64_t count, int64_t* index, float* score);

// Best `count` of n candidates by the minimum score along their path, a tie to the lower index:
// ascending, with parents renumbered. Returns false when a score is NaN.
bool tree_rerank(const float* scores, const int64_t* parents, int64_t n, int64_t count,
                 int64_t* index, int64_t* new_parents);

}  // namespace dynaspec::cpu
