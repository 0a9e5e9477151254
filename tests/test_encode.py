"""What encode writes, read by Pillow, by libjpeg-turbo through imagecodecs, and by libtiff."""

from __future__ import annotations

import io
import threading
import time

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from skimage import data

from mimic import encode
from mimic.errors import InternalError
from mimic.model import Pixels, Profile

PROFILES: tuple[Profile, Profile] = ("ycc", "rgb")


@pytest.fixture(scope="module")
def histology() -> Pixels:
    """512 x 512 pixels of stained tissue, from scikit-image's wheel."""
    return np.ascontiguousarray(data.immunohistochemistry()[..., :3])  # type: ignore[no-untyped-call]


def psnr_db(a: Pixels, b: Pixels) -> float:
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 99.0 if mse == 0 else float(10 * np.log10(255**2 / mse))


def segments(stream: bytes) -> list[tuple[int, bytes]]:
    """Markers and payloads up to the scan, read independently of the module under test."""
    found, at = [], 2
    while True:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        found.append((marker, stream[at + 4 : at + 2 + length]))
        if marker == 0xDA:
            return found
        at += 2 + length


def with_tables(tables: bytes, stream: bytes) -> bytes:
    return tables[:-2] + stream[2:]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("quality", "floor_db"), [(60, 29.0), (80, 31.0), (95, 34.0)])
def test_pillow_sees_the_picture(histology: Pixels, profile: Profile, quality: int, floor_db: float) -> None:
    seen = PIL.Image.open(io.BytesIO(encode.jpeg(histology, quality=quality, profile=profile)))
    assert seen.format == "JPEG"
    assert seen.mode == "RGB"
    assert psnr_db(np.asarray(seen), histology) > floor_db


def test_ycc_is_baseline_420(histology: Pixels) -> None:
    stream = encode.jpeg(histology, quality=80, profile="ycc")
    parts = segments(stream)
    assert stream.endswith(b"\xff\xd9")
    assert next(payload for marker, payload in parts if marker == 0xC0)[5:] == bytes.fromhex("03 012200 021101 031101")
    assert not {marker for marker, _ in parts} & {0xC1, 0xC2, 0xDD}
    assert parts[-1][1][0] == 3, "one scan of all components"


def test_rgb_is_untransformed_and_says_so(histology: Pixels) -> None:
    parts = segments(encode.jpeg(histology, quality=80, profile="rgb"))
    frame = next(payload for marker, payload in parts if marker == 0xC0)
    assert frame[5:] == b"\x03" + b"R\x11\x00" + b"G\x11\x00" + b"B\x11\x00"
    assert [payload for marker, payload in parts if marker == 0xEE] == [b"Adobe\x00\x64\x00\x00\x00\x00\x00"]
    assert 0xE0 not in {marker for marker, _ in parts}
    assert not {marker for marker, _ in parts} & {0xC1, 0xC2}


def test_saturated_colours_survive_both_profiles() -> None:
    """A wrong transform turns them into other colours, which PSNR over tissue might forgive."""
    for colour in ((221, 90, 140), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)):
        flat = np.full((64, 64, 3), colour, np.uint8)
        for profile in PROFILES:
            seen = np.asarray(PIL.Image.open(io.BytesIO(encode.jpeg(flat, quality=80, profile=profile))))
            assert np.abs(seen.astype(int) - colour).max() <= 4, (colour, profile)


def test_a_view_of_a_larger_picture_encodes_as_its_copy(histology: Pixels) -> None:
    view = histology[100:356, 33:289]
    for profile in PROFILES:
        whole = encode.jpeg(view.copy(), quality=80, profile=profile)
        assert encode.jpeg(view, quality=80, profile=profile) == whole
    assert encode.lzw(view) == encode.lzw(view.copy())


@pytest.mark.parametrize("quality", [1, 50, 80, 100])
def test_rgb_tiles_share_their_tables(histology: Pixels, quality: int) -> None:
    tables = encode.jpeg_tables(quality)
    assert {marker for marker, _ in segments(tables[:-2] + b"\xff\xda\0\x02")[:-1]} == {0xDB, 0xC4}
    assert tables.startswith(b"\xff\xd8\xff\xdb")
    assert tables.endswith(b"\xff\xd9")
    for part in (histology[:256, :256], histology[256:, 256:], np.zeros((256, 256, 3), np.uint8)):
        stream = encode.tile(part, quality=quality, profile="rgb")
        assert {marker for marker, _ in segments(stream)} == {0xEE, 0xC0, 0xDA}
        whole = imagecodecs.jpeg8_decode(encode.jpeg(part, quality=quality, profile="rgb"))
        np.testing.assert_array_equal(imagecodecs.jpeg8_decode(stream, tables=tables), whole)
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(with_tables(tables, stream)))), whole)


def test_ycc_tiles_are_self_contained(histology: Pixels) -> None:
    part = histology[:256, :256]
    coded = encode.tile(part, quality=80, profile="ycc")
    assert {marker for marker, _ in segments(coded)} == {0xE0, 0xDB, 0xC0, 0xC4, 0xDA}
    seen = imagecodecs.jpeg8_decode(coded)
    np.testing.assert_array_equal(seen, imagecodecs.jpeg8_decode(encode.jpeg(part, quality=80, profile="ycc")))


