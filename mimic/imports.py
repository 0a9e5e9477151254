"""Imports that take long, out of the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module


@contextmanager
def behind(*names: str) -> Iterator[None]:
    """Import modules in a thread of their own while the body runs, and wait for it at the end.

    For what is needed after it only. Whoever imports a module that is under way waits for that one, and one that cannot
    be imported fails there: where it is needed.
    """

    def load() -> None:
        for name in names:
            with suppress(ImportError):
                import_module(name)

    thread = threading.Thread(target=load, name="mimic-import")
    thread.start()
    try:
        yield
    finally:
        thread.join()
