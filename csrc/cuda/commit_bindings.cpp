// kv_commit on CUDA: checks. As in bindings.cpp nothing waits for the device, so the values of a
// path are not checked here; it may be padded with -1.
#include <vector>

#include "cuda/bindings.h"

namespace dynaspec::cuda {
namespace {

void kv_commit(const std::vector<Tensor>& caches, const Tensor& base, const Tensor& rows) {
  const char* op = "kv_commit";
  const auto guard = device_of(op, "rows", rows);
  const Place device = place_of(rows);
  const Tensor start = take(op, "base", base, Dtype::kInt64, {1}, device);
  const Tensor path = take(op, "rows", rows, Dtype::kInt64, {-1}, device);
  std::vector<dynaspec_cache> raw;
  for (const Tensor& cache : caches) {
    DYNASPEC_EXPECT(cache.dim() > 0 && cache.is_contiguous() && place_of(cache) == device, op,
                    "caches", "contiguous tensors of rows on " + place_text(device), cache);
    if (cache.numel() == 0) continue;
    raw.push_back({mutable_data<void>(cache), cache.size(0), row_bytes(cache)});
  }
  check_launch(
      op, dynaspec_kv_commit(raw.data(), static_cast<int64_t>(raw.size()), data<int64_t>(start),
                             data<int64_t>(path), path.size(0), stream(device)));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dynaspec, CUDA, m) { m.impl("kv_commit", TORCH_BOX(&kv_commit)); }

}  // namespace dynaspec::cuda
