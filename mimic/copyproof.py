"""The proof of copied tiles: the source's bytes, and the same pixels in three decoders."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import openslide
import PIL.Image

from mimic import jpegs, sheets, streams, verify
from mimic.errors import BadInput
from mimic.model import Box, Check, Pixels, Plan, Progress
from mimic.passthrough import Place, coded_of, misread, places, white_tile
from mimic.sources import PixelReader, TileReader
from mimic.structure.reader import COPY_AGAIN

SAMPLES, ASKED = 64, 8
"""Tiles compared with what Pillow decodes, and those of them with what the source's ordinary reader gives."""
EXACT_DB, COLOURS_DB, COLOURS_MEAN = 45.0, 30.0, 2.0
"""Two decoders of one tile agree to rounding; another library may smooth halved chroma in another way (35 dB at hard
edges), but a mistaken colour space gives 15 dB and moves a mean by tens."""

Watch = Callable[[Progress], None]
Scan = Callable[[], AbstractContextManager[PixelReader]]
"""Opens the source anew."""


def chosen(path: Path, plan: Plan, tiles: TileReader) -> list[Place]:
    """Where pixels are compared: all tiles of level 0 with ``--verify full``, else some; those that the source has."""
    wanted = places(plan, 0) if plan.verify == "full" else _largest(sheets.read(path).sheets[0])
    return [place for place in wanted if tiles.tile(0, *place) is not None]


def blame(structure: tuple[Check, ...], plan: Plan) -> None:
    """Raises BadInput for a copied tile that does not decode: it is the source's, bit by bit."""
    copied = ("IFD0 ", *(f"IFD{index + 1} " for index in range(1, plan.copied_levels)))
    for check in structure:
        if check.name == "tiles decode" and not check.passed and check.measured.startswith(copied):
            raise BadInput(f"one of its tiles is damaged: {check.measured}", plan.slide.path, COPY_AGAIN)


def identity(path: Path, plan: Plan, tiles: TileReader, *, watch: Watch) -> Check:
    """One check that copied tiles have the source's bytes, read again; those it has not are white.

    All of them with ``--verify full``, else every 17th: that the file holds every tile as it was read while copying,
    ``streams`` proves by CRC-32, and what this adds is that the source gives the same a second time, at this place.
    """
    wrong: list[str] = []
    blank, count, missing = white_tile(plan), 0, 0
    every = 1 if plan.verify == "full" else streams.DECODE_EVERY
    total_px = sum(level.width_px * level.height_px for level in plan.levels[: plan.copied_levels])
    try:
        with path.open("rb") as file:
            for level, sheet in enumerate(sheets.read(path).tiled()[: plan.copied_levels]):
                step = every if len(sheet.offsets) > streams.DECODED_WHOLE else 1
                for index, (column, row) in islice(enumerate(places(plan, level)), 0, None, step):
                    file.seek(int(sheet.offsets[index]))
                    found, wanted = file.read(int(sheet.counts[index])), tiles.tile(level, column, row)
                    missing, count = missing + (wanted is None), count + 1
                    if found != (blank if wanted is None else wanted):
                        wrong.append(f"{sheet.name} tile {column},{row}")
                    if column == 0:
                        watch(Progress("compare", min(total_px, count * step * plan.tile_px**2), total_px))
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", path) from error
    measured = f"{count - missing} of {count} identical" + (f", {missing} missing and white" if missing else "")
    return sheets.rule("copied tiles", wrong, measured=measured, expected="tiles read again have the file's bytes")


