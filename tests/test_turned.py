"""turned: pixels that lie blue first are the same pixels to whoever takes them."""

from __future__ import annotations

import numpy as np
import pytest

from mimic import encode, turned
from mimic.model import Box, Pixels, Profile
from mimic.pyramid import Pyramid, area_average
from mimic.samples import SampleKeeper


def picture(width_px: int, height_px: int) -> Pixels:
    return np.random.default_rng(7).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)


def blue_first(pixels: Pixels) -> Pixels:
    """The same as a file holds it; not to be written to."""
    stored = pixels[..., ::-1].tobytes()
    return np.frombuffer(stored, np.uint8).reshape(pixels.shape)[..., ::-1]


def test_told_apart_and_copied() -> None:
    plain = picture(70, 50)
    stored = blue_first(plain)
    assert turned.is_turned(stored) and not turned.is_turned(plain) and not turned.is_turned(plain[:, ::-1])
    assert not turned.is_turned(np.broadcast_to(plain[0, 0], plain.shape))
    for each in (stored, stored[3:40, 5:9], plain, plain[:, ::-1]):
        copy = turned.copied(each)
        assert np.array_equal(copy, each) and copy.flags.c_contiguous and copy.flags.writeable


@pytest.mark.parametrize("factors", [(4, 4), (2, 2), (1, 4), (8, 1), (1, 1), (32, 32)])
@pytest.mark.parametrize("size_px", [(256, 256), (77, 45), (3, 3)])
def test_the_same_averages(factors: tuple[int, int], size_px: tuple[int, int]) -> None:
    plain = picture(*size_px)
    np.testing.assert_array_equal(area_average(blue_first(plain), *factors), area_average(plain, *factors))


@pytest.mark.parametrize("profile", ["ycc", "rgb"])
def test_the_same_bytes(profile: Profile) -> None:
    for plain in (picture(256, 256), picture(256, 256) // 64 + 180, np.full((256, 256, 3), (9, 99, 200), np.uint8)):
        stored = blue_first(plain)
        assert encode.tile(stored, quality=80, profile=profile) == encode.tile(plain, quality=80, profile=profile)
        assert encode.jpeg(stored[:33], quality=70, profile=profile) == encode.jpeg(
            plain[:33], quality=70, profile=profile
        )
    assert encode.lzw(blue_first(plain)) == encode.lzw(plain)


@pytest.mark.parametrize("side_px", [64, 100, 256])
def test_the_same_tiles_and_samples(side_px: int) -> None:
    """Boxes along the tiles, across them, and of many tiles; with edges."""
    plain = picture(300, 210)
    found: list[list[tuple[int, int, int, bytes, bytes]]] = []
    kept = []
    for whole in (plain, blue_first(plain)):
        made = Pyramid([(300, 210), (75, 52)], tile_px=64, downsample=4)
        keeper, tiles = SampleKeeper(300, 210, 64), []
        for y in range(0, 210, side_px):
            for x in range(0, 300, side_px):
                part = whole[y : y + side_px, x : x + side_px]
                for tile in made.add(Box(x, y, part.shape[1], part.shape[0]), part):
                    tiles.append((tile.level, tile.column, tile.row, tile.pixels.tobytes(), tile.valid.tobytes()))
                    if not tile.level:
                        high, wide = tile.valid.shape[:2]
                        box = Box(tile.column * 64, tile.row * 64, wide, high)
                        keeper.offer(box, tile.valid, coded_bytes=1)
        found.append(tiles)
        kept.append((made.smallest().tobytes(), [(each.box, each.pixels.tobytes()) for each in keeper.samples()]))
        assert not any(turned.is_turned(each.pixels) for each in keeper.samples())
    assert found[0] == found[1] and kept[0] == kept[1]
