#!/usr/bin/env bash
# The tables of the README (there LIMIT=10, 8 at temperature 1; other programs with 20): plain decoding, every shortlist,
# the default, and other programs, on Spec-Bench (20 prompts a task),
# HumanEval (20) and rare tokens (up to 4 of each of 6 tasks). Two folders below OUT; two hours on 2 cores. Run it again after
# a break: it goes on. PEERS="" leaves the other programs out; llama.cpp needs the extra [peers]. LIMIT: prompts a task of
# Spec-Bench and HumanEval (20); TOKENS: new tokens a prompt (128).
#     benchmarks/spec_bench.sh DATA OUT [TEMPERATURE|model]
# model: sampled as the model's generation_config.json recommends.
set -euo pipefail
data="${1:?the folder with spec_bench.jsonl, human_eval.jsonl and rare_tokens.jsonl}" out="${2:?where the results go}"
heat="${3:-0}"
methods=(--method ar --method full+eagle2@16 --method fr-spec@32768+eagle2@16 --method fr-spec@2048+eagle2@16
  --method vocabtrim@2048+eagle2@16 --method pa-fr@2048+eagle2@16 --method nanospec+eagle2@16
  --method dynaspec@2048+eagle2@16 --method nanospec+dyspec@8 --method dynaspec@1024+dyspec@8)
for peer in ${PEERS-transformers transformers-lookup llama.cpp}; do methods+=(--method "$peer"); done
heated=(--temperature "$heat") check=(--check-exact)
[ "$heat" != model ] || heated=(--sampling model)
[ "$heat" = 0 ] || check=()
run() { # NAME LIMIT SUITE...
  local name="$1" limit="$2"
  shift 2
  dynaspec bench "${@/#/--suite=}" --limit "$limit" --max-new-tokens "${TOKENS:-128}" --dtype bfloat16 --seed 1 "${heated[@]}" \
    "${check[@]}" "${methods[@]}" --data-dir "$data" --out "$out/$name" --resume
}
run spec-bench "${LIMIT:-20}" spec-bench human-eval
run rare-tokens 4 rare-tokens
