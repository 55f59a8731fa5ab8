"""Ctrl-C and SIGTERM in programs of their own: while they work, and while they end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

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


ENDING = """
import atexit, sys, threading, time
import click
from dynaspec_cli import main

class Late:
    def __del__(self):
        print("taken down")

@click.command()
def work():
    global late
    late = Late()
    late.itself = late
    atexit.register(print, "at exit")
    print("written", end="")
    sys.stderr.write("said")
    MORE
    sys.exit(3)

main.cli.get_command = lambda ctx, name: work
sys.argv = ["dynaspec", "doctor"]
main.main()
"""


def ended(more: str = "pass", **options: Any) -> subprocess.CompletedProcess[str]:
    code = ENDING.replace("MORE", more)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(
        [sys.executable, "-c", code], text=True, cwd=ROOT, check=False, timeout=60, **streams
    )


def test_the_end_writes_all_and_takes_nothing_down() -> None:
    done = ended()
    assert (done.returncode, done.stdout, done.stderr) == (3, "writtenat exit\n", "said")


def test_the_end_waits_for_a_thread_that_works() -> None:
    thread = "threading.Thread(target=lambda: (time.sleep(0.5), print('done'))).start()"
    done = ended(thread)
    assert done.returncode == 3
    assert "done" in done.stdout
    assert "at exit" in done.stdout


def test_a_full_disk_is_told_at_the_end() -> None:
    with Path("/dev/full").open("w") as full:
        done = ended(stdout=full)
    assert done.returncode == 1
    assert "No disk space is left" in done.stderr
