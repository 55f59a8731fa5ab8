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

// A stack of linear maps cut into blocks of weight rows, and its rows of x: packed once for all
// maps that read the same form.
class Blocks {
 public:
  Blocks(const Stack& stack, int64_t n) : parts_(stack.count), n_(n), m_(stack.total()) {
    int64_t row = 0;
    for (int p = 0; p < parts_; ++p) {
      const Weight& weight = stack.part[p];
      Part& part = part_[p];
      part.weight = weight;
      part.table = &kernels().of(weight.format);
      part.stride = part.table->packed_stride(weight.k);
      part.x = packed_bytes_;
      part.first_row = row;
      part.m = stack.rows[p];
      part.rows = round_up(std::max<int64_t>(kBlockBytes / weight.row_bytes, 1), 16);
      part.first_task = tasks_;
      tasks_ += (part.m + part.rows - 1) / part.rows;
      row += part.m;
      part.packs = true;
      for (int other = 0; other < p; ++other) {
        if (part_[other].table->pack_row == part.table->pack_row) {
          part.packs = false;
          part.x = part_[other].x;
        }
      }
      if (part.packs) packed_bytes_ += n * part.stride;
    }
  }

  int64_t tasks() const { return tasks_; }
  int64_t packed_bytes() const { return packed_bytes_; }

  // Packs row i of x into `packed`.
  void pack(int64_t i, const float* x, char* packed) const {
    for (int p = 0; p < parts_; ++p) {
      const Part& part = part_[p];
      if (part.packs) part.table->pack_row(x, part.weight.k, packed + part.x + i * part.stride);
    }
  }

  void run(int64_t task, const char* packed, float* out) const {
    const Part& part = of(task);
    const int64_t first = (task - part.first_task) * part.rows,
                  here = std::min(part.rows, part.m - first);
    const RowSet rest{nullptr, first + here, part.m - first - here};
    const RowSet chosen{nullptr, first, here, &rest};
    const char* const x = packed + part.x;
    for (int64_t i = 0; i < n_; i += kRowsInCache) {
      part.table->dot_rows(part.weight, chosen,
                           {x + i * part.stride, part.stride, std::min(kRowsInCache, n_ - i)},
                           out + i * m_ + part.first_row + first, m_);
    }
  }

  // Fetches the first rows of a task before it may begin.
  void prefetch(int64_t task) const {
    task = std::min(task, tasks_ - 1);
    const Part& part = of(task);
    const int64_t first = (task - part.first_task) * part.rows * part.weight.row_bytes;
    const int64_t end = std::min(first + kWarmBytes, part.m * part.weight.row_bytes);
    for (int64_t at = first; at < end; at += kLine) __builtin_prefetch(part.weight.data + at, 0, 2);
  }

 private:
  struct Part {
    Weight weight;
    const FormatKernels* table;
    int64_t first_row, m;      // its results
    int64_t first_task, rows;  // rows a task
    int64_t x, stride;         // its rows of x
    bool packs;                // or shares another part's
  };

  const Part& of(int64_t task) const {
    int p = parts_ - 1;
    while (task < part_[p].first_task) --p;
    return part_[p];
  }

  const int parts_;
  const int64_t n_, m_;
  int64_t tasks_ = 0, packed_bytes_ = 0;
  Part part_[Stack::kMost];
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
        layer(*kernels().layer),
        attention(shape, cache, rows, threads),
        in(weights.qkv, rows.n),
        out(weights.out, rows.n),
        expand(weights.gate_up, rows.n),
        contract(weights.down, rows.n),
        phases(threads) {
    const int64_t n = rows.n;
    for (const int64_t tasks : {n, in.tasks(), n, attention.tasks(), n, out.tasks(), n,
                                expand.tasks(), n, contract.tasks(), n}) {
      phases.add(tasks);
    }
    packed_bytes = std::max(
        {in.packed_bytes(), out.packed_bytes(), expand.packed_bytes(), contract.packed_bytes()});
    row_bytes =
        round_up(std::max({s.hidden, s.intermediate, s.head_dim}) * 2 * sizeof(float), kLine);
    worker_bytes = row_bytes + attention.worker_bytes();
  }

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

  void store(const float* values, char* to) {
    if (cache.format == Format::kBFloat16) {
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
    const int64_t item = cache.format == Format::kBFloat16 ? 2 : 4;
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
        kernels().of(cache.format).pack_row(turned, s.head_dim, attention.query(i, head));
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
        in.pack(task, row, packed);
        attention.find_keys(task);
        break;
      case kProjectIn:
        in.run(task, packed, wide);
        break;
      case kPlaceHeads:
        place_heads(task, row);
        break;
      case kAttend:
        attention.run(task, worker + row_bytes, narrow);
        break;
      case kPackAttended:
        out.pack(task, narrow + task * s.q_size(), packed);
        break;
      case kProjectOut:
        out.run(task, packed, narrow);
        break;
      case kAddAttention:
        add(task, x, w.post_attention_norm, row);
        layer.rms_norm(y + task * s.hidden, w.mlp_norm, s.hidden, s.eps, row);
        expand.pack(task, row, packed);
        break;
      case kExpand:
        expand.run(task, packed, wide);
        break;
      case kGate: {
        const float* const gates = wide + task * 2 * s.intermediate;
        layer.gate(gates, gates + s.intermediate, s.intermediate, s.gelu, row);
        contract.pack(task, row, packed);
        break;
      }
      case kContract:
        contract.run(task, packed, narrow);
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
      next->prefetch(phases.first(linear, worker));
    }
  }

  const LayerShape s;
  const LayerWeights w;
  const KvCache cache;
  const TreeRows rows;
  const float* const x;
  float* const y;
  const int threads;
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
