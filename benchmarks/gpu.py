"""Times the CUDA head against PyTorch on a GPU.

    python benchmarks/gpu.py [--quick] [--out gpu.json]

A row an op, dtype, d, hidden rows and shortlist: time, bytes of weights read, the share of the read
bandwidth measured in the same run, and the ratio to ``index_select + linear + log_softmax + topk``.
Both sides are timed as replays of a CUDA graph, inputs rotated through buffers larger than the L2
cache, medians of many repeats. No result of it is in the documentation: the kernels have not run on
a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dynaspec_cli import ops
from dynaspec_cli.ops.extension import EXTENSION

VOCAB = 262144
DIMS, ROWS, SIZES = (640, 2048, 4096), (1, 4, 10, 32), (1024, 4096, 8192, 32768, 65536)
DTYPES = (torch.bfloat16, torch.int8, torch.float32)
CLUSTER = 256
K = 10


def graph_ms(step: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of a graph replay of ``step``."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def read_bandwidth(repeats: int) -> float:
    """Bytes per second of summing 2 GiB."""
    data = torch.empty(1 << 29, device="cuda").fill_(1.0)
    return data.numel() * 4 / (graph_ms(data.sum, repeats) / 1e3)


def clusters(size: int, generator: torch.Generator) -> Tensor:
    """Blocks of ``size`` rows in clusters of 256, spread over the vocabulary."""
    count = size // CLUSTER
    chosen = torch.randperm(VOCAB // CLUSTER, generator=generator)[:count].sort().values * CLUSTER
    return torch.stack([chosen, chosen + CLUSTER], 1).int()


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.float().abs().amax(1) / 127
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


def measure(dtype: torch.dtype, dim: int, rows: int, size: int, repeats: int) -> dict[str, object]:
    g = torch.Generator().manual_seed(size + rows)
    base = torch.randn(VOCAB, dim, device="cuda", dtype=torch.bfloat16)
    scale = torch.empty(0, device="cuda")
    if dtype == torch.int8:
        head, scale = quantised(base)
    else:
        head = base.to(dtype)
    hidden = torch.randn(rows, dim, device="cuda")
    ids = torch.arange(VOCAB, device="cuda", dtype=torch.int32)
    # Several disjoint selections in turn, so that none is found in the L2 cache.
    selections = [clusters(size, g).cuda() for _ in range(8)]
    flat = [torch.cat([torch.arange(a, b) for a, b in s.tolist()]).cuda() for s in selections]

    def ours() -> None:
        for blocks in selections:
            ops.shortlist_topk(hidden, head, scale, ids, blocks, K, 1.0)

    reference_head = base if dtype == torch.int8 else head

    def pytorch() -> None:
        for index in flat:
            part = reference_head.index_select(0, index)
            logits = torch.nn.functional.linear(hidden.to(part.dtype), part).float()
            values, place = torch.log_softmax(logits, -1).topk(K)
            index[place], values

    mine, theirs = graph_ms(ours, repeats) / 8, graph_ms(pytorch, repeats) / 8
    return {
        "op": "shortlist_topk",
        "dtype": str(dtype).removeprefix("torch."),
        "d": dim,
        "rows": rows,
        "shortlist": size,
        "ms": mine,
        "bytes": size * dim * head.element_size(),
        "pytorch_ms": theirs,
        "ratio": theirs / mine,
    }


def union(rows: int, repeats: int) -> dict[str, object]:
    offsets = torch.arange(0, VOCAB + 1, 64, device="cuda", dtype=torch.int32)
    scores, extra = (
        torch.randn(rows, VOCAB // 64, device="cuda"),
        torch.arange(300, device="cuda").int(),
    )
    ms = graph_ms(lambda: ops.shortlist_union(scores, offsets, extra, 512, 8192), repeats)
    return {"op": "shortlist_union", "rows": rows, "shortlist": 8192, "ms": ms}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="bf16, d = 640 and 4096, 8 rows")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available() or not EXTENSION.has_cuda:
        why = EXTENSION.reason if torch.cuda.is_available() else "no CUDA device"
        print(f"benchmarks/gpu.py: expected a GPU and CUDA kernels: {why}", file=sys.stderr)
        return 1
    bandwidth = read_bandwidth(options.repeats)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, "
        f"reads {bandwidth / 1e9:.0f} GB/s"
    )
    print(
        f"{'op':16} {'dtype':9} {'d':>5} {'rows':>4} {'tokens':>7} {'ms':>8} "
        f"{'GB/s':>7} {'share':>6} {'ratio':>6}"
    )
    results: list[dict[str, object]] = [union(10, options.repeats)]
    print(f"{'shortlist_union':16} {'':9} {'':5} {10:4} {8192:7} {results[0]['ms']:8.4f}")
    grid = [
        (dtype, dim, rows, size)
        for dtype in (DTYPES[:1] if options.quick else DTYPES)
        for dim in ((640, 4096) if options.quick else DIMS)
        for rows in ((8,) if options.quick else ROWS)
        for size in SIZES
    ]
    for dtype, dim, rows, size in grid:
        r = measure(dtype, dim, rows, size, options.repeats)
        rate = float(r["bytes"]) / (float(r["ms"]) / 1e3)  # type: ignore[arg-type]
        r["share"] = rate / bandwidth
        results.append(r)
        print(
            f"{r['op']:16} {r['dtype']:9} {dim:5} {rows:4} {size:7} {r['ms']:8.4f} "
            f"{rate / 1e9:7.0f} {r['share']:6.2f} {r['ratio']:6.2f}",
            flush=True,
        )
    if options.out:
        text = json.dumps({"schema": 1, "bandwidth": bandwidth, "rows": results}, indent=1)
        options.out.with_suffix(".tmp").write_text(text + "\n")
        options.out.with_suffix(".tmp").replace(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
