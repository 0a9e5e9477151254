"""Our end of the JVM's child process: requests in, answers or clear errors out.

    absent --first request--> running --exit, crash, hang, kill--> dead --next request--> running (a new child)

One child serves the whole process (a JVM start costs a second); ``shutdown`` ends it, as does the end of the process.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import logging
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue
from typing import Any, cast

from mimic.errors import BadInput, MimicError, ToolFailed, Unsupported
from mimic.programs import jvm
from mimic.programs.run import Tail, kill, spawn
from mimic.settings import Settings

STALL_S = 600.0
"""No single box takes ten minutes: a codec that long in one call hangs."""
START_S = 120.0
"""A JVM start takes one second idle; two minutes on a machine that swaps."""
OUT_OF_MEMORY = 3
"""Exit code of -XX:+ExitOnOutOfMemoryError."""
SHM = Path("/dev/shm")
CLOSING = "the Bio-Formats process was stopped"

Json = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """A result and what Bio-Formats logged at WARN or above since the answer before (of any thread)."""

    result: Json
    warnings: tuple[str, ...]


class Server:
    """One child process. Thread-safe; once dead it stays dead."""

    def __init__(self, settings: Settings, threads: int) -> None:
        self.threads = threads
        self.settings = settings
        self._tmp = Path(tempfile.mkdtemp(prefix="mimic-jvm-"))
        self._waiting: dict[int, Future[Json]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._process = spawn(
                self._argv(), env=jvm.environment(settings, self._tmp), cwd=self._tmp, stdin=subprocess.PIPE
            )
        except MimicError:
            shutil.rmtree(self._tmp, ignore_errors=True)
            raise
        self._stderr = Tail(cast(Any, self._process.stderr))
        self._reader = threading.Thread(target=self._listen, daemon=True, name="mimic-bf-answers")
        self._reader.start()

    def _argv(self) -> list[str | Path]:
        java = jvm.find_java(self.settings)
        heap_mb = self.settings.heap_mb or jvm.HEAP_MB
        flags = jvm.java_flags(java, tmp=self._tmp, heap_mb=heap_mb, cpus=self.threads)
        jar = jvm.find_bioformats(self.settings)
        module = "mimic.programs.bfserver"
        return [sys.executable, "-P", "-m", module, jvm.jvm_library(java), jar, str(self.threads), *flags]

    @property
    def alive(self) -> bool:
        """Whether requests may be sent."""
        return not self._closed and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def ask(self, op: str, path: Path | None = None, **request: object) -> Answer:
        """Send one request and wait for its answer.

        Raises BadInput or Unsupported when Bio-Formats refuses ``path``, ToolFailed when the child died or hung.
        """
        number = next(self._numbers)
        answer: Future[Json] = Future()
        with self._lock:
            if self._closed:
                raise ToolFailed(CLOSING, path)
            self._waiting[number] = answer
        self._send({"id": number, "op": op, **request})
        try:
            reply = answer.result(START_S if op == "hello" else STALL_S)
        except FutureTimeout as error:
            self.close()
            remedy = "The file may be damaged, or of a kind Bio-Formats cannot decode"
            raise ToolFailed("Bio-Formats gave no answer and was stopped", path, remedy) from error
        except ToolFailed as error:
            raise ToolFailed(error.message, path, error.remedy) from error
        warnings = tuple(reply.get("warnings", ()))
        if "error" in reply:
            raise _refusal(reply["error"], path)
        return Answer(reply["result"], warnings)

    def _send(self, request: Json) -> None:
        line = json.dumps(request).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError, ValueError):  # a dead child answers through _listen
            stdin = cast(Any, self._process.stdin)
            stdin.write(line)
            stdin.flush()

    def _listen(self) -> None:
        for line in cast(Any, self._process.stdout):
            reply = json.loads(line)
            waiting = self._waiting.pop(reply["id"], None)
            if waiting is not None:
                waiting.set_result(reply)
        self._process.wait()
        self._fail_all()

    def _fail_all(self) -> None:
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(self._death())

    def _death(self) -> ToolFailed:
        code, said = self._process.returncode, self._stderr.text()
        log.debug("bio-formats process ended with %s: %s", code, said)
        if code == OUT_OF_MEMORY or "OutOfMemoryError" in said:
            return ToolFailed("Bio-Formats ran out of memory", remedy="Set MIMIC_HEAP_MB to more, e.g. 2000")
        if code is not None and code < 0:
            text = f"Bio-Formats crashed (signal {-code}), as its native codecs do on damaged data"
            return ToolFailed(text, remedy="Copy the file again from where it was made; 'mimic doctor' tests the tools")
        last = next((line for line in reversed(said.splitlines()) if line.strip(" #")), "no message")
        return ToolFailed(f"the Bio-Formats process ended ({code}): {last[:200]}", remedy="Run 'mimic doctor'")

    def close(self) -> None:
        """Kill the child with its group and remove its private folder. Every waiting request fails."""
        with self._lock:
            self._closed = True
        with contextlib.suppress(OSError):
            cast(Any, self._process.stdin).close()
        kill(self._process)
        self._reader.join(5.0)
        self._stderr.close()
        cast(Any, self._process.stdout).close()
        shutil.rmtree(self._tmp, ignore_errors=True)


def _refusal(error: Json, path: Path | None) -> MimicError:
    message = " ".join(str(error["message"]).split())[:300]
    if path is not None:
        message = message.replace(str(path), path.name)
    if error["kind"] == "unsupported":
        text = f"Bio-Formats does not know this kind of file ({message or error['exception']})"
        return Unsupported(text, path, "See the list of formats in the README")
    text = f"Bio-Formats cannot read it: {message or error['exception']}"
    return BadInput(text, path, "The file may be damaged or incomplete: copy it again from where it was made")


class SharedBlock:
    """Memory that we and the child both map, cut into equal slots for boxes. Has no name once both have it."""

    def __init__(self, server: Server, *, slots: int, slot_bytes: int) -> None:
        self._slot_bytes = slot_bytes
        size = slots * slot_bytes
        path, descriptor = _reserve(size)
        try:
            self._map = mmap.mmap(descriptor, size)
            server.ask("share", file=str(path))
        finally:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
        self._free: LifoQueue[int] = LifoQueue()
        for slot in range(slots):
            self._free.put(slot)

    def lease(self) -> int:
        """Offset of a slot that is ours until ``release``."""
        return self._free.get() * self._slot_bytes

    def release(self, offset: int) -> None:
        """Give a slot back."""
        self._free.put(offset // self._slot_bytes)

    def view(self, offset: int, size: int) -> memoryview:
        """Bytes of a slot."""
        return memoryview(self._map)[offset : offset + size]

    def close(self) -> None:
        """Unmap; views must be gone."""
        with contextlib.suppress(BufferError):
            self._map.close()


def _reserve(size: int) -> tuple[Path, int]:
    """A file of ``size`` bytes that are really there, in memory where possible: a hole in a full file system would
    kill the process at its first use instead of raising."""
    for folder in ([SHM] if SHM.is_dir() else []) + [Path(tempfile.gettempdir())]:
        descriptor, name = -1, ""
        try:
            descriptor, name = tempfile.mkstemp(prefix="mimic-", dir=folder)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)
            else:
                os.ftruncate(descriptor, size)
        except OSError as error:
            log.debug("no %d bytes in %s: %s", size, folder, error)
            if descriptor >= 0:
                os.close(descriptor)
                Path(name).unlink()
        else:
            return Path(name), descriptor
    raise ToolFailed(
        f"{size >> 20} MiB of shared memory cannot be had", remedy="Free space in the temporary folder, or set TMPDIR"
    )


_running: list[Server] = []
_guard = threading.Lock()


def server(settings: Settings, threads: int = 1) -> Server:
    """The process's child, started when there is none alive with these settings and at least as many threads."""
    threads = max(threads, os.cpu_count() or 1)  # so that a probe's child serves the conversion too
    with _guard:
        for child in list(_running):
            if child.alive and child.settings == settings and child.threads >= threads:
                return child
            _running.remove(child)
            child.close()
        _running.append(Server(settings, threads))
        return _running[0]


def shutdown() -> None:
    """Kill the child, if there is one. Safe in a signal handler's wake: takes no lock that a stuck thread holds."""
    while _running:
        _running.pop().close()


atexit.register(shutdown)
