// A thin SIMT machine on the CPU: runs the project's CUDA kernel sources unchanged.
//
// Every CUDA thread of a block is a fiber. A fiber runs until it meets a barrier or a warp
// collective; which runnable fiber goes next is drawn from a seeded generator, so that an order
// that the sources wrongly rely on is broken by some seed. Blocks run one after the other, in
// random order.
//
// The kernel sources are compiled with the compiler's thread-sanitizer instrumentation but linked
// against simt.cpp, whose __tsan_* callbacks see every load and store. They check:
//   bounds         an access outside the registered buffers, shared memory and stacks
//   initialisation a read of a byte that nobody wrote (outputs and workspaces start poisoned)
//   races          two accesses, one of them a write, that no __syncthreads / __syncwarp orders,
//                  or that come from two blocks of one launch (atomics excepted)
//   alignment      a vector access that is not aligned to its size
// Shuffles and votes order no memory, as in CUDA; only barriers do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#define SIMT_NO_TRACE __attribute__((no_sanitize("thread"), noinline))

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace simt {

enum class Access { kRead, kWrite, kAtomic };
enum class Collective : int { kSyncWarp = 1, kShuffle, kVote, kMatrix };

// Runs body once per thread of the grid.
void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

// Dynamic shared memory of the running block: 16-byte aligned, poisoned at the block's start.
unsigned char* shared_memory();

void sync_threads();

// All 32 lanes deposit a value and receive everybody's (valid until the lane's next collective).
const uint64_t* exchange(Collective kind, unsigned mask, uint64_t value);

// What the instrumentation cannot see: accesses made inside simt.cpp on behalf of a thread.
void record(const void* address, size_t size, Access kind);

void copy_async(void* destination, const void* source, size_t size, size_t zero_tail);
void commit_copies();
void wait_copies(unsigned newest_allowed);

unsigned lane();
void check_vector(const void* a, const void* b, size_t size);
void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace simt
