"""The cache of converted GGUF files: right content, whole or absent, rebuilt when broken, safe for
two processes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf import INNER, KV_HEADS, LAYERS, VOCAB, WIDTH

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.gguf_files.model import open_gguf
from dynaspec_cli.gguf_files.summary import GgufSummary, summarise
from dynaspec_cli.target import gguf_cache
from dynaspec_cli.target.cache_dir import MANIFEST, cache_root, read_manifest
from dynaspec_cli.target.demo_package import ChunkedFile
from dynaspec_cli.target.events import LoadProgress, ignore_progress
from dynaspec_cli.target.gguf_cache import converted

calls: list[Path] = []


def inspect_gguf(*pieces: Path) -> GgufSummary:
    return summarise(open_gguf(pieces))


def fake_convert(model: Any, folder: Path, dtype: torch.dtype, progress: Any) -> str:
    """Stands for the reader where a test is about the cache around it."""
    calls.append(folder)
    save_file(
        {"model.embed_tokens.weight": torch.ones(8, 4, dtype=dtype)}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text("{}")
    return "digest"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
    monkeypatch.setattr(gguf_cache, "convert_known", fake_convert)


def convert(path: Path | ChunkedFile, dtype: torch.dtype = torch.float32) -> Path:
    return converted(path, "tiny", dtype, ignore_progress)


def test_a_cache_that_cannot_be_written_to(
    tiny_gguf: Path, cache_dir: Path, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is used; what would have to be made says where to."""
    kept = convert(tiny_gguf)

    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    monkeypatch.setattr("dynaspec_cli.target.cache_dir.write_text", refuse)
    shutil.rmtree(cache_root() / "sources")  # the file's hash can be remembered nowhere
    assert convert(tiny_gguf) == kept
    with pytest.raises(DynaSpecError, match=r"cannot be written to .*Permission.*DYNASPEC_CACHE"):
        convert(tiny_gguf, torch.bfloat16)


def test_conversion_holds_what_transformers_reads(tiny_gguf: Path, cache_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from dynaspec_cli.target.load import load
    from dynaspec_cli.target.native_target import NativeTarget

    events: list[LoadProgress] = []
    target, tokenizer = load(str(tiny_gguf), "float32", "cpu", progress=events.append)
    assert isinstance(target, NativeTarget)
    assert any(e.fraction == 1.0 and "weights" in e.stage for e in events)
    place, file = str(tiny_gguf.parent), tiny_gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        place, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    folder = convert(tiny_gguf)
    stored = load_file(folder / "model.safetensors")
    for key, value in model.state_dict().items():
        assert torch.equal(stored[key], value), key
    rounded = load_file(convert(tiny_gguf, torch.bfloat16) / "model.safetensors")
    assert torch.equal(rounded["lm_head.weight"], stored["lm_head.weight"].bfloat16())
    reference = AutoTokenizer.from_pretrained(place, gguf_file=file)
    for text in ("Hello, world\n", "naïve  東京 😀"):
        assert tokenizer.encode(text) == reference(text)["input_ids"]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_ids == (1,)
    assert tokenizer.bos_id == 0
    ids = tokenizer.encode("some text")
    generated = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=1)[0, -1]
    assert int(target.prefill(target.begin(64), torch.tensor(ids)).argmax()[-1]) == int(generated)
    assert target.head_hash() == json.loads((folder / MANIFEST).read_text())["head_hash"]


def test_second_call_converts_nothing(tiny_gguf: Path, cache_dir: Path, fast: None) -> None:
    first = convert(tiny_gguf)
    assert convert(tiny_gguf) == first
    assert len(calls) == 1
    assert convert(tiny_gguf, torch.bfloat16) != first
    assert len(calls) == 2
    assert sorted(p.name for p in first.iterdir()) == ["config.json", MANIFEST, "model.safetensors"]


def test_changed_source_is_converted_anew(
    tiny_gguf: Path, cache_dir: Path, fast: None, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copy(tiny_gguf, copy)
    assert convert(copy) == convert(tiny_gguf)  # one content, one folder
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    assert convert(copy) != convert(tiny_gguf)
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "manifest"])
def test_broken_cache_is_rebuilt(damage: str, tiny_gguf: Path, cache_dir: Path, fast: None) -> None:
    folder = convert(tiny_gguf)
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(good[:-3])
    elif damage == "flip":
        weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / MANIFEST).write_text('{"files"')
    assert read_manifest(folder) is None
    assert convert(tiny_gguf) == folder
    assert len(calls) == 2
    assert weights.read_bytes() == good


