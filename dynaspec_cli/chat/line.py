"""What a typed line means: a message, or a command that begins with a slash."""

from __future__ import annotations

from dataclasses import dataclass

COMMANDS = {
    "/system": ("TEXT", "set the system message; without TEXT, remove it"),
    "/reset": ("", "forget the conversation; the system message stays"),
    "/undo": ("", "take back the last question and its answer"),
    "/edit": ("[TEXT]", "take them back and ask TEXT instead; without TEXT, edit the question"),
    "/retry": ("", "ask the last question again"),
    "/stats": ("", "speed and acceptance of the last answer, and of the conversation"),
    "/save": ("FILE", "write the messages as JSON"),
    "/help": ("", "show this list"),
    "/exit": ("", "end the conversation, as Ctrl-D does"),
}
"""What follows each, and what it does."""


@dataclass(frozen=True)
class Line:
    """``command`` "" : ``text`` is a message to the model; otherwise the command's argument."""

    command: str
    text: str


def parse(line: str) -> Line:
    """Of one typed line. Two slashes at the beginning stand for one that is no command. Raises
    ValueError, with a message for the user, for a command that does not exist or its argument."""
    line = line.strip()
    if line.startswith("//"):
        return Line("", line[1:])
    if not line.startswith("/"):
        return Line("", line)
    command, _, text = line.partition(" ")
    text = text.strip()
    if command not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise ValueError(
            f"{command}: no such command; expected one of {known} (a message that begins with a "
            "slash is typed with two)"
        )
    wanted, _ = COMMANDS[command]
    if text and not wanted:
        raise ValueError(f"{command}: expected nothing behind it, got {text!r}")
    if not text and command == "/save":
        raise ValueError("/save: expected a file name, as in /save talk.json")
    return Line(command, text)
