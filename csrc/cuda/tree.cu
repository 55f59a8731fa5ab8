// Tree mask and positions, greedy walk.
//
// tree_mask: a warp a row of the mask [n, n] (bytes); it clears the row, then one lane follows the
// parents to the root. The
//   depth is the number of steps. Complexity: O(n^2 / 32 + n depth). Launch shape: (n / 8) x 256.
// greedy_walk: one thread block. next[i] is the first child of i that carries the target's choice
// at i (atomicMin in
//   shared memory, so the order of the threads does not matter); one thread then follows next from
//   the root. Complexity: O(n / 1024 + depth). Launch shape: 1 x 1024.
#include "common.cuh"
#include "launch.h"

namespace dynaspec::cuda {
namespace {

constexpr int kMaskThreads = 256;
constexpr int kWalkThreads = 1024;

__global__ void __launch_bounds__(kMaskThreads, 1)
    mask_kernel(const int64_t* parents, int n, bool* mask, int64_t* depth) {
  const int row = blockIdx.x * (kMaskThreads / kWarp) + warp_id();
  if (row >= n) return;
  bool* mine = mask + static_cast<int64_t>(row) * n;
  for (int j = lane_id(); j < n; j += kWarp) mine[j] = false;
  __syncwarp();
  if (lane_id() != 0) return;
  int steps = -1;
  for (int64_t at = row; at >= 0; at = parent_of(parents, at), ++steps) mine[at] = true;
  depth[row] = steps;
}

__global__ void __launch_bounds__(kWalkThreads, 1)
    greedy_walk_kernel(const int64_t* tokens, const int64_t* parents, const int64_t* choices, int n,
                       int64_t* path, int64_t* length) {
  DYNASPEC_SHARED(memory);
  int* next = reinterpret_cast<int*>(memory);
  for (int i = threadIdx.x; i < n; i += kWalkThreads) next[i] = n;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += kWalkThreads) {
    const int64_t parent = parents[i];
    if (parent >= 0 && parent < i && tokens[i] == choices[parent]) atomicMin(&next[parent], i);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  int steps = 0;
  for (int at = 0; at < n; at = next[at]) path[steps++] = at;
  *length = steps;
  while (steps < n) path[steps++] = -1;
}

}  // namespace
}  // namespace dynaspec::cuda

using namespace dynaspec::cuda;

extern "C" int dynaspec_tree_mask(const int64_t* parents, int64_t n, bool* mask, int64_t* depth,
                                  void* stream) {
  if (n < 1 || n > DYNASPEC_MAX_TREE) return cudaErrorInvalidValue;
  const unsigned grid = static_cast<unsigned>(ceil_div(n, kMaskThreads / kWarp));
  return launch(mask_kernel, grid, kMaskThreads, 0, stream, parents, static_cast<int>(n), mask,
                depth);
}

extern "C" int dynaspec_greedy_walk(const int64_t* tokens, const int64_t* parents,
                                    const int64_t* choices, int64_t n, int64_t* path,
                                    int64_t* length, void* stream) {
  if (n < 1 || n > DYNASPEC_MAX_TREE) return cudaErrorInvalidValue;
  return launch(greedy_walk_kernel, 1, kWalkThreads, n * sizeof(int), stream, tokens, parents,
                choices, static_cast<int>(n), path, length);
}
