#include "cpu/kernels/attention.h"

#include <algorithm>
#include <cstring>

#include "cpu/kernels/decoder_kernels.h"
#include "cpu/kernels/formats.h"

namespace dynaspec::cpu {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kLanes = 16;       // scores are padded to whole vectors
constexpr int64_t kMaxQueries = 32;  // query vectors a task
constexpr int64_t kMinKeysToSplit = 64;

int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }
int64_t round_down(int64_t a, int64_t to) { return a / to * to; }

}  // namespace

// What a task works on. Scores and list are indexed by logical index - base; base is a multiple of
// kLanes, so that a key's lane and its partner in a pair depend on its logical index alone.
struct Attention::Block {
  int64_t kv_head;
  int64_t base;
  float* scores;  // [queries, padded]
  float* sums;    // [queries, head_dim]
  float* totals;  // [queries] softmax denominators
  int32_t* list;  // [padded + 1] rows of the cache seen as [rows * kv_heads, head_dim]
};

Attention::Attention(const LayerShape& shape, const KvCache& cache, const TreeRows& rows,
                     int threads)
    : shape_(shape), cache_(cache), rows_(rows) {
  const int64_t most = std::max<int64_t>(1, kMaxQueries / shape.group());
  blocks_ = (rows.n + most - 1) / most;
  const int64_t per_head =
      (threads + shape.kv_heads - 1) / shape.kv_heads;  // blocks that keep all threads busy
  blocks_ = std::min(rows.n, round_up(blocks_, per_head));
  // Too few rows: the heads of a group are divided among the threads.
  splits_ = 1;
  if (rows.committed + rows.t >= kMinKeysToSplit) {
    while (splits_ < shape.group() &&
           (shape.kv_heads * blocks_ * splits_ < threads || shape.group() % splits_ != 0)) {
      ++splits_;
    }
  }
  block_rows_ = (rows.n + blocks_ - 1) / blocks_;
  padded_ = round_up(rows.committed + rows.t, kLanes) + kLanes;
  query_stride_ = kernels().of(cache.format).packed_stride(shape.head_dim);
}

int64_t Attention::shared_bytes() const {
  return round_up(rows_.n * sizeof(Keys), kLine) + rows_.n * shape_.heads * query_stride_ +
         round_up(rows_.n * rows_.t * sizeof(int32_t), kLine);
}

int64_t Attention::worker_bytes() const {
  const int64_t queries = block_rows_ * shape_.group();
  return round_up(queries * padded_ * sizeof(float), kLine) +
         round_up(queries * (shape_.head_dim + 1) * sizeof(float), kLine) +
         round_up((padded_ + 1) * sizeof(int32_t), kLine);
}

char* Attention::query(int64_t i, int64_t head) const {
  // [kv_heads, n, group]: the queries of a block of rows that share a key head are adjacent.
  const int64_t group = shape_.group();
  const int64_t at = ((head / group) * rows_.n + i) * group + head % group;
  return shared_ + round_up(rows_.n * sizeof(Keys), kLine) + at * query_stride_;
}

int32_t* Attention::path(int64_t i) const {
  char* all =
      shared_ + round_up(rows_.n * sizeof(Keys), kLine) + rows_.n * shape_.heads * query_stride_;
  return reinterpret_cast<int32_t*>(all) + i * rows_.t;
}

void Attention::find_keys(int64_t i) {
  const int64_t t = rows_.t, last = t - rows_.n + i;
  const bool* mask = rows_.mask + i * t;
  int32_t* found = path(i);
  int64_t length = 0;
  bool sorted = true;
  for (int64_t j = 0; j < t; ++j) {
    if (!mask[j]) continue;
    sorted = sorted && (length == 0 || rows_.positions[found[length - 1]] <= rows_.positions[j]);
    found[length++] = static_cast<int32_t>(j);
  }
  if (!sorted) {
    std::stable_sort(found, found + length,
                     [&](int32_t a, int32_t b) { return rows_.positions[a] < rows_.positions[b]; });
  }
  int64_t begin = 0;
  if (shape_.window > 0) {
    const int64_t lowest = rows_.positions[last] - shape_.window + 1;  // position still seen
    begin = std::clamp<int64_t>(lowest, 0, rows_.committed);
    if (begin == rows_.committed) {
      int64_t skipped = 0;
      while (skipped < length && rows_.positions[found[skipped]] < lowest) ++skipped;
      begin += skipped;
    }
  }
  keys(i) = {begin, rows_.committed + length};
}

// Up to which logical index rows i0 .. i1 have the same keys.
int64_t Attention::common_end(int64_t i0, int64_t i1) const {
  int64_t common = keys(i0).end - rows_.committed;
  for (int64_t i = i0 + 1; i < i1; ++i) {
    common = std::min(common, keys(i).end - rows_.committed);
    const int32_t *first = path(i0), *other = path(i);
    common = std::mismatch(first, first + common, other).first - first;
  }
  return rows_.committed + common;
}

