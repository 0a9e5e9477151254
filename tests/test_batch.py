"""Runs over many slides, as the command line does them: --jobs, --resume, --shard, --report-dir, Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from mimic import provenance, resume, screen, screen_batch
from mimic.model import Options, Progress, Request
from mimic.programs import bfclient
from tests.command import PATIENCE_S, Done, environment, files, mimic, picture
from tests.conftest import SAMPLE_CZI

MPP = ("--mpp", "0.5", "--threads", "1")


def folder_of(path: Path, count: int = 4) -> Path:
    for number in range(count):
        picture(path / "in" / f"p{number}.png", seed=number)
    return path / "in"


def told(done: Done) -> dict[str, str]:
    """Status of every slide, by name."""
    events = [json.loads(line) for line in done.out.splitlines()]
    reports = [event["report"] for event in events if event["event"] == "report"]
    return {Path(each["input"]).name: each["status"] for each in reports}


def outputs(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.svs")}


def test_jobs_reports_summary_and_the_worst_code(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    done = mimic("convert", folder, "-o", tmp_path / "out", *MPP, "--jobs", "2", "--report-dir", tmp_path / "r")
    assert done.code in (3, 4), done.err
    assert "4 converted, 1 failed" in done.out and done.out.index("│ bad.png") < done.out.index("│ p3.png")
    made = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "r").iterdir()}
    assert set(made) == {"bad.png.json", *(f"p{number}.png.json" for number in range(4))}
    assert made["p2.png.json"]["results"][0]["plan"]["threads"] == 1 and made["bad.png.json"]["exit_code"] == done.code


def test_resume(tmp_path: Path) -> None:
    """Nothing is done twice; what is gone, cut off, of other bytes or with other options is done again."""
    folder, out = folder_of(tmp_path), tmp_path / "out"
    words = ("convert", folder, "-o", out, *MPP, "--json", "--resume", "--report-dir", tmp_path / "r")
    assert set(told(mimic(*words)).values()) == {"converted"}
    before, report = outputs(out), (tmp_path / "r" / "p0.png.json").read_bytes()
    again = mimic(*words)
    assert again.code == 0 and set(told(again).values()) == {"skipped"}
    assert outputs(out) == before and (tmp_path / "r" / "p0.png.json").read_bytes() == report
    (out / "p0.svs").unlink()
    whole = (out / "p1.svs").read_bytes()
    (out / "p1.svs").write_bytes(whole[: len(whole) * 3 // 4])
    picture(folder / "p2.png", seed=99)
    third = told(mimic(*words, "--overwrite"))
    assert third == {"p0.png": "converted", "p1.png": "converted", "p2.png": "converted", "p3.png": "skipped"}
    assert (out / "p1.svs").read_bytes() == whole
    other = mimic(*words, "-q", "60")
    assert other.code == 7 and set(told(other).values()) == {"failed"}, "replacing takes --overwrite"
    assert told(mimic(*words, "--threads", "2")) == dict.fromkeys(third, "skipped"), "threads change no pixel"


def test_resume_after_an_interruption(tmp_path: Path) -> None:
    folder, out = folder_of(tmp_path, 6), tmp_path / "out"
    for number in (4, 5):  # still at work when the first report is heard
        picture(folder / f"p{number}.png", width_px=2500, height_px=2500)
    words = [sys.executable, "-m", "mimic", "convert", folder, "-o", out, *MPP, "--jobs", "2", "--resume", "--json"]
    with subprocess.Popen(words, env=environment(tmp_path / "tmp"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "report":
                break
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(PATIENCE_S) == 130
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
    assert workers and alive == []
    assert all(name.endswith(b".svs") for name in files(out)) and files(tmp_path / "tmp") == {}
    done = told(mimic(*map(str, words[3:]), "--jobs", "1"))
    assert list(done.values()).count("skipped") >= 1 and set(outputs(out)) == {f"p{number}.svs" for number in range(6)}


def test_killed_whole(tmp_path: Path) -> None:
    """kill -9 of the supervisor: its workers end by themselves, and tidy up."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for number in range(2):
        picture(folder / f"p{number}.png", width_px=2500, height_px=2500)
    words = [sys.executable, "-m", "mimic", "convert", folder, "-o", out, *MPP, "--jobs", "2", "--json"]
    with subprocess.Popen(words, env=environment(tmp_path / "tmp"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "progress"
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait(PATIENCE_S)
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
    assert workers and alive == []
    assert [name for name in files(tmp_path) if b".mimic-" in name] == []


def test_deidentified_slides_are_known_again_too(tmp_path: Path) -> None:
    """By their names, which are digests of their inputs; nothing in them tells of the input."""
    folder, out = folder_of(tmp_path, 2), tmp_path / "out"
    words = ("convert", folder, "-o", out, *MPP, "--json", "--resume", "--deidentify", "--report-dir", tmp_path / "r")
    assert mimic(*words).code == 0
    before = outputs(out)
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"slide-1.json", "slide-2.json"}
    again = mimic(*words)
    assert again.code == 0 and again.out.count('"skipped"') == 2 and outputs(out) == before
    for path in out.iterdir():
        assert b"Converter Key = - " in path.read_bytes() and b"p0" not in again.out.encode()


def test_resume_knows_every_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slide of several outputs is converted when all of them are there."""
    request = Request(picture(tmp_path / "a.png"), tmp_path / "out", Options())
    keys = {
        f"a_s{part}.svs": f"{provenance.input_key(request.input)} {provenance.options_key(request.options)} {part}/2"
        for part in (1, 2)
    }
    monkeypatch.setattr(resume, "_key", lambda path: keys[path.name])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_s2.svs").touch()
    assert resume.Finder().outputs(request) == ()
    (tmp_path / "out" / "a_s1.svs").touch()
    assert len(resume.Finder().outputs(request)) == 2


def test_shards_are_disjoint_and_cover_all(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 5)
    seen: list[str] = []
    for part in (1, 2, 3):
        done = mimic("convert", folder, "-o", tmp_path / "out", *MPP, "--shard", f"{part}/3", "--json")
        assert done.code == 0
        seen += told(done)
    assert sorted(seen) == [f"p{number}.png" for number in range(5)]
    empty = mimic("convert", folder / "p0.png", "-o", tmp_path / "e", *MPP, "--shard", "2/2")
    assert empty.code == 0 and not (tmp_path / "e").exists()


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_shards_that_cannot_be(shard: str, tmp_path: Path) -> None:
    done = mimic("convert", folder_of(tmp_path, 1), *MPP, f"--shard={shard}")
    assert done.code == 2 and "is no part of a whole" in done.err


def test_pictures_start_no_jvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(bfclient, "_start", lambda *words, **_: started.append(words))
    folder = folder_of(tmp_path, 3)
    assert mimic("info", folder / "p0.png").code == 0
    assert mimic("convert", folder, "-o", tmp_path / "out", *MPP).code == 0
    assert started == []


def test_slides_share_a_jvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, started = bfclient.Server, []

    def counted(*words: Any, **more: Any) -> bfclient.Server:
        started.append(words)
        return real(*words, **more)

    monkeypatch.setattr(bfclient, "Server", counted)
    for name in ("a.czi", "b.czi"):
        (tmp_path / "in").mkdir(exist_ok=True)
        os.link(SAMPLE_CZI, tmp_path / "in" / name)
    assert mimic("convert", tmp_path / "in", "-o", tmp_path / "out", "--source", "bioformats").code == 0
    assert len(started) == 1


def test_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the slides under way, and the time left by the sizes of files."""
    drawn = io.StringIO()
    monkeypatch.setattr(screen, "err", Console(file=drawn, force_terminal=True, width=100))
    small, large = (Request(picture(tmp_path / name, width_px=px)) for name, px in (("s.png", 100), ("l.png", 900)))
    now = time.monotonic()
    board = screen_batch.Board((small, large), others=1, as_json=False, quiet=False)
    assert board.left_s() is None
    with board:
        board(small, Progress("convert", 1, 2))
        board(large, Progress("convert", 1, 10))
        monkeypatch.setattr(time, "monotonic", lambda: now + 100)
        board.done(small)
        left_s = board.left_s()
        monkeypatch.undo()
    assert left_s is not None and 300 < left_s < 900, "a tenth of the size and a tenth of the rest in 100 s"
    assert "l.png" in drawn.getvalue() and "1 of 3 slides done" in drawn.getvalue()


def test_lines_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = screen_batch.Board([Request(tmp_path / "a.png")], others=0, as_json=False, quiet=False)
    board._said -= screen_batch.LINE_EVERY_S
    board(Request(tmp_path / "a.png"), Progress("convert", 1, 2))
    assert "0 of 1 slides done, 1 under way" in capsys.readouterr().err
