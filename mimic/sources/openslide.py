"""Whole slides that OpenSlide reads as Bio-Formats does, in half the time and without Java: plain SVS, NDPI and DICOM.

What a file is ``svsslide``, ``ndpislide`` and ``dicomslide`` tell; OpenSlide gives pixels. A tile that is not there is
transparent to it, and no error: that is told here. Anything that is not plain is Bio-Formats'.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

import numpy as np
import openslide
import PIL.Image

from mimic import ndpislide, opinion, sources, structure, svsslide
from mimic.errors import BadInput, MimicError, ToolFailed, Unsupported
from mimic.geometry import grid
from mimic.model import Box, Image, Level, Pixels, Rendering, Slide, Tool
from mimic.render import PlaneReader, PlaneSource, Samples
from mimic.settings import Settings
from mimic.sources import PixelReader
from mimic.structure.reader import COPY_AGAIN

BOX_PX = 2048
"""Boxes are whole tiles, about as many pixels a side."""
BOX_MAX_BYTES = 32 << 20
"""Of pixels with alpha, as OpenSlide gives them."""
GIVEN = ("scan", "label", "macro")
READ_ERRORS = (openslide.OpenSlideError, OSError, ValueError)
ALL_MISSING = f"{COPY_AGAIN}, or convert what is there with --allow-missing"
OTHER_READER = f"{COPY_AGAIN}, or try --source bioformats"

log = logging.getLogger(__name__)


def claims(path: Path) -> bool:
    """Whether this is a plain slide; a damaged one is Bio-Formats', as any other kind."""
    try:
        found = _told(path)
    except MimicError:
        return False
    if isinstance(found, str):
        log.debug("%s is read by Bio-Formats: %s", path.name, found)
    return isinstance(found, Slide)


def probe(path: Path, settings: Settings) -> Slide:  # noqa: ARG001 - the protocol's
    """Facts of ``path``, as Bio-Formats tells them; no pixel is decoded.

    Raises BadInput for a damaged file, Unsupported for one that ``claims`` does not.
    """
    found = _told(path.absolute())
    if isinstance(found, str):
        raise Unsupported(f"cannot be read by the source openslide: {found}", path, "Leave --source out")
    return found


def _told(path: Path) -> Slide | str:
    if structure.container(path) == "dicom":
        return _told_dicom(path)
    tell = ndpislide.told if path.suffix.lower() == ndpislide.SUFFIX else svsslide.told
    return tell(path, source="openslide")


def _told_dicom(path: Path) -> Slide | str:
    """A series of which OpenSlide shows every level, label and macro: it leaves out what it does not know."""
    from mimic import dicomslide  # now and not before: pydicom takes a third of a second

    slide = dicomslide.told(path, source="openslide")
    if isinstance(slide, str):
        return slide
    try:
        with closing(_opened(path)) as handle:
            _numbers(handle, slide.images[0], path)
            sizes = [_stated_px(handle, image.role) for image in slide.images if image.role in GIVEN[1:]]
    except BadInput as error:
        return error.message
    wanted = [image.levels[0] for image in slide.images if image.role in GIVEN[1:]]
    if sizes != [(level.width_px, level.height_px) for level in wanted]:
        return "OpenSlide sees another label or macro"
    return slide


def _stated_px(handle: openslide.OpenSlide, role: str) -> tuple[int, int]:
    """(width, height) of a label or macro, which is not decoded; zeros where there is none."""
    width, height = (
        int(handle.properties.get(f"openslide.associated.{role}.{side}", 0)) for side in ("width", "height")
    )
    return width, height


