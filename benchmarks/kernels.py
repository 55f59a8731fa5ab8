"""Times the CPU kernels against the memory and against PyTorch.

    python benchmarks/kernels.py [--quick] [--json FILE]

Two ways to the same result take turns, so that a drift of the machine touches both alike:
- dynaspec: ``shortlist_topk`` over a union of clusters (int8: int8 rows with their scale);
- torch: ``index_select`` of the rows, ``linear``, ``log_softmax``, ``topk`` in the head's dtype
  (int8: in bfloat16, the best that PyTorch offers there).

Times are the best of the repetitions, ours, PyTorch's and the read's alike: what the machine does
when nothing else disturbs it (medians stand in the JSON). Bytes are the selected rows', once. "of
read" is bytes / time over the read bandwidth for a buffer beyond the last-level cache. A read goes
before each repetition: so caches are cold, as they are for the first draft step after a
verification (a call on 64 rows brings back the code alone: Python and the dispatcher cost 0.1 ms
cold, whatever the shape), and the share is of the best read among those that took turns with the
row's repetitions. "of best" is of the best read of the whole run, which on a shared machine may be
one lucky moment. All weights lie on huge pages.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.ops import reference
from dynaspec_cli.ops.pages import huge_empty, on_huge_pages

VOCAB = 262_144
TOP = 10
WARM_ROWS = 64
EMPTY = torch.empty(0)
CACHE_BYTES = 64 << 20  # a selection of more bytes is beyond the last-level cache


def clock(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Reader:
    """Reads 256 MiB by a sum on all threads; ``best`` is the highest bytes per second so far,
    ``recent`` the highest since the last table row."""

    def __init__(self) -> None:
        self._buffer = torch.ones(64 << 20, dtype=torch.float32)
        self.best = self.recent = 0.0

    def sample(self) -> None:
        speed = self._buffer.numel() * 4 / clock(self._buffer.sum)
        self.best, self.recent = max(self.best, speed), max(self.recent, speed)


READER = Reader()


def select_clusters(rows: int, cluster: int, generator: torch.Generator) -> Tensor:
    """Blocks int32 [b, 2] of rows / cluster random clusters, adjacent ones merged."""
    chosen = torch.randperm(VOCAB // cluster, generator=generator)[: max(rows // cluster, 1)]
    offsets = torch.arange(0, VOCAB + 1, cluster, dtype=torch.int32)
    scores = torch.zeros(1, VOCAB // cluster)
    scores[0, chosen] = 1.0
    return ops.shortlist_union(scores, offsets, torch.empty(0, dtype=torch.int32), 0, rows)[0]


def torch_path(hidden: Tensor, head: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    logits = torch.nn.functional.linear(hidden, head.index_select(0, rows))
    return logits.float().log_softmax(-1).topk(TOP, -1)


def measure(
    hidden: Tensor, head: Tensor, scale: Tensor, blocks: Tensor, plain: Tensor, repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of each repetition (ours, PyTorch's)."""
    ids = torch.empty(0, dtype=torch.int32)
    rows = reference._block_rows(blocks)
    x = hidden.to(plain.dtype)
    few = torch.tensor([[0, WARM_ROWS]], dtype=torch.int32)
    ours: list[float] = []
    theirs: list[float] = []
    for i in range(repeats + 2):
        READER.sample()
        ops.shortlist_topk(hidden, head, scale, ids, few, TOP, 1.0)
        a = clock(lambda: ops.shortlist_topk(hidden, head, scale, ids, blocks, TOP, 1.0))
        READER.sample()
        torch_path(x, plain, rows[:WARM_ROWS])
        b = clock(lambda: torch_path(x, plain, rows))
        if i >= 2:
            ours.append(a)
            theirs.append(b)
    return ours, theirs


