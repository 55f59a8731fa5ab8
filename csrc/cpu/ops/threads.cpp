// The kernels run on ATen's threads, as every other op of the process does.
#include <ATen/Parallel.h>

#include "cpu/kernels/parallel.h"

namespace dynaspec::cpu {
namespace {

[[maybe_unused]] const bool named = [] {
  use_threads({[] { return at::in_parallel_region() ? 1 : int64_t{at::get_num_threads()}; },
               [](int64_t n, void (*body)(void*, int64_t), void* what) {
                 at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) body(what, i);
                 });
               }});
  return true;
}();

}  // namespace
}  // namespace dynaspec::cpu
