// Weights and rows of the ops, described to the kernels.
#pragma once

#include "common.h"
#include "cpu/kernels/linear.h"

namespace dynaspec::cpu {

// Checks a weight [m, k] (float32, bf16, fp16 or int8 with its scale; nullptr or empty: none) and
// describes it to the kernels. The tensors must outlive the result. `name` is the argument's name
// in messages.
Weight describe_weight(const char* op, const char* name, const Tensor& weight,
                       const Tensor* scale = nullptr);

// Checks a bias [size] of a floating-point dtype; returned contiguous in float32.
Tensor wide_bias(const char* op, const char* name, const Tensor& bias, int64_t size);

// Packs rows [n, k] of any activation dtype for weights of a type.
PackedRows pack(const Tensor& x, WeightType type, Scratch& scratch);

}  // namespace dynaspec::cpu
