#include "cpu/kernels/draw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/kernels/kernels.h"

namespace dynaspec::cpu {
namespace {

constexpr int64_t BLOCK = 1024;

// In double and in eight independent chains: 262,144 float32 terms lose nothing that matters.
template <class T>
double sum(const T* x, int64_t n) {
  double part[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) part[j] += x[i + j];
  }
  for (; i < n; ++i) part[0] += x[i];
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

struct Entry {
  float logit;  // over the temperature
  int64_t id;
};

// Best first; of equal logits the higher id, as a stable ascending sort leaves them.
bool before(const Entry& a, const Entry& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id > b.id;
}

// The entries at or above the k-th best logit, in no order: one scan with a heap of k.
void keep_top(const float* logits, int64_t n, int64_t k, std::vector<Entry>& kept) {
  const auto above = [](float a, float b) { return a > b; };
  std::vector<float> heap(logits, logits + k);
  std::make_heap(heap.begin(), heap.end(), above);
  for (int64_t i = k; i < n; ++i) {
    if (!(logits[i] > heap.front())) continue;
    std::pop_heap(heap.begin(), heap.end(), above);
    heap.back() = logits[i];
    std::push_heap(heap.begin(), heap.end(), above);
  }
  const float border = heap.front();
  for (int64_t i = 0; i < n; ++i) {
    if (logits[i] >= border) kept.push_back({logits[i], i});
  }
}

}  // namespace

bool filtered_softmax(const float* logits, int64_t n, const Filters& filters, float* p,
                      float* largest) {
  const float heat = static_cast<float>(filters.temperature);
  const bool cut = filters.top_k > 0 && filters.top_k < n, nucleus = filters.top_p < 1;
  const bool plain = !cut && !nucleus && filters.min_p <= 0;
  if (!plain) std::copy(logits, logits + n, p);
  const SoftmaxPart part =
      plain ? kernels().softmax(logits, n, heat, p) : kernels().softmax_part(p, n, heat);
  if (!(part.sum > 0)) return false;
  const float top = part.max;
  if (largest != nullptr) *largest = top * heat;
  if (plain) return true;
  // Double where a border is decided.
  const auto term = [top](const Entry& e) { return std::exp(static_cast<double>(e.logit) - top); };
  const auto mass = [&](const std::vector<Entry>& entries) {
    double total = 0;
    for (const Entry& e : entries) total += term(e);
    return total;
  };
  double whole = part.sum;
  std::vector<Entry> kept;
  if (cut) {
    keep_top(p, n, filters.top_k, kept);
    whole = mass(kept);
  } else {
    // Only tokens that can survive: those near enough to the best, or that hold top_p.
    for (float depth = filters.min_p > 0 ? -std::log(filters.min_p) + 1e-3f : 5;; depth *= 2) {
      kept.clear();
      for (int64_t i = 0; i < n; ++i) {
        if (p[i] >= top - depth) kept.push_back({p[i], i});
      }
      const bool all = static_cast<int64_t>(kept.size()) == n || depth > 1e6f;
      if (all || !nucleus || mass(kept) > filters.top_p * whole) break;
    }
  }
  if (nucleus) {
    // Kept from the best down for as long as those above hold less than top_p.
    std::sort(kept.begin(), kept.end(), before);
    double held = 0;
    size_t count = 0;
    while (count < kept.size() && (count == 0 || held < filters.top_p * whole)) {
      held += term(kept[count++]);
    }
    kept.resize(count);
  }
  if (filters.min_p > 0) {
    std::erase_if(kept, [&](const Entry& e) { return term(e) < filters.min_p; });
  }
  std::fill(p, p + n, 0.0f);
  const double total = mass(kept);
  for (const Entry& e : kept) p[e.id] = static_cast<float>(term(e) / total);
  return true;
}

template <class T>
int64_t draw_index(const T* weights, int64_t n, double u) {
  const int64_t blocks = (n + BLOCK - 1) / BLOCK;
  std::vector<double> mass(blocks);
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    mass[b] = sum(weights + b * BLOCK, std::min(BLOCK, n - b * BLOCK));
    total += mass[b];
  }
  if (!(total > 0)) return -1;
  double left = u * total;
  int64_t last = -1;
  for (int64_t b = 0; b < blocks; ++b) {
    if (left >= mass[b] && b + 1 < blocks) {
      left -= mass[b];
      continue;
    }
    for (int64_t i = b * BLOCK; i < std::min(n, (b + 1) * BLOCK); ++i) {
      if (!(weights[i] > 0)) continue;
      last = i;
      if (left < weights[i]) return i;
      left -= weights[i];
    }
  }
  if (last >= 0) return last;  // u times the total rounded up to it, or to a block's border
  for (int64_t i = n - 1; i >= 0; --i) {
    if (weights[i] > 0) return i;
  }
  return -1;
}

