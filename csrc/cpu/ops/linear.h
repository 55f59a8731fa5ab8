// Weights and rows of the ops, described to the kernels.
#pragma once

#include <ATen/ATen.h>

#include "cpu/kernels/linear.h"

namespace dynaspec::cpu {

// Checks a weight [m, k] (format < 0: float32, bf16, fp16 or int8 with its scale; else packed rows
// of `columns` values, uint8 [m, row bytes]) and describes it to the kernels. The tensors must
// outlive the result. `name` is the argument's name in messages.
Weight describe_weight(const char* op, const char* name, const at::Tensor& weight,
                       const at::Tensor& scale, int64_t format = -1, int64_t columns = 0);

// ValueError for a number that names no packed format.
Format packed_format(const char* op, int64_t format);

// Packs contiguous float32 or bf16 rows [n, k] for weights of a format.
PackedRows pack(const at::Tensor& x, Format format, Scratch& scratch);

}  // namespace dynaspec::cpu