class Planes:
    """Pixels of the scan, or of a label or macro; safe for many threads.

    One handle serves them all, without a cache: boxes are whole tiles, so that none is decoded twice, and what is read
    again comes from the file. An error sticks to a handle for ever: then a new one takes its place.
    """

    sequential = False

    def __init__(self, slide: Slide, image: Image, *, threads: int, settings: Settings) -> None:  # noqa: ARG002
        self._path, self._levels = slide.path, image.levels
        self._lock = threading.Lock()
        self._handle: openslide.OpenSlide | None = _opened(slide.path)
        self._numbers: list[int] = []
        self._picture: Pixels | None = None
        size = image.levels[0]
        if image.role == "scan":
            self._numbers = _numbers(self._handle, image, slide.path)
            self._box = box_size(size, _tile_px(self._handle))
        else:
            self._picture = _associated(self._handle, image, slide.path)
            self._box = (size.width_px, size.height_px)

    def boxes(self) -> Sequence[Box]:
        """Row by row, along the file's own tiles."""
        return grid(self._levels[0], self._box)

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box``. Raises BadInput where the source is damaged or has no tile."""
        return self.plane(box, 0, z=0, t=0)

    def samples(self, box: Box, channels: Sequence[int], *, z: int, t: int, level: int = 0) -> list[Samples]:
        """Red, green and blue, as ``render.PlaneReader`` has them."""
        pixels = self.plane(box, 0, z=z, t=t, level=level)
        return [pixels[..., channel] for channel in channels]

    def plane(self, box: Box, c: int, *, z: int, t: int, level: int = 0) -> Pixels:  # noqa: ARG002 - there is but one
        """Pixels of ``box`` of a level, shape (height, width, 3); black where a lower level has no tile.

        Lower levels may be off by part of a pixel: OpenSlide places them by the ratio of sizes. Raises BadInput.
        """
        if self._picture is not None:
            self._living()
            rows = slice(box.y_px, box.y_px + box.height_px)
            return self._picture[rows, box.x_px : box.x_px + box.width_px]
        region = self._region(box, level)
        size = box.height_px, box.width_px
        if not level and region.getchannel("A").getextrema()[0] != 255:
            message = (
                f"the file has no tile somewhere from x={box.x_px}, y={box.y_px} on, within {size[1]} x {size[0]} px"
            )
            raise BadInput(message, self._path, ALL_MISSING)
        return np.frombuffer(region.tobytes("raw", "RGB"), np.uint8).reshape(*size, 3)

    def _region(self, box: Box, level: int) -> PIL.Image.Image:
        handle = self._living()
        try:
            return _read(handle, box, level=self._numbers[level])
        except READ_ERRORS:
            self._replace(handle)  # another thread's error is told to all who use a handle: it may not be this box's
        try:
            with closing(_opened(self._path)) as own:
                return _read(own, box, level=self._numbers[level])
        except READ_ERRORS as error:
            where = f"near x={box.x_px}, y={box.y_px} of level {level}"
            raise BadInput(f"the file is damaged {where}: {_said(error)}", self._path, ALL_MISSING) from error

    def _living(self) -> openslide.OpenSlide:
        with self._lock:
            if self._handle is None:
                raise ToolFailed("the reader is closed", self._path)
            return self._handle

    def _replace(self, spent: openslide.OpenSlide) -> None:
        """Open a new handle for one in which an error sticks; others may still be reading through that."""
        with self._lock:
            if self._handle is spent:
                self._handle = _opened(self._path)

    def close(self) -> None:
        """Let the handle go, which closes with the last read that is under way. May be called twice."""
        with self._lock:
            self._handle = None


def _opened(path: Path) -> openslide.OpenSlide:
    try:
        handle = openslide.OpenSlide(path)
        handle.set_cache(openslide.OpenSlideCache(0))
    except READ_ERRORS as error:
        raise BadInput(f"OpenSlide cannot open it: {_said(error)}", path, OTHER_READER) from error
    return handle


def _read(handle: openslide.OpenSlide, box: Box, *, level: int) -> PIL.Image.Image:
    down = handle.level_downsamples[level]
    place = math.ceil(box.x_px * down), math.ceil(box.y_px * down)
    return handle.read_region(place, level, (box.width_px, box.height_px))


def _numbers(handle: openslide.OpenSlide, image: Image, path: Path) -> list[int]:
    """OpenSlide's number of each level. Raises BadInput where it sees other sizes."""
    theirs = list(handle.level_dimensions)
    own = [(level.width_px, level.height_px) for level in image.levels]
    if own[0] != theirs[0] or not set(own) <= set(theirs):
        raise BadInput(f"its directories say {own}, OpenSlide says {theirs}", path, OTHER_READER)
    return [theirs.index(size) for size in own]


