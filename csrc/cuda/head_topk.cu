// shortlist_topk: product over the selected rows, online log-sum-exp and running top-k; the logits
// never reach memory.
//
// Epilogue of a tile: warp w serves the hidden rows w, w + 4, ...; a lane holds the tile's rows
// lane and lane + 32. The warp's maximum and sum of exponentials join the running statistics of the
// hidden row; if any score beats the k-th best so far, the 64 scores are sorted and merged into the
// running list (shared memory, 64 keys a hidden row, each lane owns two). At the end a thread block
// writes its k best keys and its statistics; head_merge.cu joins them in the order of the thread
// blocks, so two runs agree bit for bit. Launch shape: plan, grid x 128 (see head_stream.cuh), n x
// 1024 (merge).
#include "head_stream.cuh"
#include "topk_list.cuh"

namespace dynaspec::cuda {
namespace {

struct TopKEpilogue {
  int k;
  uint64_t* partial_keys;   // [n, grid, k]
  float2* partial_softmax;  // [n, grid]

  template <int Fragments>
  static constexpr int shared_bytes() {
    return Fragments * kColumns *
           (kList * static_cast<int>(sizeof(uint64_t)) + static_cast<int>(sizeof(float2)));
  }
  __device__ static uint64_t* lists(unsigned char* own) { return reinterpret_cast<uint64_t*>(own); }
  __device__ static float2* softmax(unsigned char* own, int n) {
    return reinterpret_cast<float2*>(own) + n * kList;
  }

  __device__ void begin(const StreamArguments& a, unsigned char* own) const {
    for (int row = warp_id(); row < a.n; row += kStreamThreads / kWarp) {
      lists(own)[row * kList + lane_id()] = 0;
      lists(own)[row * kList + kWarp + lane_id()] = 0;
      if (lane_id() == 0) softmax(own, a.n)[row] = make_float2(-INFINITY, 0.0f);
    }
    __syncwarp();
  }

  template <typename Sum>
  __device__ void tile(const StreamArguments& a, unsigned char* own, const Sum* scores,
                       const Tile& tile) const {
    const int first = tile.x + lane_id(), second = first + kWarp;
    const bool has_first = lane_id() < tile.y, has_second = lane_id() + kWarp < tile.y;
    for (int row = warp_id(); row < a.n; row += kStreamThreads / kWarp) {
      const Sum* mine = scores + row * kScoreStride;
      const float x = has_first ? tempered(a, mine[lane_id()], row, first) : -INFINITY;
      const float y = has_second ? tempered(a, mine[lane_id() + kWarp], row, second) : -INFINITY;
      const float m = warp_max(fmaxf(x, y));
      float sum = has_first && x != -INFINITY ? expf(x - m) : 0.0f;
      sum += has_second && y != -INFINITY ? expf(y - m) : 0.0f;
      sum = warp_sum(sum);

      uint64_t* list = lists(own) + row * kList;
      float2* statistics = softmax(own, a.n) + row;
      const uint64_t worst = list[k - 1];
      const float2 joined = softmax_join(*statistics, make_float2(m, sum));
      __syncwarp();
      if (lane_id() == 0) *statistics = joined;
      KeyPair fresh{has_first ? candidate_key(x, first) : 0,
                    has_second ? candidate_key(y, second) : 0};
      if (__any_sync(kFullMask, fresh.low > worst || fresh.high > worst)) {
        sort_keys(fresh);
        KeyPair best{list[lane_id()], list[lane_id() + kWarp]};
        merge_keys(best, fresh);
        list[lane_id()] = best.low;
        list[lane_id() + kWarp] = best.high;
      }
      __syncwarp();
    }
  }

  __device__ void end(const StreamArguments& a, unsigned char* own) const {
    for (int row = warp_id(); row < a.n; row += kStreamThreads / kWarp) {
      const int64_t at = static_cast<int64_t>(row) * gridDim.x + blockIdx.x;
      for (int e = lane_id(); e < k; e += kWarp)
        partial_keys[at * k + e] = lists(own)[row * kList + e];
      if (lane_id() == 0) partial_softmax[at] = softmax(own, a.n)[row];
    }
  }
};

}  // namespace
}  // namespace dynaspec::cuda

using namespace dynaspec::cuda;

extern "C" int64_t dynaspec_head_workspace(const dynaspec_head* head, int64_t n, int64_t capacity,
                                           int64_t k, int64_t grid) {
  return HeadPlan(nullptr, *head, n, capacity, k, grid).bytes;
}

extern "C" int dynaspec_shortlist_topk(const dynaspec_head* head, const void* hidden,
                                       int hidden_dtype, int64_t n, const int32_t* blocks,
                                       int64_t capacity, int64_t k, float temperature, int64_t grid,
                                       float* log_q, int64_t* ids, float* logsumexp,
                                       void* workspace, void* stream) {
  if (!head_arguments_fit(*head, hidden_dtype, n, capacity, grid) || k < 1 ||
      k > DYNASPEC_MAX_TOPK || !(temperature > 0))
    return cudaErrorInvalidValue;
  const HeadPlan plan(workspace, *head, n, capacity, k, grid);
  int status = launch_plan(plan, *head, hidden, hidden_dtype, n, blocks, capacity, stream);
  const TopKEpilogue epilogue{static_cast<int>(k), plan.partial_keys, plan.partial_softmax};
  if (status == 0) status = launch_stream(plan, *head, n, temperature, epilogue, grid, stream);
  if (status == 0) status = launch_merge(plan, *head, n, k, grid, log_q, ids, logsumexp, stream);
  return status;
}
