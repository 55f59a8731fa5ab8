// The SIMT machine: fibers and their scheduler. The access checks are in recorder.cpp.
#include "simt.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "machine.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

#if defined(__x86_64__)
extern "C" void simt_switch(void** save, void* load);
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#else
#include <ucontext.h>
#endif

namespace simt {
namespace {

constexpr size_t kStack = 64 * 1024;
constexpr unsigned kMaxThreads = 1024;

struct PendingCopy {
  unsigned char* destination;
  unsigned char bytes[16];
  size_t size;
  unsigned batch;
};

enum class State { kRunnable, kBarrier, kWarp, kDone };

struct Warp {
  uint64_t slots[2][32];
  unsigned arrived = 0, generation = 0;
  Collective kind = Collective::kSyncWarp;
};

unsigned char* g_stacks = nullptr;
Fiber g_fibers[kMaxThreads];
State g_state[kMaxThreads];
std::vector<PendingCopy> g_copies[kMaxThreads];
unsigned g_batch[kMaxThreads];
uint3 g_index[kMaxThreads];
std::vector<Warp> g_warps;
std::vector<unsigned> g_runnable;
unsigned g_threads = 0, g_at_barrier = 0;
uint64_t g_random = 1;
const std::function<void()>* g_body = nullptr;
std::vector<unsigned char> g_shared_storage;
unsigned char* g_shared = nullptr;
std::map<const void*, size_t> g_granted;
std::string g_errors, g_events;
unsigned g_error_count = 0;
bool g_aborted = false;

#if defined(__x86_64__)
void* g_main_sp = nullptr;
void* g_sp[kMaxThreads];
#else
ucontext_t g_main_context, g_context[kMaxThreads];
#endif

uint64_t draw(uint64_t bound) {
  g_random ^= g_random << 13;
  g_random ^= g_random >> 7;
  g_random ^= g_random << 17;
  return g_random % bound;
}

void yield() {
  const unsigned me = g_current->thread;
#if defined(__x86_64__)
  simt_switch(&g_sp[me], g_main_sp);
#else
  swapcontext(&g_context[me], &g_main_context);
#endif
}

void fiber_main() {
  (*g_body)();
  g_state[g_current->thread] = State::kDone;
  yield();
  std::abort();
}

void prepare(unsigned t) {
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(g_stacks + (t + 1) * kStack);
  *--top = nullptr;  // keeps the stack 16-byte aligned at the entry, as after a call
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  g_sp[t] = top;
#else
  getcontext(&g_context[t]);
  g_context[t].uc_stack.ss_sp = g_stacks + t * kStack;
  g_context[t].uc_stack.ss_size = kStack;
  g_context[t].uc_link = nullptr;
  makecontext(&g_context[t], fiber_main, 0);
#endif
}

void resume(unsigned t) {
  g_current = &g_fibers[t];
  threadIdx = g_index[t];
#if defined(__x86_64__)
  simt_switch(&g_main_sp, g_sp[t]);
#else
  swapcontext(&g_main_context, &g_context[t]);
#endif
  g_current = nullptr;
}

void run_block(size_t shared_bytes) {
  begin_block(g_shared, shared_bytes);
  std::memset(g_shared, 0xCD, shared_bytes);
  g_runnable.clear();
  g_at_barrier = 0;
  g_warps.assign(g_threads / 32, Warp());
  for (unsigned t = 0; t < g_threads; ++t) {
    g_fibers[t] = Fiber{t, t / 32, 1, 1};
    g_index[t] = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
    g_state[t] = State::kRunnable;
    g_copies[t].clear();
    g_batch[t] = 0;
    prepare(t);
    g_runnable.push_back(t);
  }
  unsigned done = 0;
  while (!g_runnable.empty() && !g_aborted) {
    std::swap(g_runnable[draw(g_runnable.size())], g_runnable.back());
    const unsigned t = g_runnable.back();
    g_runnable.pop_back();
    resume(t);
    done += g_state[t] == State::kDone;
  }
  if (done != g_threads && !g_aborted) {
    unsigned at_warp = 0;
    for (unsigned t = 0; t < g_threads; ++t) at_warp += g_state[t] == State::kWarp;
    fail("deadlock in block %u: %u threads at a barrier, %u at a warp collective, %u have left",
         blockIdx.x, g_at_barrier, at_warp, done);
  }
}

}  // namespace

Fiber* g_current = nullptr;

bool on_fiber_stack(const void* address) {
  const auto* p = static_cast<const unsigned char*>(address);
  return g_stacks != nullptr && p >= g_stacks && p < g_stacks + kMaxThreads * kStack;
}

void fail(const char* format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  if (++g_error_count <= 8) g_errors += std::string(line) + "\n";
}

void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  g_threads = block.x * block.y * block.z;
  if (g_threads == 0 || g_threads > kMaxThreads || g_threads % 32) {
    fail("a block of %u threads: expected a multiple of 32 up to 1024", g_threads);
    return;
  }
  if (g_stacks == nullptr)
    g_stacks =
        static_cast<unsigned char*>(mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  g_shared_storage.resize(kLargestBlockShared + 128);
  g_shared = g_shared_storage.data();
  g_shared += 128 - reinterpret_cast<uintptr_t>(g_shared) % 128;
  g_body = &body;
  blockDim = block;
  gridDim = grid;
  begin_launch();
  std::vector<unsigned> order(grid.x * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0u);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw(i)]);
  for (unsigned b : order) {
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    run_block(shared_bytes);
    if (g_aborted) break;
  }
}

unsigned char* shared_memory() { return g_shared; }
unsigned lane() { return g_current->thread % 32; }

void check_vector(const void* a, const void* b, size_t size) {
  if ((reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % size)
    fail("a vector of %zu bytes is not aligned (%p, %p)", size, a, b);
}

void sync_threads() {
  Fiber* me = g_current;
  if (++g_at_barrier == g_threads) {
    g_at_barrier = 0;
    for (unsigned t = 0; t < g_threads; ++t) {
      ++g_fibers[t].block_epoch;
      if (g_state[t] == State::kBarrier) {
        g_state[t] = State::kRunnable;
        g_runnable.push_back(t);
      }
    }
    return;
  }
  g_state[me->thread] = State::kBarrier;
  yield();
}

const uint64_t* exchange(Collective kind, unsigned mask, uint64_t value) {
  Fiber* me = g_current;
  Warp& warp = g_warps[me->warp];
  if (mask != 0xffffffffu) fail("a warp collective with mask %08x: expected all 32 lanes", mask);
  if (warp.arrived != 0 && warp.kind != kind)
    fail("lanes of warp %u meet in different collectives (%d and %d)", me->warp,
         static_cast<int>(warp.kind), static_cast<int>(kind));
  warp.kind = kind;
  // Two generations of slots: a fast lane may deposit for the next collective while a slow one
  // reads.
  uint64_t* slots = warp.slots[warp.generation & 1];
  slots[lane()] = value;
  warp.arrived |= 1u << lane();
  if (warp.arrived == 0xffffffffu) {
    warp.arrived = 0;
    ++warp.generation;
    const unsigned first = me->warp * 32;
    for (unsigned t = first; t < first + 32; ++t) {
      g_fibers[t].warp_epoch += kind == Collective::kSyncWarp;
      if (g_state[t] == State::kWarp) {
        g_state[t] = State::kRunnable;
        g_runnable.push_back(t);
      }
    }
  } else {
    g_state[me->thread] = State::kWarp;
    yield();
  }
  return slots;
}

void copy_async(void* destination, const void* source, size_t size, size_t zero_tail) {
  if ((size != 4 && size != 8 && size != 16) || zero_tail > size)
    return fail("an asynchronous copy of %zu bytes, %zu of them zero", size, zero_tail);
  if (reinterpret_cast<uintptr_t>(destination) % size || reinterpret_cast<uintptr_t>(source) % size)
    fail("an asynchronous copy of %zu bytes is not aligned (to %p, from %p)", size, destination,
         source);
  PendingCopy copy{static_cast<unsigned char*>(destination), {}, size, g_batch[g_current->thread]};
  if (size > zero_tail) {
    record(source, size - zero_tail, Access::kRead);
    std::memcpy(copy.bytes, source, size - zero_tail);
  }
  g_copies[g_current->thread].push_back(copy);
}

void commit_copies() { ++g_batch[g_current->thread]; }

void wait_copies(unsigned newest_allowed) {
  const unsigned t = g_current->thread;
  std::vector<PendingCopy> kept;
  for (const PendingCopy& copy : g_copies[t]) {
    if (copy.batch + newest_allowed < g_batch[t]) {
      record(copy.destination, copy.size, Access::kWrite);
      std::memcpy(copy.destination, copy.bytes, copy.size);
    } else {
      kept.push_back(copy);
    }
  }
  g_copies[t].swap(kept);
}

size_t granted_shared(const void* kernel) {
  auto found = g_granted.find(kernel);
  return found == g_granted.end() ? 48 * 1024 : found->second;
}
void grant_shared(const void* kernel, size_t bytes) { g_granted[kernel] = bytes; }
void event_op(const char* op, void* event, void* stream) {
  char line[96];
  snprintf(line, sizeof line, "%s %zu %zu\n", op, reinterpret_cast<size_t>(event),
           reinterpret_cast<size_t>(stream));
  g_events += line;
}

}  // namespace simt

// ---- for the tests (ctypes) ------------------------------------------------------------------
extern "C" void simt_reset(uint64_t seed) {
  simt::g_random = seed * 0x9E3779B97F4A7C15ull + 0x1234567ull;
  for (int i = 0; i < 8; ++i) simt::draw(2);
  simt::g_errors.clear();
  simt::g_events.clear();
  simt::g_error_count = 0;
  simt::g_aborted = false;
  simt::clear_regions();
}
extern "C" const char* simt_errors() { return simt::g_errors.c_str(); }
extern "C" const char* simt_events() { return simt::g_events.c_str(); }
