// x @ weight.T on all threads: plain pointers, no PyTorch.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/kernels/kernels.h"

namespace dynaspec::cpu {

// Grow-only buffer at a 64-byte border. One a thread and use; a nested use needs another one.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  char* bytes(size_t size) {
    if (size > size_) {
      std::free(data_);
      size_ = 0;
      data_ = static_cast<char*>(std::aligned_alloc(64, (size + 63) / 64 * 64));
      if (data_ == nullptr) {
        throw std::runtime_error("out of memory: " + std::to_string(size) + " bytes of scratch");
      }
      size_ = size;
    }
    return data_;
  }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

// Packs contiguous float32 rows [n, k] for weights of a format.
PackedRows pack(const float* x, int64_t n, int64_t k, Format format, Scratch& scratch);

// out[i * ldo + j] = <x_i, weight row j> (* scale) (+ bias) for all `m` rows of the weight and
// float32 x [n, k] (row-major), on all threads. A row's result depends neither on n nor on the
// number of threads.
void linear(const float* x, int64_t n, const Weight& weight, int64_t m, float* out, int64_t ldo);
void linear(const PackedRows& x, const Weight& weight, int64_t m, float* out, int64_t ldo);

// Linear maps of the same x whose results follow each other, each in a format of its own.
struct Stack {
  static constexpr int kMost = 3;
  int count = 0;
  Weight part[kMost];
  int64_t rows[kMost];

  void add(const Weight& weight, int64_t m) {
    part[count] = weight;
    rows[count++] = m;
  }
  int64_t total() const {
    int64_t sum = 0;
    for (int p = 0; p < count; ++p) sum += rows[p];
    return sum;
  }
};

}  // namespace dynaspec::cpu
