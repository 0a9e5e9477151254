"""The command line: what each command says, in text and in JSON, and its exit code."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openslide
import pytest
import tifffile

from mimic import errors, report, sources
from mimic.cli import app
from mimic.model import Plan, Progress, Request
from mimic.screen_progress import Watcher
from mimic.screen_text import shown
from tests.command import PATIENCE_S, ROOT, Done, environment, files, mimic, picture, process
from tests.conftest import SAMPLE_CZI

COMMANDS = ("convert", "info", "plan", "check", "doctor")
MPP = ("--mpp", "0.5")


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Two good pictures, one of them deeper, and a bad one."""
    folder = tmp_path / "in"
    picture(folder / "a.png")
    picture(folder / "deep" / "b.tif")
    (folder / "bad.png").write_bytes(b"")
    return folder


def events(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


def script(code: str, *, temporary: Path, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-W", "error", "-c", code]
    env = environment(temporary)
    return subprocess.run(words, env=env, stdin=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


# ---------------------------------------------------------------- help, versions, usage


def test_help_and_import_load_nothing_heavy(tmp_path: Path) -> None:
    code = """
import sys
sys.argv = ["mimic", "--help"]
import mimic
import mimic.cli
try:
    mimic.cli.main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {"numpy", "jpype", "lxml", "ome_types", "pyvips", "openslide", "tifffile", "imagecodecs", "PIL", "mimic.model"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert not [name for name in sys.modules if name.startswith("mimic.programs")]
"""
    done = script(code, temporary=tmp_path / "t")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_front_imports_less_still(tmp_path: Path) -> None:
    code = "import sys, mimic; print(sorted({'click', 'rich', 'numpy', 'mimic.cli'} & set(sys.modules)))"
    assert script(code, temporary=tmp_path / "t").stdout == "[]\n"


@pytest.mark.parametrize("kind", ["czi", "png"])
def test_the_readers_that_prove_are_loaded_while_pixels_are_read(kind: str, tmp_path: Path) -> None:
    source = SAMPLE_CZI if kind == "czi" else picture(tmp_path / "a.png")
    code = f"""
import sys
import mimic
from mimic import imports
plain = imports.behind
def told(*names, **more):
    late = {{"openslide", "tifffile", "mimic.proof", "mimic.verify", "mimic.edit", "pydicom", "pydantic"}}
    print(sorted(late & set(sys.modules)), "mimic.proof" in names)
    return plain(*names, **more)
imports.behind = told
mimic.convert({str(source)!r}, {str(tmp_path / "a.svs")!r}, mpp_um=0.5)
"""
    done = script(code, temporary=tmp_path / "t")
    assert done.stdout == "[] True\n", done.stderr


@pytest.mark.parametrize(("kind", "early"), [("czi", ["lxml", "mimic.sources.czi"]), ("png", []), ("tif", [])])
def test_a_command_loads_little_before_its_first_pixel(kind: str, early: list[str], tmp_path: Path) -> None:
    """What takes long to load and is needed for some inputs, or at the end, or only by what Click replaced."""
    source = SAMPLE_CZI if kind == "czi" else picture(tmp_path / f"a.{kind}")
    code = f"""
import sys
from mimic import imports
plain = imports.behind
def told(*names, **more):
    late = {{"rich", "importlib.metadata", "email", "lxml", "pydantic", "mimic.harvest", "mimic.sources.czi"}}
    print("early:", sorted(late & set(sys.modules)))
    return plain(*names, **more)
imports.behind = told
sys.argv = ["mimic", "convert", {str(source)!r}, "-o", {str(tmp_path / "a.svs")!r}, "--mpp", "0.5"]
from mimic.cli import main
try:
    main()
finally:
    print("versions:", "importlib.metadata" in sys.modules)
"""
    done = script(code, temporary=tmp_path / "t")
    assert done.stdout.startswith(f"early: {early}\n") and "verified" in done.stdout, done.stdout + done.stderr
    assert done.stdout.endswith("versions: False\n"), "only a report tells them"


def test_help_documents_every_exit_code() -> None:
    codes = {each.exit_code for each in errors.MimicError.__subclasses__()} | {0}
    for argv in (["--help"], *([command, "--help"] for command in COMMANDS)):
        done = mimic(*argv)
        said = " ".join(done.out.split())
        assert done.code == 0 and done.err == ""
        told = said[said.index("Exit codes:") :]
        assert {int(number) for number in re.findall(r"\b\d+\b", told)} == codes


def test_every_option_has_help() -> None:
    for name, command in app.commands.items():
        assert command.help and [param.name for param in command.params if not getattr(param, "help", None)] == [], name


def test_version() -> None:
    from mimic import __version__

    assert mimic("--version") == Done(0, f"mimic {__version__}\n", "")


@pytest.mark.parametrize(
    "argv",
    [
        ("frobnicate",),
        ("convert",),
        ("convert", "--frob", "x"),
        ("convert", "x", "-q", "high"),
        ("convert", "x", "--macro", "burn"),
        ("convert", "x", "--verify", "none"),
        ("info",),
        ("info", "a", "b"),
        ("check",),
    ],
)
def test_usage(argv: tuple[str, ...]) -> None:
    done = mimic(*argv)
    assert done.code == 2 and "Usage" in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("-q", "0"), "quality 0"),
        (("--label", "burn"), "neither a wish nor a file"),
        (("-q", "101"), "quality 101"),
        (("--tile", "250"), "tile size 250"),
        (("--downsample", "3"), "2 or 4"),
        (("--mpp", "0"), "--mpp 0"),
        (("--mpp", "nan"), "--mpp nan"),
        (("--appmag", "-20"), "--appmag -20"),
        (("--threads", "0"), "0 threads"),
        (("--image", "7"), "no image 7"),
        (("--source", "magic"), "vips, czi, openslide, bioformats, bfconvert"),
        (("-o", "out.tif"), "out.tif"),
    ],
)
def test_values_that_make_no_sense(argv: tuple[str, ...], words: str, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    for command in ("convert", "plan"):
        if command == "plan" and argv[0] == "--threads":
            continue
        done = mimic(command, path, *MPP, *argv)
        assert done.code == 2 and words in done.message
    assert set(files(tmp_path)) == {b"a.png"}


def test_completion(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['mimic']; from mimic.cli import main; main()"
    told = {"bash_source": "_MIMIC_COMPLETE", "bash_complete": "plain,convert"}
    for instruction, words in told.items():
        env = environment(tmp_path / "t", _MIMIC_COMPLETE=instruction, COMP_WORDS="mimic con", COMP_CWORD="1")
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
        assert words in done.stdout and done.stderr == ""


# ---------------------------------------------------------------- convert


def test_one_picture_in_one_line(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    done = mimic("convert", path, "--mpp", "0.25", "--appmag", "40")
    assert done.code == 0 and done.err == ""
    assert re.fullmatch(
        rf"{re.escape(str(path))} -> {re.escape(str(tmp_path))}/a\.svs: 400 x 300 px, 1 level, 0\.25 um/px, 40x, "
        r"[\d.]+ kB, verified by \d+ checks, [\d.]+ s\n",
        done.out,
    ), done.out
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert (slide.properties["openslide.mpp-x"], slide.properties["openslide.objective-power"]) == ("0.25", "40")


def test_folders_files_and_globs_together(slides: Path, tmp_path: Path) -> None:
    picture(tmp_path / "more" / "c1.png")
    picture(tmp_path / "more" / "c2.png")
    picture(tmp_path / "d.png")
    out = tmp_path / "out"
    done = mimic("convert", slides, f"{tmp_path}/more/c*.png", tmp_path / "d.png", *MPP, "-o", out)
    assert done.code == 3, "the highest of all"
    assert set(files(out)) == {b"a.svs", b"deep/", b"deep/b.svs", b"c1.svs", b"c2.svs", b"d.svs"}
    assert "bad.png: " in done.message
    table = done.out[done.out.index("6 slides") :]
    assert table.count("converted") == 6 and "5 converted, 1 failed" in table
    for name in ("a.png", "b.tif", "bad.png", "c1.png", "c2.png", "d.png"):
        assert name in table


def test_recursive_glob_and_file_named_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "x" / "y" / "a.png")
    picture(tmp_path / "[ab].png")
    picture(tmp_path / "b.png")
    monkeypatch.chdir(tmp_path)
    assert mimic("convert", "**/a.png", "[ab].png", *MPP, "-o", "out").code == 0
    assert set(files(tmp_path / "out")) == {b"a.svs", b"[ab].svs"}, "the file of that name, not the pattern"
    done = mimic("convert", "none*.png")
    assert done.code == 3 and "none*.png: there is no such file" in done.message


def test_skipped_files_are_told(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    assert mimic("convert", path, *MPP).code == 0
    done = mimic("convert", tmp_path, *MPP, "--overwrite")
    assert done.code == 0 and "a.svs: skipped, is an SVS already; give an output folder with -o" in done.out
    assert "1 converted, 1 skipped" in done.out
    path.unlink()
    done = mimic("convert", tmp_path)
    assert done.code == 2 and "no slide in" in done.err and "a.svs: is an SVS already" in done.err


def test_companions_are_not_slides_of_their_own(corpus_file: Callable[[str], Path], tmp_path: Path) -> None:
    """A DICOM series as a folder, as one member, as several: one output each."""
    folder = corpus_file("dicom/cmu_small_region_series")
    members = sorted(folder.iterdir())
    for number, named in enumerate(([folder], members[2:3], members[:3])):
        done = mimic("convert", *named, "-o", tmp_path / str(number))
        assert done.code == 0, done
        (output,) = (tmp_path / str(number)).iterdir()
        with openslide.OpenSlide(output) as slide:
            assert slide.dimensions == (2220, 2967) and set(slide.associated_images) >= {"label", "macro"}


def test_json_events(slides: Path, tmp_path: Path) -> None:
    done = mimic("convert", slides, *MPP, "-o", tmp_path / "out", "--json")
    told = events(done)
    assert done.code == 3 and done.err == ""
    assert {each["event"] for each in told} == {"progress", "report"}
    reports = [each["report"] for each in told if each["event"] == "report"]
    assert [Path(each["input"]).name for each in reports] == ["a.png", "bad.png", "b.tif"]
    assert [each["status"] for each in reports] == ["converted", "failed", "converted"]
    assert [each["exit_code"] for each in reports] == [0, 3, 0] and told[-1]["report"] == reports[-1]
    steps = [each for each in told if each["event"] == "progress" and each["input"].endswith("a.png")]
    assert [each["stage"] for each in steps] == ["convert", "check"]
    assert all(0 < each["done_px"] <= each["total_px"] for each in steps)


def test_report_has_everything(tmp_path: Path) -> None:
    words = ("convert", SAMPLE_CZI, "-o", tmp_path / "x.svs", "--source", "bioformats")
    done = mimic(*words, "--report", tmp_path / "r.json", "--quiet")
    assert done.code == 0 and done.err == ""
    told = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert told["schema"] == 1 and told["status"] == "converted" and told["exit_code"] == 0
    assert list(told["input_sha256"]) == [str(SAMPLE_CZI)] and len(told["input_sha256"][str(SAMPLE_CZI)]) == 64
    (result,) = told["results"]
    assert result["written"]["path"] == str(tmp_path / "x.svs")
    assert result["written"]["bytes"] == (tmp_path / "x.svs").stat().st_size
    assert len(result["plan"]["reasons"]) >= 5 and all(check["passed"] for check in result["checks"] if check["must"])
    assert {stage["name"] for stage in result["stages"]} == {"convert", "verify"}
    tools = {tool["name"]: tool["version"] for tool in told["tools"]}
    assert tools["Bio-Formats"] == "7.3.1" and all(tools.values())


@pytest.mark.parametrize("words", [(), ("--report", "r.json"), ("--report-dir", "r"), ("--json",)])
def test_files_are_digested_for_reports_alone(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    plain = report.Digests._digest
    monkeypatch.setattr(report.Digests, "_digest", lambda self, path: read.append(path) or plain(self, path))
    monkeypatch.chdir(tmp_path)
    source = picture(tmp_path / "a.png")
    assert mimic("convert", source, "--mpp", "0.5", *words).code == 0
    assert [path.name for path in read] == (["a.png", "slide.svs"] if words else [])


def test_reports_of_several(slides: Path, tmp_path: Path) -> None:
    argv = ("convert", slides, *MPP, "--overwrite", "-o", tmp_path / "out", "--report")
    assert mimic(*argv, tmp_path / "all.json").code == 3
    assert [each["status"] for each in json.loads((tmp_path / "all.json").read_text())].count("converted") == 2
    assert mimic(*argv, tmp_path / "reports").code == 3
    assert set(files(tmp_path / "reports")) == {b"a.png.json", b"bad.png.json", b"b.tif.json"}


def test_report_that_cannot_be_written_ends_nothing(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "reports" / "a.png.json").mkdir(parents=True)
    done = mimic("convert", slides, *MPP, "-o", tmp_path / "out", "--report", tmp_path / "reports")
    assert done.code == 7 and "a.png.json: cannot be written" in done.err
    assert "2 converted, 1 failed" in done.out


def test_overwrite_log_and_quiet(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    log = tmp_path / "log.txt"
    assert mimic("convert", path, *MPP, "--log-file", log).code == 0
    assert mimic("convert", path, *MPP, "--log-file", log).code == 7
    assert "is there already" in log.read_text(encoding="utf-8")
    before = (tmp_path / "a.svs").stat().st_ino
    assert mimic("convert", path, *MPP, "--log-file", log, "--overwrite", "--quiet").code == 0
    assert (tmp_path / "a.svs").stat().st_ino != before


def test_a_bug_is_one_line_and_its_traceback_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def broken(*_: object, **__: object) -> None:
        called.append(1)
        raise ZeroDivisionError("by mistake")

    monkeypatch.setattr("mimic.executors.convert", broken)
    monkeypatch.setattr("mimic.verify.check", broken)
    path = picture(tmp_path / "a.png")
    for argv in (("convert", path, path.with_name("b.png"), *MPP), ("check", path)):
        done = mimic(*argv, "--log-file", tmp_path / "log")
        assert done.code == 1 and "Traceback" not in done.err + done.out
        assert "a bug in mimic: ZeroDivisionError: by mistake. Please report it" in done.err
        log = (tmp_path / "log").read_text(encoding="utf-8")
        assert "Traceback" in log and "in broken" in log
    assert len(called) == 3, "a bug in one slide does not stop the next"


def test_options_reach_the_slide(tmp_path: Path) -> None:
    out = tmp_path / "x.svs"
    done = mimic(
        *("convert", SAMPLE_CZI, "-o", out, "-q", "60", "--rgb-jpeg", "--tile", "512", "--downsample", "2"),
        *("--label", "drop", "--macro", "drop", "--verify", "full", "--threads", "2", "--report", tmp_path / "r.json"),
    )
    assert done.code == 0, done
    with tifffile.TiffFile(out) as file:
        page = file.pages.first
        assert (page.tilewidth, page.photometric) == (
            512,
            tifffile.PHOTOMETRIC.RGB,
        ) and "|AppMag = 40" in page.description
    with openslide.OpenSlide(out) as slide:
        assert set(slide.associated_images) == {"thumbnail"}
        assert [round(factor, 2) for factor in slide.level_downsamples[:2]] == [1, 2]
    result = json.loads((tmp_path / "r.json").read_text())["results"][0]
    assert (result["plan"]["quality"], result["plan"]["threads"], result["plan"]["verify"]) == (60, 2, "full")
    assert "every pixel" in [check["name"] for check in result["checks"]]


def test_small_files_are_quicker_with_low_quality(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    sizes = []
    for quality in ("30", "95"):
        assert mimic("convert", path, *MPP, "-q", quality, "--overwrite").code == 0
        sizes.append((tmp_path / "a.svs").stat().st_size)
    assert sizes[0] * 2 < sizes[1]


def test_image_by_number(corpus_file: Callable[[str], Path], tmp_path: Path) -> None:
    """A label can be converted as a slide when it is asked for, and gets a name of its own."""
    told = json.loads(mimic("info", SAMPLE_CZI, "--json").out)
    index = next(image["index"] for image in told["images"] if image["role"] == "macro")
    assert mimic("convert", SAMPLE_CZI, "--image", str(index), *MPP, "-o", tmp_path).code == 0
    (output,) = tmp_path.iterdir()
    assert openslide.OpenSlide(output).dimensions == (960, 323)
    done = mimic("convert", corpus_file("czi/two_scenes_u16_z2.czi"), "--image", "1", "-o", tmp_path)
    assert done.code == 0
    second = openslide.OpenSlide(tmp_path / "two_scenes_u16_z2_s2.svs")
    assert second.dimensions == (251, 251) and "10000-22353" in second.properties["aperio.Rendering"]


def test_deadline(tmp_path: Path) -> None:
    done = mimic("convert", picture(tmp_path / "a.png"), *MPP, "--deadline", "0")
    assert done.code == 9 and "not done within 0 s" in done.message
    assert set(files(tmp_path)) == {b"a.png"}


# ---------------------------------------------------------------- info, plan, check, doctor


def test_info() -> None:
    done = mimic("info", SAMPLE_CZI)
    assert done.code == 0 and done.err == ""
    for word in (
        "Zeiss CZI",
        "3072 x 2304",
        "0.22 x 0.22 um/px",
        "NominalMagnification",
        "label",
        "macro",
        "387 x 463",
    ):
        assert word in done.out, word
    told = json.loads(mimic("info", SAMPLE_CZI, "--json").out)
    assert told["images"][0]["scale"]["x_um"] == pytest.approx(0.22) and told["images"][0]["objective"]["power"] == 40


def test_plan_says_why_and_reads_no_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pixels were asked for")

    for name in sources.ORDER:
        monkeypatch.setattr(sources.load(name), "open", refuse)
    for path, argv in ((SAMPLE_CZI, ()), (picture(tmp_path / "a.png"), MPP)):
        done = mimic("plan", path, *argv, "-o", tmp_path)
        assert done.code == 0 and done.err == "" and done.out.count("\n  - ") >= 4
        told = json.loads(mimic("plan", path, *argv, "-o", tmp_path, "--json").out)
        assert told[0]["output"] == str(tmp_path / f"{path.stem}.svs") and len(told[0]["reasons"]) >= 4
    assert set(files(tmp_path)) == {b"a.png"}
    done = mimic("convert", SAMPLE_CZI, "-o", tmp_path)
    assert done.code == 1 and "pixels were asked for" in done.err, "the guard is in the way of those who do read"


def test_plan_without_scale_tells_the_remedy(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    for command in ("plan", "convert"):
        done = mimic(command, path)
        assert done.code == 3 and "--mpp" in done.message and "--no-scale" in done.message
    assert mimic("convert", path, "--no-scale").code == 0


def test_check_good_and_broken(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", width_px=900, height_px=700)
    assert mimic("convert", path, *MPP).code == 0
    good, bad = tmp_path / "a.svs", tmp_path / "bad.svs"
    done = mimic("check", good)
    assert done.code == 0 and " 0 broken" in done.out and done.out.count("ok") > 20
    data = bytearray(good.read_bytes())
    with tifffile.TiffFile(good) as file:
        offset = file.pages.first.dataoffsets[3]
    data[offset : offset + 200] = bytes(200)
    bad.write_bytes(data)
    done = mimic("check", good, bad, tmp_path / "none.svs")
    assert done.code == 8 and "BROKEN" in done.out and "none.svs" in done.message
    told = json.loads(mimic("check", good, bad, tmp_path / "none.svs", "--json").out)
    assert [each["exit_code"] for each in told] == [0, 8, 3]
    assert "no such file" in told[2]["error"] and not all(check["passed"] for check in told[1]["checks"])


def test_doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = mimic("doctor")
    assert done.code == 0 and "7.3.1" in done.out and "libvips" in done.out
    told = {each["name"]: each for each in json.loads(mimic("doctor", "--json").out)}
    assert told["Java"]["works"] and Path(told["Bio-Formats"]["path"]).exists()
    assert told["zarr"]["works"] and "optional" in told["bioformats2raw"]["use"]
    monkeypatch.setenv("MIMIC_BIOFORMATS2RAW", str(tmp_path / "none"))
    done = mimic("doctor")
    assert done.code == 5 and "MIMIC_BIOFORMATS2RAW" in done.out
    monkeypatch.delenv("MIMIC_BIOFORMATS2RAW")
    monkeypatch.setenv("MIMIC_JAVA", str(tmp_path / "none"))
    done = mimic("doctor")
    assert done.code == 5 and "MISSING" in done.out and "MIMIC_JAVA" in done.out


@pytest.mark.parametrize("name", ["MIMIC_JAVA", "MIMIC_BIOFORMATS"])
def test_missing_tool(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(name, str(tmp_path / "none"))
    done = mimic("convert", SAMPLE_CZI, "-o", tmp_path, "--source", "bioformats")
    assert done.code == 5 and name in done.message and files(tmp_path) == {}


# ---------------------------------------------------------------- terminals, pipes, places


def test_nobody_listens(tmp_path: Path) -> None:
    """``mimic info x | head -0``"""
    picture(tmp_path / "a.png")
    for argv in (["info", "a.png"], ["plan", "a.png", *MPP], ["--help"], ["convert", "a.png", *MPP, "--json"]):
        reading, writing = os.pipe()
        os.close(reading)
        words = [sys.executable, "-m", "mimic", *argv]
        env = environment(tmp_path / "t")
        done = subprocess.run(words, cwd=tmp_path, env=env, stdout=writing, stderr=subprocess.PIPE, check=False)
        os.close(writing)
        assert done.stderr == b"", (argv, done)
    assert list((tmp_path / "t").iterdir()) == [] and not list(tmp_path.glob(".mimic-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_progress_on_a_terminal(tmp_path: Path) -> None:
    import pty

    path = picture(tmp_path / "a.bmp", width_px=6000, height_px=6000)
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "mimic", "convert", path, *MPP, "--threads", "1"]
    env = environment(tmp_path / "t", TERM="xterm", COLUMNS="120")
    running = subprocess.Popen(words, env=env, stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path)
    os.close(slave)
    said = bytearray()
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        if select.select([master], [], [], 0.2)[0]:
            try:
                said += os.read(master, 65536)
            except OSError:  # Linux's word for the end of a terminal
                break
        elif running.poll() is not None:
            break
    os.close(master)
    assert running.wait(PATIENCE_S) == 0
    text = said.decode()
    assert re.search(r"a\.bmp: convert.*[━╸╺].* \d+%.* \d+ Mpx/s", text), text[-2000:]
    assert re.search(r"a\.bmp: check", text) and re.search(r"\d:\d\d:\d\d", text), "stages, and the time left"
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "a.svs: 6000 x 6000 px" in plain and "\x1b[?25h" in text, "the cursor is shown again"


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line every few seconds, none for a slide that takes less."""
    now = [100.0]
    monkeypatch.setattr("mimic.screen_progress.time.monotonic", lambda: now[0])
    request = Request(Path("[red]a.czi"))
    with Watcher(as_json=False, quiet=False) as watcher, Watcher(as_json=False, quiet=True) as quiet:
        for second in range(13):
            now[0] = 100.0 + second
            for each in (watcher, quiet):
                each(request, Progress("convert", second * 10_000_000, 200_000_000))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "[red]a.czi: convert 25%, 10 Mpx/s, 15 s left",
        "[red]a.czi: convert 50%, 10 Mpx/s, 10 s left",
    ]


def test_c_locale_and_narrow_encodings(tmp_path: Path) -> None:
    here = tmp_path / "here"
    picture(here / "é😀.png")
    for more in (
        {"LC_ALL": "C"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ):
        env = environment(tmp_path / "t", **more)
        done = process("convert", ".", *MPP, "--overwrite", "--json", cwd=here, env=env)
        assert done.code == 0 and done.err == "", (more, done)
        assert process("info", "é😀.png".encode(), cwd=here, env=env).code == 0
        (here / "é😀.svs").unlink()


def test_control_characters_do_not_reach_the_screen() -> None:
    assert shown("a\x1b[31m\n\u202e\x9b.czi") == "a\\x1b[31m\\n\\u202e\\x9b.czi"
    assert shown(os.fsdecode(b"\xff 1%")) == "\\udcff 1%"


def test_signals_are_as_before(tmp_path: Path) -> None:
    numbers = [signal.SIGINT, signal.SIGTERM]
    before = [signal.getsignal(number) for number in numbers]
    mimic("info", picture(tmp_path / "a.png"))
    assert [signal.getsignal(number) for number in numbers] == before


def test_running_from_anywhere(tmp_path: Path) -> None:
    """A folder with modules of the same names as ours and Python's does no harm to the JVM's process."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("jpype.py", "json.py", "mmap.py"):
        (here / name).write_text("raise SystemExit('planted')")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['mimic', 'info', {str(SAMPLE_CZI)!r}]; " + (
        "sys.path.remove('') if '' in sys.path else None; from mimic.cli import main; main()"
    )
    env = environment(tmp_path / "t")
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=here, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "planted" not in done.stdout + done.stderr, done


def test_plan_type_is_exported() -> None:
    """The annotation that the library promises."""
    import mimic as package

    assert package.Plan is Plan
