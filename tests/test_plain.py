"""Uncompressed TIFFs read without libvips: the pixels that others read, and nothing that is not plain."""

from __future__ import annotations

import os
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image

from mimic import plain
from mimic.errors import BadInput
from mimic.model import Box, Pixels
from mimic.settings import Settings
from mimic.sources import vips
from mimic.structure import check

SETTINGS = Settings()


def noise(height: int = 700, width: int = 530) -> Pixels:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3)).astype(np.uint8)


def opened(path: Path) -> plain.Reader:
    slide = vips.probe(path, SETTINGS)
    reader = vips.open(slide, slide.images[0], threads=2, settings=SETTINGS, scratch=path.parent)
    assert isinstance(reader, plain.Reader)
    return reader


def whole(reader: plain.Reader, shape: tuple[int, ...]) -> Pixels:
    """Put together from the reader's own boxes, each of which must be new."""
    pixels, times = np.zeros(shape, np.uint8), np.zeros(shape[:2], int)
    for box in reader.boxes():
        place = slice(box.y_px, box.y_px + box.height_px), slice(box.x_px, box.x_px + box.width_px)
        pixels[place] = reader.read(box)
        times[place] += 1
    assert (times == 1).all()
    return pixels


@pytest.mark.parametrize("bands", [1, 8 << 20])
@pytest.mark.parametrize(
    "layout",
    [
        {"rowsperstrip": 1},
        {"rowsperstrip": 64},
        {"rowsperstrip": 77, "byteorder": ">"},
        {"rowsperstrip": 300, "bigtiff": True},
        {"rowsperstrip": 700},
        {"tile": (256, 256)},
        {"tile": (48, 512), "byteorder": ">"},
        {"tile": (768, 16)},
        {"tile": (1040, 1040), "bigtiff": True},
    ],
)
def test_pixels_are_those_of_libvips_and_tifffile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: dict[str, Any], bands: int
) -> None:
    monkeypatch.setattr(plain, "BAND_BYTES", bands)
    path, pixels = tmp_path / "a.tif", noise()
    tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, **layout)
    reader = opened(path)
    assert np.array_equal(whole(reader, pixels.shape), pixels)
    assert np.array_equal(tifffile.imread(path), pixels)
    assert np.array_equal(pyvips.Image.tiffload(str(path)).numpy(), pixels)
    for x, y, width, height in ((0, 0, 530, 700), (529, 699, 1, 1), (100, 255, 60, 3), (7, 300, 500, 399)):
        got = reader.read(Box(x, y, width, height))
        assert np.array_equal(got, pixels[y : y + height, x : x + width])
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read(Box(0, 0, 1, 1))


def test_strips_need_not_lie_in_their_order(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.tif", noise(90, 40)
    tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, rowsperstrip=30)
    raw = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["StripOffsets"]
        code = "I" if tag.dtype == 4 else "H"
        first, second, third = (raw[at : at + 3600] for at in tag.value)
        a, b, c = tag.value
        raw[a : a + 3600], raw[b : b + 3600], raw[c : c + 3600] = third, first, second
        raw[tag.valueoffset : tag.valueoffset + 3 * tag.valuebytecount // 3] = struct.pack(f"<3{code}", b, c, a)
    path.write_bytes(raw)
    assert np.array_equal(tifffile.imread(path), pixels)
    with closing(opened(path)) as reader:
        assert np.array_equal(whole(reader, pixels.shape), pixels)


def test_what_is_not_plain_is_left_to_libvips(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.tif", noise(64, 48)
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (pixels, {"compression": "lzw"}),
        (pixels, {"compression": "lzma"}),
        (pixels.astype(np.uint16), {}),
        (np.dstack((pixels, pixels[..., :1])), {"extrasamples": ["unassalpha"]}),
        (np.moveaxis(pixels, 2, 0), {"planarconfig": "separate"}),
    ]
    for array, options in kinds:
        tifffile.imwrite(path, array, photometric="rgb", metadata=None, **options)
        assert plain.layout(path) is None, options
    tifffile.imwrite(path, pixels[..., 0], photometric="miniswhite", metadata=None)
    assert plain.layout(path) is None
    tifffile.imwrite(path, pixels, photometric="ycbcr", metadata=None)
    assert plain.layout(path) is None
    for code, value in ((274, 3), (266, 2), (317, 2)):
        Image.fromarray(pixels).save(path, tiffinfo={code: value})
        assert plain.layout(path) is None, code
        Image.fromarray(pixels).save(path, tiffinfo={code: 1})
        assert plain.layout(path) is not None, code


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_picture_is_turned(tmp_path: Path, orientation: int) -> None:
    path, pixels = tmp_path / "a.tif", noise(64, 48)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    slide = vips.probe(path, SETTINGS)
    reader = vips.open(slide, slide.images[0], threads=1, settings=SETTINGS, scratch=tmp_path)
    got = reader.read(Box(0, 0, slide.images[0].levels[0].width_px, slide.images[0].levels[0].height_px))
    reader.close()
    assert np.array_equal(got, np.rot90(pixels, 2 if orientation == 3 else 3))


def _set_numbers(path: Path, tag: str, values: list[int]) -> None:
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[tag].overwrite(values)


@pytest.mark.parametrize(("tag", "change"), [("StripByteCounts", -1), ("StripByteCounts", 1), ("StripOffsets", None)])
def test_strips_of_another_size_than_their_rows_are_not_plain(tmp_path: Path, tag: str, change: int | None) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(90, 40), photometric="rgb", metadata=None, rowsperstrip=30)
    with tifffile.TiffFile(path) as file:
        values = list(file.pages[0].tags[tag].value)
    values[1] = 0 if change is None else values[1] + change
    _set_numbers(path, tag, values)
    assert plain.layout(path) is None


def test_a_file_that_is_cut_is_bad_input_before_and_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(), photometric="rgb", metadata=None, rowsperstrip=64)
    reader, size = opened(path), path.stat().st_size
    os.truncate(path, size // 2)
    assert reader.read(Box(0, 0, 530, 256)).shape == (256, 530, 3)
    with pytest.raises(BadInput, match="became shorter"):
        reader.read(Box(0, 256, 530, 256))
    reader.close()
    with pytest.raises(BadInput, match="cut short"):
        check(path)


def test_another_size_than_was_planned_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(64, 64), photometric="rgb", metadata=None)
    slide = vips.probe(path, SETTINGS)
    tifffile.imwrite(path, noise(65, 64), photometric="rgb", metadata=None)
    with pytest.raises(BadInput, match="64 x 65 pixels now"):
        vips.open(slide, slide.images[0], threads=1, settings=SETTINGS, scratch=tmp_path)


def test_hostile_sizes_are_not_plain(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for tag, value in (("ImageWidth", 2**32 - 1), ("ImageLength", 2**32 - 1), ("RowsPerStrip", 0)):
        tifffile.imwrite(path, noise(90, 40), photometric="rgb", metadata=None, rowsperstrip=30)
        _set_numbers(path, tag, [value])
        assert plain.layout(path) is None