def _associated(handle: openslide.OpenSlide, image: Image, path: Path) -> Pixels:
    """Pixels of a label or macro. Raises BadInput."""
    size = image.levels[0].width_px, image.levels[0].height_px
    try:
        picture = handle.associated_images[image.role]
    except KeyError as error:
        raise BadInput(f"OpenSlide does not find its {image.role}", path, OTHER_READER) from error
    except READ_ERRORS as error:
        message = f"the file is damaged: its {image.role} cannot be read: {_said(error)}"
        remedy = f"{COPY_AGAIN}, or leave it out with --label drop --macro drop"
        raise BadInput(message, path, remedy) from error
    if picture.size != size:
        raise BadInput(f"its {image.role} is of {size} px, OpenSlide says {picture.size}", path, OTHER_READER)
    return np.asarray(picture.convert("RGB"))


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _tile_px(handle: openslide.OpenSlide) -> tuple[int, int]:
    """What OpenSlide decodes at once: a tile, or a run of an NDPI's strip."""
    found = [handle.properties.get(f"openslide.level[0].tile-{side}", "") for side in ("width", "height")]
    across, down = (int(text) if text.isdecimal() else 0 for text in found)
    return (across, down) if across and down else (1, 1)


def box_size(size: Level, tile_px: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of boxes: whole tiles, about BOX_PX a side, at most BOX_MAX_BYTES, within the image."""
    across, down = tile_px
    width = min(size.width_px, across * math.ceil(BOX_PX / across))
    rows_max = max(down, BOX_MAX_BYTES // (4 * width))
    height = min(size.height_px, down * math.ceil(BOX_PX / down), rows_max // down * down)
    return width, height


def open(slide: Slide, image: Image, *, threads: int, settings: Settings, scratch: Path) -> PixelReader:
    """A reader of ``image``; Bio-Formats' of what OpenSlide does not give (an NDPI's mask, a DICOM's thumbnail).

    Raises BadInput, and Unsupported for a scan that another decoder sees in a different way.
    """
    if image.role not in GIVEN:
        source = sources.load("bioformats")
        return source.open(slide, image, threads=threads, settings=settings, scratch=scratch)
    return _agreed(Planes(slide, image, threads=threads, settings=settings), slide, image)


def open_planes(
    slide: Slide, image: Image, rendering: Rendering, *, threads: int, settings: Settings, scratch: Path
) -> PlaneReader:
    """As ``open``, for what looks at lower levels too: wsidicomizer misstates the colours of a DICOM's, and OpenSlide
    believes it where Bio-Formats believes the frames."""
    if image.role not in GIVEN or slide.format == "DICOM":
        source = cast(PlaneSource, sources.load("bioformats"))
        return source.open_planes(slide, image, rendering, threads=threads, settings=settings, scratch=scratch)
    return _agreed(Planes(slide, image, threads=threads, settings=settings), slide, image)


def _agreed(reader: Planes, slide: Slide, image: Image) -> Planes:
    """``reader``, of which some tiles are what another decoder sees. Raises Unsupported when they are not."""
    if image.role == "scan":
        count = opinion.compare(slide.path, reader.read)
        log.debug("%d tiles are what another decoder makes of them", count)
    return reader


def tools(settings: Settings) -> tuple[Tool, ...]:  # noqa: ARG001 - the protocol's
    """The library that reads."""
    return (Tool("OpenSlide", openslide.__library_version__),)
