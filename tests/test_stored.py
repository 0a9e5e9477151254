"""stored: sums and neighbours by slices are those of plain numpy, and a witness that is told tile by tile sees all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mimic import stored
from mimic.errors import BadInput
from mimic.model import Box, Image, Level, Options, Pixels, Scale, Slide
from mimic.plan import plan

TILE_PX = 256
SIZE = (1900, 5300)
"""Two bands of level 0, neither side a multiple of anything."""


@pytest.mark.parametrize("side", [1, 2, 3, 16, 32])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.bool_])
def test_means_of_squares(side: int, kind: type) -> None:
    values = np.random.default_rng(side).integers(0, 256, (70, 101, 3))
    pixels = (values > 100 if kind is np.bool_ else np.where(values > 250, 255, values)).astype(kind)
    rows, columns = 70 // side, 101 // side
    squares = pixels[: rows * side, : columns * side].astype(np.float64).reshape(rows, side, columns, side, 3)
    np.testing.assert_allclose(stored.pooled(pixels, side), squares.mean((1, 3)), rtol=1e-5, atol=1e-5)
    white = np.full((64, 64, 3), 255, np.uint8)
    assert (stored.pooled(white, 16) == 255).all()


def test_beyond_is_what_no_neighbour_has() -> None:
    random = np.random.default_rng(0)
    made, theirs = (random.integers(0, 256, (9, 7, 3)).astype(np.float32) for _ in range(2))
    theirs[4, 3] = np.nan
    wanted = np.zeros((9, 7))
    for row in range(9):
        for column in range(7):
            around = theirs[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].reshape(-1, 3)
            off = np.maximum(made[row, column] - around.max(0), around.min(0) - made[row, column])
            wanted[row, column] = 0 if np.isnan(off).any() else max(0, off.max())
    np.testing.assert_allclose(stored.beyond(made, theirs), wanted)


def witnessed(level_0: Pixels) -> tuple[stored.Witness, list[int]]:
    """A witness of a slide whose lower level is made of ``level_0``, and the rows of it that were asked for."""
    high, wide = level_0.shape[:2]
    lower = stored.pooled(level_0, 4).round().astype(np.uint8)
    levels = Level(wide, high), Level(wide // 4, high // 4)
    image = Image(0, "scan", "", levels, 3, True, "uint8", 8, scale=Scale(0.5, 0.5, "file"))
    path = Path("slide.svs")
    made = plan(Slide(path, (path,), "Test", "vips", (image,)), Options(), output=None, threads=1)[0]
    asked: list[int] = []

    def read(number: int, box: Box) -> Pixels:
        assert number == 1 and box.width_px == wide // 4
        asked.append(box.y_px)
        return lower[box.y_px : box.y_px + box.height_px]

    return stored.Witness(made, levels[1], read, number=1, factor=4), asked


def tell(witness: stored.Witness, level_0: Pixels) -> None:
    high, wide = level_0.shape[:2]
    padded = np.pad(level_0, ((0, -high % TILE_PX), (0, -wide % TILE_PX), (0, 0)), mode="edge")
    means: NDArray[np.uint8] = stored.pooled(padded, stored.UNIT_PX).round().astype(np.uint8)
    units = TILE_PX // stored.UNIT_PX
    for row in range(padded.shape[0] // TILE_PX):
        for column in range(padded.shape[1] // TILE_PX):
            part = means[row * units : (row + 1) * units, column * units : (column + 1) * units]
            witness.add((column, row), part)
        assert len(witness._rows) <= 2 * stored.BAND_PX * 4 // TILE_PX, "rows that were compared are let go"


def smooth() -> Pixels:
    rows, columns = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    return np.stack([rows // 32 % 256, columns // 16 % 256, (rows + columns) // 64 % 256], axis=2).astype(np.uint8)


def test_a_sound_slide_in_bands() -> None:
    level_0 = smooth()
    witness, asked = witnessed(level_0)
    tell(witness, level_0)
    (check,) = witness.checks()
    assert check.passed and check.must and len(asked) == 2


@pytest.mark.parametrize("place", [(0, 0), (1800, 0), (700, 4096), (0, 5200), (1700, 5100)])
def test_damage_anywhere_is_seen(place: tuple[int, int]) -> None:
    level_0 = smooth()
    witness, _ = witnessed(level_0)
    x, y = place
    spoilt = level_0.copy()
    spoilt[y : y + 64, x : x + 64] = 255 - spoilt[y : y + 64, x : x + 64] // 2
    with pytest.raises(BadInput, match="not those of its own lower level 1"):
        tell(witness, spoilt)
