// Checks and small helpers of the CUDA bindings.
#pragma once

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <string>

#include "common.h"
#include "cuda/launch.h"

namespace dynaspec::cuda {

using at::Tensor;

inline void* stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

inline void check_launch(const char* op, int status) {
  TORCH_CHECK(status == 0, op, ": the CUDA launch was refused: ",
              cudaGetErrorString(static_cast<cudaError_t>(status)));
}

inline int dtype_code(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return DYNASPEC_FLOAT32;
    case at::kBFloat16:
      return DYNASPEC_BFLOAT16;
    case at::kHalf:
      return DYNASPEC_FLOAT16;
    case at::kChar:
      return DYNASPEC_INT8;
    default:
      return -1;
  }
}

// Packed rows and rows found by an index are the CPU's alone.
inline void check_dense(const char* op, int64_t format, bool gather) {
  TORCH_CHECK_VALUE(format < 0 && !gather, op,
                    ": format: expected a floating-point or int8 head in the shortlist's order on "
                    "CUDA, got format ",
                    format);
}

// The device of ``t`` for the time of an op; a tensor of the host is told by its name.
inline c10::cuda::CUDAGuard device_of(const char* op, const char* name, const Tensor& t) {
  DYNASPEC_EXPECT(t.is_cuda(), op, name, "a tensor on a CUDA device, as the others", t);
  return c10::cuda::CUDAGuard(t.device());
}

inline std::string shape_text(std::initializer_list<int64_t> sizes) {
  std::string text = "[";
  for (const int64_t size : sizes)
    text += (text.size() > 1 ? ", " : "") + (size < 0 ? std::string("*") : std::to_string(size));
  return text + "]";
}

// A tensor of a type and shape (-1: any) on a device; returned contiguous.
inline Tensor take(const char* op, const char* name, const Tensor& t, at::ScalarType type,
                   std::initializer_list<int64_t> sizes, const at::Device& device) {
  const bool anywhere = t.numel() == 0;  // nothing in it is read
  bool fits = t.scalar_type() == type && (anywhere || t.device() == device) &&
              t.dim() == static_cast<int64_t>(sizes.size());
  int64_t axis = 0;
  for (const int64_t size : sizes) {
    fits = fits && (size < 0 || t.size(axis) == size);
    ++axis;
  }
  DYNASPEC_EXPECT(
      fits, op, name,
      std::string(c10::toString(type)) + " " + shape_text(sizes) + " on " + device.str(), t);
  return t.device() == device ? t.contiguous() : at::empty(t.sizes(), t.options().device(device));
}

inline Tensor take_rows(const char* op, const char* name, const Tensor& t, int64_t width,
                        const at::Device& device) {
  DYNASPEC_EXPECT(
      t.dim() == 2 && (width < 0 || t.size(1) == width) && is_activation(t) && t.device() == device,
      op, name, "float32, bfloat16 or float16 " + shape_text({-1, width}) + " on " + device.str(),
      t);
  return t.contiguous();
}

inline Tensor take_weight(const char* op, const char* name, const Tensor& t, int64_t width,
                          const at::Device& device) {
  DYNASPEC_EXPECT(t.dim() == 2 && (width < 0 || t.size(1) == width) && dtype_code(t) >= 0 &&
                      t.device() == device && t.is_contiguous(),
                  op, name,
                  "contiguous float32, bfloat16, float16 or int8 " + shape_text({-1, width}) +
                      " on " + device.str(),
                  t);
  return t;
}

// Sums of int8 products are int32.
inline void check_int8_width(const char* op, const char* name, const Tensor& weight) {
  TORCH_CHECK_VALUE(weight.scalar_type() != at::kChar || weight.size(1) <= 65536, op, ": ", name,
                    ": expected int8 rows of at most 65536 values, got ", weight.size(1));
}

inline Tensor take_bias(const char* op, const char* name, const Tensor& t, int64_t size,
                        const at::Device& device) {
  DYNASPEC_EXPECT(t.dim() == 1 && t.size(0) == size && is_activation(t) && t.device() == device, op,
                  name, "floating-point " + shape_text({size}) + " on " + device.str(), t);
  return t.contiguous();
}

inline Tensor workspace(int64_t bytes, const at::Device& device) {
  return at::empty({std::max<int64_t>(bytes, 1)}, at::TensorOptions(at::kByte).device(device));
}

inline const void* data_or_null(const Tensor& t) {
  return t.defined() ? t.const_data_ptr() : nullptr;
}

}  // namespace dynaspec::cuda
