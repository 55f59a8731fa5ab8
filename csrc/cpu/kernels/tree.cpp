#include "cpu/kernels/tree.h"

#include <cstring>

namespace dynaspec::cpu {

int64_t first_bad_parent(const int64_t* parents, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (i == 0 ? parents[i] != -1 : parents[i] < 0 || parents[i] >= i) return i;
  }
  return -1;
}

void tree_mask(const int64_t* parents, int64_t n, bool* mask, int64_t* depth) {
  for (int64_t i = 0; i < n; ++i) {
    bool* row = mask + i * n;
    if (parents[i] < 0) {
      std::memset(row, 0, n);
      depth[i] = 0;
    } else {
      std::memcpy(row, mask + parents[i] * n, n);
      depth[i] = depth[parents[i]] + 1;
    }
    row[i] = true;
  }
}

int64_t greedy_walk(const int64_t* tokens, const int64_t* parents, const int64_t* choices,
                    int64_t n, int64_t* path) {
  int64_t length = 0;
  path[length++] = 0;
  for (int64_t i = 1; i < n; ++i) {
    const int64_t node = path[length - 1];
    if (parents[i] == node && tokens[i] == choices[node]) path[length++] = i;
  }
  return length;
}

void commit_rows(char* cache, int64_t row_bytes, int64_t base, const int64_t* rows, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (rows[i] == i) continue;
    std::memcpy(cache + (base + i) * row_bytes, cache + (base + rows[i]) * row_bytes, row_bytes);
  }
}

}  // namespace dynaspec::cpu
