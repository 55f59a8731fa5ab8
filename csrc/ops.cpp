// Schemas of the ops, and the module that carries them. The kernels register themselves: csrc/cpu,
// csrc/cuda.
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>
#include <torch/version.h>

#include "cpu/kernels/kernels.h"

TORCH_LIBRARY(dynaspec, m) {
  m.def("linear(Tensor x, Tensor weight, Tensor? bias, Tensor? scale) -> Tensor");
  m.def(
      "shortlist_union(Tensor cluster_scores, Tensor cluster_offsets, Tensor extra_rows, int "
      "core_rows, int budget)"
      " -> (Tensor blocks, Tensor size)");
  m.def(
      "shortlist_topk(Tensor hidden, Tensor head, Tensor head_scale, Tensor row_ids, Tensor "
      "blocks, int k,"
      " float temperature) -> (Tensor log_q, Tensor ids, Tensor lse)");
  m.def(
      "shortlist_log_probs(Tensor hidden, Tensor head, Tensor head_scale, Tensor row_ids, Tensor "
      "blocks,"
      " float temperature) -> (Tensor log_q, Tensor ids, Tensor lse)");
  m.def(
      "draft_head(Tensor hidden, Tensor head, Tensor head_scale, Tensor row_ids, Tensor "
      "cluster_scores,"
      " Tensor cluster_offsets, Tensor extra_rows, int core_rows, int budget, int k, float "
      "temperature)"
      " -> (Tensor log_q, Tensor ids, Tensor lse, Tensor size, Tensor blocks)");
  m.def(
      "router_clusters(Tensor features, Tensor tokens_embedding, Tensor w1, Tensor b1, Tensor w2, "
      "Tensor b2)"
      " -> Tensor");
  m.def(
      "decoder_layer(Tensor x, Tensor[] weights, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor "
      "cos,"
      " Tensor sin, Tensor positions, Tensor mask, int cache_len, int num_heads, int num_kv_heads,"
      " int head_dim, float eps, float scale, int window, str activation, float "
      "softcap=0.0) -> Tensor");
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def(
      "drafter_input(Tensor features, Tensor embedded, Tensor norms, Tensor fc, Tensor gate, float "
      "eps) -> Tensor");
  m.def("tree_mask(Tensor parents) -> (Tensor mask, Tensor depth)");
  m.def("greedy_walk(Tensor tokens, Tensor parents, Tensor choices) -> Tensor");
  m.def(
      "stochastic_walk(Tensor tokens, Tensor parents, Tensor probs, Tensor uniforms)"
      " -> (Tensor path, Tensor residual)");
  m.def(
      "sampled_walk(Tensor tokens, Tensor parents, Tensor probs, Tensor uniforms, Tensor q,"
      " Tensor q_ids, Tensor q_rows, bool replacement) -> (Tensor path, Tensor residual)");
  m.def("kv_commit(Tensor(a!)[] caches, int base_len, Tensor rows) -> ()");
  m.def(
      "topk_expand(Tensor parent_scores, Tensor log_q, int width) -> (Tensor index, Tensor score)");
  m.def(
      "tree_rerank(Tensor scores, Tensor parents, int size) -> (Tensor index, Tensor new_parents)");
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled ops of dynaspec (torch.ops.dynaspec) and what they were built for.";
  m.def(
      "isa", [] { return std::string(dynaspec::cpu::kernels().name); },
      "Instruction-set level in use; RuntimeError if DYNASPEC_CPU_ISA asks for one that is not "
      "there.");
  m.def(
      "available_isas", [] { return std::string(dynaspec::cpu::available_levels()); },
      "Levels this processor can run, worst first, separated by commas.");
  m.def(
      "torch_version", [] { return std::string(TORCH_VERSION); },
      "The torch release built against.");
  m.def("has_cuda", [] {
#ifdef DYNASPEC_WITH_CUDA
    return true;
#else
    return false;
#endif
  });
  m.def("num_threads", [] { return at::get_num_threads(); });
}
