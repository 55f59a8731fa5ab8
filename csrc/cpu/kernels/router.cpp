#include "cpu/kernels/router.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/kernels/linear.h"

namespace dynaspec::cpu {

void router_scores(const Router& router, const float* features, const float* embedding, int64_t n,
                   float* scores) {
  std::vector<float> hidden;
  if (router.inner > 0) {
    const int64_t d = router.d, e = router.e;
    std::vector<float> x(n * (d + e));
    for (int64_t i = 0; i < n; ++i) {
      float* row = x.data() + i * (d + e);
      std::memcpy(row, features + i * d, d * sizeof(float));
      std::memcpy(row + d, embedding + i * e, e * sizeof(float));
    }
    hidden.resize(n * router.inner);
    linear(x.data(), n, router.first, router.inner, hidden.data(), router.inner);
    for (float& h : hidden) h = h / (1.0f + std::exp(-h));
    features = hidden.data();
  }
  linear(features, n, router.second, router.clusters, scores, router.clusters);
}

}  // namespace dynaspec::cpu
