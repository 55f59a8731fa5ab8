// Launchers of the CUDA kernels: plain pointers and sizes, no PyTorch.
//
// Rules that every launcher keeps, so that all of them can be captured in a CUDA graph:
//   - All pointers are device pointers.
//   - Nothing is allocated or copied to or from the host, and no stream is waited for.
//   - Sizes that depend on data stay on the device: the caller gives buffers of a fixed capacity.
//   - Their unused entries are padding: an empty block, id -1, log-probability -inf, row -1.
//   - Launch shapes depend on host arguments only.
//   - Workspaces come from the caller; the *_workspace functions give their bytes.
//   - What is in them before a call does not matter, and nothing is kept in them between calls.
//   - Their base is aligned to 256 bytes, as allocators give it.
// A launcher returns 0 or the cudaError_t of a refused launch.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum dynaspec_dtype {
  DYNASPEC_FLOAT32 = 0,
  DYNASPEC_BFLOAT16 = 1,
  DYNASPEC_FLOAT16 = 2,
  DYNASPEC_INT8 = 3
};

// Rows that one call of the head's kernels scores at most (more rows: several calls).
enum { DYNASPEC_MAX_HEAD_ROWS = 32, DYNASPEC_MAX_TOPK = 64, DYNASPEC_MAX_TREE = 1025 };

// ---- shortlist_union.cu ------------------------------------------------------------------------
// Blocks that a union can have at most.
int64_t dynaspec_union_capacity(int64_t rows, int64_t clusters, int64_t extras, int64_t core_rows);
int64_t dynaspec_union_workspace(int64_t rows, int64_t clusters);

// scores float32 [n, clusters], offsets int32 [clusters + 1], extra_rows int32 [extras] (outside 0
// .. rows: padding). blocks int32 [capacity, 2]; count int32 [1]: blocks in use; size int64 [1]:
// rows in all.
int dynaspec_shortlist_union(const float* scores, int64_t n, int64_t clusters,
                             const int32_t* offsets, const int32_t* extra_rows, int64_t extras,
                             int64_t core_rows, int64_t rows, int64_t budget, int32_t* blocks,
                             int64_t capacity, int32_t* count, int64_t* size, void* workspace,
                             void* stream);

// ---- head_*.cu ---------------------------------------------------------------------------------
typedef struct dynaspec_head {
  const void* weight;      // [rows, dim], row-major
  const float* scale;      // [rows] of int8 rows, else null
  const int32_t* row_ids;  // [rows] token id of a row, or null: identity
  int64_t rows, dim;
  int dtype;
} dynaspec_head;

// Bytes for n hidden rows, `capacity` blocks and lists of k; `grid` thread blocks stream the head
// (a multiple of the device's multiprocessors; results depend on it only by rounding).
int64_t dynaspec_head_workspace(const dynaspec_head* head, int64_t n, int64_t capacity, int64_t k,
                                int64_t grid);

// hidden [n, dim] float32 or bfloat16, n <= DYNASPEC_MAX_HEAD_ROWS; blocks int32 [capacity, 2].
// Out: log_q float32 [n, k], ids int64 [n, k] best first (an exact tie: lower row), logsumexp
// float32 [n].
int dynaspec_shortlist_topk(const dynaspec_head* head, const void* hidden, int hidden_dtype,
                            int64_t n, const int32_t* blocks, int64_t capacity, int64_t k,
                            float temperature, int64_t grid, float* log_q, int64_t* ids,
                            float* logsumexp, void* workspace, void* stream);

// The whole distribution in row order: log_q float32 [n, width], ids int64 [width], logsumexp
// float32 [n].
int dynaspec_shortlist_log_probs(const dynaspec_head* head, const void* hidden, int hidden_dtype,
                                 int64_t n, const int32_t* blocks, int64_t capacity, int64_t width,
                                 float temperature, int64_t grid, float* log_q, int64_t* ids,
                                 float* logsumexp, void* workspace, void* stream);

// ---- linear.cu ---------------------------------------------------------------------------------
enum dynaspec_activation { DYNASPEC_IDENTITY = 0, DYNASPEC_SILU = 1 };

