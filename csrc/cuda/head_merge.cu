// Joins the thread blocks' partial results of a head call: log-sum-exp and, for top-k, the best k
// candidates.
//
// Layout: as HeadPlan. One thread block a hidden row. Warp w merges the sorted lists of the thread
// blocks w, w + 32, ...; then the 32 lists are merged pairwise in shared memory. The statistics are
// joined in a fixed order: thread t those of the thread blocks t, t + 1024, ...; then a binary
// tree. Thread blocks without tiles are skipped. Complexity: O(grid k) reads a hidden row. Launch
// shape: n x 1024.
#include "topk_list.cuh"

namespace dynaspec::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;

struct MergeArguments {
  const uint64_t* partial_keys;
  const float2* partial_softmax;
  const int* totals;
  const int32_t* row_ids;
  int k, grid;
  float* log_q;
  int64_t* ids;
  float* logsumexp;
};

__device__ float join_softmax(const MergeArguments& a, int active, float2* shared) {
  const float2* parts = a.partial_softmax + static_cast<int64_t>(blockIdx.x) * a.grid;
  float2 mine = make_float2(-INFINITY, 0.0f);
  for (int i = threadIdx.x; i < active; i += kThreads) mine = softmax_join(mine, parts[i]);
  shared[threadIdx.x] = mine;
  __syncthreads();
  for (int step = kThreads / 2; step > 0; step /= 2) {
    if (static_cast<int>(threadIdx.x) < step)
      shared[threadIdx.x] = softmax_join(shared[threadIdx.x], shared[threadIdx.x + step]);
    __syncthreads();
  }
  const float2 all = shared[0];
  __syncthreads();
  return all.x + logf(all.y);
}

__device__ __forceinline__ KeyPair load_list(const uint64_t* list, int k) {
  return KeyPair{lane_id() < k ? list[lane_id()] : 0,
                 lane_id() + kWarp < k ? list[lane_id() + kWarp] : 0};
}

__global__ void __launch_bounds__(kThreads, 1) merge_kernel(MergeArguments a) {
  DYNASPEC_SHARED(memory);
  const int active = min(a.grid, a.totals[0]);
  const float lse = join_softmax(a, active, reinterpret_cast<float2*>(memory));
  if (threadIdx.x == 0) a.logsumexp[blockIdx.x] = lse;
  if (a.k == 0) return;

  uint64_t* lists = reinterpret_cast<uint64_t*>(memory);
  const uint64_t* parts = a.partial_keys + static_cast<int64_t>(blockIdx.x) * a.grid * a.k;
  KeyPair best{0, 0};
  for (int i = warp_id(); i < active; i += kWarps) {
    const KeyPair other = load_list(parts + static_cast<int64_t>(i) * a.k, a.k);
    merge_keys(best, other);
  }
  for (int half = kWarps / 2; half > 0; half /= 2) {
    if (warp_id() >= half && warp_id() < 2 * half) {
      lists[warp_id() * kList + lane_id()] = best.low;
      lists[warp_id() * kList + kWarp + lane_id()] = best.high;
    }
    __syncthreads();
    if (warp_id() < half) merge_keys(best, load_list(lists + (warp_id() + half) * kList, kList));
  }
  if (warp_id() != 0) return;
  for (int slot = 0; slot < 2; ++slot) {
    const int e = lane_id() + slot * kWarp;
    if (e >= a.k) continue;
    const uint64_t key = slot == 0 ? best.low : best.high;
    const int64_t at = static_cast<int64_t>(blockIdx.x) * a.k + e;
    const uint32_t row = candidate_row(key);
    a.log_q[at] = key == 0 ? -INFINITY : candidate_value(key) - lse;
    a.ids[at] = key == 0 ? -1 : a.row_ids != nullptr ? a.row_ids[row] : static_cast<int64_t>(row);
  }
}

}  // namespace

int launch_merge(const HeadPlan& plan, const dynaspec_head& head, int64_t n, int64_t k,
                 int64_t grid, float* log_q, int64_t* ids, float* logsumexp, void* stream) {
  MergeArguments a{};
  a.partial_keys = plan.partial_keys;
  a.partial_softmax = plan.partial_softmax;
  a.totals = plan.totals;
  a.row_ids = head.row_ids;
  a.k = static_cast<int>(k);
  a.grid = static_cast<int>(grid);
  a.log_q = log_q;
  a.ids = ids;
  a.logsumexp = logsumexp;
  constexpr size_t kShared = kWarps * kList * sizeof(uint64_t);
  static_assert(kShared >= kThreads * sizeof(float2), "the statistics share the lists' memory");
  return launch(merge_kernel, static_cast<unsigned>(n), kThreads, kShared, stream, a);
}

}  // namespace dynaspec::cuda
