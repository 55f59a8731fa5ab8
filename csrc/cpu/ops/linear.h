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

// The same of `format` < 0; else packed rows of as many values as x has columns (uint8 [m, row
// bytes], see cpu/kernels/formats.h).
Weight describe_weight(const char* op, const char* name, const Tensor& weight, const Tensor* scale,
                       int64_t format, const Tensor& x);
Weight describe_packed(const char* op, const char* name, const Tensor& weight, int64_t format,
                       int64_t columns);

// ValueError for a number that names no packed format.
Format packed_format(const char* op, int64_t format);

// Checks a bias [size] of a floating-point dtype; returned contiguous in float32.
Tensor wide_bias(const char* op, const char* name, const Tensor& bias, int64_t size);

// Packs rows [n, k] of any activation dtype for weights of a format.
PackedRows pack(const Tensor& x, Format format, Scratch& scratch);

}  // namespace dynaspec::cpu
