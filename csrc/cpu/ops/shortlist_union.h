// Which rows of the head a draft step scores.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace dynaspec::cpu {

// Disjoint, ascending half-open ranges of rows: border 2b is the begin of block b, border 2b + 1
// its end.
struct Blocks {
  std::vector<int32_t> borders;
  int64_t size = 0;  // rows in all
};

// Core [0, core_rows), extra rows, then whole clusters by score until `budget` rows are reached.
// Checks its arguments; `op` names the caller in messages.
Blocks select_blocks(const char* op, const at::Tensor& cluster_scores,
                     const at::Tensor& cluster_offsets, const at::Tensor& extra_rows,
                     int64_t core_rows, int64_t budget);

}  // namespace dynaspec::cpu
