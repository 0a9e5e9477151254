"""Compressed tiles of TIFF files as tifffile wrote them, and JPEG headers: what may be copied, and the very bytes."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from mimic import jpegquality, jpegs
from mimic.errors import BadInput
from mimic.model import Coded, Slide
from mimic.sources import tiff
from tests.coded_samples import KINDS, as_slide, share_tables, split, tiles_of, write_ome
from tools.make_samples import histology, reduced

SIZE = (700, 500)
EXPECTED = {"420": (6, (2, 2)), "422": (6, (2, 1)), "rgb": (2, None)}
TILE = bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(histology(64, 64)), 75, subsampling="420"))


def described(slide: Slide) -> Coded:
    return tiff.coded(slide, slide.images[0])


def copied(slide: Slide, found: Coded, level: int = 0) -> list[bytes | None]:
    """All tiles of a level, row by row."""
    size = found.levels[level]
    with closing(tiff.open_tiles(slide, slide.images[0], found)) as tiles:
        columns, rows = -(-size.width_px // found.tile_px), -(-size.height_px // found.tile_px)
        return [tiles.tile(level, column, row) for row in range(rows) for column in range(columns)]


def decoded(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with PIL.Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("tile_px", [240, 256, 512, 1024])
@pytest.mark.parametrize("kind", EXPECTED)
def test_whole_tiles_are_given_byte_by_byte(kind: str, tile_px: int, tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    write_ome(path, kind, tile_px=tile_px)
    slide = as_slide(path, [SIZE])
    found = described(slide)
    assert (found.reason, found.tile_px, found.compression, found.missing) == (None, tile_px, 7, 0)
    assert (found.photometric, found.subsampling) == EXPECTED[kind] and found.jpeg_tables is None
    assert found.quality == 95  # tifffile's
    assert copied(slide, found) == tiles_of(path)


@pytest.mark.parametrize("kind", ["420", "rgb"])
def test_shared_tables_stay_shared_for_rgb_and_are_merged_for_ycbcr(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    write_ome(path, kind)
    whole = [decoded(jpegs.decodable(tile, tables=None, photometric=EXPECTED[kind][0])) for tile in tiles_of(path)]
    share_tables(path)
    with tifffile.TiffFile(path) as written:
        tables = written.pages.first.jpegtables
    assert tables is not None
    slide = as_slide(path, [SIZE])
    found = described(slide)
    assert found.reason is None and found.quality == 95
    given_tiles, stored = copied(slide, found), tiles_of(path)
    if kind == "rgb":
        assert found.jpeg_tables == tables and given_tiles == stored
        return
    assert found.jpeg_tables is None
    for mine, raw, pixels in zip(given_tiles, stored, whole, strict=True):
        assert mine is not None and np.array_equal(decoded(mine), pixels)
        assert mine.endswith(raw[raw.index(b"\xff\xda") :])  # the coded data, bit by bit
        assert split(mine)[0] == tables


def test_ycbcr_444_is_not_copied_and_told_why(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.ome.tif", "444")
    reason = described(as_slide(tmp_path / "a.ome.tif", [SIZE])).reason
    assert reason == "YCbCr 4:4:4 would show wrong colours in QuPath"


def test_subifds_are_levels_when_the_ordinary_source_knows_them(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    write_ome(path, "420", factors=(2, 4))
    sizes = [SIZE, (350, 250), (175, 125)]
    slide = as_slide(path, sizes)
    found = described(slide)
    assert [(level.width_px, level.height_px) for level in found.levels] == sizes
    for level in range(3):
        assert copied(slide, found, level) == tiles_of(path, level=level)
    told = as_slide(path, sizes[:2])
    assert len(described(told).levels) == 2


def test_lower_level_of_another_kind_is_left_to_be_made(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = histology(*SIZE)
    options = {"tile": (256, 256), "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, **options, **KINDS["420"])
        file.write(reduced(pixels, 2), subfiletype=1, **options, **KINDS["422"])
    assert len(described(as_slide(path, [SIZE, (350, 250)], "Tagged Image File Format")).levels) == 1


def plain(path: Path, **options: Any) -> None:
    tifffile.imwrite(path, histology(*SIZE), metadata=None, **{"photometric": "rgb", **options})


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "lzw": (lambda path: plain(path, tile=(256, 256), compression="lzw"), "LZW, not JPEG"),
    "strips": (lambda path: plain(path, rowsperstrip=64), "no tiled picture"),
    "oblong": (lambda path: plain(path, tile=(256, 128), compression="jpeg", **KINDS["420"]), "256"),
    "separate": (
        lambda path: tifffile.imwrite(
            path, histology(*SIZE).transpose(2, 0, 1), metadata=None, photometric="rgb", planarconfig="separate",
            tile=(256, 256), compression="jpeg",
        ),
        "interleaved",
    ),
    "turned": (
        lambda path: plain(path, tile=(256, 256), compression="jpeg", extratags=[(274, 3, 1, 6, True)], **KINDS["420"]),
        "turned",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_copied_has_its_reason(name: str, tmp_path: Path) -> None:
    write, words = REFUSED[name]
    write(tmp_path / "a.tif")
    assert words in str(described(as_slide(tmp_path / "a.tif", [SIZE], "Tagged Image File Format")).reason)


def test_other_sizes_and_formats_are_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    write_ome(path, "420")
    assert "size of the scan" in str(described(as_slide(path, [(701, 500)])).reason)
    assert "NDPI" in str(described(as_slide(path, [SIZE], "Hamamatsu NDPI")).reason)
    assert "Ventana" in str(described(as_slide(path, [SIZE], "Ventana BIF")).reason)


def patch_number(path: Path, tag: int, index: int, value: int) -> None:
    """Overwrites one number of a LONG field of the first directory."""
    with tifffile.TiffFile(path) as written:
        field = written.pages.first.tags[tag]
        at = field.valueoffset + index * 4
        assert field.dtype == 4 and not written.is_bigtiff
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack("<I", value))


def test_tile_of_no_length_is_missing_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    write_ome(path, "420")
    patch_number(path, 325, 4, 0)
    slide = as_slide(path, [SIZE])
    found = described(slide)
    assert found.missing == 1
    tiles = copied(slide, found)
    assert tiles[4] is None and None not in tiles[:4]


def test_damaged_header_of_a_sampled_tile_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    write_ome(path, "420")
    with tifffile.TiffFile(path) as written:
        at = written.pages.first.dataoffsets[2]
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(64))
    with pytest.raises(BadInput, match="tile 2"):
        described(as_slide(path, [SIZE]))


@pytest.mark.parametrize("quality", [1, 5, 30, 49, 50, 51, 70, 75, 80, 90, 95, 99, 100])
def test_quality_is_libjpegs(quality: int) -> None:
    tile = bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(histology(32, 32)), quality))
    assert jpegquality.nearest(jpegs.header(tile).quantisation) == quality


COLOURS = [
    # (encoder options, what the TIFF says, markers_win, copied as)
    ({"outcolorspace": "ycbcr", "subsampling": "420"}, 6, False, jpegs.Kind(6, (2, 2))),
    ({"outcolorspace": "ycbcr", "subsampling": "420"}, 2, False, None),
    ({"outcolorspace": "ycbcr", "subsampling": "420"}, 2, True, jpegs.Kind(6, (2, 2))),
    ({"outcolorspace": "ycbcr", "subsampling": "444"}, 2, True, None),
    ({"outcolorspace": "ycbcr", "subsampling": "411"}, 6, False, None),
    ({"outcolorspace": "rgb", "subsampling": "444"}, 2, False, jpegs.Kind(2, None)),
    ({"outcolorspace": "rgb", "subsampling": "444"}, 6, True, None),
]


@pytest.mark.parametrize(("options", "photometric", "markers_win", "expected"), COLOURS)
def test_colours_are_declared_as_the_stream_has_them(
    options: dict[str, str], photometric: int, markers_win: bool, expected: jpegs.Kind | None
) -> None:
    tile = bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(histology(64, 64)), 80, colorspace="rgb", **options))
    found = jpegs.kind(jpegs.header(tile), photometric, markers_win=markers_win)
    assert found == expected if expected is not None else isinstance(found, str)


def test_genuine_ids_are_rgb_and_only_for_rgb() -> None:
    coded = bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(histology(64, 64)), 80, outcolorspace="rgb"))
    at = coded.index(b"\xff\xee")
    bare = coded[:at] + coded[at + 16 :]  # without Adobe's marker
    for old, new in zip(b"RGB", (0, 1, 2), strict=True):
        bare = bare.replace(bytes((old, 0x11)), bytes((new, 0x11))).replace(bytes((old, 0x00)), bytes((new, 0x00)), 1)
    header = jpegs.header(bare)
    assert header.ids == (0, 1, 2) and header.adobe is None and not header.jfif
    assert jpegs.kind(header, 2, markers_win=True) == jpegs.Kind(2, None)
    assert jpegs.header(jpegs.decodable(bare, tables=None, photometric=2)).adobe == 0


@given(st.data())
def test_headers_of_damaged_tiles_are_read_or_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(TILE) - 1))
    damaged = bytearray(TILE[: data.draw(st.integers(0, len(TILE)))])
    if at < len(damaged):
        damaged[at] = data.draw(st.integers(0, 255))
    for use in (jpegs.header, lambda stream: jpegs.merge(stream, TILE), lambda stream: jpegs.merge(TILE, stream)):
        try:
            use(bytes(damaged))
        except ValueError:
            continue


@given(st.binary(max_size=80))
def test_merging_undoes_sharing(comment: bytes) -> None:
    marked = TILE[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + TILE[2:]
    tables, rest = split(marked)
    assert jpegs.sharable(tables)
    merged = jpegs.merge(tables, rest)
    assert np.array_equal(decoded(merged), decoded(TILE)) and split(merged)[0] == tables
    assert jpegs.header(merged).comments and not jpegs.header(TILE).comments


def test_corpus_slides_tiles(corpus_file: Callable[[str], Path]) -> None:
    path = corpus_file("svs/CMU-1-Small-Region.svs")
    slide = as_slide(path, [(2220, 2967)], "Aperio SVS")
    found = described(slide)
    assert (found.tile_px, found.photometric, found.quality) == (240, 2, 30)  # its description says Q=30
    assert copied(slide, found) == tiles_of(path)
