"""How pixels are compressed: quality judged by Pillow's own setting, codecs by the writers of the files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mimic
from mimic.coding import Coding, coding
from mimic.jpegquality import estimate

PIXELS = np.random.default_rng(7).integers(0, 256, (64, 64, 3)).astype(np.uint8)
QUALITIES = (1, 10, 25, 49, 50, 51, *range(52, 101, 4), 95, 99, 100)


def jpeg(quality: int, **options: object) -> bytes:
    data = io.BytesIO()
    Image.fromarray(PIXELS).save(data, "JPEG", quality=quality, **options)
    return data.getvalue()


@pytest.mark.parametrize("quality", QUALITIES)
def test_quality_as_pillow_was_asked_for_it(quality: int) -> None:
    assert estimate(jpeg(quality)) == quality


@pytest.mark.parametrize(
    "options", [{"subsampling": 0}, {"progressive": True}, {"optimize": True}, {"dpi": (300, 300)}]
)
def test_quality_whatever_else_the_writer_does(options: dict[str, object]) -> None:
    assert estimate(jpeg(85, **options)) == 85


def test_quality_of_a_head_cut_off_behind_its_tables() -> None:
    data = jpeg(70)
    assert estimate(data[: data.index(b"\xff\xc0")]) == 70


def test_quality_of_tables_that_stand_elsewhere() -> None:
    data = jpeg(60)
    at = data.index(b"\xff\xdb")
    frame = data.index(b"\xff\xc0")
    tables = b"\xff\xd8" + data[at:frame] + b"\xff\xd9"
    assert estimate(b"\xff\xd8" + data[frame:], tables) == 60
    assert estimate(b"\xff\xd8" + data[frame:]) is None
    assert estimate(jpeg(90), tables) == 90  # a tile's own tables count


def test_quality_of_tables_that_libjpeg_did_not_make() -> None:
    softer = [max(1, value + (1 if index % 3 else -1)) for index, value in enumerate(LUMA_75)]
    data = io.BytesIO()
    Image.fromarray(PIXELS).save(data, "JPEG", qtables=[softer, softer])
    found = estimate(data.getvalue())
    assert found is not None and abs(found - 75) <= 3


LUMA_75 = [
    *(
        8,
        6,
        6,
        7,
        6,
        5,
        8,
        7,
        7,
        7,
        9,
        9,
        8,
        10,
        12,
        20,
        13,
        12,
        11,
        11,
        12,
        25,
        18,
        19,
        15,
        20,
        29,
        26,
        31,
        30,
        29,
        28,
    ),
    *(28, 28, 32, 36, 46, 39, 32, 34, 44, 35, 28, 28, 40, 55, 41, 44, 48, 49, 52, 52, 52, 31, 39, 57, 61, 56, 50, 60),
    *(46, 51, 52, 50),
]


def test_quality_of_sixteen_bit_tables() -> None:
    data = jpeg(30)
    at = data.index(b"\xff\xdb")
    table = bytes(data[at + 5 : at + 69])
    wide = b"".join(bytes((0, value)) for value in table)
    assert estimate(b"\xff\xd8\xff\xdb\x00\x83\x10" + wide + b"\xff\xd9") == 30


@given(st.binary(max_size=400), st.binary(max_size=100))
def test_no_bytes_upset_the_estimate(data: bytes, shared: bytes) -> None:
    for found in (estimate(data, shared), estimate(b"\xff\xd8\xff\xdb\x00\x43" + data, shared)):
        assert found is None or 1 <= found <= 100


def seen(path: Path) -> Coding:
    slide = mimic.probe(path)
    return coding(slide, slide.scans()[0])


@pytest.mark.parametrize(
    ("options", "codec", "quality", "lossy"),
    [
        ({"compression": "jpeg", "compressionargs": {"level": 77}}, "jpeg", 77, True),
        ({"compression": "lzw"}, "lzw", None, False),
        ({"compression": "zlib"}, "deflate", None, False),
        ({}, "none", None, False),
    ],
)
def test_tiffs(
    options: dict[str, object], codec: str, quality: int | None, lossy: bool, tmp_path: Path
) -> None:  # fmt: skip
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.tile(PIXELS, (4, 4, 1)), tile=(128, 128), photometric="rgb", **options)  # type: ignore[arg-type]
    found = seen(path)
    assert (found.codec, found.quality, found.lossy) == (codec, quality, lossy) and found.note


@pytest.mark.parametrize(("level", "lossy"), [(0, None), (60, True)])
def test_jpeg_2000_says_whether_its_wavelet_is_reversible(level: int, lossy: bool | None, tmp_path: Path) -> None:
    path = tmp_path / "a.j2k"
    path.write_bytes(imagecodecs.jpeg2k_encode(PIXELS, level=level, codecformat="j2k", reversible=level == 0))
    assert seen(path).codec == "jpeg 2000" and seen(path).lossy is lossy


@pytest.mark.parametrize(("name", "codec", "lossy"), [("a.png", "deflate", False), ("a.bmp", "none", False)])
def test_pictures(name: str, codec: str, lossy: bool, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / name)
    assert seen(tmp_path / name) == Coding(codec, None, lossy, "the picture's header")


def test_a_jpeg_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(88))
    assert seen(path) == Coding("jpeg", 88, True, "the picture's header")


def test_a_file_that_went_away_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(88))
    slide = mimic.probe(path)
    path.unlink()
    assert coding(slide, slide.images[0]).quality is None


CORPUS = {
    "svs/CMU-1-Small-Region.svs": ("jpeg", 30, True),  # its description says Q=30
    "ndpi/test3-TRITC 2 (560).ndpi": ("jpeg", 90, True),
    "ometiff/OS-1-detail.ome.tif": ("jpeg", 75, True),
    "czi/rgb_no_metadata.czi": ("none", None, False),
    "czi/he_2k_jxr_lossless_10x.czi": ("jpeg-xr", None, None),
    "dicom/multi_frame_jpeg2000_camelyon_challenge_image.dcm": ("jpeg 2000", None, False),
    "nd2/example-multichannel.nd2": (None, None, None),
}


@pytest.mark.parametrize("name", CORPUS)
def test_corpus(name: str, corpus_file: Callable[[str], Path]) -> None:
    found = seen(corpus_file(name))
    assert (found.codec, found.quality, found.lossy) == CORPUS[name]


def test_a_dicom_series_whichever_file_is_named(corpus_file: Callable[[str], Path]) -> None:
    for path in sorted(corpus_file("dicom/cmu_small_region_series").iterdir()):
        found = seen(path)
        assert (found.codec, found.quality, found.lossy) == ("jpeg", 30, True)
