#include "cpu/kernels/tree.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

namespace dynaspec::cpu {
namespace {

// In double and in eight independent chains: 262,144 float32 terms lose nothing that a float32
// uniform could see.
double sum(const float* x, int64_t n) {
  double part[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) part[j] += x[i + j];
  }
  for (; i < n; ++i) part[0] += x[i];
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

bool usable(double mass) { return mass > 0 && mass < std::numeric_limits<double>::infinity(); }

void scale(float* x, int64_t n, double factor) {
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(x[i] * factor);
}

// A row of q while its siblings are tried: entries that were drawn and rejected are zero.
class Draft {
 public:
  Draft(const WalkDraft& draft, int64_t node, int64_t vocab) {
    const int64_t row = draft.rows[node];
    if (row < 0) return;
    size_ = draft.ids == nullptr ? vocab : draft.size;
    ids_ = draft.ids == nullptr ? nullptr : draft.ids + row * size_;
    values_.assign(draft.values + row * size_, draft.values + (row + 1) * size_);
    for (int64_t i = 0; ids_ != nullptr && i < size_; ++i) {
      if (ids_[i] < 0) values_[i] = 0;
    }
    mass_ = sum(values_.data(), size_);
  }

  bool alive() const { return mass_ > 0; }
  // A mass of 0 is a row of which nothing is left.
  bool sound() const { return mass_ >= 0 && mass_ < std::numeric_limits<double>::infinity(); }
  void stop() { mass_ = 0; }

  // Entry of a token, or -1.
  int64_t find(int64_t token) const {
    if (ids_ == nullptr) return token;
    const int64_t* at = std::find(ids_, ids_ + size_, token);
    return at == ids_ + size_ ? -1 : at - ids_;
  }

  double probability(int64_t entry) const { return entry < 0 ? 0 : values_[entry] / mass_; }

  void remove(int64_t entry) {
    values_[entry] = 0;
    mass_ = sum(values_.data(), size_);
  }

  // r = max(r - mass * D, 0), unless nothing would be left (r equals D up to rounding). Returns the
  // new mass.
  double subtract_from(float* r, double mass, int64_t vocab) {
    saved_.resize(size_);
    const double factor = mass / mass_;
    for (int64_t i = 0; i < size_; ++i) {
      const int64_t token = ids_ == nullptr ? i : ids_[i];
      if (token < 0) continue;
      saved_[i] = r[token];
      r[token] = static_cast<float>(std::max(r[token] - factor * values_[i], 0.0));
    }
    const double left = sum(r, vocab);
    if (left > 0) return left;
    for (int64_t i = 0; i < size_; ++i) {
      const int64_t token = ids_ == nullptr ? i : ids_[i];
      if (token >= 0) r[token] = saved_[i];
    }
    return mass;
  }