template int64_t draw_index(const float*, int64_t, double);
template int64_t draw_index(const double*, int64_t, double);

namespace {

double running(const float* weights, int64_t n, double* ends) {
  return kernels().running_sums(weights, n, ends);
}

double running(const double* weights, int64_t n, double* ends) {
  double total = 0;
  for (int64_t at = 0; at < n; at += kSpan) {
    total += sum(weights + at, std::min(kSpan, n - at));
    *ends++ = total;
  }
  return total;
}

// A row of weights as a line: where blocks of kSpan end, so that a point is found by one search and
// one short scan.
template <class T>
class Line {
 public:
  struct Piece {
    int64_t column;
    double start, length;
  };

  Line(const T* weights, int64_t n, double* ends)
      : weights_(weights),
        n_(n),
        blocks_((n + kSpan - 1) / kSpan),
        ends_(ends),
        total_(running(weights, n, ends)) {}

  double total() const { return total_; }

  // The piece that holds a point in [0, total]; where rounding has put the point behind the last
  // piece of a block, that one.
  Piece at(double point) const {
    int64_t block = std::upper_bound(ends_, ends_ + blocks_, point) - ends_;
    block = std::min(block, blocks_ - 1);
    while (block > 0 && !(ends_[block] > ends_[block - 1])) --block;
    const int64_t end = std::min(n_, (block + 1) * kSpan);
    double low = block ? ends_[block - 1] : 0;
    Piece found{block * kSpan, low, 0};
    for (int64_t i = block * kSpan; i < end && !(low > point); ++i) {
      const double weight = weights_[i];
      if (weight > 0) found = {i, low, weight};
      low += weight;
    }
    return found;
  }

 private:
  const T* weights_;
  int64_t n_, blocks_;
  double* ends_;
  double total_;
};

}  // namespace

template <class T>
void draw_row(const T* weights, int64_t n, const double* uniforms, int64_t count, double enough,
              bool replacement, double* ends, int64_t* columns) {
  std::fill(columns, columns + count, int64_t{-1});
  const Line<T> line(weights, n, ends);
  const double total = line.total();
  if (!(total > 0)) return;
  using Piece = typename Line<T>::Piece;
  if (replacement) {
    for (int64_t j = 0; j < count; ++j) columns[j] = line.at(uniforms[j] * total).column;
    return;
  }
  thread_local std::vector<Piece> cuts;  // ascending; kept for its memory
  cuts.clear();
  double taken = 0;
  for (int64_t j = 0; j < count && !(taken > enough * total); ++j) {
    double point = uniforms[j] * (total - taken);
    for (const Piece& cut : cuts) {
      if (point < cut.start) break;
      point += cut.length;
    }
    const Piece found = line.at(point);
    // Nothing is left but rounding.
    if (!(found.length > 0) || std::find(columns, columns + j, found.column) != columns + j) return;
    columns[j] = found.column;
    taken += found.length;
    const auto place = std::find_if(cuts.begin(), cuts.end(),
                                    [&](const Piece& c) { return c.start > found.start; });
    cuts.insert(place, found);
  }
}

template void draw_row(const float*, int64_t, const double*, int64_t, double, bool, double*,
                       int64_t*);
template void draw_row(const double*, int64_t, const double*, int64_t, double, bool, double*,
                       int64_t*);

void draw_children(const Level& level, const double* uniforms, float* q, int64_t* columns,
                   int64_t* tokens, double* chances, double* mass) {
  const int64_t size = level.size, k = level.draws;
  std::vector<double> line(size);
  for (int64_t i = 0; i < level.rows; ++i) {
    const float* logits = level.log_probs + i * size;
    float* row = q + i * size;
    int64_t* column = columns + i * k;
    std::fill(column, column + k, int64_t{-1});
    float best;
    if (!filtered_softmax(logits, size, level.filters, row, &best)) {
      mass[i] = std::numeric_limits<double>::quiet_NaN();
      std::fill(row, row + size, 0.0f);
      std::fill(tokens + i * k, tokens + (i + 1) * k, int64_t{-1});
      std::fill(chances + i * k, chances + (i + 1) * k, 0.0);
      continue;
    }
    // log_q is log_probs plus the log of the shortlist's mass, so their maxima differ by it.
    mass[i] = level.best == nullptr
                  ? 1
                  : std::min(1.0, std::exp(static_cast<double>(level.best[i]) - best));
    double enough = std::numeric_limits<double>::infinity();
    if (level.least != nullptr) enough = mass[i] > 0 ? (1 - level.least[i]) / mass[i] : 1;
    draw_row(row, size, uniforms + i * k, level.counts[i], enough, level.replacement, line.data(),
             column);
    for (int64_t j = 0; j < k; ++j) {
      tokens[i * k + j] = column[j] < 0 ? -1 : level.ids[column[j]];
      chances[i * k + j] = column[j] < 0 ? 0 : row[column[j]];
    }
  }
}

