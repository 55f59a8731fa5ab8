// Cluster scores of the router.
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "common.h"
#include "cpu/ops/linear.h"

namespace dynaspec::cpu {

namespace {

at::Tensor widen_bias(const char* name, const at::Tensor& bias, int64_t size) {
  DYNASPEC_EXPECT(bias.dim() == 1 && bias.size(0) == size && bias.is_floating_point(),
                  "router_clusters", name, "floating-point [" + std::to_string(size) + "]", bias);
  return bias.to(at::kFloat).contiguous();
}

void check_input(const char* name, const at::Tensor& x, int64_t rows) {
  DYNASPEC_EXPECT(x.dim() == 2 && x.size(0) == rows && x.device().is_cpu() && is_activation(x),
                  "router_clusters", name,
                  "float32, bfloat16 or float16 [" + std::to_string(rows) + ", *] on the CPU", x);
}

void check_width(const char* name, const at::Tensor& weight, int64_t k) {
  DYNASPEC_EXPECT(weight.dim() == 2 && weight.size(1) == k, "router_clusters", name,
                  "[*, " + std::to_string(k) + "] (the width of its input)", weight);
}

// w2 silu(w1 [f; e] + b1) + b2, or w2 f (+ b2) with an empty w1.
at::Tensor router_clusters(const at::Tensor& features, const at::Tensor& tokens_embedding,
                           const at::Tensor& w1, const at::Tensor& b1, const at::Tensor& w2,
                           const at::Tensor& b2) {
  const char* op = "router_clusters";
  check_input("features", features, features.dim() ? features.size(0) : 0);
  const int64_t n = features.size(0);
  at::Tensor hidden = features.to(at::kFloat).contiguous();
  if (!is_empty(w1)) {
    check_input("tokens_embedding", tokens_embedding, n);
    const at::Tensor x = at::cat({hidden, tokens_embedding.to(at::kFloat)}, 1);
    check_width("w1", w1, x.size(1));
    Weight first = describe_weight(op, "w1", w1, {});
    const at::Tensor bias = widen_bias("b1", b1, w1.size(0));
    first.bias = bias.const_data_ptr<float>();
    hidden = at::empty({n, w1.size(0)}, at::kFloat);
    float* h = hidden.mutable_data_ptr<float>();
    linear(x.const_data_ptr<float>(), n, first, w1.size(0), h, w1.size(0));
    for (int64_t i = 0; i < hidden.numel(); ++i) h[i] = h[i] / (1.0f + std::exp(-h[i]));
  }
  check_width("w2", w2, hidden.size(1));
  Weight second = describe_weight(op, "w2", w2, {});
  at::Tensor bias;
  if (!is_empty(b2)) {
    bias = widen_bias("b2", b2, w2.size(0));
    second.bias = bias.const_data_ptr<float>();
  }
  at::Tensor scores = at::empty({n, w2.size(0)}, at::kFloat);
  linear(hidden.const_data_ptr<float>(), n, second, w2.size(0), scores.mutable_data_ptr<float>(),
         w2.size(0));
  return scores;
}

}  // namespace

TORCH_LIBRARY_IMPL(dynaspec, CPU, m) { m.impl("router_clusters", router_clusters); }

}  // namespace dynaspec::cpu
