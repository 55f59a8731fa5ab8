// What the head's kernels share: tiles of rows, workspace, launch shapes.
//
// A selection arrives as blocks of rows. The plan (head_plan.cu) cuts them into tiles of at most 64
// contiguous rows that never cross a block's border; a fixed number of thread blocks walk the tiles
// in strides, so no launch shape depends on data. Every weight is read from memory exactly once per
// call.
#pragma once

#include "common.cuh"
#include "launch.h"

namespace dynaspec::cuda {

constexpr int kTileRows = 64;        // rows of the head a tile
constexpr int kStreamThreads = 128;  // four warps, each owns 16 rows of a tile
constexpr int kColumns = 16;         // hidden rows a fragment; a kernel has 1 or 2 of them
constexpr int kStages = 3;           // chunks of the weights in flight
constexpr int kList = 64;            // entries of a running top-k list: two a lane

// x first row, y rows, z position of the first row among all selected rows, w unused.
using Tile = int4;

// Statistics of an online softmax: the maximum and the sum of exp(l - maximum); (-inf, 0) for no
// logits.
__device__ __forceinline__ float2 softmax_join(float2 a, float2 b) {
  const float m = fmaxf(a.x, b.x);
  if (m == -INFINITY) return make_float2(m, a.y + b.y);
  return make_float2(m, a.y * expf(a.x - m) + b.y * expf(b.x - m));
}

struct HeadPlan {
  void* hidden;         // [columns, padded dim] in the type that the products read, zero padded
  float* hidden_scale;  // [columns] scale of each quantised row (int8 heads)
  int* tile_start;
  int* row_start;
  Tile* tiles;
  int* totals;              // [2]: tiles, rows
  uint64_t* partial_keys;   // [n, grid, k] candidates of each thread block, best first, 0: none
  float2* partial_softmax;  // [n, grid]
  int64_t tile_capacity, bytes;
  int padded_dim, columns;

  HeadPlan(void* workspace, const dynaspec_head& head, int64_t n, int64_t capacity, int64_t k,
           int64_t grid) {
    columns = n <= kColumns ? kColumns : 2 * kColumns;
    padded_dim = static_cast<int>(round_up(head.dim, 64));
    tile_capacity = capacity + head.rows / kTileRows + 1;
    Carver carve(workspace);
    hidden = carve.take<char>(static_cast<int64_t>(columns) * padded_dim *
                              (head.dtype == DYNASPEC_FLOAT32 ? 4 : 2));
    hidden_scale = carve.take<float>(columns);
    tile_start = carve.take<int>(capacity);
    row_start = carve.take<int>(capacity);
    tiles = carve.take<Tile>(tile_capacity);
    totals = carve.take<int>(2);
    partial_keys = carve.take<uint64_t>(n * grid * k);
    partial_softmax = carve.take<float2>(n * grid);
    bytes = carve.used;
  }
};

inline bool head_arguments_fit(const dynaspec_head& head, int hidden_dtype, int64_t n,
                               int64_t capacity, int64_t grid) {
  return head.rows > 0 && head.rows < INT32_MAX - kTileRows && head.dim > 0 && n > 0 &&
         n <= DYNASPEC_MAX_HEAD_ROWS && capacity > 0 && grid > 0 && head.dtype >= 0 &&
         head.dtype <= DYNASPEC_INT8 && (head.dtype != DYNASPEC_INT8 || head.scale != nullptr) &&
         hidden_dtype >= DYNASPEC_FLOAT32 && hidden_dtype <= DYNASPEC_FLOAT16;
}

// Fills the plan's tiles and packed hidden rows.
int launch_plan(const HeadPlan& plan, const dynaspec_head& head, const void* hidden,
                int hidden_dtype, int64_t n, const int32_t* blocks, int64_t capacity, void* stream);

// Merges the thread blocks' partial results (head_merge.cu). k = 0: only logsumexp.
int launch_merge(const HeadPlan& plan, const dynaspec_head& head, int64_t n, int64_t k,
                 int64_t grid, float* log_q, int64_t* ids, float* logsumexp, void* stream);

}  // namespace dynaspec::cuda
