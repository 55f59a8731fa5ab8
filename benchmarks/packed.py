"""A pass of a GGUF target by its rows: packed blocks, bf16 and llama.cpp, taking turns.

    python benchmarks/packed.py [--model FILE | llama-1b] [--rows 1 5 9 17] [--quality]

A pass is what a verification costs: the layers over n rows behind 64 committed ones, and the LM
head's argmax for all of them (llama.cpp: its logits). Every repetition measures all of them one
after the other; "ms" are medians, ratios are medians of the repetitions' own ratios. Where
``llama_cpp`` (llama-cpp-python) is not installed its columns are left out. It uses the instructions
that it was built for: with DYNASPEC_CPU_ISA set compare with a build for the same.

``llama-1b`` makes a file of the shape of Llama 3.2 1B in Q4_K_M's formats with random blocks, which
cost what others do.

``--quality``: mean KL and top-1 agreement with the de-quantised float32 model over 2,000 positions
of the smoke suite's texts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynaspec_cli.ops.extension import EXTENSION, backend
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.target.demo_package import ChunkedFile
from dynaspec_cli.target.gguf_native import NativeGguf, open_native
from dynaspec_cli.target.native_target import load_native, load_packed
from dynaspec_cli.target.resolve import resolve_model

COMMITTED = 64
POSITIONS, WINDOW = 2000, 250
Q4_K_M_LARGER = {0, 1, 4, 7, 10, 13, 14, 15}
"""Layers whose v and down are Q6_K, of 16."""


def clock(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Ours:
    def __init__(self, found: NativeGguf, packed: bool) -> None:
        build = load_packed if packed else load_native
        self.target = build(found.weights, "model", found.spec, torch.bfloat16)
        self.state = self.target.begin(COMMITTED + 64)
        self.target.prefill(self.state, torch.arange(COMMITTED) + 5)

    def run(self, rows: int) -> float:
        tree = DraftTree(torch.arange(rows) + 100, torch.arange(rows) - 1)
        return clock(lambda: self.target.verify(self.state, tree).argmax())


class LlamaCpp:
    """A context of llama.cpp through its C interface."""

    def __init__(self, path: Path, threads: int, context: int = 512) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        model_options = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_options)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, context, context
        options.n_threads, options.n_threads_batch = threads, threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model)
        )
        self.decode(list(range(5, 5 + COMMITTED)), 0)

    def decode(self, tokens: list[int], start: int) -> None:
        batch = self.api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
        if self.api.llama_decode(self.context, batch):
            raise SystemExit("llama.cpp could not decode")
        self.api.llama_synchronize(self.context)
        self.api.llama_batch_free(batch)

    def forget(self, start: int) -> None:
        self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), 0, start, -1)

    def run(self, rows: int) -> float:
        took = clock(lambda: self.decode(list(range(100, 100 + rows)), COMMITTED))
        self.forget(COMMITTED)
        return took

    def logits(self, tokens: list[int]) -> torch.Tensor:
        self.forget(0)
        self.decode(tokens, 0)
        found = self.api.llama_get_logits(self.context)
        size = (len(tokens), self.vocabulary)
        return torch.from_numpy(np.ctypeslib.as_array(found, size).copy())


def random_blocks(kind: str, rows: int, columns: int, rng: np.random.Generator) -> Any:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    values, width = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (rows * columns // values, width), np.uint8)
    scale = (0.002 / (1 + rng.random(len(blocks)))).astype(np.float16).view(np.uint8)
    at = 208 if kind == "Q6_K" else 0
    blocks[:, at : at + 2] = scale.reshape(-1, 2)
    if kind == "Q4_K":
        blocks[:, 2:4] = scale.reshape(-1, 2)
    return blocks.reshape(rows, -1)


def make_llama(path: Path) -> None:
    """V 128,256, d 2,048, 16 layers, ffn 8,192, 32 heads of 64, 8 of keys, tied."""
    import gguf

    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(2048)
    writer.add_block_count(16)
    writer.add_feed_forward_length(8192)
    writer.add_head_count(32)
    writer.add_head_count_kv(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500_000.0)
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(128_256)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([f"t{i}" for i in range(128_256)])
    writer.add_token_types([1] * 128_256)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def matrix(name: str, kind: str, rows: int, columns: int) -> None:
        blocks = random_blocks(kind, rows, columns, rng)
        writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType[kind])

    matrix("token_embd.weight", "Q6_K", 128_256, 2048)
    writer.add_tensor("output_norm.weight", np.ones(2048, np.float32))
    for i in range(16):
        larger = "Q6_K" if i in Q4_K_M_LARGER else "Q4_K"
        for name, kind, rows, columns in (
            ("attn_q", "Q4_K", 2048, 2048),
            ("attn_k", "Q4_K", 512, 2048),
            ("attn_v", larger, 512, 2048),
            ("attn_output", "Q4_K", 2048, 2048),
            ("ffn_gate", "Q4_K", 8192, 2048),
            ("ffn_up", "Q4_K", 8192, 2048),
            ("ffn_down", larger, 2048, 8192),
        ):
            matrix(f"blk.{i}.{name}.weight", kind, rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(2048, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def model_file(name: str | None) -> Iterator[Path]:
    """The file of ``--model``; the embedded model's pieces are joined, for llama.cpp."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        if name == "llama-1b":
            make_llama(path)
        else:
            source = resolve_model(name).gguf
            if source is None:
                raise SystemExit(f"--model: expected a GGUF file or llama-1b, got {name}")
            if isinstance(source, ChunkedFile):
                with path.open("wb") as joined:
                    for chunk in source.chunks:
                        joined.write(chunk.read_bytes())
            else:
                path = source
        yield path


