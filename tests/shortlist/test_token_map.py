"""Token maps and d2t vectors: formats, conventions and every bad input."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from dynaspec_cli.checkpoints.token_map import load_token_map, save_token_map
from dynaspec_cli.checkpoints.vocab_map import VocabMap
from dynaspec_cli.config import ShortlistConfig
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import ShortlistQuery
from dynaspec_cli.shortlist import registry
from shortlist.tiny import TinyTarget

IDS = [7, 3, 11, 0, 90]


@pytest.mark.parametrize("suffix", [".pt", ".json", ".txt"])
def test_written_maps_read_back_in_order(tmp_path, suffix):
    path = tmp_path / f"map{suffix}"
    save_token_map(path, torch.tensor(IDS))
    assert load_token_map(path, 97).ids.tolist() == IDS
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_saved_tensor_is_read_as_well_as_a_list(tmp_path, dtype):
    path = tmp_path / "freq_5.pt"
    torch.save(torch.tensor(IDS, dtype=dtype), path)
    assert load_token_map(path, 97).ids.tolist() == IDS


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def bad_files(tmp_path):
    def saved(name, value):
        torch.save(value, tmp_path / name)
        return tmp_path / name

    def text(name, value):
        (tmp_path / name).write_bytes(value)
        return tmp_path / name

    pickled = tmp_path / "evil.pt"
    pickled.write_bytes(pickle.dumps(Evil(), protocol=2))
    whole = saved("whole.pt", list(range(90)))
    return [
        (saved("duplicate.pt", [1, 2, 1]), "token id 1 occurs 2 times"),
        (saved("range.pt", [1, 97]), r"id 97 \(entry 1\) is outside.*97 tokens"),
        (saved("negative.pt", [-1]), "id -1"),
        (saved("float.pt", torch.tensor([1.0, 2.0])), "expected integer"),
        (saved("matrix.pt", torch.tensor([[1, 2]])), "flat list"),
        (saved("dict.pt", {"a": 1}), "got dict"),
        (saved("mixed.pt", [1, "2"]), "entry 1"),
        (saved("empty.pt", []), "at least one"),
        (saved("evil2.pt", Evil()), "refused"),
        (pickled, "refused|damaged"),
        (text("cut.pt", whole.read_bytes()[:100]), "damaged|refused"),
        (text("a.json", b"{"), "not valid JSON"),
        (text("b.json", b'{"ids": [1]}'), "got dict"),
        (text("c.json", b"[1, true]"), "entry 1"),
        (text("d.json", json.dumps([2**70]).encode()), "no token id"),
        (text("e.txt", b"1\ntwo\n"), "line 2"),
        (text("f.txt", b"\xff\xfe"), "not UTF-8"),
        (text("g.txt", b"\n"), "at least one"),
        (text("h.csv", b"1\n"), "expected one of"),
        (tmp_path / "none.pt", "no such file"),
    ]


def test_bad_files_are_refused_in_one_line(tmp_path):
    for path, message in bad_files(tmp_path):
        with pytest.raises(DynaSpecError, match=message) as caught:
            load_token_map(path, 97)
        assert "\n" not in str(caught.value), path


def test_a_map_file_is_a_shortlist_and_a_size_takes_its_prefix(tmp_path):
    path = tmp_path / "freq.pt"
    torch.save(IDS, path)
    target = TinyTarget(97)
    for size, members in ((None, IDS), (2, IDS[:2])):
        shortlist = registry.create(ShortlistConfig(str(path), size), target)
        state = shortlist.begin(torch.tensor([1]), target.output(torch.zeros(1, 8)))
        query = ShortlistQuery(1, torch.zeros(1, 8), torch.tensor([1]))
        inside = shortlist.contains(state, shortlist.select(state, query), torch.arange(97))
        assert set(inside.nonzero().squeeze(1).tolist()) == set(members)
    with pytest.raises(DynaSpecError, match="holds 5"):
        registry.create(ShortlistConfig(str(path), 6), target)


def test_a_map_of_another_vocabulary_is_refused(tmp_path):
    path = tmp_path / "freq.pt"
    torch.save(list(range(97)), path)
    with pytest.raises(DynaSpecError, match="made for another model"):
        registry.create(ShortlistConfig(str(path)), TinyTarget(50))


def test_offsets_and_absolute_ids_are_told_apart():
    ids = torch.tensor([3, 7, 11, 90])
    vocab = VocabMap.from_absolute(ids, 97)
    assert VocabMap.from_offsets(torch.tensor([3, 6, 9, 87]), 97).ids.equal(ids)
    assert vocab.mask().nonzero().squeeze(1).equal(ids)
    # The identity is zeros under offsets, arange under absolute ids.
    assert VocabMap.from_offsets(torch.zeros(5, dtype=torch.int64), 97).ids.tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_a_heads_map_is_checked_against_its_mask():
    ids = torch.tensor([3, 7, 11, 90])
    vocab = VocabMap.from_absolute(ids, 97)
    d2t, t2d = ids - torch.arange(4), vocab.mask()
    assert VocabMap.from_head(d2t, t2d, 4, 97).ids.equal(ids)
    assert VocabMap.from_head(d2t, t2d.to(torch.uint8), 4, 97).ids.equal(ids)
    assert VocabMap.from_head(d2t, None, 4, 97).ids.equal(ids)
    for wrong, mask, says in (
        (ids, t2d, "disagrees with t2d about token"),
        (d2t, ~t2d, "disagrees with t2d about token 0"),
        (d2t[:3], t2d, "each of the head's 4 rows"),
        (d2t, t2d[:96], "each of the target's 97 tokens"),
        (torch.zeros(4, dtype=torch.int64), None, "all zeros"),
        (torch.zeros(4, dtype=torch.int64), t2d, "all zeros"),
    ):
        with pytest.raises(DynaSpecError, match=says):
            VocabMap.from_head(wrong, mask, 4, 97)
    # The first tokens are a map too, where the mask says so; all of them are the identity.
    first = torch.arange(97) < 4
    zeros = torch.zeros(97, dtype=torch.int64)
    assert VocabMap.from_head(zeros[:4], first, 4, 97).ids.tolist() == [0, 1, 2, 3]
    assert VocabMap.from_head(zeros, None, 97, 97).is_identity
    assert not VocabMap.from_head(zeros[:4], first, 4, 97).is_identity
