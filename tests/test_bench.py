"""The benchmark: it runs, its tables are complete, and what it measures is what there is to measure. Nothing is timed:
how long anything takes on a busy machine says nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from tools.bench import __main__ as command
from tools.bench import goals, inputs, installs, meter, peers, results, rounds, table
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
    assert rows["mimic"]["stages"].keys() == {"convert_s", "verify_s", "report_s"}
    assert rows["decode"]["inner"][0]["read_px"] == 1024 * 768
    assert rows["encode"]["inner"][0]["coded_bytes"] > 50_000
    assert told["about"].keys() >= {"date", "processor", "cores", "mimic", "Java", "Bio-Formats"}
    _complete((tmp_path / "bench.md").read_text(), [peers.CONTENDERS[at].title for at in (0, 1, 2)])
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_and_small_commands(work: Path, tmp_path: Path) -> None:
    options = ("--size", "1k", "--runs", "1", "--no-install", "--inputs", "png", "--only", "mimic,vips")
    done = bench(*options, "--work", work, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "bench.json").read_text())
    assert [len(row["runs"]) for row in told["results"][0]["rows"]] == [1, 1]
    names = [row["name"] for row in told["commands"]]
    assert names[:2] == ["mimic --help", "mimic info x.png"] and names[2].startswith("mimic info x.png of ")
    text = (tmp_path / "bench.md").read_text()
    assert "png: mimic over vips" in text and "`mimic --help`, CPU" in text
    assert not list(work.glob("runs-*")), "a run was left behind"
    done = bench(*options, "--resume", "--also", "1k:jpeg", "--work", work, "--out", tmp_path)
    assert done.returncode == 0 and " png round" not in done.stderr and "commands round" not in done.stderr
    again = json.loads((tmp_path / "bench.json").read_text())
    assert again["results"][0] == told["results"][0]
    assert [(each["kind"], each["also"], len(each["rows"])) for each in again["results"]] == [
        ("png", False, 2),
        ("jpeg", True, 1),
    ]


@linux_only
def test_a_bench_that_is_ended_leaves_nothing_behind(work: Path, tmp_path: Path) -> None:
    options = ("--size", "1k", "--no-install", "--inputs", "png", "--only", "mimic", "--work", work, "--out", tmp_path)
    argv = [sys.executable, ROOT / "tools" / "bench", *options]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "commands round 0" in line:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert "interrupted" in process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert not list(work.glob("runs-*"))
    ends = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < ends:  # of a killed one, the parent of which is dead as well
        time.sleep(0.05)
    assert not [child for child in children if alive(child)]


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@linux_only
def test_an_end_while_a_run_is_being_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(*words: Any, **options: Any) -> None:
        started.append(plain(*words, **options))
        raise KeyboardInterrupt

    plain = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", interrupted)
    monkeypatch.setattr(command, "measure", lambda _: meter.run([meter.Step(("sleep", "60"))], tmp_path, deadline_s=9))
    assert command.main(["--work", str(tmp_path), "--out", str(tmp_path)]) == 130
    assert not psutil.pid_exists(started[0].pid)
    assert started[0].poll() is not None


def _complete(text: str, titles: list[str]) -> None:
    """Every row has as many cells as the head."""
    cells = {
        line.count("|") for line in text.split("## czi-jxr")[1].split("\n## ")[0].splitlines() if line.startswith("|")
    }
    assert len(cells) == 1
    for title in titles:
        assert f"| {title} |" in text


@pytest.mark.parametrize(
    "words", [("--only", "photoshop"), ("--inputs", "gif"), ("--runs", "0"), ("--threads", "999"), ("--also", "9k:png")]
)
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
    same = judge(made, made.path)
    assert (same.psnr_db, same.ssim, same.levels, same.fault, same.error) == (99.0, 1.0, 1, None, None)
    assert 0 < (same.level0_bytes or 0) < made.bytes
    shifted = tmp_path / "shifted.tif"
    inputs.write_tiles(shifted, _Shifted(*SIZES["1k"]), None)
    assert (judge(made, shifted).psnr_db or 99) < 35
    swapped = tmp_path / "swapped.tif"
    inputs.write_tiles(swapped, _Swapped(*SIZES["1k"]), None)
    assert "red and blue are swapped" in (judge(made, swapped).fault or "")
    assert "OpenSlide" in (judge(made, tmp_path / "none.svs").error or "")


class _Swapped(Canvas):
    def read(self, x_px: int, y_px: int, width_px: int, height_px: int) -> inputs.RGB:
        return Canvas.read(self, x_px, y_px, width_px, height_px)[..., ::-1]


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


@linux_only
def test_a_file_of_two_names_takes_up_its_room_once(tmp_path: Path) -> None:
    """As an output for the moment in which it gets its name."""
    (tmp_path / "a").write_bytes(os.urandom(1 << 20))
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").write_bytes(os.urandom(1 << 20))
    assert 2 * MIB <= meter.disk_bytes(tmp_path) < 2.5 * MIB


def test_a_failure_says_why_and_stops_the_rest(tmp_path: Path) -> None:
    steps = [python("raise SystemExit('cannot read /home/somebody/slides/x.czi')"), python("open('reached', 'w')")]
    measured = meter.run(steps, tmp_path, deadline_s=60)
    assert measured.error == "cannot read x.czi (exit code 1)"
    assert not (tmp_path / "reached").exists()
    assert "No such file" in (meter.run([Step(("/nowhere/tool",))], tmp_path, deadline_s=60).error or "")


def test_the_deadline_kills_the_whole_tree(tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    measured = meter.run([python(script)], tmp_path, deadline_s=1)
    assert measured.error == "gave up after 1 s" and measured.gave_up
    assert not [each for each in psutil.Process().children(recursive=True) if "600" in " ".join(each.cmdline())]


def test_programs_may_keep_their_compiled_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    script = "import sys; sys.exit('not kept' if sys.dont_write_bytecode else 0)"
    assert meter.run([python(script)], tmp_path, deadline_s=60).error is None


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
    scratch_bytes = [1_000_000 for _ in walls_s]
    return Row(name, name, True, runs, [], scratch_bytes, 100_000_000, found, error, stages={"verify_s": 1.0})


def result(kind: str, *rows: Row, size: str = "8k", also: bool = False) -> results.Result:
    return results.Result(kind, size, 8192, 6144, 50_000_000, rows, 2, also)


def test_the_table_has_a_row_for_all_and_the_reason_for_what_is_missing() -> None:
    failed = row("vips", error="it reads | no CZI")
    run = results.Run({}, [], [result("czi-jxr", row("mimic", 10, 11), row("recipe", 30, 22), failed)], [])
    text = table.markdown(run, "M.", ["note"])
    numbers = "| 26.00 (22.00-30.00) | 18.00 | 900 | 1 | 100.0 | - | - | 38.0 | 0.950 | 2.50 (2.00-3.00) | 2 |"
    assert f"| recipe {numbers}" in text
    assert "| vips | - | - | - | - | - | - | - | - | - | - | it reads / no CZI |" in text
    assert "M." in text and "- note" in text


def goal(name: str, *measured: results.Result) -> str:
    """The row of one goal."""
    (found,) = [line for line in goals.goals(measured, []) if name in line]
    return found


@pytest.mark.parametrize(("recipe_s", "met"), [(26.0, True), (24.0, False)])
def test_a_goal_is_reached_or_missed(recipe_s: float, met: bool) -> None:
    found = goal("czi-jxr: the recipe", result("czi-jxr", row("mimic", 10.0), row("recipe", recipe_s)))
    assert found.endswith("| met |") is met and ("missed" in found) is not met


def test_every_goal_has_a_row_when_nothing_was_measured() -> None:
    rows = goals.goals([], [])
    assert len(rows) == 19 and all("not measured" in each and each.count("|") == 5 for each in rows)


def test_passthrough_is_compared_without_its_verification() -> None:
    found = goal("svs: copied", result("svs", row("mimic", 10.0), row("cp-sync", 4.6)))
    assert "2.0 x cp" in found and "10.00 s in all, 1.00 s of the warm-up" in found and found.endswith("| met |")


def test_a_peer_counts_where_its_pixels_are_right() -> None:
    wrong = row("slideio", 90.0)
    wrong.quality = Quality(20.0, 0.9, fault="red and blue are swapped")
    stopped = row("slideio", error="gave up after 60 s")
    stopped.gave_up_s = 60.0
    measured = [
        result("czi-raw", row("mimic", 10.0), wrong),
        result("czi-jxr", row("mimic", 10.0), stopped),
        result("svs", row("mimic", 10.0), row("slideio", 40.0)),
    ]
    found = goal("slideio takes", *measured)
    assert "czi-raw 9.0 but red" in found and "czi-jxr > 6.0 (given up)" in found and "svs 4.0 (missed)" in found
    assert "missed** |" in found and "missed** |" not in goal("slideio takes", *measured[:2])


def test_memory_of_the_larger_picture_is_compared_with_that_of_its_kind() -> None:
    larger = row("mimic", 40.0)
    larger.runs[0] = replace(larger.runs[0], peak_bytes=1000 * MIB)
    found = goal(
        "over the rest", result("czi-jxr", row("mimic", 10.0)), result("czi-jxr", larger, size="36k", also=True)
    )
    assert "1.11 x: 1000 MiB, 900 MiB" in found and "**missed**" in found


def test_the_floor_is_the_processor_time_over_the_cores() -> None:
    decode, encode = row("decode", 10.0), row("encode", 1.0)
    decode.inner, encode.inner = [{"decode_s": 9.0}], [{"encode_cpu_s": 2.0}]
    measured = result("czi-jxr", row("mimic", 11.0), decode, encode)
    assert measured.floors_s() == [10.0]  # (18 + 2) / 2
    assert "need 1.00 x" in goal("over decoding alone", measured)
    text = table.markdown(results.Run({}, [], [measured], []), "M.", [])
    assert "| czi-jxr | 10.00 | 9.00 | 18.00 | 2.00 | 10.00 | 1.00 | 1.10 | 1.10 |" in text


def test_what_was_measured_is_kept_for_the_same_machine_and_mimic(tmp_path: Path) -> None:
    about = dict.fromkeys(results.SAME, "this")
    run = results.Run(about, ["note"], [result("png", row("mimic", 1.0, 2.0))], [row("mimic --help", 0.1)])
    results.save(tmp_path / "bench.json", run)
    assert results.load(tmp_path / "bench.json", about) == run
    with pytest.raises(ValueError, match="another mimic"):
        results.load(tmp_path / "bench.json", about | {"mimic": "that"})


@pytest.mark.parametrize(("warm_s", "rounds_"), [(1.0, 5), (10.0, 3), (31.0, 0)])
def test_a_slow_peer_has_fewer_rounds_unless_a_goal_needs_them(warm_s: float, rounds_: int) -> None:
    rules = rounds.Rules(5, 2, 3600.0, 60.0, 30.0)
    peer = peers.Contender("peer", "peer", peers.copy, asked=("png",))
    assert rules.counted(peer, "svs", warm_s) == rounds_ and rules.limit_s(peer, "svs") == 60
    assert rules.counted(peer, "png", warm_s) == 5 and rules.limit_s(peer, "png") == 3600


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
