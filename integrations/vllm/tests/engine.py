"""vLLM in a process of its own, for the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

METHODS = {
    "language_model": "draft_model",
    "eagle1": "eagle",
    "trained": "eagle",
    "eagle3": "eagle3",
}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else two ranks need two NUMA nodes
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # of record_first_pass, to a process of ours
}


def run(tmp_path: Path, **job: Any) -> dict[str, Any]:
    """What tests/generate.py says, or its error as {"error": stderr}."""
    out = tmp_path / "out.json"
    out.unlink(missing_ok=True)
    defaults = {
        "new_tokens": 24,
        "gpu_memory_utilization": 0.05,
        "max_model_len": 256,
        "enable_prefix_caching": False,
        "block_size": 32,  # a CPU's own 128 would hold none of the prompts
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("generate.py")), str(out)],
        input=json.dumps(defaults | job),
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
        check=False,
    )
    if done.returncode:
        return {"error": done.stdout + done.stderr}
    return json.loads(out.read_text())


def speculative(kind: str, folder: Path, **changes: Any) -> dict[str, Any]:
    config = {
        "method": METHODS[kind],
        "model": str(folder),
        "num_speculative_tokens": 4,
        "use_local_argmax_reduction": True,
    }
    return {k: v for k, v in (config | changes).items() if v is not None}