 private:
  const int64_t* ids_ = nullptr;
  int64_t size_ = 0;
  double mass_ = 0;
  std::vector<float> values_, saved_;
};

}  // namespace

int64_t first_bad_parent(const int64_t* parents, int64_t n, bool forest) {
  for (int64_t i = 0; i < n; ++i) {
    const bool root = parents[i] == -1 && (forest || i == 0);
    if (!root && (parents[i] < 0 || parents[i] >= i)) return i;
  }
  return -1;
}

void tree_mask(const int64_t* parents, int64_t n, bool* mask, int64_t* depth) {
  for (int64_t i = 0; i < n; ++i) {
    bool* row = mask + i * n;
    if (parents[i] < 0) {
      std::memset(row, 0, n);
      depth[i] = 0;
    } else {
      std::memcpy(row, mask + parents[i] * n, n);
      depth[i] = depth[parents[i]] + 1;
    }
    row[i] = true;
  }
}

int64_t greedy_walk(const int64_t* tokens, const int64_t* parents, const int64_t* choices,
                    int64_t n, int64_t* path) {
  int64_t length = 0;
  path[length++] = 0;
  for (int64_t i = 1; i < n; ++i) {
    const int64_t node = path[length - 1];
    if (parents[i] == node && tokens[i] == choices[node]) path[length++] = i;
  }
  return length;
}

WalkResult stochastic_walk(const WalkTarget& target, int64_t* path, float* residual) {
  const int64_t vocab = target.vocab;
  std::vector<int64_t> removed;  // tokens rejected at the node; p itself stays as it is
  int64_t length = 0, node = 0;
  path[length++] = 0;
  double mass = sum(target.probs, vocab);
  if (!usable(mass)) return {length, 0};
  for (int64_t i = 1; i < target.n; ++i) {
    if (target.parents[i] != node) continue;
    const int64_t token = target.tokens[i];
    if (std::find(removed.begin(), removed.end(), token) != removed.end()) continue;
    const double p = target.probs[node * vocab + token];
    if (target.uniforms[i] * mass < p) {
      node = path[length++] = i;
      removed.clear();
      mass = sum(target.probs + node * vocab, vocab);
      if (!usable(mass)) return {length, node};
    } else {
      removed.push_back(token);
      mass -= p;
    }
  }
  std::memcpy(residual, target.probs + node * vocab, vocab * sizeof(float));
  for (int64_t token : removed) residual[token] = 0;
  const double left = sum(residual, vocab);
  if (!usable(left)) return {length, node};
  scale(residual, vocab, 1 / left);
  return {length, -1};
}

WalkResult sampled_walk(const WalkTarget& target, const WalkDraft& draft, int64_t* path,
                        float* residual) {
  const int64_t vocab = target.vocab;
  int64_t length = 0, node = 0;
  path[length++] = 0;
  std::memcpy(residual, target.probs, vocab * sizeof(float));
  double mass = sum(residual, vocab);
  if (!usable(mass)) return {length, 0};
  Draft q(draft, 0, vocab);
  if (!q.sound()) return {length, -1, 0};
  for (int64_t i = 1; i < target.n; ++i) {
    if (target.parents[i] != node || !q.alive()) continue;
    const int64_t token = target.tokens[i], entry = q.find(token);
    const double d = q.probability(entry);
    if (!(d > 0)) {
      q.stop();
    } else if (target.uniforms[i] * d < residual[token] / mass) {
      node = path[length++] = i;
      std::memcpy(residual, target.probs + node * vocab, vocab * sizeof(float));
      mass = sum(residual, vocab);
      if (!usable(mass)) return {length, node};
      q = Draft(draft, node, vocab);
      if (!q.sound()) return {length, -1, node};
    } else {
      mass = q.subtract_from(residual, mass, vocab);
      if (!draft.replacement) q.remove(entry);
    }
  }
  scale(residual, vocab, 1 / mass);
  return {length, -1};
}

void commit_rows(char* cache, int64_t row_bytes, int64_t base, const int64_t* rows, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (rows[i] == i) continue;
    std::memcpy(cache + (base + i) * row_bytes, cache + (base + rows[i]) * row_bytes, row_bytes);
  }
}

bool topk_expand(const float* parent_scores, const float* log_q, int64_t w, int64_t k,
                 int64_t count, int64_t* index, float* score) {
  std::vector<float> flat(w * k);
  for (int64_t i = 0; i < w; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      const float value = parent_scores[i] + log_q[i * k + j];
      if (std::isnan(value)) return false;
      flat[i * k + j] = value;
    }
  }
  std::vector<int64_t> order(w * k);
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int64_t a, int64_t b) {
    return flat[a] != flat[b] ? flat[a] > flat[b] : a < b;
  });
  for (int64_t i = 0; i < count; ++i) {
    index[i] = order[i];
    score[i] = flat[order[i]];
  }
  return true;
}

bool tree_rerank(const float* scores, const int64_t* parents, int64_t n, int64_t count,
                 int64_t* index, int64_t* new_parents) {
  std::vector<float> value(scores, scores + n);
  for (int64_t i = 0; i < n; ++i) {
    if (std::isnan(value[i])) return false;
    if (parents[i] >= 0) value[i] = std::min(value[i], value[parents[i]]);
  }
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  const auto better = [&](int64_t a, int64_t b) {
    return value[a] != value[b] ? value[a] > value[b] : a < b;
  };
  if (count < n) std::nth_element(order.begin(), order.begin() + count, order.end(), better);
  std::sort(order.begin(), order.begin() + count);
  std::vector<int64_t> place(n, -1);
  for (int64_t i = 0; i < count; ++i) {
    index[i] = order[i];
    place[order[i]] = i;
    new_parents[i] = parents[order[i]] < 0 ? -1 : place[parents[order[i]]];
  }
  return true;
}

}  // namespace dynaspec::cpu
