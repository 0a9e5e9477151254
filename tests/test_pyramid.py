"""The pyramid against a naive one, for any division of the image into boxes, in any order."""

from __future__ import annotations

import math
import time
import tracemalloc

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic import pyramid, uniform
from mimic.errors import InternalError
from mimic.geometry import fit
from mimic.model import Box, Pixels
from mimic.pyramid import Pyramid, TilePixels, area_average, thumbnail


def picture(width_px: int, height_px: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)


def naive_level(pixels: Pixels, factor: int) -> Pixels:
    """Mean of each block, one at a time, in Python's own arithmetic."""
    high, wide = pixels.shape[0] // factor, pixels.shape[1] // factor
    out = np.zeros((high, wide, 3), np.uint8)
    for y, x, c in np.ndindex(high, wide, 3):
        block = pixels[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor, c]
        out[y, x, c] = math.floor(sum(map(int, block.flat)) / factor**2 + 0.5)
    return out


def sizes_of(width_px: int, height_px: int, levels: int, factor: int) -> list[tuple[int, int]]:
    sizes = [(width_px // factor**k, height_px // factor**k) for k in range(levels)]
    return [size for size in sizes if min(size) > 0]


def cut(box: Box, data: st.DataObject, depth: int) -> list[Box]:
    """A random division of a box by straight cuts."""
    if depth == 0 or data.draw(st.booleans()):
        return [box]
    if data.draw(st.booleans()) and box.width_px > 1:
        left = data.draw(st.integers(1, box.width_px - 1))
        parts = [
            Box(box.x_px, box.y_px, left, box.height_px),
            Box(box.x_px + left, box.y_px, box.width_px - left, box.height_px),
        ]
    elif box.height_px > 1:
        top = data.draw(st.integers(1, box.height_px - 1))
        parts = [
            Box(box.x_px, box.y_px, box.width_px, top),
            Box(box.x_px, box.y_px + top, box.width_px, box.height_px - top),
        ]
    else:
        return [box]
    return [piece for part in parts for piece in cut(part, data, depth - 1)]


def crop(pixels: Pixels, box: Box) -> Pixels:
    return pixels[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px]


def grid(width_px: int, height_px: int, side_px: int) -> list[Box]:
    return [
        Box(x, y, min(side_px, width_px - x), min(side_px, height_px - y))
        for y in range(0, height_px, side_px)
        for x in range(0, width_px, side_px)
    ]


def build(pixels: Pixels, boxes: list[Box], made: Pyramid) -> list[TilePixels]:
    return [tile for box in boxes for tile in made.add(box, crop(pixels, box))]


@settings(max_examples=60)
@given(data=st.data())
def test_any_boxes_give_the_naive_pyramid(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    factor = data.draw(st.sampled_from([2, 4]))
    tile = data.draw(st.sampled_from([4, 8, 16]))
    sizes = sizes_of(width, height, data.draw(st.integers(1, 4)), factor)
    source = picture(width, height)
    boxes = data.draw(st.permutations(cut(Box(0, 0, width, height), data, 4)))
    made = Pyramid(sizes, tile_px=tile, downsample=factor)
    tiles = build(source, boxes, made)
    made.finish()

    where = [(t.level, t.column, t.row) for t in tiles]
    assert len(set(where)) == len(where) == sum(-(-w // tile) * -(-h // tile) for w, h in sizes)
    want = source
    for level, (wide, high) in enumerate(sizes):
        for t in (t for t in tiles if t.level == level):
            y, x = np.ogrid[t.row * tile : (t.row + 1) * tile, t.column * tile : (t.column + 1) * tile]
            assert t.pixels.shape == (tile, tile, 3)
            np.testing.assert_array_equal(t.pixels, want[np.minimum(y, high - 1), np.minimum(x, wide - 1)])
        if level + 1 < len(sizes):
            want = naive_level(want, factor)
    np.testing.assert_array_equal(made.smallest(), want)
    assert not made._partial


@settings(max_examples=30)
@given(data=st.data())
def test_boxes_of_one_colour_give_the_naive_pyramid(data: st.DataObject) -> None:
    """Handed out as one pixel over and over, of the same colour or another, beside boxes that are written out."""
    width, height = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    factor, tile = data.draw(st.sampled_from([2, 4])), data.draw(st.sampled_from([4, 8, 16]))
    sizes = sizes_of(width, height, data.draw(st.integers(1, 4)), factor)
    boxes = data.draw(st.permutations(cut(Box(0, 0, width, height), data, 4)))
    source, given_out = picture(width, height), []
    for box in boxes:
        colour = data.draw(st.sampled_from([None, (255, 255, 255), (255, 255, 255), (9, 8, 7)]))
        if colour is not None:
            crop(source, box)[:] = colour
        part = crop(source, box)
        given_out.append(part if colour is None else np.broadcast_to(np.uint8(colour), part.shape))
    made, truth = (Pyramid(sizes, tile_px=tile, downsample=factor) for _ in range(2))
    found = [tile for box, part in zip(boxes, given_out, strict=True) for tile in made.add(box, part)]
    wanted = [tile for box in boxes for tile in truth.add(box, crop(source, box).copy())]
    for one, other in zip(found, wanted, strict=True):
        assert (one.level, one.column, one.row) == (other.level, other.column, other.row)
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.valid, other.valid)
    np.testing.assert_array_equal(made.smallest(), truth.smallest())


@settings(max_examples=30)
@given(data=st.data())
def test_averages_may_rise_in_any_order(data: st.DataObject) -> None:
    """As they come from threads: the same tiles as from ``add``, pixel by pixel."""
    source, sizes, boxes = picture(150, 130), sizes_of(150, 130, 3, 2), grid(150, 130, 48)
    made, truth = (Pyramid(sizes, tile_px=32, downsample=2) for _ in range(2))
    wanted = {(t.level, t.column, t.row): t.pixels for t in build(source, boxes, truth)}
    waiting = [tile for box in boxes for tile in made.level_0(box, crop(source, box))]
    found: dict[tuple[int, int, int], Pixels] = {}
    while waiting:
        tile = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        place = tile.level, tile.column, tile.row
        found[place] = tile.pixels
        above = made.rise(place, made.average(tile))
        waiting += [above] if above is not None else []
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[place], wanted[place]) for place in found)
    np.testing.assert_array_equal(made.smallest(), truth.smallest())


def test_the_order_of_tiles_follows_from_the_order_of_boxes() -> None:
    source, boxes = picture(150, 130), grid(150, 130, 48)

    def order() -> list[tuple[int, int, int]]:
        tiles = build(source, boxes, Pyramid(sizes_of(150, 130, 3, 2), tile_px=32, downsample=2))
        return [(t.level, t.column, t.row) for t in tiles]

    assert order() == order()


def test_a_tile_inside_a_box_is_not_copied() -> None:
    source = picture(128, 128)
    tiles = list(Pyramid([(128, 128)], tile_px=64, downsample=4).add(Box(0, 0, 128, 128), source))
    assert len(tiles) == 4
    assert all(np.shares_memory(tile.pixels, source) for tile in tiles)


@pytest.mark.parametrize("missing", [0, 7, 15])
def test_a_missing_box_is_named(missing: int) -> None:
    source, boxes = picture(256, 256), grid(256, 256, 64)
    made = Pyramid([(256, 256), (64, 64)], tile_px=64, downsample=4)
    build(source, [box for index, box in enumerate(boxes) if index != missing], made)
    row, column = divmod(missing, 4)
    with pytest.raises(InternalError, match=rf"level 0 lacks 1 of 16 tiles.* column {column}, row {row} with 0 of"):
        made.finish()
    with pytest.raises(InternalError, match="lacks"):
        made.smallest()


def test_a_part_of_a_tile_that_is_missing_is_counted() -> None:
    made = Pyramid([(100, 100)], tile_px=64, downsample=4)
    assert [t.column for t in made.add(Box(1, 0, 99, 100), picture(99, 100))] == [1, 1]
    with pytest.raises(InternalError, match=r"2 of 4 tiles.*column 0, row 0 with 4032 of its 4096 pixels"):
        made.finish()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Box(0, 0, 64, 64), Box(0, 0, 64, 64)),
        (Box(0, 0, 64, 64), Box(60, 0, 10, 10)),
        (Box(0, 0, 10, 10), Box(0, 0, 64, 64)),
        (Box(0, 0, 10, 10), Box(9, 9, 10, 10)),
    ],
)
def test_overlapping_boxes_are_refused(first: Box, second: Box) -> None:
    source, made = picture(128, 64), Pyramid([(128, 64)], tile_px=64, downsample=4)
    build(source, [first], made)
    with pytest.raises(InternalError, match="given twice"):
        build(source, [second], made)


