"""Where a prompt comes from: the argument, a file, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from dynaspec_cli.errors import TEXT_ENCODING, UsageError, is_utf8

STDIN = "-"


def read_prompt(prompt: str | None, prompt_file: str | None) -> str:
    """The prompt's text. PROMPT ``-``, ``--prompt-file -`` and a missing PROMPT with a piped
    standard input all read standard input. One line break at the end of a file or of standard
    input is dropped, as the shell's $(...) does; a prompt given as argument is taken as it is.

    Raises ``UsageError`` where there is none, or more than one, or no UTF-8, or only white space.
    """
    if prompt is not None and prompt_file is not None:
        raise UsageError("expected PROMPT or --prompt-file, got both")
    if prompt == STDIN or prompt_file == STDIN:
        text = _decode(_stdin(), "standard input")
    elif prompt_file is not None:
        text = _decode(_read(Path(prompt_file)), f"--prompt-file {prompt_file}")
    elif prompt is not None:
        text = utf8_argument("PROMPT", prompt)
    elif sys.stdin is not None and not sys.stdin.isatty():
        text = _decode(_stdin(), "standard input")
    else:
        raise UsageError(
            'expected a prompt: dynaspec generate "The capital of France is", '
            "or --prompt-file FILE, or text on standard input"
        )
    if not text.strip():
        raise UsageError("the prompt is empty; expected some text to continue")
    return text


def utf8_argument(name: str, text: str) -> str:
    """``text`` as it is. Raises ``UsageError`` for bytes that are no UTF-8, which arrive as lone
    surrogates and fail wherever they are tokenized or printed."""
    if not is_utf8(text):
        raise UsageError(f"{name}: expected UTF-8 text")
    return text


def _stdin() -> bytes:
    if sys.stdin is None:
        raise UsageError("standard input is closed; expected a prompt there")
    return sys.stdin.buffer.read()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"--prompt-file {path}: cannot be read ({error.strerror})") from error


def _decode(data: bytes, source: str) -> str:
    try:
        text = data.decode(TEXT_ENCODING)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{source}: expected UTF-8 text, byte {error.start} is none ({error.reason})"
        ) from error
    if text.endswith("\n"):
        text = text[:-1].removesuffix("\r")
    return text