def make_head(d: int, name: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random (head [VOCAB, d], scale float32 [VOCAB] or empty), made in parts to save memory."""
    dtype = getattr(torch, name)
    head = huge_empty((VOCAB, d), dtype)
    scale = torch.empty(VOCAB if dtype == torch.int8 else 0)
    for lo in range(0, VOCAB, 8192):
        part = torch.randn(8192, d, generator=generator) / d**0.5
        if dtype == torch.int8:
            head[lo : lo + 8192], scale[lo : lo + 8192] = reference.quantize_rows(part)
        else:
            head[lo : lo + 8192] = part
    return head, scale


def head_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = []
    generator = torch.Generator().manual_seed(0)
    for d in args.widths:
        base, _ = make_head(d, "bfloat16", generator)
        for name in args.dtypes:
            if d * VOCAB * getattr(torch, name).itemsize > args.max_bytes:
                print(f"| skipped: {name}, d = {d}: its head exceeds --max-bytes |", flush=True)
                continue
            head, scale = (base, EMPTY) if name == "bfloat16" else make_head(d, name, generator)
            plain = base if name == "int8" else head
            for size in args.sizes:
                for n in args.rows:
                    blocks = select_clusters(size, args.cluster, generator)
                    hidden = torch.randn(n, d, generator=generator)
                    ours, theirs = measure(hidden, head, scale, blocks, plain, args.repeats)
                    shape = {"d": d, "n": n, "rows": size, "dtype": name, "cluster": args.cluster}
                    read = size * d * head.element_size()
                    add_row(table, "shortlist_topk", shape, ours, theirs, read)
            del head, scale, plain
    return table


def linear_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Weights of the default model's layers, read cold: a round over copies beyond the cache."""
    table: list[dict[str, Any]] = []
    linear = torch.nn.functional.linear
    for m, k in ((1536, 640), (640, 1024), (4096, 640), (640, 2048)):
        count = max(2, CACHE_BYTES // (m * k * 2))
        copies = on_huge_pages([torch.randn(m, k).bfloat16() for _ in range(count)])
        for n in (1, 8, 17):
            x = torch.randn(n, k)
            ours, theirs = [], []
            for _ in range(max(args.repeats // 3, 3)):
                start = time.perf_counter()
                for weight in copies:
                    ops.linear(x, weight, None, None)
                middle = time.perf_counter()
                for weight in copies:
                    linear(x.bfloat16(), weight)
                ours.append((middle - start) / len(copies))
                theirs.append((time.perf_counter() - middle) / len(copies))
                READER.sample()
            shape = {"d": k, "n": n, "rows": m, "dtype": "bfloat16", "cluster": 0}
            add_row(table, "linear", shape, ours, theirs, m * k * 2)
    return table


def add_row(
    table: list[dict[str, Any]],
    op: str,
    shape: dict[str, Any],
    our_times: list[float],
    their_times: list[float],
    read: int,
) -> None:
    ours, theirs = min(our_times), min(their_times)
    times = {"ms": ours * 1e3, "torch_ms": theirs * 1e3, "ratio": theirs / ours}
    times["ms_median"] = statistics.median(our_times) * 1e3
    times["torch_ms_median"] = statistics.median(their_times) * 1e3
    times["share_of_read"] = read / ours / READER.recent
    READER.recent = 0.0
    table.append({"op": op, **shape, **times, "bytes": read})
    print(op, *shape.values(), f"{ours * 1e3:.3f} ms", file=sys.stderr, flush=True)


def print_table(table: list[dict[str, Any]], bandwidth: float) -> None:
    print(
        "| op | d | x rows | weight rows | cluster | dtype | ms | MB | of read | of best "
        "| torch ms | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in table:
        best = row["share_of_best"] = row["bytes"] / (row["ms"] / 1e3) / bandwidth
        cells = [row["op"], row["d"], row["n"], row["rows"], row["cluster"] or "-", row["dtype"]]
        cells += [f"{row['ms']:.3f}", f"{row['bytes'] / 1e6:.1f}"]
        cells += [f"{row['share_of_read']:.0%}", f"{best:.0%}"]
        cells += [f"{row['torch_ms']:.3f}", f"{row['ratio']:.1f}"]
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[640, 2048, 4096])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 10, 32])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 8192, 32768, 65536])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8", "float32"])
    parser.add_argument("--cluster", type=int, default=256, help="rows of a cluster")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--max-bytes", type=int, default=3 << 30, help="largest head that is made")
    parser.add_argument("--quick", action="store_true", help="d = 640 and bfloat16, int8 only")
    parser.add_argument("--json", type=Path, help="also write the table there")
    args = parser.parse_args()
    if args.quick:
        args.widths, args.dtypes = [640], ["bfloat16", "int8"]
    load = os.getloadavg()[0]
    table = linear_rows(args) + head_rows(args)
    print(
        f"{ops.backend()}, {torch.get_num_threads()} threads, torch {torch.__version__}, read "
        f"bandwidth {READER.best / 1e9:.1f} GB/s, load {load:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after\n"
    )
    print_table(table, READER.best)
    if args.json:
        facts = {"backend": ops.backend(), "read_bandwidth": READER.best}
        args.json.write_text(json.dumps({**facts, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
