"""What each container promises, and what is said when it does not keep it."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.encaps
import pydicom.uid
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mimic.errors import BadInput
from mimic.structure import check
from mimic.structure.coverage import covered_px, distinct
from mimic.structure.tiff import pages
from tests.structure_samples import pixels, pyramid, sample_czi, sample_dicom, save, tiff

# TIFF


def patch_entry(path: Path, tag: int, value: int, *, page: int = 0) -> None:
    """Overwrites an inline value, or the offset of one, in a little-endian classic TIFF."""
    with tifffile.TiffFile(path) as file:
        offset = file.pages[page].tags[tag].offset
    with path.open("r+b") as raw:
        raw.seek(offset + 8)
        raw.write(struct.pack("<I", value))


def test_the_message_names_the_tile_that_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiff(path, tile=(32, 32))
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(BadInput, match=r"cut short: tile 8 of directory 0 ends at byte \d+, the file has \d+"):
        check(path)


def test_a_loop_of_directories(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for _ in range(3):
            file.write(pixels(), photometric="rgb", metadata=None)
    with tifffile.TiffFile(path) as opened:
        first, last = opened.pages[0].offset, opened.pages[2]
        end = last.offset + 2 + 12 * len(last.tags)
    assert check(path).directories == 3
    with path.open("r+b") as raw:
        raw.seek(end)
        raw.write(struct.pack("<I", first))
    with pytest.raises(BadInput, match="directory 3 is directory 0 again, a loop"):
        check(path)


def test_missing_tiles_are_counted_not_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiff(path, tile=(32, 32))
    with tifffile.TiffFile(path) as file:
        counts = file.pages[0].tags[325]
        at, kind = counts.valueoffset, "<I" if counts.dtype == 4 else "<H"
    with path.open("r+b") as raw:
        raw.seek(at + 2 * struct.calcsize(kind))
        raw.write(struct.pack(kind, 0))
    assert check(path).missing_tiles == 1


def test_too_few_tiles_for_the_size(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiff(path, tile=(32, 32))
    patch_entry(path, 257, 960)
    with pytest.raises(BadInput, match="9 tiles where its size takes 90"):
        check(path)


def test_subifds_are_walked(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pyramid(path)
    assert check(path).directories == 2
    patch_entry(path, 330, 1 << 30)
    with pytest.raises(BadInput, match="SubIFD 0 of directory 0"):
        check(path)


def test_an_unfinished_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0\0\0\0\0")
    with pytest.raises(BadInput, match="no directory"):
        check(path)


def test_an_imagej_stack_without_its_last_plane(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((40, 64, 64), np.uint8), imagej=True)
    with tifffile.TiffFile(path) as file:
        offset, first = file.pages[0].dataoffsets[0], file.pages[0]
        end = first.offset + 2 + 12 * len(first.tags)
    with path.open("r+b") as raw:  # as ImageJ does above 4 GiB: one directory for all planes
        raw.seek(end)
        raw.write(b"\0\0\0\0")
        raw.truncate(offset + 40 * 64 * 64 - 1)
    with pytest.raises(BadInput, match="plane 40 of the ImageJ stack"):
        check(path)


def test_millions_of_tiles_take_no_time(tmp_path: Path) -> None:
    path, count = tmp_path / "a.btf", 2_000_000
    header = b"II+\0" + struct.pack("<HHQ", 8, 0, 16)
    entries = [(256, 4, 1, 2000 * 16), (257, 4, 1, 1000 * 16), (322, 3, 1, 16), (323, 3, 1, 16)]
    start = 16 + 8 + 6 * 20 + 8
    entries += [(324, 16, count, start), (325, 4, count, start + 8 * count)]
    body = struct.pack("<Q", 6) + b"".join(struct.pack("<HHQQ", *entry) for entry in entries) + bytes(8)
    offsets, counts = np.full(count, 16, "<u8"), np.full(count, 8, "<u4")
    path.write_bytes(header + body + offsets.tobytes() + counts.tobytes())
    assert check(path).directories == 1
    offsets[-1] = 1 << 63
    path.write_bytes(header + body + offsets.tobytes() + counts.tobytes())
    with pytest.raises(BadInput, match="tile 1999999 of directory 0"):
        check(path)


def test_an_ndpi_beyond_4_gib_has_wide_offsets(tmp_path: Path) -> None:
    """A sparse file laid out as NDPI is: 64-bit first and next offsets, high halves of values behind a directory."""
    path, at, data = tmp_path / "a.ndpi", (1 << 32) + 4096, (1 << 32) + 64
    entries = [(256, 4, 1, 64), (257, 4, 1, 48), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 64),
               (277, 3, 1, 1), (278, 4, 1, 48), (279, 4, 1, 64 * 48), (65420, 4, 1, 1)]  # fmt: skip
    raw = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    high = struct.pack(f"<{len(entries)}I", *(1 if entry[0] == 273 else 0 for entry in entries))
    with path.open("wb") as file:
        file.write(b"II*\0" + struct.pack("<Q", at))
        file.seek(data)
        file.write(b"\x55" * 64 * 48)
        file.seek(at)
        file.write(raw + struct.pack("<Q", 0) + high)
    assert check(path).directories == 1
    assert pages(path)[0].ndpi
    with tifffile.TiffFile(path) as judge:  # that the layout is NDPI's, and not only ours
        assert judge.pages[0].shape == (48, 64) and len(judge.pages) == 1


def test_pages_say_what_tifffile_says(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    texts = [(271, 2, 0, "maker", True), (272, 2, 0, "model", True)]
    resolution = {"resolution": (25000, 12500), "resolutionunit": 3}
    options = {"description": "d" * 5000, "software": "writer", "metadata": None, "extratags": texts}
    tiff(path, tile=(32, 16), compression="lzw", **resolution, **options)
    (page,) = pages(path)
    assert (page.width_px, page.height_px, page.tile_width_px, page.tile_height_px) == (80, 96, 16, 32)
    assert (page.compression, page.photometric, page.samples, page.bits, page.sample_format) == (5, 2, 3, 8, 1)
    assert page.description == "d" * 4096
    assert (page.make, page.model, page.software) == ("maker", "model", "writer")
    assert page.resolution == (25000, 12500) and page.resolution_unit == 3


# CZI


def czi_positions(path: Path) -> tuple[int, int, int]:
    directory, metadata, _, attachments = struct.unpack_from("<qqiq", path.read_bytes(), 32 + 52)
    return directory, metadata, attachments


def overwrite(path: Path, at: int, raw: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(raw)


def test_czi_facts_come_from_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "a.czi"
    sample_czi(path, pixels(), (-40, 10), (40, 10), (-40, 106))
    facts = check(path).czi
    assert facts is not None
    assert (facts.x_px, facts.y_px, facts.width_px, facts.height_px) == (-40, 10, 160, 192)
    assert (facts.xml_width_px, facts.xml_height_px) in ((160, 192), (None, None))
    assert (facts.tile_width_px, facts.tile_height_px, facts.pyramid_subblocks) == (80, 96, 0)
    assert sorted(facts.subblocks[:, 1:5].tolist()) == [[-40, 10, 80, 96], [-40, 106, 80, 96], [40, 10, 80, 96]]
    assert facts.covered is False  # the fourth corner is a hole
    assert facts.scenes[0].covered_px == 3 * 80 * 96


@pytest.mark.parametrize(
    ("at", "raw", "what"),
    [
        (32 + 52, bytes(8), "no subblock directory yet"),
        (32 + 68, b"\xff\xff\0\0", "marked as being written"),
        (32 + 48, b"\x01\0\0\0", "part 1 of a CZI"),
        (32 + 52, struct.pack("<q", 32), "does not begin with ZISRAWDIRECTORY"),
        (32 + 60, struct.pack("<q", 1 << 40), "the metadata ends at byte"),
    ],
)
def test_czi_header_damage(tmp_path: Path, at: int, raw: bytes, what: str) -> None:
    path = tmp_path / "a.czi"
    sample_czi(path, pixels())
    overwrite(path, at, raw)
    with pytest.raises(BadInput, match=what):
        check(path)


def test_czi_subblock_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.czi"
    sample_czi(path, pixels(), (0, 0), (80, 0))
    whole = path.read_bytes()
    second = whole.find(b"ZISRAWSUBBLOCK", whole.find(b"ZISRAWSUBBLOCK") + 1)
    for at, raw, what in (
        (second, bytes(16), "subblock 1 at byte"),
        (second + 24, struct.pack("<q", 1 << 40), "cut short: subblock 1"),
        (second + 32 + 8, struct.pack("<q", 100), "100 bytes of pixels where its size takes"),
        (second + 32 + 8, struct.pack("<q", 1 << 33), "claims 8589934592 bytes"),
    ):
        path.write_bytes(whole)
        overwrite(path, at, raw)
        with pytest.raises(BadInput, match=what):
            check(path)


def with_xml(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Replaces the XML by one of the same length or shorter."""
    raw = bytearray(path.read_bytes())
    at = czi_positions(path)[1] + 32
    (length,) = struct.unpack_from("<i", raw, at)
    xml = change(bytes(raw[at + 256 : at + 256 + length]))
    assert len(xml) <= length
    raw[at + 256 : at + 256 + length] = xml.ljust(length)
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("xml", "what"),
    [
        (b"<ImageDocument><Metadata><Information>", "before the closing tag"),
        (b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "document type"),
        (b"no xml", "not XML|closing tag"),
        (
            b"<a><Information><Image><SizeX>160</SizeX></Image></Information></a>",
            "160 pixels wide, its subblocks are 80",
        ),
        (b"<a><Information><Image><SizeY>48</SizeY></Image></Information></a>", "48 pixels high, its subblocks are 96"),
    ],
)
def test_czi_metadata_damage(tmp_path: Path, xml: bytes, what: str) -> None:
    path = tmp_path / "a.czi"
    sample_czi(path, pixels())
    with_xml(path, lambda _: xml)
    with pytest.raises(BadInput, match=what):
        check(path)


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 15), st.integers(1, 15)),
        min_size=1, max_size=12,
    )
)  # fmt: skip
def test_covered_area_is_that_of_a_painted_mask(tiles: list[tuple[int, int, int, int]]) -> None:
    mask = np.zeros((80, 80), bool)
    for x, y, width, height in tiles:
        mask[y + 30 : y + 30 + height, x + 30 : x + 30 + width] = True
    assert covered_px(np.array(tiles, np.int64)) == int(mask.sum())


