// Verification of a sampled or deterministic draft tree with residuals in float32: stochastic_walk
// and sampled_walk.
//
// Layout: the tree in shared memory; p [n, V] and the drafts q in global memory; the residual R [V]
// is the output buffer itself. One thread block walks the tree: all threads take every decision
// alike from the same values, so the walk needs no broadcast, only barriers around the sums. Sums
// over V are compensated (Kahan) per thread and joined in float64 in a fixed order: deterministic.
//
//   deterministic drafts  R = p without the rejected tokens, kept as a list and a mass; written
//   once at the end sampled drafts        R(x) and its mass in the buffer; after a rejection R =
//   max(R - mass D, 0), and without
//                         replacement the drawn entry leaves D (a list)
// Complexity: O(V / 1024) per row entered and per rejection that needs a new sum. Launch shape: 1 x
// 1024.
#include "common.cuh"
#include "launch.h"

namespace dynaspec::cuda {
namespace {

constexpr int kThreads = 1024;

struct WalkArguments {
  const int64_t* tokens;
  const int64_t* parents;
  const float* probs;
  const float* uniforms;
  int n, vocab;
  const float* q;
  const int64_t* q_ids;
  const int64_t* q_rows;
  int q_size;
  int64_t num_q;
  bool sampled, replacement;
  int64_t* path;
  int64_t* length;
  float* residual;
};

struct WalkShared {
  double sums[kWarp];
  int entry;  // place of a token in a sparse draft
  int tokens[DYNASPEC_MAX_TREE];
  int parents[DYNASPEC_MAX_TREE];
  float uniforms[DYNASPEC_MAX_TREE];
  int removed[DYNASPEC_MAX_TREE];  // rejected tokens, or entries of q that have been drawn
};

// Sum of value(i), i < count, over the thread block; every thread gets it. Begins and ends with a
// barrier.
template <typename Value>
__device__ __forceinline__ double block_sum(WalkShared& s, int count, Value value) {
  float sum = 0.0f, lost = 0.0f;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const float y = value(i) - lost;
    const float t = sum + y;
    lost = (t - sum) - y;
    sum = t;
  }
  double total = static_cast<double>(sum) - static_cast<double>(lost);
  for (int step = kWarp / 2; step > 0; step /= 2) total += __shfl_xor_sync(kFullMask, total, step);
  __syncthreads();
  if (lane_id() == 0) s.sums[warp_id()] = total;
  __syncthreads();
  total = 0;
  for (int i = 0; i < kThreads / kWarp; ++i) total += s.sums[i];
  __syncthreads();
  return total;
}

__device__ __forceinline__ bool is_removed(const WalkShared& s, int removed, int x) {
  for (int i = 0; i < removed; ++i)
    if (s.removed[i] == x) return true;
  return false;
}

__device__ __forceinline__ void remove(WalkShared& s, int* removed, int x) {
  __syncthreads();
  if (threadIdx.x == 0) s.removed[*removed] = x;
  __syncthreads();
  ++*removed;
}

// First child of `node` after row `after`, or -1. Every warp searches for itself.
__device__ __forceinline__ int next_child(const WalkShared& s, int n, int node, int after) {
  for (int base = after + 1; base < n; base += kWarp) {
    const int i = base + lane_id();
    const unsigned found = __ballot_sync(kFullMask, i < n && s.parents[i] == node);
    if (found != 0) return base + __ffs(static_cast<int>(found)) - 1;
  }
  return -1;
}

// A row of p without a positive finite sum has no law: its mass counts as NaN, nothing below it is
// tried, and the residual is NaN, which the caller sees in what he draws from it.
__device__ __forceinline__ double law(double mass) {
  return mass > 0 && mass < INFINITY ? mass : static_cast<double>(nanf(""));
}

// Leaves the residual of the path's last row in a.residual. Returns the path's length.
__device__ int walk_deterministic(const WalkArguments& a, WalkShared& s) {
  int node = 0, at = 0, steps = 1, removed = 0;
  const float* p = a.probs;
  double mass = law(block_sum(s, a.vocab, [&](int v) { return p[v]; }));
  for (;;) {
    const int child = mass == mass ? next_child(s, a.n, node, at) : -1;
    if (child < 0) break;
    at = child;
    const int x = s.tokens[child];
    const double px = x < 0 || is_removed(s, removed, x) ? 0.0 : p[x];
    if (s.uniforms[child] < px / mass) {
      if (threadIdx.x == 0) a.path[steps] = child;
      ++steps;
      node = child;
      removed = 0;
      p = a.probs + static_cast<int64_t>(node) * a.vocab;
      mass = law(block_sum(s, a.vocab, [&](int v) { return p[v]; }));
    } else if (px > 0) {
      remove(s, &removed, x);
      // Summed anew where the difference would cancel.
      mass = px < 0.5 * mass
                 ? mass - px
                 : block_sum(
                       s, a.vocab, [&](int v) { return is_removed(s, removed, v) ? 0.0f : p[v]; });
    }
  }
  for (int v = threadIdx.x; v < a.vocab; v += kThreads)
    a.residual[v] = static_cast<float>(p[v] / mass);
  __syncthreads();
  for (int i = threadIdx.x; i < removed; i += kThreads) a.residual[s.removed[i]] = 0.0f;
  return steps;
}

// The draft distribution of the current row: D(entry) = values[entry] / mass, without the removed
// entries.
struct Draft {
  const float* values;
  const int64_t* ids;  // null: entry = token
  int size, vocab, removed;
  double mass;
  bool alive;

