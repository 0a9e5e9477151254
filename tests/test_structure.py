"""Containers that are whole pass; cut ones are refused wherever a pixel could be lost; garbage never does more."""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pydicom.encaps
import pydicom.uid
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pylibCZIrw import czi as pylibczi

from mimic.errors import BadInput
from mimic.structure import Facts, check, container
from mimic.structure.coverage import covered_px
from mimic.structure.ordinary import ordinary
from mimic.structure.tiff import pages

CUTS = 64
HEADS = (
    *(b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0", b"ZISRAWFILE", b"\0" * 128 + b"DICM"),
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\0\0\0WEBP", b"BM", b"\0\0\0\x0cjP  \r\n\x87\n"),
    *(b"\xff\x4f\xff\x51", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"\xda\xce\xbe\x0a", b""),
)


def pixels(height: int = 96, width: int = 80) -> np.ndarray:
    return np.random.default_rng(5).integers(1, 255, (height, width, 3)).astype(np.uint8)


def sample_czi(path: Path, data: np.ndarray, *places: tuple[int, int]) -> None:
    """A mosaic of one picture at ``places`` (x, y), written by ZEISS' own library."""
    with pylibczi.create_czi(str(path)) as file:
        for place in places or ((0, 0),):
            file.write(data=np.ascontiguousarray(data[..., ::-1]), location=place)
        file.write_metadata(document_name="sample", scale_x=4e-7, scale_y=4e-7)


def sample_dicom(path: Path, *, frames: int = 4, native: bool = False, **more: Any) -> None:
    """A 2 x 2 tiled whole-slide instance by pydicom."""
    uid = pydicom.uid.generate_uid()
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian if native else pydicom.uid.JPEG2000Lossless
    data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = meta.MediaStorageSOPClassUID, uid, "1.2.3.4"
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.Rows = data.Columns = 32
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = 60, 50
    data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit = 3, 8, 8, 7
    data.PixelRepresentation, data.PlanarConfiguration, data.PhotometricInterpretation = 0, 0, "RGB"
    data.NumberOfFrames, data.DimensionOrganizationType = frames, "TILED_FULL"
    optical = pydicom.dataset.Dataset()
    optical.OpticalPathIdentifier = "1"
    data.OpticalPathSequence = pydicom.sequence.Sequence([optical])
    data.OpticalPathSequence.is_undefined_length = True
    for name, value in more.items():
        setattr(data, name, value)
    tiles = [pixels(32, 32) for _ in range(4)]
    if native:
        data.PixelData = np.stack(tiles).tobytes()
    else:
        coded = [imagecodecs.jpeg2k_encode(tile, reversible=True, level=0, codecformat="j2k") for tile in tiles]
        data.PixelData = pydicom.encaps.encapsulate(coded)
        data["PixelData"].is_undefined_length = True
    data.save_as(path, enforce_file_format=True)


def save(path: Path, **options: Any) -> None:
    Image.fromarray(pixels()).save(path, **options)


def jp2(path: Path) -> None:
    path.write_bytes(imagecodecs.jpeg2k_encode(pixels(), reversible=True, level=0, codecformat=path.suffix[1:]))


def tiff(path: Path, **options: Any) -> None:
    tifffile.imwrite(path, pixels(), photometric="rgb", **options)


def pyramid(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        file.write(pixels(), photometric="rgb", tile=(32, 32), subifds=1, compression="lzw")
        file.write(pixels()[::2, ::2], photometric="rgb", tile=(32, 32), subfiletype=1, compression="lzw")


def separate(path: Path) -> None:
    tifffile.imwrite(path, np.moveaxis(pixels(), 2, 0), photometric="rgb", planarconfig="separate", rowsperstrip=32)


def same_planes(path: Path) -> bool:
    return np.array_equal(np.moveaxis(tifffile.imread(path), 0, 2), pixels())


def same_tiff(path: Path) -> bool:
    with tifffile.TiffFile(path) as file:
        return np.array_equal(file.pages[0].asarray(), pixels())


def same_picture(path: Path) -> bool:
    with Image.open(path) as picture:
        return np.array_equal(np.asarray(picture.convert("RGB")), pixels())


def same_jpeg(path: Path) -> bool:
    with Image.open(path) as picture:
        return bool(np.asarray(picture).shape == (96, 80, 3))  # Pillow raises for a cut one


def same_czi(path: Path) -> bool:
    with pylibczi.open_czi(str(path)) as file:
        return np.array_equal(file.read()[..., ::-1], pixels())


def same_dicom(path: Path) -> bool:
    return len(pydicom.dcmread(path).pixel_array) == 4


SAMPLES: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], bool]]] = {
    "strips": ("tif", lambda path: tiff(path, rowsperstrip=16), same_tiff),
    "tiles": ("tif", lambda path: tiff(path, tile=(32, 32), compression="deflate"), same_tiff),
    "big endian": ("tif", lambda path: tiff(path, byteorder=">", tile=(32, 32)), same_tiff),
    "bigtiff": ("btf", lambda path: tiff(path, bigtiff=True, tile=(32, 32), compression="lzw"), same_tiff),
    "big endian bigtiff": ("tif", lambda path: tiff(path, bigtiff=True, byteorder=">", rowsperstrip=7), same_tiff),
    "subifds": ("tif", pyramid, same_tiff),
    "planes": ("tif", separate, same_planes),
    "png": ("png", save, same_picture),
    "bmp": ("bmp", save, same_picture),
    "webp": ("webp", lambda path: save(path, lossless=True), same_picture),
    "jpeg": ("jpg", lambda path: save(path, quality=90), same_jpeg),
    "progressive": ("jpg", lambda path: save(path, quality=90, progressive=True), same_jpeg),
    "jp2": ("jp2", jp2, same_picture),
    "j2k": ("j2k", jp2, same_picture),
    "czi": ("czi", lambda path: sample_czi(path, pixels()), same_czi),
    "dicom": ("dcm", sample_dicom, same_dicom),
    "native dicom": ("dcm", lambda path: sample_dicom(path, native=True), same_dicom),
}


