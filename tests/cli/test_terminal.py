"""The live line on a terminal: text and line share a screen without overwriting each other."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping

import pytest

from dynaspec_cli.target.events import LoadProgress
from dynaspec_cli.ui import lines
from dynaspec_cli.ui.console import visible
from dynaspec_cli.ui.progress import LoadBar

from .conftest import ROOT

CODE = """
from dynaspec_cli.engine.events import TokensEvent
from dynaspec_cli.ui import status
status.INTERVAL_S = 0.0
from dynaspec_cli.ui.generation import GenerationView
with GenerationView(stream=True, text=True, quiet=QUIET) as view:
    for i in range(12):
        view.show(TokensEvent((i,), f"word{i} " + "x" * 30 + "\\n" * (i % 3 == 0)))
"""
COLUMNS, ROWS = 70, 8


def on_terminal(quiet: bool, env: Mapping[str, str]) -> str:
    """What the code writes to a terminal of COLUMNS x ROWS that is both stdout and stderr."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", CODE.replace("QUIET", str(quiet))],
        stdin=child, stdout=child, stderr=child, cwd=ROOT,
        env={**os.environ, "TERM": "xterm", **env},
    )  # fmt: skip
    os.close(child)
    out = b""
    while True:
        try:
            piece = os.read(parent, 4096)
        except OSError:  # the child closed the terminal
            break
        if not piece:
            break
        out += piece
    process.wait(timeout=30)
    os.close(parent)
    return out.decode()


class Screen:
    """As much of a VT100 as the live line uses: lines that scrolled off, and what is visible."""

    def __init__(self) -> None:
        self.gone: list[str] = []
        self.rows = [[" "] * COLUMNS for _ in range(ROWS)]
        self.y = self.x = 0
        self.bottom = ROWS - 1
        self.saved = (0, 0)

    def down(self) -> None:
        if self.y == self.bottom:
            self.gone.append("".join(self.rows.pop(0)))
            self.rows.insert(self.bottom, [" "] * COLUMNS)
        elif self.y < ROWS - 1:
            self.y += 1

    def write(self, data: str) -> None:
        for token in re.findall(r"\x1b\[[\d;]*[A-Za-z]|\x1b.|.|\r|\n", data):
            if token == "\n":
                self.down()
            elif token == "\r":
                self.x = 0
            elif token == "\x1bD":
                self.down()
            elif token == "\x1b7":
                self.saved = (self.y, self.x)
            elif token == "\x1b8":
                self.y, self.x = self.saved
            elif token.startswith("\x1b["):
                self.control(token[-1], [int(n) for n in token[2:-1].split(";") if n])
            else:
                assert not token.startswith("\x1b"), token
                if self.x == COLUMNS:
                    self.x = 0
                    self.down()
                self.rows[self.y][self.x] = token
                self.x += 1

    def control(self, kind: str, numbers: list[int]) -> None:
        if kind == "r":
            self.bottom = (numbers[1] if numbers else ROWS) - 1
            self.y = self.x = 0
        elif kind == "H":
            self.y, self.x = numbers[0] - 1, numbers[1] - 1
        elif kind == "K":
            self.rows[self.y] = [" "] * COLUMNS
        elif kind == "A":
            self.y = max(self.y - numbers[0], 0)
        else:
            assert kind == "m", kind

    def text(self) -> str:
        return "".join([*self.gone, *("".join(row) for row in self.rows)])


def words(text: str) -> str:
    return re.sub(r"\s+", "", text)


EXPECTED = words("".join(f"word{i} " + "x" * 30 for i in range(12)))


def test_text_survives_the_live_line() -> None:
    raw = on_terminal(quiet=False, env={})
    assert "tokens/s" in raw
    screen = Screen()
    screen.write(raw)
    assert words(screen.text()) == EXPECTED  # all of the text, nothing of the line
    assert screen.bottom == ROWS - 1  # the row was given back


def test_live_line_stays_on_the_bottom_row() -> None:
    raw = on_terminal(quiet=False, env={})
    cut = raw.rindex("12 tokens") + 9
    screen = Screen()
    screen.write(raw[:cut])
    assert "tokens/s" in "".join(screen.rows[ROWS - 1])
    assert not any("tokens/s" in "".join(row) for row in screen.rows[: ROWS - 1])


def test_no_escape_where_none_is_wanted() -> None:
    assert "\x1b" not in on_terminal(quiet=True, env={})
    assert "\x1b" not in on_terminal(quiet=False, env={"TERM": "dumb"})
    assert "\x1b[2m" in on_terminal(quiet=False, env={"NO_COLOR": ""})
    assert "\x1b[2m" not in on_terminal(quiet=False, env={"NO_COLOR": "1"})


def test_control_characters_of_the_model_do_not_reach_a_terminal() -> None:
    assert visible("a\x1b[2Jb\x07\tc\n\x9bé👩‍💻") == "a[2Jb\tc\né👩‍💻"


def test_without_a_terminal_long_work_says_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also work that reports its beginning alone."""
    monkeypatch.setattr(lines, "PATIENCE_S", 0.05)
    monkeypatch.setattr(lines, "EVERY_S", 0.1)
    with LoadBar(enabled=True) as bar:
        bar(LoadProgress("quick", None))
        bar(LoadProgress("converting", 0.25))
        time.sleep(0.5)
    out, err = capsys.readouterr()
    assert out == ""
    assert set(err.splitlines()) == {"converting, 25 % (0:00)"}
    assert 2 <= err.count("converting") <= 6
    time.sleep(0.2)
    assert capsys.readouterr().err == ""  # nothing after its end


@pytest.mark.parametrize("enabled", [False, True])
def test_what_is_done_soon_says_nothing(capsys: pytest.CaptureFixture[str], enabled: bool) -> None:
    threads = threading.active_count()
    with LoadBar(enabled=enabled) as bar:
        for i in range(4):
            bar(LoadProgress("converting", i / 4))
    assert capsys.readouterr() == ("", "")
    assert threading.active_count() == threads


def test_a_line_that_was_printed_puts_off_the_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lines, "PATIENCE_S", 0.2)
    with lines.ProgressLines(True) as shown:
        shown.update("training", "step 1")
        shown.said()
        time.sleep(0.4)
    assert capsys.readouterr().err == ""
