// Interface of the CPU kernels: plain pointers, no PyTorch. One table of functions an
// instruction-set level.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dynaspec::cpu {

// Forms of a weight's rows: formats.h says what each is.
enum class Format : int {
  kFloat32,
  kBFloat16,
  kFloat16,
  kInt8,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ4_K,
  kQ5_K,
  kQ6_K,
};
constexpr int kNumFormats = 12;

// Rows of x in the form that one level reads for one format: see FormatKernels::pack_row.
struct PackedRows {
  const char* data;  // row i at data + i * stride; 64-byte aligned, zero padded
  int64_t stride;    // bytes
  int64_t n;
};

// A weight matrix [*, k], rows one after another.
struct Weight {
  const char* data;
  Format format;
  int64_t k;
  int64_t row_bytes;
  const float* scale = nullptr;  // of each row (int8)
  const float* bias = nullptr;   // of each row
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

constexpr int64_t kSpan = 32;  // of running_sums

struct LayerKernels;  // decoder_kernels.h

// What one level does with one format. Formats that read x in the same form have the same pack_row.
struct FormatKernels {
  // Bytes of one packed row of x of length k (a multiple of 64).
  int64_t (*packed_stride)(int64_t k);
  // x float32 [k] -> packed row (bf16: rounded; int8 and blocks: quantised).
  void (*pack_row)(const float* x, int64_t k, char* packed);
  // out[i * ldo + j] = <x_i, weight[rows[j]]> (* scale[rows[j]]) (+ bias[rows[j]]). The sum of an
  // output has one fixed order, whatever n, count and ldo are.
  void (*dot_rows)(const Weight& weight, RowSet rows, const PackedRows& x, float* out, int64_t ldo);
};

struct Kernels {
  const char* name;
  FormatKernels formats[kNumFormats];
  // Divides logits[0..count) by temperature in place and returns their softmax statistics.
  SoftmaxPart (*softmax_part)(float* logits, int64_t count, float temperature);
  // p [count]: the softmax of x / temperature. Returns its statistics; p is worthless where the sum
  // is NaN (x has a number that is not finite).
  SoftmaxPart (*softmax)(const float* x, int64_t count, float temperature, float* p);
  // ends[b]: the sum of x[0 .. kSpan * (b + 1)) in double, a span in eight chains; returns the
  // last.
  double (*running_sums)(const float* x, int64_t count, double* ends);
  // Offers logits[j] of row rows[j], in ascending order of rows.
  void (*offer)(const float* logits, RowSet rows, float part_max, TopK* top);
  const LayerKernels* layer;

  const FormatKernels& of(Format format) const { return formats[static_cast<int>(format)]; }
};

// The table of the level in use (isa.h).
const Kernels& kernels();

}  // namespace dynaspec::cpu
