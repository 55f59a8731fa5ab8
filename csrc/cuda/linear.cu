// Few rows times a weight matrix, and the router built on it.
//
// Layout: weight [m, k] row-major; the input is one or two matrices side by side, [a; b] with ka +
// kb = k. A thread block serves 8 output columns and up to 8 input rows: it widens 512 columns of
// the input at a time to float32 in shared memory (rounded or quantised as the products read them),
// and each warp streams its own row of the weight once (16-byte loads where rows are aligned) and
// finally reduces over the lanes, in a fixed order. The sum of an output does not depend on the
// number of rows. A bf16 weight rounds the input to bf16, an int8 weight quantises each input row
// to int8 and sums exactly, other weights take it as float32: reference.linear.
//
// Complexity: m k weights read per 8 rows. Launch shape: (m / 8, rows / 8) x 256.
#include "common.cuh"
#include "launch.h"

namespace dynaspec::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 8;     // input rows a pass
constexpr int kChunk = 512;  // input columns in shared memory
constexpr int kShared = (kRows * kChunk + kRows) * static_cast<int>(sizeof(float));

struct Input {
  const void* data;
  int dtype;
  int64_t stride;

  __device__ __forceinline__ float at(int64_t row, int64_t column) const {
    return load_as_float(data, dtype, row * stride + column);
  }
};

struct LinearArguments {
  Input a, b, bias;  // bias.data may be null
  const void* weight;
  const float* scale;  // or null
  float* out;
  int64_t ka, k, m, n;
  bool vector_loads, silu;
};

// The input as the products read it, and the type they are summed in.
template <typename T>
struct Product {
  using Sum = float;
  __device__ static __forceinline__ float input(float x, float) { return x; }
  __device__ static __forceinline__ float step(float w, float x, float sum) {
    return fmaf(w, x, sum);
  }
};
template <>
struct Product<__nv_bfloat16> : Product<float> {
  __device__ static __forceinline__ float input(float x, float) {
    return to_float(from_float<__nv_bfloat16>(x));
  }
};
template <>
struct Product<int8_t> {
  using Sum = int;  // exact
  __device__ static __forceinline__ float input(float x, float scale) {
    return quantised(x, scale);
  }
  __device__ static __forceinline__ int step(float w, float x, int sum) {
    return sum + static_cast<int>(w) * static_cast<int>(x);
  }
};

__device__ __forceinline__ float input_at(const LinearArguments& a, int64_t row, int64_t k) {
  return k < a.ka ? a.a.at(row, k) : a.b.at(row, k - a.ka);
}

template <typename T>
__device__ __forceinline__ void load_chunk(const LinearArguments& a, int64_t k0, int width,
                                           int64_t first, int rows, const float* scales,
                                           float* chunk) {
  for (int i = threadIdx.x; i < rows * width; i += kThreads) {
    const int row = i / width, column = i % width;
    const float scale = sizeof(T) == 1 ? scales[row] : 0.0f;
    chunk[row * kChunk + column] = Product<T>::input(input_at(a, first + row, k0 + column), scale);
  }
}

// Adds Count columns of the weight's row times the input rows; `chunk` points at the first of them.
template <typename T, int Count>
__device__ __forceinline__ void accumulate(const T* weight, const float* chunk, int rows,
                                           typename Product<T>::Sum (&sum)[kRows]) {
  float w[Count];
#pragma unroll
  for (int j = 0; j < Count; ++j) w[j] = to_float(weight[j]);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
#pragma unroll
    for (int j = 0; j < Count; ++j) sum[r] = Product<T>::step(w[j], chunk[r * kChunk + j], sum[r]);
  }
}

// Scale of the quantised input rows (int8 weights): warp r takes row r. Ends with a barrier.
__device__ __forceinline__ void quantise_rows(const LinearArguments& a, int64_t first, int rows,
                                              float* scales) {
  static_assert(kWarps == kRows, "a warp a row");
  if (warp_id() < rows) {
    uint32_t most = 0;  // of |x| as bits, so that a NaN stays one
    for (int64_t k = lane_id(); k < a.k; k += kWarp)
      most = max(most, __float_as_uint(input_at(a, first + warp_id(), k)) & 0x7fffffffu);
    for (int step = kWarp / 2; step > 0; step /= 2)
      most = max(most, __shfl_xor_sync(kFullMask, most, step));
    if (lane_id() == 0) scales[warp_id()] = __uint_as_float(most) / 127.0f;
  }
  __syncthreads();
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) linear_kernel(LinearArguments a) {
  constexpr int kPiece = 16 / static_cast<int>(sizeof(T));
  DYNASPEC_SHARED(memory);
  float* chunk = reinterpret_cast<float*>(memory);
  float* scales = chunk + kRows * kChunk;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarps + warp_id();
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kRows;
  const int rows = static_cast<int>(min(a.n - first, static_cast<int64_t>(kRows)));
  const T* weight = static_cast<const T*>(a.weight) + (column < a.m ? column : 0) * a.k;
  typename Product<T>::Sum sum[kRows] = {};
  if (sizeof(T) == 1) quantise_rows(a, first, rows, scales);
  for (int64_t k0 = 0; k0 < a.k; k0 += kChunk) {
    const int width = static_cast<int>(min(a.k - k0, static_cast<int64_t>(kChunk)));
    load_chunk<T>(a, k0, width, first, rows, scales, chunk);
    __syncthreads();
    if (column < a.m && a.vector_loads) {
      for (int k = lane_id() * kPiece; k < width; k += kWarp * kPiece) {
        alignas(16) T piece[kPiece];
        *reinterpret_cast<uint4*>(piece) = *reinterpret_cast<const uint4*>(weight + k0 + k);
        accumulate<T, kPiece>(piece, chunk + k, rows, sum);
      }
    } else if (column < a.m) {
      for (int k = lane_id(); k < width; k += kWarp)
        accumulate<T, 1>(weight + k0 + k, chunk + k, rows, sum);
    }
    __syncthreads();
  }
  if (column >= a.m) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    for (int step = kWarp / 2; step > 0; step /= 2)
      sum[r] += __shfl_xor_sync(kFullMask, sum[r], step);
    float y = static_cast<float>(sum[r]);
    if (sizeof(T) == 1) y *= scales[r];
    if (a.scale != nullptr) y *= a.scale[column];
    if (a.bias.data != nullptr) y += a.bias.at(0, column);
    if (a.silu) y = y / (1.0f + expf(-y));
    if (lane_id() == 0) a.out[(first + r) * a.m + column] = y;
  }
}

