"""Level 0 against the lower level that the source itself holds of the same place.

JPEG, JPEG-XR and JPEG 2000 carry no checksums: a changed byte can decode to plausible pixels, without a warning. But a
scanner wrote most slides twice, at two resolutions, and damage seldom hits both alike. So what was written as level 0
is averaged and compared with the source's own lower level.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

from mimic import jpegs, sheets
from mimic.errors import BadInput
from mimic.model import Box, Check, Coded, Level, Pixels, Plan
from mimic.settings import Settings
from mimic.sheets import Sheet
from mimic.sources import TileReader
from mimic.structure.reader import COPY_AGAIN

COMPRESSION, PHOTOMETRIC, JPEG = 259, 262, 7
MCU_PX = 16
UNIT_PX = 8
"""A JPEG's own blocks: libjpeg gives their means without computing any pixel."""
FACTORS = (4, 8, 2, 16, 32)
"""Between level 0 and the lower level, best first: smaller ones cost more to read, larger ones see less."""
FACTOR_TOLERANCE = 0.01
UNREADABLE = frozenset(("DICOM",))
"""Bio-Formats 7.3.1 fails (arraycopy) on lower levels of a DICOM whose size is no multiple of the tile."""
TOLERANCES = {1: 64.0, 2: 36.0, 4: 20.0}
"""Units a side of a cell -> grey levels by which its mean colour may lie beyond those of the cell there in the lower
level and of its eight neighbours: scanners shift, sharpen and thin out their lower levels, by less than a cell. Seen in
sound slides (the corpus and the samples: CZI, DICOM, NDPI, OME-TIFF, SVS): at most 26, 12 and 6. Small cells see
damage to a row of JPEG blocks, large ones a tile that is a little too bright."""
BAND_PX = 1024
"""Rows of the lower level that are read at a time."""
AT_A_TIME = 256
"""Tiles of level 0 that are held compressed."""

Scalar = TypeVar("Scalar", np.uint8, np.float32)
Means = NDArray[np.float32]
"""Mean colours of cells, shape (rows, columns, 3)."""
Lower = Callable[[int, Box], Pixels]
"""Pixels of whole rows (a box as wide as the level) of a lower level of the source, by the level's number."""


def level_of(levels: tuple[Level, ...]) -> tuple[int, int] | None:
    """Number and factor of the lower level to compare with; None where there is none."""
    found: dict[int, int] = {}
    for number, level in enumerate(levels[1:], start=1):
        ratios = (levels[0].width_px / level.width_px, levels[0].height_px / level.height_px)
        for factor in FACTORS:
            if all(abs(ratio / factor - 1) < FACTOR_TOLERANCE for ratio in ratios):
                found.setdefault(factor, number)
    return next(((found[factor], factor) for factor in FACTORS if factor in found), None)


def check(path: Path, plan: Plan, *, threads: int, settings: Settings) -> tuple[Check, ...]:
    """One check that level 0 of the finished file shows what the source's lower level shows; none where the source
    has no such level that can be read. Raises BadInput that names the place where they differ."""
    with witness(plan, threads=threads, settings=settings) as found:
        if found is None:
            return ()
        sheet = sheets.read(path).tiled()[0]
        across, down = sheet.grid
        places = [(column, row) for row in range(down) for column in range(across)]
        with path.open("rb") as file, ThreadPoolExecutor(threads, thread_name_prefix="mimic-means") as pool:
            for first in range(0, len(places), AT_A_TIME):
                some = places[first : first + AT_A_TIME]
                data = [_segment(file, sheet, row * across + column) for column, row in some]
                for place, means in zip(some, pool.map(partial(_means, sheet=sheet), data), strict=True):
                    found.add(place, means)
        return found.checks()


@contextmanager
def witness(plan: Plan, *, threads: int, settings: Settings) -> Iterator[Witness | None]:
    """What compares level 0 with the source's lower level as it is told of it; None where there is none to compare."""
    with _lower(plan, threads=threads, settings=settings) as found:
        chosen = level_of(found[0]) if found is not None and _is_jpeg(plan) else None
        if found is None or chosen is None:
            yield None
        else:
            levels, lower = found
            yield Witness(plan, levels[chosen[0]], lower, number=chosen[0], factor=chosen[1])


@dataclass(frozen=True, slots=True)
class _Band:
    """Rows ``first_px`` to ``end_px`` of level 0, which are compared at a time."""

    first_px: int
    end_px: int


