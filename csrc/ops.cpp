// Schemas of the ops. The kernels register themselves: csrc/cpu/ops, csrc/cuda.
#include "common.h"

STABLE_TORCH_LIBRARY(dynaspec, m) {
  m.def("linear(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, int format=-1) -> Tensor");
  m.def(
      "shortlist_union(Tensor cluster_scores, Tensor cluster_offsets, Tensor extra_rows, int "
      "core_rows, int budget)"
      " -> (Tensor blocks, Tensor size)");
  m.def(
      "shortlist_topk(Tensor hidden, Tensor head, Tensor head_scale, Tensor row_ids, Tensor "
      "blocks, int k,"
      " float temperature, int format=-1, bool gather=False)"
      " -> (Tensor log_q, Tensor ids, Tensor lse)");
  m.def(
      "shortlist_log_probs(Tensor hidden, Tensor head, Tensor head_scale, Tensor row_ids, Tensor "
      "blocks,"
      " float temperature, int format=-1, bool gather=False)"
      " -> (Tensor log_q, Tensor ids, Tensor lse)");
  m.def(
      "draft_head(Tensor hidden, Tensor head, Tensor head_scale, Tensor row_ids, Tensor "
      "cluster_scores,"
      " Tensor cluster_offsets, Tensor extra_rows, int core_rows, int budget, int k, float "
      "temperature, int format=-1, bool gather=False)"
      " -> (Tensor log_q, Tensor ids, Tensor lse, Tensor size, Tensor blocks)");
  m.def(
      "router_clusters(Tensor features, Tensor tokens_embedding, Tensor w1, Tensor b1, Tensor w2, "
      "Tensor b2)"
      " -> Tensor");
  m.def(
      "decoder_layer(Tensor x, Tensor input_norm, Tensor[] qkv, Tensor qkv_bias, Tensor q_norm,"
      " Tensor k_norm, Tensor out, Tensor post_attention_norm, Tensor mlp_norm, Tensor[] gate_up,"
      " Tensor down, Tensor post_mlp_norm, int[] formats, Tensor(a!) k_cache, Tensor(b!) v_cache,"
      " Tensor cos, Tensor sin, Tensor positions, Tensor mask, int cache_len, int num_heads,"
      " int num_kv_heads, int head_dim, float eps, float scale, int window, str activation,"
      " float softcap=0.0) -> Tensor");
  m.def("pack_blocks(Tensor blocks, int format, int columns, Tensor(a!) out) -> ()");
  m.def("embed_rows(Tensor weight, Tensor ids, int format, int columns) -> Tensor");
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def(
      "drafter_input(Tensor features, Tensor embedded, Tensor norms, Tensor fc, Tensor gate, float "
      "eps) -> Tensor");
  m.def("tree_mask(Tensor parents) -> (Tensor mask, Tensor depth)");
  m.def("greedy_walk(Tensor tokens, Tensor parents, Tensor choices) -> Tensor");
  m.def("draw_index(Tensor weights, float u) -> int");
  m.def(
      "draw_rows(Tensor weights, Tensor uniforms, int[] counts, float[] enough, bool replacement)"
      " -> Tensor");
  m.def(
      "filtered_softmax(Tensor logits, float temperature, int top_k, float top_p, float min_p)"
      " -> Tensor");
  m.def(
      "sibling_chances(Tensor p, int[] tokens, int[] columns, Tensor ids, Tensor q, bool "
      "replacement, float weight) -> (Tensor chances, Tensor residual)");
  m.def("new_tree(int token, int capacity, float root_value) -> (Tensor nodes, Tensor values)");
  m.def(
      "grow_best(Tensor(a!) nodes, Tensor(b!) values, Tensor log_q, Tensor ids, int size, int "
      "width, float least, bool logarithms, bool whole_beam) -> (Tensor next_tokens, Tensor "
      "next_parents, Tensor source, float mass)");
  m.def(
      "grow_drawn(Tensor(a!) nodes, Tensor(b!) values, Tensor log_probs, Tensor log_q, Tensor ids,"
      " Tensor uniforms, int size, float least, float temperature, int top_k, float top_p, float "
      "min_p, bool shared) -> (Tensor next_tokens, Tensor next_parents, Tensor source, Tensor q, "
      "float mass)");
  m.def(
      "fill_plan(Tensor(a!) nodes, Tensor(b!) values, Tensor plan, Tensor(c!) places, Tensor "
      "tokens,"
      " Tensor columns) -> (Tensor next_tokens, Tensor next_parents, Tensor source, Tensor counts, "
      "Tensor below)");
  m.def(
      "draw_plan(Tensor(a!) nodes, Tensor(b!) values, Tensor plan, Tensor(c!) places, Tensor "
      "log_probs, Tensor ids, Tensor uniforms, float temperature, int top_k, float top_p, float "
      "min_p, bool replacement)"
      " -> (Tensor next_tokens, Tensor next_parents, Tensor source, Tensor counts, Tensor q, "
      "Tensor columns, Tensor below, bool sound)");
  m.def(
      "grown_tree(Tensor nodes, Tensor values)"
      " -> (Tensor rows, Tensor paths, int drawn, int distinct)");
  m.def("kv_commit(Tensor(a!)[] caches, Tensor base, Tensor rows) -> ()");
}
