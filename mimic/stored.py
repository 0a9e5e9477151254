"""Level 0 against the lower level that the source itself holds of the same place.

JPEG, JPEG-XR and JPEG 2000 carry no checksums: a changed byte can decode to plausible pixels, without a warning. But a
scanner wrote most slides twice, at two resolutions, and damage seldom hits both alike. So what was written as level 0
is averaged and compared with the source's own lower level.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

from mimic import jpegs, sheets
from mimic.errors import BadInput
from mimic.model import Box, Check, Coded, Level, Pixels, Plan
from mimic.pyramid import area_average
from mimic.settings import Settings
from mimic.sheets import Sheet
from mimic.sources import TileReader
from mimic.structure.reader import COPY_AGAIN, Input

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
AT_A_TIME = 32
"""Tiles of level 0 that a thread is given at once."""

Place = tuple[int, int]
"""Column and row of a tile."""
Black = NDArray[np.bool_] | None
"""Which cells are not to be compared, shape (rows, columns); None: all are."""
Lower = Callable[[int, Box, int], tuple[Pixels, Black]]
"""Means of squares of so many pixels a side of whole rows (a box as wide as the level) of a lower level of the source,
by the level's number, and which of them hold a black pixel."""


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
        with Input(path) as file, ThreadPoolExecutor(threads, thread_name_prefix="mimic-means") as pool:
            waiting: deque[tuple[Place, Future[Pixels]]] = deque()
            for place, spans in _spans(sheet):
                waiting.append((place, pool.submit(_means, sheet, file.many(spans))))
                if len(waiting) > 2 * threads:
                    first, means = waiting.popleft()
                    found.add(first, means.result())
            for first, means in waiting:
                found.add(first, means.result())
        return found.checks()


def _spans(sheet: Sheet) -> Iterator[tuple[Place, list[tuple[int, int]]]]:
    """Where tiles side by side are in the file, and the place of the first, row by row."""
    across, down = sheet.grid
    for row in range(down):
        for column in range(0, across, AT_A_TIME):
            run = slice(row * across + column, row * across + min(across, column + AT_A_TIME))
            yield (column, row), list(zip(sheet.offsets[run].tolist(), sheet.counts[run].tolist(), strict=True))


@contextmanager
def witness(plan: Plan, *, threads: int, settings: Settings) -> Iterator[Witness | None]:
    """What compares level 0 with the source's lower level as it is told of it; None where there is none to compare."""
    with _lower(plan, threads=threads, settings=settings) as found:
        chosen = level_of(found[0]) if found is not None and _is_jpeg(plan) else None
        if found is None or chosen is None:
            yield None
        else:
            levels, lower = found
            with closing(Witness(plan, levels[chosen[0]], lower, number=chosen[0], factor=chosen[1])) as made:
                yield made


@dataclass(frozen=True, slots=True)
class _Band:
    """Rows ``first_px`` to ``end_px`` of level 0, which are compared at a time."""

    first_px: int
    end_px: int


