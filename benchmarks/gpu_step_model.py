"""Bytes, operations and milliseconds of a step on an H100, estimated from sizes alone.

    python benchmarks/gpu_step_model.py

Nothing is measured. A pass takes as long as its bytes or its arithmetic, whichever is more, and the
time between the nodes of its graph; so does a draft round. Assumed: the constants below.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynaspec_cli.target.static.sizes import splits_of

BANDWIDTH = 3.0e12
"""Bytes a second that a long read reaches."""
ARITHMETIC = 6.0e14
"""Operations a second of bf16 products with many rows."""
NODE_S = 1.5e-6
"""From one small node of a graph to the next."""
LAUNCH_S, WAIT_S = 5e-6, 20e-6
"""Of the host: an eager launch, a wait."""
LAYER_NODES, OTHER_NODES = 38, 90
"""Captured operations (tools/cuda_check/count.py: 1,301 with 32 layers)."""
ROUND_NODES, LAUNCHES, WAITS = 1045, 18, 1
"""Of a draft round, and of a step outside of its graphs (the same count)."""
SCORE_PASSES = 8
"""Times that attention's scores are read or written."""
L2_BYTES = 40e6
"""Scores that fit are taken to cost nothing."""
DEPTH, ROWS, TAU, SHORTLIST = 6, 64, 3.9, 8192


@dataclass(frozen=True)
class Sizes:
    name: str
    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def layer(self) -> int:
        """Weights of one layer."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.inner

    @property
    def head(self) -> int:
        return self.vocab * self.hidden


MODELS = (
    Sizes("Llama-3-8B", 128256, 4096, 14336, 32, 32, 8, 128),
    Sizes("Gemma 3 4B", 262208, 2560, 10240, 34, 8, 4, 256),
    Sizes("Gemma 3 12B", 262208, 3840, 15360, 48, 16, 8, 256),
)


def a_pass(m: Sizes, rows: int, context: int) -> tuple[float, float, float]:
    """(bytes, operations, seconds)."""
    weights = m.layers * m.layer + m.head
    keys = 2 * m.layers * m.kv_heads * m.head_dim * context
    scores = rows * m.heads * context * 4
    spilled = m.layers * SCORE_PASSES * max(0.0, scores - L2_BYTES)
    if splits := splits_of(rows, context):  # what each part sums is written and read once
        spilled = m.layers * 2 * splits * rows * m.heads * m.head_dim * 4
    logits = 4 * rows * m.vocab * 4
    moved = 2 * (weights + keys) + spilled + logits
    done = 2 * rows * (weights + 2 * m.layers * m.heads * m.head_dim * context)
    nodes = LAYER_NODES * m.layers + OTHER_NODES
    return moved, done, max(moved / BANDWIDTH, done / ARITHMETIC) + nodes * NODE_S


def drafting(m: Sizes) -> float:
    """Seconds of a round of six draft steps with a head of ``SHORTLIST`` rows, and of the host's
    part of a step."""
    moved = 2 * (m.layer + 3 * m.hidden**2 + SHORTLIST * m.hidden)
    host = LAUNCHES * LAUNCH_S + WAITS * WAIT_S
    return DEPTH * moved / BANDWIDTH + ROUND_NODES * NODE_S + host


def main() -> None:
    columns = ("model", "context", "rows", "GB read", "TFLOP", "pass, ms", "drafts, ms", "tokens/s")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for m in MODELS:
        for context in (512, 2048, 8192):
            for rows in (16, ROWS):
                moved, done, seconds = a_pass(m, rows, context)
                plain = rows < ROWS
                draft = 0.0 if plain else drafting(m)
                rate = (1.0 if plain else TAU) / (seconds + draft)
                cells = (
                    m.name,
                    f"{context:,}",
                    f"{rows} ({'plain' if plain else 'verification'})",
                    f"{moved / 1e9:.1f}",
                    f"{done / 1e12:.2f}",
                    f"{1e3 * seconds:.1f}",
                    "" if plain else f"{1e3 * draft:.1f}",
                    f"{rate:.0f}",
                )
                print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
