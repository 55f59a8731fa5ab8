// Draft-tree kernels: plain pointers, no PyTorch. A tree of n rows is parents[n] with parents[0] =
// -1 and 0 <= parents[i] < i; siblings are tried in row order.
#pragma once

#include <cstdint>

namespace dynaspec::cpu {

// First row whose parent breaks the rule above, or -1.
int64_t first_bad_parent(const int64_t* parents, int64_t n);

// mask[i * n + j]: row j is i or an ancestor of i. depth[i]: the root has 0.
void tree_mask(const int64_t* parents, int64_t n, bool* mask, int64_t* depth);

// Rows of the accepted path, root first; returns their number. `path` holds n.
int64_t greedy_walk(const int64_t* tokens, const int64_t* parents, const int64_t* choices,
                    int64_t n, int64_t* path);

// Moves rows base + rows[i] to base + i, rows strictly ascending.
void commit_rows(char* cache, int64_t row_bytes, int64_t base, const int64_t* rows, int64_t count);

}  // namespace dynaspec::cpu
