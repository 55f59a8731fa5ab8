// Checks shared by the ops: what was expected, what came.
#pragma once

#include <ATen/ATen.h>

#include <string>

namespace dynaspec {

inline std::string shape_of(const at::Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

inline std::string describe(const at::Tensor& t) {
  return std::string(c10::toString(t.scalar_type())) + " " + shape_of(t) + " on " +
         t.device().str();
}

// ValueError `<op>: <name>: expected <expected>, got <tensor>`.
#define DYNASPEC_EXPECT(condition, op, name, expected, tensor)                      \
  TORCH_CHECK_VALUE((condition), op, ": ", name, ": expected ", expected, ", got ", \
                    ::dynaspec::describe(tensor))

inline bool is_empty(const at::Tensor& t) { return t.numel() == 0; }

// A dtype that activations may have.
inline bool is_activation(const at::Tensor& t) {
  return t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16 ||
         t.scalar_type() == at::kHalf;
}

// Temperature of a head op.
inline void check_temperature(const char* op, double temperature) {
  TORCH_CHECK_VALUE(temperature > 0 && temperature < 1e30, op,
                    ": temperature: expected a finite number above 0, got ", temperature);
}

}  // namespace dynaspec
