// Products of a tile: 64 rows of the head times 16 or 32 hidden rows, chunk by chunk from shared memory.
//
// A stage of shared memory holds a chunk of the tile's rows and of the hidden rows; both have 16 bytes of padding a row,
// which spreads the rows over the banks and keeps matrix loads aligned to 32 bytes.
#pragma once

#include <mma.h>

#include "head.cuh"

namespace dynaspec::cuda {

// Row of a chunk in shared memory, in elements.
template <typename T, int Chunk>
constexpr int kStride = Chunk + 16 / static_cast<int>(sizeof(T));

// Scores of a tile in shared memory: scores[column * kScoreStride + row].
constexpr int kScoreStride = kTileRows + 4;

// bf16 and fp16 on tensor cores (m16n16k16, float32 accumulation): a warp multiplies its 16 rows.
template <typename T, int Fragments>
struct TensorCores {
  using Weight = T;
  using Hidden = T;
  static constexpr int kChunk = 64;
  static constexpr int kScratchBytes = 0;
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sum[Fragments];

  __device__ __forceinline__ void clear() {
    for (int f = 0; f < Fragments; ++f) nvcuda::wmma::fill_fragment(sum[f], 0.0f);
  }
  __device__ __forceinline__ void multiply(const T* rows, const T* hidden) {
    using namespace nvcuda::wmma;
    constexpr int stride = kStride<T, kChunk>;
#pragma unroll
    for (int k = 0; k < kChunk; k += 16) {
      fragment<matrix_a, 16, 16, 16, T, row_major> a;
      load_matrix_sync(a, rows + k, stride);
#pragma unroll
      for (int f = 0; f < Fragments; ++f) {
        fragment<matrix_b, 16, 16, 16, T, col_major> b;
        load_matrix_sync(b, hidden + f * 16 * stride + k, stride);
        mma_sync(sum[f], a, b, sum[f]);
      }
    }
  }
  __device__ __forceinline__ void add(const Weight* rows, const Hidden* hidden, void*) {
    multiply(rows + warp_id() * 16 * kStride<T, kChunk>, hidden);
  }
  __device__ __forceinline__ void store(float* scores) {
#pragma unroll
    for (int f = 0; f < Fragments; ++f)
      nvcuda::wmma::store_matrix_sync(scores + f * 16 * kScoreStride + warp_id() * 16, sum[f],
                                      kScoreStride, nvcuda::wmma::mem_col_major);
  }
};

// int8 rows with bf16 hidden rows: an int8 value is exact in bf16, so a warp widens its 16 rows in shared memory and goes
// on as bf16; the rows' scales are applied to the finished sums.
template <int Fragments>
struct WidenedInt8 : TensorCores<__nv_bfloat16, Fragments> {
  using Base = TensorCores<__nv_bfloat16, Fragments>;
  using Weight = int8_t;
  static constexpr int kChunk = Base::kChunk;
  static constexpr int kWide = kStride<__nv_bfloat16, kChunk>;
  static constexpr int kScratchBytes = kTileRows * kWide * static_cast<int>(sizeof(__nv_bfloat16));

  __device__ __forceinline__ void add(const int8_t* rows, const __nv_bfloat16* hidden,
                                      void* scratch) {
    __nv_bfloat16* wide = static_cast<__nv_bfloat16*>(scratch) + warp_id() * 16 * kWide;
    const int8_t* mine = rows + warp_id() * 16 * kStride<int8_t, kChunk>;
    for (int i = lane_id(); i < 16 * kChunk; i += kWarp) {
      const int row = i / kChunk, column = i % kChunk;
      wide[row * kWide + column] =
          from_float<__nv_bfloat16>(to_float(mine[row * kStride<int8_t, kChunk> + column]));
    }
    __syncwarp();
    Base::multiply(wide, hidden);
    __syncwarp();
  }
};

// float32: thread t owns row t % 64 and every second group of 8 hidden rows; fused multiply-adds in the order of k.
template <int Fragments>
struct FusedMultiplyAdd {
  using Weight = float;
  using Hidden = float;
  static constexpr int kChunk = 32;
  static constexpr int kScratchBytes = 0;
  static constexpr int kOwned = kColumns * Fragments / 2;
  float sum[kOwned];

  __device__ __forceinline__ void clear() {
    for (int j = 0; j < kOwned; ++j) sum[j] = 0.0f;
  }
  __device__ __forceinline__ void add(const float* rows, const float* hidden, void*) {
    constexpr int stride = kStride<float, kChunk>;
    const float* row = rows + (threadIdx.x % kTileRows) * stride;
    const float* first = hidden + (threadIdx.x / kTileRows) * kOwned * stride;
    for (int k = 0; k < kChunk; k += 4) {
      const float4 w = *reinterpret_cast<const float4*>(row + k);
#pragma unroll
      for (int j = 0; j < kOwned; ++j) {
        const float4 x = *reinterpret_cast<const float4*>(first + j * stride + k);
        sum[j] = fmaf(w.x, x.x, sum[j]);
        sum[j] = fmaf(w.y, x.y, sum[j]);
        sum[j] = fmaf(w.z, x.z, sum[j]);
        sum[j] = fmaf(w.w, x.w, sum[j]);
      }
    }
  }
  __device__ __forceinline__ void store(float* scores) {
    const int column = (threadIdx.x / kTileRows) * kOwned;
#pragma unroll
    for (int j = 0; j < kOwned; ++j)
      scores[(column + j) * kScoreStride + threadIdx.x % kTileRows] = sum[j];
  }
};

}  // namespace dynaspec::cuda
