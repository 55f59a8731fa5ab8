"""The subcommands by name. Importing this module imports none of them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import click

DEBUG_KEY = "dynaspec.debug"
"""Where ``--debug`` is kept in the context, so that an error can be shown with its traceback."""


@dataclass(frozen=True)
class CommandEntry:
    """``module`` below dynaspec_cli.commands holds a command named like itself; ``summary`` is the
    line that ``dynaspec --help`` shows without importing it; ``sharded``: does it run under
    torchrun."""

    module: str
    summary: str
    sharded: bool = False

    def load(self) -> click.Command:
        command = getattr(
            importlib.import_module(f"dynaspec_cli.commands.{self.module}"), self.module
        )
        if not isinstance(command, click.Command):
            raise TypeError(f"dynaspec_cli.commands.{self.module}.{self.module} is no command")
        return command


COMMANDS = {
    "generate": CommandEntry("generate", "Generate text, faster, with unchanged output.", True),
    "chat": CommandEntry("chat", "Talk with a model; the KV cache is kept between turns.", True),
    "serve": CommandEntry("serve", "Serve a model to OpenAI clients.", True),
    "bench": CommandEntry("bench", "Measure methods against each other and check exactness."),
    "build-clusters": CommandEntry("build_clusters", "Build the shortlist bundle of a model."),
    "train-drafter": CommandEntry("train_drafter", "Train the drafter of a model."),
    "convert": CommandEntry("convert", "Write a drafter or token list in another form."),
    "export-vllm": CommandEntry("export_vllm", "Write a drafter with a shortlist for vLLM."),
    "doctor": CommandEntry("doctor", "Say what runs where on this machine, and why."),
}