@pytest.fixture(params=SAMPLES)
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Callable[[Path], bool]]:
    suffix, write, same = SAMPLES[request.param]
    path = tmp_path / f"a.{suffix}"
    write(path)
    return path, same


def test_whole_samples_pass(sample: tuple[Path, Callable[[Path], bool]]) -> None:
    path, same = sample
    facts = check(path)
    assert facts.container == container(path) is not None and facts.size_bytes == path.stat().st_size
    assert facts.missing_tiles == 0 and same(path)


def test_a_cut_passes_only_when_no_pixel_is_lost(sample: tuple[Path, Callable[[Path], bool]]) -> None:
    path, same = sample
    size = path.stat().st_size
    for cut in sorted({size * part // CUTS for part in range(CUTS)} | {size - 1, size - 2, size - 7}, reverse=True):
        os.truncate(path, cut)
        try:
            check(path)
        except BadInput as error:
            assert str(path) in str(error) and error.remedy
        else:
            assert same(path), f"{cut} of {size} bytes"


def test_random_mutations_are_refused_or_pass(sample: tuple[Path, Callable[[Path], bool]]) -> None:
    path, _ = sample
    whole = path.read_bytes()
    dice = random.Random(11)
    for _round in range(500):
        damaged = bytearray(whole)
        for _each in range(dice.randint(1, 6)):
            span = dice.choice((64, min(1024, len(whole)), len(whole)))
            at = dice.randrange(span)
            damaged[dice.choice((at, len(whole) - 1 - at))] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        path.write_bytes(damaged)
        try:
            check(path)
            ordinary(path)
        except BadInput:
            continue


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from(HEADS),
    body=st.binary(max_size=600),
)
def test_any_bytes_are_refused_or_pass(tmp_path: Path, head: bytes, body: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(head + body)
    try:
        assert isinstance(check(path), Facts)
    except BadInput as error:
        assert error.path == path and error.remedy


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.czi", b"hello, this is text\n" * 9, "is named .czi but holds plain text"),
        ("a.svs", b"\x01\xff\x17" * 50, "is named .svs but holds unknown bytes"),
        ("a.ndpi", b"\0" * 2000, "is named .ndpi but holds only zero bytes"),
        ("a.dcm", b"no dicom here, really" * 9, "is named .dcm but holds plain text"),
        ("a.png", b"\x89PN", "is named .png but holds unknown bytes"),
        ("a.czi", b"\xff\xd8\xff\xe0", "is named .czi but holds a JPEG picture"),
        ("a.nd2", b"text", "is named .nd2 but holds plain text"),
        ("a.tif", b"", "the file is empty"),
    ],
)
def test_a_name_is_a_promise(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput, match=what):
        check(path)


