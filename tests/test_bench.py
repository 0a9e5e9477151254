"""The benchmark: it runs, its tables are complete, and what it measures is what there is to measure. Nothing is timed:
how long anything takes on a busy machine says nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest
from PIL import Image

from tools.bench import inputs, installs, meter, peers, rounds, table
from tools.bench.canvas import GLASS_RGB, GLASS_SHARE, SIZES, Canvas
from tools.bench.meter import Measured, Step
from tools.bench.quality import Quality, judge
from tools.bench.ratios import ratios, spread
from tools.bench.rounds import Row

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells shared pages and deleted files apart")


def bench(*words: str | Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": ""}  # the command must find its own modules
    argv = [sys.executable, ROOT / "tools" / "bench", *words]
    return subprocess.run(argv, env=env, cwd=words[-1], capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One work folder for all: inputs are made once."""
    return tmp_path_factory.mktemp("bench-work")


@pytest.fixture(scope="session", autouse=True)
def needed(require_module: Callable[[str], ModuleType]) -> None:
    for name in ("matplotlib", "pylibCZIrw.czi", "skimage", "tifftools"):
        require_module(name)


# --- the whole command -------------------------------------------------------------------------------------------


def test_one_command_measures_a_czi(work: Path, tmp_path: Path, require_tool: Callable[[str], str]) -> None:
    require_tool("tiffcp")
    only = ("mimic", "recipe", "vips", "decode", "encode", "cp")
    options = ("--size", "1k", "--runs", "1", "--no-install", "--inputs", "czi-jxr", "--only", ",".join(only))
    done = bench(*options, "--work", work, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "bench.json").read_text())
    (result,) = told["results"]
    assert (result["kind"], result["width_px"], result["height_px"]) == ("czi-jxr", *SIZES["1k"])
    rows = {row["name"]: row for row in result["rows"]}
    assert tuple(rows) == only
    assert {name for name, row in rows.items() if row["error"]} == {"vips"}  # libvips reads no CZI, and says so
    assert "not a known file format" in rows["vips"]["error"] and str(work) not in rows["vips"]["error"]
    for name in only[:2]:
        assert rows[name]["runs"][0]["cpu_s"] > 0 and rows[name]["runs"][0]["peak_bytes"] > 50 * MIB
        assert rows[name]["output_bytes"] > 100_000
    assert len(rows["recipe"]["runs"][0]["steps_s"]) == 4
    assert rows["recipe"]["quality"]["ssim"] == 1  # it keeps every pixel
    assert 30 < rows["mimic"]["quality"]["psnr_db"] < 60
    assert rows["mimic"]["inner"][0].keys() == {"convert_s", "verify_s", "report_s"}
    assert rows["decode"]["inner"][0]["read_px"] == 1024 * 768
    assert rows["encode"]["inner"][0]["coded_bytes"] > 50_000
    assert told["machine"].keys() >= {"date", "processor", "cores", "mimic", "Java", "Bio-Formats"}
    _complete((tmp_path / "bench.md").read_text(), [peers.CONTENDERS[at].title for at in (0, 1, 2)])
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_and_small_commands(work: Path, tmp_path: Path) -> None:
    options = ("--size", "1k", "--runs", "1", "--no-install", "--inputs", "png", "--only", "mimic,vips")
    done = bench(*options, "--work", work, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "bench.json").read_text())
    assert [len(row["runs"]) for row in told["results"][0]["rows"]] == [1, 1]
    assert [row["name"] for row in told["commands"]] == ["mimic --help", "mimic info x.png"]
    text = (tmp_path / "bench.md").read_text()
    assert "png: mimic over vips" in text and "`mimic --help`, CPU" in text
    assert not list(work.glob("runs-*")), "a run was left behind"


def _complete(text: str, titles: list[str]) -> None:
    """Every row has as many cells as the head."""
    cells = {line.count("|") for line in text.split("## ")[1].splitlines() if line.startswith("|")}
    assert len(cells) == 1
    for title in titles:
        assert f"| {title} |" in text