def _largest(sheet: sheets.Sheet) -> list[Place]:
    """The largest tile, in bytes, of each cell of a grid over level 0: where there is something to see."""
    columns, rows = sheet.grid
    across = max(1, min(columns, round(math.sqrt(SAMPLES * columns / rows))))
    down = max(1, min(rows, -(-SAMPLES // across)))
    best: dict[Place, tuple[int, Place]] = {}
    for index, count in enumerate(sheet.counts.tolist()):
        row, column = divmod(index, columns)
        cell = (column * across // columns, row * down // rows)
        if cell not in best or count > best[cell][0]:
            best[cell] = count, (column, row)
    return sorted((place for _, place in best.values()), key=lambda place: (place[1], place[0]))


def decoded(path: Path, plan: Plan, tiles: TileReader, there: Sequence[Place]) -> Check:
    """What OpenSlide reads at some places against what Pillow decodes from the source's tiles there."""
    expected = f"OpenSlide reads what Pillow decodes, within {EXACT_DB:g} dB"
    wrong, worst, waiting = [], 99.0, iter(there)
    try:
        with (
            closing(openslide.OpenSlide(path)) as slide,
            ThreadPoolExecutor(plan.threads, thread_name_prefix="mimic-again") as pool,
        ):
            agree = partial(_agree_db, slide, plan, tiles)
            while some := list(islice(waiting, 4 * plan.threads)):
                for (column, row), psnr in zip(some, pool.map(agree, some), strict=True):
                    worst = min(worst, psnr)
                    if psnr < EXACT_DB:
                        wrong.append(f"tile {column},{row}: {psnr:.1f} dB")
    except (openslide.OpenSlideError, OSError, ValueError) as error:
        return Check("copied pixels", False, str(error), expected)
    if not there:
        return Check("copied pixels", False, "no tile to compare", expected)
    return sheets.rule("copied pixels", wrong, measured=f"{len(there)} tiles, worst {worst:.1f} dB", expected=expected)


def _agree_db(slide: openslide.OpenSlide, plan: Plan, tiles: TileReader, place: Place) -> float:
    box = _box(plan, place)
    truth = _by_pillow(plan, tiles.tile(0, *place) or b"")[: box.height_px, : box.width_px]
    return verify.psnr_db(_region(slide, box), truth)


def as_read(path: Path, plan: Plan, scan: Scan, there: Sequence[Place]) -> Check:
    """What OpenSlide reads against what the source's ordinary reader, opened anew by ``scan``, gives: the same place,
    the same colours. At a few of the places that are compared."""
    if reason := misread(plan.slide, plan.image):
        return Check("colours and places", False, f"not compared: {reason}", "another reader agrees", must=False)
    expected = f"OpenSlide reads what {plan.slide.source} reads from the source (else use --passthrough never)"
    asked = there[:: max(1, -(-len(there) // ASKED))]
    wrong, worst = [], 99.0
    try:
        with scan() as reader, closing(openslide.OpenSlide(path)) as slide:
            for place in asked:
                box = _box(plan, place)
                seen, truth = _region(slide, box), reader.read(box)
                worst = min(worst, psnr := verify.psnr_db(seen, truth))
                moved = float(np.abs(seen.mean((0, 1)) - truth.mean((0, 1))).max())
                if psnr < COLOURS_DB or moved > COLOURS_MEAN:
                    wrong.append(f"tile {place[0]},{place[1]}: {psnr:.1f} dB, mean colour off by {moved:.1f}")
    except openslide.OpenSlideError as error:
        return Check("colours and places", False, str(error), expected)
    return sheets.rule(
        "colours and places", wrong, measured=f"{len(asked)} tiles, worst {worst:.1f} dB", expected=expected
    )


def _box(plan: Plan, place: Place) -> Box:
    size, tile_px = plan.levels[0], plan.tile_px
    x_px, y_px = place[0] * tile_px, place[1] * tile_px
    return Box(x_px, y_px, min(tile_px, size.width_px - x_px), min(tile_px, size.height_px - y_px))


def _region(slide: openslide.OpenSlide, box: Box) -> Pixels:
    region = slide.read_region((box.x_px, box.y_px), 0, (box.width_px, box.height_px))
    return np.ascontiguousarray(np.asarray(region)[..., :3])


def _by_pillow(plan: Plan, data: bytes) -> Pixels:
    coded = coded_of(plan)
    stream = data
    if coded.compression == jpegs.JPEG:
        stream = jpegs.decodable(data, tables=coded.jpeg_tables, photometric=coded.photometric)
    with PIL.Image.open(io.BytesIO(stream)) as picture:
        mixed = coded.compression == jpegs.J2K_YCC
        return np.asarray((PIL.Image.merge("YCbCr", picture.split()) if mixed else picture).convert("RGB"))
