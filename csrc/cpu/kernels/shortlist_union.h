// Which rows of the head a draft step scores: plain pointers, no PyTorch.
#pragma once

#include <cstdint>
#include <vector>

namespace dynaspec::cpu {

// Disjoint, ascending half-open ranges of rows: border 2b is the begin of block b, border 2b + 1
// its end.
struct Blocks {
  std::vector<int32_t> borders;
  int64_t size = 0;  // rows in all

  int64_t count() const { return static_cast<int64_t>(borders.size() / 2); }
};

struct UnionInput {
  const float* scores;  // [n, clusters], or nullptr: no clusters
  int64_t n, clusters;
  const int32_t* offsets;  // [clusters + 1] ascending borders of the clusters, or nullptr
  const int32_t* extras;   // [num_extras]
  int64_t num_extras, core_rows, budget;
};

// Core [0, core_rows), extra rows, then whole clusters by their best score until `budget` rows are
// reached. Returns false where a score is NaN.
bool select_blocks(const UnionInput& input, Blocks& selected);

}  // namespace dynaspec::cpu
