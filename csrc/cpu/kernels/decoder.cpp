#include "cpu/kernels/decoder.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/kernels/attention.h"
#include "cpu/kernels/decoder_kernels.h"
#include "cpu/kernels/decoder_phases.h"

namespace dynaspec::cpu {
namespace {

constexpr int64_t kLine = 64;
// A block of weight rows: small, so that a thread that is held up leaves its share to the others.
constexpr int64_t kBlockBytes = 64 << 10;
// What the first tile needs before dot_rows' own prefetches arrive.
constexpr int64_t kWarmBytes = 24 << 10;
// Rows of x that pass over a block of weight rows together, both in the L2 cache.
constexpr int64_t kRowsInCache = 96;

int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }

enum Phase {
  kNormInput,
  kProjectIn,
  kPlaceHeads,
  kAttend,
  kPackAttended,
  kProjectOut,
  kAddAttention,
  kExpand,
  kGate,
  kContract,
  kAddMlp,
};

// A linear map cut into blocks of weight rows.
struct Blocks {
  Blocks(const Weight& weight, int64_t m)
      : weight(weight),
        m(m),
        rows(round_up(std::max<int64_t>(kBlockBytes / weight.row_bytes(), 1), 16)),
        count((m + rows - 1) / rows) {}

  void run(int64_t task, const PackedRows& x, float* out) const {
    const int64_t first = task * rows, here = std::min(rows, m - first);
    const RowSet rest{nullptr, first + here, m - first - here};
    const RowSet chosen{nullptr, first, here, &rest};
    for (int64_t i = 0; i < x.n; i += kRowsInCache) {
      const PackedRows part{x.data + i * x.stride, x.stride, std::min(kRowsInCache, x.n - i)};
      kernels().dot_rows(weight, chosen, part, out + i * m + first, m);
    }
  }

  // Fetches the first rows of a task before it may begin.
  void prefetch(int64_t task) const {
    const int64_t first = task * rows * weight.row_bytes();
    const int64_t end = std::min(first + kWarmBytes, m * weight.row_bytes());
    for (int64_t at = first; at < end; at += kLine) __builtin_prefetch(weight.data + at, 0, 2);
  }

  const Weight weight;
  const int64_t m, rows, count;
};

}  // namespace

struct LayerPass::Impl {
  Impl(const LayerShape& shape, const LayerWeights& weights, const KvCache& cache,
       const TreeRows& rows, const float* x, float* y, int threads)
      : s(shape),
        w(weights),
        cache(cache),
        rows(rows),
        x(x),
        y(y),
        threads(threads),
        table(kernels()),
        layer(*kernels().layer),
        attention(shape, cache, rows, threads),
        in(weights.qkv, shape.qkv_size()),
        out(weights.out, shape.hidden),
        expand(weights.gate_up, 2 * shape.intermediate),
        contract(weights.down, shape.hidden),
        phases(threads) {
    const int64_t n = rows.n;
    for (const int64_t tasks :
         {n, in.count, n, attention.tasks(), n, out.count, n, expand.count, n, contract.count, n}) {
      phases.add(tasks);
    }
    packed_bytes = n * std::max({stride(w.qkv), stride(w.out), stride(w.gate_up), stride(w.down)});
    row_bytes =
        round_up(std::max({s.hidden, s.intermediate, s.head_dim}) * 2 * sizeof(float), kLine);
    worker_bytes = row_bytes + attention.worker_bytes();
  }

  int64_t stride(const Weight& weight) const { return table.packed_stride(weight.type, weight.k); }

  int64_t layout(char* base) {
    int64_t at = 0;
    const auto take = [&](int64_t bytes) {
      char* const here = base == nullptr ? nullptr : base + at;
      at += round_up(bytes, kLine);
      return here;
    };
    packed = take(packed_bytes);
    wide = reinterpret_cast<float*>(
        take(rows.n * std::max(s.qkv_size(), 2 * s.intermediate) * sizeof(float)));
    narrow =
        reinterpret_cast<float*>(take(rows.n * std::max(s.hidden, s.q_size()) * sizeof(float)));
    attention.use_scratch(take(attention.shared_bytes()));
    workers = take(threads * worker_bytes);
    return at;
  }

  PackedRows input(const Weight& weight) const { return {packed, stride(weight), rows.n}; }

  void pack(const Weight& weight, int64_t i, const float* values) {
    table.pack_row(weight.type, values, weight.k, packed + i * stride(weight));
  }

  void store(const float* values, char* to) {
    if (cache.type == WeightType::kBFloat16) {
      layer.store_bf16(values, s.head_dim, reinterpret_cast<uint16_t*>(to));
    } else {
      std::memcpy(to, values, s.head_dim * sizeof(float));
    }
  }

