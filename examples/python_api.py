"""Generate from Python: stream events, then read the request's numbers."""

from __future__ import annotations

import sys

from dynaspec_cli.config import GenerationConfig, ShortlistConfig, TreeConfig
from dynaspec_cli.engine.api import Engine
from dynaspec_cli.engine.events import DoneEvent, NoticeEvent, TokensEvent


def main(model: str | None, drafter: str) -> None:
    engine = Engine.load(model, drafter=drafter)
    settings = GenerationConfig(
        max_new_tokens=32,
        tree=TreeConfig(policy="eagle2", size=16, depth=6, width=4),
        shortlist=ShortlistConfig("nanospec"),
    )
    for event in engine.generate("The capital of France is", settings):
        if isinstance(event, TokensEvent):
            print(event.text, end="", flush=True)
        elif isinstance(event, NoticeEvent):
            print(event.message, file=sys.stderr)
        elif isinstance(event, DoneEvent):
            speed, tau = event.result.tokens_per_second, event.result.mean_acceptance_length
            print(f"\n{speed:.1f} tokens/s, tau {tau:.2f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None, sys.argv[2] if len(sys.argv) > 2 else "auto")
