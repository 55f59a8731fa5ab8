// Plan of a head call: cuts the blocks into tiles and packs the hidden rows.
//
// Layout: tile_start, row_start [capacity] are exclusive prefix sums over the blocks of their tiles and rows; tiles
// [tile_capacity] is what the streaming kernels walk. Packed hidden rows are [16 or 32, padded dim], zero padded, in
// bf16 (bf16 and int8 heads), fp16 or float32.
// Complexity: O(capacity + tiles log capacity + n d). Launch shape: (1 + packing blocks) x 1024; block 0 plans, the
// others pack.
#include "head.cuh"

namespace dynaspec::cuda {
namespace {

constexpr int kThreads = 1024;

struct PlanArguments {
  const int32_t* blocks;
  int capacity, rows, tile_capacity;
  int* tile_start;
  int* row_start;
  Tile* tiles;
  int* totals;
  const void* hidden;
  void* packed;
  int n, dim, padded_dim, columns, hidden_dtype, packed_dtype;
};

__device__ __forceinline__ int2 block_range(const PlanArguments& a, int i) {
  const int lo = max(a.blocks[2 * i], 0), hi = min(a.blocks[2 * i + 1], a.rows);
  return make_int2(lo, max(hi, lo));
}

__device__ void plan_tiles(const PlanArguments& a, int* scratch) {
  int tiles = 0, rows = 0;
  for (int base = 0; base < a.capacity; base += kThreads) {
    const int i = base + threadIdx.x;
    const int2 range = i < a.capacity ? block_range(a, i) : make_int2(0, 0);
    const int length = range.y - range.x;
    int more_tiles = 0, more_rows = 0;
    const int tile = block_exclusive_scan(
        static_cast<int>(ceil_div(length, kTileRows)), scratch, &more_tiles);
    const int row = block_exclusive_scan(length, scratch, &more_rows);
    if (i < a.capacity) {
      a.tile_start[i] = tiles + tile;
      a.row_start[i] = rows + row;
    }
    tiles += more_tiles;
    rows += more_rows;
  }
  tiles = min(tiles, a.tile_capacity);  // blocks that overlap would need more than the head has
  if (threadIdx.x == 0) {
    a.totals[0] = tiles;
    a.totals[1] = rows;
  }
  __syncthreads();
  for (int t = threadIdx.x; t < tiles; t += kThreads) {
    // The last block that starts at or before tile t; blocks without rows never are the last.
    int lo = 0, hi = a.capacity - 1;
    while (lo < hi) {
      const int middle = (lo + hi + 1) / 2;
      if (a.tile_start[middle] <= t) {
        lo = middle;
      } else {
        hi = middle - 1;
      }
    }
    const int2 range = block_range(a, lo);
    const int skip = (t - a.tile_start[lo]) * kTileRows;
    a.tiles[t] = make_int4(range.x + skip, min(kTileRows, range.y - range.x - skip),
                           a.row_start[lo] + skip, 0);
  }
}

__device__ void pack_hidden(const PlanArguments& a) {
  const int total = a.columns * a.padded_dim, stride = (gridDim.x - 1) * kThreads;
  for (int i = (blockIdx.x - 1) * kThreads + threadIdx.x; i < total; i += stride) {
    const int row = i / a.padded_dim, column = i % a.padded_dim;
    float x = 0;
    if (row < a.n && column < a.dim) {
      const int64_t at = static_cast<int64_t>(row) * a.dim + column;
      x = a.hidden_dtype == DYNASPEC_FLOAT32
              ? static_cast<const float*>(a.hidden)[at]
              : to_float(static_cast<const __nv_bfloat16*>(a.hidden)[at]);
    }
    if (a.packed_dtype == DYNASPEC_FLOAT32)
      static_cast<float*>(a.packed)[i] = x;
    else if (a.packed_dtype == DYNASPEC_FLOAT16)
      static_cast<__half*>(a.packed)[i] = from_float<__half>(x);
    else
      static_cast<__nv_bfloat16*>(a.packed)[i] = from_float<__nv_bfloat16>(x);
  }
}

__global__ void __launch_bounds__(kThreads) plan_kernel(PlanArguments a) {
  DYNASPEC_SHARED(memory);
  if (blockIdx.x == 0)
    plan_tiles(a, reinterpret_cast<int*>(memory));
  else
    pack_hidden(a);
}

}  // namespace

int launch_plan(const HeadPlan& plan, const dynaspec_head& head, const void* hidden,
                int hidden_dtype, int64_t n, const int32_t* blocks, int64_t capacity,
                void* stream) {
  PlanArguments a{};
  a.blocks = blocks;
  a.capacity = static_cast<int>(capacity);
  a.rows = static_cast<int>(head.rows);
  a.tile_capacity = static_cast<int>(plan.tile_capacity);
  a.tile_start = plan.tile_start;
  a.row_start = plan.row_start;
  a.tiles = plan.tiles;
  a.totals = plan.totals;
  a.hidden = hidden;
  a.packed = plan.hidden;
  a.n = static_cast<int>(n);
  a.dim = static_cast<int>(head.dim);
  a.padded_dim = plan.padded_dim;
  a.columns = plan.columns;
  a.hidden_dtype = hidden_dtype;
  a.packed_dtype = head.dtype == DYNASPEC_INT8 ? DYNASPEC_BFLOAT16 : head.dtype;
  const int64_t packing = ceil_div(static_cast<int64_t>(plan.columns) * plan.padded_dim, kThreads);
  const unsigned grid = 1 + static_cast<unsigned>(packing < 64 ? packing : 64);
  return launch(plan_kernel, grid, kThreads, kWarp * sizeof(int), stream, a);
}

}  // namespace dynaspec::cuda
