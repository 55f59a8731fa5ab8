"""Refuses operations that make the host wait for the device, unless they are named here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Every wait on the hot path, in one place: (file, function) -> why it cannot be avoided. Trees live
# on the host, so a draft step reads its candidates back, and a verification what it decided.
NAMED_SYNCS = {
    ("shortlist/head.py", "host_rank"): "which row of the head a token is, once a head",
    ("target/static/feed.py", "fetch"): "the tree that was grown on the device, path, bonus "
    "token and the best tokens of each row: the one wait of a step",
    ("shortlist/dynaspec.py", "_topk"): "the statistics want the shortlist's size; read beside the "
    "candidates, which the tree policy reads next",
    ("shortlist/dynaspec.py", "_choose"): "the whole distribution is as wide as the shortlist, "
    "whose size the device decides: one number a draft step that samples",
    ("tree/base.py", "take"): "policies grow trees on the host: one small copy a draft step",
    ("tree/grown.py", "grow"): "the same",
    ("tree/fixed.py", "grow"): "the same",
    ("tree/sampled.py", "law"): "children are drawn on the host, where a seed gives the same "
    "numbers on every device: one copy a draft step",
    ("unread_tree.py", "to_host"): "a round that was drafted on the device and is verified by a "
    "target that walks on the host: its tree, once a round",
    ("device/growth.py", "__getitem__"): "the same: what children were drawn from, once a draft "
    "step that the walk visits",
    ("sampling/verify.py", "verify_greedy"): "the accepted tokens are printed: one small copy a "
    "verification",
    ("sampling/verify.py", "of_row"): "children are tried on the host: the target's probabilities, "
    "once a visited row",
    ("sampling/source.py", "categorical"): "the token that is drawn is printed: once a "
    "verification",
    ("sampling/processors.py", "_check"): "logits that hold NaN must end in an error, not in a "
    "draw: once a visited row",
    ("ops/reference_draw.py", "_filtered"): "top-p and min-p keep a number of tokens that depends "
    "on the logits: once a visited row",
    ("ops/reference_draw.py", "_heavy"): "the same",
    (
        "shortlist/context.py",
        "add",
    ): "the context set is kept on the host: the target's runners-up, once a verification",
    ("shortlist/dynaspec.py", "__init__"): "which row of the head a token is, at load",
    ("engine/draft.py", "observe"): "the coverage statistic: one flag a verification",
    ("shortlist/base.py", "observe"): "the running estimate of a shortlist's mass counts hits; off "
    "by default",
}

_aten = torch.ops.aten
# In inference mode composite operations arrive whole, hence both forms.
_SCALAR_OF = (_aten._local_scalar_dense.default, _aten.item.default)
_TRUTH_OF = (_aten.equal.default, _aten.is_nonzero.default)
_SHAPE_OF = (
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.unique_consecutive.default,
    _aten._unique2.default,
)


class HostSyncError(RuntimeError):
    """An operation on the traced path waits for the device and is not named."""


def _caller() -> tuple[str, str, int]:
    """Innermost frame inside the package: (file relative to it, function, line)."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "dynaspec_cli" in path.parts:
            inside = path.parts[len(path.parts) - path.parts[::-1].index("dynaspec_cli") :]
            return "/".join(inside), frame.f_code.co_name, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return "the trace itself", "", 0


class SyncGuard(TorchDispatchMode):
    """Sits above a FakeTensorMode. ``met`` collects the named waits that were met."""

    def __init__(self) -> None:
        super().__init__()
        self.met: dict[tuple[str, str], str] = {}

    def _judge(self, what: str) -> None:
        file, function, line = _caller()
        reason = NAMED_SYNCS.get((file, function))
        if reason is None:
            raise HostSyncError(
                f"{file}:{line} in {function or 'a step'}: {what} waits for the device"
            )
        self.met[file, function] = reason

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_device = [a for a in args if isinstance(a, torch.Tensor) and a.device.type == "cuda"]
        if func in _SCALAR_OF + _TRUTH_OF:
            if on_device:
                self._judge("reading a value")
            # A tensor of the host costs nothing to read, but it has no value here either.
            return 1 if func in _SCALAR_OF else True
        if on_device and func in _SHAPE_OF:
            self._judge(f"{func} (its result's size depends on data)")
        if func is _aten.index.Tensor and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool and i.device.type == "cuda"
            for i in args[1]
        ):
            self._judge("indexing by a boolean tensor")
        out = func(*args, **kwargs)
        results = out if isinstance(out, tuple | list) else (out,)
        if on_device and any(
            isinstance(r, torch.Tensor) and r.device.type == "cpu" for r in results
        ):
            self._judge("a copy to the host")
        return out