@pytest.mark.parametrize("box", [Box(-1, 0, 8, 8), Box(0, 0, 65, 8), Box(60, 60, 5, 5), Box(0, 0, 0, 4)])
def test_a_box_outside_the_image_is_refused(box: Box) -> None:
    with pytest.raises(InternalError, match="not inside"):
        list(Pyramid([(64, 64)], tile_px=64, downsample=4).add(box, picture(8, 8)))


def test_wrong_pixels_are_refused() -> None:
    made = Pyramid([(64, 64)], tile_px=64, downsample=4)
    with pytest.raises(InternalError, match="shape"):
        list(made.add(Box(0, 0, 8, 8), picture(9, 8)))
    with pytest.raises(InternalError, match="uint16"):
        list(made.add(Box(0, 0, 8, 8), np.zeros((8, 8, 3), np.uint16)))


@pytest.mark.parametrize(
    ("sizes", "tile", "factor"),
    [
        ([], 64, 4),
        ([(0, 4)], 64, 4),
        ([(100, 100), (26, 25)], 64, 4),
        ([(100, 100)], 65, 4),
        ([(100, 100)], 64, 3),
    ],
)
def test_impossible_levels_are_refused(sizes: list[tuple[int, int]], tile: int, factor: int) -> None:
    with pytest.raises(InternalError):
        Pyramid(sizes, tile_px=tile, downsample=factor)


