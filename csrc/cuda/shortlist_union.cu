// Union of the selected clusters, the core and the extra rows, as ascending disjoint blocks of
// rows.
//
// Layout: a bitmap of the head's rows in the workspace (bit r % 32 of word r / 32), one key and one
// weight a cluster. One thread block of 1,024 threads does everything, so barriers of the block
// order its phases.
//
//   1 clear     the bitmap
//   2 mark      core and extras (atomicOr)
//   3 weigh     a cluster: key = max over the frontier's rows of its score, weight = its rows not
//   yet taken
//               (clusters are disjoint, so a weight does not depend on which other clusters are
//               taken)
//   4 select    the longest prefix of the clusters in the order (score descending, index ascending)
//   whose weights
//               fit the budget: a weighted radix search for the first cluster that does not fit, 8
//               bits of the key (score, ~index) a pass, instead of a sort. Integer sums only:
//               deterministic.
//   5 mark      the selected clusters
//   6 compact   the i-th 0->1 edge of the bitmap starts block i, the i-th 1->0 edge ends it: two
//   prefix sums
//
// Complexity: O(n M + V / 32 + 6 M) reads, no sort, no host synchronisation. Launch shape: 1 x
// 1024.
#include "common.cuh"
#include "launch.h"
#include "select.cuh"

namespace dynaspec::cuda {
namespace {

constexpr int kThreads = 1024;

struct UnionArguments {
  const float* scores;
  const int32_t* offsets;
  const int32_t* extra_rows;
  int n, clusters, extras, core_rows, rows, capacity;
  int64_t budget;
  int32_t* blocks;
  int32_t* count;
  int64_t* size;
  uint32_t* bitmap;
  uint64_t* keys;
  int32_t* weights;
};

struct UnionShared {
  CutState cut;
  int scratch[kWarp];
};

// Bits lo .. hi of a word, 0 <= lo < hi <= 32.
__device__ __forceinline__ uint32_t bit_range(int lo, int hi) {
  const uint32_t below = hi == 32 ? 0xffffffffu : (1u << hi) - 1u;
  return below & ~((1u << lo) - 1u);
}

// The part of rows [lo, hi) that lies in word w.
__device__ __forceinline__ uint32_t word_mask(int w, int lo, int hi) {
  const int first = max(lo - w * 32, 0), last = min(hi - w * 32, 32);
  return first < last ? bit_range(first, last) : 0u;
}

__device__ void weigh_clusters(const UnionArguments& a) {
  for (int c = threadIdx.x; c < a.clusters; c += kThreads) {
    const int lo = max(a.offsets[c], 0), hi = min(a.offsets[c + 1], a.rows);
    int taken = 0;
    for (int w = lo / 32; w * 32 < hi; ++w) taken += __popc(a.bitmap[w] & word_mask(w, lo, hi));
    uint32_t best = 0;
    for (int i = 0; i < a.n; ++i) {
      const uint32_t key = order_key(a.scores[static_cast<int64_t>(i) * a.clusters + c]);
      best = max(best, key);
    }
    a.keys[c] = select_key(best, c);
    a.weights[c] = max(hi - lo - taken, 0);
  }
}

// Writes column `side` of the blocks: the positions of the bitmap's edges. Returns their number.
__device__ int write_edges(const UnionArguments& a, UnionShared& s, int words, int side) {
  const int each = static_cast<int>(ceil_div(words, kThreads));
  const int first = min(static_cast<int>(threadIdx.x) * each, words);
  const int last = min(first + each, words);
  auto edges = [&](int w) {
    const uint32_t x = a.bitmap[w];
    if (side == 0) return x & ~(x << 1 | (w > 0 ? a.bitmap[w - 1] >> 31 : 0u));
    return x & ~(x >> 1 | (w + 1 < words ? a.bitmap[w + 1] << 31 : 0u));
  };
  int mine = 0, total = 0;
  for (int w = first; w < last; ++w) mine += __popc(edges(w));
  int at = block_exclusive_scan(mine, s.scratch, &total);
  for (int w = first; w < last; ++w) {
    for (uint32_t x = edges(w); x != 0; x &= x - 1, ++at)
      if (at < a.capacity) a.blocks[2 * at + side] = w * 32 + __ffs(x) - 1 + side;
  }
  return total;
}

__global__ void __launch_bounds__(kThreads, 1) union_kernel(UnionArguments a) {
  DYNASPEC_SHARED(memory);
  UnionShared& s = *reinterpret_cast<UnionShared*>(memory);
  const int words = static_cast<int>(ceil_div(a.rows, 32));

  for (int w = threadIdx.x; w < words; w += kThreads) a.bitmap[w] = word_mask(w, 0, a.core_rows);
  __syncthreads();
  for (int i = threadIdx.x; i < a.extras; i += kThreads) {
    const int row = a.extra_rows[i];
    if (row >= 0 && row < a.rows) atomicOr(&a.bitmap[row / 32], 1u << row % 32);
  }
  __syncthreads();

  int mine = 0, taken = 0;
  for (int w = threadIdx.x; w < words; w += kThreads) mine += __popc(a.bitmap[w]);
  block_exclusive_scan(mine, s.scratch, &taken);
  weigh_clusters(a);
  find_cut(
      s.cut, a.clusters, a.budget - taken, [&](int c) { return a.keys[c]; },
      [&](int c) { return static_cast<uint32_t>(a.weights[c]); });
  for (int c = threadIdx.x; c < a.clusters; c += kThreads) {
    if (a.weights[c] == 0 || !s.cut.takes(a.keys[c])) continue;
    const int lo = max(a.offsets[c], 0), hi = min(a.offsets[c + 1], a.rows);
    for (int w = lo / 32; w * 32 < hi; ++w) atomicOr(&a.bitmap[w], word_mask(w, lo, hi));
  }
  __syncthreads();

  const int found = write_edges(a, s, words, 0);
  write_edges(a, s, words, 1);
  for (int i = found + threadIdx.x; i < a.capacity; i += kThreads)
    a.blocks[2 * i] = a.blocks[2 * i + 1] = a.rows;
  mine = 0;
  for (int w = threadIdx.x; w < words; w += kThreads) mine += __popc(a.bitmap[w]);
  block_exclusive_scan(mine, s.scratch, &taken);
  if (threadIdx.x == 0) {
    *a.count = found;
    *a.size = taken;
  }
}

struct UnionWorkspace {
  uint32_t* bitmap;
  uint64_t* keys;
  int32_t* weights;
  int64_t bytes;

