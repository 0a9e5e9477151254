"""resample: pixels that are not square become square without seams, wherever boxes begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import openslide
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import mimic
from mimic.errors import Unsupported
from mimic.model import Box, Pixels
from mimic.resample import SquareReader


class Whole:
    """A reader of an array, which counts the pixels asked for."""

    sequential = False

    def __init__(self, pixels: Pixels, box_px: int = 64) -> None:
        self.pixels, self.box_px, self.read_px, self.largest_px = pixels, box_px, 0, 0

    def boxes(self) -> Sequence[Box]:
        height, width = self.pixels.shape[:2]
        return [
            Box(x, y, min(self.box_px, width - x), min(self.box_px, height - y))
            for y in range(0, height, self.box_px)
            for x in range(0, width, self.box_px)
        ]

    def read(self, box: Box) -> Pixels:
        assert box.x_px >= 0 <= box.y_px
        assert box.x_px + box.width_px <= self.pixels.shape[1] and box.y_px + box.height_px <= self.pixels.shape[0]
        self.read_px += box.width_px * box.height_px
        self.largest_px = max(self.largest_px, box.width_px * box.height_px)
        return self.pixels[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px]

    def close(self) -> None:
        pass


def gradient(width_px: int, height_px: int) -> Pixels:
    rows, columns = np.mgrid[:height_px, :width_px]
    return np.stack([columns * 255 // width_px, rows * 255 // height_px, (rows + columns) % 256], 2).astype(np.uint8)


def checker(width_px: int, height_px: int) -> Pixels:
    rows, columns = np.mgrid[:height_px, :width_px]
    return np.repeat(((rows + columns) % 2 * 255).astype(np.uint8)[..., None], 3, 2)


def stretched(pixels: Pixels, size_px: tuple[int, int], *, box_px: int = 64) -> Pixels:
    height, width = pixels.shape[:2]
    reader = SquareReader(Whole(pixels, box_px), source_px=(width, height), size_px=size_px)
    out = np.zeros((size_px[1], size_px[0], 3), np.uint8)
    seen = np.zeros(out.shape[:2], int)
    for box in reader.boxes():
        place = slice(box.y_px, box.y_px + box.height_px), slice(box.x_px, box.x_px + box.width_px)
        out[place] = reader.read(box)
        seen[place] += 1
    assert (seen == 1).all()
    return out


@pytest.mark.parametrize("picture", [gradient, checker])
@pytest.mark.parametrize("size_px", [(200, 213), (331, 150), (200, 300), (203, 150), (200, 150)])
def test_boxes_join_to_what_pillow_makes_of_the_whole(picture: object, size_px: tuple[int, int]) -> None:
    pixels = picture(200, 150)  # type: ignore[operator]
    wanted = np.asarray(PIL.Image.fromarray(pixels).resize(size_px, PIL.Image.Resampling.BILINEAR)).astype(int)
    for box_px in (1000, 64, 17):
        got = stretched(pixels, size_px, box_px=box_px)
        assert np.abs(got.astype(int) - wanted).max() <= 1, box_px
    assert np.array_equal(stretched(pixels, size_px, box_px=17), stretched(pixels, size_px, box_px=1000))


@given(st.integers(16, 90), st.integers(16, 90), st.floats(1.0, 3.0), st.booleans(), st.integers(5, 100), st.data())
@hypothesis_settings(max_examples=60)
def test_any_box_is_the_same_part_of_the_whole(
    width: int, height: int, factor: float, upright: bool, box_px: int, data: st.DataObject
) -> None:
    pixels = np.random.default_rng(width * 97 + height).integers(0, 256, (height, width, 3), np.uint8)
    size_px = (width, round(height * factor)) if upright else (round(width * factor), height)
    whole = stretched(pixels, size_px, box_px=box_px)
    x, y = data.draw(st.integers(0, size_px[0] - 1)), data.draw(st.integers(0, size_px[1] - 1))
    box = Box(x, y, data.draw(st.integers(1, size_px[0] - x)), data.draw(st.integers(1, size_px[1] - y)))
    reader = SquareReader(Whole(pixels), source_px=(width, height), size_px=size_px)
    assert np.array_equal(reader.read(box), whole[y : y + box.height_px, x : x + box.width_px])


def test_memory_and_reading_stay_near_the_source_boxes() -> None:
    source = Whole(gradient(1000, 800), box_px=256)
    reader = SquareReader(source, source_px=(1000, 800), size_px=(1000, 1213))
    for box in reader.boxes():
        reader.read(box)
    assert source.largest_px <= 256 * 259 and source.read_px <= 1000 * 800 * 1.03


def test_nothing_shrinks() -> None:
    with pytest.raises(ValueError, match="stretched"):
        SquareReader(Whole(gradient(100, 80)), source_px=(100, 80), size_px=(99, 80))


def tiff(path: Path, pixels: Pixels, x_um: float, y_um: float) -> Path:
    import tifffile

    tifffile.imwrite(
        path, pixels, photometric="rgb", resolution=(10_000 / x_um, 10_000 / y_um), resolutionunit="CENTIMETER"
    )
    return path


def test_square_slide_from_the_command_to_openslide(tmp_path: Path) -> None:
    pixels = gradient(900, 600)
    source = tiff(tmp_path / "a.tif", pixels, 0.5, 0.55)
    with pytest.raises(Unsupported, match=r"0\.5 x 0\.55 um.*--square"):
        mimic.convert(source, tmp_path / "a.svs")
    done = mimic.convert(source, tmp_path / "a.svs", square=True, quality=95, verify="full")
    plan = done.results[0].plan
    assert (plan.levels[0].width_px, plan.levels[0].height_px) == (900, 660)
    assert any("900 x 600" in reason and "900 x 660" in reason for reason in plan.reasons)
    with closing(openslide.OpenSlide(tmp_path / "a.svs")) as slide:
        assert slide.dimensions == (900, 660) and float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        seen = np.asarray(slide.read_region((0, 0), 0, (900, 660)))[..., :3].astype(int)
    wanted = np.asarray(PIL.Image.fromarray(pixels).resize((900, 660), PIL.Image.Resampling.BILINEAR))
    assert np.abs(seen - wanted)[..., :2].mean() < 3


def test_square_changes_nothing_that_is_square(tmp_path: Path) -> None:
    source = tiff(tmp_path / "a.tif", gradient(300, 200), 0.5, 0.502)
    done = mimic.convert(source, tmp_path / "a.svs", square=True)
    assert done.results[0].plan.levels[0].height_px == 200
    given_um = mimic.convert(tiff(tmp_path / "b.tif", gradient(300, 200), 0.5, 0.6), mpp_um=0.7, square=True)
    assert given_um.results[0].plan.levels[0].height_px == 200
