// shortlist_log_probs: the whole distribution over the selected rows, for policies that sample.
//
// Epilogue of a tile: as in head_topk.cu, but the tempered scores go to log_q [n, width] at the
// tile's place among the selected rows; a last kernel subtracts the row's logsumexp and fills the
// columns past the selection (-inf, id -1). Launch shape: plan, grid x 128 (see head_stream.cuh), n
// x 1024 (merge), (width / 1024, n) x 256.
#include "head_stream.cuh"

namespace dynaspec::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 4;  // columns a thread of the last kernel

struct DistributionEpilogue {
  float* log_q;
  int64_t* ids;
  const int32_t* row_ids;
  float2* partial_softmax;  // [n, grid]
  int width;

  template <int Fragments>
  static constexpr int shared_bytes() {
    return Fragments * kColumns * static_cast<int>(sizeof(float2));
  }

  __device__ void begin(const StreamArguments& a, unsigned char* own) const {
    float2* softmax = reinterpret_cast<float2*>(own);
    for (int row = warp_id(); row < a.n; row += kStreamThreads / kWarp)
      if (lane_id() == 0) softmax[row] = make_float2(-INFINITY, 0.0f);
    __syncwarp();
  }

  template <typename Sum>
  __device__ void tile(const StreamArguments& a, unsigned char* own, const Sum* scores,
                       const Tile& tile) const {
    float2* softmax = reinterpret_cast<float2*>(own);
    for (int row = warp_id(); row < a.n; row += kStreamThreads / kWarp) {
      float value[2];
      float m = -INFINITY, sum = 0.0f;
      for (int slot = 0; slot < 2; ++slot) {
        const int i = lane_id() + slot * kWarp;
        value[slot] =
            i < tile.y ? tempered(a, scores[row * kScoreStride + i], row, tile.x + i) : -INFINITY;
        if (i < tile.y && tile.z + i < width)
          log_q[static_cast<int64_t>(row) * width + tile.z + i] = value[slot];
        m = fmaxf(m, value[slot]);
      }
      m = warp_max(m);
      for (int slot = 0; slot < 2; ++slot)
        sum += value[slot] != -INFINITY ? expf(value[slot] - m) : 0.0f;
      sum = warp_sum(sum);
      if (lane_id() == 0) softmax[row] = softmax_join(softmax[row], make_float2(m, sum));
    }
    for (int i = threadIdx.x; i < tile.y; i += kStreamThreads)
      if (tile.z + i < width)
        ids[tile.z + i] =
            row_ids != nullptr ? row_ids[tile.x + i] : static_cast<int64_t>(tile.x + i);
  }

  __device__ void end(const StreamArguments& a, unsigned char* own) const {
    const float2* softmax = reinterpret_cast<const float2*>(own);
    for (int row = warp_id(); row < a.n; row += kStreamThreads / kWarp)
      if (lane_id() == 0)
        partial_softmax[static_cast<int64_t>(row) * gridDim.x + blockIdx.x] = softmax[row];
  }
};

__global__ void __launch_bounds__(kThreads, 1)
    normalise_kernel(float* log_q, int64_t* ids, const float* logsumexp, const int* totals,
                     int width) {
  const int selected = totals[1];
  const float lse = logsumexp[blockIdx.y];
  const int first = blockIdx.x * kThreads * kEach;
  for (int i = first + threadIdx.x; i < min(first + kThreads * kEach, width); i += kThreads) {
    float* value = log_q + static_cast<int64_t>(blockIdx.y) * width + i;
    *value = i < selected ? *value - lse : -INFINITY;
    if (i >= selected && blockIdx.y == 0) ids[i] = -1;
  }
}

}  // namespace
}  // namespace dynaspec::cuda

using namespace dynaspec::cuda;

extern "C" int dynaspec_shortlist_log_probs(const dynaspec_head* head, const void* hidden,
                                            int hidden_dtype, int64_t n, const int32_t* blocks,
                                            int64_t capacity, int64_t width, float temperature,
                                            int64_t grid, float* log_q, int64_t* ids,
                                            float* logsumexp, void* workspace, void* stream) {
  if (!head_arguments_fit(*head, hidden_dtype, n, capacity, grid) || width < 1 ||
      width > INT32_MAX - kTileRows || !(temperature > 0))
    return cudaErrorInvalidValue;
  const HeadPlan plan(workspace, *head, n, capacity, 0, grid);
  int status = launch_plan(plan, *head, hidden, hidden_dtype, n, blocks, capacity, stream);
  const DistributionEpilogue epilogue{log_q, ids, head->row_ids, plan.partial_softmax,
                                      static_cast<int>(width)};
  if (status == 0) status = launch_stream(plan, *head, n, temperature, epilogue, grid, stream);
  if (status == 0)
    status = launch_merge(plan, *head, n, 0, grid, nullptr, nullptr, logsumexp, stream);
  const dim3 shape(static_cast<unsigned>(ceil_div(width, kThreads * kEach)),
                   static_cast<unsigned>(n));
  if (status == 0)
    status = launch(normalise_kernel, shape, kThreads, 0, stream, log_q, ids, logsumexp,
                    plan.totals, static_cast<int>(width));
  return status;
}
