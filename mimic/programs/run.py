"""One door to programs: own process group, deadline, killed whole, a bounded tail of what they said."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mimic import leftovers
from mimic.errors import InternalError, LimitReached, ToolMissing

TAIL_LINES = 200
"""Lines of output kept of each stream: enough for a Java stack trace, bounded for a program that never stops."""
LINE_MAX_BYTES = 1 << 20
"""A line is kept in pieces of this size, each of which counts as one of the lines kept."""
GRACE_S = 0.5
"""Between asking a group to end and killing it: bfconvert has nothing worth saving."""

PIPE = subprocess.PIPE
Process = subprocess.Popen[bytes]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended. Exit code 0 proves nothing for bfconvert and showinf: judge the output too."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds_s: float


_waited: set[subprocess.Popen[bytes]] = set()


def stop_all() -> None:
    """Kill every program for whose end somebody waits in ``run``, which then returns."""
    for process in list(_waited):
        log.info("stopped: %s", process.args)
        kill(process)


def cores() -> int:
    """Cores that this process may use: fewer than the machine's in a container or a batch job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spawn(
    argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start ``argv`` in a process group of its own, so that a terminal's Ctrl-C reaches only us and ``kill`` reaches
    every grandchild (the real bfconvert is bash -> bash -> java). Raises ToolMissing when it cannot be started."""
    new_group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    try:
        process = subprocess.Popen(
            [os.fspath(part) for part in argv],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            cwd=cwd,
            start_new_session=sys.platform != "win32",
            creationflags=new_group,
        )
    except OSError as error:
        message = f"{argv[0]} cannot be started: {error.strerror or error}"
        raise ToolMissing(message, remedy="Run 'mimic doctor' to see what is missing") from error
    leftovers.made("group", process.pid)
    return process


def kill(process: subprocess.Popen[bytes], *, grace_s: float = 0.0) -> None:
    """End the process and all its group, at the latest after ``grace_s``, and reap it."""
    if grace_s > 0 and process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    if sys.platform == "win32":
        process.kill()
    else:
        _signal_group(process, signal.SIGKILL)
    process.wait()
    leftovers.gone("group", process.pid)


def kill_group(number: int) -> None:
    """End all processes of a group whose leader was started by a process that is dead; Windows has no groups."""
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(number, signal.SIGKILL)
            ends = time.monotonic() + GRACE_S
            while time.monotonic() < ends:
                os.killpg(number, 0)
                time.sleep(0.01)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            process.terminate()
        else:
            os.killpg(process.pid, number)


class Tail:
    """The last lines of a stream, read by a thread so that the program never blocks on a full pipe.

    ``watch`` is called in that thread with every line as it comes, and must not raise.
    """

    def __init__(self, stream: IO[bytes], *, lines: int = TAIL_LINES, watch: Callable[[str], None] | None = None):
        self._pieces: deque[bytes] = deque(maxlen=lines)
        self._watch = watch
        self._stream = stream
        self._thread = threading.Thread(target=self._drain, daemon=True, name="mimic-tail")
        self._thread.start()

    def _drain(self) -> None:
        while piece := self._stream.readline(LINE_MAX_BYTES):
            self._pieces.append(piece)
            if self._watch is not None:
                self._watch(_text(piece).rstrip("\n"))

    def text(self) -> str:
        """What was kept; waits shortly for the stream's end, which a killed group closes."""
        self._thread.join(2.0)
        return _text(b"".join(self._pieces.copy())).removesuffix("\n")

    def close(self) -> None:
        """End the thread and give the file descriptor back; the program must be dead."""
        self._thread.join(2.0)
        if not self._thread.is_alive():
            self._stream.close()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").replace("\r\n", "\n")


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path,
    deadline_s: float | None = None,
    stdout_lines: int = TAIL_LINES,
    watch: Callable[[str], None] | None = None,
) -> Completed:
    """Run ``argv`` to its end and return what it said. ``watch`` sees each line of stdout as it comes.

    ``stdout_lines`` bounds what is kept of stdout (showinf's XML needs all of it). Raises ToolMissing when the program
    cannot be started and LimitReached when ``deadline_s`` passes; its whole group is dead when this returns or raises.
    """
    started = time.monotonic()
    tails: list[Tail] = []
    try:
        with _running(argv, env=env, cwd=cwd) as process:
            tails.extend(_tails(process, stdout_lines=stdout_lines, watch=watch))
            process.wait(deadline_s)
    except subprocess.TimeoutExpired as error:
        message = f"{Path(argv[0]).name} did not end within {deadline_s:g} s and was stopped"
        raise LimitReached(message, remedy="Raise the deadline, or look at the file with 'mimic info'") from error
    finally:
        said = [tail.text() for tail in tails]
        for tail in tails:
            tail.close()
    stdout, stderr = said
    seconds = time.monotonic() - started
    log.debug("ran %s: exit %d after %.2f s", Path(argv[0]).name, process.returncode, seconds)
    return Completed(tuple(map(str, argv)), process.returncode, stdout, stderr, seconds)


@contextlib.contextmanager
def _running(argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``spawn``, and the end of it and all its group.

    A thread starts it: Ctrl-C interrupts the main thread only, and there it could fall between the start of a process
    and the moment when we know of it.
    """
    begun: list[subprocess.Popen[bytes]] = []
    try:
        with ThreadPoolExecutor(1, "mimic-start") as starter:
            starter.submit(lambda: begun.append(spawn(argv, env=env, cwd=cwd))).result()
        _waited.add(begun[0])
        yield begun[0]
    finally:
        for process in begun:
            _waited.discard(process)
            kill(process, grace_s=GRACE_S)


def _tails(
    process: subprocess.Popen[bytes], *, stdout_lines: int, watch: Callable[[str], None] | None
) -> Iterator[Tail]:
    """One after the other: an interrupt in between must not lose the first."""
    if process.stdout is None or process.stderr is None:
        raise InternalError("a program was started without pipes")
    yield Tail(process.stdout, lines=stdout_lines, watch=watch)
    yield Tail(process.stderr)