@pytest.mark.parametrize("words", [("--only", "photoshop"), ("--inputs", "gif"), ("--runs", "0"), ("--threads", "999")])
def test_what_makes_no_sense_is_refused(words: tuple[str, str], tmp_path: Path) -> None:
    done = bench(*words, "--work", tmp_path, "--out", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr


# --- inputs ------------------------------------------------------------------------------------------------------


def test_a_piece_of_the_canvas_is_the_same_however_it_is_read() -> None:
    canvas = Canvas(*SIZES["2k"])
    whole = canvas.read(0, 0, 2048, 1536)
    assert np.array_equal(canvas.read(900, 1000, 300, 200), whole[1000:1200, 900:1200])


def test_the_canvas_has_glass_and_is_nowhere_flat() -> None:
    pixels = Canvas(*SIZES["2k"]).read(0, 0, 2048, 1536).astype(int)
    glass = (np.abs(pixels - np.array(GLASS_RGB)).max(axis=2) < 10).mean()
    assert abs(glass - GLASS_SHARE) < 0.1
    blocks = pixels.reshape(48, 32, 64, 32, 3).std(axis=(1, 3))
    assert blocks.min() > 0.5
    assert len({block.tobytes() for block in pixels.reshape(6, 256, 8, 256, 3).swapaxes(1, 2).reshape(48, -1)}) == 48


@pytest.mark.parametrize("kind", ["czi-raw", "czi-zstd", "tiff-strips", "tiff-tiles", "png"])
def test_lossless_inputs_hold_the_canvas(kind: str, work: Path) -> None:
    canvas = Canvas(*SIZES["1k"])
    made = inputs.make(kind, work / "inputs" / "1k", canvas)
    if kind.startswith("czi"):
        (pixels,) = inputs.read_czi(made.path, canvas, [(0, 0, 1024, 768)])
    else:
        with Image.open(made.path) as image:
            pixels = np.asarray(image)
    assert np.array_equal(pixels, canvas.read(0, 0, 1024, 768))
    boxes, truth = inputs.load_truth(made)
    x, y, width, height = boxes[3]
    assert np.array_equal(truth[3], pixels[y : y + height, x : x + width])


def test_an_input_is_made_once(work: Path) -> None:
    canvas = Canvas(*SIZES["1k"])
    made = inputs.make("png", work / "inputs" / "1k", canvas)
    before = made.path.stat().st_mtime_ns
    assert inputs.make("png", work / "inputs" / "1k", canvas) == made
    assert made.path.stat().st_mtime_ns == before


def test_quality_notices_a_shift_and_what_cannot_be_read(work: Path, tmp_path: Path) -> None:
    canvas = Canvas(*SIZES["1k"])
    made = inputs.make("tiff-tiles", work / "inputs" / "1k", canvas)
    assert judge(made, made.path) == Quality(99.0, 1.0)
    shifted = tmp_path / "shifted.tif"
    inputs.write_tiles(shifted, _Shifted(*SIZES["1k"]), None)
    assert (judge(made, shifted).psnr_db or 99) < 35
    assert "OpenSlide" in (judge(made, tmp_path / "none.svs").error or "")


class _Shifted(Canvas):
    def read(self, x_px: int, y_px: int, width_px: int, height_px: int) -> inputs.RGB:
        return Canvas.read(self, x_px + 2, y_px, width_px, height_px)


# --- measuring ---------------------------------------------------------------------------------------------------


def python(script: str) -> Step:
    return Step((sys.executable, "-c", script))


TREE = """
import subprocess, sys, time
held = bytearray(b'x') * (60 << 20)
child = "import time; held = bytearray(b'y') * (50 << 20); time.sleep(1)"
subprocess.run([sys.executable, '-c', child])
"""


def test_memory_is_that_of_the_whole_tree(tmp_path: Path) -> None:
    measured = meter.run([python(TREE)], tmp_path, deadline_s=60)
    assert measured.error is None
    assert 110 * MIB < measured.peak_bytes < 180 * MIB


SHARED = """
import mmap, os, time
held = mmap.mmap(-1, 100 << 20)
reader, writer = os.pipe()
if os.fork() == 0:
    for _ in range(100):
        held.write(b'x' * (1 << 20))
    os.write(writer, b'!')
    time.sleep(1)
    os._exit(0)
os.read(reader, 1)
sum(held[at] for at in range(0, 100 << 20, 4096))
os.wait()
"""
"""The parent, which is looked at first, maps the pages last: no look can find them unshared in both."""


@linux_only
def test_shared_pages_count_once(tmp_path: Path) -> None:
    measured = meter.run([python(SHARED)], tmp_path, deadline_s=60)
    assert measured.error is None
    assert measured.peak_rss_bytes > 200 * MIB
    assert 100 * MIB < measured.peak_bytes < 160 * MIB


BUSY = """
import subprocess, sys
work = "import time\\nwhile time.process_time() < 0.6: pass"
subprocess.run([sys.executable, '-c', work])
"""


def test_processor_time_of_children_counts_over_all_steps(tmp_path: Path) -> None:
    measured = meter.run([python(BUSY), python(BUSY)], tmp_path, deadline_s=60)
    assert measured.cpu_s >= 1.2 and len(measured.steps_s) == 2


UNLINKED = """
import os, time, tempfile
with tempfile.TemporaryFile() as file, open('kept', 'wb') as kept:
    file.write(os.urandom(8 << 20)); file.flush()
    kept.write(os.urandom(4 << 20)); kept.flush()
    time.sleep(1)
"""


@linux_only
def test_deleted_files_that_are_open_take_up_disk(tmp_path: Path) -> None:
    measured = meter.run([python(UNLINKED)], tmp_path, deadline_s=60)
    assert 12 * MIB <= measured.peak_disk_bytes < 16 * MIB


def test_a_failure_says_why_and_stops_the_rest(tmp_path: Path) -> None:
    steps = [python("raise SystemExit('cannot read /home/somebody/slides/x.czi')"), python("open('reached', 'w')")]
    measured = meter.run(steps, tmp_path, deadline_s=60)
    assert measured.error == "cannot read x.czi (exit code 1)"
    assert not (tmp_path / "reached").exists()
    assert "No such file" in (meter.run([Step(("/nowhere/tool",))], tmp_path, deadline_s=60).error or "")


def test_the_deadline_kills_the_whole_tree(tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    measured = meter.run([python(script)], tmp_path, deadline_s=1)
    assert measured.error == "no end within 1 s"
    assert not [each for each in psutil.Process().children(recursive=True) if "600" in " ".join(each.cmdline())]


# --- rounds and tables -------------------------------------------------------------------------------------------


def test_ratios_are_taken_within_rounds() -> None:
    """A round in which everything was twice as slow changes no ratio."""
    assert ratios([2.0, 4.0, 2.0], [1.0, 2.0, 1.0]) == [2.0, 2.0, 2.0]
    assert ratios([3.0], [1.0, 9.0]) == [3.0]


def test_spread_is_the_median_and_how_far_it_goes() -> None:
    found = spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.median, found.low, found.high, found.first_quartile, found.third_quartile) == (3, 1, 5, 2, 4)
    assert found.text(1) == "3.0 (1.0-5.0)" and spread([2.0]).text() == "2.00"
    with pytest.raises(ValueError, match="nothing"):
        spread([])


MEASURED = Measured(10.0, 18.0, 900 * MIB, 950 * MIB, 120 * MIB, (10.0,))


def row(name: str, *walls_s: float, error: str | None = None) -> Row:
    runs = [replace(MEASURED, wall_s=wall_s) for wall_s in walls_s]
    found = Quality(38.0, 0.95) if walls_s else Quality()
    inner: list[dict[str, float]] = [{"verify_s": 1.0} for _ in walls_s]
    return Row(name, name, True, runs, inner, [1_000_000 for _ in walls_s], 100_000_000, found, error)


def result(kind: str, *rows: Row) -> table.Result:
    return table.Result(kind, 8192, 6144, 50_000_000, rows)


def test_the_table_has_a_row_for_all_and_the_reason_for_what_is_missing() -> None:
    failed = row("vips", error="it reads | no CZI")
    text = table.markdown([result("czi-jxr", row("mimic", 10, 11), row("recipe", 30, 22), failed)], [], "M.", ["note"])
    assert "| recipe | 26.00 (22.00-30.00) | 18.00 | 900 | 1 | 100.0 | 38.0 | 0.950 | 2.50 (2.00-3.00) | 2 |" in text
    assert "| vips | - | - | - | - | - | - | - | - | it reads / no CZI |" in text
    assert "M." in text and "- note" in text


@pytest.mark.parametrize(("recipe_s", "met"), [(26.0, True), (24.0, False)])
def test_a_goal_is_reached_or_missed(recipe_s: float, met: bool) -> None:
    rows = table.goals([result("czi-jxr", row("mimic", 10.0), row("recipe", recipe_s))], [])
    (found,) = [line for line in rows if "recipe" in line]
    assert ("missed" in found) is not met


def test_passthrough_is_compared_without_its_verification() -> None:
    rows = table.goals([result("svs", row("mimic", 10.0), row("cp", 4.6))], [])
    (found,) = [line for line in rows if "passthrough" in line]
    assert "1.96" in found and "missed" not in found


def test_rounds_turn_and_a_contender_that_fails_runs_once(work: Path, tmp_path: Path) -> None:
    made = inputs.make("png", work / "inputs" / "1k", Canvas(*SIZES["1k"]))
    seen = []

    def steps(name: str, script: str) -> Callable[[peers.Task], list[Step]]:
        def make(task: peers.Task) -> list[Step]:
            seen.append(name)
            return [Step((sys.executable, "-c", script, task.output))]

        return make

    copied = "import sys; open(sys.argv[1], 'w').write('x')"
    contenders = [
        peers.Contender("one", "one", steps("one", copied), converts=False),
        peers.Contender("two", "two", steps("two", "raise SystemExit(3)")),
        peers.Contender("three", "three", steps("three", "")),
        peers.Contender("four", "four", steps("four", copied), converts=False),
        peers.Contender("other", "other", steps("other", copied), kinds=("svs",)),
    ]
    rows = rounds.play(made, contenders, {}, rounds.Rules(2, 1, 60.0), place=tmp_path, tell=lambda _: None)
    assert seen == ["one", "two", "three", "four", "four", "one", "four", "one"]
    assert [len(each.runs) for each in rows] == [2, 0, 0, 2, 0]
    assert [each.error and each.error[:20] for each in rows] == [
        None,
        "it said nothing (exi",
        "it ended well and wr",
        None,
        "makes no sense for t",
    ]


def test_every_peer_has_packages() -> None:
    assert {each.venv for each in peers.CONTENDERS if each.venv} == set(installs.PACKAGES)
    assert {kind for each in peers.CONTENDERS for kind in each.kinds or ()} <= set(inputs.KINDS)
