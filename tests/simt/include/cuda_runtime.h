// Stand-in for the CUDA runtime header: the subset that csrc/cuda uses, on the SIMT machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>

#include "simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

// A device faults on a vector access that is not aligned to the vector's size, so copies check it.
#define SIMT_VECTOR2(name, type)                                                         \
  struct alignas(2 * sizeof(type)) name {                                                \
    type x, y;                                                                           \
    name() = default;                                                                    \
    name(type vx, type vy) : x(vx), y(vy) {}                                             \
    name(const name& o) : x(o.x), y(o.y) { simt::check_vector(this, &o, sizeof(name)); } \
    name& operator=(const name& o) {                                                     \
      simt::check_vector(this, &o, sizeof(name));                                        \
      x = o.x, y = o.y;                                                                  \
      return *this;                                                                      \
    }                                                                                    \
  }
#define SIMT_VECTOR4(name, type)                                             \
  struct alignas(4 * sizeof(type)) name {                                    \
    type x, y, z, w;                                                         \
    name() = default;                                                        \
    name(type vx, type vy, type vz, type vw) : x(vx), y(vy), z(vz), w(vw) {} \
    name(const name& o) : x(o.x), y(o.y), z(o.z), w(o.w) {                   \
      simt::check_vector(this, &o, sizeof(name));                            \
    }                                                                        \
    name& operator=(const name& o) {                                         \
      simt::check_vector(this, &o, sizeof(name));                            \
      x = o.x, y = o.y, z = o.z, w = o.w;                                    \
      return *this;                                                          \
    }                                                                        \
  }
SIMT_VECTOR2(int2, int);
SIMT_VECTOR2(float2, float);
SIMT_VECTOR4(int4, int);
SIMT_VECTOR4(uint4, unsigned);
SIMT_VECTOR4(float4, float);
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using std::max;
using std::min;

// ---- host side -------------------------------------------------------------------------------
typedef int cudaError_t;
typedef struct simt_stream* cudaStream_t;
typedef struct simt_event* cudaEvent_t;
constexpr cudaError_t cudaSuccess = 0;
constexpr cudaError_t cudaErrorInvalidValue = 1;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace simt {
// Dynamic shared memory that a kernel was granted; more than 48 KiB must be asked for, and more
// than 99 KiB exists on no consumer target (sm_86, 89, 120).
constexpr size_t kDefaultShared = 48 * 1024;
constexpr size_t kLargestShared = 99 * 1024;
size_t granted_shared(const void* kernel);
void grant_shared(const void* kernel, size_t bytes);
void event_op(const char* op, void* event, void* stream);
}  // namespace simt

template <typename... Expected, typename... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Actual&&... actual) {
  if (config->dynamicSmemBytes > simt::granted_shared(reinterpret_cast<const void*>(kernel)))
    return cudaErrorInvalidValue;
  std::tuple<Expected...> arguments(std::forward<Actual>(actual)...);
  simt::launch(config->gridDim, config->blockDim, config->dynamicSmemBytes,
               [&] { std::apply(kernel, arguments); });
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int value) {
  if (value > static_cast<int>(simt::kLargestShared)) return cudaErrorInvalidValue;
  simt::grant_shared(reinterpret_cast<const void*>(kernel), value);
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  simt::event_op("record", event, stream);
  return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  simt::event_op("wait", event, stream);
  return cudaSuccess;
}

// ---- device side -----------------------------------------------------------------------------
inline void __syncthreads() { simt::sync_threads(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  simt::exchange(simt::Collective::kSyncWarp, mask, 0);
}

namespace simt {
template <typename T>
SIMT_NO_TRACE T shuffle(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = exchange(Collective::kShuffle, mask, bits)[source & 31];
  T out;
  __builtin_memcpy(&out, &bits, sizeof(T));
  return out;
}
SIMT_NO_TRACE inline unsigned vote(unsigned mask, int predicate) {
  const uint64_t* lanes = exchange(Collective::kVote, mask, predicate != 0);
  unsigned out = 0;
  for (int i = 0; i < 32; ++i) out |= static_cast<unsigned>(lanes[i]) << i;
  return out;
}
template <typename T, typename F>
SIMT_NO_TRACE T atomic(T* address, F combine) {
  record(address, sizeof(T), Access::kAtomic);
  T old = *address;
  *address = combine(old);
  return old;
}
}  // namespace simt

template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
  return simt::shuffle(mask, value, source);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return simt::shuffle(mask, value, simt::lane() ^ lanes);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  return simt::shuffle(mask, value, simt::lane() >= delta ? simt::lane() - delta : simt::lane());
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  unsigned source = simt::lane() + delta;
  return simt::shuffle(mask, value, source < 32 ? source : simt::lane());
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return simt::vote(mask, predicate); }
inline int __any_sync(unsigned mask, int predicate) { return simt::vote(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return simt::vote(mask, predicate) == mask; }

template <typename T>
T atomicAdd(T* address, T value) {
  return simt::atomic(address, [=](T old) { return old + value; });
}
template <typename T>
T atomicOr(T* address, T value) {
  return simt::atomic(address, [=](T old) { return old | value; });
}
template <typename T>
T atomicMin(T* address, T value) {
  return simt::atomic(address, [=](T old) { return old < value ? old : value; });
}
template <typename T>
T atomicMax(T* address, T value) {
  return simt::atomic(address, [=](T old) { return old > value ? old : value; });
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __float_as_uint(float x) {
  unsigned u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}
inline float __uint_as_float(unsigned u) {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}
