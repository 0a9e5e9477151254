"""One run of other people's programs, measured from outside: time, processor, memory and disk of the whole tree.

A step is a process with all that it starts. Its time ends when it ends; its processor time is what the kernel adds up
for it and the children it waited for (wait4), or what was seen of the tree when that is more: a killed JVM's.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PERIOD_S = 0.1
"""One look at the tree costs 2 to 5 ms of one core."""
NEWS = 1.02
"""Shared memory is told apart (PSS, which costs a walk over the page tables) when the sum of RSS is this much more."""
AGAIN_S = 0.5
END_S = 10.0
"""For what was killed to be gone."""
BLOCK_BYTES = 512
LOG = "log.txt"
NOT_INHERITED = ("PYTHONDONTWRITEBYTECODE",)
"""An installed program does not compile itself at every start: the warm-up writes what the counted runs load."""


@dataclass(frozen=True, slots=True)
class Step:
    """One program: its words, and what its environment has beside ours."""

    argv: tuple[str | Path, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run of all steps took. ``peak_bytes`` is PSS (each shared page once) where the system tells it, else
    the sum of RSS, which ``peak_rss_bytes`` always is; ``peak_disk_bytes`` is the most that lay in the run's folder,
    files that were deleted while open included. ``error`` tells why it failed, None when it did not; ``gave_up``
    whether that was the deadline."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    peak_rss_bytes: int
    peak_disk_bytes: int
    steps_s: tuple[float, ...]
    error: str | None = None
    gave_up: bool = False


class Sampler:
    """Looks at a process tree and a folder again and again, from a thread of its own."""

    def __init__(self, folder: Path, *, deadline_s: float) -> None:
        self._folder, self._deadline_s = folder, deadline_s
        self._cpu_s: dict[int, float] = {}
        self._looked_at_bytes, self._next_look_s = 0, 0.0
        self.peak_bytes = self.peak_rss_bytes = self.peak_disk_bytes = 0
        self.timed_out = False

    @property
    def cpu_s(self) -> float:
        """Processor time of all processes seen, as last seen."""
        return sum(self._cpu_s.values())

    @contextlib.contextmanager
    def watching(self, process: psutil.Process) -> Iterator[None]:
        """Samples ``process`` and its descendants inside the block; kills them all at the deadline."""
        self._cpu_s.clear()
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(process, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _watch(self, process: psutil.Process, done: threading.Event) -> None:
        began = time.monotonic()
        self.look(process)
        while not done.wait(PERIOD_S):
            self.look(process)
            if time.monotonic() - began > self._deadline_s:
                self.timed_out = True
                kill(process)

    def look(self, process: psutil.Process) -> None:
        """One sample."""
        tree = family(process)
        rss = 0
        for each in tree:
            with contextlib.suppress(psutil.Error):
                used = each.cpu_times()
                self._cpu_s[each.pid] = used.user + used.system
                rss += each.memory_info().rss
        if self._news(rss):
            self.peak_bytes = max(self.peak_bytes, proportional(tree))
        self.peak_rss_bytes = max(self.peak_rss_bytes, rss)
        self.peak_disk_bytes = max(self.peak_disk_bytes, disk_bytes(self._folder) + deleted_bytes(tree, self._folder))

    def _news(self, rss: int) -> bool:
        """Whether PSS may be higher than ever: at a new high of RSS; and, as RSS also jumps and falls when a process
        forks, from time to time while it is above the PSS known."""
        now = time.monotonic()
        higher = rss > self._looked_at_bytes * NEWS
        if not higher and (rss <= self.peak_bytes * NEWS or now < self._next_look_s):
            return False
        self._looked_at_bytes, self._next_look_s = max(rss, self._looked_at_bytes), now + AGAIN_S
        return True


def family(process: psutil.Process) -> list[psutil.Process]:
    """The process and its living descendants."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def proportional(tree: Sequence[psutil.Process]) -> int:
    """Memory of a tree with each shared page counted once: PSS; RSS where the system has no PSS."""
    total = 0
    for process in tree:
        with contextlib.suppress(psutil.Error):
            info = process.memory_full_info()
            total += getattr(info, "pss", info.rss)
    return total


