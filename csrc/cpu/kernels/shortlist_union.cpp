#include "cpu/kernels/shortlist_union.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace dynaspec::cpu {

namespace {

constexpr int64_t kWord = 64;

// A bit for each row of the head.
class RowBits {
 public:
  explicit RowBits(std::vector<uint64_t>& words, int64_t rows) : words_(words) {
    words_.assign(rows / kWord + 1, 0);
  }

  bool set(int64_t row) {
    uint64_t& word = words_[row / kWord];
    const uint64_t bit = uint64_t{1} << (row % kWord);
    const bool was = (word & bit) != 0;
    word |= bit;
    return !was;
  }

  void set_range(int64_t lo, int64_t hi) {
    for_words(lo, hi, [&](int64_t w, uint64_t mask) { words_[w] |= mask; });
  }

  int64_t count(int64_t lo, int64_t hi) const {
    int64_t bits = 0;
    for_words(lo, hi, [&](int64_t w, uint64_t mask) { bits += std::popcount(words_[w] & mask); });
    return bits;
  }

  // First row from `row` on whose bit is `wanted`; there is always a clear bit at the end.
  int64_t find(int64_t row, bool wanted) const {
    const int64_t num_words = static_cast<int64_t>(words_.size());
    int64_t w = row / kWord;
    if (w >= num_words) return num_words * kWord;
    uint64_t word = (wanted ? words_[w] : ~words_[w]) & (~uint64_t{0} << (row % kWord));
    while (word == 0) {
      if (++w == num_words) return num_words * kWord;
      word = wanted ? words_[w] : ~words_[w];
    }
    return w * kWord + std::countr_zero(word);
  }

  int64_t end() const { return static_cast<int64_t>(words_.size()) * kWord; }

 private:
  template <class F>
  static void for_words(int64_t lo, int64_t hi, const F& f) {
    for (int64_t at = lo; at < hi;) {
      const int64_t w = at / kWord, stop = std::min(hi, (w + 1) * kWord);
      const int64_t n = stop - at;
      f(w, (n == kWord ? ~uint64_t{0} : ((uint64_t{1} << n) - 1)) << (at % kWord));
      at = stop;
    }
  }

  std::vector<uint64_t>& words_;
};

// Maximum of each cluster over the rows of scores [n, clusters]; false where one is NaN.
bool best_scores(const UnionInput& in, std::vector<float>& best) {
  best.assign(in.scores, in.scores + in.clusters);
  bool nan = false;
  for (int64_t i = 0; i < in.n; ++i) {
    for (int64_t c = 0; c < in.clusters; ++c) {
      const float s = in.scores[i * in.clusters + c];
      nan |= s != s;
      best[c] = s > best[c] ? s : best[c];
    }
  }
  return !nan;
}

// Whole clusters by score until the budget is reached; false where a score is NaN.
bool add_clusters(const UnionInput& in, RowBits& taken, int64_t& size) {
  std::vector<float> best;
  if (!best_scores(in, best)) return false;
  std::vector<int32_t> heap(in.clusters);
  for (int64_t c = 0; c < in.clusters; ++c) heap[c] = static_cast<int32_t>(c);
  const auto worse = [&](int32_t a, int32_t b) {
    return best[a] != best[b] ? best[a] < best[b] : a > b;
  };
  std::make_heap(heap.begin(), heap.end(), worse);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), worse);
    const int64_t lo = in.offsets[heap.back()], hi = in.offsets[heap.back() + 1];
    heap.pop_back();
    const int64_t fresh = hi - lo - taken.count(lo, hi);
    if (size + fresh > in.budget) break;
    taken.set_range(lo, hi);
    size += fresh;
  }
  return true;
}

}  // namespace

bool select_blocks(const UnionInput& in, Blocks& selected) {
  int64_t total =
      std::max<int64_t>(in.offsets == nullptr ? 0 : in.offsets[in.clusters], in.core_rows);
  for (int64_t i = 0; i < in.num_extras; ++i) total = std::max(total, int64_t{in.extras[i]} + 1);

  static thread_local std::vector<uint64_t> words;
  RowBits taken(words, total);
  taken.set_range(0, in.core_rows);
  selected.size = in.core_rows;
  for (int64_t i = 0; i < in.num_extras; ++i) selected.size += taken.set(in.extras[i]);
  if (in.scores != nullptr && !add_clusters(in, taken, selected.size)) return false;

  for (int64_t lo = taken.find(0, true); lo < taken.end();) {
    const int64_t hi = taken.find(lo, false);
    selected.borders.push_back(static_cast<int32_t>(lo));
    selected.borders.push_back(static_cast<int32_t>(hi));
    lo = taken.find(hi, true);
  }
  return true;
}

}  // namespace dynaspec::cpu