// Lists the keys of row i; the last one twice, as the partner of an odd end.
void Attention::fill(int64_t i, int64_t begin, int64_t end, const Block& block) const {
  const int32_t heads = static_cast<int32_t>(shape_.kv_heads);
  const int32_t head = static_cast<int32_t>(block.kv_head);
  int32_t* list = block.list - block.base;
  int64_t key = begin;
  for (const int64_t stop = std::min(end, rows_.committed); key < stop; ++key) {
    list[key] = static_cast<int32_t>(key) * heads + head;
  }
  const int32_t* own = path(i) - rows_.committed;
  for (; key < end; ++key)
    list[key] = (static_cast<int32_t>(rows_.committed) + own[key]) * heads + head;
  if (end > begin) list[end] = list[end - 1];
}

void Attention::scores(const Block& block, int64_t q0, int64_t nq, const char* queries,
                       int64_t begin, int64_t end) const {
  if (begin >= end) return;
  const Weight all_keys{cache_.keys, cache_.format, shape_.head_dim,
                        info(cache_.format).row_bytes(shape_.head_dim)};
  const RowSet chosen{block.list + (begin - block.base), 0, end - begin};
  kernels()
      .of(cache_.format)
      .dot_rows(all_keys, chosen, {queries, query_stride_, nq},
                block.scores + q0 * padded_ + (begin - block.base), padded_);
}

void Attention::run(int64_t task, char* worker, float* out) const {
  const LayerKernels& table = *kernels().layer;
  const int64_t split = task % splits_, b = task / splits_ % blocks_,
                kv_head = task / splits_ / blocks_;
  const int64_t i0 = rows_.n * b / blocks_, i1 = rows_.n * (b + 1) / blocks_;
  const int64_t nq = shape_.group() / splits_;  // queries a row
  const int64_t head0 = kv_head * shape_.group() + split * nq;
  const int64_t head_dim = shape_.head_dim, queries = (i1 - i0) * nq;
  const bool bf16 = cache_.format == Format::kBFloat16;

  int64_t begin = keys(i0).begin, end = keys(i0).end;
  for (int64_t i = i0 + 1; i < i1; ++i) {
    begin = std::min(begin, keys(i).begin);
    end = std::max(end, keys(i).end);
  }
  begin = round_down(begin, 2);
  float* const all_scores = reinterpret_cast<float*>(worker);
  float* const sums = all_scores + round_up(queries * padded_, kLanes);
  const Block block{kv_head,
                    round_down(begin, kLanes),
                    all_scores,
                    sums,
                    sums + queries * head_dim,
                    reinterpret_cast<int32_t*>(sums + round_up(queries * (head_dim + 1), kLanes))};
  const int64_t padded = round_up(end - block.base, kLanes);

  // Keys that all rows of the block see are read once for all of them; then each row's own.
  const int64_t shared_end =
      i1 - i0 == 1 ? end : std::max(begin, round_down(common_end(i0, i1), 2));
  const auto own_begin = [&](int64_t i) {
    return std::max(shared_end, round_down(keys(i).begin, 2));
  };

  fill(i0, begin, shared_end, block);
  scores(block, 0, queries, query(i0, head0), begin, shared_end);
  for (int64_t i = i0; i < i1 && shared_end < end; ++i) {
    fill(i, own_begin(i), keys(i).end, block);
    scores(block, (i - i0) * nq, nq, query(i, head0), own_begin(i), keys(i).end);
  }

  std::memset(block.sums, 0, queries * head_dim * sizeof(float));
  for (int64_t q = 0; q < queries; ++q) {
    const Keys& seen = keys(i0 + q / nq);
    float* const own = block.scores + q * padded_;
    const int64_t from = seen.begin - block.base, to = seen.end - block.base;
    const bool capped = shape_.softcap > 0.0f;
    if (capped) table.soft_cap(own, from, to, shape_.scale, shape_.softcap);
    block.totals[q] =
        table.softmax_numerators(own, from, to, padded, capped ? 1.0f : shape_.scale, bf16);
  }

  WeightedSum sum{cache_.values,
                  block.list,
                  reinterpret_cast<const char*>(block.scores),
                  padded_ * static_cast<int64_t>(sizeof(float)),
                  queries,
                  begin - block.base,
                  shared_end - block.base,
                  head_dim,
                  block.sums};
  fill(i0, begin, shared_end, block);
  table.weighted_sum(sum, bf16);
  for (int64_t i = i0; i < i1 && shared_end < end; ++i) {
    fill(i, own_begin(i), keys(i).end, block);
    const int64_t q0 = (i - i0) * nq;
    sum = {cache_.values,
           block.list,
           reinterpret_cast<const char*>(block.scores + q0 * padded_),
           sum.numerators_stride,
           nq,
           own_begin(i) - block.base,
           keys(i).end - block.base,
           head_dim,
           block.sums + q0 * head_dim};
    table.weighted_sum(sum, bf16);
  }

  for (int64_t q = 0; q < queries; ++q) {
    float* to = out + (i0 + q / nq) * shape_.q_size() + (head0 + q % nq) * head_dim;
    const float* from = block.sums + q * head_dim;
    for (int64_t d = 0; d < head_dim; ++d) to[d] = from[d] / block.totals[q];
  }
}

}  // namespace dynaspec::cpu
