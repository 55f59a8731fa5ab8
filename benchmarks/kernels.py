"""Times the CPU kernels against the memory and against PyTorch.

    python benchmarks/kernels.py [--quick] [--json FILE]

Two ways to the same result take turns:
- dynaspec: ``shortlist_topk`` over a union of clusters (int8: int8 rows with their scale);
- torch: ``index_select`` of the rows, ``linear``, ``log_softmax``, ``topk`` in the head's dtype
  (int8: in bfloat16, the best that PyTorch offers there).

Every figure is the median over repetitions of something taken within one repetition, because the
memory of a shared machine has fast and slow seconds: a repetition measures, one after the other and
for every dtype, a plain read of 256 MiB, ours, a read again, and PyTorch. "of read" is bytes / time
over the mean speed of the reads just before and just after; "torch / ours" and "bf16 / this" are
ratios within the repetition too. "ms" and "read" are medians, the best times stand in the JSON.
Bytes are the selected rows', once. The reads also leave the caches cold, as they are for the first
draft step after a verification (a call on 64 rows brings back the code alone: Python and the
dispatcher cost 0.1 ms cold, whatever the shape). All weights lie on huge pages.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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
WARM_UP = 2  # repetitions
CACHE_BYTES = 64 << 20  # a selection of more bytes is beyond the last-level cache


def clock(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Reader:
    """Reads 256 MiB by a sum on all threads; ``best`` is the highest speed so far, bytes/s."""

    def __init__(self) -> None:
        self._buffer = torch.ones(64 << 20, dtype=torch.float32)
        self.best = 0.0

    def __call__(self) -> float:
        speed = self._buffer.numel() * 4 / clock(self._buffer.sum)
        self.best = max(self.best, speed)
        return speed


READ = Reader()


@dataclass
class Times:
    """Of each repetition: seconds of ours and of PyTorch's, bytes/s of the reads around ours, and
    seconds of ours in bfloat16."""

    ours: list[float] = field(default_factory=list)
    torch: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    bfloat16: list[float] = field(default_factory=list)

    def figures(self, count: int) -> dict[str, float]:
        """Medians of what was taken together; ``count`` bytes are read."""
        figures = {
            "ms": statistics.median(self.ours) * 1e3,
            "ms_best": min(self.ours) * 1e3,
            "read_gb_s": statistics.median(self.read) / 1e9,
            "share_of_read": paired(self.ours, [count / speed for speed in self.read]),
            "torch_ms": statistics.median(self.torch) * 1e3,
            "torch_ms_best": min(self.torch) * 1e3,
            "ratio": paired(self.ours, self.torch),
        }
        if self.bfloat16:
            figures["bf16_ratio"] = paired(self.ours, self.bfloat16)
        return figures


def paired(ours: list[float], others: list[float]) -> float:
    """Median of other / ours."""
    return statistics.median(b / a for a, b in zip(ours, others, strict=True))


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


Head = tuple[Tensor, Tensor]  # rows and their scale (int8), or an empty tensor


def measure(hidden: Tensor, heads: dict[str, Head], blocks: Tensor, repeats: int) -> list[Times]:
    """Times of each head; PyTorch's of int8 are its bfloat16's."""
    ids = torch.empty(0, dtype=torch.int32)
    rows = reference._block_rows(blocks)
    few = torch.tensor([[0, WARM_ROWS]], dtype=torch.int32)
    times = {name: Times() for name in heads}
    for i in range(repeats + WARM_UP):
        ours: dict[str, float] = {}
        theirs: dict[str, float] = {}
        for name, (head, scale) in heads.items():
            before = READ()
            ops.shortlist_topk(hidden, head, scale, ids, few, TOP, 1.0)
            ours[name] = clock(
                partial(ops.shortlist_topk, hidden, head, scale, ids, blocks, TOP, 1.0)
            )
            after = READ()
            if name != "int8":
                x = hidden.to(head.dtype)
                torch_path(x, head, rows[:WARM_ROWS])
                theirs[name] = clock(partial(torch_path, x, head, rows))
            if i >= WARM_UP:
                times[name].read.append((before + after) / 2)
        if i < WARM_UP:
            continue
        for name in heads:
            times[name].ours.append(ours[name])
            times[name].torch.append(theirs["bfloat16" if name == "int8" else name])
            if name != "bfloat16" and "bfloat16" in heads:
                times[name].bfloat16.append(ours["bfloat16"])
    return list(times.values())


def make_head(d: int, name: str, generator: torch.Generator) -> Head:
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
        heads: dict[str, Head] = {}
        for name in args.dtypes:
            if d * VOCAB * getattr(torch, name).itemsize > args.max_bytes:
                print(f"| skipped: {name}, d = {d}: its head exceeds --max-bytes |", flush=True)
            else:
                heads[name] = make_head(d, name, generator)
        if "int8" in heads and "bfloat16" not in heads:
            del heads["int8"]
            print(f"| skipped: int8, d = {d}: no bfloat16 head to compare with |", flush=True)
        for size in args.sizes:
            for n in args.rows:
                blocks = select_clusters(size, args.cluster, generator)
                hidden = torch.randn(n, d, generator=generator)
                times = measure(hidden, heads, blocks, args.repeats)
                for (name, (head, _)), its in zip(heads.items(), times, strict=True):
                    shape = {"d": d, "n": n, "rows": size, "dtype": name, "cluster": args.cluster}
                    read = size * d * head.element_size()
                    add_row(table, "shortlist_topk", shape, its, read)
        heads.clear()
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
            times = Times()
            for _ in range(max(args.repeats // 3, 3)):
                before = READ()
                start = time.perf_counter()
                for weight in copies:
                    ops.linear(x, weight, None, None)
                times.ours.append((time.perf_counter() - start) / len(copies))
                times.read.append((before + READ()) / 2)
                start = time.perf_counter()
                for weight in copies:
                    linear(x.bfloat16(), weight)
                times.torch.append((time.perf_counter() - start) / len(copies))
            shape = {"d": k, "n": n, "rows": m, "dtype": "bfloat16", "cluster": 0}
            add_row(table, "linear", shape, times, m * k * 2)
    return table


def add_row(
    table: list[dict[str, Any]], op: str, shape: dict[str, Any], times: Times, read: int
) -> None:
    table.append({"op": op, **shape, "bytes": read, **times.figures(read)})
    print(op, *shape.values(), f"{table[-1]['ms']:.3f} ms", file=sys.stderr, flush=True)


def print_table(table: list[dict[str, Any]]) -> None:
    print(
        "| op | d | x rows | weight rows | cluster | dtype | ms | MB | read GB/s | of read "
        "| torch ms | torch / ours | bf16 / this |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in table:
        cells = [row["op"], row["d"], row["n"], row["rows"], row["cluster"] or "-", row["dtype"]]
        cells += [f"{row['ms']:.3f}", f"{row['bytes'] / 1e6:.1f}", f"{row['read_gb_s']:.0f}"]
        cells += [f"{row['share_of_read']:.0%}", f"{row['torch_ms']:.3f}", f"{row['ratio']:.1f}"]
        cells += [f"{row['bf16_ratio']:.2f}" if "bf16_ratio" in row else "-"]
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
    if "int8" in args.dtypes and "bfloat16" not in args.dtypes:
        parser.error("--dtypes: int8 is compared with PyTorch in bfloat16: name both")
    load = os.getloadavg()[0]
    table = linear_rows(args) + head_rows(args)
    print(
        f"{ops.backend()}, {torch.get_num_threads()} threads, torch {torch.__version__}, best read "
        f"{READ.best / 1e9:.1f} GB/s, load {load:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after\n"
    )
    print_table(table)
    if args.json:
        facts = {"backend": ops.backend(), "best_read": READ.best}
        args.json.write_text(json.dumps({**facts, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
