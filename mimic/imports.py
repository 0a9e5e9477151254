"""Imports that take long, out of the way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module


def begin(*names: str, then: Callable[[], object] | None = None) -> threading.Thread:
    """Import modules in a thread of their own, and then make a call.

    Whoever imports a module that is under way waits for that one, and one that cannot be imported fails there: where it
    is needed.
    """

    def load() -> None:
        for name in names:
            with suppress(ImportError):
                import_module(name)
        if then is not None:
            then()

    thread = threading.Thread(target=load, name="mimic-import")
    thread.start()
    return thread


@contextmanager
def behind(*names: str, then: Callable[[], object] | None = None) -> Iterator[None]:
    """``begin`` while the body runs, and wait for it at the end. For what is needed after it only."""
    thread = begin(*names, then=then)
    try:
        yield
    finally:
        thread.join()
