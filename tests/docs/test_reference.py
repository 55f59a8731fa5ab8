"""Pages made from the code are current."""

from __future__ import annotations

from docs.python_reference import PAGE, reference


def test_the_python_page_is_what_the_docstrings_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "docs/guide/python.md is not current; run: python -m tests.docs.python_reference"
    )
