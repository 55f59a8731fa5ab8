// Plan of a head call: cuts the blocks into tiles and packs the hidden rows.
//
// Layout: tile_start, row_start [capacity] are exclusive prefix sums over the blocks of their tiles
// and rows; tiles [tile_capacity] is what the streaming kernels walk. Packed hidden rows are [16 or
// 32, padded dim], zero padded, in the head's type; for an int8 head each row is quantised
// symmetrically, scale = max |x| / 127, halves to even. Complexity: O(capacity + tiles log capacity
// + n d). Launch shape: (1 + 16 or 32) x 1024; block 0 plans, block 1 + i packs hidden row i.
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
  float* hidden_scale;
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
    const int tile =
        block_exclusive_scan(static_cast<int>(ceil_div(length, kTileRows)), scratch, &more_tiles);
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

__device__ __forceinline__ float hidden_value(const PlanArguments& a, int row, int column) {
  if (row >= a.n || column >= a.dim) return 0.0f;
  return load_as_float(a.hidden, a.hidden_dtype, static_cast<int64_t>(row) * a.dim + column);
}

// Largest |x| of the row over the thread block; a NaN stays one.
__device__ float row_magnitude(const PlanArguments& a, int row, float* scratch) {
  uint32_t most = 0;
  for (int column = threadIdx.x; column < a.dim; column += kThreads)
    most = max(most, __float_as_uint(hidden_value(a, row, column)) & 0x7fffffffu);
  for (int step = kWarp / 2; step > 0; step /= 2)
    most = max(most, __shfl_xor_sync(kFullMask, most, step));
  if (lane_id() == 0) scratch[warp_id()] = __uint_as_float(most);
  __syncthreads();
  most = 0;
  for (int i = 0; i < kThreads / kWarp; ++i) most = max(most, __float_as_uint(scratch[i]));
  return __uint_as_float(most);
}

__device__ void pack_hidden(const PlanArguments& a, int row, float* scratch) {
  float scale = 0.0f;
  if (a.packed_dtype == DYNASPEC_INT8) {
    scale = row_magnitude(a, row, scratch) / 127.0f;
    if (threadIdx.x == 0) a.hidden_scale[row] = scale;
  }
  for (int column = threadIdx.x; column < a.padded_dim; column += kThreads) {
    const float x = hidden_value(a, row, column);
    const int64_t at = static_cast<int64_t>(row) * a.padded_dim + column;
    switch (a.packed_dtype) {
      case DYNASPEC_FLOAT32:
        static_cast<float*>(a.packed)[at] = x;
        break;
      case DYNASPEC_BFLOAT16:
        static_cast<__nv_bfloat16*>(a.packed)[at] = from_float<__nv_bfloat16>(x);
        break;
      case DYNASPEC_FLOAT16:
        static_cast<__half*>(a.packed)[at] = from_float<__half>(x);
        break;
      default:
        static_cast<int8_t*>(a.packed)[at] = quantised(x, scale);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 1) plan_kernel(PlanArguments a) {
  DYNASPEC_SHARED(memory);
  if (blockIdx.x == 0)
    plan_tiles(a, reinterpret_cast<int*>(memory));
  else
    pack_hidden(a, blockIdx.x - 1, reinterpret_cast<float*>(memory));
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
  a.hidden_scale = plan.hidden_scale;
  a.n = static_cast<int>(n);
  a.dim = static_cast<int>(head.dim);
  a.padded_dim = plan.padded_dim;
  a.columns = plan.columns;
  a.hidden_dtype = hidden_dtype;
  a.packed_dtype = head.dtype;
  const unsigned grid = 1 + static_cast<unsigned>(plan.columns);
  return launch(plan_kernel, grid, kThreads, kWarp * sizeof(int), stream, a);
}

}  // namespace dynaspec::cuda
