"""A model's chat template, rendered in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from dynaspec_cli.errors import DynaSpecError

RESERVED = ("messages", "add_generation_prompt")


@dataclass(frozen=True)
class ChatTemplate:
    """``source`` (Jinja) and ``special``: the texts that templates know by name ("bos_token",
    …)."""

    source: str
    special: Mapping[str, str]

    def render(self, messages: Sequence[Mapping[str, Any]], /, **arguments: Any) -> str:
        """The conversation as text, open for the answer; ``arguments`` are further variables of the
        template (``enable_thinking``, …).

        Raises ``DynaSpecError`` where the template is none or refuses the conversation, and for an
        argument that is not the caller's to set.
        """
        if taken := [name for name in arguments if name in RESERVED]:
            raise DynaSpecError(f"--chat-arg {taken[0]}: set by --chat itself; choose another name")
        known: dict[str, Any] = {"tools": None, "documents": None, **self.special, **arguments}
        try:
            return str(
                self._compiled.render(
                    messages=[dict(message) for message in messages],
                    add_generation_prompt=True,
                    **known,
                )
            )
        except DynaSpecError:
            raise
        except Exception as error:  # a template is a program of its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DynaSpecError(
                f"--chat: the model's chat template refused the conversation: {reason}"
            ) from error

    @cached_property
    def _compiled(self) -> Any:
        import jinja2

        try:
            return _environment().from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise DynaSpecError(
                f"--chat: the model's chat template cannot be read (line {error.lineno}: "
                f"{error.message})"
            ) from error


def _environment() -> Any:
    """What templates of the hub are written for: blocks leave no blank lines, JSON is not escaped
    for HTML, and nothing outside can be reached or changed."""
    from jinja2 import TemplateError, ext, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """``{% generation %}`` marks an answer's text for training; here it only holds it."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own interface

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        allowed = {k: options[k] for k in ("indent", "separators", "sort_keys") if k in options}
        return json.dumps(value, ensure_ascii=ensure_ascii, **allowed)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment
