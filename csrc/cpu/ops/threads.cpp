// The kernels run on PyTorch's threads, as every other op of the process does.
#include <torch/csrc/stable/ops.h>

#include "cpu/kernels/parallel.h"

namespace dynaspec::cpu {
namespace {

// Is this thread inside a call of ours? The pool has no threads for it then. (Inside another
// library's region PyTorch runs what it is given on the one thread: correct, if slow.)
thread_local bool inside = false;

int64_t size() { return inside ? 1 : torch::stable::get_num_threads(); }

void run(int64_t n, void (*body)(void*, int64_t), void* what) {
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    inside = true;
    for (int64_t i = begin; i < end; ++i) body(what, i);
    inside = false;
  });
}

[[maybe_unused]] const bool named = (use_threads({size, run}), true);

}  // namespace
}  // namespace dynaspec::cpu
