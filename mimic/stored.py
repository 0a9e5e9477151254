"""Level 0 against the lower level that the source itself holds of the same place.

JPEG, JPEG-XR and JPEG 2000 carry no checksums: a changed byte can decode to plausible pixels, without a warning. But a
scanner wrote most slides twice, at two resolutions, and damage seldom hits both alike. So what was written as level 0
is averaged and compared with the source's own lower level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
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
    with _lower(plan, threads=threads, settings=settings) as found:
        chosen = level_of(found[0]) if found is not None and _is_jpeg(plan) else None
        if found is None or chosen is None:
            return ()
        return _check(path, plan, *found, chosen)


def _check(
    path: Path, plan: Plan, levels: tuple[Level, ...], lower: Lower, chosen: tuple[int, int]
) -> tuple[Check, ...]:
    number, factor = chosen
    unit_px = max(UNIT_PX, factor)
    worst = dict.fromkeys(TOLERANCES, 0.0)
    try:
        for top_px, made, theirs in units(path, plan, levels[number], lower, number=number, factor=factor):
            for cell, tolerance in TOLERANCES.items():
                found = beyond(_pooled(made, cell), _pooled(theirs, cell))
                largest = float(found.max(initial=0))
                worst[cell] = max(worst[cell], largest)
                if largest > tolerance:
                    row, column = np.unravel_index(int(found.argmax()), found.shape)
                    side_px = unit_px * cell
                    where = f"x={int(column) * side_px}, y={top_px + int(row) * side_px}"
                    message = f"its colours near {where} are not those of its own lower level {number}"
                    remedy = f"{COPY_AGAIN}, or convert it all the same with --allow-missing"
                    raise BadInput(
                        f"the file is damaged: {message} ({largest:.0f} grey levels)", plan.slide.path, remedy
                    )
    except _UnreadableError as error:
        return (Check("source's lower level", False, str(error), "it can be read", must=False),)
    said = ", ".join(f"{worst[cell]:.1f} in {unit_px * cell} px" for cell in TOLERANCES)
    limits = ", ".join(f"{tolerance:g}" for tolerance in TOLERANCES.values())
    return (Check("source's lower level", True, said, f"colours of its level {number}, within {limits}"),)


class _UnreadableError(Exception):
    """The lower level cannot be read, and nothing says that the file is to blame."""


def beyond(made: Means, theirs: Means) -> NDArray[np.float32]:
    """By how many grey levels each cell of ``made`` lies outside of the range that ``theirs`` has there and one cell
    around, shape (rows, columns). 0 near what is not a number: nothing was scanned there."""
    if not made.size:
        return np.zeros(made.shape[:2], np.float32)
    padded = np.pad(theirs, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows, columns = theirs.shape[:2]
    around = [padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    low, high = np.minimum.reduce(around), np.maximum.reduce(around)
    found = np.maximum(made - high, low - made).max(axis=2)
    return np.asarray(np.maximum(np.nan_to_num(found, nan=0.0), 0), np.float32)


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
    readable = slide.source == "bioformats" and plan.rendering is None and image.index >= 0
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


def units(
    path: Path, plan: Plan, level: Level, lower: Lower, *, number: int, factor: int
) -> Iterator[tuple[int, Means, Means]]:
    """The top of each band in level 0, and the mean colours of its units there and in the lower level.

    Only whole units count, and none that holds a black pixel in the lower level, where nothing was scanned: it is not a
    number. Bands overlap by a cell at each side.
    """
    side = max(UNIT_PX, factor)
    sheet = sheets.read(path).tiled()[0]
    # bands begin both on a tile of level 0 and on the largest cell
    step = int(np.lcm(side * max(TOLERANCES), plan.tile_px))
    band_px = max(1, BAND_PX * factor // step) * step
    # the last blocks of an image that fills them in part hold padding, whose colours bleed into subsampled chroma
    width_px, height_px = (side_px // MCU_PX * MCU_PX for side_px in (sheet.width_px, sheet.height_px))
    columns = min(width_px // side, level.width_px * factor // side)
    for top_px in range(0, height_px, band_px):
        end_px = min(top_px + band_px + step, height_px, level.height_px * factor)
        first_px = max(0, top_px - step)
        rows = (end_px - first_px) // side
        if rows <= 0 or not columns:
            continue
        box = Box(0, first_px // factor, level.width_px, rows * side // factor)
        own = lower(number, box)[:, : columns * side // factor]
        theirs = _pooled(own, side // factor)
        theirs[_pooled(own.max(axis=2, keepdims=True) == 0, side // factor)[..., 0] > 0] = np.nan
        made = _band(path, sheet, plan, first_px, rows * side)[:, : columns * side // UNIT_PX]
        yield first_px, _pooled(made, side // UNIT_PX), theirs


def _pooled(pixels: NDArray[np.generic], side: int) -> Means:
    """Means of squares."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    squares = pixels[: rows * side, : columns * side].reshape(rows, side, columns, side, pixels.shape[2])
    return np.asarray(squares.mean(axis=(1, 3), dtype=np.float32))


def _band(path: Path, sheet: Sheet, plan: Plan, top_px: int, rows_px: int) -> Pixels:
    """Means of the JPEG blocks of some rows of level 0, shape (rows_px / 8, padded width / 8, 3)."""
    across, tile_px = sheet.grid[0], plan.tile_px
    units = tile_px // UNIT_PX
    first, last = top_px // tile_px, -(-(top_px + rows_px) // tile_px)
    band = np.empty(((last - first) * units, across * units, 3), np.uint8)
    with path.open("rb") as file:
        for row in range(first, last):
            for column in range(across):
                index = row * across + column
                file.seek(int(sheet.offsets[index]))
                data = file.read(int(sheet.counts[index]))
                top, left = (row - first) * units, column * units
                band[top : top + units, left : left + units] = _means(data, sheet, units)
    return band[: rows_px // UNIT_PX]


def _means(data: bytes, sheet: Sheet, units: int) -> Pixels:
    stream = jpegs.decodable(data, tables=sheet.tables, photometric=sheet.number(PHOTOMETRIC) or 0)
    return np.asarray(simplejpeg.decode_jpeg(stream, "RGB", min_height=units, min_width=units), np.uint8)
