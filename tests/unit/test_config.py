"""Settings that follow from others."""

from __future__ import annotations

import pytest

from dynaspec_cli.config import SamplingConfig


@pytest.mark.parametrize(
    ("temperature", "draft"), [(0.0, 0.75), (0.3, 0.75), (0.9, 0.9), (1.0, 1.0), (1.7, 1.0)]
)
def test_draft_temperature(temperature: float, draft: float) -> None:
    assert SamplingConfig(temperature).draft_temperature == draft
