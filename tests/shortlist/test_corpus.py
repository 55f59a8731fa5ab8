"""The corpus reader: formats, held-out split, bad input."""

from __future__ import annotations

import gzip
import json

import pytest

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.training.corpus import CorpusText, read_corpus


def write(path, text, packed=False):
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


def test_reads_paragraphs_json_lines_and_packed_json_lines(tmp_path):
    rows = [{"text": "eins", "task": "math"}, {"text": "zwei", "lang": "de"}, {"text": "drei"}]
    lines = "\n".join(json.dumps(r) for r in rows)
    files = [
        write(tmp_path / "a.txt", "one\nmore\n\n\n two \n"),
        write(tmp_path / "b.jsonl", lines),
        write(tmp_path / "c.jsonl.gz", lines, packed=True),
    ]
    found = [(t.text, t.group) for t in read_corpus(files)]
    assert found[:2] == [("one\nmore", "a"), ("two", "a")]
    assert found[2:5] == [("eins", "math"), ("zwei", "de"), ("drei", "b")]
    assert found[5:] == [("eins", "math"), ("zwei", "de"), ("drei", "c")]


def test_unusable_lines_among_usable_ones_are_skipped(tmp_path):
    text = 'not json\n[1]\n{"text": 3}\n{"text": "  "}\n{"text": "good"}\n'
    assert [t.text for t in read_corpus([write(tmp_path / "a.jsonl", text)])] == ["good"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "empty"),
        ("a.jsonl", b"", "empty"),
        ("a.txt", b"\n \n\n", "no usable line"),
        ("a.jsonl", b'{"txt": "x"}\nnonsense\n', "no usable line"),
        ("a.jsonl", b'{"text": ""}\n', "no usable line"),
        ("a.txt", b"caf\xe9 au lait\n", "not UTF-8"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "not UTF-8"),
        ("a.jsonl.gz", b"not packed", "could not be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99)[:-12], "could not be read"),
        ("a.csv", b"text\n", "expected one of"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DynaSpecError, match=message) as caught:
        list(read_corpus([path]))
    assert "\n" not in str(caught.value)


def test_missing_files_and_no_files_are_refused(tmp_path):
    with pytest.raises(DynaSpecError, match="no such corpus file"):
        list(read_corpus([tmp_path / "none.txt"]))
    with pytest.raises(DynaSpecError, match="--corpus"):
        list(read_corpus([]))


def test_held_out_part_depends_on_the_text_alone_and_has_the_stated_share():
    texts = [CorpusText(f"text {i}", "g") for i in range(5000)]
    held = [t.held_out(0.1) for t in texts]
    assert held == [CorpusText(t.text, "other").held_out(0.1) for t in texts]
    assert 400 < sum(held) < 600
    assert all(t.held_out(0.2) for t, h in zip(texts, held, strict=True) if h)
    assert not any(t.held_out(0.0) for t in texts)


def test_half_a_character_is_told_with_its_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "good"}\n{"text": "bad \\ud83d"}\n')
    with pytest.raises(DynaSpecError, match=r"a\.jsonl: line 2 holds half a character"):
        list(read_corpus([path]))
