"""mosaic: holes become white, dead blocks are refused, and everything else stays as it came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic import uniform
from mimic.errors import BadInput
from mimic.model import Box, Pixels
from mimic.mosaic import Mosaic
from mimic.structure import CziFacts, CziScene

RAW, JPEG_XR = 0, 4
PATH = Path("slide.czi")
Block = tuple[int, int, int, int]
"""x, y, width and height in the file's own coordinates."""


def facts(blocks: dict[int, list[Block]], *, compression: int = JPEG_XR, known: bool = True) -> CziFacts:
    """A CZI of the given scenes (-1: a file without scenes), its scenes' boxes and areas worked out naively."""
    rows = [(scene, *block, 3, compression) for scene, found in blocks.items() for block in found]
    scenes = []
    for scene, found in blocks.items():
        left, top = min(x for x, _, _, _ in found), min(y for _, y, _, _ in found)
        right, lower = max(x + w for x, _, w, _ in found), max(y + h for _, y, _, h in found)
        mask = np.zeros((lower - top, right - left), bool)
        for x, y, w, h in found:
            mask[y - top : y - top + h, x - left : x - left + w] = True
        area = int(mask.sum()) if known else None
        scenes.append(CziScene(None if scene < 0 else scene, left, top, right - left, lower - top, area))
    return CziFacts(None, None, 0, 0, 0, 0, tuple(scenes), np.array(rows, np.int64), 1, 1, 0)


def mosaic(found: CziFacts, scene: int = 0) -> Mosaic:
    return Mosaic(found, found.scenes[scene], PATH)


def filled(width_px: int, height_px: int, value: int = 100) -> Pixels:
    return np.full((height_px, width_px, 3), value, np.uint8)


def test_a_hole_becomes_white() -> None:
    found = facts({-1: [(0, 0, 100, 100), (200, 0, 100, 100)]})
    mended = mosaic(found).mend(Box(0, 0, 300, 100), filled(300, 100))
    assert (mended[:, 100:200] == 255).all()
    assert (mended[:, :100] == 100).all() and (mended[:, 200:] == 100).all()


def test_a_box_in_a_hole_is_all_white() -> None:
    found = facts({-1: [(0, 0, 100, 100), (200, 0, 100, 100)]})
    empty = mosaic(found).mend(Box(110, 10, 50, 50), filled(50, 50, 0))
    assert (empty == 255).all() and uniform.is_uniform(empty) and empty.shape == (50, 50, 3)


def test_nothing_is_copied_where_nothing_is_to_be_done() -> None:
    whole = facts({-1: [(0, 0, 100, 100), (100, 0, 100, 100)]})
    pixels = filled(150, 100)
    pixels.flags.writeable = False
    assert mosaic(whole).mend(Box(20, 0, 150, 100), pixels) is pixels


def test_read_only_pixels_are_copied() -> None:
    found = facts({-1: [(0, 0, 10, 10), (20, 0, 10, 10)]})
    pixels = filled(30, 10)
    pixels.flags.writeable = False
    mended = mosaic(found).mend(Box(0, 0, 30, 10), pixels)
    assert (mended[:, 10:20] == 255).all() and (pixels == 100).all()


def test_a_hole_is_found_where_the_covered_area_is_not_known() -> None:
    found = facts({-1: [(0, 0, 10, 10), (20, 0, 10, 10)]}, known=False)
    assert (mosaic(found).mend(Box(0, 0, 30, 10), filled(30, 10))[:, 10:20] == 255).all()


def test_each_scene_has_its_own_blocks_and_its_own_origin() -> None:
    """Scene 1 lies elsewhere on the glass: its pixels count from its own corner, and scene 0's blocks are not its."""
    blocks = {0: [(-500, -300, 100, 100)], 1: [(4000, 7000, 100, 50), (4000, 7050, 40, 50), (4100, 7000, 100, 100)]}
    found = facts(blocks)
    mended = mosaic(found, 1).mend(Box(0, 0, 200, 100), filled(200, 100))
    expected = filled(200, 100)
    expected[50:, 40:100] = 255
    assert np.array_equal(mended, expected)
    assert (mosaic(found, 0).mend(Box(0, 0, 100, 100), filled(100, 100)) == 100).all()


