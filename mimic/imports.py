"""Imports that take long, out of the way of Ctrl-C."""

from __future__ import annotations

import threading
from importlib import import_module


def load(*names: str) -> None:
    """Import modules in a thread of their own, and wait.

    A Ctrl-C interrupts the main thread; in the middle of pydantic's compiled code, which makes classes as ome-types is
    imported, it was lost: the conversion went on.
    """
    thread = threading.Thread(target=lambda: [import_module(name) for name in names], daemon=True, name="mimic-import")
    thread.start()
    thread.join()