  UnionWorkspace(void* base, int64_t rows, int64_t clusters) {
    Carver carve(base);
    bitmap = carve.take<uint32_t>(ceil_div(rows, 32));
    keys = carve.take<uint64_t>(clusters);
    weights = carve.take<int32_t>(clusters);
    bytes = carve.used;
  }
};

}  // namespace
}  // namespace dynaspec::cuda

using namespace dynaspec::cuda;

extern "C" int64_t dynaspec_union_capacity(int64_t rows, int64_t clusters, int64_t extras,
                                           int64_t core_rows) {
  const int64_t parts = clusters + extras + (core_rows > 0 ? 1 : 0);
  const int64_t capacity = parts < (rows + 1) / 2 ? parts : (rows + 1) / 2;
  return capacity > 1 ? capacity : 1;
}

extern "C" int64_t dynaspec_union_workspace(int64_t rows, int64_t clusters) {
  return UnionWorkspace(nullptr, rows, clusters).bytes;
}

extern "C" int dynaspec_shortlist_union(const float* scores, int64_t n, int64_t clusters,
                                        const int32_t* offsets, const int32_t* extra_rows,
                                        int64_t extras, int64_t core_rows, int64_t rows,
                                        int64_t budget, int32_t* blocks, int64_t capacity,
                                        int32_t* count, int64_t* size, void* workspace,
                                        void* stream) {
  if (clusters > 0xffff || rows < 1 || rows > INT32_MAX - 32 || core_rows > rows)
    return cudaErrorInvalidValue;
  const UnionWorkspace w(workspace, rows, clusters);
  UnionArguments a{};
  a.scores = scores;
  a.offsets = offsets;
  a.extra_rows = extra_rows;
  a.n = static_cast<int>(n);
  a.clusters = n > 0 ? static_cast<int>(clusters) : 0;
  a.extras = static_cast<int>(extras);
  a.core_rows = static_cast<int>(core_rows);
  a.rows = static_cast<int>(rows);
  a.capacity = static_cast<int>(capacity);
  a.budget = budget;
  a.blocks = blocks;
  a.count = count;
  a.size = size;
  a.bitmap = w.bitmap;
  a.keys = w.keys;
  a.weights = w.weights;
  return launch(union_kernel, 1, kThreads, sizeof(UnionShared), stream, a);
}