def test_copied_cache_is_trusted_after_hashing(
    tiny_gguf: Path, cache_dir: Path, fast: None
) -> None:
    folder = convert(tiny_gguf)
    os.utime(folder / "model.safetensors", (1, 1))
    assert convert(tiny_gguf) == folder
    assert len(calls) == 1


def test_failed_conversion_leaves_nothing(
    tiny_gguf: Path, cache_dir: Path, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: Any, folder: Path, *rest: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("stopped")

    monkeypatch.setattr(gguf_cache, "convert_known", fail)
    with pytest.raises(RuntimeError, match="stopped"):
        convert(tiny_gguf)
    assert [p for p in (cache_dir / "models").iterdir() if p.is_dir()] == []
    monkeypatch.setattr(gguf_cache, "convert_known", fake_convert)
    assert read_manifest(convert(tiny_gguf)) is not None


def test_leftovers_of_a_killed_conversion_are_removed(
    tiny_gguf: Path, cache_dir: Path, fast: None
) -> None:
    folder = convert(tiny_gguf)
    shutil.rmtree(folder)
    stale = folder.parent / f"{folder.name}.tmp-1"
    stale.mkdir()
    (stale / "model.safetensors").write_bytes(b"half")
    convert(tiny_gguf)
    assert not stale.exists()


def _slow_convert(model: Any, folder: Path, dtype: torch.dtype, progress: Any) -> str:
    import time

    fake_convert(model, folder, dtype, progress)
    with (folder.parent / "count").open("a") as file:
        file.write(".")
    time.sleep(0.5)
    return "digest"


def _convert_in_process(path: str, start: Any) -> None:
    gguf_cache.convert_known = _slow_convert
    start.wait()
    folder = convert(Path(path))
    assert read_manifest(folder) is not None


def test_two_processes_convert_once(tiny_gguf: Path, cache_dir: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Event()
    workers = [
        context.Process(target=_convert_in_process, args=(str(tiny_gguf), start)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (cache_dir / "models" / "count").read_text() == "."


def test_disk_without_room_before(
    tiny_gguf: Path, cache_dir: Path, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tiny_gguf.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DynaSpecError, match=r"No space left .* DYNASPEC_CACHE_DIR .* GB free"):
        convert(tiny_gguf)
    assert calls == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_disk_without_room_while_writing(
    error: Exception, tiny_gguf: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(gguf_cache, "convert_known", fail)
    with pytest.raises(DynaSpecError, match="No space left for the converted model") as caught:
        convert(tiny_gguf)
    assert "\n" not in str(caught.value)
    assert [p for p in (cache_dir / "models").iterdir() if p.is_dir()] == []


def test_cache_folder_that_cannot_be_made(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DYNASPEC_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(DynaSpecError, match=r"cannot be made .* set DYNASPEC_CACHE_DIR"):
        convert(tiny_gguf)


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DYNASPEC_CACHE_DIR", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "dynaspec"
    monkeypatch.setenv("DYNASPEC_CACHE_DIR", str(tmp_path / "mine"))
    assert cache_root() == tmp_path / "mine"


def pieces(path: Path, folder: Path, count: int = 3) -> ChunkedFile:
    """``path`` cut into pieces, as the default model's packages carry it."""
    import hashlib

    data = path.read_bytes()
    step = -(-len(data) // count)
    files = []
    for i in range(count):
        files.append(folder / f"part{i}")
        files[-1].write_bytes(data[i * step : (i + 1) * step])
    return ChunkedFile(tuple(files), hashlib.sha256(data).hexdigest())


def test_pieces_are_joined_and_not_kept(
    tiny_gguf: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def look(model: Any, *rest: Any) -> str:
        seen.append(model.tensors)
        return fake_convert(model, *rest)

    monkeypatch.setattr(gguf_cache, "convert_known", look)
    folder = convert(pieces(tiny_gguf, tmp_path))
    whole = open_gguf((tiny_gguf,)).tensors
    assert list(seen[0]) == list(whole)
    assert all((seen[0][name].raw == whole[name].raw).all() for name in whole)
    assert list(cache_dir.rglob("*.gguf")) == []
    assert folder == convert(tiny_gguf)


def test_damaged_pieces_are_refused(
    tiny_gguf: Path, cache_dir: Path, tmp_path: Path, fast: None
) -> None:
    chunked = pieces(tiny_gguf, tmp_path)
    chunked.chunks[1].write_bytes(b"\0" * chunked.chunks[1].stat().st_size)
    with pytest.raises(DynaSpecError, match="package is damaged"):
        convert(chunked)
    assert calls == []


def test_inspection_counts_the_weights(tiny_gguf: Path) -> None:
    summary = inspect_gguf(tiny_gguf)
    kv = WIDTH // 4 * KV_HEADS
    layer = 2 * WIDTH + 2 * WIDTH * WIDTH + 2 * kv * WIDTH + 3 * INNER * WIDTH
    assert summary.architecture == "llama"
    assert summary.num_weights == 2 * VOCAB * WIDTH + WIDTH + LAYERS * layer
    assert (summary.vocab_size, summary.hidden_size) == (VOCAB, WIDTH)
    assert summary.kv_width == 2 * LAYERS * kv


@pytest.mark.parametrize(
    ("keys", "width"),
    [
        ({"head_count_kv": (1, 3)}, (1 + 3) * 2 * 8),  # one number a layer
        ({"head_count_kv": (1, 3, 1)}, None),
        ({"head_count_kv": 2, "key_length": 16, "value_length": 4}, 2 * 2 * (16 + 4)),
        ({}, 2 * 4 * 2 * 8),
        ({"block_count": None}, None),
    ],
)
def test_sizes_of_the_kv_cache_from_the_keys(
    keys: dict[str, Any], width: int | None, tmp_path: Path
) -> None:
    import gguf
    import numpy as np

    path = tmp_path / "shape.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"block_count": 2, "embedding_length": 32, "head_count": 4} | keys
    if sizes["block_count"] is not None:
        writer.add_block_count(sizes["block_count"])
    writer.add_embedding_length(sizes["embedding_length"])
    writer.add_head_count(sizes["head_count"])
    for name in ("head_count_kv", "key_length", "value_length"):
        if name in sizes:
            getattr(writer, f"add_{name}")(sizes[name])
    writer.add_tensor("token_embd.weight", np.zeros((10, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert inspect_gguf(path).kv_width == width


def test_inspection_of_a_file_in_pieces(tiny_gguf: Path, tmp_path: Path) -> None:
    data, size = tiny_gguf.read_bytes(), tiny_gguf.stat().st_size
    cut = size - 4000  # the header is in the first piece
    chunks = (tmp_path / "a", tmp_path / "b")
    chunks[0].write_bytes(data[:cut])
    chunks[1].write_bytes(data[cut:])
    assert inspect_gguf(*chunks) == inspect_gguf(tiny_gguf)
    chunks[1].write_bytes(data[cut:-1])
    with pytest.raises(DynaSpecError, match="is truncated"):
        inspect_gguf(*chunks)


@pytest.mark.parametrize("keep", [6, 40, 3000, -1])
def test_truncated_file(
    keep: int, tiny_gguf: Path, cache_dir: Path, tmp_path: Path, fast: None
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:keep])
    with pytest.raises(DynaSpecError, match="is truncated"):
        convert(cut)
    assert calls == []


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (4, 77, "GGUF version 77, expected 2 or 3"),
        (15, 255, "is corrupt .*tensors and"),
        (0, 0, "no GGUF file .it starts with"),
    ],
)
def test_corrupt_file(
    at: int, value: int, message: str, tiny_gguf: Path, cache_dir: Path, tmp_path: Path, fast: None
) -> None:
    bad = tmp_path / "bad.gguf"
    data = bytearray(tiny_gguf.read_bytes())
    data[at] = value
    bad.write_bytes(data)
    with pytest.raises(DynaSpecError, match=message) as caught:
        convert(bad)
    assert "\n" not in str(caught.value)


def test_unknown_architecture(tiny_gguf: Path, cache_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_gguf.read_bytes().replace(b"llama", b"lLaMa"))
    with pytest.raises(DynaSpecError, match="transformers cannot read this GGUF file") as caught:
        convert(other)
    assert "\n" not in str(caught.value)
