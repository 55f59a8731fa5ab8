#include "cpu/kernels/grow.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dynaspec::cpu {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

// Best first; of equal ones the older.
struct Better {
  const double* key;
  bool operator()(int64_t a, int64_t b) const { return key[a] != key[b] ? key[a] > key[b] : a < b; }
};

// Keeps the `count` best of `nodes`, in order where `ordered`.
void keep_best(std::vector<int64_t>& nodes, int64_t count, const double* key, bool ordered) {
  count = std::min(count, static_cast<int64_t>(nodes.size()));
  const auto middle = nodes.begin() + count;
  if (ordered) {
    std::partial_sort(nodes.begin(), middle, nodes.end(), Better{key});
  } else if (middle != nodes.end()) {
    std::nth_element(nodes.begin(), middle, nodes.end(), Better{key});
  }
}

std::vector<int64_t> verified(const GrowingTree& tree, int64_t from) {
  std::vector<int64_t> nodes;
  nodes.reserve(tree.counter(kCount));
  for (int64_t i = std::max<int64_t>(from, 1); i < tree.counter(kCount); ++i) {
    if (tree.priority(i) > kNone) nodes.push_back(i);
  }
  return nodes;
}

// A priority at or below this can no longer enter the best `size`.
double bound(const GrowingTree& tree, int64_t size) {
  int64_t count = 0;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t i = 1; i < tree.counter(kCount); ++i) {
    const double priority = tree.priority(i);
    if (!(priority > kNone)) continue;
    ++count;
    least = std::min(least, priority);
  }
  return count < size ? kNone : least;
}

int64_t add(const GrowingTree& tree, int64_t parent, int64_t token, int64_t column, double value,
            double priority) {
  const int64_t node = tree.counter(kCount)++;
  tree.at(kToken, node) = token;
  tree.at(kParent, node) = parent;
  tree.at(kCacheRow, node) = -1;
  tree.at(kColumn, node) = column;
  tree.at(kStep, node) = -1;
  tree.at(kRow, node) = -1;
  tree.value(node) = value;
  tree.priority(node) = priority;
  return node;
}

// Lets the nodes from `first` on compete for the best `size`; within_level: for the room that the
// levels above have left.
void offer(const GrowingTree& tree, int64_t first, int64_t size, bool within_level) {
  std::vector<int64_t> nodes = verified(tree, within_level ? first : 1);
  int64_t room = size;
  if (within_level) room -= static_cast<int64_t>(verified(tree, 1).size() - nodes.size());
  room = std::min(room, static_cast<int64_t>(nodes.size()));
  keep_best(nodes, room, tree.values + tree.capacity, false);
  for (auto it = nodes.begin() + room; it != nodes.end(); ++it) tree.priority(*it) = kNone;
}

void expand(const GrowingTree& tree, const std::vector<int64_t>& nodes, NextFrontier* next) {
  for (auto& row : next->rows) row.reserve(nodes.size());
  int64_t place = 0;
  for (const int64_t node : nodes) {
    const int64_t parent = tree.at(kParent, node);
    next->rows[0].push_back(tree.at(kToken, node));
    next->rows[1].push_back(tree.at(kCacheRow, parent));
    next->rows[2].push_back(tree.at(kRow, parent));
    tree.at(kCacheRow, node) = tree.counter(kStepped)++;
    tree.at(kFrontier, place++) = node;
  }
  tree.counter(kWide) = place;
}

// The most valuable of the nodes from `first` on.
void next_frontier(const GrowingTree& tree, int64_t first, const GrowRule& rule,
                   NextFrontier* next) {
  std::vector<int64_t> nodes;
  for (int64_t i = first; i < tree.counter(kCount); ++i) nodes.push_back(i);
  keep_best(nodes, rule.width, tree.values, true);
  nodes.resize(std::min<size_t>(nodes.size(), rule.width));
  for (const int64_t node : nodes) {
    next->mass += rule.logarithms ? std::exp(tree.value(node)) : tree.value(node);
  }
  const double floor = bound(tree, rule.size);
  const auto worth = [&](int64_t node) {
    return tree.value(node) > floor && (rule.logarithms || tree.value(node) >= rule.least);
  };
  // They come best first, so those worth a draft step come before the others.
  if (!rule.whole_beam) {
    nodes.erase(std::partition_point(nodes.begin(), nodes.end(), worth), nodes.end());
  } else if (!nodes.empty() && !worth(nodes[0])) {
    nodes.clear();
  }
  expand(tree, nodes, next);
}

// The frontier's nodes are expanded in this draft step; returns its number.
int64_t begin_level(const GrowingTree& tree) {
  const int64_t step = tree.counter(kLevel)++;
  for (int64_t i = 0; i < tree.counter(kWide); ++i) {
    const int64_t node = tree.at(kFrontier, i);
    tree.at(kStep, node) = step;
    tree.at(kRow, node) = i;
  }
  return step;
}

int64_t places_below(const Plan& plan, const Places& places, int64_t node) {
  int64_t count = 0;
  for (int64_t p = places.head[node]; p >= 0; p = places.next[p]) count += plan.count[p];
  return count;
}

}  // namespace

