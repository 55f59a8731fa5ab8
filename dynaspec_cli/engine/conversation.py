"""Requests that follow one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dynaspec_cli.config import GenerationConfig
from dynaspec_cli.engine.events import Event
from dynaspec_cli.engine.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from dynaspec_cli.engine.api import Engine


def never() -> bool:
    """The default of ``should_stop``."""
    return False


class Conversation:
    """Requests to one engine whose caches are kept in between: of a prompt that begins like the
    last request's prompt and answer only the rest is read. The text is a fresh request's. One
    request at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._cache: PrefixCache[Any, Any] = PrefixCache(engine.target)

    def generate(
        self,
        prompt: str | Sequence[int],
        config: GenerationConfig,
        *,
        speculative: bool = True,
        should_stop: Callable[[], bool] = never,
    ) -> Iterator[Event]:
        """As ``Engine.generate``; after an error everything is read again."""
        try:
            yield from self.engine.generate(
                prompt,
                config,
                speculative=speculative,
                should_stop=should_stop,
                cache=self._cache,
            )
        except Exception:
            self.reset()
            raise

    def reset(self) -> None:
        """Forget everything read so far, and free its memory."""
        self._cache.reset()
