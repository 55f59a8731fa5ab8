#include "cpu/kernels/head.h"

#include <cmath>
#include <limits>

#include "cpu/kernels/linear.h"
#include "cpu/kernels/parallel.h"

namespace dynaspec::cpu {
namespace {

constexpr int64_t kChunk = Selection::kChunk;
constexpr int64_t kXBlock = 96;  // as in linear.cpp
constexpr int64_t kSerialBytes = 64 << 10;

// logsumexp of a row from the statistics of its chunks, in the order of the chunks.
float log_sum_exp(const SoftmaxPart* parts, int64_t chunks) {
  float max = -std::numeric_limits<float>::infinity();
  for (int64_t c = 0; c < chunks; ++c) max = std::max(max, parts[c].max);
  double sum = 0.0;
  for (int64_t c = 0; c < chunks; ++c)
    sum += double{parts[c].sum} * std::exp(double{parts[c].max} - double{max});
  return static_cast<float>(double{max} + std::log(sum));
}

int64_t slots_for(const Selection& selection, const Weight& weight) {
  return selection.size() * weight.row_bytes < kSerialBytes ? 1 : thread_slots(selection.chunks());
}

}  // namespace

int64_t head_topk(const Head& head, const PackedRows& x, const Selection& selection, int64_t k,
                  float temperature, float* log_q, int64_t* ids, float* lse) {
  const int64_t n = x.n, chunks = selection.chunks();
  const Kernels& table = kernels();
  const FormatKernels& products = table.of(head.weight.format);
  static thread_local Scratch slot_scratch;
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
      int32_t list[kChunk], stored[kChunk], list_after[kChunk], stored_after[kChunk];
      const RowSet rows = selection.rows(c, list);
      const RowSet next = head.stored(selection.rows(after, list_after), stored_after);
      RowSet here = head.stored(rows, stored);
      here.next = &next;
      float* logits = memory + slot * slot_floats;
      products.dot_rows(head.weight, here, part, logits, kChunk);
      for (int64_t i = 0; i < part.n; ++i) {
        const SoftmaxPart stats = table.softmax_part(logits + i * kChunk, rows.count, temperature);
        parts[i * chunks + c] = stats;
        table.offer(logits + i * kChunk, rows, stats.max, &tops[slot * part.n + i]);
      }
    });
    for (int64_t i = 0; i < part.n; ++i) {
      const int64_t row = i0 + i;
      lse[row] = log_sum_exp(parts.data() + i * chunks, chunks);
      if (!std::isfinite(lse[row])) return row;
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
  return -1;
}

int64_t head_log_probs(const Head& head, const PackedRows& x, const Selection& selection,
                       float temperature, float* log_q, int64_t* ids, float* lse) {
  const int64_t n = x.n, size = selection.size(), chunks = selection.chunks();
  const Kernels& table = kernels();
  const FormatKernels& products = table.of(head.weight.format);
  const int64_t slots = slots_for(selection, head.weight);
  std::vector<SoftmaxPart> parts(n * chunks);
  for (int64_t i0 = 0; i0 < std::max<int64_t>(n, 1); i0 += kXBlock) {
    const PackedRows part{x.data + i0 * x.stride, x.stride, std::min(kXBlock, n - i0)};
    for_chunks_ahead(chunks, slots, [&](int64_t c, int64_t, int64_t after) {
      int32_t list[kChunk], stored[kChunk], list_after[kChunk], stored_after[kChunk];
      const RowSet rows = selection.rows(c, list);
      const RowSet next = head.stored(selection.rows(after, list_after), stored_after);
      RowSet here = head.stored(rows, stored);
      here.next = &next;
      const int64_t at = c * kChunk;
      if (i0 == 0) {
        for (int64_t j = 0; j < rows.count; ++j) ids[at + j] = head.id(rows[j]);
      }
      products.dot_rows(head.weight, here, part, log_q + i0 * size + at, size);
      for (int64_t i = i0; i < i0 + part.n; ++i) {
        parts[i * chunks + c] = table.softmax_part(log_q + i * size + at, rows.count, temperature);
      }
    });
  }
  for (int64_t i = 0; i < n; ++i) {
    lse[i] = log_sum_exp(parts.data() + i * chunks, chunks);
    if (!std::isfinite(lse[i])) return i;
  }
  for_chunks(n * chunks, slots, [&](int64_t unit, int64_t) {
    const int64_t i = unit / chunks, begin = unit % chunks * kChunk,
                  end = std::min(begin + kChunk, size);
    for (int64_t j = begin; j < end; ++j) log_q[i * size + j] -= lse[i];
  });
  return -1;
}

}  // namespace dynaspec::cpu