@pytest.mark.parametrize(("x", "y"), [(2, 2), (4, 4), (1, 8), (16, 1), (16, 16), (16, 32), (32, 32)])
@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_average_of_one_value_is_that_value(x: int, y: int, value: int) -> None:
    """Sums of 255 are where a type that is too small would show."""
    out = area_average(np.full((130, 200, 3), value, np.uint8), x, y)
    assert out.shape == (130 // y, 200 // x, 3)
    assert (out == value).all()


@settings(max_examples=150)
@given(
    x=st.sampled_from([1, 2, 4, 8, 16, 32]),
    y=st.sampled_from([1, 2, 4, 8, 16, 32]),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    at=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    spread=st.sampled_from([1, 2, 256]),
    seed=st.integers(0, 2**32),
)
def test_average_is_the_plain_mean(
    x: int, y: int, shape: tuple[int, int], at: tuple[int, int], spread: int, seed: int
) -> None:
    """Of a view inside a larger picture, as tiles are; few values make many halves."""
    rng = np.random.default_rng(seed)
    whole = (rng.integers(0, spread, (80, 80, 3)) + rng.integers(0, 257 - spread)).astype(np.uint8)
    part = whole[at[0] : at[0] + shape[0], at[1] : at[1] + shape[1]]
    high, wide = shape[0] // y, shape[1] // x
    sums = part[: high * y, : wide * x].astype(np.int64).reshape(high, y, wide, x, 3).sum((1, 3))
    np.testing.assert_array_equal(area_average(part, x, y), (2 * sums + x * y) // (2 * x * y))


def test_one_colour_stays_without_memory_of_its_own() -> None:
    blank = np.broadcast_to(np.uint8([250, 251, 252]), (64, 64, 3))
    block = area_average(blank, 4, 4)
    assert uniform.is_uniform(block) and block.shape == (16, 16, 3) and (block == blank[0, 0]).all()
    (tile,) = Pyramid([(60, 50)], tile_px=64, downsample=4).add(Box(0, 0, 60, 50), blank[:50, :60])
    thin = tile.condensed()
    assert uniform.is_uniform(thin.pixels) and uniform.is_uniform(thin.valid)
    assert thin.pixels.shape == (64, 64, 3) and thin.valid.shape == (50, 60, 3)


def test_half_is_rounded_up_and_below_half_down() -> None:
    block = np.zeros((4, 8, 3), np.uint8)
    block[:2, :4] = 1
    block[0, 4:] = 1
    block[1, 4:7] = 1
    np.testing.assert_array_equal(area_average(block, 4, 4)[0, :, 0], [1, 0])


def test_a_long_single_level_is_kept_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "SMALLEST_SIDE_PX", 64)
    source = picture(1000, 40)
    made = Pyramid([(1000, 40)], tile_px=32, downsample=4)
    build(source, grid(1000, 40, 100), made)
    kept = made.smallest()
    assert kept.shape == (40, 62, 3)
    np.testing.assert_array_equal(kept, area_average(source, 16, 1))


@settings(max_examples=60)
@given(data=st.data())
def test_what_is_kept_as_wide_as_the_thumbnail_gives_the_same_thumbnail(data: st.DataObject) -> None:
    """Boxes in any order, slides of any shape, a level so large that it is reduced before."""
    width, height = data.draw(st.integers(40, 400)), data.draw(st.integers(40, 400))
    factor, tile = data.draw(st.sampled_from([2, 4])), data.draw(st.sampled_from([16, 32]))
    sizes = sizes_of(width, height, data.draw(st.integers(1, 2)), factor)
    size_px = fit(width, height, (data.draw(st.integers(10, 90)), data.draw(st.integers(10, 90))))
    boxes = data.draw(st.permutations(cut(Box(0, 0, width, height), data, 4)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pyramid, "SMALLEST_SIDE_PX", data.draw(st.sampled_from([64, 4096])))
        whole = Pyramid(sizes, tile_px=tile, downsample=factor)
        made = Pyramid(sizes, tile_px=tile, downsample=factor, kept_px=size_px[0])
        for each in (whole, made):
            build(picture(width, height), boxes, each)
    np.testing.assert_array_equal(thumbnail(made.smallest(), size_px), thumbnail(whole.smallest(), size_px))
    assert not made._kept._bands


def test_of_the_smallest_level_one_row_of_tiles_is_held_whole_at_a_time() -> None:
    source, most = picture(1024, 1024), 0
    made = Pyramid(sizes_of(1024, 1024, 2, 4), tile_px=32, downsample=4, kept_px=50)
    for box in grid(1024, 1024, 128):
        for _ in made.add(box, crop(source, box)):
            most = max(most, len(made._kept._bands))
    assert most == 1 and made.smallest().shape == (256, 50, 3)


def test_memory_does_not_grow_with_the_slide() -> None:
    """Bands of boxes over a slide four times as high need no more than over the small one."""

    def peak_bytes(height_px: int) -> int:
        source = picture(2048, 512)
        made = Pyramid(sizes_of(2048, height_px, 3, 4), tile_px=64, downsample=4)
        tracemalloc.start()
        for box in grid(2048, height_px, 512):
            for _ in made.add(box, source[:, :512]):
                pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        made.finish()
        return peak

    assert peak_bytes(8192) < 1.2 * peak_bytes(2048)


def test_thumbnail_is_pillows_box_filter() -> None:
    source = picture(300, 200)
    made = thumbnail(source[:, ::-1], (100, 67))
    assert made.shape == (67, 100, 3)
    want = PIL.Image.fromarray(np.ascontiguousarray(source[:, ::-1])).resize((100, 67), PIL.Image.Resampling.BOX)
    np.testing.assert_array_equal(made, np.asarray(want))


def test_averaging_is_no_bottleneck() -> None:
    """A floor far below what is usual (900 Mpx/s): a fall back to slow loops would fail it, a busy machine not."""
    source = picture(2048, 2048)
    best_s = math.inf
    for _ in range(3):
        start_s = time.thread_time()
        for y in range(0, 2048, 256):
            for x in range(0, 2048, 256):
                area_average(source[y : y + 256, x : x + 256], 4, 4)
        best_s = min(best_s, time.thread_time() - start_s)
    assert source.shape[0] * source.shape[1] / best_s > 100e6
