// Commit of an accepted path: row base + rows[i] of every KV cache moves to base + i, in place.
//
// Layout: a cache is [rows, row_bytes]. A thread owns one piece (16 bytes where rows are multiples
// of 16) of all rows of one cache and moves it in the order of the path. The path ascends strictly,
// so i <= rows[i]: a piece is read before any later move could overwrite it, and no two threads
// share one. Entries of -1 end the path. The base lies on the device, so that a captured graph
// serves every length. Complexity: accepted rows x caches x row_bytes. Launch
// shape: (pieces / 256, caches of one launch <= 48) x 256.
#include "common.cuh"
#include "launch.h"

namespace dynaspec::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCaches = 48;  // of one launch: their addresses travel as kernel arguments

struct CommitArguments {
  dynaspec_cache caches[kCaches];
  const int64_t* rows;
  const int64_t* base;
  int count;
};

template <typename Piece>
__global__ void __launch_bounds__(kThreads, 1) commit_kernel(CommitArguments a) {
  const dynaspec_cache& cache = a.caches[blockIdx.y];
  const int64_t pieces = cache.row_bytes / static_cast<int64_t>(sizeof(Piece));
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (piece >= pieces) return;
  Piece* data = static_cast<Piece*>(cache.data) + piece;
  const int64_t base = *a.base;
  if (base < 0) return;
  for (int i = 0; i < a.count; ++i) {
    const int64_t row = a.rows[i];
    // A row before i could only be of a path that does not ascend: base + i might lie outside.
    if (row < i || row >= cache.rows - base) break;
    if (row != i) data[(base + i) * pieces] = data[(base + row) * pieces];
  }
}

}  // namespace
}  // namespace dynaspec::cuda

using namespace dynaspec::cuda;

extern "C" int dynaspec_kv_commit(const dynaspec_cache* caches, int64_t num_caches,
                                  const int64_t* base, const int64_t* rows, int64_t count,
                                  void* stream) {
  if (count < 0 || count > INT32_MAX) return cudaErrorInvalidValue;
  int status = 0;
  for (int64_t first = 0; first < num_caches && count > 0 && status == 0; first += kCaches) {
    CommitArguments a{};
    a.rows = rows;
    a.base = base;
    a.count = static_cast<int>(count);
    const int64_t here = num_caches - first < kCaches ? num_caches - first : kCaches;
    int64_t most = 0;
    bool wide = true;
    for (int64_t i = 0; i < here; ++i) {
      a.caches[i] = caches[first + i];
      const int64_t bytes = a.caches[i].row_bytes;
      most = bytes > most ? bytes : most;
      wide = wide && bytes % 16 == 0 && reinterpret_cast<uintptr_t>(a.caches[i].data) % 16 == 0;
    }
    if (most == 0) continue;
    const int64_t pieces = wide ? most / 16 : most;
    const dim3 grid(static_cast<unsigned>(ceil_div(pieces, kThreads)), static_cast<unsigned>(here));
    status = wide ? launch(commit_kernel<uint4>, grid, kThreads, 0, stream, a)
                  : launch(commit_kernel<unsigned char>, grid, kThreads, 0, stream, a);
  }
  return status;
}
