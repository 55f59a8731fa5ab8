"""Schemas, fake kernels and ``torch.compile``; the loader and its fallback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from head_cases import DTYPES, EMPTY, make_case

import dynaspec_cli
from dynaspec_cli import ops
from dynaspec_cli.ops import extension
from dynaspec_cli.ops.extension import EXTENSION, torch_mismatch

built = pytest.mark.skipif(EXTENSION.module is None, reason=EXTENSION.reason)


@built
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_opcheck(dtype: torch.dtype) -> None:
    check = torch.library.opcheck
    op = torch.ops.dynaspec
    case = make_case(1, 3, 32, 200, dtype)
    scale = case.scale if case.scale.numel() else None
    blocks, _ = ops.shortlist_union(*case.union)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    check(op.linear, (case.hidden, case.head, torch.ones(200), scale), test_utils=tests)
    check(op.shortlist_topk, (*case.dense, blocks, 4, 0.7), test_utils=tests)
    check(op.shortlist_log_probs, (*case.dense, blocks, 0.7), test_utils=tests)
    check(op.shortlist_union, case.union, test_utils=tests)
    check(op.draft_head, (*case.dense, *case.union, 4, 0.7), test_utils=tests)


@built
def test_opcheck_router() -> None:
    f, e, w1, w2 = torch.randn(2, 4), torch.randn(2, 3), torch.randn(5, 7), torch.randn(6, 5)
    torch.library.opcheck(
        torch.ops.dynaspec.router_clusters, (f, e, w1, torch.ones(5), w2, torch.ones(6))
    )
    torch.library.opcheck(
        torch.ops.dynaspec.router_clusters, (f, EMPTY, EMPTY, EMPTY, torch.randn(6, 4), EMPTY)
    )


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(dynaspec_cli.__file__).resolve().parent.parent)
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, **environment}
    env.pop("DYNASPEC_CPU_ISA", None)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_fallback_warns_once_and_computes() -> None:
    code = (
        "import torch; from dynaspec_cli import ops\n"
        "x = torch.ones(2, 3)\n"
        "a = ops.linear(x, x, None, None); b = ops.linear(x, x, None, None)\n"
        "assert torch.equal(a, torch.full((2, 2), 3.0)) and torch.equal(a, b)\n"
        "print(ops.backend(), '|', ops.backend_reason())"
    )
    child = run(code, DYNASPEC_EXTENSION="0")
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith("torch | the compiled extension is not in use: ")
    assert "DYNASPEC_EXTENSION=0" in child.stdout
    assert child.stderr.count("PyTorch fallback") == 1


def test_import_of_the_package_brings_no_torch() -> None:
    child = run("import sys, dynaspec_cli; print('torch' in sys.modules)")
    assert child.stdout.strip() == "False", child.stderr


def test_extension_of_another_torch_is_refused() -> None:
    assert torch_mismatch("2.13.0+cpu", "2.13.0+cu130") == ""
    assert torch_mismatch("2.13.0", "2.13.0+cpu") == ""
    message = torch_mismatch("2.13.0+cpu", "2.14.1+cu130")
    assert "built against torch 2.13.0+cpu and this is torch 2.14.1+cu130" in message
    assert "pip install --no-build-isolation ." in message


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "it was never built here"),
        ("{ not json", "cannot be read"),
        ("[]", "is malformed"),
        ({"built": False, "reason": "no C++ compiler was found"}, "no C++ compiler was found"),
        ({"built": True, "torch": "1.0.0+cpu"}, "built against torch 1.0.0+cpu and this is torch"),
    ],
)
def test_build_record_decides(
    record: object, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "_build_info.json"
    if record is not None:
        path.write_text(record if isinstance(record, str) else json.dumps(record))
    monkeypatch.setattr(extension, "_RECORD", path)
    monkeypatch.delenv("DYNASPEC_CPU_ISA", raising=False)
    loaded = extension._load()
    assert loaded.module is None
    assert loaded.name == "torch"
    assert reason in loaded.reason


@built
def test_backend_names_the_level() -> None:
    isa = EXTENSION.module.isa()
    assert ops.backend() == f"cpu-{isa}"
    assert torch.__version__ in ops.backend_reason()
    assert EXTENSION.module.torch_version().split("+")[0] == torch.__version__.split("+")[0]
    assert isa in EXTENSION.module.available_isas().split(",")