def test_only_small_tiles_have_tables_of_their_own(histology: Pixels) -> None:
    white = np.full((256, 256, 3), 243, np.uint8)
    assert len(encode.tile(white, quality=80, profile="ycc")) < 1000
    assert encode.tile(white, quality=80, profile="ycc") == encode.jpeg(white, quality=80, profile="ycc")
    tissue = encode.tile(histology[:256, :256], quality=80, profile="ycc")
    huffman = b"".join(payload for marker, payload in segments(tissue) if marker == 0xC4)
    assert len(huffman) == 2 * (17 + 12) + 2 * (17 + 162), "the standard tables have 12 and 162 codes"


@given(st.data())
def test_what_is_beside_a_tile_does_not_change_it(draws: st.DataObject) -> None:
    """Blocks all alike, of a few frequencies that are rare elsewhere, are as bad as can be for the standard tables."""
    rng = np.random.default_rng(draws.draw(st.integers(0, 1 << 32)))
    waves = np.cos((2 * np.arange(8) + 1) * np.arange(8)[:, None] * np.pi / 16)
    side_px, quality = draws.draw(st.sampled_from([256, 512])), draws.draw(st.sampled_from([20, 50, 80, 95]))
    block = np.full((8, 8), rng.uniform(100, 200))
    for down, across in rng.integers(0, 8, (draws.draw(st.integers(0, 4)), 2)):
        block += rng.uniform(-90, 90) * np.outer(waves[down], waves[across])
    noise = draws.draw(st.sampled_from([0.0, 0.0, 1.0])) * rng.normal(size=(side_px, side_px))
    grey = np.tile(block, (side_px // 8, side_px // 8)) + noise
    pixels = np.repeat(np.clip(grey, 0, 255)[..., None], 3, 2).astype(np.uint8)
    for profile in PROFILES:
        alone = encode.tile(pixels, quality=quality, profile=profile)
        assert encode.tile(pixels, quality=quality, profile=profile, beside=b"glass") == alone


def test_glass_beside_glass_is_encoded_once(histology: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[bool] = []
    real = encode._jpeg

    def spy(pixels: Pixels, *, quality: int, profile: Profile, own_tables: bool) -> bytes:
        tables.append(own_tables)
        return real(pixels, quality=quality, profile=profile, own_tables=own_tables)

    monkeypatch.setattr(encode, "_jpeg", spy)
    glass = np.random.default_rng(2).integers(240, 243, (256, 256, 3), dtype=np.uint8)
    first = encode.tile(glass, quality=80, profile="ycc")
    assert tables == [False, True]
    assert encode.tile(glass, quality=80, profile="ycc", beside=first) == first
    assert tables == [False, True, True]
    tissue = encode.tile(histology[:256, :256], quality=80, profile="ycc", beside=first)  # the edge of the tissue
    encode.tile(histology[256:, :256], quality=80, profile="ycc", beside=tissue)
    assert tables[3:] == [True, False, False]


@given(st.binary(max_size=64))
def test_no_jpeg_is_an_internal_error(junk: bytes) -> None:
    with pytest.raises(InternalError):
        encode.split_tables(junk.replace(b"\xff\xda", b""))


def test_tables_and_rest_make_the_whole_again(histology: Pixels) -> None:
    for profile in PROFILES:
        stream = encode.jpeg(histology, quality=80, profile=profile)
        again = with_tables(*encode.split_tables(stream))
        np.testing.assert_array_equal(imagecodecs.jpeg8_decode(again), imagecodecs.jpeg8_decode(stream))


@pytest.mark.parametrize("width", [1, 2, 387, 512])
def test_lzw_strip_is_what_tiff_readers_expect(histology: Pixels, width: int) -> None:
    """tifffile writes the TIFF around our strip; Pillow's libtiff and tifffile's own decoder undo it."""
    label = histology[:463, :width]
    strip = encode.lzw(label)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        iter([strip]),
        shape=label.shape,
        dtype=np.uint8,
        photometric="rgb",
        compression="lzw",
        predictor=2,
        rowsperstrip=label.shape[0],
    )
    buffer.seek(0)
    for seen in (tifffile.imread(buffer), np.asarray(PIL.Image.open(buffer))):
        np.testing.assert_array_equal(seen, label)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((1, encode.MAX_SIDE_PX + 1, 3), np.uint8),
    ],
)
def test_other_pixels_are_refused(pixels: Pixels) -> None:
    with pytest.raises(InternalError):
        encode.jpeg(pixels, quality=80, profile="ycc")


@pytest.mark.parametrize("codec", ["jpeg", "lzw"])
def test_others_run_meanwhile(histology: Pixels, codec: str) -> None:
    """While one long call runs, this thread must get on; with the GIL held it would stand still until the end."""
    large = np.tile(histology, (6, 6, 1))
    work = encode.lzw if codec == "lzw" else lambda pixels: encode.jpeg(pixels, quality=80, profile="ycc")
    thread = threading.Thread(target=work, args=(large,))
    thread.start()
    steps = 0
    while thread.is_alive():
        time.sleep(0.001)
        steps += 1
    assert steps > 10