def test_a_picture_under_another_pictures_name_passes(tmp_path: Path) -> None:
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", format="PNG")
    assert check(tmp_path / "a.jpg").container == "png"


def test_places_that_are_no_file(tmp_path: Path) -> None:
    for path, what in (
        (tmp_path / "no.svs", "no such file"),
        (tmp_path, "directory"),
        (Path("a\0b"), "no such file|cannot be opened"),
    ):
        with pytest.raises(BadInput, match=what):
            check(path)
    os.mkfifo(tmp_path / "pipe.tif")
    with pytest.raises(BadInput, match="not a regular file"):
        check(tmp_path / "pipe.tif")
    with pytest.raises(BadInput):
        check(tmp_path / ("x" * 300))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    tiff(path)

    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)  # the tests run as root, who may read everything
    with pytest.raises(BadInput, match="permission denied"):
        check(path)


def test_an_unknown_container_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "a.lif"
    path.write_bytes(b"\x70\0\0\0whatever")
    assert (check(path).container, check(path).size_bytes) == (None, 12)


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


@settings(max_examples=150, deadline=None)
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


# the corpus


def corpus() -> Path:
    folder = os.environ.get("MIMIC_CORPUS")
    if not folder:
        pytest.skip("MIMIC_CORPUS is not set")
    return Path(folder)


def corpus_files() -> list[Path]:
    folders = ("svs", "czi", "dicom", "ndpi", "ometiff", "nd2", "oib", "rgb")
    files = [path for name in folders for path in sorted((corpus() / name).rglob("*")) if path.is_file()]
    assert len(files) == 19
    return files


def test_corpus_files_pass_and_broken_ones_do_not() -> None:
    for path in corpus_files():
        facts = check(path)
        assert facts.missing_tiles == 0 and (facts.container is not None)
    for path, what in (("histolab_broken.svs", "is named .svs but"), ("CMU_truncated_60pct.svs", "cut short")):
        with pytest.raises(BadInput, match=what):
            check(corpus() / "broken" / path)


def test_corpus_facts() -> None:
    eight = check(corpus() / "czi" / "he_8k_jxr_pyramid_label_20x.czi").czi
    assert eight is not None and eight.covered
    assert (eight.width_px, eight.height_px, eight.tile_width_px, eight.tile_height_px) == (8192, 6144, 2048, 1536)
    assert (eight.xml_width_px, eight.xml_height_px, len(eight.subblocks)) == (8192, 6144, 16)
    scenes = check(corpus() / "czi" / "two_scenes_u16_z2.czi").czi
    assert scenes is not None and [scene.index for scene in scenes.scenes] == [0, 1]
    series = {check(path).dicom for path in (corpus() / "dicom" / "cmu_small_region_series").iterdir()}
    assert len({facts.series_instance_uid for facts in series if facts}) == 1 and len(series) == 8
    assert check(corpus() / "svs" / "CMU-1-Small-Region.svs").directories == 4


def test_corpus_cuts_pass_only_in_padding(tmp_path: Path) -> None:
    shipped = Path(__file__).parent / "data" / "sample_40x.czi"
    for source in [shipped, *corpus_files()]:
        whole = source.read_bytes()
        path = tmp_path / f"a{source.suffix}"
        path.write_bytes(whole)
        for part in reversed(range(1, CUTS)):
            cut = len(whole) * part // CUTS
            os.truncate(path, cut)
            try:
                check(path)
            except BadInput:
                continue
            assert not whole[cut:].strip(b"\0"), f"{source} cut at {cut} passes"


def test_the_shipped_sample_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = (Path(__file__).parent / "data" / "sample_40x.czi").read_bytes()
    path = tmp_path / "a.czi"
    path.write_bytes(whole)
    facts = check(path).czi
    assert facts is not None and facts.covered and (facts.width_px, facts.height_px) == (3072, 2304)
    for part in reversed(range(CUTS)):
        os.truncate(path, len(whole) * part // CUTS)
        with pytest.raises(BadInput):
            check(path)
