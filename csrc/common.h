// What the ops need of tensors, over PyTorch's stable C interface: one build serves every release
// from TORCH_TARGET_VERSION (setup.py) on. Nothing else of PyTorch may be included in csrc.
//
// Bad arguments throw std::invalid_argument, which becomes Python's ValueError; what fails besides,
// std::runtime_error, its RuntimeError.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace dynaspec {

using torch::stable::Tensor;

// ---- text and errors ---------------------------------------------------------------------------
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// [2, 3]; a size below 0 is any: [2, *].
template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string all;
  for (const int64_t size : sizes)
    all += (all.empty() ? "" : ", ") + (size < 0 ? std::string("*") : std::to_string(size));
  return "[" + all + "]";
}

inline std::string shape_text(std::initializer_list<int64_t> sizes) {
  return shape_text<std::initializer_list<int64_t>>(sizes);
}

// ValueError of the parts put together.
#define DYNASPEC_CHECK(condition, ...) \
  if (!(condition)) [[unlikely]]       \
  throw std::invalid_argument(::dynaspec::text(__VA_ARGS__))

// ValueError `<op>: <name>: expected <expected>, got <tensor>`.
#define DYNASPEC_EXPECT(condition, op, name, expected, tensor)                   \
  DYNASPEC_CHECK((condition), op, ": ", name, ": expected ", expected, ", got ", \
                 ::dynaspec::describe(tensor))

// ---- types -------------------------------------------------------------------------------------
enum class Dtype : int {
  kFloat32,
  kBFloat16,
  kFloat16,
  kInt8,
  kInt32,
  kInt64,
  kBool,
  kUInt8,
  kFloat64
};

struct DtypeFacts {
  int32_t code;  // PyTorch's
  const char* name;
  int64_t bytes;
};

// By Dtype.
inline const std::array<DtypeFacts, 9>& dtypes() {
  static const std::array<DtypeFacts, 9> all = {{
      {aoti_torch_dtype_float32(), "float32", 4},
      {aoti_torch_dtype_bfloat16(), "bfloat16", 2},
      {aoti_torch_dtype_float16(), "float16", 2},
      {aoti_torch_dtype_int8(), "int8", 1},
      {aoti_torch_dtype_int32(), "int32", 4},
      {aoti_torch_dtype_int64(), "int64", 8},
      {aoti_torch_dtype_bool(), "bool", 1},
      {aoti_torch_dtype_uint8(), "uint8", 1},
      {aoti_torch_dtype_float64(), "float64", 8},
  }};
  return all;
}

inline const DtypeFacts& facts(Dtype type) { return dtypes()[static_cast<int>(type)]; }

inline int32_t torch_dtype(const Tensor& t) {
  int32_t code = -1;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &code));
  return code;
}

inline bool is(const Tensor& t, Dtype type) { return torch_dtype(t) == facts(type).code; }

inline bool is_floating_point(const Tensor& t) {
  return is(t, Dtype::kFloat32) || is(t, Dtype::kBFloat16) || is(t, Dtype::kFloat16) ||
         is(t, Dtype::kFloat64);
}

// A dtype that activations may have.
inline bool is_activation(const Tensor& t) {
  return is(t, Dtype::kFloat32) || is(t, Dtype::kBFloat16) || is(t, Dtype::kFloat16);
}

inline std::string dtype_text(const Tensor& t) {
  const int32_t code = torch_dtype(t);
  for (const DtypeFacts& known : dtypes()) {
    if (known.code == code) return known.name;
  }
  if (code == aoti_torch_dtype_int16()) return "int16";
  return "another dtype";
}

// ---- devices -----------------------------------------------------------------------------------
struct Place {
  int32_t type, index;  // as PyTorch numbers them

  bool operator==(const Place&) const = default;
};

inline Place place_of(const Tensor& t) {
  Place place{};
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &place.type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &place.index));
  return place;
}

inline Place cpu_place() { return {aoti_torch_device_type_cpu(), -1}; }

inline std::string place_text(const Place& place) {
  if (place.type == aoti_torch_device_type_cpu()) return "cpu";
  if (place.type == aoti_torch_device_type_meta()) return "meta";
  const bool cuda = place.type == aoti_torch_device_type_cuda();
  return (cuda ? "cuda:" : "another device:") + std::to_string(place.index);
}

// ---- tensors -----------------------------------------------------------------------------------
inline bool is_empty(const Tensor& t) { return t.numel() == 0; }

inline bool has_shape(const Tensor& t, std::initializer_list<int64_t> shape) {
  const auto sizes = t.sizes();
  return sizes.size() == shape.size() && std::equal(sizes.begin(), sizes.end(), shape.begin());
}

// float32 [2, 3] on cpu
inline std::string describe(const Tensor& t) {
  return dtype_text(t) + " " + shape_text(t.sizes()) + " on " + place_text(place_of(t));
}

// Bytes of a row of a contiguous tensor that is not empty.
inline int64_t row_bytes(const Tensor& t) {
  return t.numel() / t.size(0) * static_cast<int64_t>(t.element_size());
}

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Uninitialised and contiguous. The C function spares the name look-up of torch::stable::empty.
inline Tensor empty(std::initializer_list<int64_t> shape, Dtype type, const Place& place) {
  std::array<int64_t, 4> strides{};
  int64_t step = 1;
  for (size_t axis = shape.size(); axis-- > 0;) {
    strides[axis] = step;
    step *= shape.begin()[axis];
  }
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.begin(),
                                                  strides.data(), facts(type).code, place.type,
                                                  place.index, &made));
  return Tensor(made);
}

// float32 and contiguous; the tensor itself where it is.
inline Tensor as_float32(const Tensor& t) {
  const Tensor wide =
      is(t, Dtype::kFloat32) ? t : torch::stable::to(t, torch::headeronly::ScalarType::Float);
  return wide.is_contiguous() ? wide : torch::stable::contiguous(wide);
}

inline Tensor as_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// ---- checks that ops share ---------------------------------------------------------------------
// Temperature of a head op.
inline void check_temperature(const char* op, double temperature) {
  DYNASPEC_CHECK(temperature > 0 && temperature < 1e30, op,
                 ": temperature: expected a finite number above 0, got ", temperature);
}

}  // namespace dynaspec
