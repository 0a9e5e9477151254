"""bioformats2raw: its arguments, progress and failures, with a spoof, for it is in no package registry.

The spoof takes the real program's options, refuses others as the real one does, and writes its layout with zarr-python.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import psutil
import pytest

import mimic
from mimic import sources
from mimic.errors import BadInput, LimitReached, MimicError, OutputError, ToolFailed, ToolMissing, Unsupported
from mimic.model import Options, Rendering, Request
from mimic.probe import probe
from mimic.programs import bf2raw
from mimic.settings import Settings, load
from mimic.sources import bioformats2raw as source
from tests.conftest import SAMPLE_CZI, module

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the spoof is a script with a hash-bang")

SPOOF = """#!{python}
import argparse, json, os, signal, subprocess, sys, time
from pathlib import Path

HOME = Path({home!r})
PLAN = json.loads((HOME / "plan.json").read_text())
with (HOME / "calls").open("a") as file:
    file.write(json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}}) + "\\n")

class Picocli(argparse.ArgumentParser):
    def error(self, message):
        print("Unknown option: " + message.rpartition(": ")[2] + "\\nUsage: <main class> ...", file=sys.stderr)
        sys.exit(2)

parser = Picocli(allow_abbrev=False, add_help=False)
for names in (("-r", "--resolutions"), ("-w", "--tile_width", "--tile-width"), ("-h", "--tile_height", "--tile-height"),
              ("--max_workers", "--max-workers")):
    parser.add_argument(*names, type=int)
parser.add_argument("-s", "--series", type=lambda text: [int(part) for part in text.split(",")])
parser.add_argument("-c", "--compression", choices=("raw", "zlib", "blosc"), default="blosc")
parser.add_argument("--memo-directory", type=Path)
parser.add_argument("--log-level", choices=("OFF", "ERROR", "WARN", "INFO", "DEBUG", "TRACE", "ALL"), default="WARN")
for name in ("--no-minmax", "--no-hcs", "--version", *([] if PLAN["old"] else ["--no-tiles"])):
    parser.add_argument(name, action="store_true")
parser.add_argument("input", nargs="?", type=Path)
parser.add_argument("output", nargs="?", type=Path)
said = parser.parse_args()
no_tiles = getattr(said, "no_tiles", False)

def log(level, text, logger="c.g.bioformats2raw.Converter"):
    if level != "INFO" or said.log_level == "INFO":
        print(f"2026-01-02 03:04:05,678 [pool-1-thread-1] {{level}}  {{logger}} - {{text}}", flush=True)

if said.version:
    print("Version = 0.9.4\\nBio-Formats version = 7.2.0\\nNGFF specification version = 0.4")
    sys.exit(-1)
if said.output.exists():
    sys.exit("java.lang.IllegalArgumentException: Output path already exists")
assert said.memo_directory.is_dir() and said.resolutions == 1, "memo files would go beside the input"
mode = PLAN["mode"] if not no_tiles or PLAN["early"] else "well"

def fail(*lines, code=1):
    for line in lines:
        print(line, file=sys.stderr)
    sys.exit(code)

if mode == "exit_1": fail('Exception in thread "main" java.lang.RuntimeException: Error reading block')
if mode == "unknown_format": fail("loci.formats.UnknownFormatException: Unknown file format: " + str(said.input))
if mode == "no_memory": fail("java.lang.OutOfMemoryError: Java heap space", code=3)
if mode == "disk_full": fail("java.io.IOException: No space left on device")
if mode == "no_java": fail("ERROR: JAVA_HOME is not set and no 'java' command could be found in your PATH.")
if mode == "noexec": fail("java.lang.RuntimeException: /tmp/x is noexec; fix it or specify a different java.io.tmpdir.")
if mode == "killed": os.kill(os.getpid(), signal.SIGKILL)
if mode == "nothing": sys.exit(0)
if mode == "hang":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    (HOME / "pids").write_text(f"{{os.getpid()}} {{child.pid}}")
    time.sleep(120)

import numpy, zarr
files = sorted(HOME.glob("series*.npy"))
wanted = said.series if said.series is not None else range(len(files))
log("WARN", "Non-default tile size: 2048 x 2048. This may cause performance issues in some applications.")
def group(folder, attributes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".zgroup").write_text('{{"zarr_format": 2}}')
    (folder / ".zattrs").write_text(json.dumps(attributes))
group(said.output, {{"bioformats2raw.layout": 3}})
names = [str(series if PLAN["old"] else place) for place, series in enumerate(wanted)]
group(said.output / "OME", {{"series": names}})
(said.output / "OME" / "METADATA.ome.xml").write_text(
    PLAN["head"] + "".join(PLAN["images"][series] for series in wanted) + "</OME>")
