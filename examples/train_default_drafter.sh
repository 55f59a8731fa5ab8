#!/usr/bin/env bash
# The recipe of the default model's drafter: one layer like the target's last, three unrolled draft steps, half of the
# sequences written by the target itself. CORPUS: JSON lines with "text" and "task" (see README, "Training data").
# Stop it at any time; run it again with --resume to go on. On 2 cores expect days for 20 million tokens.
set -euo pipefail
: "${CORPUS:?set CORPUS to one or more files, e.g. CORPUS='mix.00.jsonl.gz mix.01.jsonl.gz'}"
out="${OUT:-default-drafter}"
files=()
for file in $CORPUS; do files+=(--corpus "$file"); done
resume=()
if [ -e "$out/checkpoint.safetensors" ]; then resume=(--resume); fi
dynaspec train-drafter "${files[@]}" --out "$out" --layers 1 --unroll 3 --batch-tokens 1024 \
  --learning-rate 1e-3 --steps "${STEPS:-20000}" "${resume[@]}"
