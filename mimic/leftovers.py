"""What would stay behind if this process were killed: told, as it comes and goes, to whoever would clean up after it.

A worker's supervisor listens (workers.py); nobody does in a process that cleans up after itself. Standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal

Kind = Literal["group", "folder", "file", "empty", "output"]
"""A process group by its number; a folder with all that is in it; a file; a folder that goes when it is empty; an
output that is about to get its name, which stays."""
Listener = Callable[[Kind, str, bool], None]


class _Ear:
    """Who listens: one for the process, as what is killed is the process."""

    listener: Listener | None = None


def listen(listener: Listener) -> None:
    """Call ``listener`` with (kind, what, whether it is there now), from whichever thread makes or removes it."""
    _Ear.listener = listener


def made(kind: Kind, what: str | int | os.PathLike[str]) -> None:
    """``what`` is there from now on."""
    _tell(kind, what, True)


def gone(kind: Kind, what: str | int | os.PathLike[str]) -> None:
    """``what`` need not be looked after any more."""
    _tell(kind, what, False)


def _tell(kind: Kind, what: str | int | os.PathLike[str], there: bool) -> None:
    if _Ear.listener is not None:
        _Ear.listener(kind, str(what) if isinstance(what, int) else os.path.abspath(what), there)  # noqa: PTH100
