"""Several worker processes: slides beside each other, and one crash or hang costs one slide.

    queued --a free worker--> running --done--> reported
    running --crash, stall--> queued again, to run alone after all others --crash, stall--> failed (exit code 6)

Why not a library (looked at: concurrent.futures, loky, pebble, billiard): the first two give up the whole pool when one
worker dies. Pebble survives that, but all its workers answer through one pipe under one lock, which a worker that is
killed at the wrong moment takes with it; and none of them tells progress, starts workers in sessions of their own, or
knows what a dead worker has left behind. Here every worker has its own pipes, started through the one door to
processes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, cast

from mimic import interrupts
from mimic.errors import LimitReached, MimicError, OutputError, ToolFailed
from mimic.executors import Claims, LeftAlone, Watch, failed, left_alone, named
from mimic.model import Progress, Report, Request
from mimic.programs import run as programs
from mimic.settings import Settings, environment

MAX_SLIDES = 50
"""Of one worker: then a new one takes its place, whatever a native library has leaked or left open."""
STALL_S = 1800.0
"""Without a sign of progress: longer than any stage that tells none, as the digest of a large file on a slow share."""
LATE_S = 10.0
"""Beyond a deadline that the worker itself should have kept."""
TICK_S = 0.5
END_S = 1.5
"""For tidying up, after Ctrl-C; then workers are killed, and their supervisor tidies up."""
GARBLED = (EOFError, OSError, pickle.UnpicklingError, ValueError, LookupError, AttributeError, ImportError, TypeError)
"""What a message raises that was cut off when its worker was killed."""
WAITING = "waits to be tried again"
SECOND = "converted at the second try, alone: at the first its process crashed or hung"

log = logging.getLogger(__name__)


class Worker:
    """One process, its pipes, and what it would leave behind."""

    def __init__(self, settings: Settings, events: SimpleQueue[tuple[Worker, Any]]) -> None:
        self.slides = 0
        self.heard_s = time.monotonic()
        self._events = events
        self._left: set[tuple[str, str]] = set()
        self._tmp = Path(tempfile.mkdtemp(prefix="mimic-worker-"))
        argv = [sys.executable, "-P", "-X", "faulthandler", "-m", "mimic.worker"]
        self._process = programs.spawn(argv, env=environment(self._tmp), cwd=Path.cwd(), stdin=programs.PIPE)
        self._stderr = programs.Tail(cast(Any, self._process.stderr))
        self._reader = threading.Thread(target=self._listen, daemon=True, name="mimic-worker-messages")
        self._reader.start()
        self.send("settings", settings, logging.getLogger("mimic").level)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _listen(self) -> None:
        stdout = cast(Any, self._process.stdout)
        with contextlib.suppress(*GARBLED):
            while True:
                message = pickle.load(stdout)
                self.heard_s = time.monotonic()
                if message[0] == "left":
                    _, kind, what, there = message
                    (self._left.add if there else self._left.discard)((kind, what))
                else:
                    self._events.put((self, message))
        self._events.put((self, None))

    def send(self, *message: object) -> None:
        """A dead worker takes nothing: ``_listen`` tells of its end."""
        stdin = cast(Any, self._process.stdin)
        with contextlib.suppress(OSError, ValueError):
            pickle.dump(message, stdin)
            stdin.flush()

    def convert(self, request: Request) -> None:
        """Start a slide. What an earlier one has published is not of interest any more."""
        self._left = {each for each in self._left if each[0] != "output"}
        self.slides += 1
        self.heard_s = time.monotonic()
        self.send("run", request)

    def retire(self) -> None:
        """Let it tidy up and end."""
        with contextlib.suppress(OSError, ValueError):
            cast(Any, self._process.stdin).close()

    def kill(self) -> None:
        """End it now; ``_listen`` tells of it."""
        programs.kill(self._process)

    def wait(self, seconds_s: float) -> bool:
        """Whether it has ended within that time."""
        self._reader.join(seconds_s)
        return not self._reader.is_alive()

    def clean_up(self) -> bool:
        """End it, with every process that it has started, and remove what it has left; whether it was about to give an
        output its name."""
        self.retire()
        self.kill()
        self._reader.join(END_S)
        self._stderr.close()
        with contextlib.suppress(OSError):
            cast(Any, self._process.stdout).close()
        for kind, what in sorted(self._left, key=lambda each: -len(each[1])):
            if kind == "group" and int(what) != self.pid:
                programs.kill_group(int(what))
            elif kind == "folder":
                shutil.rmtree(what, ignore_errors=True)
            elif kind in ("file", "empty"):
                with contextlib.suppress(OSError):
                    (os.unlink if kind == "file" else os.rmdir)(what)
        shutil.rmtree(self._tmp, ignore_errors=True)
        return any(kind == "output" for kind, _ in self._left)

    def death(self) -> str:
        """How it ended, once it is cleaned up."""
        code = self._process.returncode
        fatal = [line for line in self._stderr.text().splitlines() if line.startswith("Fatal Python error")]
        log.debug("worker %d ended with %s: %s", self.pid, code, fatal[:1])  # other lines may name the slide
        return f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"


@dataclass(eq=False)
class Task:
    """A slide under way. ``asked`` is a claim that waits for its answer, or a report that waits to be judged; ``holds``
    what was granted: files and outputs."""

    index: int
    request: Request
    worker: Worker | None
    again: bool
    started_s: float = field(default_factory=time.monotonic)
    asked: tuple[frozenset[Path], frozenset[Path]] | Report | None = None
    holds: tuple[frozenset[Path], frozenset[Path]] | None = None
    verdict: MimicError | None = None

    def clashes(self, other: Task) -> bool:
        """Whether what ``other`` holds decides if this one may go on."""
        if other.holds is None or other is self:
            return False
        outputs = self.asked[1] if isinstance(self.asked, tuple) else frozenset()
        companion = self.request.input.absolute() in other.holds[0] and self.request.input != other.request.input
        return companion or bool(outputs & other.holds[1])


class Pool:
    """Converts requests with up to ``jobs`` workers at a time."""

    def __init__(
        self, settings: Settings, watch: Watch, *, jobs: int, stall_s: float = STALL_S, max_slides: int = MAX_SLIDES
    ) -> None:
        self._settings, self._watch, self._jobs = settings, watch, jobs
        self._stall_s, self._max_slides = stall_s, max_slides
        self._claims = Claims()
        self._events: SimpleQueue[tuple[Worker, Any]] = SimpleQueue()
        self._requests: Sequence[Request] = ()
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []
        self._running: list[Task] = []
        self._again: list[tuple[int, Request]] = []
        self._done: list[tuple[Request, Report]] = []

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are at work."""
        return tuple(task.worker.pid for task in self._running if task.worker is not None)

    def run(self, requests: Sequence[Request]) -> Generator[tuple[Request, Report]]:
        """A report for each request, as it is done. When the caller stops listening, workers are ended."""
        self._requests = requests
        try:
            yield from self._all(deque(enumerate(requests)), jobs=self._jobs, again=False)
            self._retire_idle()  # what is tried again is alone, and in a fresh process
            yield from self._all(deque(sorted(self._again, key=lambda each: each[0])), jobs=1, again=True)
        finally:
            self._stop()

    def _all(self, queue: deque[tuple[int, Request]], *, jobs: int, again: bool) -> Generator[tuple[Request, Report]]:
        while queue or self._running:
            interrupts.check()
            while queue and len(self._running) < jobs:
                index, request = queue.popleft()
                reason = self._claims.owner(request)
                if reason is None:
                    self._start(index, request, again=again)
                else:
                    yield request, left_alone(named(request), reason)
            self._listen()
            self._stalled()
            self._judge()
            while self._done:
                yield self._done.pop(0)
            if again:
                self._retire_idle()

    def _start(self, index: int, request: Request, *, again: bool) -> None:
        worker = self._idle.pop() if self._idle else self._new_worker()
        self._running.append(Task(index, request, worker, again))
        worker.convert(request)

    def _new_worker(self) -> Worker:
        worker = Worker(self._settings, self._events)
        self._workers.add(worker)
        return worker

    def _listen(self) -> None:
        """Take what workers say, for as long as they say nothing up to a tick."""
        with contextlib.suppress(Empty):
            worker, message = self._events.get(timeout=TICK_S)
            while True:
                self._take(worker, message)
                worker, message = self._events.get_nowait()

    def _take(self, worker: Worker, message: Any) -> None:
        task = next((each for each in self._running if each.worker is worker), None)
        if message is None:
            self._ended(worker, task)
        elif message[0] == "log":
            logging.getLogger(message[1].name).handle(message[1])
        elif task is None:
            log.debug("worker %d said %s after its end", worker.pid, message[0])
        elif message[0] == "progress":
            self._watch(self._requests[task.index], message[1])
        elif message[0] == "claim":
            files, outputs = (frozenset(path.absolute() for path in paths) for paths in message[1:])
            task.asked = files, outputs
        else:
            task.asked, task.worker = message[1], None
            self._release(worker)

    def _release(self, worker: Worker) -> None:
        if worker.slides >= self._max_slides:
            worker.retire()
        else:
            self._idle.append(worker)

    def _ended(self, worker: Worker, task: Task | None) -> None:
        """A worker is dead: one that was sent away, or one that has crashed over ``task``."""
        published = worker.clean_up()
        self._workers.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        if task is None:
            return
        request, death = task.request, worker.death()
        if not task.again and not isinstance(task.verdict, LimitReached):
            log.info("a worker %s; %s is tried again, alone", death, named(request).name)
            self._running.remove(task)
            self._watch(self._requests[task.index], Progress(WAITING, 0, 1))
            if published:  # by the worker, a moment before it died
                request = replace(request, options=replace(request.options, overwrite=True))
            self._again.append((task.index, request))
            return
        crash = ToolFailed(
            f"the process that converted it {death}, twice", named(request), "See 'mimic doctor', and the --log-file"
        )
        task.worker = None
        task.asked = failed(request, task.verdict or crash, time.monotonic() - task.started_s)

    def _stalled(self) -> None:
        """Kill workers that hang; ``_ended`` then tells."""
        for task in self._running:
            if task.worker is None or task.asked is not None or task.verdict is not None:
                continue
            silent_s, deadline_s = time.monotonic() - task.worker.heard_s, task.request.options.deadline_s
            if deadline_s is not None and silent_s > deadline_s + LATE_S:
                text = f"not done within {deadline_s:g} s, and hung"
                task.verdict = LimitReached(text, named(task.request), "Raise the deadline")
            elif silent_s > self._stall_s:
                text = f"no progress within {self._stall_s:g} s, twice"
                task.verdict = ToolFailed(text, named(task.request), "The file may be damaged")
            if task.verdict is not None:
                task.worker.kill()

    def _judge(self) -> None:
        """Answer claims, in the order of the requests: a slide waits until all before it have told what they read."""
        for task in sorted(self._running, key=lambda each: each.index):
            if task.asked is None:
                continue
            silent = (each.holds is None for each in self._running if each.index < task.index)
            if task.holds is None and (any(silent) or any(task.clashes(each) for each in self._running)):
                continue
            asked, task.asked = task.asked, None
            if isinstance(asked, Report):
                self._report(task, asked)
            else:
                self._answer(task, *asked)

    def _answer(self, task: Task, files: frozenset[Path], outputs: frozenset[Path]) -> None:
        refusal: MimicError | None = None
        try:
            self._claims.check(task.request, outputs)
        except (LeftAlone, OutputError) as error:
            refusal = error
        task.holds = (files, outputs) if refusal is None else (frozenset(), frozenset())
        if task.worker is not None:
            task.worker.send("answer", refusal)

    def _report(self, task: Task, report: Report) -> None:
        owner = self._claims.owner(task.request) if task.holds is None else None
        self._running.remove(task)
        self._claims.settle(task.request, report)
        if owner is not None:
            report = left_alone(named(task.request), owner)
        elif task.again and report.status == "converted":
            report = replace(report, warnings=(*report.warnings, SECOND))
        self._done.append((self._requests[task.index], report))

    def _retire_idle(self) -> None:
        while self._idle:
            self._idle.pop().retire()

    def _stop(self) -> None:
        """End all workers, politely for a moment."""
        ends = time.monotonic() + END_S
        for worker in self._workers:
            worker.retire()
        for worker in self._workers:
            worker.wait(max(0.0, ends - time.monotonic()))
        while self._workers:
            self._workers.pop().clean_up()
