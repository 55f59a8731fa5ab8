"""Generate from Python: stream events, then read the request's numbers."""

from __future__ import annotations

import sys

from dynaspec_cli import (
    DoneEvent,
    DynaSpecError,
    Engine,
    GenerationConfig,
    NoticeEvent,
    SamplingConfig,
    ShortlistConfig,
    TokensEvent,
    TreeConfig,
)


def main(model: str | None, drafter: str) -> None:
    engine = Engine.load(model, drafter=drafter)
    config = GenerationConfig(
        max_new_tokens=32,
        sampling=SamplingConfig(temperature=0.0),
        tree=TreeConfig(policy="eagle2", size=16, depth=6, width=4),
        shortlist=ShortlistConfig("nanospec"),
    )
    for event in engine.generate("The capital of France is", config):
        if isinstance(event, TokensEvent):
            print(event.text, end="", flush=True)
        elif isinstance(event, NoticeEvent):
            print(event.message, file=sys.stderr)
        elif isinstance(event, DoneEvent):
            speed, tau = event.result.tokens_per_second, event.result.mean_acceptance_length
            print(f"\n{speed:.1f} tokens/s, tau {tau:.2f}")


if __name__ == "__main__":
    try:
        main(*(sys.argv[1:3] if len(sys.argv) == 3 else (None, "auto")))
    except DynaSpecError as error:
        sys.exit(f"Error: {error}")
