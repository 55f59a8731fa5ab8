// Draws of a draft tree and their verification: plain pointers, no PyTorch. All randomness comes in
// as uniforms in [0, 1), so a result is a function of its arguments; sums are double.
#pragma once

#include <cstdint>

namespace dynaspec::cpu {

// Temperature and filters of a distribution (sampling/processors.py says what they mean).
struct Filters {
  double temperature;
  int64_t top_k;  // 0: off
  double top_p;   // 1: off
  double min_p;   // 0: off
};

// p [n] of logits [n], and the largest of them: O(n + kept log kept). False where a logit is NaN or
// infinite.
bool filtered_softmax(const float* logits, int64_t n, const Filters& filters, float* p,
                      float* largest = nullptr);

// Index drawn in proportion to weights [n] >= 0: the first whose cumulative sum exceeds u times the
// total; -1 where there is no mass. O(n), one pass and a block of a second.
template <class T>
int64_t draw_index(const T* weights, int64_t n, double u);

// Up to `count` columns of one row [n] in draw order, -1 behind the last. Without replacement a
// draw is a point on the line of the weights with the intervals of earlier draws cut out; a row
// ends with its support, or once the drawn columns hold more than the share `enough`. O(n + count
// (count + log n)); `ends` is scratch [n].
template <class T>
void draw_row(const T* weights, int64_t n, const double* uniforms, int64_t count, double enough,
              bool replacement, double* ends, int64_t* columns);

// The candidates of one draft step, [rows, size] scores of the shortlist's tokens.
struct Level {
  const float* log_probs;
  const float* best;   // [rows]: the best score of each row with the shortlist's mass, or nullptr
  const int64_t* ids;  // [size]
  int64_t rows, size;
  int64_t draws;          // most of a row
  const int64_t* counts;  // [rows]: draws of a row
  const double* least;    // [rows]: a row ends once less than this is left of its mass; or nullptr
  Filters filters;
  bool replacement;
};

// q [rows, size]: the law of the draws; columns, tokens, chances (q of each) [rows, draws], -1 and
// 0 behind the last; mass [rows]: the estimated probability of the shortlist (1 without `best`),
// NaN where a score is NaN or infinite. uniforms [rows, draws]. O(rows size).
void draw_children(const Level& level, const double* uniforms, float* q, int64_t* columns,
                   int64_t* tokens, double* chances, double* mass);

// The children of a node in the order in which verification tries them: `points` first, the others
// draws from q [size] over the distinct tokens ids [size].
struct Siblings {
  const int64_t* tokens;   // [count]
  const int64_t* columns;  // [count - points]: of q, for the draws
  int64_t count;
  int64_t points;
  const int64_t* ids;
  int64_t size;
  bool replacement;
};

// chances[j]: the probability that child j is passed, given that those before it were not (more
// than 1: certainly); NaN where q cannot have drawn it. chances[count]: the probability that the
// node itself is passed then. residual [vocab]: the law, of any positive sum, of the token that
// follows where no child is. p [vocab] has any positive sum. `weight`: the probability that the
// node is to be passed; 1 where it was accepted before its children are tried. O(vocab + count
// size).
template <class T, class Q>
void sibling_chances(const T* p, int64_t vocab, const Siblings& siblings, const Q* q, double weight,
                     double* chances, T* residual);

}  // namespace dynaspec::cpu
