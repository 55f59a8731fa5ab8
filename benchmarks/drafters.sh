#!/usr/bin/env bash
# What each kind of drafter brings, greedy and at temperature 0.7 with top-p 0.9, on Spec-Bench: plain decoding, the text
# itself, the model's drafter, both together, a small language model, and llama.cpp on the same file. Trees adapt their size,
# as by default. Run it again after a break, or with a larger LIMIT: it goes on.
#     benchmarks/drafters.sh DATA OUT
# LIMIT: prompts a task (10). TOKENS: new tokens a prompt (96). SHORTLISTS: of the model's drafter ("full fr-spec nanospec
# dynaspec"). MODEL, DRAFTER, BUNDLE: another target, its drafter's folder and its shortlist's; LM: a small language model of
# its tokenizer. PEERS: "llama.cpp llama.cpp-lookup llama.cpp-draft" where the extra [peers] is installed; ASSISTANT: the
# GGUF file that drafts for the last. Chat models get their template.
set -euo pipefail
data="${1:?the folder with spec_bench.jsonl}" out="${2:?where the results go}"
drafter="${DRAFTER:-packaged}" best="${BUNDLE:-dynaspec}"
target=() methods=(--method ar --method lookup:full+dyspec@auto)
[ -z "${MODEL:-}" ] || target=(--model "$MODEL")
for shortlist in ${SHORTLISTS-full fr-spec nanospec}; do methods+=(--method "$drafter:$shortlist+dyspec@auto"); done
methods+=(--method "$drafter:$best+dyspec@auto" --method "$drafter+lookup:$best+dyspec@auto")
[ -z "${LM:-}" ] || methods+=(--method "$LM:full+dyspec@auto" --method "$LM+lookup:full+dyspec@auto")
for peer in ${PEERS:-}; do methods+=(--method "$peer"); done
[ -z "${ASSISTANT:-}" ] || methods+=(--assistant "$ASSISTANT")
run() { # NAME OPTION...
  local name="$1"
  shift
  dynaspec bench --suite spec-bench --data-dir "$data" --limit "${LIMIT:-10}" --max-new-tokens "${TOKENS:-96}" --seed 1 \
    "${target[@]}" "${methods[@]}" "$@" --out "$out/$name" --resume
}
run greedy --check-exact
run sampled --temperature 0.7 --top-p 0.9
