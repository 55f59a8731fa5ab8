// The op dynaspec::decoder_layer on the CPU: checks, scratch, threads.
#include "cpu/kernels/decoder.h"

#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "common.h"
#include "cpu/kernels/parallel.h"
#include "cpu/ops/linear.h"

namespace dynaspec::cpu {
namespace {

constexpr const char* kOp = "decoder_layer";
// A second thread pays from this many multiplications on.
constexpr int64_t kMinWorkPerThread = 64 << 10;

std::string sizes(std::initializer_list<int64_t> values) {
  std::string text = "[";
  for (const int64_t value : values) text += (text.size() > 1 ? ", " : "") + std::to_string(value);
  return text + "]";
}

void expect_floats(const char* name, const at::Tensor& t, std::initializer_list<int64_t> shape) {
  DYNASPEC_EXPECT(t.scalar_type() == at::kFloat && t.device().is_cpu() && t.is_contiguous() &&
                      t.sizes() == at::IntArrayRef(shape),
                  kOp, name, "contiguous float32 " + sizes(shape) + " on the CPU", t);
}

const float* norm(const char* name, const at::Tensor& t, int64_t size, bool optional) {
  if (optional && t.numel() == 0) return nullptr;
  expect_floats(name, t, {size});
  return t.const_data_ptr<float>();
}

Weight matrix(const char* name, const at::Tensor& t, int64_t rows, int64_t k) {
  DYNASPEC_EXPECT(
      t.dim() == 2 && t.size(0) == rows && t.size(1) == k && t.scalar_type() != at::kChar, kOp,
      name, "float32, bfloat16 or float16 " + sizes({rows, k}), t);
  return describe_weight(kOp, name, t, at::Tensor());
}

KvCache describe_cache(const at::Tensor& k, const at::Tensor& v, const LayerShape& s, int64_t end) {
  for (const auto& [name, t] :
       {std::pair<const char*, const at::Tensor&>{"k_cache", k}, {"v_cache", v}}) {
    DYNASPEC_EXPECT(t.dim() == 3 && t.size(0) >= end && t.size(1) == s.kv_heads &&
                        t.size(2) == s.head_dim && t.is_contiguous() && t.device().is_cpu() &&
                        (t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16),
                    kOp, name,
                    "contiguous float32 or bfloat16 [at least " + std::to_string(end) + ", " +
                        std::to_string(s.kv_heads) + ", " + std::to_string(s.head_dim) +
                        "] on the CPU",
                    t);
  }
  DYNASPEC_EXPECT(v.scalar_type() == k.scalar_type(), kOp, "v_cache", "the dtype of k_cache", v);
  TORCH_CHECK_VALUE(k.size(0) * s.kv_heads < (int64_t{1} << 31), kOp,
                    ": k_cache: expected fewer than 2^31 rows x heads, got ", shape_of(k));
  return {static_cast<char*>(k.mutable_data_ptr()), static_cast<char*>(v.mutable_data_ptr()),
          k.scalar_type() == at::kFloat ? WeightType::kFloat32 : WeightType::kBFloat16};
}

TreeRows describe_rows(const at::Tensor& positions, const at::Tensor& mask, const at::Tensor& cos,
                       const at::Tensor& sin, int64_t n, int64_t cache_len, const LayerShape& s) {
  DYNASPEC_EXPECT(
      positions.dim() == 1 && positions.scalar_type() == at::kLong && positions.is_contiguous() &&
          positions.device().is_cpu() && positions.size(0) >= n,
      kOp, "positions", "contiguous int64 [t] with t >= " + std::to_string(n) + " rows on the CPU",
      positions);
  const int64_t t = positions.size(0);
  DYNASPEC_EXPECT(mask.scalar_type() == at::kBool && mask.dim() == 2 && mask.size(0) == n &&
                      mask.size(1) == t && mask.is_contiguous() && mask.device().is_cpu(),
                  kOp, "mask", "contiguous bool " + sizes({n, t}) + " on the CPU", mask);
  expect_floats("cos", cos, {n, s.head_dim});
  expect_floats("sin", sin, {n, s.head_dim});
  const int64_t* position = positions.const_data_ptr<int64_t>();
  const bool* seen = mask.const_data_ptr<bool>();
  for (int64_t i = 0; i < t; ++i) {
    TORCH_CHECK_VALUE(position[i] >= cache_len, kOp,
                      ": positions: expected at least cache_len = ", cache_len, ", got ",
                      position[i], " at row ", i);
  }
  for (int64_t i = 0; i < n; ++i) {
    TORCH_CHECK_VALUE(seen[i * t + t - n + i], kOp,
                      ": mask: expected every row to attend to itself, got False at row ", i);
  }
  return {
      n, t, cache_len, position, seen, cos.const_data_ptr<float>(), sin.const_data_ptr<float>()};
}

at::Tensor decoder_layer(const at::Tensor& x, at::TensorList weights, at::Tensor& k_cache,
                         at::Tensor& v_cache, const at::Tensor& cos, const at::Tensor& sin,
                         const at::Tensor& positions, const at::Tensor& mask, int64_t cache_len,
                         int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, double eps,
                         double scale, int64_t window, c10::string_view activation,
                         double softcap) {
  DYNASPEC_EXPECT(x.dim() == 2 && x.size(1) > 0 && x.scalar_type() == at::kFloat &&
                      x.is_contiguous() && x.device().is_cpu(),
                  kOp, "x", "contiguous float32 [n, d] on the CPU", x);
  TORCH_CHECK_VALUE(weights.size() == 11, kOp, ": weights: expected 11 tensors, got ",
                    weights.size());
  TORCH_CHECK_VALUE(num_heads > 0 && num_kv_heads > 0 && num_heads % num_kv_heads == 0, kOp,
                    ": num_heads: expected a positive multiple of num_kv_heads = ", num_kv_heads,
                    ", got ", num_heads);
  TORCH_CHECK_VALUE(head_dim > 0 && head_dim % 2 == 0, kOp,
                    ": head_dim: expected a positive even number, got ", head_dim);
  TORCH_CHECK_VALUE(cache_len >= 0, kOp, ": cache_len: expected 0 or more, got ", cache_len);
  TORCH_CHECK_VALUE(window >= 0, kOp, ": window: expected 0 (none) or more, got ", window);
  TORCH_CHECK_VALUE(scale > 0 && scale < 1e30, kOp,
                    ": scale: expected a finite number above 0, got ", scale);
  TORCH_CHECK_VALUE(eps >= 0 && eps < 1e30, kOp,
                    ": eps: expected a finite number of 0 or more, got ", eps);
  TORCH_CHECK_VALUE(softcap >= 0 && softcap < 1e30, kOp,
                    ": softcap: expected 0 (none) or a finite number above it, got ", softcap);
  const bool gelu = activation == "gelu_tanh";
  TORCH_CHECK_VALUE(gelu || activation == "silu", kOp,
                    ": activation: expected silu or gelu_tanh, got ", activation);

  const int64_t n = x.size(0), d = x.size(1);
  const at::Tensor& down = weights[9];
  DYNASPEC_EXPECT(down.dim() == 2 && down.size(0) == d && down.size(1) > 0, kOp, "down",
                  "[" + std::to_string(d) + ", intermediate]", down);
  const LayerShape s{d,
                     num_heads,
                     num_kv_heads,
                     head_dim,
                     down.size(1),
                     static_cast<float>(eps),
                     static_cast<float>(scale),
                     window,
                     gelu,
                     static_cast<float>(softcap)};
  const at::Tensor bias =
      weights[2].numel() == 0 ? at::Tensor() : weights[2].to(at::kFloat).contiguous();
  LayerWeights w{norm("input_norm", weights[0], d, false),
                 norm("q_norm", weights[3], head_dim, true),
                 norm("k_norm", weights[4], head_dim, true),
                 norm("post_attention_norm", weights[6], d, true),
                 norm("mlp_norm", weights[7], d, false),
                 norm("post_mlp_norm", weights[10], d, true),
                 matrix("qkv", weights[1], s.qkv_size(), d),
                 matrix("out", weights[5], d, s.q_size()),
                 matrix("gate_up", weights[8], 2 * s.intermediate, d),
                 matrix("down", down, d, s.intermediate)};
  TORCH_CHECK_VALUE((w.q_norm == nullptr) == (w.k_norm == nullptr), kOp,
                    ": k_norm: expected q_norm and k_norm both or neither, got one");
  if (bias.defined()) {
    expect_floats("qkv_bias", bias, {s.qkv_size()});
    w.qkv.bias = bias.const_data_ptr<float>();
  }
  const TreeRows rows = describe_rows(positions, mask, cos, sin, n, cache_len, s);
  TORCH_CHECK_VALUE(cache_len < (int64_t{1} << 31), kOp,
                    ": cache_len: expected less than 2^31, got ", cache_len);
  const KvCache cache = describe_cache(k_cache, v_cache, s, cache_len + rows.t);

  at::Tensor y = at::empty_like(x);
  if (n == 0) return y;
  const int64_t work = n * d * (s.qkv_size() + s.q_size() + 3 * s.intermediate);
  const int64_t threads = std::clamp<int64_t>(work / kMinWorkPerThread, 1, thread_pool().size());
  LayerPass pass(s, w, cache, rows, x.const_data_ptr<float>(), y.mutable_data_ptr<float>(),
                 static_cast<int>(threads));
  static thread_local Scratch scratch;
  pass.use_scratch(scratch.bytes(pass.scratch_bytes()));
  on_threads(threads, [&](int64_t) { pass.work(); });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(dynaspec, CPU, m) { m.impl("decoder_layer", decoder_layer); }

}  // namespace dynaspec::cpu
