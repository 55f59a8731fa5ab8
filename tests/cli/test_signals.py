"""Ctrl-C and SIGTERM in programs of their own: while they work, and while they end."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from .conftest import ROOT

PROGRAM = """
import atexit, sys, time
import click
from dynaspec_cli import main

def slow_end():
    print("ending", flush=True)
    time.sleep(600)

@click.command()
def work():
    print("working", flush=True)
    time.sleep(SECONDS)

atexit.register(slow_end)
main.cli.get_command = lambda ctx, name: work
sys.argv = ["dynaspec", "doctor"]
main.main()
"""


def start(seconds: float, ignored: bool = False) -> subprocess.Popen[str]:
    before = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" if ignored else ""
    code = before + PROGRAM.replace("SECONDS", str(seconds))
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_during_the_end_ends_it_with_the_same_code(
    first: signal.Signals, second: signal.Signals
) -> None:
    process = start(600)
    wait_for(process, "working")
    process.send_signal(first)
    wait_for(process, "ending")
    process.send_signal(second)
    _, messages = process.communicate(timeout=60)  # it does not wait for the slow end
    assert process.returncode == 130
    assert messages.strip() == ""


def test_a_signal_after_the_work_is_done_keeps_its_exit_code() -> None:
    process = start(0)
    wait_for(process, "working")
    wait_for(process, "ending")
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert (process.returncode, messages) == (0, "")


def test_an_ignored_signal_stays_ignored() -> None:
    process = start(1.5, ignored=True)
    wait_for(process, "working")
    process.send_signal(signal.SIGINT)
    wait_for(process, "ending")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