def measure(contestants: dict[str, Any], rows: list[int], repeats: int) -> list[dict[str, Any]]:
    table = []
    for n in rows:
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(repeats + 2):
            for name, contestant in contestants.items():
                times[name].append(1000 * contestant.run(n))
        times = {name: taken[2:] for name, taken in times.items()}
        line: dict[str, Any] = {"rows": n}
        for name, taken in times.items():
            line[f"{name}_ms"] = statistics.median(taken)
            line[f"{name}_best_ms"] = min(taken)
        for name in [name for name in contestants if name != "packed"]:
            pairs = zip(times[name], times["packed"], strict=True)
            line[f"{name}_over_packed"] = statistics.median(a / b for a, b in pairs)
        table.append(line)
        show = [f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}"
                for key, value in line.items()]  # fmt: skip
        print("  ".join(show), flush=True)
    return table


def texts(tokenizer: Any) -> Iterator[list[int]]:
    """Windows of the smoke suite's texts, POSITIONS tokens in all."""
    import dynaspec_cli

    suite = Path(dynaspec_cli.__file__).parent / "data" / "suites" / "smoke.jsonl"
    whole = "\n\n".join(
        json.dumps(json.loads(line), ensure_ascii=False) for line in suite.read_text().splitlines()
    )
    ids = list(tokenizer.encode(whole, special=False))
    while len(ids) < POSITIONS:
        ids += ids
    for start in range(0, POSITIONS, WINDOW):
        yield ids[start : start + WINDOW]


def quality(found: NativeGguf, path: Path, llama: LlamaCpp | None) -> dict[str, Any]:
    exact = load_native(found.weights, "model", found.spec, torch.float32)
    models: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    for name, build, dtype in (
        ("packed", load_packed, torch.bfloat16),
        ("bf16", load_native, torch.bfloat16),
    ):
        target = build(found.weights, "model", found.spec, dtype)
        models[name] = lambda ids, t=target: t.prefill(t.begin(ids.numel()), ids).logits()
    if llama is not None:
        models["llama.cpp"] = lambda ids: llama.logits(ids.tolist())
    sums = {name: [0.0, 0.0] for name in models}
    total = 0
    for window in texts(found.tokenizer()):
        ids = torch.tensor(window)
        want = exact.prefill(exact.begin(ids.numel()), ids).logits().log_softmax(-1)
        total += len(window)
        for name, model in models.items():
            got = model(ids).log_softmax(-1)
            sums[name][0] += float((want.exp() * (want - got)).double().sum())
            sums[name][1] += float((got.argmax(-1) == want.argmax(-1)).sum())
    result = {
        name: {"mean_kl": kl / total, "top1": same / total} for name, (kl, same) in sums.items()
    }
    for name, line in result.items():
        print(f"{name}: mean KL {line['mean_kl']:.6f} nats, top-1 {100 * line['top1']:.2f} %")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a GGUF file, or llama-1b; default: the embedded model")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 5, 9, 17])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-bf16", action="store_true", help="packed and llama.cpp alone")
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if EXTENSION.module is None:
        sys.exit(f"needs the compiled extension: {EXTENSION.reason}")
    torch.set_num_threads(options.threads)
    with model_file(options.model) as path:
        found = open_native(path)
        if found is None:
            sys.exit(f"--model: {path} has no native layers")
        try:
            llama = LlamaCpp(path, options.threads)
        except ImportError:
            llama = None
        report: dict[str, Any] = {
            "backend": backend(),
            "threads": options.threads,
            "file_mb": path.stat().st_size / 1e6,
        }
        print(report, flush=True)
        if options.quality:
            report["quality"] = quality(found, path, llama)
        else:
            contestants: dict[str, Any] = {"packed": Ours(found, packed=True)}
            if not options.no_bf16:
                contestants["bf16"] = Ours(found, packed=False)
            if llama is not None:
                contestants["llama.cpp"] = llama
            report["passes"] = measure(contestants, options.rows, options.repeats)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
