// Checks of every load and store of the kernels: bounds, initialisation, races, alignment.
//
// A registered buffer is cut into granules (its element size); a shadow cell a granule remembers
// the last write and a summary of the reads since. Two accesses of one block are ordered if a block
// barrier lies between them, or they belong to one warp and a __syncwarp does; accesses of two
// blocks of a launch are never ordered.
#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "machine.h"
#include "simt.h"

extern "C" char __ehdr_start __attribute__((visibility("hidden")));
extern "C" char _end __attribute__((visibility("hidden")));

namespace simt {
namespace {

struct Mark {  // who and when
  uint32_t block = 0, block_epoch = 0, warp_epoch = 0;
  uint16_t thread = 0;
};

struct Cell {
  Mark write, read;
  bool initialised = false, write_atomic = false;
  bool many_warps = false, many_lanes = false, many_blocks = false;
};

struct Region {
  uintptr_t begin, end;
  size_t granule;
  bool constant;
  std::string name;
  std::vector<Cell> cells;
};

std::vector<Region> g_regions;
Region g_shared_region{0, 0, 1, false, "shared memory", {}};
uint32_t g_block_serial = 0, g_launch_first = 1;
char* g_host_stack = nullptr;

bool ordered(const Mark& before, const Fiber& now) {
  if (before.block < g_launch_first) return true;  // an earlier launch
  if (before.block != g_block_serial) return false;
  if (before.thread == now.thread || before.block_epoch < now.block_epoch) return true;
  return before.thread / 32 == now.warp && before.warp_epoch < now.warp_epoch;
}

void race(const Region& region, size_t offset, const char* what, const Mark& other) {
  fail("race in %s at byte %zu: %s by thread %u of block %u; the other access: thread %u",
       region.name.c_str(), offset, what, g_current->thread, blockIdx.x, other.thread);
}

void note_read(Region& region, size_t index, Cell& cell) {
  const Fiber& me = *g_current;
  const size_t offset = index * region.granule;
  if (!cell.initialised)
    return fail("read of unwritten %s at byte %zu by thread %u of block %u", region.name.c_str(),
                offset, me.thread, blockIdx.x);
  if (!ordered(cell.write, me)) race(region, offset, "a read", cell.write);
  Mark& r = cell.read;
  const Mark mine{g_block_serial, me.block_epoch, me.warp_epoch, static_cast<uint16_t>(me.thread)};
  if (r.block < g_launch_first) {
    r = mine;
    cell.many_warps = cell.many_lanes = cell.many_blocks = false;
  } else if (r.block != g_block_serial) {
    r = mine;
    cell.many_warps = cell.many_lanes = false;
    cell.many_blocks = true;
  } else if (r.block_epoch < me.block_epoch) {
    r = mine;
    cell.many_warps = cell.many_lanes = false;
  } else if (r.thread / 32u != me.warp) {
    cell.many_warps = true;
  } else if (r.warp_epoch < me.warp_epoch) {
    r = mine;
    cell.many_lanes = false;
  } else if (r.thread != me.thread) {
    cell.many_lanes = true;
  }
}

void note_write(Region& region, size_t index, Cell& cell, bool atomic) {
  const Fiber& me = *g_current;
  const size_t offset = index * region.granule;
  const char* what = atomic ? "an atomic" : "a write";
  if (atomic && !cell.initialised)
    return fail("atomic on unwritten %s at byte %zu by thread %u of block %u", region.name.c_str(),
                offset, me.thread, blockIdx.x);
  if (!ordered(cell.write, me) && !(atomic && cell.write_atomic))
    race(region, offset, what, cell.write);
  const Mark& r = cell.read;
  if (r.block >= g_launch_first) {
    const bool same_block = r.block == g_block_serial;
    bool clash = cell.many_blocks || !same_block;
    if (same_block && r.block_epoch == me.block_epoch) {
      clash |= cell.many_warps || r.thread / 32u != me.warp;
      clash |= r.warp_epoch == me.warp_epoch && (cell.many_lanes || r.thread != me.thread);
    }
    if (clash) race(region, offset, what, r);
  }
  cell.initialised = true;
  cell.write_atomic = atomic;
  cell.write = {g_block_serial, me.block_epoch, me.warp_epoch, static_cast<uint16_t>(me.thread)};
}

void touch(Region& region, uintptr_t address, size_t size, Access kind) {
  if (address + size > region.end) {
    fail("access past the end of %s: %zu bytes at byte %zu by thread %u of block %u",
         region.name.c_str(), size, static_cast<size_t>(address - region.begin), g_current->thread,
         blockIdx.x);
    return;
  }
  if (region.constant) {
    if (kind != Access::kRead) fail("write to the constant input %s", region.name.c_str());
    return;
  }
  const size_t first = (address - region.begin) / region.granule;
  const size_t last = (address + size - 1 - region.begin) / region.granule;
  for (size_t i = first; i <= last; ++i) {
    if (kind == Access::kRead)
      note_read(region, i, region.cells[i]);
    else
      note_write(region, i, region.cells[i], kind == Access::kAtomic);
  }
}

}  // namespace

void begin_launch() {
  g_launch_first = g_block_serial + 1;
  g_host_stack = static_cast<char*>(__builtin_frame_address(0));
}

void begin_block(unsigned char* shared, size_t bytes) {
  ++g_block_serial;
  g_shared_region.begin = reinterpret_cast<uintptr_t>(shared);
  g_shared_region.end = g_shared_region.begin + bytes;
  g_shared_region.cells.assign(bytes, Cell());
}

void clear_regions() { g_regions.clear(); }

void record(const void* pointer, size_t size, Access kind) {
  if (g_current == nullptr || size == 0 || on_fiber_stack(pointer)) return;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (address >= g_shared_region.begin && address < g_shared_region.end)
    return touch(g_shared_region, address, size, kind);
  auto after = std::upper_bound(g_regions.begin(), g_regions.end(), address,
                                [](uintptr_t a, const Region& r) { return a < r.begin; });
  if (after != g_regions.begin() && address < (after - 1)->end)
    return touch(*(after - 1), address, size, kind);
  const char* p = static_cast<const char*>(pointer);
  if (kind == Access::kRead && p >= &__ehdr_start && p < &_end) return;  // tables, launch indices
  if (p >= g_host_stack && p < g_host_stack + (1 << 16)) return;  // the launch's own arguments
  fail("access outside every buffer: %zu bytes at %p by thread %u of block %u", size, pointer,
       g_current->thread, blockIdx.x);
}

}  // namespace simt

