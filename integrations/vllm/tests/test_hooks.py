"""Versions of vLLM whose hooks differ are refused with both names; the installed one fits."""

from __future__ import annotations

import logging

import pytest

import dynaspec_vllm
from dynaspec_vllm.hooks import HOOKS, HooksDifferError, check_hooks, installed_version


def fitting(changes=None):
    """A vLLM that has every hook and nothing else. ``changes``: other lines by hook."""
    found: dict[str, list[str]] = {}
    for hook in HOOKS:
        owner, _, name = hook.name.rpartition(".")
        if hook.arguments is None:
            line = f"{name}: int = 0"
        else:
            body = f"return {hook.calls}" if hook.calls else "..."
            line = f"def {name}({', '.join(hook.arguments)}, **more): {body}"
        line = (changes or {}).get(hook.name, line)
        found.setdefault(hook.module, []).append(f"class {owner}:\n    {line}" if owner else line)
    merged = {}
    for module, parts in found.items():
        classes: dict[str, list[str]] = {}
        for part in parts:
            head, _, body = part.partition("\n")
            classes.setdefault(head, []).extend([body] if body else [])
        merged[module] = "\n".join("\n".join([head, *bodies]) for head, bodies in classes.items())
    return merged.get


def test_a_vllm_with_every_hook_fits():
    check_hooks(fitting(), "0.32.0")


@pytest.mark.parametrize("hook", HOOKS, ids=str)
def test_each_hook_is_looked_for(hook):
    with pytest.raises(HooksDifferError, match="is gone") as error:
        check_hooks(fitting({hook.name: "unrelated = 1"}), "9.9.9")
    assert str(hook) in str(error.value)
    assert "vLLM 9.9.9" in str(error.value)
    assert "\n" not in str(error.value)


def test_other_arguments_or_another_body_are_named():
    name = "SpecDecodeBaseProposer._greedy_sample"
    with pytest.raises(HooksDifferError, match=r"takes \(self, hidden\), expected"):
        check_hooks(fitting({name: "def _greedy_sample(self, hidden): ..."}), "1")
    with pytest.raises(HooksDifferError, match="does not call self"):
        check_hooks(fitting({name: "def _greedy_sample(self, hidden_states): ..."}), "1")
    with pytest.raises(HooksDifferError, match="no such module"):
        check_hooks(lambda module: None, "1")


def test_nothing_is_registered_where_hooks_differ(monkeypatch, caplog):
    def differ():
        raise HooksDifferError("vLLM 9.9.9 does not fit")

    monkeypatch.setattr("dynaspec_vllm.hooks.check_hooks", differ)
    # vLLM's logger does not pass records on.
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level(logging.ERROR):
        dynaspec_vllm.register()
    assert "9.9.9 does not fit" in caplog.text


@pytest.mark.vllm
def test_the_installed_vllm_fits():
    check_hooks()
    assert installed_version()[0].isdigit()
