"""A conversation as plain text, for base models: they were trained on no roles, but go on with a
transcript in the way that it began. It grows by its end alone, so that caches are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PREAMBLE = "This is a conversation between a user and a helpful assistant."
"""Where there is no system message."""
NAMES = {"user": "User", "assistant": "Assistant"}
STOP = f"\n{NAMES['user']}:"
"""Where an answer ends: a base model would write the next question too."""


def written(messages: Sequence[Mapping[str, str]]) -> str:
    """What a base model continues with the assistant's answer."""
    preamble, turns = PREAMBLE, list(messages)
    if turns and turns[0]["role"] == "system":
        preamble = turns.pop(0)["content"]
    lines = [f"{NAMES[turn['role']]}: {turn['content'].strip()}" for turn in turns]
    return "\n".join([f"{preamble}\n", *lines, f"{NAMES['assistant']}:"])