def disk_bytes(folder: Path) -> int:
    """Bytes that the files below ``folder`` take up on disk; one of two names (a hard link) counts once."""
    found: dict[int, int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                it = os.lstat(Path(place) / name)
                found[it.st_ino] = _taken(it)
    return sum(found.values())


def deleted_bytes(tree: Sequence[psutil.Process], folder: Path) -> int:
    """Bytes of files that are deleted and still open, on the disk of ``folder`` (Linux only): a common scratch."""
    device = folder.stat().st_dev
    found: dict[int, int] = {}
    for process in tree:
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{process.pid}/fd"):
                with contextlib.suppress(OSError):
                    gone = Path(entry.path).readlink().name.endswith("(deleted)")
                    if gone and (it := entry.stat()).st_dev == device:
                        found[it.st_ino] = _taken(it)
    return sum(found.values())


def _taken(status: os.stat_result) -> int:
    return status.st_blocks * BLOCK_BYTES if hasattr(status, "st_blocks") else status.st_size


def kill(process: psutil.Process) -> None:
    """End a tree that we started."""
    for each in family(process):  # the parent first: it shall not end well because its child has ended
        with contextlib.suppress(psutil.Error):
            each.kill()


def end_all() -> None:
    """End all that we started, also what was being started when we were interrupted, and wait until it is gone."""
    children = psutil.Process().children(recursive=True)
    for each in children:
        with contextlib.suppress(psutil.Error):
            each.kill()
    psutil.wait_procs(children, timeout=END_S)


def run(steps: Sequence[Step], folder: Path, *, deadline_s: float) -> Measured:
    """Run the steps one after the other with ``folder`` as their place and temporary folder, and measure.

    Stops at the first that fails; what it said is in ``folder``/log.txt, its last line in ``error``.
    """
    scratch = folder / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    log = folder / LOG
    sampler = Sampler(folder, deadline_s=deadline_s)
    took: list[float] = []
    cpu_s, error = 0.0, None
    for step in steps:
        env = inherited() | {"TMPDIR": str(scratch)} | dict(step.env)
        began = time.monotonic()
        try:
            code, used_s = _step(step, env, log, sampler)
        except OSError as problem:
            error = f"{Path(step.argv[0]).name}: {problem.strerror}"
            break
        took.append(time.monotonic() - began)
        cpu_s += used_s
        if sampler.timed_out or code != 0:
            error = f"gave up after {deadline_s:g} s" if sampler.timed_out else reason(log, code)
            break
    return Measured(
        round(sum(took), 4),
        round(cpu_s, 3),
        sampler.peak_bytes,
        sampler.peak_rss_bytes,
        sampler.peak_disk_bytes,
        tuple(round(each, 4) for each in took),
        error,
        sampler.timed_out,
    )


def inherited() -> dict[str, str]:
    """Our environment, as a program that is not run by a developer has it."""
    return {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}


def _step(step: Step, env: Mapping[str, str], log: Path, sampler: Sampler) -> tuple[int, float]:
    """(exit code, processor seconds) of one step."""
    with log.open("ab") as said:
        started = subprocess.Popen(
            step.argv,
            env=env,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    process = psutil.Process(started.pid)
    try:
        with sampler.watching(process):
            _, status, usage = os.wait4(started.pid, 0)
    except BaseException:
        kill(process)
        raise
    finally:
        _sweep(started.pid)
    started.returncode = os.waitstatus_to_exitcode(status)
    return started.returncode, max(usage.ru_utime + usage.ru_stime, sampler.cpu_s)


def _sweep(session: int) -> None:
    """End what a step left behind in its process group, so that it cannot slow the next run."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(session, signal.SIGKILL)


def reason(log: Path, code: int) -> str:
    """The last thing that a program said, as a reason of one line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"[Ee]rror\b|[Uu]nsupported|[Nn]ot |[Cc]annot|VipsForeign", line)]
    said = (telling or lines or ["it said nothing"])[-1]
    return f"{without_folders(said)[:200]} (exit code {code})"


def without_folders(text: str) -> str:
    """Paths shortened to names: results are published, and where they were made says nothing."""
    return re.sub(r"(?<![\w.])(?:/[^/\s\"':]+)+/(?=[^/\s])", "", text)
