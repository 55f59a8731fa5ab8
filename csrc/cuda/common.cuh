// Small device helpers shared by the kernels. Every kernel names a least number of resident thread
// blocks in its launch bounds: without one the compiler gives up registers for occupancy of its own
// choosing, and spills. Layout: warps of 32 lanes, all of them active in a collective.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "launch.h"

// Dynamic shared memory of a kernel. DYNASPEC_SIMT is set where the sources run on the CPU
// (tests/simt).
#ifdef DYNASPEC_SIMT
#define DYNASPEC_SHARED(name) unsigned char* name = simt::shared_memory()
#else
#define DYNASPEC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

namespace dynaspec::cuda {

constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kWarp = 32;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

__device__ __forceinline__ int lane_id() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int warp_id() { return threadIdx.x / kWarp; }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(int8_t x) { return static_cast<float>(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half(x);
}

// Entry of an array of floating-point numbers whose type is known at run time.
__device__ __forceinline__ float load_as_float(const void* data, int dtype, int64_t i) {
  switch (dtype) {
    case DYNASPEC_FLOAT32:
      return static_cast<const float*>(data)[i];
    case DYNASPEC_BFLOAT16:
      return to_float(static_cast<const __nv_bfloat16*>(data)[i]);
    default:
      return to_float(static_cast<const __half*>(data)[i]);
  }
}

// Symmetric 8-bit quantisation, halves to even; 0 in a row of zeros. A NaN scale makes the result
// meaningless, and the product with that scale NaN.
__device__ __forceinline__ int8_t quantised(float x, float scale) {
  return scale > 0.0f ? static_cast<int8_t>(rintf(x / scale)) : static_cast<int8_t>(0);
}

// Unsigned integers in the order of the floats: -inf < ... < -0 = +0 < ... < +inf < NaN. Never 0.
__device__ __forceinline__ uint32_t order_key(float x) {
  if (x != x) return 0xffffffffu;
  const uint32_t u = __float_as_uint(x + 0.0f);  // -0 becomes +0
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
__device__ __forceinline__ float order_value(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
// (value, row) as one key: larger value first, then lower row. 0 stands for "nothing".
__device__ __forceinline__ uint64_t candidate_key(float value, uint32_t row) {
  return static_cast<uint64_t>(order_key(value)) << 32 | (0xffffffffu - row);
}
__device__ __forceinline__ float candidate_value(uint64_t key) {
  return order_value(static_cast<uint32_t>(key >> 32));
}
__device__ __forceinline__ uint32_t candidate_row(uint64_t key) {
  return 0xffffffffu - static_cast<uint32_t>(key);
}

// Reductions over a warp; every lane gets the result. The order of summation is fixed.
__device__ __forceinline__ float warp_sum(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kFullMask, x, step);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kFullMask, x, step));
  return x;
}

// Exclusive prefix sum over the threads of the block; `total` is the block's sum. `scratch`: 32
// ints of shared memory, free again after the call. blockDim.x: a multiple of 32.
__device__ __forceinline__ int block_exclusive_scan(int x, int* scratch, int* total) {
  int inclusive = x;
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(kFullMask, inclusive, step);
    if (lane_id() >= step) inclusive += other;
  }
  if (lane_id() == kWarp - 1) scratch[warp_id()] = inclusive;
  __syncthreads();
  const int warps = blockDim.x / kWarp;
  if (warp_id() == 0) {
    int sum = lane_id() < warps ? scratch[lane_id()] : 0;
    for (int step = 1; step < kWarp; step *= 2) {
      const int other = __shfl_up_sync(kFullMask, sum, step);
      if (lane_id() >= step) sum += other;
    }
    __syncwarp();
    scratch[lane_id()] = sum;
  }
  __syncthreads();
  const int before = warp_id() == 0 ? 0 : scratch[warp_id() - 1];
  *total = scratch[warps - 1];
  __syncthreads();
  return before + inclusive - x;
}

// Launch without the <<< >>> syntax, so that an ordinary C++ compiler reads the sources as well.
template <typename... Expected, typename... Actual>
int launch(void (*kernel)(Expected...), dim3 grid, dim3 block, size_t shared, void* stream,
           Actual... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  return static_cast<int>(cudaLaunchKernelEx(&config, kernel, static_cast<Expected>(arguments)...));
}

// Cuts a caller's workspace into arrays aligned to 256 bytes; with a null base it only counts.
struct Carver {
  char* base;
  int64_t used = 0;

  explicit Carver(void* workspace) : base(static_cast<char*>(workspace)) {}

  template <typename T>
  T* take(int64_t count) {
    T* out = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 256);
    return out;
  }
};

// Parent of a tree's row, -1 for the root. One that does not come before its row counts as none, so
// that a walk upwards always ends.
__device__ __forceinline__ int64_t parent_of(const int64_t* parents, int64_t row) {
  const int64_t parent = parents[row];
  return parent < row ? parent : -1;
}

}  // namespace dynaspec::cuda
