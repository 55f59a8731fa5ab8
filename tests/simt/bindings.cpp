// The CUDA bindings (csrc/cuda/*bindings.cpp) with CPU tensors in the place of CUDA ones and the
// SIMT machine behind the launchers: torch.ops.dynaspec_simt.
#define dynaspec dynaspec_simt
#define aoti_torch_device_type_cuda aoti_torch_device_type_cpu
#define aoti_torch_create_device_guard simt_create_device_guard
#define aoti_torch_delete_device_guard simt_delete_device_guard
#define aoti_torch_get_current_cuda_stream simt_get_current_cuda_stream

#include "cuda/bindings.h"

extern "C" {
AOTITorchError simt_create_device_guard(int32_t, DeviceGuardHandle* made) {
  *made = nullptr;
  return 0;
}
AOTITorchError simt_delete_device_guard(DeviceGuardHandle) { return 0; }
AOTITorchError simt_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
}

#define CUDA CPU  // the dispatcher's key
#include "cuda/bindings.cpp"
#include "cuda/commit_bindings.cpp"
#include "ops.cpp"
