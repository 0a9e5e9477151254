"""Freed memory kept for the next band of pixels, instead of given back to the system and asked for again.

glibc gives large blocks back as soon as they are freed, and the system clears every page before it gives it out again:
converting a TIFF of 84 Mpx that way took 200 000 page faults, half a second of 1.2. Kept, it takes 10 000. No more
memory is held at any time than there was at the peak. Elsewhere than on glibc nothing is done.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Parameters of mallopt(3)."""
DEFAULTS = ((TRIM_THRESHOLD, 128 << 10), (MMAP_THRESHOLD, 128 << 10), (ARENA_MAX, 0))
KEPT = ((TRIM_THRESHOLD, 1 << 30), (MMAP_THRESHOLD, 32 << 20), (ARENA_MAX, 1))
"""32 MiB is the most that glibc takes for a block not to be mapped on its own. One arena: those of threads are given
back whole whenever they are empty."""


@contextmanager
def kept() -> Iterator[None]:
    """While this lasts freed memory stays in the process; after it what is free is given back."""
    library = _glibc()
    if library is None:
        yield
        return
    _set(library, KEPT)
    try:
        yield
    finally:
        _set(library, DEFAULTS)
        library.malloc_trim(0)


def _set(library: Any, parameters: tuple[tuple[int, int], ...]) -> None:
    for parameter, value in parameters:
        library.mallopt(parameter, value)


@cache
def _glibc() -> Any:
    """The C library, if it is one that has these functions."""
    try:
        library = ctypes.CDLL(None)
        _ = library.gnu_get_libc_version, library.mallopt, library.malloc_trim
    except (OSError, AttributeError, TypeError):  # not glibc; on Windows None is not a library
        return None
    return library
