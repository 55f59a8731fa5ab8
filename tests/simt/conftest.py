from __future__ import annotations

from pathlib import Path

import pytest

from . import machine as simt


@pytest.fixture(scope="session")
def simt_library(request: pytest.FixtureRequest) -> Path:
    if simt.find_compiler() is None:
        pytest.skip("no C++ compiler: the CUDA kernels cannot be emulated")
    cache = getattr(request.config, "cache", None)
    assert cache is not None
    return simt.build(Path(cache.mkdir("simt")))


@pytest.fixture
def machine(simt_library: Path) -> simt.Machine:
    run = simt.Machine(simt_library)
    run.reset()
    return run
