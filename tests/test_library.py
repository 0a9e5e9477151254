"""mimic as a library: the commands' behaviour as functions, every failure a MimicError."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType

import openslide
import psutil
import pytest

import mimic
from mimic import errors
from mimic.model import Progress
from tests.command import environment, files, picture
from tests.conftest import SAMPLE_CZI


def script(code: str, temporary: Path, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    """``code`` as a file that is run, without any guard."""
    temporary.mkdir(exist_ok=True)
    path = temporary.parent / "script.py"
    path.write_text(code, encoding="utf-8")
    words = [sys.executable, "-W", "error", path, *argv]
    env = environment(temporary)
    return subprocess.run(words, env=env, cwd=temporary.parent, capture_output=True, text=True, check=False)


def test_convert(tmp_path: Path) -> None:
    steps: list[Progress] = []
    report = mimic.convert(picture(tmp_path / "a.png"), mpp_um=0.5, quality=90, watch=steps.append)
    assert report.status == "converted" and report.outputs == (tmp_path / "a.svs",)
    assert openslide.OpenSlide(report.outputs[0]).properties["openslide.mpp-x"] == "0.5"
    assert report.results[0].plan.quality == 90 and {step.stage for step in steps} == {"convert", "check"}
    assert list(report.input_sha256) == [str(tmp_path / "a.png")]


def test_texts_and_paths_alike(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    assert mimic.probe(str(path)) == mimic.probe(path)
    assert mimic.plan(str(path), str(tmp_path / "x.svs"), mpp_um=0.5) == mimic.plan(
        path, tmp_path / "x.svs", mpp_um=0.5
    )
    assert mimic.convert(str(path), str(tmp_path / "out"), mpp_um=0.5).outputs == (tmp_path / "out" / "a.svs",)


def test_the_plan_is_what_is_done(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    plans = mimic.plan(path, mpp_um=0.5, tile_px=128)
    assert mimic.convert(path, mpp_um=0.5, tile_px=128).results[0].plan == plans[0]


def test_a_microscope_s_file(tmp_path: Path) -> None:
    slide = mimic.probe(SAMPLE_CZI)
    assert (slide.format, slide.source) == ("Zeiss CZI", "czi")
    report = mimic.convert(SAMPLE_CZI, tmp_path / "x.svs", label="drop")
    with openslide.OpenSlide(tmp_path / "x.svs") as written:
        assert written.dimensions == (3072, 2304) and "label" not in written.associated_images
    assert pickle.loads(pickle.dumps(report)) == report


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda place: mimic.convert(place / "none.czi"), errors.BadInput, "no such file"),
        (mimic.probe, errors.UsageError, "is a folder"),
        (lambda place: mimic.probe(place / "empty.czi"), errors.BadInput, "empty"),
        (lambda place: mimic.convert(place / "a.png"), errors.BadInput, "--mpp"),
        (lambda place: mimic.convert(place / "a.png", mpp_um=0.5), errors.OutputError, "is there already"),
        (lambda place: mimic.convert(place / "a.png", qualty=5), errors.UsageError, "no option qualty"),
        (lambda place: mimic.convert(place / "a.png", downsample=3), errors.UsageError, "2 or 4"),
        (lambda place: mimic.plan(place / "a.png", mpp_um=-1), errors.UsageError, "-1"),
        (lambda place: mimic.plan(place / "a.png", "out.tif", mpp_um=1), errors.UsageError, "out.tif"),
        (lambda place: mimic.probe(place / "a.png", source="magic"), errors.UsageError, "vips"),
        (
            lambda place: mimic.convert(place / "a.png", mpp_um=1, overwrite=True, deadline_s=0),
            errors.LimitReached,
            "0 s",
        ),
    ],
)
def test_failures(call, kind: type[errors.MimicError], words: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    picture(tmp_path / "a.png")
    (tmp_path / "empty.czi").write_bytes(b"")
    (tmp_path / "a.svs").write_bytes(b"an earlier output")
    before = files(tmp_path)
    with pytest.raises(kind) as caught:
        call(tmp_path)
    assert words in str(caught.value) and files(tmp_path) == before
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is kind and str(again) == str(caught.value)


def test_a_watcher_that_fails_ends_the_conversion(tmp_path: Path) -> None:
    """Its error is its caller's own; nothing is left."""

    class Stop(Exception):
        pass

    def stop(_: Progress) -> None:
        raise Stop

    path = picture(tmp_path / "a.png")
    with pytest.raises(Stop):
        mimic.convert(path, mpp_um=0.5, watch=stop)
    assert set(files(tmp_path)) == {b"a.png"}


