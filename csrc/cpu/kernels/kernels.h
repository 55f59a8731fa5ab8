// Interface of the CPU kernels: plain pointers, no PyTorch. One table of functions an
// instruction-set level.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dynaspec::cpu {

enum class WeightType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3 };

constexpr int kWeightBytes[] = {4, 2, 2, 1};

// Rows of x in the form that one level reads for one weight type: see Kernels::pack_row.
struct PackedRows {
  const char* data;  // row i at data + i * stride; 64-byte aligned, zero padded
  int64_t stride;    // bytes
  int64_t n;
};

// A weight matrix [*, k], row-major and contiguous.
struct Weight {
  const char* data;
  WeightType type;
  int64_t k;
  const float* scale;  // of each row (int8), or nullptr
  const float* bias;   // of each row, or nullptr

  int64_t row_bytes() const { return k * kWeightBytes[static_cast<int>(type)]; }
};

// Which rows of the weight to multiply: `list[0..count)`, or `first .. first + count` where list is
// nullptr. `next`: rows that this thread will probably multiply afterwards, or nullptr; their
// beginning is prefetched, so that the stream from memory does not stop between two sets.
struct RowSet {
  const int32_t* list;
  int64_t first;
  int64_t count;
  const RowSet* next = nullptr;

  int64_t operator[](int64_t i) const { return list != nullptr ? list[i] : first + i; }
};

// The best k of what was seen so far, best first; an exact tie keeps the row seen first.
struct TopK {
  float* value;
  int32_t* row;
  int32_t k;
  int32_t count;
};

// Sum of exp(l - max) over a part of the logits.
struct SoftmaxPart {
  float max;
  float sum;
};

struct LayerKernels;  // decoder_kernels.h

struct Kernels {
  const char* name;
  // Bytes of one packed row of length k (a multiple of 64).
  int64_t (*packed_stride)(WeightType type, int64_t k);
  // x float32 [k] -> packed row (bf16: rounded; int8: quantised with the row's own scale).
  void (*pack_row)(WeightType type, const float* x, int64_t k, char* packed);
  // out[i * ldo + j] = <x_i, weight[rows[j]]> (* scale[rows[j]]) (+ bias[rows[j]]). The sum of an
  // output has one fixed order, whatever n, count and ldo are.
  void (*dot_rows)(const Weight& weight, RowSet rows, const PackedRows& x, float* out, int64_t ldo);
  // Divides logits[0..count) by temperature in place and returns their softmax statistics.
  SoftmaxPart (*softmax_part)(float* logits, int64_t count, float temperature);
  // Offers logits[j] of row rows[j], in ascending order of rows.
  void (*offer)(const float* logits, RowSet rows, float part_max, TopK* top);
  const LayerKernels* layer;
};

// The table of the level in use: the best one the processor has, or DYNASPEC_CPU_ISA. Throws
// std::runtime_error for a level that is unknown or missing here.
const Kernels& kernels();

// Levels that this processor can run, worst first, separated by commas.
const char* available_levels();

}  // namespace dynaspec::cpu
