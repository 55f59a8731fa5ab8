// EAGLE-2's expansion and reranking: the best candidates by a score, chosen by the radix search of
// select.cuh.
//
// topk_expand: keys are (score, ~index) of parent_scores[i] + log_q[i, j]; the chosen ones (at most
// 1,024) are gathered in
//   shared memory and sorted by a bitonic network. Complexity: O(6 w k / 1024 + log^2 count).
//   Launch shape: 1 x 1024.
// tree_rerank: a candidate's value is the minimum along its path, so an ancestor is never worse
// than its descendants, and
//   with ties to the lower index the choice is connected. Layout: keys and new places [n] in the
//   workspace; a prefix sum over the chosen flags gives the ascending order. Complexity: O(n (6 +
//   depth) / 1024). Launch shape: 1 x 1024.
#include "common.cuh"
#include "launch.h"
#include "select.cuh"

namespace dynaspec::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kMaxCandidates = 0xffff;

struct ExpandShared {
  CutState cut;
  uint64_t chosen[kThreads];
  int used;
};

// Descending; the network's width is a power of two, as wide as the list needs.
__device__ void sort_descending(uint64_t* keys, int width) {
  for (int size = 2; size <= width; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      const int i = threadIdx.x, j = i ^ stride;
      if (i < width && j > i) {
        const uint64_t a = keys[i], b = keys[j];
        if ((a < b) == ((i & size) == 0)) {
          keys[i] = b;
          keys[j] = a;
        }
      }
      __syncthreads();
    }
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    expand_kernel(const float* parent_scores, const float* log_q, int w, int k, int count,
                  int64_t* index, float* score) {
  DYNASPEC_SHARED(memory);
  ExpandShared& s = *reinterpret_cast<ExpandShared*>(memory);
  auto value = [&](int i) { return parent_scores[i / k] + log_q[i]; };
  auto key = [&](int i) { return select_key(order_key(value(i)), i); };
  find_cut(s.cut, w * k, count, key, [](int) { return 1ull; });
  s.chosen[threadIdx.x] = 0;
  if (threadIdx.x == 0) s.used = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < w * k; i += kThreads)
    if (s.cut.takes(key(i))) s.chosen[atomicAdd(&s.used, 1)] = key(i);
  __syncthreads();
  int width = 2;
  while (width < count) width *= 2;
  sort_descending(s.chosen, width);
  if (static_cast<int>(threadIdx.x) < count) {
    const int i = select_index(s.chosen[threadIdx.x]);
    index[threadIdx.x] = i;
    score[threadIdx.x] = value(i);
  }
}

struct RerankShared {
  CutState cut;
  int scratch[kWarp];
};

__global__ void __launch_bounds__(kThreads, 1)
    rerank_kernel(const float* scores, const int64_t* parents, int n, int count, int64_t* index,
                  int64_t* new_parents, uint32_t* orders, int* places) {
  DYNASPEC_SHARED(memory);
  RerankShared& s = *reinterpret_cast<RerankShared*>(memory);
  for (int i = threadIdx.x; i < n; i += kThreads) {
    uint32_t least = 0xffffffffu;
    for (int64_t at = i; at >= 0; at = parent_of(parents, at))
      least = min(least, order_key(scores[at]));
    orders[i] = least;
  }
  __syncthreads();
  auto key = [&](int i) { return select_key(orders[i], i); };
  find_cut(s.cut, n, count, key, [](int) { return 1ull; });
  int used = 0;
  for (int base = 0; base < n; base += kThreads) {
    const int i = base + threadIdx.x;
    const bool chosen = i < n && s.cut.takes(key(i));
    int more = 0;
    const int place = used + block_exclusive_scan(chosen ? 1 : 0, s.scratch, &more);
    if (chosen) {
      index[place] = i;
      places[i] = place;
    }
    used += more;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < used; i += kThreads) {
    const int64_t parent = parent_of(parents, index[i]);
    new_parents[i] = parent < 0 ? -1 : places[parent];
  }
}

}  // namespace
}  // namespace dynaspec::cuda

using namespace dynaspec::cuda;

extern "C" int dynaspec_topk_expand(const float* parent_scores, const float* log_q, int64_t w,
                                    int64_t k, int64_t count, int64_t* index, float* score,
                                    void* stream) {
  if (w < 1 || k < 1 || w * k > kMaxCandidates || count < 1 || count > kThreads || count > w * k)
    return cudaErrorInvalidValue;
  return launch(expand_kernel, 1, kThreads, sizeof(ExpandShared), stream, parent_scores, log_q,
                static_cast<int>(w), static_cast<int>(k), static_cast<int>(count), index, score);
}

extern "C" int64_t dynaspec_rerank_workspace(int64_t n) {
  Carver carve(nullptr);
  carve.take<uint32_t>(n);
  carve.take<int>(n);
  return carve.used;
}

extern "C" int dynaspec_tree_rerank(const float* scores, const int64_t* parents, int64_t n,
                                    int64_t count, int64_t* index, int64_t* new_parents,
                                    void* workspace, void* stream) {
  if (n < 1 || n > kMaxCandidates || count < 1 || count > n) return cudaErrorInvalidValue;
  Carver carve(workspace);
  uint32_t* orders = carve.take<uint32_t>(n);
  int* places = carve.take<int>(n);
  return launch(rerank_kernel, 1, kThreads, sizeof(RerankShared), stream, scores, parents,
                static_cast<int>(n), static_cast<int>(count), index, new_parents, orders, places);
}
