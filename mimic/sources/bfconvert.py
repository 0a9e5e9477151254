"""The original recipe as a pipeline of other people's programs: showinf, bfconvert to a scratch TIFF, tiffcp.

Slower than ``bioformats`` and in need of disk, but nothing of it runs in our process, it works with any bftools, and it
is the oracle: both must give identical pixels. The scratch TIFF is uncompressed, so that its tiles are read by offset.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tifffile

from mimic import ome, scenes, structure
from mimic.errors import BadInput, ToolFailed, Unsupported, VerificationFailed
from mimic.model import Box, Image, Level, Pixels, Slide, Tool
from mimic.mosaic import Mosaic
from mimic.programs import bftools, jvm, libtiff
from mimic.settings import Settings

SCRATCH_NAME = "bfconvert.tif"
"""Fixed and ASCII: bfconvert expands %s, %n and the like in output names."""
CONTIGUOUS_NAME = "contig.tif"
BOX_PX = 2048


def claims(path: Path) -> bool:  # noqa: ARG001 - used by name only
    """False: this source must be asked for."""
    return False


def probe(path: Path, settings: Settings) -> Slide:
    """Facts of ``path`` from showinf: one level an image, because bfconvert is asked for the full resolution only.

    Raises BadInput for a damaged file, Unsupported for a kind that Bio-Formats does not know.
    """
    path = path.absolute()
    facts = structure.whole(path)
    with tempfile.TemporaryDirectory(prefix="mimic-showinf-") as folder:
        core = bftools.showinf_core(path, settings, Path(folder))
        document = ome.parse(bftools.showinf_xml(path, settings, Path(folder)), path)
    if len(document.images) != len(core.resolutions):
        message = f"showinf lists {len(core.resolutions)} images and describes {len(document.images)}"
        raise BadInput(message, path, bftools.REMEDY)
    files = tuple(sorted({path, *core.files}))
    warnings = list(document.warnings)
    for companion in files:
        structure.whole(companion)
        options = companion.with_name(companion.name + ".bfoptions")
        if os.path.lexists(options):  # exists() raises when the longer name is too long
            warnings.append(f"{options.name} beside the file changes how Bio-Formats reads it")
    images = tuple(map(_image, document.images, core.thumbnails))
    slide = Slide(path, files, core.format, "bfconvert", images, document.scanner, tuple(warnings))
    return slide if facts.czi is None else replace(slide, warnings=(*warnings, *scenes.compare(slide, facts.czi)))


def _image(described: ome.OmeImage, thumbnail: bool) -> Image:
    bits = described.significant_bits or ome_bits(described.pixel_type)
    return Image(
        index=described.index,
        role="thumbnail" if thumbnail and described.role == "scan" else described.role,
        name=described.name,
        levels=(Level(described.size_x, described.size_y),),
        channels=described.size_c,
        rgb=1 < described.samples_per_pixel == described.size_c,
        pixel_type=described.pixel_type,
        bits=bits,
        z_planes=described.size_z,
        t_frames=described.size_t,
        scale=described.scale,
        objective=described.objective,
        acquired=described.acquired,
    )


def ome_bits(pixel_type: str) -> int:
    """Bits of a sample by OME's name of its type."""
    digits = "".join(sign for sign in pixel_type if sign.isdigit())
    return int(digits) if digits else {"bit": 1, "float": 32, "double-complex": 128}.get(pixel_type, 64)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tiles of a scratch TIFF lie: ``offsets`` row by row, each tile ``tile_bytes`` long."""

    path: Path
    width_px: int
    height_px: int
    tile_width_px: int
    tile_height_px: int
    contiguous: bool
    big: bool
    offsets: tuple[int, ...]

    @property
    def columns(self) -> int:
        return math.ceil(self.width_px / self.tile_width_px)

    @property
    def tile_bytes(self) -> int:
        return self.tile_width_px * self.tile_height_px * (3 if self.contiguous else 1)


def layout(path: Path, size: Level) -> Layout:
    """Read the first directory of a TIFF that bfconvert or tiffcp wrote, and prove that it is whole.

    Raises ToolFailed unless it is 8-bit RGB of ``size``, tiled, uncompressed, with every tile inside the file.
    """
    try:
        with tifffile.TiffFile(path) as file:
            page, big = file.pages.first, file.is_bigtiff
            contiguous = page.planarconfig == tifffile.PLANARCONFIG.CONTIG
            found = Layout(
                path,
                page.imagewidth,
                page.imagelength,
                page.tilewidth,
                page.tilelength,
                contiguous,
                big,
                tuple(page.dataoffsets),
            )
            sound = (
                page.is_tiled
                and page.compression == tifffile.COMPRESSION.NONE
                and page.bitspersample == 8
                and page.samplesperpixel == 3
                and (found.width_px, found.height_px) == (size.width_px, size.height_px)
            )
            counts = tuple(page.databytecounts)
    except (tifffile.TiffFileError, OSError, ValueError, KeyError, IndexError) as error:
        raise ToolFailed(f"the scratch TIFF cannot be read ({error})", path) from error
    if not sound:
        what = f"{found.width_px} x {found.height_px} px, {page.bitspersample} bits, {page.samplesperpixel} samples"
        raise ToolFailed(f"the scratch TIFF is not the tiled RGB image of {size} that was asked for: {what}", path)
    rows = math.ceil(found.height_px / found.tile_height_px)
    expected = found.columns * rows * (1 if contiguous else 3)
    end = path.stat().st_size
    holes = sum(not 0 < place <= end - found.tile_bytes for place in found.offsets)
    holes += sum(count != found.tile_bytes for count in counts)
    if holes or len(found.offsets) != expected or len(counts) != expected:
        message = f"the scratch TIFF has {len(found.offsets)} of {expected} tiles, {holes} of them empty or cut short"
        raise ToolFailed(message, path)
    return found


class Reader:
    """Boxes of a scratch TIFF, for any thread and in any order; owns its file and removes it."""

    sequential = False

    def __init__(self, plan: Layout, mosaic: Mosaic | None) -> None:
        if not plan.contiguous:
            raise ToolFailed("the scratch TIFF is planar", plan.path)
        self._plan = plan
        self._mosaic = mosaic
        self._lock = threading.Lock()
        self._file = plan.path.open("rb")

    def boxes(self) -> Sequence[Box]:
        """Row by row, whole tiles of about 2048 px."""
        plan = self._plan
        width = plan.tile_width_px * math.ceil(BOX_PX / plan.tile_width_px)
        height = plan.tile_height_px * math.ceil(BOX_PX / plan.tile_height_px)
        return [
            Box(x, y, min(width, plan.width_px - x), min(height, plan.height_px - y))
            for y in range(0, plan.height_px, height)
            for x in range(0, plan.width_px, width)
        ]

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box``, from as many tiles as it touches; white where a CZI's mosaic has holes."""
        plan = self._plan
        pixels = np.empty((box.height_px, box.width_px, 3), np.uint8)
        right, lower = box.x_px + box.width_px, box.y_px + box.height_px
        for row in range(box.y_px // plan.tile_height_px, math.ceil(lower / plan.tile_height_px)):
            for column in range(box.x_px // plan.tile_width_px, math.ceil(right / plan.tile_width_px)):
                x, y = column * plan.tile_width_px, row * plan.tile_height_px
                left, top = max(x, box.x_px), max(y, box.y_px)
                end_x, end_y = min(x + plan.tile_width_px, right), min(y + plan.tile_height_px, lower)
                part = self._tile(row * plan.columns + column)[top - y : end_y - y, left - x : end_x - x]
                pixels[top - box.y_px : end_y - box.y_px, left - box.x_px : end_x - box.x_px] = part
        return self._mosaic.mend(box, pixels) if self._mosaic is not None else pixels

    def _tile(self, number: int) -> Pixels:
        plan = self._plan
        with self._lock:
            self._file.seek(plan.offsets[number])
            data = self._file.read(plan.tile_bytes)
        if len(data) != plan.tile_bytes:
            raise VerificationFailed(f"tile {number} of the scratch TIFF is cut short", plan.path)
        return np.frombuffer(data, np.uint8).reshape(plan.tile_height_px, plan.tile_width_px, 3)

    def close(self) -> None:
        """Close and remove the scratch TIFF."""
        self._file.close()
        self._plan.path.unlink(missing_ok=True)


def open(
    slide: Slide,
    image: Image,
    *,
    threads: int,  # noqa: ARG001 - bfconvert decodes in one
    settings: Settings,
    scratch: Path,
) -> Reader:
    """Run the recipe for ``image`` in ``scratch`` and return a reader of its result.

    Raises Unsupported for what is not 8-bit RGB, BadInput and ToolFailed as the programs do, ToolMissing for tiffcp.
    """
    if image.pixel_type != "uint8" or not image.rgb or image.channels != 3:
        raise Unsupported(f"image {image.index} is not 8-bit RGB", slide.path)
    size = image.levels[0]
    with tempfile.TemporaryDirectory(prefix=f"bfconvert-{image.index}-", dir=scratch) as folder:
        done = _recipe(slide.path, image.index, size, settings=settings, folder=Path(folder))
        target = scratch / f"{Path(folder).name}.tif"
        kept = replace(done, path=done.path.replace(target))
    czi = structure.whole(slide.path).czi
    return Reader(kept, scenes.mosaic_of(slide, image, czi) if czi is not None else None)


def _recipe(path: Path, series: int, size: Level, *, settings: Settings, folder: Path) -> Layout:
    """bfconvert, and tiffcp when the written file is planar, as it is for JPEG and others."""
    core = bftools.showinf_core(path, settings, folder)
    if series >= len(core.resolutions):
        raise BadInput(f"showinf finds {len(core.resolutions)} images and none of number {series}", path)
    target = folder / SCRATCH_NAME
    pixels = (size.width_px, size.height_px)
    bftools.bfconvert(path, target, flat_series=core.flat(series), size_px=pixels, settings=settings, tmp=folder)
    written = layout(target, size)
    if written.contiguous:
        return written
    contiguous = folder / CONTIGUOUS_NAME
    deadline = bftools.deadline_s(*pixels)
    libtiff.make_contiguous(target, contiguous, big=written.big, settings=settings, deadline_s=deadline)
    target.unlink()
    return layout(contiguous, size)


def tools(settings: Settings) -> tuple[Tool, ...]:
    """Java, Bio-Formats and tiffcp, as they name themselves."""
    java = jvm.find_java(settings)
    with tempfile.TemporaryDirectory(prefix="mimic-version-") as folder:
        formats, tiffcp = bftools.version(settings, Path(folder)), libtiff.version(settings, Path(folder))
    home = jvm.find_bftools(settings) or jvm.find_bioformats(settings)
    return (
        Tool("Java", jvm.java_version(java), str(java)),
        Tool("Bio-Formats", formats, str(home)),
        Tool("tiffcp", tiffcp, str(libtiff.find_tiffcp(settings))),
    )
