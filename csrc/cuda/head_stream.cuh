// The streaming loop of the head's kernels: every thread block walks its tiles (blockIdx.x, +
// gridDim.x, ...), chunk by chunk, with kStages chunks in flight; an epilogue consumes the scores
// of a finished tile.
//
// Loads are asynchronous copies of 16 bytes from global to shared memory (rows past a tile's end
// and columns past the head's width are filled with zeros instead of being read). A head whose rows
// are not multiples of 16 bytes is loaded element by element: right, but slow. The loads of the
// next tile begin while the last one is still in the epilogue.
//
// Shared memory: kStages x [64 + columns] padded rows | scores [columns, 68] | epilogue.
// Launch shape: grid x 128. Complexity: each selected row is read once; hidden rows are re-read
// from L2 per tile.
#pragma once

#include <cuda_pipeline.h>

#include "head_math.cuh"

namespace dynaspec::cuda {

struct StreamArguments {
  const void* weight;
  const float* scale;         // of int8 rows, or null
  const float* hidden_scale;  // of the quantised hidden rows of an int8 head, or null
  const void* hidden;         // packed by the plan
  const Tile* tiles;
  const int* totals;
  int dim, padded_dim, n;
  bool vector_loads;
  float temperature;
};

template <typename Math, int Fragments>
struct StageLayout {
  static constexpr int kChunk = Math::kChunk;
  using Place = typename Math::Place;
  static constexpr int kHiddenRows = Fragments * kColumns;
  static constexpr int kRowBytes =
      Place::size(kTileRows) * static_cast<int>(sizeof(typename Math::Weight));
  static constexpr int kBytes =
      kRowBytes + Place::size(kHiddenRows) * static_cast<int>(sizeof(typename Math::Hidden));
  static constexpr int kScoreBytes =
      kHiddenRows * kScoreStride * static_cast<int>(sizeof(typename Math::Sum));
  static constexpr int kSharedBytes = kStages * kBytes + kScoreBytes;
};

// Loads chunk after chunk of the thread block's tiles.
template <typename Math, int Fragments>
struct Loader {
  using Layout = StageLayout<Math, Fragments>;
  using Weight = typename Math::Weight;
  using Hidden = typename Math::Hidden;
  int tile, chunk, tiles, chunks;
  Tile current;

  __device__ Loader(const StreamArguments& a, int tiles_in_all)
      : tile(blockIdx.x), chunk(0), tiles(tiles_in_all) {
    chunks = static_cast<int>(ceil_div(a.dim, Layout::kChunk));
    if (tile < tiles) current = a.tiles[tile];
  }

  __device__ __forceinline__ void load_rows(const StreamArguments& a, Weight* stage) const {
    constexpr int kPiece = 16 / static_cast<int>(sizeof(Weight));
    constexpr int kPieces = Layout::kChunk / kPiece;
    const Weight* weight = static_cast<const Weight*>(a.weight);
    const int first_column = chunk * Layout::kChunk;
    if (a.vector_loads) {
      for (int i = threadIdx.x; i < kTileRows * kPieces; i += kStreamThreads) {
        const int row = i / kPieces, column = first_column + i % kPieces * kPiece;
        const bool inside = row < current.y && column < a.dim;
        const int64_t at = inside ? static_cast<int64_t>(current.x + row) * a.dim + column : 0;
        __pipeline_memcpy_async(stage + Layout::Place::at(row, i % kPieces * kPiece, kTileRows),
                                weight + at, 16, inside ? 0 : 16);
      }
      return;
    }
    for (int i = threadIdx.x; i < kTileRows * Layout::kChunk; i += kStreamThreads) {
      const int row = i / Layout::kChunk, column = first_column + i % Layout::kChunk;
      Weight x{};
      if (row < current.y && column < a.dim)
        x = weight[static_cast<int64_t>(current.x + row) * a.dim + column];
      stage[Layout::Place::at(row, i % Layout::kChunk, kTileRows)] = x;
    }
  }

  __device__ __forceinline__ void load_hidden(const StreamArguments& a, Hidden* stage) const {
    constexpr int kPiece = 16 / static_cast<int>(sizeof(Hidden));
    constexpr int kPieces = Layout::kChunk / kPiece;
    const Hidden* hidden = static_cast<const Hidden*>(a.hidden) + chunk * Layout::kChunk;
    for (int i = threadIdx.x; i < Layout::kHiddenRows * kPieces; i += kStreamThreads) {
      const int row = i / kPieces, column = i % kPieces * kPiece;
      __pipeline_memcpy_async(stage + Layout::Place::at(row, column, Layout::kHiddenRows),
                              hidden + static_cast<int64_t>(row) * a.padded_dim + column, 16);
    }
  }

