"""The benchmark's inputs: one picture in every kind of file, written piece by piece, and what its pixels truly are.

They stay in the work folder for the next run. None is ever whole in memory: 36k is 3.6 GB.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from tools.bench.canvas import RGB, Canvas
from tools.czi_samples import (
    CZI_SEGMENT,
    MPP_UM,
    POWER,
    SubBlock,
    czi_xml,
    iter_subblocks,
    stream_czi,
    to_jpeg_xr,
)

RECIPE = 1
"""Raised when an input is made in another way: it names the folder, so that old inputs are not taken for new."""
ROOT = Path(__file__).resolve().parent.parent.parent
CZI_TILE_PX = 2048
TIFF_TILE_PX = 256
BAND_PX = 1024
JPEG_XR_LEVEL = 0.85
"""As czi_to_jpegxr.py has it, after what slide scanners write."""
JPEG_QUALITY = 90
PER_CM = 10000 / MPP_UM
TRUTH_BOXES = 12
SAMPLE_PX = 1 << 25
"""Encoding alone is measured on so many pixels of the picture's middle at most, and scaled up."""
TRUTH_PX = 512

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input: ``path`` is a file, or the folder of a DICOM series. ``options`` are words that mimic needs for it."""

    kind: str
    path: Path
    width_px: int
    height_px: int
    options: tuple[str, ...] = ()

    @property
    def truth(self) -> Path:
        """Boxes of level 0 with their pixels, as an .npz."""
        return self.path.with_name(f"{self.path.name}.truth.npz")

    @property
    def bytes(self) -> int:
        """Size of the file, or of all files of the series."""
        return sum(path.stat().st_size for path in files(self.path))

    @property
    def copies(self) -> bool:
        """Whether mimic copies its compressed tiles."""
        return self.kind in ("svs", "dicom")


def files(path: Path) -> list[Path]:
    """The file itself, or the files in a folder."""
    return [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())


def make(kind: str, folder: Path, canvas: Canvas) -> Input:
    """The input of that kind in ``folder``, written now unless it is there, with those that it is made from."""
    name, needs, write, read = KINDS[kind]
    target = folder / f"v{RECIPE}" / name
    options = ("--mpp", f"{MPP_UM}", "--appmag", f"{POWER}") if kind in ("png", "jpeg") else ()
    made = Input(kind, target, canvas.width_px, canvas.height_px, options)
    if made.truth.exists():
        return made
    target.parent.mkdir(parents=True, exist_ok=True)
    source = make(needs, folder, canvas) if needs else None
    part = target.with_name(f"part-{name}")
    write(part, canvas, source)
    part.replace(target)
    boxes = truth_boxes(canvas.width_px, canvas.height_px)
    pixels = np.stack(read(target if source is None or kind != "dicom" else source.path, canvas, boxes))
    unfinished = made.truth.with_name("part.npz")
    np.savez(unfinished, boxes=np.array(boxes), pixels=pixels)
    unfinished.replace(made.truth)
    return made


def load_truth(made: Input) -> tuple[list[Box], NDArray[np.uint8]]:
    """Boxes, and the pixels of each as the input holds them, by a decoder that is not mimic's."""
    with np.load(made.truth) as stored:
        return [(int(x), int(y), int(w), int(h)) for x, y, w, h in stored["boxes"]], stored["pixels"]