# DICOM


def test_dicom_facts(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    sample_dicom(path)
    facts = check(path).dicom
    assert facts is not None
    assert (facts.series_instance_uid, facts.frames, facts.columns_px, facts.rows_px) == ("1.2.3.4", 4, 32, 32)
    assert (facts.matrix_width_px, facts.matrix_height_px) == (60, 50)
    assert facts.image_type == r"ORIGINAL\PRIMARY\VOLUME\NONE"


@pytest.mark.parametrize(
    ("native", "more", "what"),
    [
        (False, {"frames": 5}, "4 of 5 frames"),
        (True, {"frames": 5}, "where its size takes"),
        (False, {"TotalPixelMatrixRows": 70}, "4 frames where its total pixel matrix takes 6"),
        (False, {"Rows": 0}, "no Rows or Columns"),
    ],
)
def test_dicom_contradictions(tmp_path: Path, native: bool, more: dict[str, Any], what: str) -> None:
    path = tmp_path / "a.dcm"
    sample_dicom(path, native=native, **more)
    with pytest.raises(BadInput, match=what):
        check(path)


@pytest.mark.parametrize("syntax", [pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRBigEndian])
def test_dicom_in_its_other_codings(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    path = tmp_path / "a.dcm"
    sample_dicom(path, native=True)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    implicit = syntax == pydicom.uid.ImplicitVRLittleEndian
    pydicom.dcmwrite(path, data, implicit_vr=implicit, little_endian=implicit)
    facts = check(path).dicom
    assert facts is not None and facts.matrix_width_px == 60
    if implicit:  # and without preamble and group 2
        raw = path.read_bytes()
        at = raw.index(b"\x08\x00\x08\x00")
        path.write_bytes(raw[at:])
        assert check(path).container == "dicom"


# pictures


def test_jpeg_trailers_and_thumbnails(tmp_path: Path) -> None:
    path, small = tmp_path / "a.jpg", tmp_path / "small.jpg"
    Image.fromarray(pixels(16, 16)).save(small)
    exif = b"Exif\0\0" + small.read_bytes()
    save(path)
    raw = path.read_bytes()
    raw = raw[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + raw[2:]
    path.write_bytes(raw + b"\0" * 50 + b"camera trailer")
    assert check(path).container == "jpeg"
    path.write_bytes(raw[: len(raw) // 2])  # the thumbnail's end mark is there, the picture's is not
    with pytest.raises(BadInput, match="cut short"):
        check(path)


def test_endless_headers_are_refused_at_once(tmp_path: Path) -> None:
    path, empty = tmp_path / "a.bin", b"\0\0\0\0tEXt" + struct.pack(">I", zlib.crc32(b"tEXt"))
    for raw in (b"\xff\xd8" + b"\xff" * 20_000_000, b"\xff\xd8" + b"\xff\xe0\0\2" * 5_000_000):
        path.write_bytes(raw)
        with pytest.raises(BadInput):
            check(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + empty * 500_000)
    with pytest.raises(BadInput, match="all but empty"):
        check(path)


def test_png_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save(path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BadInput, match="checksum"):
        check(path)
    end = b"IEND"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 0) + end + struct.pack(">I", zlib.crc32(end)))
    with pytest.raises(BadInput, match="without an image"):
        check(path)


def test_a_decoder_may_look_at_the_checksums_of_image_data(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save(path)
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 1
    path.write_bytes(middle)
    assert check(path, sums=False).container == "png"
    size = bytearray(whole)
    size[20] ^= 1  # in IHDR
    no_header = whole[:8] + whole[33:]
    for damaged in (bytes(size), no_header, whole[:8] + whole[-12:], whole[:-1], bytes(middle) + b"behind the end"):
        path.write_bytes(damaged)
        with pytest.raises(BadInput):
            check(path, sums=False)
    path.write_bytes(whole + b"behind the end")
    assert check(path, sums=False).container == "png"


@pytest.mark.parametrize("shape", [(0,), (1,), (50,), (0, 4), (1, 4), (300, 2), (300, 4)])
def test_distinct_is_numpys_unique(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(5).integers(-4, 4, shape, np.int64)
    wanted = np.unique(values, axis=0)
    assert np.array_equal(distinct(values), wanted) and distinct(values).dtype == wanted.dtype
