#!/bin/sh
# DySpec's experiment (arXiv 2410.11744, Tables 1 and 4) on the default model and, with a small
# language model's folder in DRAFTER, on another pair: accepted tokens a step by tree, target
# temperature and text. Prompts of at most 128 tokens, 128 new tokens, draws at temperature 0.6, as in
# the paper; drawn also under a greedy target. Killed, it goes on where it stopped.
#
#   DATA=FOLDER OUT=FOLDER sh benchmarks/dyspec_experiment.sh
#
# LIMIT: prompts a text (15). MODEL, DRAFTER: default model and drafter. SHORTLIST: full.
# LARGE=1: trees of 768 at temperature 0.6 instead, where the paper's DySpec loses to Sequoia.
set -eu
: "${DATA:?the folder with c4.jsonl, openwebtext.jsonl and cnn_dailymail.jsonl}"
: "${OUT:?a folder for the results}"
LIMIT=${LIMIT:-15}
SHORTLIST=${SHORTLIST:-full}
DRAFTER=${DRAFTER:-auto}
PYTHON=${PYTHON:-python3}
set -- --drafter "$DRAFTER" --data-dir "$DATA" --limit "$LIMIT"
if [ -n "${MODEL:-}" ]; then set -- "$@" --model "$MODEL"; fi
suites="--suite c4 --suite openwebtext --suite cnn-dailymail"

# sequoia's shape comes from its own measured acceptance, on text that is not evaluated
for t in 0 0.6; do
  if [ ! -e "$OUT/measured-$t" ]; then
    mkdir -p "$OUT"
    "$PYTHON" -m dynaspec_cli bench "$@" --measure-acceptance --suite gsm8k \
      --max-prompt-tokens 128 --max-new-tokens 64 --temperature "$t"
    : > "$OUT/measured-$t"
  fi
done

run() { # NAME TEMPERATURE TREE_DRAW SIZE DEPTH WIDTH POLICIES...
  name=$1 temperature=$2 draw=$3 size=$4 depth=$5 width=$6
  shift 6
  methods="--method ar"
  for policy in "$@"; do methods="$methods --method $SHORTLIST+$policy@$size"; done
  # shellcheck disable=SC2086
  "$PYTHON" -m dynaspec_cli bench $common $suites $methods --resume --out "$OUT/$name" \
    --max-prompt-tokens 128 --max-new-tokens 128 --prompt-format raw --warmup 1 \
    --temperature "$temperature" --draft-temperature 0.6 --tree-draw "$draw" \
    --tree-depth "$depth" --tree-width "$width"
}

common=$*
if [ "${LARGE:-0}" = 1 ]; then
  run t0.6-768 0.6 auto 768 20 64 dyspec sequoia specinfer eagle2
  exit 0
fi
trees="dyspec sequoia specinfer eagle2 ddd chain"
# shellcheck disable=SC2086
run t0-drawn 0 sample 64 16 16 $trees
# shellcheck disable=SC2086
run t0-best 0 best 64 16 16 $trees auto
# shellcheck disable=SC2086
run t0.6-drawn 0.6 auto 64 16 16 $trees
