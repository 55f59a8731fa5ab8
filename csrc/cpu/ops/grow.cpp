// The ops that grow a tree on the CPU: checks and outputs.
#include "cpu/kernels/grow.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <tuple>

#include "common.h"

namespace dynaspec::cpu {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// The state, whose counters and frontier lie within it and leave room for `more` nodes.
GrowingTree check_tree(const char* op, const Tensor& nodes, const Tensor& values, int64_t more) {
  DYNASPEC_EXPECT(nodes.dim() == 2 && nodes.size(0) == kNodeFields &&
                      nodes.size(1) >= kNumCounters && is(nodes, Dtype::kInt64) && nodes.is_cpu() &&
                      nodes.is_contiguous(),
                  op, "nodes", "contiguous int64 [8, capacity] on the CPU", nodes);
  const int64_t capacity = nodes.size(1);
  DYNASPEC_EXPECT(values.dim() == 2 && values.size(0) == 2 && values.size(1) == capacity &&
                      is(values, Dtype::kFloat64) && values.is_cpu() && values.is_contiguous(),
                  op, "values",
                  "contiguous float64 [2, " + std::to_string(capacity) + "] on the CPU", values);
  const GrowingTree tree{mutable_data<int64_t>(nodes), mutable_data<double>(values), capacity};
  const int64_t count = tree.counter(kCount), wide = tree.counter(kWide);
  DYNASPEC_CHECK(count >= 1 && count <= capacity - more && wide >= 0 && wide <= count, op,
                 ": nodes: expected room for ", more, " more, got ", count, " nodes, ", wide,
                 " in the frontier, of ", capacity);
  for (int64_t i = 0; i < wide; ++i) {
    const int64_t node = tree.at(kFrontier, i);
    DYNASPEC_CHECK(node >= 0 && node < count, op, ": nodes: expected a frontier of nodes below ",
                   count, ", got ", node);
  }
  return tree;
}

GrowRule check_rule(const char* op, int64_t size, int64_t width) {
  DYNASPEC_CHECK(size > 0 && width > 0, op, ": size, width: expected 1 or more, got ", size,
                 " and ", width);
  return {size, width, 0, false, false};
}

Tensor integers(const std::vector<int64_t>& numbers) {
  Tensor out = empty({static_cast<int64_t>(numbers.size())}, Dtype::kInt64, cpu_place());
  std::copy(numbers.begin(), numbers.end(), mutable_data<int64_t>(out));
  return out;
}

std::vector<double> doubles(const Tensor& t) {
  std::vector<double> out(t.numel());
  if (is(t, Dtype::kFloat64)) {
    std::copy_n(data<double>(t), out.size(), out.begin());
  } else {
    std::copy_n(data<float>(t), out.size(), out.begin());
  }
  return out;
}

std::tuple<Tensor, Tensor> new_tree_op(int64_t token, int64_t capacity, double root_value) {
  DYNASPEC_CHECK(capacity >= 1, "new_tree: capacity: expected 1 or more, got ", capacity);
  capacity = std::max<int64_t>(capacity, kNumCounters);
  Tensor nodes = empty({kNodeFields, capacity}, Dtype::kInt64, cpu_place()),
         values = empty({2, capacity}, Dtype::kFloat64, cpu_place());
  const GrowingTree tree{mutable_data<int64_t>(nodes), mutable_data<double>(values), capacity};
  const int64_t root[kNodeFields] = {token, -1, -1, -1, -1, -1, 0, 1};
  for (int i = 0; i < kNodeFields; ++i) tree.nodes[i * capacity] = root[i];
  for (int i = 1; i < kNumCounters; ++i) tree.counter(static_cast<Counter>(i)) = i == kWide;
  tree.value(0) = root_value;
  tree.priority(0) = -std::numeric_limits<double>::infinity();
  return {nodes, values};
}

std::tuple<Tensor, Tensor, Tensor, double> grow_best_op(const Tensor& nodes, const Tensor& values,
                                                        const Tensor& log_q, const Tensor& ids,
                                                        int64_t size, int64_t width, double least,
                                                        bool logarithms, bool whole_beam) {
  constexpr const char* op = "grow_best";
  GrowRule rule = check_rule(op, size, width);
  rule.least = least;
  rule.logarithms = logarithms;
  rule.whole_beam = whole_beam;
  DYNASPEC_EXPECT(log_q.dim() == 2 && log_q.is_cpu() &&
                      (is(log_q, Dtype::kFloat32) || is(log_q, Dtype::kFloat64)) &&
                      log_q.is_contiguous(),
                  op, "log_q", "contiguous float32 or float64 [w, k] on the CPU", log_q);
  const int64_t k = log_q.size(1);
  const GrowingTree tree = check_tree(op, nodes, values, log_q.size(0) * std::min(k, width));
  DYNASPEC_CHECK(log_q.size(0) == tree.counter(kWide), op, ": log_q: expected ",
                 tree.counter(kWide), " rows, got ", log_q.size(0));
  DYNASPEC_EXPECT(has_shape(ids, {log_q.size(0), k}) && is(ids, Dtype::kInt64) && ids.is_cpu() &&
                      ids.is_contiguous(),
                  op, "ids", "contiguous int64 " + shape_text(log_q.sizes()) + " on the CPU", ids);
  const std::vector<double> scores = doubles(log_q);
  NextFrontier next;
  const bool sound = grow_best(tree, scores.data(), data<int64_t>(ids), k, rule, &next);
  return {integers(next.rows[0]), integers(next.rows[1]), integers(next.rows[2]),
          sound ? next.mass : kNan};
}

bool has_rows(const Tensor& t, int64_t rows) {
  return t.dim() == 2 && t.size(0) == rows && t.size(1) > 0 && is(t, Dtype::kFloat32) &&
         t.is_cpu() && t.is_contiguous();
}

std::string real_rows(int64_t rows) {
  return "contiguous float32 [" + std::to_string(rows) + ", S] on the CPU";
}

// The scores of a draft step that are drawn from, without `best`, `counts` and `least`.
Level check_level(const char* op, const Tensor& log_probs, const Tensor& ids,
                  const Tensor& uniforms, const Filters& filters, bool replacement) {
  const int64_t rows = uniforms.size(0);
  check_temperature(op, filters.temperature);
  DYNASPEC_CHECK(filters.top_k >= 0 && filters.top_p > 0, op,
                 ": expected top_k of 0 or more and top_p above 0");
  DYNASPEC_EXPECT(has_rows(log_probs, rows), op, "log_probs", real_rows(rows), log_probs);
  const int64_t vocab = log_probs.size(1);
  DYNASPEC_EXPECT(ids.dim() == 1 && ids.size(0) == vocab && is(ids, Dtype::kInt64) &&
                      ids.is_cpu() && ids.is_contiguous(),
                  op, "ids", "contiguous int64 [" + std::to_string(vocab) + "] on the CPU", ids);
  return {data<float>(log_probs),
          nullptr,
          data<int64_t>(ids),
          rows,
          vocab,
          uniforms.size(1),
          nullptr,
          nullptr,
          filters,
          replacement};
}

bool is_uniforms(const Tensor& t) {
  return t.dim() == 2 && t.size(1) > 0 && is(t, Dtype::kFloat64) && t.is_cpu() && t.is_contiguous();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, double> grow_drawn_op(
    const Tensor& nodes, const Tensor& values, const Tensor& log_probs, const Tensor& log_q,
    const Tensor& ids, const Tensor& uniforms, int64_t size, double least, double temperature,
    int64_t top_k, double top_p, double min_p, bool shared) {
  constexpr const char* op = "grow_drawn";
  DYNASPEC_EXPECT(is_uniforms(uniforms), op, "uniforms", "contiguous float64 [w, k] on the CPU",
                  uniforms);
  const int64_t rows = uniforms.size(0), k = uniforms.size(1);
  GrowRule rule = check_rule(op, size, k);
  rule.least = least;
  const GrowingTree tree = check_tree(op, nodes, values, rows * k);
  DYNASPEC_CHECK(rows == tree.counter(kWide), op, ": uniforms: expected ", tree.counter(kWide),
                 " rows, got ", rows);
  const Level given =
      check_level(op, log_probs, ids, uniforms, {temperature, top_k, top_p, min_p}, false);
  const int64_t vocab = given.size;
  DYNASPEC_EXPECT(has_rows(log_q, rows), op, "log_q", real_rows(rows), log_q);
  std::vector<float> best(rows);
  for (int64_t i = 0; i < rows; ++i) best[i] = data<float>(log_q)[i * log_q.size(1)];
  Level level = given;
  level.best = best.data();
  Tensor q = empty({rows, vocab}, Dtype::kFloat32, cpu_place());
  NextFrontier next;
  const bool sound =
      grow_drawn(tree, level, data<double>(uniforms), rule, shared, mutable_data<float>(q), &next);
  return {integers(next.rows[0]), integers(next.rows[1]), integers(next.rows[2]), q,
          sound ? next.mass : kNan};
}

// A tree under growth, the plan that it fills and which places are filled.
struct Filling {
  GrowingTree tree;
  Plan plan;
  Places places;
};

bool whole(const Tensor& t) {
  return t.dim() == 2 && is(t, Dtype::kInt64) && t.is_cpu() && t.is_contiguous();
}

Filling check_filling(const char* op, const Tensor& nodes, const Tensor& values, const Tensor& plan,
                      const Tensor& places) {
  DYNASPEC_EXPECT(whole(plan) && plan.size(0) == 2 && plan.size(1) > 0, op, "plan",
                  "contiguous int64 [2, P] on the CPU", plan);
  const int64_t size = plan.size(1);
  DYNASPEC_EXPECT(whole(places) && has_shape(places, {3, size}), op, "places",
                  "contiguous int64 [3, " + std::to_string(size) + "] on the CPU", places);
  const int64_t *first = data<int64_t>(plan), *count = first + size;
  for (int64_t i = 0; i < size; ++i) {
    DYNASPEC_CHECK(count[i] >= 0 && (count[i] == 0 || (first[i] > i && first[i] <= size)) &&
                       count[i] <= size - first[i],
                   op, ": plan: expected places below a place behind it and below ", size, ", got ",
                   count[i], " from ", first[i], " below ", i);
  }
  int64_t* head = mutable_data<int64_t>(places);
  const Places lists{head, head + size, head + 2 * size};
  const GrowingTree tree = check_tree(op, nodes, values, 0);
  DYNASPEC_CHECK(tree.counter(kCount) <= size, op, ": nodes: expected at most ", size, ", got ",
                 tree.counter(kCount));
  // Every list must end, within the plan: a place is in one list.
  int64_t more = 0, seen = 0;
  for (int64_t i = 0; i < tree.counter(kWide); ++i) {
    for (int64_t p = lists.head[tree.at(kFrontier, i)]; p != -1; p = lists.next[p]) {
      DYNASPEC_CHECK(p >= 0 && p < size && ++seen <= size, op,
                     ": places: expected lists of places below ", size, ", got ", p);
      more += count[p];
    }
  }
  check_tree(op, nodes, values, more);
  DYNASPEC_CHECK(tree.counter(kCount) + more <= size, op, ": places: expected room for ", more,
                 " more nodes, got ", tree.counter(kCount), " of ", size);
  return {tree, {first, count, size}, lists};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fill_plan_op(
    const Tensor& nodes, const Tensor& values, const Tensor& plan, const Tensor& places,
    const Tensor& tokens, const Tensor& columns) {
  constexpr const char* op = "fill_plan";
  const Filling state = check_filling(op, nodes, values, plan, places);
  const int64_t rows = state.tree.counter(kWide);
  DYNASPEC_EXPECT(whole(tokens) && tokens.size(0) == rows, op, "tokens",
                  "contiguous int64 [" + std::to_string(rows) + ", k] on the CPU", tokens);
  const int64_t k = tokens.size(1);
  DYNASPEC_EXPECT(whole(columns) && has_shape(columns, {rows, k}), op, "columns",
                  "contiguous int64 " + shape_text(tokens.sizes()) + " on the CPU", columns);
  Tensor below = empty({rows, k}, Dtype::kInt64, cpu_place());
  NextFrontier next;
  std::vector<int64_t> counts;
  fill_plan(state.tree, state.plan, state.places, data<int64_t>(tokens), data<int64_t>(columns), k,
            mutable_data<int64_t>(below), &next, &counts);
  return {integers(next.rows[0]), integers(next.rows[1]), integers(next.rows[2]), integers(counts),
          below};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool> draw_plan_op(
    const Tensor& nodes, const Tensor& values, const Tensor& plan, const Tensor& places,
    const Tensor& log_probs, const Tensor& ids, const Tensor& uniforms, double temperature,
    int64_t top_k, double top_p, double min_p, bool replacement) {
  constexpr const char* op = "draw_plan";
  const Filling state = check_filling(op, nodes, values, plan, places);
  const int64_t rows = state.tree.counter(kWide);
  DYNASPEC_EXPECT(is_uniforms(uniforms) && uniforms.size(0) == rows, op, "uniforms",
                  "contiguous float64 [" + std::to_string(rows) + ", k] on the CPU", uniforms);
  const Level level =
      check_level(op, log_probs, ids, uniforms, {temperature, top_k, top_p, min_p}, replacement);
  Tensor q = empty({rows, level.size}, Dtype::kFloat32, cpu_place()),
         columns = empty({rows, level.draws}, Dtype::kInt64, cpu_place()),
         below = empty({rows, level.draws}, Dtype::kInt64, cpu_place());
  NextFrontier next;
  std::vector<int64_t> counts;
  const bool sound = draw_plan(state.tree, state.plan, state.places, level, data<double>(uniforms),
                               mutable_data<float>(q), mutable_data<int64_t>(columns),
                               mutable_data<int64_t>(below), &next, &counts);
  return {integers(next.rows[0]),
          integers(next.rows[1]),
          integers(next.rows[2]),
          integers(counts),
          q,
          columns,
          below,
          sound};
}

std::tuple<Tensor, Tensor, int64_t, int64_t> grown_tree_op(const Tensor& nodes,
                                                           const Tensor& values) {
  const GrowingTree tree = check_tree("grown_tree", nodes, values, 0);
  std::vector<int64_t> kept(tree.counter(kCount)), place(tree.counter(kCount), -1);
  const int64_t n = grown_rows(tree, kept.data());
  Tensor out = empty({5, n}, Dtype::kInt64, cpu_place()),
         paths = empty({n - 1}, Dtype::kFloat64, cpu_place());
  int64_t* rows = mutable_data<int64_t>(out);
  double* path = mutable_data<double>(paths);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t node = kept[i];
    place[node] = i;
    rows[i] = tree.at(kToken, node);
    rows[n + i] = i == 0 ? -1 : place[tree.at(kParent, node)];
    rows[2 * n + i] = tree.at(kColumn, node);
    rows[3 * n + i] = tree.at(kStep, node);
    rows[4 * n + i] = tree.at(kRow, node);
    if (i > 0) path[i - 1] = tree.value(node);
  }
  std::sort(path, path + n - 1, std::greater<>());
  return {out, paths, tree.counter(kDrawn), tree.counter(kCount) - 1};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CompositeExplicitAutograd, m) {
  m.impl("new_tree", TORCH_BOX(&new_tree_op));
}

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CPU, m) {
  m.impl("grow_best", TORCH_BOX(&grow_best_op));
  m.impl("grow_drawn", TORCH_BOX(&grow_drawn_op));
  m.impl("fill_plan", TORCH_BOX(&fill_plan_op));
  m.impl("draw_plan", TORCH_BOX(&draw_plan_op));
  m.impl("grown_tree", TORCH_BOX(&grown_tree_op));
}

}  // namespace dynaspec::cpu
