// The draws' ops on the CPU: checks and outputs.
#include "cpu/kernels/draw.h"

#include <torch/library.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "common.h"

namespace dynaspec::cpu {
namespace {

bool on_host(const at::Tensor& t) { return t.device().is_cpu() && t.is_contiguous(); }

bool is_real(const at::Tensor& t) {
  return t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble;
}

void check_weights(const char* op, const at::Tensor& weights, int64_t dims) {
  DYNASPEC_EXPECT(
      weights.dim() == dims && is_real(weights) && on_host(weights) && weights.size(dims - 1) > 0,
      op, "weights",
      std::string("contiguous float32 or float64 ") + (dims == 1 ? "[V]" : "[w, S]") +
          " on the CPU",
      weights);
}

// uniforms [rows, k], k at least every count.
void check_counts(const char* op, const at::Tensor& uniforms, at::IntArrayRef counts) {
  const int64_t rows = static_cast<int64_t>(counts.size());
  DYNASPEC_EXPECT(uniforms.dim() == 2 && uniforms.size(0) == rows &&
                      uniforms.scalar_type() == at::kDouble && on_host(uniforms),
                  op, "uniforms", "contiguous float64 [" + std::to_string(rows) + ", k] on the CPU",
                  uniforms);
  for (const int64_t count : counts) {
    TORCH_CHECK_VALUE(count >= 0 && count <= uniforms.size(1), op, ": counts: expected 0 to ",
                      uniforms.size(1), ", got ", count);
  }
}

Filters check_filters(const char* op, double temperature, int64_t top_k, double top_p,
                      double min_p) {
  check_temperature(op, temperature);
  TORCH_CHECK_VALUE(top_k >= 0, op, ": top_k: expected 0 or more, got ", top_k);
  TORCH_CHECK_VALUE(top_p > 0, op, ": top_p: expected more than 0, got ", top_p);
  return {temperature, top_k, top_p, min_p};
}

int64_t draw_index_op(const at::Tensor& weights, double u) {
  check_weights("draw_index", weights, 1);
  const int64_t n = weights.numel();
  return weights.scalar_type() == at::kFloat ? draw_index(weights.const_data_ptr<float>(), n, u)
                                             : draw_index(weights.const_data_ptr<double>(), n, u);
}

at::Tensor draw_rows_op(const at::Tensor& weights, const at::Tensor& uniforms,
                        at::IntArrayRef counts, at::ArrayRef<double> enough, bool replacement) {
  constexpr const char* op = "draw_rows";
  check_weights(op, weights, 2);
  check_counts(op, uniforms, counts);
  const int64_t rows = weights.size(0), n = weights.size(1), k = uniforms.size(1);
  TORCH_CHECK_VALUE(static_cast<int64_t>(counts.size()) == rows &&
                        (enough.empty() || static_cast<int64_t>(enough.size()) == rows),
                    op, ": counts: expected one for each of ", rows, " rows, got ", counts.size());
  at::Tensor columns = at::full({rows, k}, -1, uniforms.options().dtype(at::kLong));
  std::vector<double> line(n);
  for (int64_t i = 0; i < rows; ++i) {
    const double* u = uniforms.const_data_ptr<double>() + i * k;
    int64_t* out = columns.mutable_data_ptr<int64_t>() + i * k;
    const double share = enough.empty() ? 2 : enough[i];
    if (weights.scalar_type() == at::kFloat) {
      draw_row(weights.const_data_ptr<float>() + i * n, n, u, counts[i], share, replacement,
               line.data(), out);
    } else {
      draw_row(weights.const_data_ptr<double>() + i * n, n, u, counts[i], share, replacement,
               line.data(), out);
    }
  }
  return columns;
}

at::Tensor filtered_softmax_op(const at::Tensor& logits, double temperature, int64_t top_k,
                               double top_p, double min_p) {
  constexpr const char* op = "filtered_softmax";
  const Filters filters = check_filters(op, temperature, top_k, top_p, min_p);
  DYNASPEC_EXPECT(logits.dim() == 2 && logits.scalar_type() == at::kFloat && on_host(logits) &&
                      logits.size(1) > 0,
                  op, "logits", "contiguous float32 [n, V] on the CPU", logits);
  at::Tensor p = at::empty_like(logits);
  const int64_t n = logits.size(1);
  for (int64_t i = 0; i < logits.size(0); ++i) {
    TORCH_CHECK_VALUE(filtered_softmax(logits.const_data_ptr<float>() + i * n, n, filters,
                                       p.mutable_data_ptr<float>() + i * n),
                      op, ": logits: expected finite numbers, got another in row ", i);
  }
  return p;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> draw_children_op(
    const at::Tensor& log_probs, const at::Tensor& best, const at::Tensor& ids,
    const at::Tensor& uniforms, at::IntArrayRef counts, at::ArrayRef<double> least,
    double temperature, int64_t top_k, double top_p, double min_p, bool replacement) {
  constexpr const char* op = "draw_children";
  const Filters filters = check_filters(op, temperature, top_k, top_p, min_p);
  check_counts(op, uniforms, counts);
  const int64_t rows = uniforms.size(0), k = uniforms.size(1);
  DYNASPEC_EXPECT(log_probs.dim() == 2 && log_probs.size(0) == rows && log_probs.size(1) > 0 &&
                      log_probs.scalar_type() == at::kFloat && on_host(log_probs),
                  op, "log_probs",
                  "contiguous float32 [" + std::to_string(rows) + ", S] on the CPU", log_probs);
  const int64_t size = log_probs.size(1);
  DYNASPEC_EXPECT(
      best.dim() == 1 && best.size(0) == rows && best.scalar_type() == at::kFloat && on_host(best),
      op, "best", "contiguous float32 [" + std::to_string(rows) + "] on the CPU", best);
  DYNASPEC_EXPECT(
      ids.dim() == 1 && ids.size(0) == size && ids.scalar_type() == at::kLong && on_host(ids), op,
      "ids", "contiguous int64 [" + std::to_string(size) + "] on the CPU", ids);
  TORCH_CHECK_VALUE(static_cast<int64_t>(least.size()) == rows, op, ": least: expected ", rows,
                    " numbers, got ", least.size());
  const auto whole = ids.options();
  const auto real = uniforms.options();
  at::Tensor q = at::empty_like(log_probs), columns = at::empty({rows, k}, whole),
             tokens = at::empty({rows, k}, whole), chances = at::empty({rows, k}, real),
             mass = at::empty({rows}, real);
  const Level level{log_probs.const_data_ptr<float>(),
                    best.const_data_ptr<float>(),
                    ids.const_data_ptr<int64_t>(),
                    rows,
                    size,
                    k,
                    counts.data(),
                    least.data(),
                    filters,
                    replacement};
  draw_children(level, uniforms.const_data_ptr<double>(), q.mutable_data_ptr<float>(),
                columns.mutable_data_ptr<int64_t>(), tokens.mutable_data_ptr<int64_t>(),
                chances.mutable_data_ptr<double>(), mass.mutable_data_ptr<double>());
  return {q, columns, tokens, chances, mass};
}

template <class T, class Q>
void siblings(const at::Tensor& p, const at::Tensor& q, const Siblings& all, double weight,
              at::Tensor& chances, at::Tensor& residual) {
  sibling_chances(p.const_data_ptr<T>(), p.numel(), all, q.const_data_ptr<Q>(), weight,
                  chances.mutable_data_ptr<double>(), residual.mutable_data_ptr<T>());
}

std::tuple<at::Tensor, at::Tensor> sibling_chances_op(const at::Tensor& p, at::IntArrayRef tokens,
                                                      at::IntArrayRef columns,
                                                      const at::Tensor& ids, const at::Tensor& q,
                                                      bool replacement, double weight) {
  constexpr const char* op = "sibling_chances";
  TORCH_CHECK_VALUE(weight >= 0 && weight <= 1, op, ": weight: expected a probability, got ",
                    weight);
  DYNASPEC_EXPECT(p.dim() == 1 && is_real(p) && on_host(p) && p.numel() > 0, op, "p",
                  "contiguous float32 or float64 [V] on the CPU", p);
  const int64_t vocab = p.numel(), count = static_cast<int64_t>(tokens.size());
  const int64_t draws = static_cast<int64_t>(columns.size()), points = count - draws;
  TORCH_CHECK_VALUE(points >= 0, op, ": columns: expected at most ", count, ", got ", draws);
  DYNASPEC_EXPECT(ids.dim() == 1 && ids.scalar_type() == at::kLong && on_host(ids), op, "ids",
                  "contiguous int64 [S] on the CPU", ids);
  const int64_t size = ids.numel();
  DYNASPEC_EXPECT(q.dim() == 1 && q.numel() == size && is_real(q) && on_host(q), op, "q",
                  "contiguous float32 or float64 [" + std::to_string(size) + "] on the CPU", q);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  for (const int64_t token : tokens) {
    TORCH_CHECK_VALUE(token >= 0 && token < vocab, op, ": tokens: expected ids within [0, ", vocab,
                      "), got ", token);
  }
  for (const int64_t column : columns) {
    TORCH_CHECK_VALUE(column >= 0 && column < size, op, ": columns: expected 0 to ", size - 1,
                      ", got ", column);
  }
  for (int64_t i = 0; draws > 0 && i < size; ++i) {
    TORCH_CHECK_VALUE(id[i] >= 0 && id[i] < vocab, op, ": ids: expected ids within [0, ", vocab,
                      "), got ", id[i]);
  }
  at::Tensor chances = at::empty({count + 1}, p.options().dtype(at::kDouble)),
             residual = at::empty_like(p);
  const Siblings all{tokens.data(), columns.data(), count, points, id, size, replacement};
  const bool narrow = q.scalar_type() == at::kFloat;
  if (p.scalar_type() == at::kFloat) {
    narrow ? siblings<float, float>(p, q, all, weight, chances, residual)
           : siblings<float, double>(p, q, all, weight, chances, residual);
  } else {
    narrow ? siblings<double, float>(p, q, all, weight, chances, residual)
           : siblings<double, double>(p, q, all, weight, chances, residual);
  }
  return {chances, residual};
}

}  // namespace

TORCH_LIBRARY_IMPL(dynaspec, CPU, m) {
  m.impl("draw_index", draw_index_op);
  m.impl("draw_rows", draw_rows_op);
  m.impl("draw_children", draw_children_op);
  m.impl("filtered_softmax", filtered_softmax_op);
  m.impl("sibling_chances", sibling_chances_op);
}

}  // namespace dynaspec::cpu