template <class T, class Q>
void sibling_chances(const T* p, int64_t vocab, const Siblings& siblings, const Q* q, double weight,
                     double* chances, T* residual) {
  constexpr double certain = std::numeric_limits<double>::infinity(),
                   nan = std::numeric_limits<double>::quiet_NaN();
  std::copy(p, p + vocab, residual);
  std::fill(chances, chances + siblings.count + 1, 0.0);
  // The weight once a part `rest` of weight * R is left by a rejected child; false where nothing is
  // left, at a weight of 1 by rounding.
  const auto reject = [&](double rest) {
    const double lost = 1 - weight;
    weight = rest > 0 ? rest / (rest + lost) : 0;
    return rest > 0;
  };
  // Points: R is p without those that were rejected.
  const double whole = siblings.points > 0 ? sum(p, vocab) : 0;
  double left = whole;
  int64_t possible = -1;
  for (int64_t j = 0; j < siblings.points; ++j) {
    const int64_t token = siblings.tokens[j];
    const double share = left > 0 ? residual[token] / left : 0;
    chances[j] = weight * share;
    if (residual[token] > 0) possible = j;
    left -= residual[token];
    residual[token] = 0;
    if (weight < 1) reject(weight * (1 - share));
  }
  const int64_t draws = siblings.count - siblings.points, size = siblings.size;
  // Each was rejected though they hold all of p, which at a weight of 1 only rounding can do: the
  // last is the answer.
  if (possible >= 0 && left < 1e-9 * whole && !(sum(residual, vocab) > 0)) {
    if (weight < 1) return;
    chances[possible] = certain;
    return;
  }
  if (draws == 0) {
    chances[siblings.count] = weight;
    return;
  }
  // Draws: R and D on the shortlist, of sum 1; R outside it is p times a factor, of sum `outside`.
  std::vector<double> r(size), d(size);
  for (int64_t i = 0; i < size; ++i) {
    r[i] = residual[siblings.ids[i]];
    residual[siblings.ids[i]] = 0;
    d[i] = q[i];
  }
  double outside = sum(residual, vocab);
  double factor = 1 / (sum(r.data(), size) + outside);
  const double scale = 1 / sum(d.data(), size);
  outside *= factor;
  for (int64_t i = 0; i < size; ++i) {
    r[i] *= factor;
    d[i] *= scale;
  }
  int64_t j = siblings.points;
  for (bool alive = true; j < siblings.count; ++j) {
    const int64_t column = siblings.columns[j - siblings.points];
    if (siblings.ids[column] != siblings.tokens[j] || !(q[column] > 0)) {
      chances[j] = nan;
      return;
    }
    if (!alive || !(d[column] > 0)) {
      chances[j] = alive ? nan : 0;
      if (alive) return;
      continue;
    }
    chances[j] = weight * r[column] / d[column];
    for (int64_t i = 0; i < size; ++i) r[i] = std::max(weight * r[i] - d[i], 0.0);
    outside *= weight;
    factor *= weight;
    const double total = outside + sum(r.data(), size);
    if (weight == 1 && !(total > 0)) {  // R = D up to rounding, and the child was rejected by it
      chances[j] = certain;
      return;
    }
    if (!reject(total)) return;
    const double grow = 1 / total;
    outside *= grow;
    factor *= grow;
    for (int64_t i = 0; i < size; ++i) r[i] *= grow;
    if (siblings.replacement) continue;
    d[column] = 0;
    const double mass = sum(d.data(), size);
    alive = mass > 0;
    for (int64_t i = 0; alive && i < size; ++i) d[i] /= mass;
  }
  chances[siblings.count] = weight;
  // In units of p, so that the tokens outside need no change.
  for (int64_t i = 0; i < size; ++i) residual[siblings.ids[i]] = static_cast<T>(r[i] / factor);
}

template void sibling_chances(const float*, int64_t, const Siblings&, const float*, double, double*,
                              float*);
template void sibling_chances(const float*, int64_t, const Siblings&, const double*, double,
                              double*, float*);
template void sibling_chances(const double*, int64_t, const Siblings&, const float*, double,
                              double*, double*);
template void sibling_chances(const double*, int64_t, const Siblings&, const double*, double,
                              double*, double*);

}  // namespace dynaspec::cpu