for name, series in zip(names, wanted):
    pixels = numpy.load(files[series])
    if mode == "other_size" and not no_tiles: pixels = pixels[..., :-16]
    edges = min(said.tile_height, pixels.shape[3], PLAN["tile"]), min(said.tile_width, pixels.shape[4], PLAN["tile"])
    array = zarr.create_array(store=str(said.output / name / "0"), shape=pixels.shape, chunks=(1, 1, 1, *edges),
        dtype=pixels.dtype.newbyteorder(">"), zarr_format=2, compressors=None, fill_value=0,
        chunk_key_encoding={{"name": "v2", "separator": "/"}})
    places = list(numpy.ndindex(*array.cdata_shape)) if not no_tiles else []
    for number, place in enumerate(places):
        if mode == "half" and number >= len(places) // 2: break
        if mode == "half_and_error" and number == 1:
            log("ERROR", "Failure processing chunk; resolution=0 plane=0 xx=0 yy=0 zz=0")
            continue
        if mode == "warns" and number == 1: log("WARN", "Truncated stream", "loci.formats.codec.JPEGCodec")
        array.blocks[place] = pixels[tuple(slice(at * size, (at + 1) * size) for at, size in zip(place, array.chunks))]
        log("INFO", f"Successfully processed chunk; resolution=0 plane={{number}}")
    if mode == "not_finished": continue
    axes = [{{"name": n, "type": {{"t": "time", "c": "channel"}}.get(n, "space")}} for n in "tczyx"]
    for axis in axes[3:]: axis["unit"] = "micrometer"
    scale = [{{"type": "scale", "scale": [1, 1, 1, 0.25, 0.25]}}]
    one = {{"version": "0.4", "axes": axes, "datasets": [{{"path": "0", "coordinateTransformations": scale}}]}}
    group(said.output / name, {{"multiscales": [one]}})
"""
HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Instrument ID="Instrument:0">
<Objective ID="Objective:0:0" NominalMagnification="20.0"/></Instrument>"""
IMAGE = """<Image ID="Image:{n}" Name="{name}"><InstrumentRef ID="Instrument:0"/><ObjectiveSettings ID="Objective:0:0"/>
<Pixels ID="Pixels:{n}" BigEndian="true" DimensionOrder="XYZCT" SizeX="{x}" SizeY="{y}" SizeZ="{z}" SizeC="{c}"
 SizeT="1" Type="{kind}" PhysicalSizeX="0.25" PhysicalSizeY="0.25">{channels}<MetadataOnly/></Pixels></Image>"""


