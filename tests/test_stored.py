"""stored: neighbours by slices are those of plain numpy, and a witness that is told tile by tile sees all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from mimic import stored
from mimic.errors import BadInput
from mimic.model import Box, Image, Level, Options, Pixels, Scale, Slide
from mimic.plan import plan
from mimic.pyramid import area_average

TILE_PX = 256
SIZE = (1900, 5300)
"""Two bands of level 0, neither side a multiple of anything."""


def test_beyond_is_what_no_neighbour_has() -> None:
    random = np.random.default_rng(0)
    made, theirs = (random.integers(0, 256, (9, 7, 3)).astype(np.uint8) for _ in range(2))
    black = np.zeros((9, 7), np.bool_)
    black[4, 3] = black[0, 6] = True
    wanted = np.zeros((9, 7, 3))
    for row in range(9):
        for column in range(7):
            near = slice(max(0, row - 1), row + 2), slice(max(0, column - 1), column + 2)
            around, mine = theirs[near].reshape(-1, 3).astype(float), made[row, column].astype(float)
            off = np.maximum(mine - around.max(0), around.min(0) - mine)
            wanted[row, column] = 0 if black[near].any() else np.maximum(0, off)
    np.testing.assert_allclose(stored.beyond(made, theirs, black), wanted)


@contextmanager
def witnessed(level_0: Pixels) -> Iterator[tuple[stored.Witness, list[int]]]:
    """A witness of a slide whose lower level is made of ``level_0``, and the rows of it that were asked for."""
    high, wide = level_0.shape[:2]
    lower = area_average(level_0, 4, 4)
    levels = Level(wide, high), Level(wide // 4, high // 4)
    image = Image(0, "scan", "", levels, 3, True, "uint8", 8, scale=Scale(0.5, 0.5, "file"))
    path = Path("slide.svs")
    made = plan(Slide(path, (path,), "Test", "vips", (image,)), Options(), output=None, threads=1)[0]
    asked: list[int] = []

    def read(number: int, box: Box, side: int) -> tuple[Pixels, None]:
        assert number == 1 and box.width_px == wide // 4
        asked.append(box.y_px)
        return area_average(lower[box.y_px : box.y_px + box.height_px], side, side), None

    with closing(stored.Witness(made, levels[1], read, number=1, factor=4)) as witness:
        yield witness, asked


def tell(witness: stored.Witness, level_0: Pixels, *, at_once: int = 1) -> None:
    high, wide = level_0.shape[:2]
    padded = np.pad(level_0, ((0, -high % TILE_PX), (0, -wide % TILE_PX), (0, 0)), mode="edge")
    means = area_average(padded, stored.UNIT_PX, stored.UNIT_PX)
    units = TILE_PX // stored.UNIT_PX
    for row in range(padded.shape[0] // TILE_PX):
        for column in range(0, padded.shape[1] // TILE_PX, at_once):
            part = means[row * units : (row + 1) * units, column * units : (column + at_once) * units]
            witness.add((column, row), part)
        assert len(witness._rows) <= 2 * stored.BAND_PX * 4 // TILE_PX, "rows that were compared are let go"


def smooth() -> Pixels:
    rows, columns = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    return np.stack([rows // 32 % 256, columns // 16 % 256, (rows + columns) // 64 % 256], axis=2).astype(np.uint8)


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_a_sound_slide_in_bands(at_once: int) -> None:
    level_0 = smooth()
    with witnessed(level_0) as (witness, asked):
        tell(witness, level_0, at_once=at_once)
        (check,) = witness.checks()
    assert check.passed and check.must and len(asked) == 2


@pytest.mark.parametrize("place", [(0, 0), (1800, 0), (700, 4096), (0, 5200), (1700, 5100)])
def test_damage_anywhere_is_seen(place: tuple[int, int]) -> None:
    level_0 = smooth()
    x, y = place
    spoilt = level_0.copy()
    spoilt[y : y + 64, x : x + 64] = 255 - spoilt[y : y + 64, x : x + 64] // 2
    with witnessed(level_0) as (witness, _), pytest.raises(BadInput, match="not those of its own lower level 1"):
        tell(witness, spoilt)
        witness.checks()
