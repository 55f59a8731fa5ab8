// The shortlisted LM head: GEMM over blocks of rows, online log-softmax, top-k; plain pointers, no
// PyTorch.
//
// The selected rows are cut into chunks of kChunk by their position in the selection alone. A
// chunk's logits stay in the cache; of it remain its softmax statistics, summed up in the order of
// the chunks, and what entered the top-k. So the result is the same for every number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/kernels/kernels.h"

namespace dynaspec::cpu {

// Row r is row r of the weight, or with `gather` row row_ids[r].
struct Head {
  Weight weight;
  int64_t rows;
  const int32_t* row_ids;  // token id of a row; nullptr: identity
  bool gather = false;

  int64_t id(int64_t row) const { return row_ids == nullptr ? row : row_ids[row]; }

  // Rows of the weight: in `list` (room for all of them) where they are gathered.
  RowSet stored(const RowSet& rows, int32_t* list) const {
    if (!gather) return {rows.list, rows.first, rows.count};
    for (int64_t j = 0; j < rows.count; ++j) list[j] = row_ids[rows[j]];
    return {list, 0, rows.count};
  }
};

// The selected rows as a sequence.
class Selection {
 public:
  static constexpr int64_t kChunk = 256;

  // Block b is rows borders[2 b] .. borders[2 b + 1].
  Selection(const int32_t* borders, int64_t blocks)
      : borders_(borders, borders + 2 * blocks), starts_(blocks + 1) {
    for (int64_t b = 0; b < blocks; ++b) {
      starts_[b + 1] = starts_[b] + borders[2 * b + 1] - borders[2 * b];
    }
  }

  int64_t size() const { return starts_.back(); }
  int64_t chunks() const { return (size() + kChunk - 1) / kChunk; }

  // Rows of a chunk (none past the last one); `list` [kChunk] is filled if they are not one range.
  RowSet rows(int64_t chunk, int32_t* list) const {
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, size());
    if (begin >= end) return {nullptr, 0, 0};
    int64_t b = std::upper_bound(starts_.begin(), starts_.end(), begin) - starts_.begin() - 1;
    if (end <= starts_[b + 1]) return {nullptr, borders_[2 * b] + begin - starts_[b], end - begin};
    for (int64_t at = begin; at < end; ++b) {
      const int64_t stop = std::min(end, starts_[b + 1]);
      int32_t row = static_cast<int32_t>(borders_[2 * b] + at - starts_[b]);
      for (; at < stop; ++at) list[at - begin] = row++;
    }
    return {list, 0, end - begin};
  }

 private:
  std::vector<int32_t> borders_;
  std::vector<int64_t> starts_;
};

// Best k <= selection.size() of each packed row of x: log_q and ids [n, k], best first, an exact
// tie to the lower row; lse [n]. Returns the first row whose logits are not finite, or -1.
int64_t head_topk(const Head& head, const PackedRows& x, const Selection& selection, int64_t k,
                  float temperature, float* log_q, int64_t* ids, float* lse);

// The whole distribution in row order: log_q [n, S], ids [S], lse [n]. Returns as head_topk does.
int64_t head_log_probs(const Head& head, const PackedRows& x, const Selection& selection,
                       float temperature, float* log_q, int64_t* ids, float* lse);

}  // namespace dynaspec::cpu
