// The draws' ops on the CPU: checks and outputs.
#include "cpu/kernels/draw.h"

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "common.h"

namespace dynaspec::cpu {
namespace {

bool on_host(const Tensor& t) { return t.is_cpu() && t.is_contiguous(); }

bool is_real(const Tensor& t) { return is(t, Dtype::kFloat32) || is(t, Dtype::kFloat64); }

void check_weights(const char* op, const Tensor& weights, int64_t dims) {
  DYNASPEC_EXPECT(
      weights.dim() == dims && is_real(weights) && on_host(weights) && weights.size(dims - 1) > 0,
      op, "weights",
      std::string("contiguous float32 or float64 ") + (dims == 1 ? "[V]" : "[w, S]") +
          " on the CPU",
      weights);
}

// uniforms [rows, k], k at least every count.
void check_counts(const char* op, const Tensor& uniforms, const std::vector<int64_t>& counts) {
  const int64_t rows = static_cast<int64_t>(counts.size());
  DYNASPEC_EXPECT(uniforms.dim() == 2 && uniforms.size(0) == rows &&
                      is(uniforms, Dtype::kFloat64) && on_host(uniforms),
                  op, "uniforms", "contiguous float64 [" + std::to_string(rows) + ", k] on the CPU",
                  uniforms);
  for (const int64_t count : counts) {
    DYNASPEC_CHECK(count >= 0 && count <= uniforms.size(1), op, ": counts: expected 0 to ",
                   uniforms.size(1), ", got ", count);
  }
}

Filters check_filters(const char* op, double temperature, int64_t top_k, double top_p,
                      double min_p) {
  check_temperature(op, temperature);
  DYNASPEC_CHECK(top_k >= 0, op, ": top_k: expected 0 or more, got ", top_k);
  DYNASPEC_CHECK(top_p > 0, op, ": top_p: expected more than 0, got ", top_p);
  return {temperature, top_k, top_p, min_p};
}

int64_t draw_index_op(const Tensor& weights, double u) {
  check_weights("draw_index", weights, 1);
  const int64_t n = weights.numel();
  return is(weights, Dtype::kFloat32) ? draw_index(data<float>(weights), n, u)
                                      : draw_index(data<double>(weights), n, u);
}

Tensor draw_rows_op(const Tensor& weights, const Tensor& uniforms,
                    const std::vector<int64_t>& counts, const std::vector<double>& enough,
                    bool replacement) {
  constexpr const char* op = "draw_rows";
  check_weights(op, weights, 2);
  check_counts(op, uniforms, counts);
  const int64_t rows = weights.size(0), n = weights.size(1), k = uniforms.size(1);
  DYNASPEC_CHECK(static_cast<int64_t>(counts.size()) == rows &&
                     (enough.empty() || static_cast<int64_t>(enough.size()) == rows),
                 op, ": counts: expected one for each of ", rows, " rows, got ", counts.size());
  Tensor columns = empty({rows, k}, Dtype::kInt64, cpu_place());
  std::fill_n(mutable_data<int64_t>(columns), rows * k, int64_t{-1});
  std::vector<double> line(n);
  for (int64_t i = 0; i < rows; ++i) {
    const double* u = data<double>(uniforms) + i * k;
    int64_t* out = mutable_data<int64_t>(columns) + i * k;
    const double share = enough.empty() ? 2 : enough[i];
    if (is(weights, Dtype::kFloat32)) {
      draw_row(data<float>(weights) + i * n, n, u, counts[i], share, replacement, line.data(), out);
    } else {
      draw_row(data<double>(weights) + i * n, n, u, counts[i], share, replacement, line.data(),
               out);
    }
  }
  return columns;
}

Tensor filtered_softmax_op(const Tensor& logits, double temperature, int64_t top_k, double top_p,
                           double min_p) {
  constexpr const char* op = "filtered_softmax";
  const Filters filters = check_filters(op, temperature, top_k, top_p, min_p);
  DYNASPEC_EXPECT(
      logits.dim() == 2 && is(logits, Dtype::kFloat32) && on_host(logits) && logits.size(1) > 0, op,
      "logits", "contiguous float32 [n, V] on the CPU", logits);
  const int64_t n = logits.size(1);
  Tensor p = empty({logits.size(0), n}, Dtype::kFloat32, cpu_place());
  for (int64_t i = 0; i < logits.size(0); ++i) {
    DYNASPEC_CHECK(
        filtered_softmax(data<float>(logits) + i * n, n, filters, mutable_data<float>(p) + i * n),
        op, ": logits: expected finite numbers, got another in row ", i);
  }
  return p;
}

template <class T, class Q>
void siblings(const Tensor& p, const Tensor& q, const Siblings& all, double weight, Tensor& chances,
              Tensor& residual) {
  sibling_chances(data<T>(p), p.numel(), all, data<Q>(q), weight, mutable_data<double>(chances),
                  mutable_data<T>(residual));
}

std::tuple<Tensor, Tensor> sibling_chances_op(const Tensor& p, const std::vector<int64_t>& tokens,
                                              const std::vector<int64_t>& columns,
                                              const Tensor& ids, const Tensor& q, bool replacement,
                                              double weight) {
  constexpr const char* op = "sibling_chances";
  DYNASPEC_CHECK(weight >= 0 && weight <= 1, op, ": weight: expected a probability, got ", weight);
  DYNASPEC_EXPECT(p.dim() == 1 && is_real(p) && on_host(p) && p.numel() > 0, op, "p",
                  "contiguous float32 or float64 [V] on the CPU", p);
  const int64_t vocab = p.numel(), count = static_cast<int64_t>(tokens.size());
  const int64_t draws = static_cast<int64_t>(columns.size()), points = count - draws;
  DYNASPEC_CHECK(points >= 0, op, ": columns: expected at most ", count, ", got ", draws);
  DYNASPEC_EXPECT(ids.dim() == 1 && is(ids, Dtype::kInt64) && on_host(ids), op, "ids",
                  "contiguous int64 [S] on the CPU", ids);
  const int64_t size = ids.numel();
  DYNASPEC_EXPECT(q.dim() == 1 && q.numel() == size && is_real(q) && on_host(q), op, "q",
                  "contiguous float32 or float64 [" + std::to_string(size) + "] on the CPU", q);
  const int64_t* id = data<int64_t>(ids);
  for (const int64_t token : tokens) {
    DYNASPEC_CHECK(token >= 0 && token < vocab, op, ": tokens: expected ids within [0, ", vocab,
                   "), got ", token);
  }
  for (const int64_t column : columns) {
    DYNASPEC_CHECK(column >= 0 && column < size, op, ": columns: expected 0 to ", size - 1,
                   ", got ", column);
  }
  for (int64_t i = 0; draws > 0 && i < size; ++i) {
    DYNASPEC_CHECK(id[i] >= 0 && id[i] < vocab, op, ": ids: expected ids within [0, ", vocab,
                   "), got ", id[i]);
  }
  Tensor chances = empty({count + 1}, Dtype::kFloat64, cpu_place()),
         residual = empty({vocab}, is(p, Dtype::kFloat32) ? Dtype::kFloat32 : Dtype::kFloat64,
                          cpu_place());
  const Siblings all{tokens.data(), columns.data(), count, points, id, size, replacement};
  const bool narrow = is(q, Dtype::kFloat32);
  if (is(p, Dtype::kFloat32)) {
    narrow ? siblings<float, float>(p, q, all, weight, chances, residual)
           : siblings<float, double>(p, q, all, weight, chances, residual);
  } else {
    narrow ? siblings<double, float>(p, q, all, weight, chances, residual)
           : siblings<double, double>(p, q, all, weight, chances, residual);
  }
  return {chances, residual};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CPU, m) {
  m.impl("draw_index", TORCH_BOX(&draw_index_op));
  m.impl("draw_rows", TORCH_BOX(&draw_rows_op));
  m.impl("filtered_softmax", TORCH_BOX(&filtered_softmax_op));
  m.impl("sibling_chances", TORCH_BOX(&sibling_chances_op));
}

}  // namespace dynaspec::cpu
