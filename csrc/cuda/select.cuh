// Weighted selection without a sort: the longest prefix of the candidates in descending order of
// their keys whose weights fit a budget. One thread block; 8 bits of the 48-bit keys a pass,
// integer sums only, so deterministic. Weights are rows of one head, so their sum is below 2^31 and
// the bins are 32 bits wide: shared memory adds those at once, 64 bits only by compare-and-swap.
#pragma once

#include "common.cuh"

namespace dynaspec::cuda {

constexpr int kBins = 256;
constexpr int kKeyBits = 48;

// Keys are distinct: 32 bits of order (larger first), then 16 bits of index (lower first).
__device__ __forceinline__ uint64_t select_key(uint32_t order, int index) {
  return static_cast<uint64_t>(order) << 16 | static_cast<uint64_t>(0xffff - index);
}
__device__ __forceinline__ int select_index(uint64_t key) {
  return 0xffff - static_cast<int>(key & 0xffff);
}

struct CutState {        // shared memory
  uint64_t cut;          // digits found so far of the first key that does not fit
  uint32_t bins[kBins];  // weight of the candidates whose key falls into a bin
  uint32_t left;         // budget not yet spent
  int found;             // is there a candidate that does not fit

  // Valid after find_cut. A candidate of weight 0 may be taken or not.
  __device__ bool takes(uint64_t key) const { return !found || key > cut; }
};

// One warp: spends the budget on bins, highest first, up to the first that does not fit; its number
// is the next digit of the cut. Lane l holds bins 255 - 8 l .. 248 - 8 l.
__device__ __forceinline__ void take_bins(CutState& s, int shift) {
  constexpr int kEach = kBins / kWarp;
  const int top = kBins - 1 - kEach * lane_id();
  uint32_t sum = 0;
  for (int i = 0; i < kEach; ++i) sum += s.bins[top - i];
  uint32_t spent = sum;
  for (int step = 1; step < kWarp; step *= 2) {
    const uint32_t other = __shfl_up_sync(kFullMask, spent, step);
    if (lane_id() >= step) spent += other;
  }
  const uint32_t left = s.left;
  const unsigned over = __ballot_sync(kFullMask, spent > left);
  __syncwarp();
  if (over == 0) {
    if (lane_id() == 0) s.found = 0;
  } else if (lane_id() == __ffs(static_cast<int>(over)) - 1) {
    uint32_t rest = left - (spent - sum);
    int bin = top;
    while (s.bins[bin] <= rest) rest -= s.bins[bin--];
    s.left = rest;
    s.cut |= static_cast<uint64_t>(bin) << shift;
  }
}

// key(i), weight(i) >= 0 of candidate i < count; the weights sum to less than 2^31. Every thread of
// the block calls it; ends with a barrier.
template <typename Key, typename Weight>
__device__ __forceinline__ void find_cut(CutState& s, int count, int64_t budget, Key key,
                                         Weight weight) {
  if (threadIdx.x == 0) {
    s.left = static_cast<uint32_t>(budget < 0 ? 0 : budget > INT32_MAX ? INT32_MAX : budget);
    s.cut = 0;
    s.found = 1;
  }
  for (int shift = kKeyBits - 8; shift >= 0; shift -= 8) {
    for (int b = threadIdx.x; b < kBins; b += blockDim.x) s.bins[b] = 0;
    __syncthreads();
    const uint64_t cut = s.cut;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const uint64_t k = key(i);
      const uint32_t w = weight(i);
      if (w > 0 && (k ^ cut) >> (shift + 8) == 0) atomicAdd(&s.bins[k >> shift & 0xff], w);
    }
    __syncthreads();
    if (warp_id() == 0) take_bins(s, shift);
    __syncthreads();
    if (!s.found) break;
  }
  __syncthreads();
}

}  // namespace dynaspec::cuda
