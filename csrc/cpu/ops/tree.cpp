// The tree ops on the CPU: checks and outputs.
#include "cpu/kernels/tree.h"

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "common.h"

namespace dynaspec::cpu {
namespace {

bool fits(const Tensor& t, Dtype type, std::initializer_list<int64_t> shape) {
  return is(t, type) && t.is_cpu() && has_shape(t, shape);
}

Tensor ints(int64_t n) { return empty({n}, Dtype::kInt64, cpu_place()); }

// The path that a walk wrote, at its own length.
Tensor path_tensor(const std::vector<int64_t>& path, int64_t length) {
  Tensor rows = ints(length);
  std::copy_n(path.begin(), length, mutable_data<int64_t>(rows));
  return rows;
}

const int64_t* ids(const char* op, const char* name, const Tensor& t, int64_t n) {
  DYNASPEC_EXPECT(fits(t, Dtype::kInt64, {n}) && t.is_contiguous(), op, name,
                  "contiguous int64 " + shape_text({n}) + " on the CPU", t);
  return data<int64_t>(t);
}

// parents [n] of a tree.
const int64_t* check_parents(const char* op, const Tensor& parents) {
  DYNASPEC_EXPECT(parents.dim() == 1 && parents.size(0) > 0, op, "parents",
                  "int64 of shape [n] with at least one row", parents);
  DYNASPEC_EXPECT(is(parents, Dtype::kInt64) && parents.is_cpu() && parents.is_contiguous(), op,
                  "parents", "dtype int64, contiguous, on the CPU", parents);
  const int64_t* rows = data<int64_t>(parents);
  const int64_t bad = first_bad_parent(rows, parents.size(0));
  DYNASPEC_CHECK(bad < 0, op, ": parents[", bad, "]: expected ",
                 bad == 0 ? "-1" : "a row before it", ", got ", rows[bad]);
  return rows;
}

std::tuple<Tensor, Tensor> tree_mask_op(const Tensor& parents) {
  const int64_t* parent = check_parents("tree_mask", parents);
  const int64_t n = parents.size(0);
  Tensor mask = empty({n, n}, Dtype::kBool, cpu_place()), depth = ints(n);
  tree_mask(parent, n, mutable_data<bool>(mask), mutable_data<int64_t>(depth));
  return {mask, depth};
}

Tensor greedy_walk_op(const Tensor& tokens, const Tensor& parents, const Tensor& choices) {
  const int64_t* parent = check_parents("greedy_walk", parents);
  const int64_t n = parents.size(0);
  const int64_t* token = ids("greedy_walk", "tokens", tokens, n);
  const int64_t* choice = ids("greedy_walk", "choices", choices, n);
  std::vector<int64_t> path(n);
  return path_tensor(path, greedy_walk(token, parent, choice, n, path.data()));
}

void kv_commit_op(const std::vector<Tensor>& caches, const Tensor& base, const Tensor& rows) {
  constexpr const char* op = "kv_commit";
  const int64_t base_len = *ids(op, "base", base, 1);
  DYNASPEC_CHECK(base_len >= 0, op, ": base: expected 0 or more, got ", base_len);
  const int64_t count = rows.numel();
  const int64_t* row = ids(op, "rows", rows, count);
  for (int64_t i = 0; i < count; ++i) {
    DYNASPEC_CHECK(row[i] > (i > 0 ? row[i - 1] : -1), op,
                   ": rows: expected strictly ascending rows from 0 on, got ", row[i], " at ", i);
  }
  const int64_t last = count > 0 ? row[count - 1] : -1;
  for (const Tensor& cache : caches) {
    DYNASPEC_EXPECT(cache.dim() > 0 && cache.is_contiguous() && cache.is_cpu() &&
                        (count == 0 || last < cache.size(0) - base_len),
                    op, "caches",
                    "contiguous tensors of more than " + std::to_string(base_len) + " + " +
                        std::to_string(last) + " rows on the CPU",
                    cache);
  }
  for (const Tensor& cache : caches) {
    if (cache.numel() == 0) continue;
    commit_rows(mutable_data<char>(cache), row_bytes(cache), base_len, row, count);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CPU, m) {
  m.impl("tree_mask", TORCH_BOX(&tree_mask_op));
  m.impl("greedy_walk", TORCH_BOX(&greedy_walk_op));
  m.impl("kv_commit", TORCH_BOX(&kv_commit_op));
}

}  // namespace dynaspec::cpu
