// Lists of the best 64 candidates of a warp, two keys a lane (entry e of a sorted list: lane e %
// 32, slot e / 32), best first. Keys are distinct (see candidate_key) but for 0, so the result does
// not depend on the order of the merges.
#pragma once

#include "head.cuh"

namespace dynaspec::cuda {

struct KeyPair {
  uint64_t low, high;  // entries lane and lane + 32
};

__device__ __forceinline__ uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }
__device__ __forceinline__ uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

// One stage of a bitonic network over lanes that differ in bit `stride`.
__device__ __forceinline__ void exchange_lanes(KeyPair& x, int stride, bool low_first,
                                               bool high_first) {
  const uint64_t low = __shfl_xor_sync(kFullMask, x.low, stride);
  const uint64_t high = __shfl_xor_sync(kFullMask, x.high, stride);
  const bool first = (lane_id() & stride) == 0;
  x.low = first == low_first ? larger(x.low, low) : smaller(x.low, low);
  x.high = first == high_first ? larger(x.high, high) : smaller(x.high, high);
}

// Sorts a bitonic sequence of 64, best first.
__device__ __forceinline__ void finish_merge(KeyPair& x) {
  const uint64_t best = larger(x.low, x.high);
  x.high = smaller(x.low, x.high);
  x.low = best;
  for (int stride = kWarp / 2; stride > 0; stride /= 2) exchange_lanes(x, stride, true, true);
}

__device__ __forceinline__ void sort_keys(KeyPair& x) {
  for (int size = 2; size <= kWarp; size *= 2)
    for (int stride = size / 2; stride > 0; stride /= 2)
      exchange_lanes(x, stride, (lane_id() & size) == 0, ((lane_id() + kWarp) & size) == 0);
  finish_merge(x);
}

// The best 64 of two sorted lists: the larger of a[e] and b[63 - e] form a bitonic sequence.
__device__ __forceinline__ void merge_keys(KeyPair& a, const KeyPair& b) {
  const uint64_t high = __shfl_xor_sync(kFullMask, b.high, kWarp - 1);
  const uint64_t low = __shfl_xor_sync(kFullMask, b.low, kWarp - 1);
  a.low = larger(a.low, high);
  a.high = larger(a.high, low);
  finish_merge(a);
}

}  // namespace dynaspec::cuda
