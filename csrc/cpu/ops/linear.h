// Weights and rows of the ops, described to the kernels.
#pragma once

#include <ATen/ATen.h>

#include "cpu/kernels/linear.h"

namespace dynaspec::cpu {

// Checks a weight [m, k] (float32, bf16, fp16 or int8 with its scale) and describes it to the
// kernels. The tensors must outlive the result. `name` is the argument's name in messages.
Weight describe_weight(const char* op, const char* name, const at::Tensor& weight,
                       const at::Tensor& scale);

// Packs rows [n, k] of any activation dtype for weights of a type.
PackedRows pack(const at::Tensor& x, WeightType type, Scratch& scratch);

}  // namespace dynaspec::cpu
