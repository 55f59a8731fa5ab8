// Checks and small helpers of the CUDA bindings.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "common.h"
#include "cuda/launch.h"

namespace dynaspec::cuda {

// PyTorch's current stream of a device.
inline void* stream(const Place& device) {
  void* current = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device.index, &current));
  return current;
}

// RuntimeError of a launch that was refused.
inline void check_launch(const char* op, int status) {
  if (status != 0) {
    throw std::runtime_error(text(op, ": the CUDA launch was refused: ",
                                  cudaGetErrorString(static_cast<cudaError_t>(status))));
  }
}

// The launchers' code of a dtype, or -1.
inline int dtype_code(const Tensor& t) {
  if (is(t, Dtype::kFloat32)) return DYNASPEC_FLOAT32;
  if (is(t, Dtype::kBFloat16)) return DYNASPEC_BFLOAT16;
  if (is(t, Dtype::kFloat16)) return DYNASPEC_FLOAT16;
  if (is(t, Dtype::kInt8)) return DYNASPEC_INT8;
  return -1;
}

// Packed rows and rows found by an index are the CPU's alone.
inline void check_dense(const char* op, int64_t format, bool gather) {
  DYNASPEC_CHECK(format < 0 && !gather, op,
                 ": format: expected a floating-point or int8 head in the shortlist's order on "
                 "CUDA, got format ",
                 format);
}

// The device of ``t`` for the time of an op; a tensor of the host is told by its name.
inline torch::stable::accelerator::DeviceGuard device_of(const char* op, const char* name,
                                                         const Tensor& t) {
  DYNASPEC_EXPECT(t.is_cuda(), op, name, "a tensor on a CUDA device, as the others", t);
  return torch::stable::accelerator::DeviceGuard(place_of(t).index);
}

// A tensor of a type and shape (-1: any) on a device; returned contiguous.
inline Tensor take(const char* op, const char* name, const Tensor& t, Dtype type,
                   std::initializer_list<int64_t> sizes, const Place& device) {
  const bool here = place_of(t) == device;
  const bool anywhere = t.numel() == 0;  // nothing in it is read
  bool fits = is(t, type) && (anywhere || here) && t.dim() == static_cast<int64_t>(sizes.size());
  int64_t axis = 0;
  for (const int64_t size : sizes) {
    fits = fits && (size < 0 || t.size(axis) == size);
    ++axis;
  }
  DYNASPEC_EXPECT(
      fits, op, name,
      std::string(facts(type).name) + " " + shape_text(sizes) + " on " + place_text(device), t);
  if (here) return as_contiguous(t);
  return torch::stable::new_empty(
      t, t.sizes(), std::nullopt, std::nullopt,
      torch::stable::Device(torch::headeronly::DeviceType::CUDA, device.index));
}

inline Tensor take_rows(const char* op, const char* name, const Tensor& t, int64_t width,
                        const Place& device) {
  DYNASPEC_EXPECT(
      t.dim() == 2 && (width < 0 || t.size(1) == width) && is_activation(t) &&
          place_of(t) == device,
      op, name,
      "float32, bfloat16 or float16 " + shape_text({-1, width}) + " on " + place_text(device), t);
  return as_contiguous(t);
}

inline Tensor take_weight(const char* op, const char* name, const Tensor& t, int64_t width,
                          const Place& device) {
  DYNASPEC_EXPECT(t.dim() == 2 && (width < 0 || t.size(1) == width) && dtype_code(t) >= 0 &&
                      place_of(t) == device && t.is_contiguous(),
                  op, name,
                  "contiguous float32, bfloat16, float16 or int8 " + shape_text({-1, width}) +
                      " on " + place_text(device),
                  t);
  return t;
}

// Sums of int8 products are int32.
inline void check_int8_width(const char* op, const char* name, const Tensor& weight) {
  DYNASPEC_CHECK(!is(weight, Dtype::kInt8) || weight.size(1) <= 65536, op, ": ", name,
                 ": expected int8 rows of at most 65536 values, got ", weight.size(1));
}

inline Tensor take_bias(const char* op, const char* name, const Tensor& t, int64_t size,
                        const Place& device) {
  DYNASPEC_EXPECT(t.dim() == 1 && t.size(0) == size && is_activation(t) && place_of(t) == device,
                  op, name, "floating-point " + shape_text({size}) + " on " + place_text(device),
                  t);
  return as_contiguous(t);
}

inline Tensor workspace(int64_t bytes, const Place& device) {
  return empty({std::max<int64_t>(bytes, 1)}, Dtype::kUInt8, device);
}

inline const void* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? data<void>(*t) : nullptr;
}

// Row i of a contiguous matrix.
inline const void* row(const Tensor& t, int64_t i) { return data<char>(t) + i * row_bytes(t); }

}  // namespace dynaspec::cuda
