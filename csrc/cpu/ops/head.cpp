// The shortlisted LM head: GEMM over blocks of rows, online log-softmax, top-k.
//
// The selected rows are cut into chunks of kChunk by their position in the selection alone. A
// chunk's logits stay in the cache; of it remain its softmax statistics, summed up in the order of
// the chunks, and what entered the top-k. So the result is the same for every number of threads.
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common.h"
#include "cpu/kernels/parallel.h"
#include "cpu/ops/linear.h"
#include "cpu/ops/shortlist_union.h"

namespace dynaspec::cpu {

namespace {

constexpr int64_t kChunk = 256;
constexpr int64_t kXBlock = 96;  // as in linear.cpp
constexpr int64_t kSerialBytes = 64 << 10;

// The selected rows as a sequence.
class Selection {
 public:
  Selection(const int32_t* borders, int64_t blocks) : borders_(borders), starts_(blocks + 1) {
    for (int64_t b = 0; b < blocks; ++b) {
      starts_[b + 1] = starts_[b] + borders[2 * b + 1] - borders[2 * b];
    }
  }

  int64_t size() const { return starts_.back(); }
  int64_t chunks() const { return (size() + kChunk - 1) / kChunk; }

  // Rows of a chunk (none past the last one); `list` [kChunk] is filled if they are not one range.
  RowSet rows(int64_t chunk, int32_t* list) const {
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, size());
    if (begin >= end) return {nullptr, 0, 0};
    int64_t b = std::upper_bound(starts_.begin(), starts_.end(), begin) - starts_.begin() - 1;
    if (end <= starts_[b + 1]) return {nullptr, borders_[2 * b] + begin - starts_[b], end - begin};
    for (int64_t at = begin; at < end; ++b) {
      const int64_t stop = std::min(end, starts_[b + 1]);
      int32_t row = static_cast<int32_t>(borders_[2 * b] + at - starts_[b]);
      for (; at < stop; ++at) list[at - begin] = row++;
    }
    return {list, 0, end - begin};
  }

 private:
  const int32_t* borders_;
  std::vector<int64_t> starts_;
};

struct Head {
  Weight weight;
  int64_t rows;
  const int32_t* row_ids;  // nullptr: identity
  at::Tensor keep_ids;

  int64_t id(int64_t row) const { return row_ids == nullptr ? row : row_ids[row]; }
};

Head describe_head(const char* op, const at::Tensor& hidden, const at::Tensor& head,
                   const at::Tensor& head_scale, const at::Tensor& row_ids) {
  Head described{describe_weight(op, "head", head, head_scale), head.size(0), nullptr, {}};
  DYNASPEC_EXPECT(
      hidden.dim() == 2 && hidden.size(1) == described.weight.k && hidden.device().is_cpu() &&
          is_activation(hidden),
      op, "hidden",
      "float32, bfloat16 or float16 [n, " + std::to_string(described.weight.k) + "] on the CPU",
      hidden);
  if (!is_empty(row_ids)) {
    DYNASPEC_EXPECT(row_ids.dim() == 1 && row_ids.scalar_type() == at::kInt &&
                        row_ids.size(0) == head.size(0) && row_ids.device().is_cpu(),
                    op, "row_ids",
                    "int32 [" + std::to_string(head.size(0)) + "] on the CPU, or empty", row_ids);
    described.keep_ids = row_ids.contiguous();
    described.row_ids = described.keep_ids.const_data_ptr<int32_t>();
  }
  return described;
}

void check_blocks(const char* op, const int32_t* borders, int64_t blocks, int64_t rows) {
  int32_t last = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const int32_t lo = borders[2 * b], hi = borders[2 * b + 1];
    TORCH_CHECK_VALUE(lo >= last && hi >= lo && hi <= rows, op,
                      ": blocks: expected ascending, disjoint ranges within [0, ", rows, "), got [",
                      lo, ", ", hi, ") at ", b);
    last = hi;
  }
}

// logsumexp of a row from the statistics of its chunks, in the order of the chunks.
float log_sum_exp(const char* op, const SoftmaxPart* parts, int64_t chunks, int64_t row) {
  float max = -std::numeric_limits<float>::infinity();
  for (int64_t c = 0; c < chunks; ++c) max = std::max(max, parts[c].max);
  double sum = 0.0;
  for (int64_t c = 0; c < chunks; ++c)
    sum += double{parts[c].sum} * std::exp(double{parts[c].max} - double{max});
  const float lse = static_cast<float>(double{max} + std::log(sum));
  TORCH_CHECK_VALUE(std::isfinite(lse), op,
                    ": hidden: expected finite logits, got NaN or infinity in row ", row);
  return lse;
}