  // -1: padding, or an id that the target does not have.
  __device__ __forceinline__ int token(int entry) const {
    const int64_t id = ids == nullptr ? entry : ids[entry];
    return id >= 0 && id < vocab ? static_cast<int>(id) : -1;
  }
  __device__ __forceinline__ float value(const WalkShared& s, int entry) const {
    return token(entry) < 0 || is_removed(s, removed, entry) ? 0.0f : values[entry];
  }
  __device__ void weigh(WalkShared& s) {
    mass = block_sum(s, size, [&](int e) { return value(s, e); });
    alive = mass > 0;
  }
  // Entry of a token, or -1.
  __device__ int find(WalkShared& s, int x) const {
    if (ids == nullptr) return x;
    __syncthreads();
    if (threadIdx.x == 0) s.entry = -1;
    __syncthreads();
    for (int e = threadIdx.x; e < size; e += kThreads)
      if (ids[e] == x) atomicMax(&s.entry, e);
    __syncthreads();
    return s.entry;
  }
};

__device__ void enter_row(const WalkArguments& a, WalkShared& s, int node, Draft* draft) {
  const float* p = a.probs + static_cast<int64_t>(node) * a.vocab;
  const double mass = law(block_sum(s, a.vocab, [&](int v) { return p[v]; }));
  for (int v = threadIdx.x; v < a.vocab; v += kThreads)
    a.residual[v] = static_cast<float>(p[v] / mass);
  const int64_t row = a.q_rows[node];
  draft->alive = row >= 0 && row < a.num_q && mass == mass;
  draft->removed = 0;
  if (!draft->alive) return;
  draft->values = a.q + row * a.q_size;
  draft->ids = a.q_ids == nullptr ? nullptr : a.q_ids + row * a.q_size;
  draft->weigh(s);
}

// R = max(R - mass D, 0); returns the new mass of R.
__device__ double subtract(const WalkArguments& a, WalkShared& s, const Draft& draft, double mass) {
  const float share = static_cast<float>(mass / draft.mass);
  __syncthreads();
  for (int e = threadIdx.x; e < draft.size; e += kThreads) {
    const int v = draft.token(e);
    if (v >= 0) a.residual[v] = fmaxf(a.residual[v] - share * draft.value(s, e), 0.0f);
  }
  __syncthreads();
  const double left = block_sum(s, a.vocab, [&](int v) { return a.residual[v]; });
  if (left > 0) return left;
  // R was at most D everywhere, so equal to it up to rounding: R stays, in the form of D.
  for (int e = threadIdx.x; e < draft.size; e += kThreads) {
    const int v = draft.token(e);
    if (v >= 0) a.residual[v] = draft.value(s, e);
  }
  __syncthreads();
  return draft.mass;
}

__device__ int walk_sampled(const WalkArguments& a, WalkShared& s) {
  int node = 0, at = 0, steps = 1;
  Draft draft{nullptr, nullptr, a.q_size, a.vocab, 0, 0.0, false};
  enter_row(a, s, 0, &draft);
  double mass = 1.0;
  for (;;) {
    const int child = draft.alive ? next_child(s, a.n, node, at) : -1;
    if (child < 0) break;
    at = child;
    const int x = s.tokens[child], entry = x < 0 ? -1 : draft.find(s, x);
    const float dx = entry < 0 ? 0.0f : draft.value(s, entry);
    __syncthreads();
    if (!(dx > 0)) {  // cannot have been drawn: its later siblings are not tried
      draft.alive = false;
    } else if (s.uniforms[child] * (dx / draft.mass) < a.residual[x] / mass) {
      if (threadIdx.x == 0) a.path[steps] = child;
      ++steps;
      node = child;
      enter_row(a, s, node, &draft);
      mass = 1.0;
      __syncthreads();
    } else {
      mass = subtract(a, s, draft, mass);
      if (!a.replacement) {
        remove(s, &draft.removed, entry);
        draft.weigh(s);
      }
    }
  }
  __syncthreads();
  for (int v = threadIdx.x; v < a.vocab; v += kThreads)
    a.residual[v] = static_cast<float>(a.residual[v] / mass);
  return steps;
}

__global__ void __launch_bounds__(kThreads, 1) walk_kernel(WalkArguments a) {
  DYNASPEC_SHARED(memory);
  WalkShared& s = *reinterpret_cast<WalkShared*>(memory);
  for (int i = threadIdx.x; i < a.n; i += kThreads) {
    const int64_t token = a.tokens[i];  // -1: none that the target could accept
    s.tokens[i] = token >= 0 && token < a.vocab ? static_cast<int>(token) : -1;
    s.parents[i] = static_cast<int>(a.parents[i]);
    s.uniforms[i] = a.uniforms[i];
  }
  __syncthreads();
  const int steps = a.sampled ? walk_sampled(a, s) : walk_deterministic(a, s);
  for (int i = steps + threadIdx.x; i < a.n; i += kThreads) a.path[i] = -1;
  if (threadIdx.x == 0) {
    a.path[0] = 0;
    *a.length = steps;
  }
}

}  // namespace
}  // namespace dynaspec::cuda

