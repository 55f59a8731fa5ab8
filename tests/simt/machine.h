// What the scheduler (simt.cpp) and the access checks (recorder.cpp) share.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

constexpr size_t kLargestBlockShared = 99 * 1024;

struct Fiber {
  unsigned thread, warp;
  uint32_t block_epoch;  // barriers of the block passed so far
  uint32_t warp_epoch;   // __syncwarp's of the warp passed so far
};

extern Fiber* g_current;  // null on the host side

bool on_fiber_stack(const void* address);
void begin_launch();
void begin_block(unsigned char* shared, size_t bytes);
void clear_regions();

}  // namespace simt
