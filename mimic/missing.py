"""Tiles that are not there or do not decode: refused, or with ``--allow-missing`` left white, and counted.

Where a box cannot be read it is read again in pieces, the file's own tiles, so that only the damaged ones are lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import cast

import numpy as np
import simplejpeg  # type: ignore[import-untyped]

from mimic import jpegs, passthrough, structure
from mimic.errors import BadInput
from mimic.model import Box, Coded, Image, Level, Pixels, Plan, Slide
from mimic.sources import PixelReader, TileReader
from mimic.structure import tiff
from mimic.structure.reader import COPY_AGAIN

PIECE_PX = 256
WHITE = 255
NDPI = "Hamamatsu NDPI"
"""The format of which ``strips`` reads the JPEG runs."""


@dataclass
class Missing:
    """The places that are missing of one image, in pixels of level 0: shared by all readers of a conversion, so that
    what the first one could not read is white for the next one too."""

    boxes: set[Box] = field(default_factory=set)
    tiles: set[tuple[int, int, int]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def count(self) -> int:
        """How many tiles, blocks or runs are missing; of copied tiles those of level 0 count."""
        return len(self.boxes) + sum(level == 0 for level, _, _ in self.tiles)

    def add(self, box: Box) -> None:
        with self.lock:
            self.boxes.add(box)

    def within(self, box: Box) -> list[Box]:
        """Those that touch ``box``."""
        with self.lock:
            return [each for each in self.boxes if common(each, box) is not None]


def common(one: Box, other: Box) -> Box | None:
    """What two boxes share."""
    left, top = max(one.x_px, other.x_px), max(one.y_px, other.y_px)
    right = min(one.x_px + one.width_px, other.x_px + other.width_px)
    lower = min(one.y_px + one.height_px, other.y_px + other.height_px)
    return Box(left, top, right - left, lower - top) if right > left and lower > top else None


def prove(slide: Slide, image: Image, *, threads: int, watch: Callable[[], None]) -> None:
    """Decode strictly what Bio-Formats decodes in silence: the JPEG of an NDPI and of tiles that could be copied.

    ``watch`` is called now and then. Raises BadInput with the place of the first that libjpeg-turbo complains about.
    """
    if slide.format == NDPI:
        from mimic import strips  # with tifffile, which others need only when all is read

        strips.check(slide.path, threads=threads, watch=watch)
        return
    for box, said in _faulty_tiles(slide, image, threads=threads, watch=watch):
        if said is not None:
            message = f"the file is damaged: the tile at x={box.x_px}, y={box.y_px} does not decode: {said}"
            raise BadInput(message, slide.path, f"{COPY_AGAIN}, or convert what is there with --allow-missing")


def declared(slide: Slide, image: Image, *, threads: int, watch: Callable[[], None]) -> list[Box]:
    """Places of a scan that the file itself has not, or whose JPEG data libjpeg-turbo complains about.

    Raises BadInput when the file says that some are empty and there is no telling which.
    """
    facts = structure.check(slide.path)
    size = image.levels[0]
    if slide.format == NDPI:
        from mimic import strips

        damaged = strips.damaged(slide.path, threads=threads, watch=watch)
        found = [each.box for each in damaged if each.size == _size(size)]
    elif slide.coded is not None and slide.coded.reason is None:
        found = [box for box, _ in _faulty_tiles(slide, image, threads=threads, watch=watch)]
    elif facts.czi is not None:
        found = _empty_blocks(slide, image, facts.czi)
    elif facts.container == "tiff":
        found = [Box(*each) for each in tiff.holes(slide.path, _size(size))]
    else:
        found = []
        if slide.missing_tiles:
            message = f"{slide.missing_tiles} of its tiles are empty, and the format does not tell which"
            raise BadInput(message, slide.path, "Export it again as a whole from its own software")
    return found


def _size(level: Level) -> tuple[int, int]:
    return level.width_px, level.height_px


def _faulty_tiles(
    slide: Slide, image: Image, *, threads: int, watch: Callable[[], None]
) -> Iterator[tuple[Box, str | None]]:
    """Places of tiles of level 0 that are not there (None) or do not decode, with what is wrong."""
    coded = slide.coded
    if coded is None or coded.reason is not None or (image,) != slide.scans():
        return
    module = import_module(f"mimic.sources.{coded.source}")
    side, (width, height) = coded.tile_px, _size(image.levels[0])
    columns = range(0, width, side)
    opened = cast(TileReader, module.open_tiles(slide, image, coded))
    with closing(opened) as tiles, ThreadPoolExecutor(threads, thread_name_prefix="mimic-strict") as pool:
        for y in range(0, height, side):
            watch()
            row = [tiles.tile(0, x // side, y // side) for x in columns]
            for x, data, said in zip(columns, row, pool.map(partial(_fault, coded), row), strict=True):
                if data is None or said is not None:
                    yield Box(x, y, min(side, width - x), min(side, height - y)), said


def _fault(coded: Coded, data: bytes | None) -> str | None:
    """What libjpeg-turbo says of a tile; nothing of JPEG 2000, whose decoder is asked anyway."""
    if data is None or coded.compression != jpegs.JPEG:
        return None
    try:
        stream = jpegs.decodable(data, tables=coded.jpeg_tables, photometric=coded.photometric)
        simplejpeg.decode_jpeg(stream, "GRAY", fastdct=True, strict=True)
    except ValueError as error:
        return str(error)
    return None


def _empty_blocks(slide: Slide, image: Image, czi: structure.CziFacts) -> list[Box]:
    scans = slide.scans()
    if image not in scans or czi.empty is None:
        return []
    scene = czi.scenes[scans.index(image)]
    mine = czi.empty if scene.index is None else czi.empty[czi.empty[:, 0] == scene.index]
    return [Box(x - scene.x_px, y - scene.y_px, width, height) for _, x, y, width, height in mine[:, :5].tolist()]


def pieces(slide: Slide, image: Image) -> list[Box]:
    """The file's own tiles of a scan: the blocks of a CZI, which may overlap; else a grid."""
    size = image.levels[0]
    czi = structure.check(slide.path).czi
    scans = slide.scans()
    if czi is not None and image in scans:
        scene = czi.scenes[scans.index(image)]
        mine = czi.subblocks if scene.index is None else czi.subblocks[czi.subblocks[:, 0] == scene.index]
        places = np.unique(mine[:, 1:5] - np.array([scene.x_px, scene.y_px, 0, 0]), axis=0)
        return [Box(*place) for place in places.tolist()]
    width, height = size.tile_width_px or PIECE_PX, size.tile_height_px or PIECE_PX
    return [
        Box(x, y, min(width, size.width_px - x), min(height, size.height_px - y))
        for y in range(0, size.height_px, height)
        for x in range(0, size.width_px, width)
    ]


