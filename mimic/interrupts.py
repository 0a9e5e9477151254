"""An interrupt that cannot get lost. Standard library only.

Python raises KeyboardInterrupt wherever the main thread happens to be. Where that is a callback that C calls (a log
message of libvips, through cffi) or a finalizer, it is printed or dropped, and work goes on as if nobody had asked. So
it is remembered, too, and what works asks between its steps.
"""

from __future__ import annotations

import threading
from typing import NoReturn

_asked = threading.Event()


def interrupt() -> NoReturn:
    """What a signal's handler does. Raises KeyboardInterrupt."""
    _asked.set()
    raise KeyboardInterrupt


def check() -> None:
    """Raises KeyboardInterrupt when the one before got lost."""
    if _asked.is_set():
        raise KeyboardInterrupt


def forget() -> None:
    """A new command: what was asked of one before is done."""
    _asked.clear()
