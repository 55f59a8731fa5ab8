"""Memory of a process that answers many requests.

glibc keeps what is freed for the next allocation. Rows of logits are megabytes each, of ever other
numbers of rows, so what a request leaves is seldom what the next one needs, and a process grows for
as long as new shapes come: with a vocabulary of 262,144 to twice its size within a hundred
requests, none of it in use. Between two requests it is given back, which takes milliseconds.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


@cache
def _libc() -> Any:
    """glibc, or None elsewhere."""
    try:
        library = ctypes.CDLL("libc.so.6")
        return library if hasattr(library, "malloc_trim") else None
    except OSError:
        return None


def give_back() -> None:
    """Give memory that is free, in any thread's part of the heap, back to the system."""
    library = _libc()
    if library is not None:
        library.malloc_trim(0)
