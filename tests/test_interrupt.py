"""Ctrl-C, SIGTERM, SIGHUP and kill -9 at several moments: quick, quiet, and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest

from mimic import stream
from tests.command import PATIENCE_S, environment, files, mimic, picture
from tests.conftest import SAMPLE_CZI, absent
from tools.make_samples import make_sample

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals work otherwise there")

STOP_S = 20.0
"""Two seconds are promised, on an idle machine; tests run on busy ones, where not to hang is what can be asked."""
ORPHAN_S = 60.0
TRIES = 10
SHM = Path("/dev/shm")
EARLIER = b"an earlier output"


@dataclass
class Running:
    """A conversion under way, with events as they come."""

    process: subprocess.Popen[str]
    base: Path

    @property
    def children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def until(self, stage: str) -> None:
        """Wait for the first event of a stage."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if json.loads(line).get("stage") == stage:
                return
        pytest.fail(f"no {stage}: {self.process.communicate()}")

    def until_child(self) -> None:
        """Wait for the process that will hold the JVM."""
        ends = time.monotonic() + PATIENCE_S
        while not self.children and time.monotonic() < ends:
            time.sleep(0.005)
        assert self.children

    def end(self) -> tuple[int, str, float]:
        """(exit code, stderr, seconds since now)."""
        started = time.monotonic()
        _, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, err, time.monotonic() - started

    def left(self) -> set[bytes]:
        """What is in the output and the temporary folder, the earlier output aside."""
        found = {*files(self.base / "out"), *(b"tmp/" + name for name in files(self.base / "tmp"))}
        return found - {b"a.svs"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start ``mimic convert --json``; an earlier output waits to be overwritten."""
    started = []

    def begin(path: Path, *argv: str, prefix: tuple[str, ...] = ()) -> Running:
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        (out / "a.svs").write_bytes(EARLIER)
        words = [*prefix, sys.executable, "-m", "mimic", "convert", path, "-o", out / "a.svs", "--overwrite", "--json"]
        process = subprocess.Popen(
            [*words, *argv],
            env=environment(tmp_path / "tmp"),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return Running(process, tmp_path)

    shared = set(SHM.glob("mimic-*"))
    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
    time.sleep(0.1)
    assert [path for path in set(SHM.glob("mimic-*")) - shared if path.exists() and _old(path)] == []


def _old(path: Path) -> bool:
    """Not one of another conversion on this machine: those have a name for milliseconds only."""
    time.sleep(1.0)
    return path.exists()


def held_in(stage: str, begin: Callable[[], Running]) -> Running:
    """A conversion that is held up (SIGSTOP) in a stage; another one where it was quicker than us."""
    for _ in range(TRIES):
        running = begin()
        running.until(stage)
        os.kill(running.process.pid, signal.SIGSTOP)
        if (running.base / "out" / "a.svs").read_bytes() == EARLIER:
            return running
        os.kill(running.process.pid, signal.SIGCONT)
        running.end()
    pytest.fail("always too late")


def stopped(running: Running, number: int) -> None:
    """Send a signal, and look at everything that is promised."""
    children = running.children
    os.kill(running.process.pid, number)
    os.kill(running.process.pid, signal.SIGCONT)
    code, err, seconds = running.end()
    assert (code, err) == (130, "mimic: interrupted; nothing unfinished was left behind\n")
    assert seconds < STOP_S
    _, alive = psutil.wait_procs(children, timeout=ORPHAN_S)
    assert alive == []
    assert running.left() == set()
    assert (running.base / "out" / "a.svs").read_bytes() == EARLIER


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.6])
def test_while_the_jvm_starts(start: Callable[..., Running], delay_s: float) -> None:
    running = start(SAMPLE_CZI, "--source", "bioformats")
    running.until_child()
    time.sleep(delay_s)
    stopped(running, signal.SIGINT)


@pytest.mark.parametrize(
    ("stage", "name"), [("convert", "SIGINT"), ("convert", "SIGTERM"), ("convert", "SIGHUP"), ("check", "SIGINT")]
)
def test_in_a_stage(start: Callable[..., Running], stage: str, name: str) -> None:
    stopped(held_in(stage, lambda: start(SAMPLE_CZI)), getattr(signal, name))


def test_while_every_pixel_is_compared(start: Callable[..., Running]) -> None:
    stopped(held_in("compare", lambda: start(SAMPLE_CZI, "--verify", "full")), signal.SIGINT)


@pytest.mark.parametrize("stage", ["convert", "check"])
def test_a_large_picture(start: Callable[..., Running], stage: str, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.bmp", width_px=5000, height_px=5000)
    stopped(held_in(stage, lambda: start(path, "--mpp", "0.5")), signal.SIGINT)


def test_the_8k_slide(start: Callable[..., Running], corpus_file: Callable[[str], Path]) -> None:
    stopped(held_in("convert", lambda: start(corpus_file("czi/he_8k_jxr_pyramid_label_20x.czi"))), signal.SIGINT)


def test_the_external_programs(start: Callable[..., Running], corpus_file: Callable[[str], Path]) -> None:
    """bfconvert is at work when the signal comes: it has children of its own."""
    running = start(corpus_file("czi/he_8k_jxr_pyramid_label_20x.czi"), "--source", "bfconvert")
    ends = time.monotonic() + PATIENCE_S
    while not any("ImageConverter" in " ".join(_words(each)) for each in running.children):
        assert time.monotonic() < ends and running.process.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)
    stopped(running, signal.SIGINT)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_pressed_many_times(start: Callable[..., Running]) -> None:
    """An impatient second Ctrl-C must not end the tidying up."""
    running = held_in("convert", lambda: start(SAMPLE_CZI))
    for _ in range(5):
        os.kill(running.process.pid, signal.SIGINT)
        os.kill(running.process.pid, signal.SIGCONT)
        time.sleep(0.02)
    if running.process.poll() is None:
        os.kill(running.process.pid, signal.SIGINT)
    code, err, _ = running.end()
    assert (code, running.left()) == (130, set()) and "Traceback" not in err


def test_while_python_starts(start: Callable[..., Running]) -> None:
    """Before mimic is loaded nothing is there to be left; a traceback is still no answer.

    A signal while the interpreter itself starts is Python's: it dies of it, or prints one of its own.
    """
    running = start(SAMPLE_CZI)
    while not _loads_mimic(running.process.pid):
        assert running.process.poll() is None
    os.kill(running.process.pid, signal.SIGINT)
    code, err, _ = running.end()
    assert code in (130, -signal.SIGINT) and "Traceback" not in err  # a shell calls both 130
    assert running.left() == set()


def _loads_mimic(pid: int) -> bool:
    """Whether the interpreter has loaded click's first compiled dependency or any library of its own."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    except OSError:
        pytest.skip("no /proc")
    return "_json" in maps or "_ctypes" in maps or "_bisect" in maps or "_random" in maps


def test_nohup_is_respected(start: Callable[..., Running]) -> None:
    script = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    running = start(SAMPLE_CZI, prefix=(sys.executable, "-c", script))
    running.until("convert")
    os.kill(running.process.pid, signal.SIGHUP)
    code, err, _ = running.end()
    assert code == 0, err
    assert (running.base / "out" / "a.svs").read_bytes() != EARLIER


def test_killed(start: Callable[..., Running]) -> None:
    """kill -9: the child sees the end of its stdin. A staging folder may stay; no name is given to it."""
    running = held_in("convert", lambda: start(SAMPLE_CZI))
    children = running.children
    assert children
    running.process.kill()
    _, alive = psutil.wait_procs(children, timeout=ORPHAN_S)
    assert alive == []
    assert (running.base / "out" / "a.svs").read_bytes() == EARLIER
    assert [name for name in running.left() if not name.startswith(b".mimic-")] == []
    for folder in (running.base / "out").glob(".mimic-*"):
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def large_czi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine boxes or more: when the first is converted, others are still to be read."""
    try:
        return make_sample("czi_zstd", tmp_path_factory.mktemp("large"), size_px=6000).path
    except ImportError as error:
        absent(f"a writer of CZI ({error})")


def test_jvm_killed_while_it_starts(start: Callable[..., Running]) -> None:
    running = start(SAMPLE_CZI, "--source", "bioformats")
    running.until_child()
    for child in running.children:
        child.kill()
    code, err, _ = running.end()
    assert code == 6 and err == "", "in JSON the report tells"
    assert running.left() == set()
    assert (running.base / "out" / "a.svs").read_bytes() == EARLIER


def test_jvm_killed_at_work(large_czi: Path, tmp_path: Path) -> None:
    """The system's out-of-memory killer does that. The next slide gets a JVM of its own."""
    (tmp_path / "out").mkdir()
    words = [sys.executable, "-m", "mimic", "convert", large_czi, SAMPLE_CZI, "-o", "out", "--json"]
    words += ["--source", "bioformats"]
    process = subprocess.Popen(
        [*words, "--report", "r.json"],
        env=environment(tmp_path / "tmp"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    running = Running(process, tmp_path)
    running.until("convert")
    running.children[0].kill()
    code, _, _ = running.end()
    first, second = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert code == 6 and first["exit_code"] == 6 and second["status"] == "converted"
    assert "killed from outside" in first["error"] and large_czi.name in first["error"]
    assert set(files(tmp_path / "out")) == {b"sample_40x.svs"} and files(tmp_path / "tmp") == {}


@pytest.mark.parametrize("lost_in", ["probe", "write"])
def test_one_that_gets_lost(lost_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a callback that libvips calls, where Python drops every exception: it is heard at the next step."""
    module, name = {"probe": (import_module("mimic.convert"), "plan_slide"), "write": (stream, "write_levels")}[lost_in]
    plain = getattr(module, name)

    def deaf(*words: Any, **options: Any) -> object:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(STOP_S)
        return plain(*words, **options)

    monkeypatch.setattr(module, name, deaf)
    pictures = [picture(tmp_path / "in" / name) for name in ("a.png", "b.png")]
    done = mimic("convert", *pictures, "-o", tmp_path / "out", "--mpp", "0.5")
    assert done.code == 130 and done.message.startswith("mimic: interrupted")
    assert files(tmp_path / "out") == {}
    monkeypatch.undo()
    assert mimic("convert", *pictures, "-o", tmp_path / "out", "--mpp", "0.5").code == 0, "another command goes on"