class Witness:
    """Compares level 0, told tile by tile and row by row, with the source's lower level, a band at a time.

    Only whole units count, and none that holds a black pixel in the lower level, where nothing was scanned: it is not a
    number. Bands overlap by a cell at each side.
    """

    def __init__(self, plan: Plan, level: Level, lower: Lower, *, number: int, factor: int) -> None:
        self._plan, self._level, self._lower, self._number, self._factor = plan, level, lower, number, factor
        self._unit_px = max(UNIT_PX, factor)
        self._worst = dict.fromkeys(TOLERANCES, 0.0)
        self._unreadable: str | None = None
        size, tile_px = plan.levels[0], plan.tile_px
        self._grid = -(-size.width_px // tile_px), -(-size.height_px // tile_px)
        # the last blocks of an image that fills them in part hold padding, whose colours bleed into subsampled chroma
        width_px, height_px = (side_px // MCU_PX * MCU_PX for side_px in (size.width_px, size.height_px))
        self._columns = min(width_px, level.width_px * factor) // self._unit_px
        self._bands = deque(self._cut(height_px))
        self._rows: dict[int, Pixels] = {}

    def _cut(self, height_px: int) -> Iterator[_Band]:
        # bands begin both on a tile of level 0 and on the largest cell
        step = int(np.lcm(self._unit_px * max(TOLERANCES), self._plan.tile_px))
        band_px = max(1, BAND_PX * self._factor // step) * step
        for top_px in range(0, height_px, band_px):
            band = _Band(
                max(0, top_px - step), min(top_px + band_px + step, height_px, self._level.height_px * self._factor)
            )
            if band.end_px - band.first_px >= self._unit_px and self._columns:
                yield band

    def add(self, place: tuple[int, int], means: Pixels) -> None:
        """Take the means of the 8 px squares of a tile, shape (tile_px / 8, tile_px / 8, 3).

        Raises BadInput that names the place where the levels differ.
        """
        units = self._plan.tile_px // UNIT_PX
        column, row = place
        if column == 0:
            self._rows[row] = np.empty((units, self._grid[0] * units, 3), np.uint8)
        self._rows[row][:, column * units : (column + 1) * units] = means
        if column + 1 == self._grid[0]:
            done_px = (row + 1) * self._plan.tile_px
            while self._bands and self._bands[0].end_px <= done_px:
                self._compare(self._bands.popleft())
            needed = self._bands[0].first_px // self._plan.tile_px if self._bands else self._grid[1]
            for old in [each for each in self._rows if each < needed]:
                del self._rows[old]

    def checks(self) -> tuple[Check, ...]:
        """The check, after all tiles."""
        if self._unreadable is not None:
            return (Check("source's lower level", False, self._unreadable, "it can be read", must=False),)
        said = ", ".join(f"{self._worst[cell]:.1f} in {self._unit_px * cell} px" for cell in TOLERANCES)
        limits = ", ".join(f"{tolerance:g}" for tolerance in TOLERANCES.values())
        return (Check("source's lower level", True, said, f"colours of its level {self._number}, within {limits}"),)

    def _compare(self, band: _Band) -> None:
        if self._unreadable is not None:
            return
        try:
            theirs = self._theirs(band)
        except _UnreadableError as error:
            self._unreadable = str(error)
            return
        made = self._made(band)
        for cell, tolerance in TOLERANCES.items():
            found = beyond(pooled(made, cell), pooled(theirs, cell))
            largest = float(found.max(initial=0))
            self._worst[cell] = max(self._worst[cell], largest)
            if largest > tolerance:
                row, column = np.unravel_index(int(found.argmax()), found.shape)
                side_px = self._unit_px * cell
                where = f"x={int(column) * side_px}, y={band.first_px + int(row) * side_px}"
                message = f"its colours near {where} are not those of its own lower level {self._number}"
                remedy = f"{COPY_AGAIN}, or convert it all the same with --allow-missing"
                raise BadInput(
                    f"the file is damaged: {message} ({largest:.0f} grey levels)", self._plan.slide.path, remedy
                )

    def _made(self, band: _Band) -> Means:
        """Mean colours of units of level 0."""
        tile_px, rows = self._plan.tile_px, (band.end_px - band.first_px) // self._unit_px
        parts = [self._rows[row] for row in range(band.first_px // tile_px, -(-band.end_px // tile_px))]
        side = self._unit_px // UNIT_PX
        return pooled(np.concatenate(parts)[: rows * side, : self._columns * side], side)

    def _theirs(self, band: _Band) -> Means:
        """Those of the lower level."""
        factor, rows = self._factor, (band.end_px - band.first_px) // self._unit_px
        side = self._unit_px // factor
        box = Box(0, band.first_px // factor, self._level.width_px, rows * side)
        own = self._lower(self._number, box)[:, : self._columns * side]
        theirs = pooled(own, side)
        black = _largest(own) == 0
        if black.any():
            theirs[pooled(black[..., None], side)[..., 0] > 0] = np.nan
        return theirs


class _UnreadableError(Exception):
    """The lower level cannot be read, and nothing says that the file is to blame."""


def beyond(made: Means, theirs: Means) -> NDArray[np.float32]:
    """By how many grey levels each cell of ``made`` lies outside of the range that ``theirs`` has there and one cell
    around, shape (rows, columns). 0 near what is not a number: nothing was scanned there."""
    if not made.size:
        return np.zeros(made.shape[:2], np.float32)
    padded = np.pad(theirs, ((1, 1), (1, 1), (0, 0)), mode="edge")
    found = np.maximum(made - _around(padded, np.maximum), _around(padded, np.minimum) - made)
    return np.asarray(np.maximum(np.nan_to_num(_largest(found), nan=0.0), 0), np.float32)


def _around(padded: Means, most: np.ufunc) -> Means:
    """The most of each cell and its eight neighbours; ``padded`` has a cell more at each side."""
    rows = most(most(padded[:-2], padded[1:-1]), padded[2:])
    return cast(Means, most(most(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]))


def _largest(pixels: NDArray[Scalar]) -> NDArray[Scalar]:
    """The largest of three channels; numpy's own reduction of so short an axis takes ten times as long."""
    return np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])


@contextmanager
def _lower(plan: Plan, *, threads: int, settings: Settings) -> Iterator[tuple[tuple[Level, ...], Lower] | None]:
    """The source's levels, and what reads them: its compressed tiles, which need no Java, or else Bio-Formats."""
    slide, image, coded = plan.slide, plan.image, plan.slide.coded
    if coded is not None and coded.reason is None and len(coded.levels) > 1:
        if coded.compression != JPEG or (image,) != slide.scans():
            yield None
            return
        opened = cast(TileReader, import_module(f"mimic.sources.{coded.source}").open_tiles(slide, image, coded))
        with closing(opened) as tiles:
            yield coded.levels, partial(_from_tiles, tiles, coded, slide.path)
        return
    readable = slide.source in ("bioformats", "czi", "openslide") and plan.rendering is None and image.index >= 0
    if not readable or slide.format in UNREADABLE or len(image.levels) < 2:
        yield None
        return
    module = import_module(f"mimic.sources.{slide.source}")
    with closing(module.Planes(slide, image, threads=threads, settings=settings)) as planes:
        yield image.levels, partial(_from_planes, planes)


def _from_planes(planes: Any, number: int, box: Box) -> Pixels:
    try:
        return cast(Pixels, planes.plane(box, 0, z=0, t=0, level=number))
    except BadInput as error:
        # level 0 is sound, and Bio-Formats fails on lower levels of its own accord too
        raise _UnreadableError(error.message) from error


def _from_tiles(tiles: TileReader, coded: Coded, path: Path, number: int, box: Box) -> Pixels:
    """Whole rows of a level from its compressed tiles; black where one is missing."""
    side = coded.tile_px
    first, last = box.y_px // side, -(-(box.y_px + box.height_px) // side)
    across = -(-box.width_px // side)
    band = np.zeros(((last - first) * side, across * side, 3), np.uint8)
    for row in range(first, last):
        for column in range(across):
            data = tiles.tile(number, column, row)
            if data is None:
                continue
            try:
                stream = jpegs.decodable(data, tables=coded.jpeg_tables, photometric=coded.photometric)
                pixels = simplejpeg.decode_jpeg(stream, "RGB")
            except ValueError as error:
                message = f"the file is damaged: tile {column},{row} of its level {number} does not decode ({error})"
                raise BadInput(message, path, COPY_AGAIN) from error
            top, left = (row - first) * side, column * side
            band[top : top + side, left : left + side] = pixels
    top = box.y_px - first * side
    return band[top : top + box.height_px, : box.width_px]


def _is_jpeg(plan: Plan) -> bool:
    """Whether level 0 of the output is JPEG at the source's size, and nothing but damage should differ."""
    source, made = plan.image.levels[0], plan.levels[0]
    same = (source.width_px, source.height_px) == (made.width_px, made.height_px)
    return same and made.codec != "jp2k" and not plan.allow_missing and plan.icc_profile == plan.slide.icc_profile


def pooled(pixels: NDArray[np.generic], side: int) -> Means:
    """Means of squares."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    part = pixels[: rows * side, : columns * side]
    if side == 1:
        return part.astype(np.float32)
    # slices and not reshaped axes, whose reduction takes numpy ten times as long; 16 bits hold 256 bytes
    exact = np.uint16 if part.dtype in (np.uint8, np.bool_) and side <= 16 else np.float32
    lines: NDArray[Any] = part[::side].astype(exact)
    for line in range(1, side):
        lines += np.asarray(part[line::side])
    squares = lines[:, ::side].astype(np.float32)
    for column in range(1, side):
        squares += lines[:, column::side]
    squares /= side * side
    return squares


def _segment(file: BinaryIO, sheet: Sheet, index: int) -> bytes:
    file.seek(int(sheet.offsets[index]))
    return file.read(int(sheet.counts[index]))


def _means(data: bytes, *, sheet: Sheet) -> Pixels:
    """Means of the JPEG blocks of a tile."""
    stream = jpegs.decodable(data, tables=sheet.tables, photometric=sheet.number(PHOTOMETRIC) or 0)
    units = sheet.tile_width_px // UNIT_PX
    return np.asarray(simplejpeg.decode_jpeg(stream, "RGB", min_height=units, min_width=units), np.uint8)
