"""bioformats2raw, when it is installed: it writes an OME-Zarr into scratch, which the source ``zarr`` reads.

For labs that trust it already, and for what only its own readers know (MIRAX). By name only: it needs room on disk for
all pixels, and its work is done anew whenever the pixels are read, for writing and for verification.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from mimic import chunks, scenes, sets, sources, structure
from mimic.errors import BadInput, MimicError, ToolFailed, Unsupported
from mimic.model import Box, ChannelView, Image, Level, Pixels, Rendering, Slide, Tool
from mimic.mosaic import Mosaic
from mimic.programs import bf2raw
from mimic.render import PlaneReader, PlaneSource, Samples
from mimic.settings import Settings
from mimic.structure import zarr as arrays

STORE = "out.zarr"
RGB = Rendering(
    tuple(ChannelView(c, colour, 0, 255) for c, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))))
)
PROGRESS_STEPS = 10

log = logging.getLogger(__name__)


def claims(path: Path) -> bool:  # noqa: ARG001 - used by name only
    """False: this source must be asked for."""
    return False


def probe(path: Path, settings: Settings) -> Slide:
    """Facts of ``path`` as bioformats2raw writes them without pixels; of a version that cannot, as Bio-Formats here
    reads them.

    Raises BadInput for a damaged file, Unsupported for a kind that it does not know, ToolMissing.
    """
    path = path.absolute()
    if path.is_dir():
        raise Unsupported("is a folder", path, "An OME-Zarr is read without --source")
    czi = structure.whole(path).czi
    program = bf2raw.find(settings)
    with tempfile.TemporaryDirectory(prefix="mimic-bf2raw-", dir=settings.scratch) as folder:
        target = Path(folder, STORE)
        if bf2raw.metadata(path, target, settings=settings, tmp=Path(folder)):
            slide = _read(target, path, settings)
            if czi is not None:
                slide = replace(slide, warnings=(*slide.warnings, *scenes.compare(slide, czi)))
        else:
            log.info("%s writes no metadata alone: facts come from Bio-Formats", program)
            slide = replace(sources.load("bioformats").probe(path, settings), source="bioformats2raw")
    options = path.with_name(path.name + ".bfoptions")
    if not os.path.lexists(options):
        return slide
    return replace(slide, warnings=(*slide.warnings, f"{options.name} beside the file changes how it is read"))


def _read(target: Path, path: Path, settings: Settings) -> Slide:
    """The slide of a store without pixels, as that of ``path``."""
    found, members = _probed(target, path, settings), sets.find(path)
    warnings = tuple(each for each in found.warnings if "not stored" not in each)
    return replace(
        found,
        path=path,
        files=(path,) if members is None else members.files,
        format=f"{path.suffix.lstrip('.').upper()} file" if members is None else members.kind,
        source="bioformats2raw",
        images=tuple(
            replace(each, levels=(Level(each.levels[0].width_px, each.levels[0].height_px),)) for each in found.images
        ),
        warnings=warnings,
    )


def _probed(target: Path, path: Path, settings: Settings) -> Slide:
    """The store that was written. Raises ToolFailed where it is none, or not whole."""
    try:
        return sources.load("zarr").probe(target, settings)
    except (BadInput, Unsupported) as error:
        message = f"{bf2raw.NAME} ended well, and what it wrote cannot be read: {error.message}"
        raise ToolFailed(message, path, "Try --source bioformats") from error


class _Store:
    """What the program made of one image, in a folder of its own that goes with it."""

    def __init__(self, slide: Slide, image: Image, *, threads: int, settings: Settings, scratch: Path) -> None:
        with ExitStack() as undo:
            self.folder = Path(tempfile.mkdtemp(prefix="bf2raw-", dir=scratch))
            undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.slide = _written(slide, image, self.folder, threads=threads, settings=settings)
            self.image = _the_same(self.slide, slide, image)
            undo.pop_all()

    def remove(self) -> None:
        """Give the room on disk back; may be called twice."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _written(slide: Slide, image: Image, folder: Path, *, threads: int, settings: Settings) -> Slide:
    """Run the program, and prove that what it wrote is whole."""
    size = image.levels[0]
    planes = image.channels * image.z_planes * image.t_frames
    tiles = math.ceil(size.width_px / bf2raw.TILE_PX) * math.ceil(size.height_px / bf2raw.TILE_PX) * planes
    target = folder / STORE
    done = bf2raw.convert(
        slide.path,
        target,
        series=image.index,
        workers=threads,
        deadline_s=bf2raw.deadline_s(size.width_px * size.height_px * planes),
        settings=settings,
        tmp=folder,
        watch=_progress(tiles),
    )
    found = _probed(target, slide.path, settings)
    absent, total = arrays.absent(chunks.all_series(target)[0].levels[0])
    if absent and done < total:  # newer ones leave chunks of zeros out, and tell of them all the same
        message = f"{bf2raw.NAME} ended well, and {absent} of {total} chunks are missing"
        raise ToolFailed(message, slide.path, "Try --source bioformats")
    return found