  // Starts the copies of the next chunk, if there is one, and closes their batch.
  __device__ __forceinline__ void issue(const StreamArguments& a, unsigned char* stage) {
    if (tile < tiles) {
      load_rows(a, reinterpret_cast<Weight*>(stage));
      load_hidden(a, reinterpret_cast<Hidden*>(stage + Layout::kRowBytes));
      if (++chunk == chunks) {
        chunk = 0;
        tile += gridDim.x;
        if (tile < tiles) current = a.tiles[tile];
      }
    }
    __pipeline_commit();
  }
};

// Epilogue: static int shared_bytes(); begin(args, shared), tile(args, shared, scores, tile),
// end(args, shared).
template <typename Math, int Fragments, typename Epilogue>
__global__ void __launch_bounds__(kStreamThreads, 2)
    stream_kernel(StreamArguments a, Epilogue epilogue) {
  using Layout = StageLayout<Math, Fragments>;
  DYNASPEC_SHARED(memory);
  using Sum = typename Math::Sum;
  Sum* scores = reinterpret_cast<Sum*>(memory + kStages * Layout::kBytes);
  unsigned char* own = memory + kStages * Layout::kBytes + Layout::kScoreBytes;
  const int tiles = a.totals[0];
  Loader<Math, Fragments> loader(a, tiles);
  Math math;

  epilogue.begin(a, own);
  for (int s = 0; s < kStages - 1; ++s) loader.issue(a, memory + s * Layout::kBytes);
  int stage = 0;
  for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
    const Tile tile = a.tiles[t];
    math.clear();
    for (int chunk = 0; chunk < loader.chunks; ++chunk) {
      __pipeline_wait_prior(kStages - 2);
      __syncthreads();  // the chunk is there for all, and the stage before it is free
      loader.issue(a, memory + (stage + kStages - 1) % kStages * Layout::kBytes);
      const unsigned char* here = memory + stage * Layout::kBytes;
      math.add(reinterpret_cast<const typename Math::Weight*>(here),
               reinterpret_cast<const typename Math::Hidden*>(here + Layout::kRowBytes));
      stage = (stage + 1) % kStages;
    }
    math.store(scores);
    __syncthreads();
    epilogue.tile(a, own, scores, tile);
  }
  epilogue.end(a, own);
}

// Logit of a row after scales and temperature.
template <typename Sum>
__device__ __forceinline__ float tempered(const StreamArguments& a, Sum sum, int hidden_row,
                                          int row) {
  float logit = static_cast<float>(sum);
  if (a.scale != nullptr) logit = logit * a.hidden_scale[hidden_row] * a.scale[row];
  return logit / a.temperature;
}

template <typename Math, int Fragments, typename Epilogue>
int launch_stream_as(const StreamArguments& a, const Epilogue& epilogue, int64_t grid,
                     void* stream) {
  auto kernel = stream_kernel<Math, Fragments, Epilogue>;
  const int shared =
      StageLayout<Math, Fragments>::kSharedBytes + Epilogue::template shared_bytes<Fragments>();
  if (shared > 48 * 1024) {
    const int status = static_cast<int>(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    if (status != 0) return status;
  }
  return launch(kernel, static_cast<unsigned>(grid), kStreamThreads, shared, stream, a, epilogue);
}

template <int Fragments, typename Epilogue>
int launch_stream_columns(const StreamArguments& a, int dtype, const Epilogue& epilogue,
                          int64_t grid, void* stream) {
  switch (dtype) {
    case DYNASPEC_BFLOAT16:
      return launch_stream_as<TensorCores<__nv_bfloat16, Fragments>, Fragments>(a, epilogue, grid,
                                                                                stream);
    case DYNASPEC_FLOAT16:
      return launch_stream_as<TensorCores<__half, Fragments>, Fragments>(a, epilogue, grid, stream);
    case DYNASPEC_INT8:
      return launch_stream_as<TensorCores<int8_t, Fragments>, Fragments>(a, epilogue, grid, stream);
    default:
      return launch_stream_as<FusedMultiplyAdd<Fragments>, Fragments>(a, epilogue, grid, stream);
  }
}

// Streams the plan's tiles into the epilogue.
template <typename Epilogue>
int launch_stream(const HeadPlan& plan, const dynaspec_head& head, int64_t n, float temperature,
                  const Epilogue& epilogue, int64_t grid, void* stream) {
  constexpr int64_t kBytes[] = {4, 2, 2, 1};
  StreamArguments a{};
  a.weight = head.weight;
  a.scale = head.dtype == DYNASPEC_INT8 ? head.scale : nullptr;
  a.hidden_scale = plan.hidden_scale;
  a.hidden = plan.hidden;
  a.tiles = plan.tiles;
  a.totals = plan.totals;
  a.dim = static_cast<int>(head.dim);
  a.padded_dim = plan.padded_dim;
  a.n = static_cast<int>(n);
  a.vector_loads =
      head.dim * kBytes[head.dtype] % 16 == 0 && reinterpret_cast<uintptr_t>(head.weight) % 16 == 0;
  a.temperature = temperature;
  if (plan.columns == kColumns)
    return launch_stream_columns<1>(a, head.dtype, epilogue, grid, stream);
  return launch_stream_columns<2>(a, head.dtype, epilogue, grid, stream);
}

}  // namespace dynaspec::cuda
