#include "cpu/kernels/parallel.h"

namespace dynaspec::cpu {
namespace {

constinit ThreadPool pool{[] { return int64_t{1}; },
                          [](int64_t n, void (*body)(void*, int64_t), void* what) {
                            for (int64_t i = 0; i < n; ++i) body(what, i);
                          }};

}  // namespace

void use_threads(const ThreadPool& given) { pool = given; }
const ThreadPool& thread_pool() { return pool; }

}  // namespace dynaspec::cpu