int64_t dtype_bytes(int dtype) {
  return dtype == DYNASPEC_FLOAT32 ? 4 : dtype == DYNASPEC_INT8 ? 1 : 2;
}

bool input_fits(int dtype) { return dtype >= DYNASPEC_FLOAT32 && dtype <= DYNASPEC_FLOAT16; }

}  // namespace
}  // namespace dynaspec::cuda

using namespace dynaspec::cuda;

extern "C" int dynaspec_linear(const void* a, int a_dtype, int64_t ka, const void* b, int b_dtype,
                               int64_t kb, int64_t n, const void* weight, int weight_dtype,
                               const float* scale, const void* bias, int bias_dtype, int64_t m,
                               int activation, float* out, void* stream) {
  if (n < 1 || m < 1 || ka + kb < 1 || n > 8 * 65535 || !input_fits(a_dtype) ||
      (kb > 0 && !input_fits(b_dtype)) || (bias != nullptr && !input_fits(bias_dtype)))
    return cudaErrorInvalidValue;
  LinearArguments args{};
  args.a = {a, a_dtype, ka};
  args.b = {b, b_dtype, kb};
  args.bias = {bias, bias_dtype, 0};
  args.weight = weight;
  args.scale = scale;
  args.out = out;
  args.ka = ka;
  args.k = ka + kb;
  args.m = m;
  args.n = n;
  args.vector_loads =
      args.k * dtype_bytes(weight_dtype) % 16 == 0 && reinterpret_cast<uintptr_t>(weight) % 16 == 0;
  args.silu = activation == DYNASPEC_SILU;
  const dim3 grid(static_cast<unsigned>(ceil_div(m, kWarps)),
                  static_cast<unsigned>(ceil_div(n, kRows)));
  switch (weight_dtype) {
    case DYNASPEC_FLOAT32:
      return launch(linear_kernel<float>, grid, kThreads, kShared, stream, args);
    case DYNASPEC_BFLOAT16:
      return launch(linear_kernel<__nv_bfloat16>, grid, kThreads, kShared, stream, args);
    case DYNASPEC_FLOAT16:
      return launch(linear_kernel<__half>, grid, kThreads, kShared, stream, args);
    case DYNASPEC_INT8:
      return launch(linear_kernel<int8_t>, grid, kThreads, kShared, stream, args);
    default:
      return cudaErrorInvalidValue;
  }
}

extern "C" int dynaspec_router_scores(const dynaspec_router* router, const void* features,
                                      int features_dtype, int64_t d, const void* embedding,
                                      int embedding_dtype, int64_t e, int64_t n, float* scores,
                                      void* workspace, void* stream) {
  if (router->w1 == nullptr)
    return dynaspec_linear(features, features_dtype, d, nullptr, 0, 0, n, router->w2,
                           router->w2_dtype, nullptr, router->b2, router->b2_dtype,
                           router->clusters, DYNASPEC_IDENTITY, scores, stream);
  float* inner = static_cast<float*>(workspace);
  const int status = dynaspec_linear(features, features_dtype, d, embedding, embedding_dtype, e, n,
                                     router->w1, router->w1_dtype, nullptr, router->b1,
                                     router->b1_dtype, router->inner, DYNASPEC_SILU, inner, stream);
  if (status != 0) return status;
  return dynaspec_linear(inner, DYNASPEC_FLOAT32, router->inner, nullptr, 0, 0, n, router->w2,
                         router->w2_dtype, nullptr, router->b2, router->b2_dtype, router->clusters,
                         DYNASPEC_IDENTITY, scores, stream);
}

extern "C" int dynaspec_fork(void* main_stream, void* side_stream, void* fork_event) {
  const auto event = static_cast<cudaEvent_t>(fork_event);
  const int status =
      static_cast<int>(cudaEventRecord(event, static_cast<cudaStream_t>(main_stream)));
  if (status != 0) return status;
  return static_cast<int>(cudaStreamWaitEvent(static_cast<cudaStream_t>(side_stream), event, 0));
}

extern "C" int dynaspec_join(void* main_stream, void* side_stream, void* join_event) {
  const auto event = static_cast<cudaEvent_t>(join_event);
  const int status =
      static_cast<int>(cudaEventRecord(event, static_cast<cudaStream_t>(side_stream)));
  if (status != 0) return status;
  return static_cast<int>(cudaStreamWaitEvent(static_cast<cudaStream_t>(main_stream), event, 0));
}
