"""Compressed TIFFs read without libvips: its very pixels, and no damage accepted that it refuses."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mimic import plain
from mimic.errors import BadInput, MimicError
from mimic.model import Box, Pixels
from mimic.segments import Damaged, Packing
from mimic.settings import Settings
from mimic.sources import vips

SETTINGS = Settings()
LAYOUTS: tuple[dict[str, Any], ...] = ({"tile": (64, 80)}, {"rowsperstrip": 24})
WAYS = [("deflate", 1), ("deflate", 2), ("packbits", 1)]
"""Compressions, each with the predictors that it has."""


def smooth(height: int = 150, width: int = 130, *, grey: bool = False) -> Pixels:
    """Compresses, and no two places are the same."""
    steps = np.random.default_rng(11).integers(-3, 4, (height, width, 1 if grey else 3))
    pixels = (np.cumsum(steps, axis=1) + np.arange(height)[:, None, None]).astype(np.uint8)
    return pixels[..., 0] if grey else pixels


def write(path: Path, pixels: Pixels, way: tuple[str, int], **options: Any) -> Path:
    compression, predictor = way
    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    more = {"predictor": predictor} if predictor > 1 else {}
    tifffile.imwrite(path, pixels, photometric=photometric, compression=compression, metadata=None, **more, **options)
    return path


def opened(path: Path) -> vips.VipsReader | plain.Reader:
    slide = vips.probe(path, SETTINGS)
    return vips.open(slide, slide.images[0], threads=2, settings=SETTINGS, scratch=path.parent)


def read(path: Path) -> Pixels:
    """Every box, in several threads where that is allowed."""
    reader = opened(path)
    boxes = reader.boxes()
    shape = boxes[-1].y_px + boxes[-1].height_px, boxes[-1].x_px + boxes[-1].width_px, 3
    pixels, times = np.zeros(shape, np.uint8), np.zeros(shape[:2], int)
    try:
        with ThreadPoolExecutor(1 if reader.sequential else 3) as pool:
            for box, part in zip(boxes, pool.map(reader.read, boxes), strict=True):
                place = slice(box.y_px, box.y_px + box.height_px), slice(box.x_px, box.x_px + box.width_px)
                pixels[place] = part
                times[place] += 1
    finally:
        reader.close()
    assert (times == 1).all()
    return pixels


def by_libvips(path: Path) -> Pixels:
    image = pyvips.Image.tiffload(str(path), fail_on="error")
    return np.asarray((image if image.bands == 3 else image.bandjoin([image, image])).numpy(), np.uint8)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    way=st.sampled_from([*WAYS, ("none", 1)]),
    size=st.tuples(st.integers(1, 150), st.integers(1, 130)),
    tile=st.none() | st.tuples(st.integers(1, 6), st.integers(1, 6)),
    rows=st.integers(1, 160),
    written=st.fixed_dictionaries({"byteorder": st.sampled_from("<>"), "bigtiff": st.booleans()}),
    grey=st.booleans(),
)
def test_pixels_are_those_of_libvips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: tuple[str, int], size: tuple[int, int],
    tile: tuple[int, int] | None, rows: int, written: dict[str, Any], grey: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(plain, "BAND_BYTES", 1)
    monkeypatch.setattr(plain, "STEP_PX", 32)
    pixels = smooth(grey=grey)[: size[0], : size[1]]
    layout = {"rowsperstrip": rows} if tile is None else {"tile": (tile[0] * 16, tile[1] * 16)}
    path = write(tmp_path / "a.tif", pixels, way, **layout, **written)
    assert plain.layout(path) is not None
    got = read(path)
    assert np.array_equal(got, pixels if pixels.ndim == 3 else np.dstack([pixels] * 3))
    assert np.array_equal(got, by_libvips(path))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", WAYS)
def test_any_box_can_be_read_in_any_order(tmp_path: Path, way: tuple[str, int], layout: dict[str, Any]) -> None:
    pixels = smooth()
    reader = opened(write(tmp_path / "a.tif", pixels, way, **layout))
    assert isinstance(reader, plain.Reader) and not reader.sequential
    for x, y, width, height in ((129, 149, 1, 1), (0, 0, 130, 150), (60, 20, 50, 100), (0, 63, 7, 2)):
        assert np.array_equal(reader.read(Box(x, y, width, height)), pixels[y : y + height, x : x + width])
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read(Box(0, 0, 1, 1))


@pytest.mark.parametrize("compression", ["deflate", "packbits"])
@pytest.mark.parametrize("predictor", ["none", "horizontal"])
@pytest.mark.parametrize("tile", [False, True])
def test_pictures_of_other_writers(tmp_path: Path, compression: str, predictor: str, tile: bool) -> None:
    pixels, path = smooth(300, 270), tmp_path / "a.tif"
    image = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")
    image.tiffsave(str(path), compression=compression, predictor=predictor, tile=tile)
    assert plain.layout(path) is not None
    assert np.array_equal(read(path), pixels)
    if predictor == "none" and not tile:
        names = {"deflate": "tiff_adobe_deflate", "packbits": "packbits"}
        Image.fromarray(pixels).save(path, compression=names[compression])
        assert plain.layout(path) is not None
        assert np.array_equal(read(path), pixels)


@pytest.mark.parametrize("way", WAYS)
def test_a_last_strip_that_is_filled_up_is_read_to_the_edge(tmp_path: Path, way: tuple[str, int]) -> None:
    """Some writers do that, and libtiff takes the rows that it needs."""
    pixels = smooth(96, 60)
    path = write(tmp_path / "a.tif", pixels, way, rowsperstrip=32)
    for height in (90, 65, 96):
        _overwrite(path, "ImageLength", [height])
        assert plain.layout(path) is not None
        assert np.array_equal(read(path), pixels[:height]) and np.array_equal(by_libvips(path), pixels[:height])


def _overwrite(path: Path, tag: str, values: list[int]) -> None:
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[tag].overwrite(values)


@pytest.mark.parametrize("width", [59, 61])
@pytest.mark.parametrize("way", WAYS)
def test_segments_of_another_size_than_their_rows_are_bad_input(
    tmp_path: Path, way: tuple[str, int], width: int
) -> None:
    path = write(tmp_path / "a.tif", smooth(50, 60), way, rowsperstrip=25)
    with tifffile.TiffFile(path) as file:
        second = file.pages[0].dataoffsets[1]
    _overwrite(path, "ImageWidth", [width])
    reader = opened(path)
    assert isinstance(reader, plain.Reader)
    with pytest.raises(BadInput, match=f"strip 1 at byte {second} (cannot be decoded|decodes to)") as caught:
        reader.read(Box(0, 25, 1, 1))
    assert caught.value.path == path and caught.value.remedy
    reader.close()


@pytest.mark.parametrize(("compression", "predictor"), [(8, 1), (8, 2), (32946, 2), (32773, 1)])
def test_a_segment_gives_exactly_its_bytes(compression: int, predictor: int) -> None:
    pixels = smooth(20, 30)
    raw = imagecodecs.delta_encode(pixels, axis=1) if predictor == 2 else pixels
    encode = {32773: imagecodecs.packbits_encode}.get(compression, imagecodecs.zlib_encode)
    packing = Packing(compression, predictor)
    data = np.frombuffer(encode(raw.tobytes()), np.uint8)
    assert np.array_equal(packing.unpacked(data, (20, 30, 3), most_rows=20), pixels)
    assert np.array_equal(packing.unpacked(data, (18, 30, 3), most_rows=20), pixels[:18])
    assert np.array_equal(packing.unpacked(data, (20, 30, 3), most_rows=21), pixels)
    for rows, most in ((18, 18), (19, 19), (21, 21), (18, 19), (18, 21)):
        with pytest.raises(Damaged, match=r"cannot be decoded|decodes to (more than )?\d+ bytes, not \d+"):
            packing.unpacked(data, (rows, 30, 3), most_rows=most)


def test_a_wrong_byte_in_deflate_is_always_noticed() -> None:
    """By its checksum, at the latest; libtiff does not look at it."""
    pixels, dice = smooth(20, 30), random.Random(9)
    whole = imagecodecs.zlib_encode(pixels.tobytes())
    for _round in range(500):
        data = np.frombuffer(whole, np.uint8).copy()
        data[dice.randrange(2, len(data))] ^= dice.randrange(1, 256)
        with pytest.raises(Damaged):
            Packing(8).unpacked(data, (20, 30, 3), most_rows=20)


def outcome(path: Path) -> Pixels | None:
    """The pixels, None where they are refused; anything but a MimicError fails the test."""
    try:
        return read(path)
    except MimicError as error:
        assert error.path == path and error.remedy
        return None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", WAYS)
def test_what_libvips_refuses_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: tuple[str, int], layout: dict[str, Any]
) -> None:
    """And what both accept is the same."""
    path = write(tmp_path / "a.tif", smooth(), way, **layout)
    whole, dice, layouts, seen = path.read_bytes(), random.Random(3), plain.layout, {"refused": 0, "by us alone": 0}
    for _round in range(120):
        path.write_bytes(damaged(whole, dice))
        monkeypatch.setattr(plain, "layout", layouts)
        ours = outcome(path)
        monkeypatch.setattr(plain, "layout", lambda _: None)
        theirs = outcome(path)
        assert theirs is not None or ours is None
        seen["refused"] += ours is None
        seen["by us alone"] += ours is None and theirs is not None
        if ours is not None and theirs is not None:
            assert np.array_equal(ours, theirs)
    assert seen["refused"] > 40 and seen["by us alone"] > 4, seen


def damaged(whole: bytes, dice: random.Random) -> bytes:
    """One of many things that happen to files, mostly within the pixel data."""
    data = bytearray(whole)
    at = dice.randrange(len(data))
    match dice.randrange(6):
        case 0:
            data[at] ^= 1 << dice.randrange(8)
        case 1:
            data[at : at + 40] = bytes(len(data[at : at + 40]))
        case 2:
            data[at : at + 16] = dice.randbytes(len(data[at : at + 16]))
        case 3:
            del data[at : at + 5]
        case 4:
            data[at:at] = dice.randbytes(7)
        case _:
            data[dice.randrange(300)] = dice.choice((0, 1, 255, dice.randrange(256)))  # the directory
    return bytes(data)


@pytest.mark.parametrize("way", WAYS)
def test_what_leaves_a_choice_is_left_to_libvips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: tuple[str, int]
) -> None:
    path = write(tmp_path / "a.tif", smooth(), way, rowsperstrip=50)
    assert plain.layout(path) is not None
    for tag, value in (("StripOffsets", 0), ("StripByteCounts", 0), ("StripByteCounts", 60000)):
        write(path, smooth(), way, rowsperstrip=50)
        _change_one(path, tag, value)
        assert plain.layout(path) is None, tag
    write(path, smooth(), way, rowsperstrip=50)
    monkeypatch.setattr(plain, "MOST_SEGMENT_BYTES", 130 * 50 * 3 - 1)
    assert plain.layout(path) is None


def _change_one(path: Path, tag: str, value: int) -> None:
    with tifffile.TiffFile(path) as file:
        values = list(file.pages[0].tags[tag].value)
    values[1] = value
    _overwrite(path, tag, values)


@pytest.mark.parametrize("compression", ["lzw", "zstd", "jpeg"])
def test_what_others_decode_more_safely_is_left_to_them(tmp_path: Path, compression: str) -> None:
    assert plain.layout(write(tmp_path / "a.tif", smooth(), (compression, 1), rowsperstrip=48)) is None


def test_predictors_that_are_not_ours(tmp_path: Path) -> None:
    pixels, path = smooth(), tmp_path / "a.tif"
    write(path, pixels, ("deflate", 2))
    _overwrite(path, "Predictor", [3])
    assert plain.layout(path) is None
    Image.fromarray(pixels).save(path, compression="packbits", tiffinfo={317: 2})
    assert plain.layout(path) is None


def test_the_tools_are_those_that_read_pixels() -> None:
    found = {tool.name: tool.version for tool in vips.tools(SETTINGS)}
    assert "libdeflate" in str(found["imagecodecs"]) and found["libvips"]
