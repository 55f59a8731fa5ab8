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
enum { DYNASPEC_MAX_HEAD_ROWS = 32, DYNASPEC_MAX_TOPK = 64 };

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

// ---- kv_commit.cu ------------------------------------------------------------------------------
typedef struct dynaspec_cache {
  void* data;  // [rows, row_bytes], contiguous
  int64_t rows, row_bytes;
} dynaspec_cache;

// Moves rows base + rows[i] to base + i of every cache; base int64 [1]; rows int64 [count] strictly
// ascending, then -1.
int dynaspec_kv_commit(const dynaspec_cache* caches, int64_t num_caches, const int64_t* base,
                       const int64_t* rows, int64_t count, void* stream);

#ifdef __cplusplus
}
#endif
