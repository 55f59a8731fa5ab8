// A draft tree under growth, one call a draft step: plain pointers, no PyTorch.
//
// The state of a round lies in two arrays that the caller owns. `nodes` is int64 [8, capacity],
// row-major: token, parent, row in the drafter's cache (-1: not stepped), column of q that the
// token was drawn from, draft step that the node was expanded in (-1: none), its row therein, the
// nodes of the frontier in its order, and the counters of `Counter`. `values` is double [2,
// capacity]: what the path down to the node is worth (its probability, or the logarithm), and its
// priority, -inf where it is not among those that would be verified. Node 0 is the root; a parent
// precedes its children.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels/draw.h"

namespace dynaspec::cpu {

enum NodeField {
  kToken,
  kParent,
  kCacheRow,
  kColumn,
  kStep,
  kRow,
  kFrontier,
  kCounters,
  kNodeFields
};
enum Counter { kCount, kLevel, kStepped, kWide, kShared, kDrawn, kNumCounters };

struct GrowingTree {
  int64_t* nodes;
  double* values;
  int64_t capacity;

  int64_t& at(NodeField field, int64_t node) const { return nodes[field * capacity + node]; }
  int64_t& counter(Counter which) const { return at(kCounters, which); }
  double& value(int64_t node) const { return values[node]; }
  double& priority(int64_t node) const { return values[capacity + node]; }
};

// What a policy asks for: at most `size` verified nodes, `width` children a node and nodes a
// frontier, nothing below `least` (0: no limit).
struct GrowRule {
  int64_t size, width;
  double least;
  bool logarithms;  // values are log-probabilities, and `least` is unused
  bool whole_beam;  // candidates that cannot be verified are kept and expanded
};

// The next frontier: tokens, the parents' cache rows and their rows in the last frontier, [3][n];
// `mass`: the probability of the `width` best new nodes.
struct NextFrontier {
  std::vector<int64_t> rows[3];
  double mass = 0;
};

// Takes the best tokens of the frontier's nodes: log_q, ids [rows, k], best first, -1 is padding.
// A child is added for as long as its value exceeds the bound that the best `size` set and, for
// probabilities, the place it takes (its parent's value times what its elder siblings leave) is
// worth `least`. False where a score is NaN. O(candidates log candidates).
bool grow_best(const GrowingTree& tree, const double* log_q, const int64_t* ids, int64_t k,
               const GrowRule& rule, NextFrontier* next);

// Draws children of the frontier's nodes without replacement (`level`, whose counts and least
// values are set here), from q [rows, size]: a *slot* is filled for as long as its value exceeds
// the bound and is at least `least`, and the most valuable slots are kept. `shared`: the level's
// candidates may show what was drawn on other branches, so slots compete within their level. False
// where a score is NaN or infinite. O(rows size).
bool grow_drawn(const GrowingTree& tree, Level level, const double* uniforms, const GrowRule& rule,
                bool shared, float* q, NextFrontier* next);

// A tree whose shape is known: place i has the places first[i] .. first[i] + count[i] - 1 below it,
// of `size` places in all; place 0 is the root's.
struct Plan {
  const int64_t* first;
  const int64_t* count;
  int64_t size;
};

// The places that a node fills, a list: the first and last of each node, and what follows a place
// (-1: nothing); each [size].
struct Places {
  int64_t* head;
  int64_t* tail;
  int64_t* next;
};

// Fills the places below the frontier's nodes with tokens [rows, k], in order, a row up to its
// first -1; of equal columns [rows, k] in a row only the first gives a node, which has the places
// of all. below [rows, k]: the node of each, -1 behind the last. Every new node whose places have
// places below is expanded; counts: how many. O(rows k^2).
void fill_plan(const GrowingTree& tree, const Plan& plan, const Places& places,
               const int64_t* tokens, const int64_t* columns, int64_t k, int64_t* below,
               NextFrontier* next, std::vector<int64_t>* counts);

// The same with tokens drawn from q [rows, size] (`level`, whose counts are set here, without
// `best` and `least`), up to level.draws a node; columns [rows, draws] as drawn. False where a
// score is NaN or infinite. O(rows size).
bool draw_plan(const GrowingTree& tree, const Plan& plan, const Places& places, Level level,
               const double* uniforms, float* q, int64_t* columns, int64_t* below,
               NextFrontier* next, std::vector<int64_t>* counts);

// Rows of the tree to verify, ascending, the root first; returns their number.
int64_t grown_rows(const GrowingTree& tree, int64_t* kept);

}  // namespace dynaspec::cpu
