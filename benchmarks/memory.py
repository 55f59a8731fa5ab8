"""Peak memory of a load and a short request, beside ``dynaspec doctor``'s estimate of it.

    python benchmarks/memory.py [--model FILE …] [--drafter NAME …]

A row a model and drafter, each in a process of its own. "peak": the most that was resident beyond
what ``import torch`` leaves (VmHWM, reset after the import; a page counts once, however often it is
mapped), of which "anonymous" is what the process owns at the end and "file" what it maps.
"estimate": what doctor says before anything is loaded. "limit": 1.25 × the file, the KV cache and
the drafter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROMPT = "The capital of France is"
CONTEXT, NEW_TOKENS = 2048, 32
MB = 1 << 20


def status(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {name}")


def measure(model: str | None, drafter: str) -> dict[str, int]:
    import torch  # noqa: F401

    Path("/proc/self/clear_refs").write_text("5")
    base = {name: status(name) for name in ("VmRSS", "RssAnon", "RssFile")}
    from dynaspec_cli.config import GenerationConfig
    from dynaspec_cli.engine.api import Engine

    engine = Engine.load(model, drafter=drafter)
    loaded = status("VmHWM") - base["VmRSS"]
    result = engine.complete(PROMPT, GenerationConfig(max_new_tokens=NEW_TOKENS))
    rows = result.prompt_tokens + NEW_TOKENS
    return {
        "load": loaded,
        "peak": status("VmHWM") - base["VmRSS"],
        "anonymous": status("RssAnon") - base["RssAnon"],
        "file": status("RssFile") - base["RssFile"],
        "rows": rows,
    }


def file_bytes(model: str | None) -> int:
    """Of a GGUF file; of a folder its safetensors files."""
    from dynaspec_cli.target.resolve import resolve_model

    source = resolve_model(model)
    if source.gguf is None:
        return sum(path.stat().st_size for path in Path(str(source.folder)).glob("*.safetensors"))
    return source.gguf.stat().st_size if isinstance(source.gguf, Path) else source.gguf.size


def run(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", action="append")
    parser.add_argument("--drafter", action="append")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    models, drafters = options.model or [None], options.drafter or ["auto", "lookup", "none"]
    if options.inside:
        print(json.dumps(measure(models[0], drafters[0])))
        return
    print(
        "| model | drafter | load | peak | anonymous | file | estimate | peak / estimate | limit |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for model in models:
        for drafter in drafters:
            named = ["--model", model] if model else []
            found = run(__file__, "--inside", "--drafter", drafter, *named)
            facts = run(
                "-m", "dynaspec_cli", "doctor", "--no-measure", "--json", "--drafter", drafter,
                "--context", str(found["rows"]), *named,
            )  # fmt: skip
            parts = facts["memory"]["parts_bytes"]
            limit = 1.25 * file_bytes(model) + parts["kv_cache"] + parts["drafter"]
            total = facts["memory"]["total_bytes"]
            cells = [found["load"], found["peak"], found["anonymous"], found["file"], total]
            numbers = " | ".join(f"{cell / MB:.0f}" for cell in cells)
            print(
                f"| {model or 'default'} | {drafter} | {numbers} | {found['peak'] / total:.2f} | "
                f"{limit / MB:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
