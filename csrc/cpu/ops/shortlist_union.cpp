#include "cpu/ops/shortlist_union.h"

#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "common.h"

namespace dynaspec::cpu {

namespace {

constexpr int64_t kWord = 64;
constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max() - kWord;

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

// Maximum over the rows of scores [n, M].
std::vector<float> best_scores(const char* op, const at::Tensor& scores) {
  const at::Tensor rows = scores.contiguous();
  const float* data = rows.const_data_ptr<float>();
  const int64_t n = rows.size(0), clusters = rows.size(1);
  std::vector<float> best(data, data + clusters);
  bool nan = false;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < clusters; ++c) {
      const float s = data[i * clusters + c];
      nan |= s != s;
      best[c] = s > best[c] ? s : best[c];
    }
  }
  TORCH_CHECK_VALUE(!nan, op, ": cluster_scores: expected numbers, got a NaN");
  return best;
}

}  // namespace

Blocks select_blocks(const char* op, const at::Tensor& cluster_scores,
                     const at::Tensor& cluster_offsets, const at::Tensor& extra_rows,
                     int64_t core_rows, int64_t budget) {
  DYNASPEC_EXPECT(cluster_offsets.dim() == 1 && cluster_offsets.scalar_type() == at::kInt &&
                      cluster_offsets.device().is_cpu(),
                  op, "cluster_offsets", "int32 [M + 1] on the CPU", cluster_offsets);
  DYNASPEC_EXPECT(
      extra_rows.dim() == 1 && extra_rows.scalar_type() == at::kInt && extra_rows.device().is_cpu(),
      op, "extra_rows", "int32 [r] on the CPU", extra_rows);
  const at::Tensor offsets_row = cluster_offsets.contiguous(), extras_row = extra_rows.contiguous();
  const int32_t* offsets = offsets_row.const_data_ptr<int32_t>();
  const int32_t* extras = extras_row.const_data_ptr<int32_t>();
  const int64_t clusters = std::max<int64_t>(offsets_row.numel() - 1, 0);
  int64_t total = offsets_row.numel() ? offsets[clusters] : 0;
  for (int64_t c = 0; c < clusters; ++c) {
    TORCH_CHECK_VALUE(offsets[c] >= 0 && offsets[c] <= offsets[c + 1], op,
                      ": cluster_offsets: expected ascending borders from 0 on, got ", offsets[c],
                      " before ", offsets[c + 1], " at ", c);
  }
  TORCH_CHECK_VALUE(core_rows >= 0 && core_rows <= kMaxRows, op,
                    ": core_rows: expected 0 or more rows, got ", core_rows);
  TORCH_CHECK_VALUE(budget >= 0, op, ": budget: expected 0 or more rows, got ", budget);
  total = std::max(total, core_rows);
  for (int64_t i = 0; i < extras_row.numel(); ++i) {
    TORCH_CHECK_VALUE(extras[i] >= 0 && extras[i] < kMaxRows, op,
                      ": extra_rows: expected rows from 0 on, got ", extras[i], " at ", i);
    total = std::max<int64_t>(total, int64_t{extras[i]} + 1);
  }

  static thread_local std::vector<uint64_t> words;
  RowBits taken(words, total);
  taken.set_range(0, core_rows);
  Blocks selected;
  selected.size = core_rows;
  for (int64_t i = 0; i < extras_row.numel(); ++i) selected.size += taken.set(extras[i]);

  if (cluster_scores.numel() != 0) {
    DYNASPEC_EXPECT(cluster_scores.dim() == 2 && cluster_scores.scalar_type() == at::kFloat &&
                        cluster_scores.size(1) == clusters && cluster_scores.device().is_cpu(),
                    op, "cluster_scores",
                    "float32 [n, " + std::to_string(clusters) + "] on the CPU", cluster_scores);
    const std::vector<float> best = best_scores(op, cluster_scores);
    std::vector<int32_t> heap(clusters);
    for (int64_t c = 0; c < clusters; ++c) heap[c] = static_cast<int32_t>(c);
    const auto worse = [&](int32_t a, int32_t b) {
      return best[a] != best[b] ? best[a] < best[b] : a > b;
    };
    std::make_heap(heap.begin(), heap.end(), worse);
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end(), worse);
      const int64_t lo = offsets[heap.back()], hi = offsets[heap.back() + 1];
      heap.pop_back();
      const int64_t fresh = hi - lo - taken.count(lo, hi);
      if (selected.size + fresh > budget) break;
      taken.set_range(lo, hi);
      selected.size += fresh;
    }
  }

  for (int64_t lo = taken.find(0, true); lo < taken.end();) {
    const int64_t hi = taken.find(lo, false);
    selected.borders.push_back(static_cast<int32_t>(lo));
    selected.borders.push_back(static_cast<int32_t>(hi));
    lo = taken.find(hi, true);
  }
  return selected;
}

namespace {

std::tuple<at::Tensor, at::Tensor> shortlist_union(const at::Tensor& cluster_scores,
                                                   const at::Tensor& cluster_offsets,
                                                   const at::Tensor& extra_rows, int64_t core_rows,
                                                   int64_t budget) {
  const Blocks selected = select_blocks("shortlist_union", cluster_scores, cluster_offsets,
                                        extra_rows, core_rows, budget);
  at::Tensor blocks = at::empty({static_cast<int64_t>(selected.borders.size() / 2), 2}, at::kInt);
  std::copy(selected.borders.begin(), selected.borders.end(), blocks.mutable_data_ptr<int32_t>());
  return {blocks, at::scalar_tensor(selected.size, at::kLong)};
}

}  // namespace

TORCH_LIBRARY_IMPL(dynaspec, CPU, m) { m.impl("shortlist_union", shortlist_union); }

}  // namespace dynaspec::cpu