class Mended:
    """A PixelReader that is never refused: what ``reader`` cannot give is white (black in a rendered picture)."""

    def __init__(self, reader: PixelReader, tiles: Iterable[Box], missing: Missing, *, fill: int = WHITE) -> None:
        self._reader, self._tiles, self._missing, self._fill = reader, list(tiles), missing, fill

    @property
    def sequential(self) -> bool:
        return self._reader.sequential

    def boxes(self) -> Sequence[Box]:
        return self._reader.boxes()

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box``. Raises BadInput only when a source that is read from top to bottom breaks off."""
        try:
            pixels = self._reader.read(box)
        except BadInput:
            if self._reader.sequential:
                raise
            pixels = self._piecewise(box)
        lost = self._missing.within(box)
        if lost and not pixels.flags.writeable:
            pixels = pixels.copy()
        for each in lost:
            _fill(pixels, box, each, self._fill)
        return pixels

    def _piecewise(self, box: Box) -> Pixels:
        pixels = np.full((box.height_px, box.width_px, 3), self._fill, np.uint8)
        for tile in self._tiles:
            part = common(tile, box)
            if part is None:
                continue
            try:  # the whole tile, so that every box that meets it is told the same
                found = self._reader.read(tile)
            except BadInput:
                self._missing.add(tile)
                continue
            rows, columns = _slices(part, tile)
            pixels[_slices(part, box)] = found[rows, columns]
        return pixels

    def close(self) -> None:
        self._reader.close()


def _slices(part: Box, origin: Box) -> tuple[slice, slice]:
    left, top = part.x_px - origin.x_px, part.y_px - origin.y_px
    return slice(top, top + part.height_px), slice(left, left + part.width_px)


def _fill(pixels: Pixels, box: Box, lost: Box, value: int) -> None:
    part = common(lost, box)
    if part is not None:
        pixels[_slices(part, box)] = value


class MendedTiles:
    """A TileReader that has not got the tiles that do not decode."""

    def __init__(self, tiles: TileReader, plan: Plan, missing: Missing) -> None:
        self._tiles, self._missing = tiles, missing
        self._guard, self._decoder = passthrough.Guard(plan), passthrough.Decoder(plan)
        self._sound: set[tuple[int, int, int]] = set()

    def tile(self, level: int, column: int, row: int) -> bytes | None:
        """As TileReader has it; None also for a tile that is damaged."""
        place = level, column, row
        try:
            data = None if place in self._missing.tiles else self._tiles.tile(level, column, row)
            if data is not None and place not in self._sound:
                self._guard.check(data, level, (column, row))
                self._decoder.reduced(data, level, (column, row), 1)
        except BadInput:
            data = None
        with self._missing.lock:
            (self._missing.tiles if data is None else self._sound).add(place)
        return data

    def tiles(self, level: int, row: int, columns: range) -> list[bytes | None]:
        """As TileReader has it."""
        return [self.tile(level, column, row) for column in columns]

    def close(self) -> None:
        self._tiles.close()