class Witness:
    """Compares level 0, told tile by tile, with the source's lower level, a band at a time, in a thread of its own.

    Only whole units count, and none that holds a black pixel in the lower level, where nothing was scanned. Bands
    overlap by a cell at each side.
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
        self._told: Counter[int] = Counter()
        self._whole = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mimic-witness")
        self._comparing: deque[Future[None]] = deque()

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

    def add(self, place: Place, means: Pixels) -> None:
        """Take the means of the 8 px squares of tiles side by side, the first at ``place``, shape (tile_px / 8, n times
        tile_px / 8, 3), each tile once.

        Raises BadInput that names the place where the levels differ.
        """
        units = self._plan.tile_px // UNIT_PX
        column, row = place
        if row not in self._rows:
            self._rows[row] = np.empty((units, self._grid[0] * units, 3), np.uint8)
        self._rows[row][:, column * units : column * units + means.shape[1]] = means
        self._told[row] += means.shape[1] // units
        while self._told[self._whole] == self._grid[0]:
            del self._told[self._whole]
            self._whole += 1
            self._compare_whole()

    def _compare_whole(self) -> None:
        """Have the bands compared whose rows are all there, and let go what no other band needs."""
        while self._bands and self._bands[0].end_px <= self._whole * self._plan.tile_px:
            band = self._bands.popleft()
            self._comparing.append(self._pool.submit(self._compare, band, self._made(band)))
            if len(self._comparing) > 1:
                self._comparing.popleft().result()
        needed = self._bands[0].first_px // self._plan.tile_px if self._bands else self._grid[1]
        for old in [each for each in self._rows if each < min(needed, self._whole)]:
            del self._rows[old]

    def checks(self) -> tuple[Check, ...]:
        """The check, after all tiles. Raises BadInput as ``add`` does."""
        while self._comparing:
            self._comparing.popleft().result()
        if self._unreadable is not None:
            return (Check("source's lower level", False, self._unreadable, "it can be read", must=False),)
        said = ", ".join(f"{self._worst[cell]:.1f} in {self._unit_px * cell} px" for cell in TOLERANCES)
        limits = ", ".join(f"{tolerance:g}" for tolerance in TOLERANCES.values())
        return (Check("source's lower level", True, said, f"colours of its level {self._number}, within {limits}"),)

    def close(self) -> None:
        """End the thread; may be called twice."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _compare(self, band: _Band, made: Pixels) -> None:
        if self._unreadable is not None:
            return
        try:
            theirs, black = self._theirs(band)
        except _UnreadableError as error:
            self._unreadable = str(error)
            return
        for cell, tolerance in TOLERANCES.items():
            found = beyond(area_average(made, cell, cell), area_average(theirs, cell, cell), _any(black, cell))
            largest = float(found.max(initial=0))
            self._worst[cell] = max(self._worst[cell], largest)
            if largest > tolerance:
                row, column, _ = np.unravel_index(int(found.argmax()), found.shape)
                side_px = self._unit_px * cell
                where = f"x={int(column) * side_px}, y={band.first_px + int(row) * side_px}"
                message = f"its colours near {where} are not those of its own lower level {self._number}"
                remedy = f"{COPY_AGAIN}, or convert it all the same with --allow-missing"
                raise BadInput(
                    f"the file is damaged: {message} ({largest:.0f} grey levels)", self._plan.slide.path, remedy
                )

    def _made(self, band: _Band) -> Pixels:
        """Mean colours of units of level 0."""
        tile_px, rows = self._plan.tile_px, (band.end_px - band.first_px) // self._unit_px
        parts = [self._rows[row] for row in range(band.first_px // tile_px, -(-band.end_px // tile_px))]
        side = self._unit_px // UNIT_PX
        return area_average(np.concatenate(parts)[: rows * side, : self._columns * side], side, side)

    def _theirs(self, band: _Band) -> tuple[Pixels, Black]:
        """Those of the lower level, and where it is black."""
        factor, rows = self._factor, (band.end_px - band.first_px) // self._unit_px
        side = self._unit_px // factor
        box = Box(0, band.first_px // factor, self._level.width_px, rows * side)
        means, black = self._lower(self._number, box, side)
        return means[:, : self._columns], None if black is None else black[:, : self._columns]


class _UnreadableError(Exception):
    """The lower level cannot be read, and nothing says that the file is to blame."""


def beyond(made: Pixels, theirs: Pixels, black: Black = None) -> Pixels:
    """By how many grey levels each colour of ``made`` lies outside of the range that ``theirs`` has there and one cell
    around, shape (rows, columns, 3). 0 where a cell of ``theirs`` there or around is ``black``."""
    if not made.size:
        return made
    most, least = _around(theirs, np.maximum), _around(theirs, np.minimum)
    found = np.maximum(np.maximum(made, most) - most, least - np.minimum(made, least))
    if black is not None:
        found[_around(black[..., None], np.logical_or)[..., 0]] = 0
    return cast(Pixels, found)


def _around(cells: NDArray[Any], most: np.ufunc) -> NDArray[Any]:
    """The most of each cell and its eight neighbours."""
    padded = np.pad(cells, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = most(most(padded[:-2], padded[1:-1]), padded[2:])
    return cast(NDArray[Any], most(most(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]))


def _black(pixels: Pixels, side: int) -> Black:
    """Which squares of so many pixels a side hold a black one."""
    if pixels.min(initial=255):
        return None
    # numpy's own reduction of so short an axis takes ten times as long
    largest = np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
    return _any(largest == 0, side)


def _any(black: Black, side: int) -> Black:
    """Squares of which some cell is black; None where there are none."""
    if black is None or not black.any():
        return None
    rows, columns = black.shape[0] // side, black.shape[1] // side
    squares = black[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return np.asarray(squares.any((1, 3)))


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


def _from_planes(planes: Any, number: int, box: Box, side: int) -> tuple[Pixels, Black]:
    try:
        own = cast(Pixels, planes.plane(box, 0, z=0, t=0, level=number))
    except BadInput as error:
        # level 0 is sound, and Bio-Formats fails on lower levels of its own accord too
        raise _UnreadableError(error.message) from error
    return area_average(own, side, side), _black(own, side)


def _from_tiles(tiles: TileReader, coded: Coded, path: Path, number: int, box: Box, side: int) -> tuple[Pixels, Black]:
    """Squares of whole rows of a level from its compressed tiles, as libjpeg scales them; black where one is missing.

    A black square counts, a black pixel does not show: the cells around a black area are not compared either way.
    """
    units = coded.tile_px // side
    first, last = box.y_px // coded.tile_px, -(-(box.y_px + box.height_px) // coded.tile_px)
    across = range(-(-box.width_px // coded.tile_px))
    band = np.zeros(((last - first) * units, len(across) * units, 3), np.uint8)
    completer = jpegs.Completer(tables=coded.jpeg_tables, photometric=coded.photometric)
    for row in range(first, last):
        for column, data in enumerate(tiles.tiles(number, row, across)):
            if data is None:
                continue
            try:
                pixels = simplejpeg.decode_jpeg(completer.whole(data), "RGB", min_height=units, min_width=units)
                if pixels.shape[:2] != (units, units):
                    raise ValueError(f"it has {pixels.shape[1] * side} x {pixels.shape[0] * side} px")
            except ValueError as error:
                message = f"the file is damaged: tile {column},{row} of its level {number} does not decode ({error})"
                raise BadInput(message, path, COPY_AGAIN) from error
            top, left = (row - first) * units, column * units
            band[top : top + units, left : left + units] = pixels
    top = box.y_px // side - first * units
    means = band[top : top + box.height_px // side, : box.width_px // side]
    return means, _black(means, 1)


def _is_jpeg(plan: Plan) -> bool:
    """Whether level 0 of the output is JPEG at the source's size, and nothing but damage should differ."""
    source, made = plan.image.levels[0], plan.levels[0]
    same = (source.width_px, source.height_px) == (made.width_px, made.height_px)
    return same and made.codec != "jp2k" and not plan.allow_missing and plan.icc_profile == plan.slide.icc_profile


def _means(sheet: Sheet, tiles: list[bytes]) -> Pixels:
    """Means of the JPEG blocks of tiles side by side."""
    completer = jpegs.Completer(tables=sheet.tables, photometric=sheet.number(PHOTOMETRIC) or 0)
    units = sheet.tile_width_px // UNIT_PX
    streams = (completer.whole(data) for data in tiles)
    decoded = [simplejpeg.decode_jpeg(stream, "RGB", min_height=units, min_width=units) for stream in streams]
    return np.concatenate(decoded, axis=1)
