// Cluster scores of the router: checks and outputs.
#include "cpu/kernels/router.h"

#include <optional>

#include "common.h"
#include "cpu/ops/linear.h"

namespace dynaspec::cpu {
namespace {

constexpr const char* kOp = "router_clusters";

void check_input(const char* name, const Tensor& x, int64_t rows) {
  DYNASPEC_EXPECT(x.dim() == 2 && x.size(0) == rows && x.is_cpu() && is_activation(x), kOp, name,
                  "float32, bfloat16 or float16 [" + std::to_string(rows) + ", *] on the CPU", x);
}

Weight check_weight(const char* name, const Tensor& weight, int64_t k) {
  DYNASPEC_EXPECT(weight.dim() == 2 && weight.size(1) == k, kOp, name,
                  "[*, " + std::to_string(k) + "] (the width of its input)", weight);
  return describe_weight(kOp, name, weight);
}

Tensor router_clusters(const Tensor& features, const Tensor& tokens_embedding, const Tensor& w1,
                       const Tensor& b1, const Tensor& w2, const Tensor& b2) {
  check_input("features", features, features.dim() > 0 ? features.size(0) : 0);
  const int64_t n = features.size(0);
  const Tensor f = as_float32(features);
  Router router{};
  router.d = features.size(1);
  std::optional<Tensor> embedding, first_bias, second_bias;
  int64_t width = router.d;
  if (!is_empty(w1)) {
    check_input("tokens_embedding", tokens_embedding, n);
    embedding = as_float32(tokens_embedding);
    router.e = tokens_embedding.size(1);
    router.first = check_weight("w1", w1, router.d + router.e);
    width = router.inner = w1.size(0);
    first_bias = wide_bias(kOp, "b1", b1, router.inner);
    router.first.bias = data<float>(*first_bias);
  }
  router.second = check_weight("w2", w2, width);
  router.clusters = w2.size(0);
  if (!is_empty(b2)) {
    second_bias = wide_bias(kOp, "b2", b2, router.clusters);
    router.second.bias = data<float>(*second_bias);
  }
  Tensor scores = empty({n, router.clusters}, Dtype::kFloat32, cpu_place());
  router_scores(router, data<float>(f), embedding.has_value() ? data<float>(*embedding) : nullptr,
                n, mutable_data<float>(scores));
  return scores;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CPU, m) {
  m.impl("router_clusters", TORCH_BOX(&router_clusters));
}

}  // namespace dynaspec::cpu
