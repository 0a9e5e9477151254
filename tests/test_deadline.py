"""--deadline: between steps it stops a slide, and what hangs is ended too."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import mimic
from mimic import deadline
from mimic.deadline import Deadline
from mimic.errors import BadInput, LimitReached, ToolFailed
from mimic.model import Progress
from mimic.programs import bfclient, run
from mimic.settings import load
from tests.command import files, picture

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be stopped there")

LIMIT_S = 2.0
HANG_S = 100.0
"""Far above a conversion on a busy machine, far below bfclient.STALL_S."""


def jvm() -> psutil.Process:
    """The process's child, which is started when there is none."""
    server = bfclient.server(load())
    server.ask("hello")
    return psutil.Process(server.pid)


def convert(path: Path, folder: Path, **options: object) -> float:
    """Seconds until the limit was told."""
    started = time.monotonic()
    with pytest.raises(LimitReached, match=f"not done within {LIMIT_S:g} s") as caught:
        mimic.convert(path, folder / "out.svs", deadline_s=LIMIT_S, **options)
    assert caught.value.exit_code == 9 and path.name in str(caught.value)
    assert not folder.exists() or files(folder) == {}
    assert not [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
    return time.monotonic() - started


def test_a_codec_that_hangs(sample_czi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []

    def watch(progress: Progress) -> None:
        stages.append(progress.stage)
        if progress.stage == "convert":
            os.kill(child.pid, signal.SIGSTOP)

    for limit_s in (LIMIT_S, 4 * LIMIT_S, 16 * LIMIT_S):  # it takes less than the first, but for a busy machine
        monkeypatch.setattr(sys.modules[__name__], "LIMIT_S", limit_s)
        child = jvm()  # a new one, if the limit before was too short
        assert convert(sample_czi, tmp_path, watch=watch, source="bioformats") < HANG_S
        if "convert" in stages:
            break
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert mimic.probe(sample_czi, source="bioformats").images, "the next slide gets a child of its own"


def test_a_file_that_cannot_be_opened_to_an_end(sample_czi: Path, tmp_path: Path) -> None:
    os.kill(jvm().pid, signal.SIGSTOP)
    assert convert(sample_czi, tmp_path, source="bioformats") < HANG_S


def test_a_program_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(deadline, "GRACE_S", 0.2)
    words = [sys.executable, "-c", "import time; time.sleep(300)"]
    started = time.monotonic()
    with pytest.raises(LimitReached), Deadline(0.5, tmp_path / "a.czi"):
        done = run.run(words, env={}, cwd=tmp_path)
        raise ToolFailed(f"ended with {done.returncode}")
    assert time.monotonic() - started < HANG_S


def test_what_still_moves_stops_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its JVM lives on, for other slides."""
    monkeypatch.setattr(deadline, "GRACE_S", HANG_S)
    child = jvm()
    steps: list[Progress] = []

    def watch(progress: Progress) -> None:
        steps.append(progress)
        time.sleep(LIMIT_S)

    convert(picture(tmp_path / "in" / "a.png", width_px=5000), tmp_path / "out", watch=watch, mpp_um=0.5)
    assert len(steps) <= 1 and child.is_running()


def test_without_a_limit_nothing_ends(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG)
    for limit_s in (None, 60.0, 1e12):
        with Deadline(limit_s, tmp_path) as limit:
            limit.check()
        with pytest.raises(BadInput), Deadline(limit_s, tmp_path):
            raise BadInput("it is damaged")
    with pytest.raises(KeyboardInterrupt), Deadline(0.0, tmp_path):
        raise KeyboardInterrupt
    assert caplog.text == ""
