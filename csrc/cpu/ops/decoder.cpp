// The op dynaspec::decoder_layer on the CPU: checks, scratch, threads.
#include "cpu/kernels/decoder.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "common.h"
#include "cpu/kernels/parallel.h"
#include "cpu/ops/linear.h"

namespace dynaspec::cpu {
namespace {

constexpr const char* kOp = "decoder_layer";
// A second thread pays from this many multiplications on.
constexpr int64_t kMinWorkPerThread = 64 << 10;

void expect_floats(const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
  DYNASPEC_EXPECT(is(t, Dtype::kFloat32) && t.is_cpu() && t.is_contiguous() && has_shape(t, shape),
                  kOp, name, "contiguous float32 " + shape_text(shape) + " on the CPU", t);
}

const float* norm(const char* name, const Tensor& t, int64_t size, bool optional) {
  if (optional && t.numel() == 0) return nullptr;
  expect_floats(name, t, {size});
  return data<float>(t);
}

// Matrices [rows, k] that follow each other, and their formats: taken off the front of `formats`.
Stack stack(const char* name, const std::vector<Tensor>& parts, const int64_t*& formats,
            const int64_t* last, int64_t rows, int64_t k) {
  const int64_t count = static_cast<int64_t>(parts.size());
  DYNASPEC_CHECK(count >= 1 && count <= Stack::kMost, kOp, ": ", name, ": expected 1 to ",
                 Stack::kMost, " matrices, got ", count);
  DYNASPEC_CHECK(last - formats >= count, kOp,
                 ": formats: expected one for each matrix, got too few");
  Stack all;
  for (const Tensor& t : parts) {
    const int64_t format = *formats++;
    if (format >= 0) {
      all.add(describe_packed(kOp, name, t, format, k), t.size(0));
      continue;
    }
    DYNASPEC_EXPECT(t.dim() == 2 && t.size(1) == k && t.size(0) > 0 && !is(t, Dtype::kInt8), kOp,
                    name, "float32, bfloat16 or float16 " + shape_text({-1, k}), t);
    all.add(describe_weight(kOp, name, t), t.size(0));
  }
  DYNASPEC_CHECK(all.total() == rows, kOp, ": ", name, ": expected ", rows, " rows, got ",
                 all.total());
  return all;
}

KvCache describe_cache(const Tensor& k, const Tensor& v, const LayerShape& s, int64_t end) {
  for (const auto& [name, t] :
       {std::pair<const char*, const Tensor&>{"k_cache", k}, {"v_cache", v}}) {
    DYNASPEC_EXPECT(
        t.dim() == 3 && t.size(0) >= end && t.size(1) == s.kv_heads && t.size(2) == s.head_dim &&
            t.is_contiguous() && t.is_cpu() && (is(t, Dtype::kFloat32) || is(t, Dtype::kBFloat16)),
        kOp, name,
        "contiguous float32 or bfloat16 [at least " + std::to_string(end) + ", " +
            std::to_string(s.kv_heads) + ", " + std::to_string(s.head_dim) + "] on the CPU",
        t);
  }
  DYNASPEC_EXPECT(torch_dtype(v) == torch_dtype(k), kOp, "v_cache", "the dtype of k_cache", v);
  DYNASPEC_CHECK(k.size(0) * s.kv_heads < (int64_t{1} << 31), kOp,
                 ": k_cache: expected fewer than 2^31 rows x heads, got ", shape_text(k.sizes()));
  return {mutable_data<char>(k), mutable_data<char>(v),
          is(k, Dtype::kFloat32) ? Format::kFloat32 : Format::kBFloat16};
}

TreeRows describe_rows(const Tensor& positions, const Tensor& mask, const Tensor& cos,
                       const Tensor& sin, int64_t n, int64_t cache_len, const LayerShape& s) {
  DYNASPEC_EXPECT(positions.dim() == 1 && is(positions, Dtype::kInt64) &&
                      positions.is_contiguous() && positions.is_cpu() && positions.size(0) >= n,
                  kOp, "positions",
                  "contiguous int64 [t] with t >= " + std::to_string(n) + " rows on the CPU",
                  positions);
  const int64_t t = positions.size(0);
  DYNASPEC_EXPECT(is(mask, Dtype::kBool) && mask.dim() == 2 && mask.size(0) == n &&
                      mask.size(1) == t && mask.is_contiguous() && mask.is_cpu(),
                  kOp, "mask", "contiguous bool " + shape_text({n, t}) + " on the CPU", mask);
  expect_floats("cos", cos, {n, s.head_dim});
  expect_floats("sin", sin, {n, s.head_dim});
  const int64_t* position = data<int64_t>(positions);
  const bool* seen = data<bool>(mask);
  for (int64_t i = 0; i < t; ++i) {
    DYNASPEC_CHECK(position[i] >= cache_len, kOp,
                   ": positions: expected at least cache_len = ", cache_len, ", got ", position[i],
                   " at row ", i);
  }
  for (int64_t i = 0; i < n; ++i) {
    DYNASPEC_CHECK(seen[i * t + t - n + i], kOp,
                   ": mask: expected every row to attend to itself, got False at row ", i);
  }
  return {n, t, cache_len, position, seen, data<float>(cos), data<float>(sin)};
}

Tensor decoder_layer(const Tensor& x, const Tensor& input_norm, const std::vector<Tensor>& qkv,
                     const Tensor& qkv_bias, const Tensor& q_norm, const Tensor& k_norm,
                     const Tensor& out, const Tensor& post_attention_norm, const Tensor& mlp_norm,
                     const std::vector<Tensor>& gate_up, const Tensor& down,
                     const Tensor& post_mlp_norm, const std::vector<int64_t>& formats,
                     Tensor& k_cache, Tensor& v_cache, const Tensor& cos, const Tensor& sin,
                     const Tensor& positions, const Tensor& mask, int64_t cache_len,
                     int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, double eps,
                     double scale, int64_t window, const std::string& activation, double softcap) {
  DYNASPEC_EXPECT(
      x.dim() == 2 && x.size(1) > 0 && is(x, Dtype::kFloat32) && x.is_contiguous() && x.is_cpu(),
      kOp, "x", "contiguous float32 [n, d] on the CPU", x);
  DYNASPEC_CHECK(num_heads > 0 && num_kv_heads > 0 && num_heads % num_kv_heads == 0, kOp,
                 ": num_heads: expected a positive multiple of num_kv_heads = ", num_kv_heads,
                 ", got ", num_heads);
  DYNASPEC_CHECK(head_dim > 0 && head_dim % 2 == 0, kOp,
                 ": head_dim: expected a positive even number, got ", head_dim);
  DYNASPEC_CHECK(cache_len >= 0, kOp, ": cache_len: expected 0 or more, got ", cache_len);
  DYNASPEC_CHECK(window >= 0, kOp, ": window: expected 0 (none) or more, got ", window);
  DYNASPEC_CHECK(scale > 0 && scale < 1e30, kOp, ": scale: expected a finite number above 0, got ",
                 scale);
  DYNASPEC_CHECK(eps >= 0 && eps < 1e30, kOp, ": eps: expected a finite number of 0 or more, got ",
                 eps);
  DYNASPEC_CHECK(softcap >= 0 && softcap < 1e30, kOp,
                 ": softcap: expected 0 (none) or a finite number above it, got ", softcap);
  const bool gelu = activation == "gelu_tanh";
  DYNASPEC_CHECK(gelu || activation == "silu", kOp,
                 ": activation: expected silu or gelu_tanh, got ", activation);

  const int64_t n = x.size(0), d = x.size(1);
  int64_t inner = 0;  // gate and up
  for (const Tensor& part : gate_up) inner += part.dim() == 2 ? part.size(0) : 0;
  DYNASPEC_CHECK(inner > 0 && inner % 2 == 0, kOp,
                 ": gate_up: expected an even number of rows, got ", inner);
  const LayerShape s{d,
                     num_heads,
                     num_kv_heads,
                     head_dim,
                     inner / 2,
                     static_cast<float>(eps),
                     static_cast<float>(scale),
                     window,
                     gelu,
                     static_cast<float>(softcap)};
  const int64_t* next = formats.data();
  const int64_t* const last = next + formats.size();
  LayerWeights w{norm("input_norm", input_norm, d, false),
                 norm("q_norm", q_norm, head_dim, true),
                 norm("k_norm", k_norm, head_dim, true),
                 norm("post_attention_norm", post_attention_norm, d, true),
                 norm("mlp_norm", mlp_norm, d, false),
                 norm("post_mlp_norm", post_mlp_norm, d, true),
                 stack("qkv", qkv, next, last, s.qkv_size(), d),
                 stack("out", {out}, next, last, d, s.q_size()),
                 stack("gate_up", gate_up, next, last, 2 * s.intermediate, d),
                 stack("down", {down}, next, last, d, s.intermediate)};
  DYNASPEC_CHECK(next == last, kOp, ": formats: expected one for each matrix, got ", last - next,
                 " too many");
  DYNASPEC_CHECK((w.q_norm == nullptr) == (w.k_norm == nullptr), kOp,
                 ": k_norm: expected q_norm and k_norm both or neither, got one");
  std::optional<Tensor> bias;
  if (!is_empty(qkv_bias)) {
    bias = wide_bias(kOp, "qkv_bias", qkv_bias, s.qkv_size());
    const float* rest = data<float>(*bias);
    for (int p = 0; p < w.qkv.count; rest += w.qkv.rows[p++]) w.qkv.part[p].bias = rest;
  }
  const TreeRows rows = describe_rows(positions, mask, cos, sin, n, cache_len, s);
  DYNASPEC_CHECK(cache_len < (int64_t{1} << 31), kOp, ": cache_len: expected less than 2^31, got ",
                 cache_len);
  const KvCache cache = describe_cache(k_cache, v_cache, s, cache_len + rows.t);

  Tensor y = empty({n, d}, Dtype::kFloat32, cpu_place());
  if (n == 0) return y;
  const int64_t work = n * d * (s.qkv_size() + s.q_size() + 3 * s.intermediate);
  const int64_t threads = std::clamp<int64_t>(work / kMinWorkPerThread, 1, thread_pool().size());
  LayerPass pass(s, w, cache, rows, data<float>(x), mutable_data<float>(y),
                 static_cast<int>(threads));
  static thread_local Scratch scratch;
  pass.use_scratch(scratch.bytes(pass.scratch_bytes()));
  on_threads(threads, [&](int64_t) { pass.work(); });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CPU, m) { m.impl("decoder_layer", TORCH_BOX(&decoder_layer)); }

}  // namespace dynaspec::cpu
