// Attention of tree rows over committed keys and their own ancestors.
#pragma once

#include <cstdint>

#include "cpu/kernels/decoder.h"

namespace dynaspec::cpu {

// A row's keys have *logical indices*: committed row j has index j, and the r-th of the row's
// ancestors (itself included, by ascending position) has `committed + r`. For a path of a tree that
// is the key's position, so a key has the same index when it is a tree row and when it has been
// committed. Scores, softmax and weighted sums go by logical index only: this is what makes a row's
// result the same bits in both cases.
class Attention {
 public:
  Attention(const LayerShape& shape, const KvCache& cache, const TreeRows& rows, int threads);

  int64_t tasks() const { return shape_.kv_heads * blocks_ * splits_; }
  int64_t shared_bytes() const;  // scratch for all tasks
  int64_t worker_bytes() const;  // scratch for one thread
  void use_scratch(char* shared) { shared_ = shared; }

  // Finds the keys of row i of the pass.
  void find_keys(int64_t i);
  // Packed query of a row and head: written by the caller before `run`.
  char* query(int64_t i, int64_t head) const;
  // One task: some rows and heads. out float32 [n, heads * head_dim].
  void run(int64_t task, char* worker, float* out) const;

 private:
  struct Keys {
    int64_t begin, end;  // logical indices attended to
  };
  struct Block;

  Keys& keys(int64_t i) const { return reinterpret_cast<Keys*>(shared_)[i]; }
  int32_t* path(int64_t i) const;
  int64_t common_end(int64_t i0, int64_t i1) const;
  void fill(int64_t i, int64_t begin, int64_t end, const Block& block) const;
  void scores(const Block& block, int64_t q0, int64_t nq, const char* queries, int64_t begin,
              int64_t end) const;

  const LayerShape shape_;
  const KvCache cache_;
  const TreeRows rows_;
  int64_t blocks_, splits_, block_rows_;
  int64_t padded_;  // scores a query, at most
  int64_t query_stride_;
  char* shared_ = nullptr;
};

}  // namespace dynaspec::cpu
