// Kernels with one fault each: what the access checks of the SIMT machine have to find.
#include <cuda_pipeline.h>
#include <mma.h>

#include "common.cuh"

using namespace dynaspec::cuda;

__global__ void missing_barrier(int* out) {
  DYNASPEC_SHARED(memory);
  int* shared = reinterpret_cast<int*>(memory);
  shared[threadIdx.x] = threadIdx.x;
  if (blockDim.x == 32) __syncwarp();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void shuffle_is_no_barrier(int* out) {
  DYNASPEC_SHARED(memory);
  int* shared = reinterpret_cast<int*>(memory);
  shared[threadIdx.x] = threadIdx.x;
  const int sum = __shfl_xor_sync(kFullMask, 1, 1);
  out[threadIdx.x] = shared[31 - threadIdx.x] + sum;
}

__global__ void write_after_read(int* out) {
  DYNASPEC_SHARED(memory);
  int* shared = reinterpret_cast<int*>(memory);
  shared[threadIdx.x] = 1;
  __syncthreads();
  const int neighbour = shared[(threadIdx.x + 1) % blockDim.x];
  shared[threadIdx.x] = neighbour + 1;
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void across_blocks(int* out) { out[threadIdx.x] = blockIdx.x; }

__global__ void counted(int* out) { atomicAdd(out, 1); }

__global__ void unwritten(int* out) { out[threadIdx.x] = out[threadIdx.x] + 1; }

__global__ void past_the_end(int* out) { out[threadIdx.x + 1] = 1; }

__global__ void unaligned(int* out) {
  if (threadIdx.x == 0) *reinterpret_cast<uint4*>(out + 1) = make_uint4(1, 2, 3, 4);
}

__global__ void divergent_barrier(int* out) {
  if (threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void early_read(int* out, const int* in, int wait) {
  DYNASPEC_SHARED(memory);
  int* shared = reinterpret_cast<int*>(memory);
  __pipeline_memcpy_async(shared + 4 * threadIdx.x, in + 4 * threadIdx.x, 16);
  __pipeline_commit();
  if (wait) __pipeline_wait_prior(0);
  out[threadIdx.x] = shared[4 * threadIdx.x];
}

__global__ void writes_input(int* in) { in[threadIdx.x] = 0; }

extern "C" int simt_faulty(int64_t which, int* out, const int* in, int64_t threads,
                           int64_t blocks) {
  const dim3 grid(static_cast<unsigned>(blocks)), block(static_cast<unsigned>(threads));
  switch (which) {
    case 0:
      return launch(missing_barrier, grid, block, 4096, nullptr, out);
    case 1:
      return launch(shuffle_is_no_barrier, grid, block, 4096, nullptr, out);
    case 2:
      return launch(write_after_read, grid, block, 4096, nullptr, out);
    case 3:
      return launch(across_blocks, grid, block, 0, nullptr, out);
    case 4:
      return launch(counted, grid, block, 0, nullptr, out);
    case 5:
      return launch(unwritten, grid, block, 0, nullptr, out);
    case 6:
      return launch(past_the_end, grid, block, 0, nullptr, out);
    case 7:
      return launch(unaligned, grid, block, 0, nullptr, out);
    case 8:
      return launch(divergent_barrier, grid, block, 0, nullptr, out);
    case 9:
      return launch(early_read, grid, block, 4096, nullptr, out, in, 0);
    case 10:
      return launch(early_read, grid, block, 4096, nullptr, out, in, 1);
    case 11:
      return launch(writes_input, grid, block, 0, nullptr, const_cast<int*>(in));
    default:
      return launch(across_blocks, grid, block, 200 * 1024, nullptr, out);
  }
}
