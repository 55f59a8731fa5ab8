// Cluster scores of the router: plain pointers, no PyTorch.
#pragma once

#include <cstdint>

#include "cpu/kernels/kernels.h"

namespace dynaspec::cpu {

struct Router {
  Weight first;   // [inner, d + e]; inner = 0: none
  Weight second;  // [clusters, inner or d]
  int64_t d, e, inner, clusters;
};

// scores [n, clusters] = w2 silu(w1 [f; e] + b1) + b2, or w2 f + b2 without `first`, of float32
// rows features [n, d] and embedding [n, e] (nullptr without `first`).
void router_scores(const Router& router, const float* features, const float* embedding, int64_t n,
                   float* scores);

}  // namespace dynaspec::cpu