using namespace dynaspec::cuda;

extern "C" int dynaspec_stochastic_walk(const dynaspec_walk* walk, const dynaspec_draft* draft,
                                        int64_t* path, int64_t* length, float* residual,
                                        void* stream) {
  if (walk->n < 1 || walk->n > DYNASPEC_MAX_TREE || walk->vocab < 1 ||
      walk->vocab > INT32_MAX - kThreads ||
      (draft != nullptr && (draft->size < 0 || draft->size > INT32_MAX - kThreads)))
    return cudaErrorInvalidValue;
  WalkArguments a{};
  a.tokens = walk->tokens;
  a.parents = walk->parents;
  a.probs = walk->probs;
  a.uniforms = walk->uniforms;
  a.n = static_cast<int>(walk->n);
  a.vocab = static_cast<int>(walk->vocab);
  a.sampled = draft != nullptr;
  if (draft != nullptr) {
    a.q = draft->values;
    a.q_ids = draft->ids;
    a.q_rows = draft->row_of;
    a.q_size = static_cast<int>(draft->size);
    a.num_q = draft->rows;
    a.replacement = draft->replacement;
  }
  a.path = path;
  a.length = length;
  a.residual = residual;
  return launch(walk_kernel, 1, kThreads, sizeof(WalkShared), stream, a);
}
