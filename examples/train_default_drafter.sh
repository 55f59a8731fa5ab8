#!/usr/bin/env bash
# The recipe of the default model's drafter: one layer like the target's last, three unrolled draft steps, trained on what
# the target writes after prompts like a user's (128 tokens each, four fifths greedy or cool, the rest at temperature 1).
# CORPUS: JSON lines (.jsonl.gz) with "text" and "task"; prompts_from_texts.py lists the tasks and what it asks about each.
# Stop it at any time and run it again: it goes on from its last checkpoint. START: a drafter to begin with. LR: peak learning
# rate; BATCH: tokens a step. The shipped drafter's runs with START took 5e-4 and 1,024, the last and longest 7e-4, 2,048 and STEPS=5600.
# Two cores train on 1,850 tokens a second, and write 300 to 450.
set -euo pipefail
: "${CORPUS:?set CORPUS to one or more files, e.g. CORPUS='mix.00.jsonl.gz mix.01.jsonl.gz'}"
out="${OUT:-default-drafter}"
here="$(cd "$(dirname "$0")" && pwd)"
files=()
for file in $CORPUS; do files+=(--corpus "$file"); done
mkdir -p "$out"
# shellcheck disable=SC2086
[ -e "$out/prompts.jsonl" ] || python "$here/prompts_from_texts.py" "$out/prompts.jsonl" $CORPUS
begin=()
if [ -e "$out/checkpoint.safetensors" ]; then
  begin=(--resume)
elif [ -n "${START:-}" ]; then
  begin=(--start "$START")
fi
dynaspec train-drafter "${files[@]}" --prompts "$out/prompts.jsonl" --out "$out" --unroll 3 --passes 1 \
  --batch-tokens "${BATCH:-1024}" --learning-rate "${LR:-7e-4}" --steps "${STEPS:-20000}" "${begin[@]}"