def test_public_names() -> None:
    for name in mimic.__all__:
        assert getattr(mimic, name) is not None
    assert mimic.errors is errors and mimic.errors.BadInput.exit_code == 3
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mimic.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "order",
    ["import mimic.convert, mimic.plan, mimic.probe, mimic.edit, mimic.survey", "from mimic import convert", ""],
)
def test_modules_do_not_hide_functions(order: str, tmp_path: Path) -> None:
    code = f"""
import sys
{order}
import mimic.cli, mimic.executors
import mimic
from mimic import convert, edit, plan, probe, survey
from mimic.convert import plan_slide
assert type(mimic.convert) is type(mimic.plan) is type(mimic.probe) is type(lambda: 0), mimic.convert
assert type(mimic.edit) is type(mimic.survey) is type(lambda: 0), mimic.edit
assert convert is mimic.convert and type(sys.modules["mimic.convert"]).__name__ == "module"
"""
    done = script(code, tmp_path / "t")
    assert done.returncode == 0, done.stderr
    assert isinstance(mimic.convert, FunctionType)


def test_edit_and_check(tmp_path: Path) -> None:
    made = mimic.convert(picture(tmp_path / "a.png"), mpp_um=0.5, appmag=20).outputs[0]
    before = made.read_bytes()
    told = mimic.edit(made, appmag=40, pairs={"Title": "a"}, dry_run=True)
    assert not told.written and any("AppMag = 40" in line for line in told.difference)
    assert made.read_bytes() == before
    done = mimic.edit(str(made), tmp_path / "b.svs", appmag=40, pairs={"Title": "a"}, removes=["Date"])
    assert isinstance(done, mimic.Edited) and done.path == tmp_path / "b.svs" and made.read_bytes() == before
    assert openslide.OpenSlide(done.path).properties["aperio.Title"] == "a"
    for path in (made, done.path):
        assert [each.name for each in mimic.check(path) if each.must and not each.passed] == []
    assert [each.name for each in mimic.check(done.path, phi=True) if not each.passed] == ["descriptions"]
    with pytest.raises(errors.UsageError, match="no option appmg"):
        mimic.edit(made, appmg=40)
    with pytest.raises(errors.BadInput):
        mimic.check(tmp_path / "a.png")


def test_survey(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    seen: list[Path] = []
    found = mimic.survey(tmp_path, lambda *told: seen.append(told[2]))
    assert isinstance(found, mimic.Survey) and [row.file for row in found.rows] == ["a.png", "b.png"]
    assert [path.name for path in seen] == ["a.png", "b.png"]


def test_script_without_a_guard(tmp_path: Path) -> None:
    """The JVM's process runs a module of ours, and never the caller's script again."""
    code = """
import sys
print("once")
import mimic
report = mimic.convert(sys.argv[1], "out/")
print(*report.outputs)
"""
    done = script(code, tmp_path / "t", SAMPLE_CZI)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.split() == ["once", str(Path("out") / "sample_40x.svs")]
    assert set(files(tmp_path / "out")) == {b"sample_40x.svs"} and files(tmp_path / "t") == {}


def test_script_that_dies_leaves_no_process(tmp_path: Path) -> None:
    code = """
import sys, mimic
mimic.probe(sys.argv[1], source="bioformats")
import psutil
print(psutil.Process().children()[0].pid, flush=True)
raise KeyError("of the script's own")
"""
    done = script(code, tmp_path / "t", SAMPLE_CZI)
    assert done.returncode == 1 and "KeyError" in done.stderr
    assert not psutil.pid_exists(int(done.stdout)) and files(tmp_path / "t") == {}


def test_from_a_thread(tmp_path: Path) -> None:
    done: list[object] = []

    def work() -> None:
        try:
            done.append(mimic.convert(SAMPLE_CZI, tmp_path))
        except errors.MimicError as error:
            done.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert isinstance(done[0], mimic.Report) and done[0].outputs[0].exists()


def test_from_many_threads_at_once(tmp_path: Path) -> None:
    """Pictures and a JVM shared between them, one of them broken."""
    jobs = [picture(tmp_path / f"{number}.png", seed=number) for number in range(4)]
    (tmp_path / "bad.png").write_bytes(b"")

    def convert(path: Path) -> str:
        try:
            return mimic.convert(path, tmp_path / "out", mpp_um=0.5, threads=1).status
        except errors.BadInput:
            return "refused"

    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(convert, [SAMPLE_CZI, *jobs, tmp_path / "bad.png"]))
    assert told == ["converted"] * 5 + ["refused"]
    assert set(files(tmp_path / "out")) == {b"sample_40x.svs", b"0.svs", b"1.svs", b"2.svs", b"3.svs"}


def test_same_slide_gives_the_same_bytes(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", width_px=1500, height_px=1100)
    digests = set()
    for threads in (1, 3, 3):
        report = mimic.convert(path, mpp_um=0.5, threads=threads, overwrite=True)
        digests.add(report.results[0].written.sha256)
    assert len(digests) == 1
