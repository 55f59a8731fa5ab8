// Products of a tile: 64 rows of the head times 16 or 32 hidden rows, chunk by chunk from shared
// memory.
//
// A stage of shared memory holds a chunk of the tile's rows and of the hidden rows, placed so that
// rows spread over the banks and matrix loads are aligned to 32 bytes:
//   16 and 32 bits  row-major, 16 bytes of padding a row
//   int8            slabs of 16 columns: [column / 16][row][column % 16]
#pragma once

#include <mma.h>

#include "head.cuh"

namespace dynaspec::cuda {

// Place of (row, column) of a chunk in shared memory, and the elements that a chunk of `rows` rows
// takes.
template <typename T, int Chunk>
struct ChunkPlace {
  static constexpr int kStride = Chunk + 16 / static_cast<int>(sizeof(T));
  __host__ __device__ static constexpr int size(int rows) { return rows * kStride; }
  __device__ static __forceinline__ int at(int row, int column, int) {
    return row * kStride + column;
  }
};
template <int Chunk>
struct ChunkPlace<int8_t, Chunk> {
  static constexpr int kStride = 16;
  __host__ __device__ static constexpr int size(int rows) { return rows * Chunk; }
  __device__ static __forceinline__ int at(int row, int column, int rows) {
    return (column / 16 * rows + row) * 16 + column % 16;
  }
};

// Scores of a tile in shared memory: scores[column * kScoreStride + row], float or int32.
constexpr int kScoreStride = kTileRows + 4;

template <typename T>
struct MatrixTypes {
  using Element = T;
  using Sum = float;
};
template <>
struct MatrixTypes<int8_t> {
  using Element = signed char;
  using Sum = int;  // exact
};

// bf16, fp16 (float32 accumulation) and int8 (int32) on tensor cores, m16n16k16: a warp multiplies
// its 16 rows.
template <typename T, int Fragments>
struct TensorCores {
  using Weight = T;
  using Hidden = T;
  using Element = typename MatrixTypes<T>::Element;
  using Sum = typename MatrixTypes<T>::Sum;
  static constexpr int kChunk = 64;
  using Place = ChunkPlace<T, kChunk>;
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, Sum> sum[Fragments];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int f = 0; f < Fragments; ++f) nvcuda::wmma::fill_fragment(sum[f], static_cast<Sum>(0));
  }
  __device__ __forceinline__ void add(const T* rows, const T* hidden) {
    using namespace nvcuda::wmma;
    const auto* row_elements = reinterpret_cast<const Element*>(rows);
    const auto* hidden_elements = reinterpret_cast<const Element*>(hidden);
#pragma unroll
    for (int k = 0; k < kChunk; k += 16) {
      fragment<matrix_a, 16, 16, 16, Element, row_major> a;
      load_matrix_sync(a, row_elements + Place::at(warp_id() * 16, k, kTileRows), Place::kStride);
#pragma unroll
      for (int f = 0; f < Fragments; ++f) {
        fragment<matrix_b, 16, 16, 16, Element, col_major> b;
        load_matrix_sync(b, hidden_elements + Place::at(f * 16, k, Fragments * kColumns),
                         Place::kStride);
        mma_sync(sum[f], a, b, sum[f]);
      }
    }
  }
  __device__ __forceinline__ void store(Sum* scores) {
#pragma unroll
    for (int f = 0; f < Fragments; ++f)
      nvcuda::wmma::store_matrix_sync(scores + f * 16 * kScoreStride + warp_id() * 16, sum[f],
                                      kScoreStride, nvcuda::wmma::mem_col_major);
  }
};

// float32: thread t owns row t % 64 and every second group of 8 hidden rows; fused multiply-adds in
// the order of k.
template <int Fragments>
struct FusedMultiplyAdd {
  using Weight = float;
  using Hidden = float;
  using Sum = float;
  static constexpr int kChunk = 32;
  using Place = ChunkPlace<float, kChunk>;
  static constexpr int kOwned = kColumns * Fragments / 2;
  float sum[kOwned];

  __device__ __forceinline__ void clear() {
    for (int j = 0; j < kOwned; ++j) sum[j] = 0.0f;
  }
  __device__ __forceinline__ void add(const float* rows, const float* hidden) {
    constexpr int stride = Place::kStride;
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
