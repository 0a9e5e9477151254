"""A CZI's fluorescence block that came back black: damage where the file holds more than zeros, else as it is."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray

import mimic
from mimic import darkblocks, structure
from mimic.errors import BadInput, ToolFailed
from mimic.model import Box
from tests.conftest import module
from tools import render_samples as made
from tools.czi_samples import CZI_SEGMENT, SubBlock, build_czi, read_subblocks

SIDE_PX = made.BLOCK_PX
JPEG_XR = 4
GREY16_GUID = bytes.fromhex("24c3dd6f034efe4bb1853d77768dc90b")
CODINGS = (
    "zstd0:ExplicitLevel=1",
    "zstd1:ExplicitLevel=1;PreProcess=HiLoByteUnpack",
    "zstd1:ExplicitLevel=1",
    "jpegxr",
)


def rebuilt(path: Path, change: Callable[[int, SubBlock], SubBlock]) -> Path:
    """A CZI with other blocks and the metadata that it has."""
    raw = path.read_bytes()
    blocks = [change(number, block) for number, block in enumerate(read_subblocks(raw))]
    at = struct.unpack_from("<q", raw, CZI_SEGMENT.size + 60)[0] + CZI_SEGMENT.size
    (length,) = struct.unpack_from("<i", raw, at)
    path.write_bytes(build_czi(raw[: CZI_SEGMENT.size + made.CZI_HEADER], blocks, raw[at + 256 :][:length].decode()))
    return path


def coded(_: int, block: SubBlock) -> SubBlock:
    """As lossless JPEG-XR of 16-bit grey."""
    width, height = block.size_px()
    data = bytes(imagecodecs.jpegxr_encode(np.frombuffer(block.data, np.uint16).reshape(height, width), level=1.0))
    schema, kind, position, part, _, pyramid, count = block.entry
    return replace(block, entry=(schema, kind, position, part, JPEG_XR, pyramid, count), data=data)


@pytest.fixture(params=CODINGS)
def czi(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Four channels of 2 x 2 blocks; block 0, the first of channel 0, holds zeros."""
    module("pylibCZIrw")
    jpegxr = request.param == "jpegxr"
    path = made.four_channel_czi(
        tmp_path / "four.czi", compression="uncompressed:" if jpegxr else request.param, dark=True
    ).path
    return rebuilt(path, coded) if jpegxr else path


def blocks_of(path: Path) -> darkblocks.DarkBlocks:
    slide = mimic.probe(path)
    facts = structure.check(path).czi
    assert facts is not None
    found = darkblocks.of(slide, slide.scans()[0], facts)
    assert found is not None
    return found


def zeros(box: Box) -> NDArray[Any]:
    return np.zeros((box.height_px, box.width_px, 1), np.uint16)


def test_zeros_that_are_in_the_file_and_zeros_that_are_not(czi: Path) -> None:
    dark, bright = Box(0, 0, SIDE_PX, SIDE_PX), Box(SIDE_PX, 0, SIDE_PX, SIDE_PX)
    found = blocks_of(czi)
    found.check(dark, (0, 0, 0), zeros(dark), read=zeros)
    for plane, box in (((0, 0, 0), bright), ((0, 3, 0), dark)):
        with pytest.raises(BadInput, match=rf"x={box.x_px}, y=0 of channel {plane[1]} came back black") as caught:
            found.check(box, plane, zeros(box), read=zeros)
        assert "--allow-missing" in str(caught.value)
    one = zeros(bright)
    one[7, 9] = 1
    found.check(bright, (0, 0, 0), one, read=zeros)
    wide = Box(0, 0, 2 * SIDE_PX, SIDE_PX)
    half = np.concatenate([zeros(dark), one], axis=1)
    found.check(wide, (0, 0, 0), half, read=zeros)


def test_a_block_that_a_box_cuts_is_read_whole(czi: Path) -> None:
    corner, asked = Box(SIDE_PX, 0, 100, 100), []

    def read(box: Box) -> NDArray[Any]:
        asked.append(box)
        return zeros(box) + 5

    blocks_of(czi).check(corner, (0, 1, 0), zeros(corner), read=read)
    assert asked == [Box(SIDE_PX, 0, SIDE_PX, SIDE_PX)]
    with pytest.raises(BadInput, match="came back black"):
        blocks_of(czi).check(corner, (0, 1, 0), zeros(corner), read=zeros)


def test_the_sound_file_converts(czi: Path, tmp_path: Path) -> None:
    done = mimic.convert(czi, tmp_path / "out.svs", mpp_um=0.25)
    assert done.status == "converted"


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_noise_in_a_block_is_never_black(czi: Path, where: float, tmp_path: Path) -> None:
    """Refused, or other pixels: JPEG-XR has no checksum."""

    def spoil(number: int, block: SubBlock) -> SubBlock:
        at = int(len(block.data) * where)
        return (
            replace(block, data=block.data[:at] + b"\xa5\x5a" * 60 + block.data[at + 120 :]) if number == 1 else block
        )

    try:
        done = mimic.convert(rebuilt(czi, spoil), tmp_path / "out.svs", mpp_um=0.25, channels=(0,), quality=95)
    except (BadInput, ToolFailed):
        assert not (tmp_path / "out.svs").exists()
        return
    import openslide

    with openslide.OpenSlide(done.outputs[0]) as slide:
        assert np.asarray(slide.read_region((SIDE_PX + 8, 8), 0, (240, 240)).convert("RGB")).any()
