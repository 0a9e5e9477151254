"""The time limit of one conversion: asked between steps, and forced on what hangs.

    running --limit--> over: the next step stops --GRACE_S--> Bio-Formats and other programs are killed

Only what is not Python can be killed. Its end wakes whoever waits for it, and that failure is told as the limit.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from types import TracebackType

from mimic import interrupts
from mimic.errors import LimitReached, MimicError, ToolFailed
from mimic.programs import bfclient, run

GRACE_S = 1.0
"""A conversion that still moves stops at its next step by itself, and leaves the process's one JVM to other slides."""
KILL_S = 10.0
"""For a process to die that was killed; one that waits for a disk does not."""

log = logging.getLogger(__name__)


class Deadline:
    """A context in which one slide is converted; ``limit_s`` None: it may take as long as it wants."""

    def __init__(self, limit_s: float | None, path: Path) -> None:
        self._limit_s = limit_s
        self._path = path
        self._started = time.monotonic()
        self._timer: threading.Timer | None = None

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self._limit_s is not None and time.monotonic() - self._started > self._limit_s

    def check(self) -> None:
        """Raises LimitReached when the time is up, and KeyboardInterrupt when one before got lost."""
        interrupts.check()
        if self.over:
            raise self._reached()

    def _reached(self) -> LimitReached:
        return LimitReached(f"not done within {self._limit_s:g} s", self._path, "Raise the deadline")

    def __enter__(self) -> Deadline:
        self._started = time.monotonic()
        if self._limit_s is not None:
            wait_s = min(max(self._limit_s, 0) + GRACE_S, threading.TIMEOUT_MAX)
            self._timer = threading.Timer(wait_s, self._force)
            self._timer.daemon = True
            self._timer.start()
        return self

    def _force(self) -> None:
        log.warning("still at work %g s after its deadline: its programs are stopped", GRACE_S)
        run.stop_all()
        bfclient.stop_all(ToolFailed("the Bio-Formats process was stopped: the time of a slide was up"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Whatever fails after the time is up fails for it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join(KILL_S)
        if self.over and isinstance(error, MimicError) and not isinstance(error, LimitReached):
            raise self._reached() from error
