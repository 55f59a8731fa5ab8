// A pre-norm decoder layer over n rows on the CPU: plain pointers, no PyTorch.
#pragma once

#include <cstdint>
#include <memory>

#include "cpu/kernels/linear.h"

namespace dynaspec::cpu {

struct LayerShape {
  int64_t hidden, heads, kv_heads, head_dim, intermediate;
  float eps, scale;
  int64_t window;  // 0: full attention
  bool gelu;       // gelu_tanh, else silu
  float softcap;   // of the attention's scores; 0: none

  int64_t group() const { return heads / kv_heads; }
  int64_t q_size() const { return heads * head_dim; }
  int64_t qkv_size() const { return (heads + 2 * kv_heads) * head_dim; }
};

// Norms that a family lacks are nullptr.
struct LayerWeights {
  const float *input_norm, *q_norm, *k_norm, *post_attention_norm, *mlp_norm, *post_mlp_norm;
  Stack qkv, out, gate_up, down;
};

// Keys (after rotation) and values [rows, kv_heads, head_dim], float32 or bf16.
struct KvCache {
  char* keys;
  char* values;
  Format format;
};

// The cache holds `committed` rows, whose positions are their indices, and after them t tree rows;
// the last n of these are the rows of the pass. Positions are of all t tree rows and not below
// `committed`; mask [n, t] is true at a row's ancestors and at itself.
struct TreeRows {
  int64_t n, t, committed;
  const int64_t* positions;
  const bool* mask;
  const float *cos, *sin;  // [n, head_dim]
};

// One pass through one layer. The work is cut into tasks, and any number of threads may call `work`
// at once: each takes part until nothing is left, and a row's result does not depend on how many
// there are.
class LayerPass {
 public:
  // Weights, cache, rows, x and y [n, hidden] outlive the pass. `threads`: at most so many will
  // call `work`.
  LayerPass(const LayerShape& shape, const LayerWeights& weights, const KvCache& cache,
            const TreeRows& rows, const float* x, float* y, int threads);
  ~LayerPass();

  int64_t scratch_bytes() const;
  void use_scratch(char* scratch);  // at a 64-byte border
  void work();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dynaspec::cpu
