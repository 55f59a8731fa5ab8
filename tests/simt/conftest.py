from __future__ import annotations

from pathlib import Path

import pytest

from . import machine as simt


@pytest.fixture(scope="session")
def simt_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled objects are kept: pytest's cache, or a temporary folder without one."""
    if simt.find_compiler() is None:
        pytest.skip("no C++ compiler: the CUDA kernels cannot be emulated")
    cache = getattr(request.config, "cache", None)
    return Path(cache.mkdir("simt")) if cache is not None else tmp_path_factory.mktemp("simt")


@pytest.fixture(scope="session")
def simt_library(simt_folder: Path) -> Path:
    return simt.build(simt_folder)


@pytest.fixture
def machine(simt_library: Path) -> simt.Machine:
    run = simt.Machine(simt_library)
    run.reset()
    return run
