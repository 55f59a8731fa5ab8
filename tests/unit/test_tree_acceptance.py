"""Acceptance by position: the estimate, the file beside a drafter, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.tree.acceptance import (
    FILE,
    Acceptance,
    nearest,
    read_table,
    read_vector,
    write_table,
)

MEASURED = Acceptance((10, 4, 2), (5, 1, 0), {"seed": 3})


def test_vector_is_the_kaplan_meier_estimate() -> None:
    assert MEASURED.vector == pytest.approx((0.5, 0.5 * 0.25, 0.0))
    # All of four nodes with one child, half of six with a second one that took 2 of 3.
    assert Acceptance((10, 3), (7, 2), {}).vector == pytest.approx((0.7, 0.3 * 2 / 3))
    assert Acceptance((8, 2, 0, 5), (4, 1, 0, 5), {}).vector == pytest.approx((0.5, 0.25))
    assert Acceptance((4, 4), (4, 0), {}).vector == pytest.approx((1.0, 0.0))


def test_counts_of_another_length() -> None:
    with pytest.raises(ValueError, match="zip"):
        _ = Acceptance((4, 4), (4,), {}).vector


def test_nearest_temperature() -> None:
    table = dict.fromkeys((1.0, 0.0, 0.5), MEASURED)
    cases = ((0.0, 0.0), (0.25, 0.0), (0.3, 0.5), (0.75, 0.5), (0.8, 1.0), (3.0, 1.0))
    assert [nearest(table, asked) for asked, _ in cases] == [wanted for _, wanted in cases]


def test_written_and_read_again(tmp_path: Path) -> None:
    assert read_table(None) == {}
    assert read_table(tmp_path) == {}
    path = write_table(tmp_path, {0.6: MEASURED})
    assert path == tmp_path / FILE
    assert read_table(tmp_path) == {0.6: MEASURED}
    other = Acceptance((8,), (8,), {})
    write_table(tmp_path, {0.0: other})
    assert read_table(tmp_path) == {0.0: other, 0.6: MEASURED}
    write_table(tmp_path, {0.6: other})
    assert read_table(tmp_path) == {0.0: other, 0.6: other}
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert "\n " in text
    data = json.loads(text)
    assert data["schema"] == 1
    assert list(data["temperatures"]) == ["0", "0.6"]
    assert data["temperatures"]["0"]["acceptance"] == [1.0]
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DynaSpecError, match="cannot be written"):
        write_table(tmp_path / "none", {0.0: MEASURED})


@pytest.mark.parametrize(
    "entry",
    [
        {"tried": [], "accepted": []},
        {"tried": [0, 1], "accepted": [0, 1]},
        {"tried": [4, 2], "accepted": [4]},
        {"tried": [4, 2], "accepted": [2, 3]},
        {"tried": [4, 2], "accepted": [2, -1]},
        {"tried": [4]},
        [4, 2],
    ],
)
def test_malformed(tmp_path: Path, entry: object) -> None:
    (tmp_path / FILE).write_text(json.dumps({"schema": 1, "temperatures": {"0": entry}}))
    with pytest.raises(DynaSpecError, match="expected counts by temperature"):
        read_table(tmp_path)


def test_counts_at_their_limits(tmp_path: Path) -> None:
    entry = {"tried": [4, 2], "accepted": [0, 2]}
    (tmp_path / FILE).write_text(json.dumps({"schema": 1, "temperatures": {"0.5": entry}}))
    assert read_table(tmp_path) == {0.5: Acceptance((4, 2), (0, 2), {})}


def test_another_schema(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"schema": 2, "temperatures": {}}))
    with pytest.raises(DynaSpecError, match="schema 2"):
        read_table(tmp_path)


def test_vectors_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "vector.json"
    file.write_text("[0.5, 0.25]")
    assert read_vector("0.5,0.25", "--x") == read_vector(str(file), "--x") == (0.5, 0.25)
    for text in ("a,b", "", str(tmp_path / "none.json")):
        with pytest.raises(UsageError, match="--x: expected auto"):
            read_vector(text, "--x")
