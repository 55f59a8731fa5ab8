// What a decoder layer needs besides dot_rows: the element-wise steps and the attention's second
// product. One table a level.
#pragma once

#include <cstdint>

namespace dynaspec::cpu {

// Softmax numerators of `nq` queries over the keys `begin .. end` of a list, times these keys'
// values. Keys are added up in ascending order, bf16 ones in pairs (2i, 2i + 1): begin is even, and
// an odd end has a numerator of 0 and a valid list entry after it.
struct WeightedSum {
  const char* values;         // rows of head_dim values, in float32 or bf16
  const int32_t* list;        // row of key i
  const char* numerators;     // of query j at numerators + j * stride, see softmax_numerators
  int64_t numerators_stride;  // bytes
  int64_t nq, begin, end, head_dim;
  float* sums;  // [nq, head_dim], added to
};

struct LayerKernels {
  // out = x / rms(x) * weight. `out` may be x.
  void (*rms_norm)(const float* x, const float* weight, int64_t d, float eps, float* out);
  // Rotary embedding of the halves of x [head_dim]; `out` is not x.
  void (*rotate)(const float* x, const float* cos, const float* sin, int64_t head_dim, float* out);
  // out = x + y
  void (*add)(const float* x, const float* y, int64_t d, float* out);
  // out = silu(gate) * up, or gelu_tanh(gate) * up
  void (*gate)(const float* gate, const float* up, int64_t size, bool gelu, float* out);
  // float32 -> bf16, to nearest
  void (*store_bf16)(const float* x, int64_t size, uint16_t* out);
  // scores[i] -> cap * tanh(scale * scores[i] / cap) for begin <= i < end, in place (Gemma 2); what
  // is not finite becomes NaN.
  void (*soft_cap)(float* scores, int64_t begin, int64_t end, float scale, float cap);
  // scores[i] -> exp(scale * (scores[i] - max)) for begin <= i < end and 0 for the rest of [0,
  // padded) (a multiple of 16), in place, in the form that weighted_sum reads (with `bf16`: rounded
  // to it). Returns their sum, NaN if a score is not finite.
  float (*softmax_numerators)(float* scores, int64_t begin, int64_t end, int64_t padded,
                              float scale, bool bf16);
  void (*weighted_sum)(const WeightedSum& what, bool bf16);
};

}  // namespace dynaspec::cpu
