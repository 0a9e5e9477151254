"""JPEG-XR decoded in child processes: pixels out, or a clear error where jxrlib crashes.

    absent --first picture--> idle --decode--> busy --answer--> idle
                                                 +--crash, hang, kill--> gone

A child serves one thread at a time; there are as many as threads that decode at once. They are kept for the next
slide, until ``shutdown`` or the end of the process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mimic import leftovers
from mimic.errors import BadInput, ToolFailed
from mimic.programs import bfclient, jvm, shm
from mimic.programs.run import Tail, kill, spawn
from mimic.settings import Settings

STALL_S = 600.0
"""No picture of MAX_PX takes ten minutes: a decoder that long at it hangs."""
LOOK_S = 1.0
"""Between two looks at whether it hangs."""
CODED_PART = 4
"""A child's memory has room for data of a quarter of a picture's bytes: scanners' take less. Others get what they
take."""
PAGE_BYTES = 4096
MAX_PX = 64 << 20
"""Largest picture: a scanner's blocks have 1 to 6 million pixels."""
COPY_AGAIN = "Copy the file again from where it was made"

log = logging.getLogger(__name__)


class _Child:
    """One process and the memory that it writes to. Used by one thread at a time; once dead it stays dead."""

    def __init__(self, settings: Settings, room_bytes: int) -> None:
        self.room_bytes = room_bytes
        place = Path(tempfile.gettempdir())
        argv: list[str | Path] = [sys.executable, "-P", "-m", "mimic.programs.jxrserver"]
        env = jvm.environment(settings, place) | {"OPENBLAS_NUM_THREADS": "1"}  # threads that numpy would start in vain
        self._process = spawn(argv, env=env, cwd=place, stdin=subprocess.PIPE)
        self._stderr = Tail(cast(Any, self._process.stderr))
        self._asked_s: float | None = None
        self._late = False
        self._gone = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="mimic-jxr-watch").start()
        self._ask(b"")  # the child is up: the memory's name is there for a moment only, also if we are killed
        try:
            self._share()
        except ToolFailed:
            self.close()
            raise

    def _share(self) -> None:
        path, descriptor = shm.reserve(self.room_bytes)
        try:
            self._map = mmap.mmap(descriptor, self.room_bytes)
            self._ask(json.dumps(str(path)).encode() + b"\n")
        finally:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            leftovers.gone("file", path)

    def _watch(self) -> None:
        """Kill a process that hangs. One thread for all pictures: to start one for each, and wait until it runs, takes
        milliseconds where all cores are busy."""
        while not self._gone.wait(min(LOOK_S, STALL_S)):
            asked_s = self._asked_s
            if asked_s is not None and time.monotonic() - asked_s > STALL_S:
                self._late = True
                kill(self._process)
                return

    def _ask(self, request: bytes) -> dict[str, str]:
        """The answer to one request. Raises ToolFailed when the child dies over it, or takes too long."""
        self._asked_s = time.monotonic()
        try:
            with contextlib.suppress(OSError):  # of a dead child: there is no answer then
                stdin = cast(Any, self._process.stdin)
                stdin.write(request)
                stdin.flush()
            line = cast(Any, self._process.stdout).readline()
            return cast(dict[str, str], json.loads(line))
        except ValueError as error:
            self.close()
            raise self._death(late=self._late) from error
        finally:
            self._asked_s = None

    def _death(self, *, late: bool) -> ToolFailed:
        code, said = self._process.returncode, self._stderr.text()
        log.debug("jpeg-xr process ended with %s: %s", code, said)
        if late:
            return ToolFailed("the JPEG-XR decoder gave no answer and was stopped", remedy="The file may be damaged")
        if code == -signal.SIGKILL:
            text = "the JPEG-XR decoder was killed from outside, as systems do that run out of memory"
            return ToolFailed(text, remedy="Close other programs, or give fewer --threads")
        if code is not None and code < 0:
            return ToolFailed(f"the JPEG-XR decoder crashed ({code}), as it does on damaged data", remedy=COPY_AGAIN)
        last = (said.splitlines() or ["no message"])[-1][:200]
        return ToolFailed(f"the JPEG-XR decoder ended ({code}): {last}", remedy="Run 'mimic doctor'")

    def decode(self, data: bytes | bytearray, width_px: int, height_px: int) -> NDArray[np.uint8]:
        """Pixels, valid until the next call."""
        at, self._map[: len(data)] = _paged(len(data)), data
        wanted = {"size": len(data), "at": at, "width": width_px, "height": height_px}
        answer = self._ask(json.dumps(wanted).encode() + b"\n")
        if "error" in answer:
            raise BadInput(f"its JPEG-XR data are damaged ({answer['error']})", remedy=COPY_AGAIN)
        size = width_px * height_px * 3
        return np.frombuffer(self._map, np.uint8, size, at).reshape(height_px, width_px, 3)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Kill the process; whoever waits for its answer fails."""
        self._gone.set()
        kill(self._process)  # before its stdin is closed: another thread may be stuck in writing to it
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                cast(Any, stream).close()
        self._stderr.close()


_idle: list[_Child] = []
_all: list[_Child] = []
_guard = threading.Lock()


@contextmanager
def decoded(data: bytes | bytearray, size_px: tuple[int, int], settings: Settings) -> Iterator[NDArray[np.uint8]]:
    """RGB pixels of ``size_px`` (width, height), which ``data`` must have; valid within the ``with`` only.

    Raises BadInput for damaged data, ToolFailed when the decoder crashes or hangs over it.
    """
    width_px, height_px = size_px
    size_bytes = width_px * height_px * 3
    child = _lease(settings, _paged(max(len(data), size_bytes // CODED_PART)) + size_bytes)
    try:
        yield child.decode(data, width_px, height_px)
    finally:
        _release(child)


def _paged(size_bytes: int) -> int:
    """A multiple of a page."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


def _lease(settings: Settings, size_bytes: int) -> _Child:
    with _guard:
        for child in list(_idle):
            _idle.remove(child)
            if child.alive and child.room_bytes >= size_bytes:
                return child
            _all.remove(child)
            child.close()
    # whole steps, so that blocks of slightly different sizes are served by one child
    child = _Child(settings, -(-size_bytes >> 20) << 20)
    with _guard:
        _all.append(child)
    return child


def _release(child: _Child) -> None:
    with _guard:
        if child.alive and child in _all:
            _idle.append(child)
        elif child in _all:
            _all.remove(child)


def shutdown() -> None:
    """Kill all children."""
    while _all:
        _all.pop().close()
    _idle.clear()


bfclient.others.append(shutdown)