int64_t slots_for(const Selection& selection, const Weight& weight) {
  return selection.size() * weight.row_bytes() < kSerialBytes ? 1
                                                              : thread_slots(selection.chunks());
}

struct Best {
  at::Tensor log_q, ids, lse;
};

Best topk(const char* op, const at::Tensor& hidden, const Head& head, const Selection& selection,
          int64_t k, double temperature) {
  check_temperature(op, temperature);
  TORCH_CHECK_VALUE(k >= 1, op, ": k: expected at least 1, got ", k);
  TORCH_CHECK_VALUE(selection.size() >= 1, op, ": blocks: expected at least one row, got none");
  k = std::min(k, selection.size());
  const int64_t n = hidden.size(0), chunks = selection.chunks();
  const float t = static_cast<float>(temperature);
  Best best{at::empty({n, k}, at::kFloat), at::empty({n, k}, at::kLong),
            at::empty({n}, at::kFloat)};
  float* log_q = best.log_q.mutable_data_ptr<float>();
  int64_t* ids = best.ids.mutable_data_ptr<int64_t>();
  float* lse = best.lse.mutable_data_ptr<float>();

  const Kernels& table = kernels();
  static thread_local Scratch packed_scratch, slot_scratch;
  const PackedRows x = pack(hidden, head.weight.type, packed_scratch);
  const int64_t slots = slots_for(selection, head.weight);
  std::vector<SoftmaxPart> parts;
  std::vector<std::pair<float, int32_t>> merged;
  for (int64_t i0 = 0; i0 < n; i0 += kXBlock) {
    const PackedRows part{x.data + i0 * x.stride, x.stride, std::min(kXBlock, n - i0)};
    // A slot's memory: logits [part.n, kChunk], then values and rows [part.n, k] of its candidates.
    const int64_t slot_floats = (part.n * (kChunk + 2 * k) + 15) / 16 * 16;
    float* memory =
        reinterpret_cast<float*>(slot_scratch.bytes(slots * slot_floats * sizeof(float)));
    std::vector<TopK> tops(slots * part.n);
    for (int64_t s = 0; s < slots; ++s) {
      float* candidates = memory + s * slot_floats + part.n * kChunk;
      for (int64_t i = 0; i < part.n; ++i) {
        tops[s * part.n + i] = {candidates + 2 * i * k,
                                reinterpret_cast<int32_t*>(candidates + (2 * i + 1) * k),
                                static_cast<int32_t>(k), 0};
      }
    }
    parts.resize(part.n * chunks);
    for_chunks_ahead(chunks, slots, [&](int64_t c, int64_t slot, int64_t after) {
      int32_t list[kChunk], list_after[kChunk];
      const RowSet next = selection.rows(after, list_after);
      RowSet rows = selection.rows(c, list);
      rows.next = &next;
      float* logits = memory + slot * slot_floats;
      table.dot_rows(head.weight, rows, part, logits, kChunk);
      for (int64_t i = 0; i < part.n; ++i) {
        const SoftmaxPart stats = table.softmax_part(logits + i * kChunk, rows.count, t);
        parts[i * chunks + c] = stats;
        table.offer(logits + i * kChunk, rows, stats.max, &tops[slot * part.n + i]);
      }
    });
    for (int64_t i = 0; i < part.n; ++i) {
      const int64_t row = i0 + i;
      lse[row] = log_sum_exp(op, parts.data() + i * chunks, chunks, row);
      merged.clear();
      for (int64_t s = 0; s < slots; ++s) {
        const TopK& top = tops[s * part.n + i];
        for (int32_t j = 0; j < top.count; ++j) merged.emplace_back(top.value[j], top.row[j]);
      }
      std::sort(merged.begin(), merged.end(), [](const auto& a, const auto& b) {
        return a.first != b.first ? a.first > b.first : a.second < b.second;
      });
      for (int64_t j = 0; j < k; ++j) {
        log_q[row * k + j] = merged[j].first - lse[row];
        ids[row * k + j] = head.id(merged[j].second);
      }
    }
  }
  return best;
}