def sample(folder: Path, canvas: Canvas) -> Path:
    """A band of whole tiles from the picture's middle, (height, width, 3) as .npy, which costs seconds to make."""
    path = folder / f"v{RECIPE}" / "sample.npy"
    if not path.exists():
        columns, lines = canvas.width_px // TIFF_TILE_PX, canvas.height_px // TIFF_TILE_PX
        rows = max(1, min(lines, SAMPLE_PX // (columns * TIFF_TILE_PX**2)))
        top = (lines - rows) // 2 * TIFF_TILE_PX
        part = path.with_name("part-sample.npy")
        np.save(part, canvas.read(0, top, columns * TIFF_TILE_PX, rows * TIFF_TILE_PX))
        part.replace(path)
    return path


def truth_boxes(width_px: int, height_px: int) -> list[Box]:
    """Places that are looked at, all over the picture, off the grid of any tile."""
    edge = min(TRUTH_PX, height_px // 2)
    generator = np.random.default_rng(7)
    xs = generator.integers(0, width_px - edge, TRUTH_BOXES)
    ys = generator.integers(0, height_px - edge, TRUTH_BOXES)
    return [(int(x), int(y), edge, edge) for x, y in sorted(zip(xs, ys, strict=True), key=lambda place: place[1])]


# --- writers -----------------------------------------------------------------------------------------------------


def _grid(canvas: Canvas, step_px: int) -> Iterator[Box]:
    for y in range(0, canvas.height_px, step_px):
        for x in range(0, canvas.width_px, step_px):
            yield x, y, min(step_px, canvas.width_px - x), min(step_px, canvas.height_px - y)


def write_czi(path: Path, canvas: Canvas, _: Input | None, *, compression: str) -> None:
    """A mosaic by ZEISS's own writer, with a scanner's metadata put in afterwards."""
    from pylibCZIrw import czi as zeiss

    bare = path.with_name(f"{path.stem}.bare.czi")
    with zeiss.create_czi(str(bare), exist_ok=True, compression_options=compression) as document:
        for box in _grid(canvas, CZI_TILE_PX):
            document.write(np.ascontiguousarray(canvas.read(*box)[..., ::-1]), location=box[:2])
        document.write_metadata("bench", scale_x=MPP_UM * 1e-6, scale_y=MPP_UM * 1e-6)
    _rewrite(bare, path, canvas, level=None)
    bare.unlink()


def write_jpeg_xr(path: Path, canvas: Canvas, source: Input | None) -> None:
    """The raw CZI with its tiles recompressed as a slide scanner does."""
    _rewrite(_path(source), path, canvas, level=JPEG_XR_LEVEL)


def _rewrite(source: Path, target: Path, canvas: Canvas, *, level: float | None) -> None:
    """``source`` with our metadata, its tiles as they are or as JPEG-XR; a few tiles in memory at a time."""
    cores = os.cpu_count() or 1
    xml = czi_xml(canvas.width_px, canvas.height_px, sum(1 for _ in _grid(canvas, CZI_TILE_PX)))
    with (
        source.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as czi,
        target.open("wb") as out,
        ThreadPoolExecutor(cores) as pool,
    ):
        blocks = iter_subblocks(czi)
        if level is not None:
            blocks = _recompressed(blocks, level, pool, some=2 * cores)
        stream_czi(out, czi[: CZI_SEGMENT.size + 512], blocks, xml)


def _recompressed(
    blocks: Iterator[SubBlock], level: float, pool: ThreadPoolExecutor, *, some: int
) -> Iterator[SubBlock]:
    while batch := list(islice(blocks, some)):  # itertools.batched is newer than our oldest Python
        yield from pool.map(partial(to_jpeg_xr, level=level), batch)


def write_strips(path: Path, canvas: Canvas, _: Input | None) -> None:
    """A plain TIFF in uncompressed strips, as image editors export it."""
    shape = (canvas.height_px, canvas.width_px, 3)
    pixels = tifffile.memmap(
        path,
        shape=shape,
        dtype=np.uint8,
        photometric="rgb",
        rowsperstrip=64,
        resolution=(PER_CM, PER_CM),
        resolutionunit="CENTIMETER",
        metadata=None,
        description="",
    )
    for y in range(0, canvas.height_px, BAND_PX):
        pixels[y : y + BAND_PX] = canvas.read(0, y, canvas.width_px, min(BAND_PX, canvas.height_px - y))
    pixels.flush()


def write_tiles(path: Path, canvas: Canvas, _: Input | None) -> None:
    """A plain TIFF in Deflate tiles, without levels."""

    def tiles() -> Iterator[RGB]:
        columns = -(-canvas.width_px // TIFF_TILE_PX)
        for y in range(0, canvas.height_px, TIFF_TILE_PX):
            band = canvas.read(0, y, columns * TIFF_TILE_PX, TIFF_TILE_PX)
            yield from np.split(band, columns, axis=1)

    tifffile.imwrite(
        path,
        tiles(),
        shape=(canvas.height_px, canvas.width_px, 3),
        dtype=np.uint8,
        photometric="rgb",
        tile=(TIFF_TILE_PX, TIFF_TILE_PX),
        compression="zlib",
        maxworkers=os.cpu_count(),
        resolution=(PER_CM, PER_CM),
        resolutionunit="CENTIMETER",
        metadata=None,
        bigtiff=canvas.width_px * canvas.height_px > 1_000_000_000,
    )


def write_picture(path: Path, _: Canvas, source: Input | None, *, kind: str) -> None:
    """A PNG or JPEG by libvips, without any scale."""
    import pyvips

    image = pyvips.Image.new_from_file(str(_path(source)), access="sequential").copy(xres=1.0, yres=1.0)
    if kind == "png":
        image.pngsave(str(path), strip=True)
    else:
        image.jpegsave(str(path), Q=JPEG_QUALITY, strip=True)


def write_svs(path: Path, _: Canvas, source: Input | None) -> None:
    """An SVS by mimic itself: YCbCr 4:2:0 tiles, as newer Aperio scanners write."""
    words: list[str | Path] = [sys.executable, "-m", "mimic", "convert", _path(source), "-o", path.with_suffix(".svs")]
    words += ["--mpp", f"{MPP_UM}", "--appmag", f"{POWER}", "--overwrite"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)})


def write_dicom(path: Path, _: Canvas, source: Input | None) -> None:
    """A DICOM whole-slide series by wsidicomizer, which copies the SVS's frames."""
    with warnings.catch_warnings():
        # wsidicom imports names that pydicom 3 has deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        from wsidicomizer import WsiDicomizer

        path.mkdir(exist_ok=True)
        with WsiDicomizer.open(_path(source)) as slide:
            slide.save(path)


def _path(source: Input | None) -> Path:
    if source is None:
        raise ValueError("this input is made from another")
    return source.path


# --- what is in them ---------------------------------------------------------------------------------------------


def read_canvas(_: Path, canvas: Canvas, boxes: list[Box]) -> list[RGB]:
    """Lossless files hold the canvas."""
    return [canvas.read(*box) for box in boxes]


def read_czi(path: Path, _: Canvas, boxes: list[Box]) -> list[RGB]:
    """By ZEISS's own library."""
    from pylibCZIrw import czi as zeiss

    with zeiss.open_czi(str(path)) as document:
        return [np.ascontiguousarray(document.read(roi=box)[..., ::-1]) for box in boxes]


def read_slide(path: Path, _: Canvas, boxes: list[Box]) -> list[RGB]:
    """By OpenSlide, from an SVS or any tiled TIFF, or from the largest level of a DICOM folder."""
    import openslide

    name = path if path.is_file() else max(path.rglob("*.dcm"), key=lambda each: each.stat().st_size)
    with openslide.OpenSlide(name) as slide:
        return [np.asarray(slide.read_region((x, y), 0, (w, h)).convert("RGB")) for x, y, w, h in boxes]


def read_jpeg(path: Path, _: Canvas, boxes: list[Box]) -> list[RGB]:
    """By libvips, which keeps the decoded picture on disk for as long as this takes."""
    import pyvips

    image = pyvips.Image.new_from_file(str(path))
    return [image.crop(*box).numpy() for box in boxes]


Writer = Callable[[Path, Canvas, "Input | None"], None]
Reader = Callable[[Path, Canvas, list[Box]], list[RGB]]

KINDS: dict[str, tuple[str, str | None, Writer, Reader]] = {
    "czi-raw": ("raw.czi", None, partial(write_czi, compression="uncompressed:"), read_canvas),
    "czi-zstd": ("zstd.czi", None, partial(write_czi, compression="zstd1:ExplicitLevel=1"), read_canvas),
    "czi-jxr": ("jpegxr.czi", "czi-raw", write_jpeg_xr, read_czi),
    "dicom": ("dicom", "svs", write_dicom, read_slide),
    "svs": ("slide.svs", "tiff-strips", write_svs, read_slide),
    "tiff-strips": ("strips.tif", None, write_strips, read_canvas),
    "tiff-tiles": ("tiles.tif", None, write_tiles, read_canvas),
    "png": ("picture.png", "tiff-strips", partial(write_picture, kind="png"), read_canvas),
    "jpeg": ("picture.jpg", "tiff-strips", partial(write_picture, kind="jpeg"), read_jpeg),
}
"""Kind -> file name, the kind that it is made from, its writer, and who tells its pixels."""
