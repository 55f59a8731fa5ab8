"""Do a drafter and its target mean the same tokens by the same numbers?"""

from __future__ import annotations

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.tokenizer import TextTokenizer

PROBES = (
    "The quick brown fox doesn't jump over 12,345.67 lazy dogs.",
    "def f(x):\n    return [i ** 2 for i in range(x)]\n\n\tprint(f'{x!r}')",
    "Größe, naïve façade; Это пример. これは例です。这是一个例子。 हिन्दी",
    "  spaces   and\r\nlines\n\n\n👩‍💻🇫🇷 a\u00a0b <b>&amp;</b> http://example.org/?q=1",
)
"""Texts that tokenizers of one vocabulary cut differently: merges, digits, white space, scripts."""


def check_same_tokenizer(
    drafter: TextTokenizer, target: TextTokenizer, drafter_name: str, target_name: str
) -> None:
    """Raises DynaSpecError that names the first difference: a number that stands for two texts, or
    a text that is cut in two ways. Numbers that only one of them has (padding rows, tokens added by
    a fine-tune) are no difference."""
    ours, theirs = drafter.backend.get_vocab(True), target.backend.get_vocab(True)
    if ours != theirs:
        by_id = {number: text for text, number in theirs.items()}
        for text, number in sorted(ours.items(), key=lambda item: item[1]):
            if by_id.get(number, text) != text:
                raise _refusal(
                    drafter_name,
                    target_name,
                    f"token {number} is {text!r} and {by_id[number]!r}",
                )
    for probe in PROBES:
        a, b = drafter.encode(probe, special=False), target.encode(probe, special=False)
        if a != b:
            at = next(i for i in range(max(len(a), len(b))) if a[i : i + 1] != b[i : i + 1])
            raise _refusal(
                drafter_name,
                target_name,
                f"{probe[:24]!r}… becomes {a[at : at + 3]} and {b[at : at + 3]} from its token "
                f"{at} on",
            )


def _refusal(drafter: str, target: str, difference: str) -> DynaSpecError:
    return DynaSpecError(
        f"--drafter {drafter}: its tokenizer is not that of {target}: {difference}; choose a model "
        "of the same tokenizer"
    )