def _progress(total: int) -> Callable[[int], None]:
    """Logs every tenth of the way: a program's work is a stage before the first pixel is read."""
    step = max(1, total // PROGRESS_STEPS)

    def watch(done: int) -> None:
        if done % step == 0 or done == total:
            log.info("%s wrote %d of %d chunks", bf2raw.NAME, done, total)

    return watch


def _the_same(written: Slide, slide: Slide, image: Image) -> Image:
    """The one image of the store. Raises ToolFailed unless its sizes and type are those of ``image``."""
    if len(written.images) != 1:
        raise ToolFailed(f"{bf2raw.NAME} wrote {len(written.images)} images for one", slide.path)

    def facts(one: Image) -> str:
        size = one.levels[0]
        planes = f"{one.channels} channels, {one.z_planes} focus planes, {one.t_frames} time points"
        return f"{size.width_px} x {size.height_px} px of {one.pixel_type}, {planes}"

    found = written.images[0]
    if facts(found) != facts(image):
        message = f"{bf2raw.NAME} wrote {facts(found)}; the file has {facts(image)}"
        raise ToolFailed(message, slide.path, "Use --source bioformats")
    return found


class Planes:
    """Samples of the store's image, as ``zarr`` reads them; the store goes with it."""

    sequential = False

    def __init__(self, store: _Store, reader: PlaneReader) -> None:
        self._store, self._reader = store, reader

    def boxes(self) -> Sequence[Box]:
        """As those of ``zarr``."""
        return self._reader.boxes()

    def samples(self, box: Box, channels: Sequence[int], *, z: int, t: int, level: int = 0) -> list[Samples]:
        """As ``render.PlaneReader`` has it."""
        return self._reader.samples(box, channels, z=z, t=t, level=level)

    def close(self) -> None:
        """Remove the store; may be called twice."""
        self._reader.close()
        self._store.remove()


class Reader:
    """Boxes of 8-bit RGB; white where a CZI's mosaic has holes, as by the other sources."""

    sequential = False

    def __init__(self, planes: Planes, mosaic: Mosaic | None) -> None:
        self._planes, self._mosaic = planes, mosaic

    def boxes(self) -> Sequence[Box]:
        """As those of ``zarr``."""
        return self._planes.boxes()

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box``. Raises BadInput where a block of a CZI came back black."""
        pixels: Pixels = np.stack(self._planes.samples(box, (0, 1, 2), z=0, t=0), axis=-1)
        return self._mosaic.mend(box, pixels) if self._mosaic is not None else pixels

    def close(self) -> None:
        """Remove the store; may be called twice."""
        self._planes.close()


def open(slide: Slide, image: Image, *, threads: int, settings: Settings, scratch: Path) -> Reader:
    """Run the program for ``image`` and return a reader of what it wrote below ``scratch``.

    Raises Unsupported for what is not 8-bit RGB, ToolFailed for a result that is not whole, and what the program means.
    """
    if image.pixel_type != "uint8" or not image.rgb or image.channels != 3:
        raise Unsupported(f"image {image.index} is not 8-bit RGB", slide.path)
    planes = open_planes(slide, image, RGB, threads=threads, settings=settings, scratch=scratch)
    czi = structure.whole(slide.path).czi
    return Reader(planes, scenes.mosaic_of(slide, image, czi) if czi is not None else None)


def open_planes(
    slide: Slide, image: Image, rendering: Rendering, *, threads: int, settings: Settings, scratch: Path
) -> Planes:
    """As ``open``, for the samples that ``rendering`` shows."""
    store = _Store(slide, image, threads=threads, settings=settings, scratch=scratch)
    source = cast(PlaneSource, sources.load("zarr"))
    try:
        reader = source.open_planes(
            store.slide, store.image, rendering, threads=threads, settings=settings, scratch=scratch
        )
    except MimicError:
        store.remove()
        raise
    return Planes(store, reader)


def tools(settings: Settings) -> tuple[Tool, ...]:
    """The program with its version, and zarr-python."""
    with tempfile.TemporaryDirectory(prefix="mimic-version-") as folder:
        own = Tool(bf2raw.NAME, bf2raw.version(settings, Path(folder)), str(bf2raw.find(settings)))
    return (own, *sources.load("zarr").tools(settings))