def test_overlapping_blocks_count_once() -> None:
    found = facts({-1: [(0, 0, 100, 100), (90, 0, 100, 100), (250, 0, 10, 100)]})
    mended = mosaic(found).mend(Box(0, 0, 260, 100), filled(260, 100))
    assert (mended[:, 190:250] == 255).all() and (mended[:, :190] == 100).all()


def black_block(box: Box, *, compression: int = JPEG_XR, speck: tuple[int, int] | None = None) -> Pixels:
    """What comes back when the second of two 256 px blocks is black."""
    found = facts({-1: [(0, 0, 256, 256), (256, 0, 256, 256)]}, compression=compression)
    pixels = filled(512, 256)
    pixels[:, 256:] = 0
    if speck is not None:
        pixels[speck[1], speck[0]] = 1
    part = pixels[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px]
    return mosaic(found).mend(box, np.ascontiguousarray(part))


def test_a_dead_block_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match="x=256, y=0 came back black") as caught:
        black_block(Box(0, 0, 512, 256))
    assert caught.value.path == PATH and caught.value.remedy


def test_a_quarter_of_a_dead_block_is_enough() -> None:
    with pytest.raises(BadInput, match="x=256"):
        black_block(Box(0, 0, 384, 128))


def test_a_dark_corner_is_not_damage() -> None:
    assert (black_block(Box(400, 100, 100, 100)) == 0).all()


def test_raw_blocks_may_be_black() -> None:
    assert (black_block(Box(0, 0, 512, 256), compression=RAW)[:, 256:] == 0).all()


@pytest.mark.parametrize("speck", [(256, 0), (511, 255), (300, 77)])
def test_one_pixel_that_is_not_black_is_enough(speck: tuple[int, int]) -> None:
    assert black_block(Box(0, 0, 512, 256), speck=speck).any()


def test_a_dead_block_larger_than_every_box_is_seen() -> None:
    found = facts({-1: [(0, 0, 8192, 8192)]})
    with pytest.raises(BadInput, match="x=0, y=0"):
        mosaic(found).mend(Box(2048, 2048, 2048, 2048), filled(2048, 2048, 0))


blocks_strategy = st.lists(
    st.tuples(st.integers(-40, 40), st.integers(-40, 40), st.integers(1, 30), st.integers(1, 30)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=300)
@given(
    scenes=st.lists(blocks_strategy, min_size=1, max_size=3),
    data=st.data(),
    known=st.booleans(),
    kind=st.sampled_from([np.uint8, np.uint16]),
    planar=st.booleans(),
)
def test_against_a_naive_mask(scenes: list[list[Block]], data: Any, known: bool, kind: Any, planar: bool) -> None:
    """Every pixel of every box: white where no block of the scene is, else as it came."""
    number = data.draw(st.integers(0, len(scenes) - 1))
    named = {-1: scenes[0]} if len(scenes) == 1 else dict(enumerate(scenes))
    found = facts(named, known=known)
    scene = found.scenes[number]
    x, y = data.draw(st.integers(0, scene.width_px - 1)), data.draw(st.integers(0, scene.height_px - 1))
    box = Box(x, y, data.draw(st.integers(1, scene.width_px - x)), data.draw(st.integers(1, scene.height_px - y)))
    expected = np.zeros((box.height_px, box.width_px), np.uint8)
    for left, top, wide, high in scenes[number]:
        for row in range(top, top + high):
            for column in range(left, left + wide):
                at_x, at_y = column - scene.x_px - box.x_px, row - scene.y_px - box.y_px
                if 0 <= at_x < box.width_px and 0 <= at_y < box.height_px:
                    expected[at_y, at_x] = 1
    pixels = np.random.default_rng(1).integers(1, 254, (box.height_px, box.width_px, 3), kind)
    given_out = np.moveaxis(np.moveaxis(pixels, 2, 0).copy(), 0, 2) if planar else pixels.copy()
    mended = mosaic(found, number).mend(box, given_out)
    assert np.array_equal(mended, np.where(expected[..., None], pixels, np.iinfo(kind).max)) and mended.dtype == kind