bool grow_best(const GrowingTree& tree, const double* log_q, const int64_t* ids, int64_t k,
               const GrowRule& rule, NextFrontier* next) {
  begin_level(tree);
  const int64_t first = tree.counter(kCount);
  const double floor = rule.whole_beam ? kNone : bound(tree, rule.size);
  for (int64_t i = 0; i < tree.counter(kWide); ++i) {
    const int64_t parent = tree.at(kFrontier, i);
    const double above = tree.value(parent);
    double left = 1;
    for (int64_t j = 0; j < std::min(k, rule.width) && ids[i * k + j] >= 0; ++j) {
      const double log_d = log_q[i * k + j];
      if (std::isnan(log_d)) return false;
      const double d = rule.logarithms ? 0 : std::exp(std::min(log_d, 0.0));
      const double value = rule.logarithms ? above + std::min(log_d, 0.0) : above * d;
      if (value <= floor || (!rule.logarithms && above * left < rule.least)) break;
      left -= d;
      add(tree, parent, ids[i * k + j], -1, value, value);
    }
  }
  offer(tree, first, rule.size, false);
  next_frontier(tree, first, rule, next);
  return true;
}

bool grow_drawn(const GrowingTree& tree, Level level, const double* uniforms, const GrowRule& rule,
                bool shared, float* q, NextFrontier* next) {
  begin_level(tree);
  tree.counter(kShared) |= shared;
  const int64_t rows = tree.counter(kWide), first = tree.counter(kCount), k = level.draws;
  const double floor = bound(tree, rule.size), least = std::max(rule.least, floor);
  std::vector<int64_t> counts(rows, k), columns(rows * k), tokens(rows * k);
  std::vector<double> rests(rows), chances(rows * k), mass(rows);
  for (int64_t i = 0; i < rows; ++i) {
    const double above = tree.value(tree.at(kFrontier, i));
    rests[i] = above > 0 ? least / above : 1;
  }
  level.counts = counts.data();
  level.least = rests.data();
  draw_children(level, uniforms, q, columns.data(), tokens.data(), chances.data(), mass.data());
  for (int64_t i = 0; i < rows; ++i) {
    if (std::isnan(mass[i])) return false;
    const int64_t parent = tree.at(kFrontier, i);
    const double above = tree.value(parent);
    double left = 1;
    bool open = true;
    for (int64_t j = i * k; j < (i + 1) * k && columns[j] >= 0; ++j) {
      ++tree.counter(kDrawn);
      const double slot = above * left, d = mass[i] * chances[j];
      open = open && slot >= rule.least && slot > floor;
      if (!open) continue;
      add(tree, parent, tokens[j], columns[j], std::min(above * d, slot), slot);
      left = std::max(left - d, 0.0);
    }
  }
  offer(tree, first, rule.size, tree.counter(kShared));
  const bool full =
      tree.counter(kShared) && static_cast<int64_t>(verified(tree, 1).size()) >= rule.size;
  if (!full) next_frontier(tree, first, rule, next);
  return true;
}

void fill_plan(const GrowingTree& tree, const Plan& plan, const Places& places,
               const int64_t* tokens, const int64_t* columns, int64_t k, int64_t* below,
               NextFrontier* next, std::vector<int64_t>* counts) {
  begin_level(tree);
  const int64_t rows = tree.counter(kWide), first = tree.counter(kCount);
  std::fill(below, below + rows * k, int64_t{-1});
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t parent = tree.at(kFrontier, i);
    const int64_t *token = tokens + i * k, *column = columns + i * k;
    int64_t* node = below + i * k;
    int64_t j = 0;
    for (int64_t above = places.head[parent]; above >= 0; above = places.next[above]) {
      const int64_t end = plan.first[above] + plan.count[above];
      for (int64_t place = plan.first[above]; place < end && j < k && token[j] >= 0; ++place, ++j) {
        const int64_t same = std::find(column, column + j, column[j]) - column;
        if (same < j) {
          node[j] = node[same];
          places.next[places.tail[node[j]]] = place;
        } else {
          node[j] = add(tree, parent, token[j], column[j], 0, 0);
          places.head[node[j]] = place;
        }
        places.tail[node[j]] = place;
        places.next[place] = -1;
        ++tree.counter(kDrawn);
      }
    }
  }
  std::vector<int64_t> nodes;
  for (int64_t node = first; node < tree.counter(kCount); ++node) {
    const int64_t count = places_below(plan, places, node);
    if (count == 0) continue;
    nodes.push_back(node);
    counts->push_back(count);
  }
  expand(tree, nodes, next);
}

bool draw_plan(const GrowingTree& tree, const Plan& plan, const Places& places, Level level,
               const double* uniforms, float* q, int64_t* columns, int64_t* below,
               NextFrontier* next, std::vector<int64_t>* counts) {
  const int64_t rows = tree.counter(kWide), k = level.draws;
  std::vector<int64_t> draws(rows), tokens(rows * k);
  std::vector<double> chances(rows * k), mass(rows);
  for (int64_t i = 0; i < rows; ++i) {
    draws[i] = std::min(k, places_below(plan, places, tree.at(kFrontier, i)));
  }
  level.counts = draws.data();
  draw_children(level, uniforms, q, columns, tokens.data(), chances.data(), mass.data());
  for (const double each : mass) {
    if (std::isnan(each)) return false;
  }
  fill_plan(tree, plan, places, tokens.data(), columns, k, below, next, counts);
  return true;
}

int64_t grown_rows(const GrowingTree& tree, int64_t* kept) {
  int64_t count = 0;
  kept[count++] = 0;
  for (const int64_t node : verified(tree, 1)) kept[count++] = node;
  return count;
}

}  // namespace dynaspec::cpu
