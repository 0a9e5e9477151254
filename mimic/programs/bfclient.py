"""Our end of the JVM's child process: requests in, answers or clear errors out.

    absent --first request--> running --exit, crash, hang, kill--> dead --next request--> running (a new child)

One child serves the whole process (a JVM start costs a second); ``shutdown`` ends it, as does the end of the process.
A second one is started for other settings, or more threads, while the first is in use.
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
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue
from typing import Any, cast

from mimic import leftovers
from mimic.errors import BadInput, MimicError, ToolFailed, ToolMissing, Unsupported
from mimic.programs import jvm, shm
from mimic.programs.alias import Aliases
from mimic.programs.run import Tail, cores, kill, spawn
from mimic.settings import Settings

STALL_S = 600.0
"""No single box takes ten minutes: a codec that long in one call hangs."""
START_S = 120.0
"""A JVM start takes one second idle; two minutes on a machine that swaps."""
END_S = 5.0
"""Between the end of the child's answers and its own."""
PROBES_MAX = 1000
"""Files that one child is asked about: whatever a reader or a native codec leaks ends with it."""
OUT_OF_MEMORY = 3
"""Exit code of -XX:+ExitOnOutOfMemoryError."""
CLOSING = "the Bio-Formats process was stopped"
JVM_CRASH = "A fatal error has been detected by the Java Runtime"
NO_JAVA = 10
NO_BIOFORMATS = 11
"""Exit codes of bfserver, which is not imported here: it loads JPype."""

Json = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """A result and what Bio-Formats logged at WARN or above since the answer before (of any thread)."""

    result: Json
    warnings: tuple[str, ...]


