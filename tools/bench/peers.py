"""Who takes part: mimic, its peers and the limits, each as the programs that convert one input.

A peer that cannot take an input is run all the same, and its own words are the reason in the table; only where a
comparison would make no sense (DICOM out of a picture) is one left out, with a reason too.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mimic import settings
from mimic.programs import jvm
from tools.bench.inputs import ROOT, Input, files
from tools.bench.meter import Step
from tools.czi_samples import MPP_UM, POWER

QUALITY, TILE_PX = 80, 256
LARGE_IMAGE_QUALITY = 90
"""Its default, and the least at which its colours are right, see ``large_image``."""
WSIC_READ_PX = 2048
"""It starts a process for each piece that it reads: of 256 px, 16 s for 2048 x 1536 px instead of 4 s of 1024 px."""
RECIPE_TILE_PX = 2048
"""What suits bfconvert best on a CZI: half the time of 1024 (mimic/programs/bftools.py)."""
RECIPE_HEAP = "-Xmx1g"
TIFF_4GB_PX = 1_300_000_000
DRIVERS = Path(__file__).resolve().parent / "drivers.py"
REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class Task:
    """One run to be made: ``output`` is where it goes, ``folder`` the run's own, ``pythons`` the peers' Pythons,
    ``sample`` pixels to encode."""

    made: Input
    folder: Path
    threads: int
    pythons: Mapping[str, Path]
    sample: Path | None = None
    warm_up: bool = False

    @property
    def output(self) -> Path:
        return self.folder / "out" / "out.svs"


@dataclass(frozen=True, slots=True)
class Contender:
    """``steps`` gives a run's programs; ``kinds`` the inputs that it makes sense for (None: all); ``venv`` the peer
    whose packages it needs; ``converts`` is False for a limit, whose output is no slide. ``asked`` are the inputs for
    which a goal needs all its rounds (None: all), however slow it is; ``note`` is what its user should know."""

    name: str
    title: str
    steps: Callable[[Task], list[Step]]
    kinds: tuple[str, ...] | None = None
    venv: str | None = None
    converts: bool = True
    asked: tuple[str, ...] | None = ()
    note: str | None = None

    def needs_all(self, kind: str) -> bool:
        """Whether every counted round is played."""
        return self.asked is None or kind in self.asked


def mimic_words(*words: str | Path) -> Step:
    """``mimic WORDS``, of this tree."""
    return Step((sys.executable, "-m", "mimic", *words), {"PYTHONPATH": str(ROOT)})


def mimic(task: Task) -> list[Step]:
    """Complete and verified, as a user runs it; the warm-up also reports, for which it computes digests."""
    words: list[str | Path] = ["convert", task.made.path, "-o", task.output, "--threads", str(task.threads)]
    words += ["--report", task.folder / REPORT] if task.warm_up else []
    return [mimic_words(*words, *task.made.options)]


def recipe(task: Task) -> list[Step]:
    """origin.txt's: showinf for the scale, bfconvert to a TIFF, tiffcp to contiguous, the description by tifftools."""
    found = settings.load()
    java, jar = jvm.find_java(found), jvm.find_bioformats(found)
    tools = (java, RECIPE_HEAP, f"-Djava.io.tmpdir={task.folder / 'tmp'}", "-cp", jar)
    source, scratch = task.made.path, task.folder / "bfconvert.tif"
    if source.is_dir():
        source = max(files(source), key=lambda file: file.stat().st_size)
    sides = (task.made.width_px, task.made.height_px)
    edge = str(RECIPE_TILE_PX if min(sides) > RECIPE_TILE_PX else RECIPE_TILE_PX // 4)
    big = task.made.width_px * task.made.height_px > TIFF_4GB_PX
    text = f"Aperio Image Library v12.0.15 |AppMag = {POWER}|MPP = {MPP_UM}"
    series = ("-series", "0")  # else bfconvert writes all, levels and label too
    tiles = ("-tilex", edge, "-tiley", edge)
    description = ("set", "-y", "-s", "ImageDescription", text, task.output)
    return [
        Step((*tools, "loci.formats.tools.ImageInfo", "-no-upgrade", "-nopix", "-omexml-only", source)),
        Step(
            (*tools, "loci.formats.tools.ImageConverter", "-no-upgrade", *series, *tiles)
            + (("-bigtiff",) if big else ())
            + (source, scratch)
        ),
        # -m 0: it refuses pictures above 256 MiB without
        Step(("tiffcp", "-m", "0", "-p", "contig", *(("-8",) if big else ()), scratch, task.output)),
        Step((task.pythons["tifftools"], "-m", "tifftools", *description)),
    ]


def vips(task: Task) -> list[Step]:
    """``vips tiffsave`` with JPEG tiles and a pyramid."""
    source = max(files(task.made.path), key=lambda file: file.stat().st_size)
    env = {"VIPS_CONCURRENCY": str(task.threads)}
    return [Step((task.pythons["vips"], DRIVERS, "vips", source, task.output), env)]


def large_image(task: Task) -> list[Step]:
    """``large_image_converter --format aperio``.

    Below quality 90 libvips makes YCbCr of the pixels, and the file's tags say RGB: all its colours are wrong.
    """
    source = max(files(task.made.path), key=lambda file: file.stat().st_size)
    words = (
        "--format",
        "aperio",
        "--compression",
        "jpeg",
        "--quality",
        str(LARGE_IMAGE_QUALITY),
        "--tile",
        str(TILE_PX),
    )
    script = task.pythons["large_image"].with_name("large_image_converter")
    concurrency = ("--concurrency", str(task.threads))
    return [Step((script, *words, *concurrency, source, task.output), {"VIPS_CONCURRENCY": str(task.threads)})]


def slideio(task: Task) -> list[Step]:
    """slideio's ``convert_scene`` to SVS."""
    return [Step((task.pythons["slideio"], DRIVERS, "slideio", task.made.path, task.output))]


def wsic(task: Task) -> list[Step]:
    """``wsic convert`` to SVS, with mimic's levels."""
    script = task.pythons["wsic"].with_name("wsic")
    words = ("convert", "-i", task.made.path, "-o", task.output, "--no-ome", "-c", "jpeg", "-cl", str(QUALITY))
    size = ("-t", str(TILE_PX), str(TILE_PX), "-rt", str(WSIC_READ_PX), str(WSIC_READ_PX), "-w", str(task.threads))
    return [Step((script, *words, *size, "-mpp", str(MPP_UM), str(MPP_UM), "-d", "4", "-d", "16", "-to", "60"))]


def wsidicomizer(task: Task) -> list[Step]:
    """The other lossless passthrough: SVS to DICOM, frames copied."""
    script = task.pythons["wsidicomizer"].with_name("wsidicomizer")
    return [Step((script, "-i", task.made.path, "-o", task.output, "-w", str(task.threads)))]


def copy(task: Task) -> list[Step]:
    """``cp`` of the input's bytes, which stay in the page cache."""
    return [Step(("cp", "-r", task.made.path, task.output))]


def copy_to_disk(task: Task) -> list[Step]:
    """The same, and on disk when it ends, as mimic's output is."""
    return [
        Step(("cp", "-r", task.made.path, task.output)),
        Step(("find", task.output, "-type", "f", "-exec", "sync", "{}", "+")),
    ]


def decode(task: Task) -> list[Step]:
    """Every pixel of level 0 through mimic's own reader, and nothing else."""
    words: list[str | Path] = [sys.executable, "-m", "tools.bench.limits", "decode", "--path", task.made.path]
    words += ["--threads", str(task.threads), *task.made.options[:2]]
    return [Step(tuple(words), {"PYTHONPATH": str(ROOT)})]


def encode(task: Task) -> list[Step]:
    """Every tile of every level from memory, a sample of them scaled up."""
    size = ("--size", str(task.made.width_px), str(task.made.height_px))
    words: tuple[str | Path, ...] = (
        sys.executable,
        "-m",
        "tools.bench.limits",
        "encode",
        *size,
        "--threads",
        str(task.threads),
    )
    words += ("--path", task.sample or task.made.path)
    return [Step(words, {"PYTHONPATH": str(ROOT)})]


DECODED = ("czi-raw", "czi-zstd", "czi-jxr", "tiff-strips", "tiff-tiles", "png", "jpeg")
COPIED = ("dicom", "svs")
CZI = ("czi-raw", "czi-zstd", "czi-jxr")
PICTURES = ("tiff-strips", "tiff-tiles", "png", "jpeg")

CONTENDERS = (
    Contender("mimic", "**mimic**, verified", mimic, asked=None),
    Contender(
        "recipe",
        "bfconvert + tiffcp + tifftools, no pyramid",
        recipe,
        (*CZI, *COPIED),
        venv="tifftools",
        asked=CZI,
        note="It writes uncompressed pixels, without lower levels, thumbnail or label.",
    ),
    Contender(
        "vips",
        "vips tiffsave --pyramid",
        vips,
        venv="vips",
        asked=PICTURES,
        note="Its levels are 2 apart, and it has no other; level 0 can be compared by its own size.",
    ),
    Contender(
        "large_image",
        "large_image_converter --format aperio",
        large_image,
        venv="large_image",
        note="Run at quality 90, its default: at 80, 85 and 89 its tiles are YCbCr and its tags say RGB, so that every "
        "reader shows purple tissue on red glass (11 dB; 37 when the tiles are decoded as what they are). From 90 on "
        "its tiles are RGB 4:4:4, and right. Its only reader of CZI must be compiled with a JDK.",
    ),
    Contender(
        "slideio",
        "slideio convert_scene",
        slideio,
        venv="slideio",
        note="Of a CZI it takes blue for red (what was brown is blue), which its converter cannot be told; swapped "
        "back, the pixels are right (39.5 dB). Its tiles are RGB 4:4:4; OpenSlide sees level 0 only.",
    ),
    Contender(
        "wsic",
        "wsic convert",
        wsic,
        venv="wsic",
        note="It reads no CZI, PNG or JPEG. It runs only with the extra tqdm: without it its tiles are iterated over "
        "twice, and it waits for the first one until it gives up. An SVS stops it in any case: it sends an open file "
        "to another process (its issue 150).",
    ),
    Contender(
        "wsidicomizer",
        "wsidicomizer, to DICOM",
        wsidicomizer,
        ("svs",),
        venv="wsidicomizer",
        note="The other converter that copies tiles; it writes DICOM.",
    ),
    Contender("decode", "limit: decoding alone", decode, DECODED, converts=False, asked=None),
    Contender("encode", "limit: encoding alone", encode, DECODED, converts=False, asked=None),
    Contender("cp", "limit: cp", copy, converts=False, asked=None),
    Contender("cp-sync", "limit: cp, then on disk", copy_to_disk, converts=False, asked=None),
)


def missing(contender: Contender) -> str | None:
    """Why a contender cannot even be tried here."""
    if contender.name == "recipe" and shutil.which("tiffcp") is None:
        return "tiffcp is not on PATH (Debian: libtiff-tools)"
    return None