class Spoof:
    """A program in a folder of its own, what it writes, and how it fails."""

    def __init__(self, folder: Path) -> None:
        module("zarr")
        self.folder = folder
        folder.mkdir()
        self.program = folder / "bioformats2raw"
        self.program.write_text(SPOOF.format(python=sys.executable, home=str(folder)))
        self.program.chmod(0o755)
        self.plan: dict[str, Any] = {
            "mode": "well", "old": False, "early": False, "tile": 4096, "head": HEAD, "images": [],
        }  # fmt: skip
        self.settings = replace(load(), bioformats2raw=self.program)

    def holds(self, *images: tuple[str, np.ndarray]) -> None:
        """Its input's images: a name, and samples in the order c, z, y, x."""
        for number, (name, pixels) in enumerate(images):
            np.save(self.folder / f"series{number}.npy", pixels[None])
            c, z, y, x = pixels.shape
            channels = "".join(f'<Channel ID="Channel:{number}:{each}" SamplesPerPixel="1"/>' for each in range(c))
            kind = str(pixels.dtype)
            self.plan["images"].append(
                IMAGE.format(n=number, name=name, x=x, y=y, z=z, c=c, kind=kind, channels=channels)
            )
        self.write()

    def does(self, mode: str, **more: Any) -> None:
        self.plan |= {"mode": mode} | more
        self.write()

    def write(self) -> None:
        (self.folder / "plan.json").write_text(json.dumps(self.plan))

    def calls(self) -> list[dict[str, Any]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def spoof(tmp_path: Path) -> Spoof:
    return Spoof(tmp_path / "program")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours in planes, of the shape (3, 1, height, width)."""
    y, x = np.mgrid[:height, :width]
    channels = [
        120 + 100 * np.sin(x / (40 + seed)),
        130 + 90 * np.cos(y / 35),
        100 + 60 * np.sin((x + y) / (70 + seed)),
    ]
    return np.stack(channels).astype(np.uint8)[:, None]


def rgb(pixels: np.ndarray) -> np.ndarray:
    return np.moveaxis(pixels[:, 0], 0, 2)


def a_file(folder: Path, name: str = "slide.strange") -> Path:
    """A kind that only the spoof knows."""
    path = folder / name
    path.write_bytes(b"\1\2strange" * 10)
    return path


def convert(path: Path, output: Path, settings: Settings, **options: Any) -> Any:
    from mimic.convert import convert as run

    return run(Request(path, output, Options(source="bioformats2raw", threads=2, **options)), settings)


def nothing_left(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["program", "slide.strange"]


def test_a_slide_with_a_label(spoof: Spoof, tmp_path: Path) -> None:
    scan, label = picture(500, 640), picture(210, 200, 9)
    spoof.holds(("tissue", scan), ("label image", label))
    report = convert(a_file(tmp_path), tmp_path / "out.svs", spoof.settings)
    seen = openslide.OpenSlide(tmp_path / "out.svs")
    assert seen.dimensions == (640, 500) and seen.properties["aperio.AppMag"] == "20"
    assert float(seen.properties["openslide.mpp-x"]) == 0.25
    pixels = np.asarray(seen.read_region((0, 0), 0, (640, 500)).convert("RGB")).astype(float)
    assert np.mean((pixels - rgb(scan)) ** 2) < 6
    assert np.array_equal(np.asarray(seen.associated_images["label"].convert("RGB")), rgb(label))
    versions = {tool.name: (tool.version, tool.path) for tool in report.tools}
    assert versions["bioformats2raw"] == ("0.9.4", str(spoof.program)) and versions["zarr"][0]
    assert report.results[0].plan.slide.files == (tmp_path / "slide.strange",)
    (tmp_path / "out.svs").unlink()
    nothing_left(tmp_path)


def test_its_arguments(spoof: Spoof, tmp_path: Path) -> None:
    spoof.holds(("tissue", picture(300, 320)))
    convert(a_file(tmp_path), tmp_path / "out.svs", replace(spoof.settings, heap_mb=900))
    first, second, *_ = [call for call in spoof.calls() if "--version" not in call["argv"]]
    assert "--no-tiles" in first["argv"] and "--series" not in first["argv"]
    words = second["argv"]
    given = dict(itertools.pairwise(words))
    assert "--no-tiles" not in words
    assert {name: given[name] for name in given if name.startswith("--") and given[name][0] != "-"} == {
        "--resolutions": "1", "--series": "0", "--tile_width": "2048", "--tile_height": "2048", "--max_workers": "2",
        "--compression": "raw", "--memo-directory": given["--memo-directory"], "--log-level": "INFO",
        "--no-hcs": str(tmp_path / "slide.strange"),
    }  # fmt: skip
    memo, target = Path(given["--memo-directory"]), Path(words[-1])
    assert memo.is_relative_to(tmp_path) and memo.parent == target.parent and not memo.is_relative_to(spoof.folder)
    assert "-Xmx900m" in second["env"]["JAVA_OPTS"] and "proxy" in second["env"]["JAVA_OPTS"]
    assert Path(second["env"]["HOME"]) == target.parent == Path(second["cwd"])
    assert not any(name.startswith("MIMIC_") for name in second["env"])
    assert not target.parent.exists()


def test_pixels_are_those_that_it_wrote(spoof: Spoof, tmp_path: Path) -> None:
    scan = picture(700, 900)
    spoof.holds(("a", picture(100, 120)), ("b", scan))
    spoof.does("well", tile=256)
    slide = probe(a_file(tmp_path), spoof.settings, source="bioformats2raw")
    assert slide.images[1].rgb and slide.source == "bioformats2raw"
    reader = source.open(slide, slide.images[1], threads=2, settings=spoof.settings, scratch=tmp_path)
    for box in reader.boxes():
        wanted = rgb(scan)[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px]
        assert np.array_equal(reader.read(box), wanted)
    reader.close()
    reader.close()
    with pytest.raises(ToolFailed, match="closed"):
        reader.read(box)
    nothing_left(tmp_path)


def test_fluorescence_is_rendered(spoof: Spoof, tmp_path: Path) -> None:
    samples = np.random.default_rng(1).poisson(200, (4, 3, 320, 340)).astype(np.uint16)
    spoof.holds(("cells", samples))
    path = a_file(tmp_path)
    slide = probe(path, spoof.settings, source="bioformats2raw")
    planes = source.open_planes(
        slide, slide.images[0], Rendering(()), threads=1, settings=spoof.settings, scratch=tmp_path
    )
    found = planes.samples(planes.boxes()[0], (3, 1), z=2, t=0)
    planes.close()
    assert [np.array_equal(part, samples[c, 2]) for part, c in zip(found, (3, 1), strict=True)] == [True, True]
    report = convert(path, tmp_path / "out.svs", spoof.settings, z=1)
    assert report.results[0].plan.rendering is not None and report.results[0].plan.rendering.z == 1


def test_progress_is_told(spoof: Spoof, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spoof.holds(("tissue", picture(512, 512)))
    spoof.does("well", tile=128)
    seen: list[int] = []
    count = bf2raw.convert(
        a_file(tmp_path), tmp_path / "o.zarr", series=0, workers=1, deadline_s=60, settings=spoof.settings,
        tmp=tmp_path, watch=seen.append,
    )  # fmt: skip
    assert count == 3 * 16 and seen == list(range(1, 49))
    caplog.clear()  # what the program said before is told at another level
    with caplog.at_level(logging.INFO, "mimic.sources.bioformats2raw"):
        watch = source._progress(48)
        for done in range(1, 49):
            watch(done)
    assert len(caplog.messages) == 12 and caplog.messages[-1] == "bioformats2raw wrote 48 of 48 chunks"


def test_chunks_of_zeros_that_it_leaves_out_are_black(spoof: Spoof, tmp_path: Path) -> None:
    """Newer versions do, and say that they wrote them."""
    scan = picture(600, 600) | np.uint8(1)
    scan[:, :, :200, 200:400] = 0
    spoof.holds(("tissue", scan))
    spoof.does("well", tile=200)
    slide = probe(a_file(tmp_path), spoof.settings, source="bioformats2raw")
    reader = source.open(slide, slide.images[0], threads=1, settings=spoof.settings, scratch=tmp_path)
    assert np.array_equal(reader.read(reader.boxes()[0]), rgb(scan))
    reader.close()


# Failures

FAILURES = [
    ("exit_1", BadInput, "Error reading block"),
    ("unknown_format", Unsupported, "does not know this kind"),
    ("no_memory", ToolFailed, "out of memory"),
    ("disk_full", OutputError, "disk is full"),
    ("no_java", ToolMissing, "no Java"),
    ("noexec", ToolFailed, "scratch"),
    ("killed", ToolFailed, "killed"),
    ("nothing", ToolFailed, "cannot be read"),
    ("not_finished", ToolFailed, "not written to its end"),
]
LATE = [
    ("half", ToolFailed, "of 12 chunks are missing"),
    ("half_and_error", BadInput, "Failure processing chunk"),
    ("warns", BadInput, "Truncated stream"),
    ("other_size", ToolFailed, "disagree|wrote"),
]


EARLY = [(*each, True) for each in FAILURES if each[0] in ("exit_1", "unknown_format", "nothing")]
"""Without pixels, for its facts."""


@pytest.mark.parametrize(("failure", "kind", "words", "early"), [*EARLY, *((*each, False) for each in FAILURES + LATE)])
def test_failures(failure: str, kind: type[MimicError], words: str, early: bool, spoof: Spoof, tmp_path: Path) -> None:
    spoof.holds(("tissue", picture(400, 420)))
    spoof.does(failure, tile=210, early=early)
    with pytest.raises(kind, match=words) as caught:
        convert(a_file(tmp_path), tmp_path / "out.svs", spoof.settings)
    assert type(caught.value) is kind and caught.value.remedy
    assert len(spoof.calls()) == (1 if early else 2), "the spoof was not called"
    nothing_left(tmp_path)


def test_a_hanging_program_dies_with_its_children(
    spoof: Spoof, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bf2raw, "deadline_s", lambda _: 2.0)
    spoof.holds(("tissue", picture(300, 320)))
    spoof.does("hang")
    started = time.monotonic()
    with pytest.raises(LimitReached):
        convert(a_file(tmp_path), tmp_path / "out.svs", spoof.settings)
    assert time.monotonic() - started < 20
    pids = [int(word) for word in (spoof.folder / "pids").read_text().split()]
    for _ in range(100):
        alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
        if not alive:
            break
        time.sleep(0.05)
    assert not alive
    nothing_left(tmp_path)


def test_a_name_with_error_in_it_is_no_trouble() -> None:
    line = "WARN loci.formats.X - /in/ERROR Exception.czi was read"
    assert bf2raw.trouble([line], Path("/in/ERROR Exception.czi")) is None
    assert bf2raw.trouble([line], Path("/in/b.czi")) == line
    assert bf2raw.trouble(["WARN c.g.bioformats2raw.Converter - Non-default tile size"], Path("/in/b.czi")) is None


# Where it is


def test_it_is_found_on_path_or_by_its_variable(spoof: Spoof, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bf2raw.find(Settings(path=str(spoof.folder))) == spoof.program
    (tmp_path / "unpacked" / "bin").mkdir(parents=True)
    inside = tmp_path / "unpacked" / "bin" / "bioformats2raw"
    inside.symlink_to(spoof.program)
    monkeypatch.setenv("MIMIC_BIOFORMATS2RAW", str(tmp_path / "unpacked"))
    assert bf2raw.find(load()) == inside
    with pytest.raises(ToolMissing, match="not there"):
        bf2raw.find(Settings(bioformats2raw=tmp_path / "gone"))


def test_missing_it_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ToolMissing, match="bioformats2raw is missing") as caught:
        convert(a_file(tmp_path), tmp_path / "out.svs", Settings(path=str(tmp_path)))
    assert caught.value.exit_code == 5 and "MIMIC_BIOFORMATS2RAW" in str(caught.value)


def test_it_is_used_by_name_only(spoof: Spoof, tmp_path: Path) -> None:
    assert not source.claims(SAMPLE_CZI) and sources.choose(SAMPLE_CZI) == "czi"
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / ".zgroup").write_text("{}")
    with pytest.raises(Unsupported, match="folder"):
        probe(tmp_path / "a.zarr", spoof.settings, source="bioformats2raw")


def test_a_file_cut_short_never_reaches_it(spoof: Spoof, tmp_path: Path) -> None:
    path = tmp_path / "cut.czi"
    path.write_bytes(SAMPLE_CZI.read_bytes()[:100_000])
    with pytest.raises(BadInput):
        probe(path, spoof.settings, source="bioformats2raw")
    assert spoof.calls() == []


def test_mirax_is_left_to_it(spoof: Spoof, tmp_path: Path) -> None:
    """Bio-Formats cannot read it; bioformats2raw has a reader of its own."""
    path = a_file(tmp_path, "slide.mrxs")
    (tmp_path / "slide").mkdir()
    (tmp_path / "slide" / "Slidedat.ini").write_text(
        "[HIERARCHICAL]\nINDEXFILE = Index.dat\n[DATAFILE]\nFILE_COUNT = 1\n"
    )
    for name in ("Index.dat", "Data0000.dat"):
        (tmp_path / "slide" / name).write_bytes(b"x")
    spoof.holds(("tissue", picture(300, 320)))
    with pytest.raises(Unsupported, match="MIRAX"):
        probe(path, spoof.settings)
    slide = probe(path, spoof.settings, source="bioformats2raw")
    assert slide.format == "MIRAX" and len(slide.files) == 4
    (tmp_path / "slide" / "Data0000.dat").unlink()
    with pytest.raises(BadInput, match=r"Data0000\.dat"):
        probe(path, spoof.settings, source="bioformats2raw")


# A version that writes no metadata alone


def test_an_older_version_takes_its_facts_from_bio_formats(spoof: Spoof, tmp_path: Path) -> None:
    theirs = mimic.probe(SAMPLE_CZI)
    reader = sources.load("bioformats").open(theirs, theirs.images[1], threads=1, settings=load(), scratch=tmp_path)
    label = np.concatenate([reader.read(box) for box in reader.boxes()])
    reader.close()
    spoof.holds(*[("x", np.moveaxis(label, 2, 0)[:, None])] * 3)
    spoof.does("well", old=True)
    slide = probe(SAMPLE_CZI, spoof.settings, source="bioformats2raw")
    assert slide.images == theirs.images and slide.source == "bioformats2raw"
    own = source.open(slide, slide.images[1], threads=1, settings=spoof.settings, scratch=tmp_path)
    assert np.array_equal(np.concatenate([own.read(box) for box in own.boxes()]), label)
    own.close()
    with pytest.raises(ToolFailed, match=r"wrote 387 x 463 px.*has 3072 x 2304 px"):
        source.open(slide, slide.images[0], threads=1, settings=spoof.settings, scratch=tmp_path)
    nothing = [path.name for path in tmp_path.iterdir()]
    assert nothing == ["program"]


def test_an_option_that_it_does_not_know(spoof: Spoof, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoof.holds(("tissue", picture(300, 320)))
    good = bf2raw.arguments
    monkeypatch.setattr(bf2raw, "arguments", lambda *a, **k: ["--strange", *good(*a, **k)])
    with pytest.raises(ToolFailed, match=r"too old.*--strange"):
        bf2raw.convert(
            a_file(tmp_path), tmp_path / "o.zarr", series=0, workers=1, deadline_s=60, settings=spoof.settings,
            tmp=tmp_path,
        )  # fmt: skip