class Server:
    """One child process. Thread-safe; once dead it stays dead."""

    def __init__(self, settings: Settings, threads: int, *, brief: bool = False) -> None:
        self.threads = threads
        self.brief = brief
        self.settings = settings
        self._tmp = Path(tempfile.mkdtemp(prefix="mimic-jvm-"))
        self._aliases = Aliases(self._tmp)
        self._waiting: dict[int, tuple[Future[Json], object]] = {}
        self._handles: set[int] = set()
        self._numbers = itertools.count(1)
        self._probes = 0
        self._lock = threading.Lock()
        self._pipe = threading.Lock()
        self._closed = False
        self._reason: MimicError | None = None
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
        heap_mb = self.settings.heap_mb or jvm.default_heap_mb(self.threads)
        flags = jvm.java_flags(java, tmp=self._tmp, heap_mb=heap_mb, cpus=self.threads)
        flags += ["-XX:TieredStopAtLevel=1"] if self.brief else []
        jar = jvm.find_bioformats(self.settings)
        module = "mimic.programs.bfserver"
        library, threads = jvm.jvm_library(java), str(self.threads)
        return [sys.executable, "-P", "-m", module, library, jar, threads, self._tmp, *flags]

    @property
    def alive(self) -> bool:
        """Whether requests may be sent."""
        return not self._closed and self._process.poll() is None

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an answer or has a series open."""
        with self._lock:
            return bool(self._waiting or self._handles)

    @property
    def worn(self) -> bool:
        """Whether it has seen so many files that a new one should take its place."""
        return self._probes >= PROBES_MAX

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def ask(self, op: str, path: Path | None = None, **request: object) -> Answer:
        """Send one request and wait for its answer.

        Raises BadInput or Unsupported when Bio-Formats refuses ``path``, ToolFailed when the child died or hung,
        ToolMissing when its Java or its jar are not what they should be.
        """
        alias = path and self._aliases.of(path)
        if alias != path:
            request |= {"file": str(alias)} if "file" in request else {}
        self._probes += op == "probe"
        number = next(self._numbers)
        answer: Future[Json] = Future()
        with self._lock:
            if self._closed:
                raise _about(self._reason or ToolFailed(CLOSING), path)
            self._waiting[number] = answer, request.get("handle")
        self._send({"id": number, "op": op, **request})
        try:
            reply = answer.result(START_S if op == "hello" else STALL_S)
        except FutureTimeout as error:
            remedy = "The file may be damaged, or of a kind Bio-Formats cannot decode"
            self.close(ToolFailed("Bio-Formats gave no answer and was stopped", remedy=remedy))
            raise ToolFailed("Bio-Formats gave no answer and was stopped", path, remedy) from error
        except MimicError as error:
            raise _about(error, path) from error
        warnings = tuple(reply.get("warnings", ()))
        if "error" in reply:
            raise _refusal(reply["error"], path, alias)
        if op == "probe":
            reply["result"]["files"] = [self._aliases.own(name) for name in reply["result"]["files"]]
        return Answer(reply["result"], warnings)

    def open(self, path: Path, series: int) -> tuple[int, Json]:
        """(handle, core metadata) of one series, to be given back with ``drop``. Raises as ``ask`` does."""
        opened = self.ask("open", path, file=str(path), series=series).result
        with self._lock:
            self._handles.add(opened["handle"])
        return opened["handle"], opened["series"]

    def drop(self, handle: int) -> None:
        """Close a series without waiting: whoever still waits for pixels of it fails at once."""
        with self._lock:
            self._handles.discard(handle)
            numbers = [number for number, (_, owner) in self._waiting.items() if owner == handle]
            dropped = [self._waiting.pop(number)[0] for number in numbers]
        for future in dropped:
            future.set_exception(ToolFailed("the file was closed while it was read"))
        self._send({"id": next(self._numbers), "op": "close", "handle": handle})

    def _send(self, request: Json) -> None:
        line = json.dumps(request).encode() + b"\n"
        with self._pipe, contextlib.suppress(OSError, ValueError):  # a dead child answers through _listen
            stdin = cast(Any, self._process.stdin)
            stdin.write(line)
            stdin.flush()

    def _listen(self) -> None:
        for line in cast(Any, self._process.stdout):
            try:
                reply = json.loads(line)
            except ValueError:  # the child died in the middle of it
                break
            with self._lock:
                waiting = self._waiting.pop(reply["id"], None)
            if waiting is not None:
                waiting[0].set_result(reply)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        kill(self._process)
        death = self._death()
        with self._lock:
            self._closed = True
            reason = self._reason = self._reason or death
            left, self._waiting = self._waiting, {}
        for future, _ in left.values():
            future.set_exception(reason)

    def _death(self) -> MimicError:
        code, said = self._process.returncode, self._stderr.text()
        log.debug("bio-formats process ended with %s: %s", code, said)
        last = next((line for line in reversed(said.splitlines()) if line.strip(" #")), "no message")[:200]
        if code == OUT_OF_MEMORY or "OutOfMemoryError" in said:
            return ToolFailed("Bio-Formats ran out of memory", remedy="Set MIMIC_HEAP_MB to more, e.g. 2000")
        if code == NO_JAVA:
            return ToolMissing(f"Java does not start: {last}", self.settings.java, "Set MIMIC_JAVA to Java 11 or newer")
        if code == NO_BIOFORMATS:
            remedy = f"Set MIMIC_BIOFORMATS to {jvm.JAR} or to a bftools folder that holds it"
            return ToolMissing(f"there is no Bio-Formats in it: {last}", self.settings.bioformats, remedy)
        if code == -signal.SIGKILL:
            text = "the Bio-Formats process was killed from outside, as systems do that run out of memory"
            return ToolFailed(text, remedy="Close other programs, or give fewer --threads")
        if (code is not None and code < 0) or JVM_CRASH in said:
            text = f"Bio-Formats crashed ({code}), as its native codecs do on damaged data"
            return ToolFailed(text, remedy="Copy the file again from where it was made; 'mimic doctor' tests the tools")
        return ToolFailed(f"the Bio-Formats process ended ({code}): {last}", remedy="Run 'mimic doctor'")

    def close(self, reason: MimicError | None = None) -> None:
        """Kill the child with its group and remove its private folder; every waiting request fails with ``reason``."""
        with self._lock:
            self._reason = self._reason or reason or ToolFailed(CLOSING)
            self._closed = True
        kill(self._process)  # before its stdin is closed: another thread may be stuck in writing to it
        with contextlib.suppress(OSError):
            cast(Any, self._process.stdin).close()
        self._reader.join(5.0)
        self._stderr.close()
        cast(Any, self._process.stdout).close()
        shutil.rmtree(self._tmp, ignore_errors=True)


def _about(error: MimicError, path: Path | None) -> MimicError:
    """The same error, about ``path`` unless it names a file of its own: each thread that waits raises one itself."""
    return type(error)(error.message, error.path or path, error.remedy)


def _refusal(error: Json, path: Path | None, alias: Path | None) -> MimicError:
    message = " ".join(str(error["message"]).split())[:300]
    if path is not None:
        message = message.replace(str(alias), path.name)
    if error["kind"] == "bug":
        return ToolFailed(f"the Bio-Formats process failed: {error['exception']}: {message}", path, "Please report it")
    if error["kind"] == "unsupported":
        text = f"Bio-Formats does not know this kind of file ({message or error['exception']})"
        return Unsupported(text, path, "See the list of formats in the README")
    if error["kind"] == "no_decoder":
        remedy = "It is unpacked in the temporary folder, which must not be mounted noexec: set TMPDIR to another"
        return ToolFailed(f"a native decoder of Bio-Formats could not be loaded ({message})", path, remedy)
    text = f"Bio-Formats cannot read it: {message or error['exception']}"
    return BadInput(text, path, "The file may be damaged or incomplete: copy it again from where it was made")


class SharedBlock:
    """Memory that we and the child both map, cut into equal slots for boxes. Has no name once both have it."""

    def __init__(self, server: Server, handle: int, *, slots: int, slot_bytes: int) -> None:
        self._slot_bytes = slot_bytes
        size = slots * slot_bytes
        path, descriptor = shm.reserve(size)
        try:
            self._map = mmap.mmap(descriptor, size)
            server.ask("share", handle=handle, file=str(path))
        finally:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            leftovers.gone("file", path)
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


_running: list[Server] = []
_starting: list[threading.Thread] = []
_guard = threading.Lock()
others: list[Callable[[], None]] = []
"""What ends children of other kinds: one ``shutdown`` or ``stop_all`` is enough for all."""
_expected: int | None = None
_brief = False


def expect(threads: int | None, *, brief: bool = False) -> None:
    """How many threads will be asked for, so that a probe's child serves the conversion too; None: one for each core.

    A child's memory and its Java's own threads go by this. ``brief``: a few questions and no pixels, for which Java
    need not optimise anything. A child that is there already and can do more is kept.
    """
    global _expected, _brief
    _expected, _brief = threads, brief


def server(settings: Settings, threads: int = 1) -> Server:
    """The process's child, started when there is none alive with these settings and at least as many threads.

    Children that are dead, or worn or do not fit and are idle, are ended first.
    """
    threads = max(threads, _expected or cores())
    with _guard:
        for child in list(_running):
            fits = child.settings == settings and child.threads >= threads and child.brief <= _brief
            if child.alive and fits and not (child.worn and not child.busy):
                return child
            if not (child.alive and child.busy):
                _running.remove(child)
                child.close()
        return _start(settings, threads, brief=_brief)


def running() -> bool:
    """Whether a child is alive."""
    with _guard:
        return any(child.alive for child in _running)


def _start(settings: Settings, threads: int, *, brief: bool) -> Server:
    """A new child, started by a thread: Ctrl-C interrupts the main thread only, and there it could fall between the
    start of a process and the moment when we know of it. ``shutdown`` waits for the thread."""
    made: Future[Server] = Future()

    def start() -> None:
        try:
            _running.append(Server(settings, threads, brief=brief))
            made.set_result(_running[-1])
        except MimicError as error:
            made.set_exception(error)

    thread = threading.Thread(target=start, daemon=True, name="mimic-bf-start")
    _starting.append(thread)
    thread.start()
    try:
        return made.result()
    finally:
        if made.done():
            _starting.remove(thread)


def stop_all(reason: MimicError) -> None:
    """Kill the children that live; who waits for them fails with ``reason``, and the next request gets a new one."""
    for child in list(_running):
        child.close(reason)
    for end in others:
        end()


def shutdown() -> None:
    """Kill the child, if there is one, and those of ``others``. Safe in a signal handler's wake: takes no lock that a
    stuck thread holds."""
    while _starting:
        thread = _starting.pop()
        if thread.is_alive():
            thread.join()
    while _running:
        _running.pop().close()
    for end in others:
        end()


atexit.register(shutdown)