at::Tensor checked_blocks(const char* op, const at::Tensor& blocks, int64_t rows) {
  DYNASPEC_EXPECT(blocks.dim() == 2 && blocks.size(1) == 2 && blocks.scalar_type() == at::kInt &&
                      blocks.device().is_cpu(),
                  op, "blocks", "int32 [b, 2] on the CPU", blocks);
  at::Tensor borders = blocks.contiguous();
  check_blocks(op, borders.const_data_ptr<int32_t>(), borders.size(0), rows);
  return borders;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> shortlist_topk(
    const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& head_scale,
    const at::Tensor& row_ids, const at::Tensor& blocks, int64_t k, double temperature) {
  const char* op = "shortlist_topk";
  const Head described = describe_head(op, hidden, head, head_scale, row_ids);
  const at::Tensor borders = checked_blocks(op, blocks, described.rows);
  const Selection selection(borders.const_data_ptr<int32_t>(), borders.size(0));
  Best best = topk(op, hidden, described, selection, k, temperature);
  return {best.log_q, best.ids, best.lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> draft_head(
    const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& head_scale,
    const at::Tensor& row_ids, const at::Tensor& cluster_scores, const at::Tensor& cluster_offsets,
    const at::Tensor& extra_rows, int64_t core_rows, int64_t budget, int64_t k,
    double temperature) {
  const char* op = "draft_head";
  const Head described = describe_head(op, hidden, head, head_scale, row_ids);
  const Blocks selected =
      select_blocks(op, cluster_scores, cluster_offsets, extra_rows, core_rows, budget);
  const int64_t count = static_cast<int64_t>(selected.borders.size() / 2);
  check_blocks(op, selected.borders.data(), count, described.rows);
  const Selection selection(selected.borders.data(), count);
  Best best = topk(op, hidden, described, selection, k, temperature);
  at::Tensor blocks = at::empty({count, 2}, at::kInt);
  std::copy(selected.borders.begin(), selected.borders.end(), blocks.mutable_data_ptr<int32_t>());
  return {best.log_q, best.ids, best.lse, at::scalar_tensor(selected.size, at::kLong), blocks};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> shortlist_log_probs(
    const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& head_scale,
    const at::Tensor& row_ids, const at::Tensor& blocks, double temperature) {
  const char* op = "shortlist_log_probs";
  check_temperature(op, temperature);
  const Head described = describe_head(op, hidden, head, head_scale, row_ids);
  const at::Tensor borders = checked_blocks(op, blocks, described.rows);
  const Selection selection(borders.const_data_ptr<int32_t>(), borders.size(0));
  TORCH_CHECK_VALUE(selection.size() >= 1, op, ": blocks: expected at least one row, got none");
  const int64_t n = hidden.size(0), size = selection.size(), chunks = selection.chunks();
  const float t = static_cast<float>(temperature);
  at::Tensor log_q = at::empty({n, size}, at::kFloat), ids = at::empty({size}, at::kLong),
             lse = at::empty({n}, at::kFloat);
  float* out = log_q.mutable_data_ptr<float>();
  int64_t* id = ids.mutable_data_ptr<int64_t>();
  float* total = lse.mutable_data_ptr<float>();

  const Kernels& table = kernels();
  static thread_local Scratch scratch;
  const PackedRows x = pack(hidden, described.weight.type, scratch);
  const int64_t slots = slots_for(selection, described.weight);
  std::vector<SoftmaxPart> parts(n * chunks);
  for (int64_t i0 = 0; i0 < std::max<int64_t>(n, 1); i0 += kXBlock) {
    const PackedRows part{x.data + i0 * x.stride, x.stride, std::min(kXBlock, n - i0)};
    for_chunks_ahead(chunks, slots, [&](int64_t c, int64_t, int64_t after) {
      int32_t list[kChunk], list_after[kChunk];
      const RowSet next = selection.rows(after, list_after);
      RowSet rows = selection.rows(c, list);
      rows.next = &next;
      const int64_t at = c * kChunk;
      if (i0 == 0) {
        for (int64_t j = 0; j < rows.count; ++j) id[at + j] = described.id(rows[j]);
      }
      table.dot_rows(described.weight, rows, part, out + i0 * size + at, size);
      for (int64_t i = i0; i < i0 + part.n; ++i) {
        parts[i * chunks + c] = table.softmax_part(out + i * size + at, rows.count, t);
      }
    });
  }
  for (int64_t i = 0; i < n; ++i) total[i] = log_sum_exp(op, parts.data() + i * chunks, chunks, i);
  for_chunks(n * chunks, slots, [&](int64_t unit, int64_t) {
    const int64_t i = unit / chunks, begin = unit % chunks * kChunk,
                  end = std::min(begin + kChunk, size);
    for (int64_t j = begin; j < end; ++j) out[i * size + j] -= total[i];
  });
  return {log_q, ids, lse};
}

}  // namespace

TORCH_LIBRARY_IMPL(dynaspec, CPU, m) {
  m.impl("shortlist_topk", shortlist_topk);
  m.impl("shortlist_log_probs", shortlist_log_probs);
  m.impl("draft_head", draft_head);
}

}  // namespace dynaspec::cpu