// out float32 [n, m] = activation([a; b] weight^T (* scale) + bias), for few rows: a [n, ka], b [n,
// kb] (kb = 0: none), weight [m, ka + kb].
int dynaspec_linear(const void* a, int a_dtype, int64_t ka, const void* b, int b_dtype, int64_t kb,
                    int64_t n, const void* weight, int weight_dtype, const float* scale,
                    const void* bias, int bias_dtype, int64_t m, int activation, float* out,
                    void* stream);

typedef struct dynaspec_router {
  const void *w1, *b1, *w2, *b2;  // w1 null: centroid scores; b2 may be null
  int w1_dtype, b1_dtype, w2_dtype, b2_dtype;
  int64_t inner, clusters;
} dynaspec_router;

// Scores float32 [n, clusters]; workspace: n * inner floats (none without w1).
int dynaspec_router_scores(const dynaspec_router* router, const void* features, int features_dtype,
                           int64_t d, const void* embedding, int embedding_dtype, int64_t e,
                           int64_t n, float* scores, void* workspace, void* stream);

// Order of the side stream: `fork` is recorded on `main` and awaited by `side` before the router's
// kernels; after them `join` is recorded on `side`. The caller awaits `join` on `main` (see
// dynaspec_join) before it reads the result. Events and streams belong to the caller and are
// reused.
int dynaspec_fork(void* main_stream, void* side_stream, void* fork_event);
int dynaspec_join(void* main_stream, void* side_stream, void* join_event);

// ---- tree.cu -----------------------------------------------------------------------------------
// A tree of n <= DYNASPEC_MAX_TREE rows: parents int64 [n], parents[0] = -1, 0 <= parents[i] < i.

// mask bool [n, n] (row i may attend to row j: i itself or an ancestor), depth int64 [n].
int dynaspec_tree_mask(const int64_t* parents, int64_t n, bool* mask, int64_t* depth, void* stream);

// path int64 [n]: accepted rows, root first, then -1; length int64 [1].
int dynaspec_greedy_walk(const int64_t* tokens, const int64_t* parents, const int64_t* choices,
                         int64_t n, int64_t* path, int64_t* length, void* stream);

// ---- tree_select.cu ----------------------------------------------------------------------------
// Best `count` <= 1024 of w k <= 65535 scores parent_scores[i] + log_q[i, j], best first; ties:
// lower index.
int dynaspec_topk_expand(const float* parent_scores, const float* log_q, int64_t w, int64_t k,
                         int64_t count, int64_t* index, float* score, void* stream);

// Best `count` of n <= 65535 candidates by the minimum along their path, ascending; see
// tree_rerank.
int64_t dynaspec_rerank_workspace(int64_t n);
int dynaspec_tree_rerank(const float* scores, const int64_t* parents, int64_t n, int64_t count,
                         int64_t* index, int64_t* new_parents, void* workspace, void* stream);

// ---- tree_walk.cu ------------------------------------------------------------------------------
typedef struct dynaspec_walk {
  const int64_t *tokens, *parents;  // [n]
  int64_t n, vocab;
  const float* probs;     // [n, vocab], any positive sum a row
  const float* uniforms;  // [n]
} dynaspec_walk;

// What the children were drawn from: values [rows, size] of the tokens ids [rows, size] (-1:
// padding; null: entry = token, size = vocab), row_of int64 [n] (-1: no children).
typedef struct dynaspec_draft {
  const float* values;
  const int64_t* ids;
  int64_t rows, size;
  const int64_t* row_of;
  bool replacement;
} dynaspec_draft;

// path int64 [n] as above, length int64 [1], residual float32 [vocab] (NaN where a row of probs has
// no positive finite sum). draft null: deterministic drafts (stochastic_walk), else sampled_walk.
int dynaspec_stochastic_walk(const dynaspec_walk* walk, const dynaspec_draft* draft, int64_t* path,
                             int64_t* length, float* residual, void* stream);

// ---- kv_commit.cu ------------------------------------------------------------------------------
typedef struct dynaspec_cache {
  void* data;  // [rows, row_bytes], contiguous
  int64_t rows, row_bytes;
} dynaspec_cache;

// Moves rows base + rows[i] to base + i of every cache; rows int64 [count] strictly ascending, then
// -1.
int dynaspec_kv_commit(const dynaspec_cache* caches, int64_t num_caches, int64_t base,
                       const int64_t* rows, int64_t count, void* stream);

#ifdef __cplusplus
}
#endif