extern "C" void simt_region(void* base, size_t bytes, size_t granule, int constant, int poison,
                            const char* name) {
  simt::Region region{reinterpret_cast<uintptr_t>(base),
                      reinterpret_cast<uintptr_t>(base) + bytes,
                      granule,
                      constant != 0,
                      name,
                      {}};
  if (!constant) {
    region.cells.resize((bytes + granule - 1) / granule);
    for (auto& cell : region.cells) cell.initialised = !poison;
    if (poison) std::memset(base, 0xCD, bytes);
  }
  auto at = std::upper_bound(simt::g_regions.begin(), simt::g_regions.end(), region.begin,
                             [](uintptr_t a, const simt::Region& r) { return a < r.begin; });
  simt::g_regions.insert(at, std::move(region));
}

// ---- what the compiler's instrumentation calls -----------------------------------------------
namespace {
void seen(void* p, size_t size, simt::Access kind, bool aligned) {
  if (aligned && reinterpret_cast<uintptr_t>(p) % size && simt::g_current != nullptr)
    simt::fail("an access of %zu bytes at %p is not aligned", size, p);
  simt::record(p, size, kind);
}
}  // namespace

#define SIMT_HOOK(n)                                                                            \
  extern "C" void __tsan_read##n(void* p) { seen(p, n, simt::Access::kRead, true); }            \
  extern "C" void __tsan_write##n(void* p) { seen(p, n, simt::Access::kWrite, true); }          \
  extern "C" void __tsan_unaligned_read##n(void* p) { seen(p, n, simt::Access::kRead, false); } \
  extern "C" void __tsan_unaligned_write##n(void* p) { seen(p, n, simt::Access::kWrite, false); }
SIMT_HOOK(1)
SIMT_HOOK(2)
SIMT_HOOK(4)
SIMT_HOOK(8)
SIMT_HOOK(16)
extern "C" void __tsan_read_range(void* p, size_t n) { seen(p, n, simt::Access::kRead, false); }
extern "C" void __tsan_write_range(void* p, size_t n) { seen(p, n, simt::Access::kWrite, false); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
