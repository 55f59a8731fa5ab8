"""``dynaspec chat``: options and printing; dynaspec_cli/chat keeps the conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dynaspec_cli.commands.loading import load_engine
from dynaspec_cli.commands.options import CommonOptions
from dynaspec_cli.commands.request import RequestOptions, request_options
from dynaspec_cli.errors import DynaSpecError, UsageError

if TYPE_CHECKING:
    from dynaspec_cli.chat.dialogue import Dialogue
    from dynaspec_cli.chat.line import Line
    from dynaspec_cli.ui.chat import ChatView
    from dynaspec_cli.ui.typed import Lines


@click.command(
    epilog="""\b
Examples:
  dynaspec chat
  dynaspec chat --model FOLDER --system "Answer in one sentence." --temperature 0.7
  printf 'Hello\\nAnd what is your name?\\n' | dynaspec chat

\b
/help lists the commands. Ctrl-C ends an answer and keeps what there is of it,
Ctrl-D ends the conversation, Alt-Enter breaks a line. Without a terminal every
line of standard input is a message. Answers go to stdout, the rest to stderr.
"""
)
@click.option("--markdown", is_flag=True, help="Draw answers as Markdown, on a terminal.")
@click.option(
    "--history/--no-history",
    default=True,
    help="Keep typed lines for later conversations, in ~/.local/state/dynaspec.",
)
@request_options(0.0, "Length limit of an answer, in tokens.", system=True)
def chat(common: CommonOptions, request: RequestOptions, markdown: bool, history: bool) -> None:
    """Talk with a model. What was said is read once: the caches of target and drafter are kept
    between turns."""
    if markdown and common.json:
        raise UsageError("--markdown: expected text to draw, got --json")
    engine = load_engine(common, request.drafter, request.drafter_option)
    from dynaspec_cli.chat.dialogue import Dialogue
    from dynaspec_cli.ui.chat import ChatView
    from dynaspec_cli.ui.console import print_json
    from dynaspec_cli.ui.typed import PipedLines, open_lines

    dialogue = Dialogue(
        engine,
        request.config,
        system=request.system,
        speculative=request.speculative,
        arguments=request.chat_arguments,
    )
    lines = open_lines(history)
    with ChatView(text=not common.json, markdown=markdown, quiet=common.quiet) as view:
        if dialogue.notice is not None:
            view.note(f"Note: {dialogue.notice}")
        failures = _converse(dialogue, lines, view)
    if common.json:
        answers = [result.to_json() for result in dialogue.results]
        print_json({**dialogue.to_json(), "answers": answers})
    if failures and isinstance(lines, PipedLines):
        raise DynaSpecError(f"{failures} of the lines failed; see the messages above")


def _converse(dialogue: Dialogue, lines: Lines, view: ChatView) -> int:
    """Answer lines until they end; how many failed."""
    from dynaspec_cli.chat.line import parse

    failures = 0
    for text in lines:
        try:
            line = parse(text)
            if line.command == "/exit":
                break
            _obey(line, dialogue, lines, view)
        except (DynaSpecError, ValueError) as error:
            failures += 1
            view.error(str(error))
    return failures


def _obey(line: Line, dialogue: Dialogue, lines: Lines, view: ChatView) -> None:
    """Do what one line asks for."""
    command, text = line.command, line.text
    if command == "/edit" and not text and not lines.editable:
        raise ValueError("/edit: expected TEXT, since there is no terminal to edit it on")
    if command in ("/undo", "/edit", "/retry"):
        question = dialogue.take_back()
        if question is None:
            raise ValueError(f"{command}: there is no question yet")
        if command == "/retry" or text:
            _answer(dialogue, text or question, view)
        elif command == "/edit":
            lines.default = question
        else:
            view.note("The last question and its answer are taken back.")
    elif command == "/system":
        dialogue.system = text or None
        view.note("The system message is set." if text else "There is no system message now.")
    elif command == "/reset":
        dialogue.reset()
        view.note("The conversation begins anew.")
    elif command == "/stats":
        view.statistics(dialogue.results)
    elif command == "/save":
        _save(dialogue, Path(text))
        view.note(f"Saved as {text}.")
    elif command == "/help":
        _help(view)
    else:
        _answer(dialogue, text, view)


def _answer(dialogue: Dialogue, text: str, view: ChatView) -> None:
    from dynaspec_cli.commands.prompt import utf8_argument
    from dynaspec_cli.ui.interrupt import Interruption

    utf8_argument("the message", text)
    with Interruption() as interruption:
        for event in dialogue.ask(text, interruption.should_stop):
            view.show(event)


def _save(dialogue: Dialogue, path: Path) -> None:
    from dynaspec_cli.target.cache_dir import write_text

    text = json.dumps(dialogue.to_json(), ensure_ascii=False, indent=2) + "\n"
    try:
        write_text(path.expanduser(), text)
    except OSError as error:
        raise DynaSpecError(f"/save {path}: cannot be written ({error.strerror})") from error


def _help(view: ChatView) -> None:
    from dynaspec_cli.chat.line import COMMANDS

    for name, (argument, does) in COMMANDS.items():
        view.note(f"  {f'{name} {argument}':16} {does}")