  // Queries and keys are normed and rotated; keys and values go to the cache.
  void place_heads(int64_t i, float* row) {
    float* const turned = row + s.head_dim;
    const float* const cos = rows.cos + i * s.head_dim;
    const float* const sin = rows.sin + i * s.head_dim;
    const int64_t item = cache.type == WeightType::kBFloat16 ? 2 : 4;
    const int64_t cache_row = (rows.committed + rows.t - rows.n + i) * s.kv_heads;
    const float* const heads = wide + i * s.qkv_size();
    for (int64_t head = 0; head < s.heads + s.kv_heads; ++head) {
      const bool is_query = head < s.heads;
      const float* const norm = is_query ? w.q_norm : w.k_norm;
      const float* from = heads + head * s.head_dim;
      if (norm != nullptr) {
        layer.rms_norm(from, norm, s.head_dim, s.eps, row);
        from = row;
      }
      layer.rotate(from, cos, sin, s.head_dim, turned);
      if (is_query) {
        table.pack_row(cache.type, turned, s.head_dim, attention.query(i, head));
      } else {
        store(turned, cache.keys + (cache_row + head - s.heads) * s.head_dim * item);
      }
    }
    for (int64_t head = 0; head < s.kv_heads; ++head) {
      store(heads + (s.heads + s.kv_heads + head) * s.head_dim,
            cache.values + (cache_row + head) * s.head_dim * item);
    }
  }

  // y = from + (normed) update
  void add(int64_t i, const float* from, const float* norm, float* row) {
    const float* update = narrow + i * s.hidden;
    if (norm != nullptr) {
      layer.rms_norm(update, norm, s.hidden, s.eps, row);
      update = row;
    }
    layer.add(from + i * s.hidden, update, s.hidden, y + i * s.hidden);
  }

  void run(int phase, int64_t task, char* worker) {
    float* const row = reinterpret_cast<float*>(worker);
    switch (phase) {
      case kNormInput:
        layer.rms_norm(x + task * s.hidden, w.input_norm, s.hidden, s.eps, row);
        pack(w.qkv, task, row);
        attention.find_keys(task);
        break;
      case kProjectIn:
        in.run(task, input(w.qkv), wide);
        break;
      case kPlaceHeads:
        place_heads(task, row);
        break;
      case kAttend:
        attention.run(task, worker + row_bytes, narrow);
        break;
      case kPackAttended:
        pack(w.out, task, narrow + task * s.q_size());
        break;
      case kProjectOut:
        out.run(task, input(w.out), narrow);
        break;
      case kAddAttention:
        add(task, x, w.post_attention_norm, row);
        layer.rms_norm(y + task * s.hidden, w.mlp_norm, s.hidden, s.eps, row);
        pack(w.gate_up, task, row);
        break;
      case kExpand:
        expand.run(task, input(w.gate_up), wide);
        break;
      case kGate: {
        const float* const gates = wide + task * 2 * s.intermediate;
        layer.gate(gates, gates + s.intermediate, s.intermediate, s.gelu, row);
        pack(w.down, task, row);
        break;
      }
      case kContract:
        contract.run(task, input(w.down), narrow);
        break;
      case kAddMlp:
        add(task, y, w.post_mlp_norm, row);
        break;
    }
  }

  // Between the linear maps the memory is idle: fetch the beginning of this worker's next portion.
  void prefetch(int phase, int worker) const {
    const Blocks* const next = phase == kNormInput      ? &in
                               : phase == kPlaceHeads   ? &out
                               : phase == kAddAttention ? &expand
                               : phase == kGate         ? &contract
                                                        : nullptr;
    if (next != nullptr) {
      const int linear = phase == kPlaceHeads ? kProjectOut : phase + 1;
      next->prefetch(std::min(phases.first(linear, worker), next->count - 1));
    }
  }

  const LayerShape s;
  const LayerWeights w;
  const KvCache cache;
  const TreeRows rows;
  const float* const x;
  float* const y;
  const int threads;
  const Kernels& table;
  const LayerKernels& layer;
  Attention attention;
  Blocks in, out, expand, contract;
  Phases phases;
  int64_t packed_bytes, row_bytes, worker_bytes;
  char* packed = nullptr;   // rows in the form that the next linear map reads
  float* wide = nullptr;    // [n, qkv] or [n, gate and up]
  float* narrow = nullptr;  // [n, heads * head_dim] or [n, hidden]
  char* workers = nullptr;
  std::atomic<int> arrived{0};
};

LayerPass::LayerPass(const LayerShape& shape, const LayerWeights& weights, const KvCache& cache,
                     const TreeRows& rows, const float* x, float* y, int threads)
    : impl_(std::make_unique<Impl>(shape, weights, cache, rows, x, y, threads)) {}

LayerPass::~LayerPass() = default;

int64_t LayerPass::scratch_bytes() const { return impl_->layout(nullptr); }

void LayerPass::use_scratch(char* scratch) { impl_->layout(scratch); }

void LayerPass::work() {
  Impl& impl = *impl_;
  const int worker = impl.arrived.fetch_add(1);
  if (worker >= impl.threads) return;
  char* const scratch = impl.workers + worker * impl.worker_bytes;
  impl.phases.work(
      worker, [&](int phase, int64_t task) { impl.run(phase, task, scratch); },
      [&](int phase) { impl.prefetch(phase, worker); });
}

}  // namespace dynaspec::cpu
