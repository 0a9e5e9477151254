"""Compressed frames of DICOM whole-slide series as pydicom wrote them: what may be copied, and the very bytes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import generate_frames

from mimic.dicomfile import CannotCopyError, locate, read
from mimic.errors import BadInput, MimicError
from mimic.model import Coded, Slide
from mimic.sources import dicom
from tests.coded_samples import as_slide, dicom_frames, write_dicom
from tools.make_samples import histology

SIZE, TILE_PX = (600, 420), 256
Frames = dict[tuple[int, int], bytes]


@pytest.fixture(scope="module")
def frames() -> Frames:
    """3 x 2 JPEG tiles, YCbCr 4:2:0."""
    return dicom_frames(histology(*SIZE), TILE_PX)


def described(slide: Slide) -> Coded:
    return dicom.coded(slide, slide.images[0])


def copied(slide: Slide, found: Coded) -> dict[tuple[int, int], bytes | None]:
    """All tiles of level 0 by (column, row)."""
    size = found.levels[0]
    with closing(dicom.open_tiles(slide, slide.images[0], found)) as tiles:
        columns, rows = -(-size.width_px // found.tile_px), -(-size.height_px // found.tile_px)
        return {(column, row): tiles.tile(0, column, row) for row in range(rows) for column in range(columns)}


def even(data: bytes) -> bytes:
    """A frame as it stands in a file: padded to an even length."""
    return data + b"\0" * (len(data) % 2)


def slide_of(path: Path, *others: Path, sizes: tuple[tuple[int, int], ...] = (SIZE,)) -> Slide:
    return as_slide(path, sizes, "DICOM", path, *others)


LAYOUTS: dict[str, dict[str, Any]] = {
    "basic offset table": {},
    "extended offset table": {"table": "extended"},
    "no offset table": {"table": "none"},
    "fragments": {"fragments": 3},
    "sparse": {"sparse": True},
    "sparse, extended": {"sparse": True, "table": "extended"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frames_are_given_byte_by_byte(layout: str, frames: Frames, tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    order = dict(reversed(frames.items())) if "sparse" in layout else frames
    write_dicom(path, SIZE, order, **LAYOUTS[layout])
    slide = slide_of(path)
    found = described(slide)
    assert found.reason is None and found.missing == 0
    assert (found.compression, found.photometric, found.subsampling, found.quality) == (7, 6, (2, 2), 85)
    tiles = copied(slide, found)
    assert tiles == {place: even(data) for place, data in frames.items()}
    stored = pydicom.dcmread(path)
    outside = generate_frames(stored.PixelData, number_of_frames=len(frames))  # what pydicom takes for frames
    assert [tiles[place] for place in order] == [even(frame) for frame in outside]


def test_places_without_a_frame_are_missing_and_counted(frames: Frames, tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    left = {place: data for place, data in frames.items() if place not in ((1, 0), (2, 1))}
    write_dicom(path, SIZE, left, sparse=True)
    slide = slide_of(path)
    found = described(slide)
    assert found.reason is None and found.missing == 2
    tiles = copied(slide, found)
    assert {place for place, data in tiles.items() if data is None} == {(1, 0), (2, 1)}


def test_empty_frame_is_missing(frames: Frames, tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_dicom(path, SIZE, {**frames, (2, 0): b""}, table="none")
    slide = slide_of(path)
    found = described(slide)
    assert found.missing == 1 and copied(slide, found)[2, 0] is None


def test_concatenation_is_one_picture(frames: Frames, tmp_path: Path) -> None:
    items = list(frames.items())
    write_dicom(tmp_path / "b.dcm", SIZE, dict(items[4:]), part=("1.2.9", 2, 2, 4))
    write_dicom(tmp_path / "a.dcm", SIZE, dict(items[:4]), part=("1.2.9", 1, 2, 0), table="extended")
    write_dicom(tmp_path / "other.dcm", SIZE, frames, series="1.2.3.9")
    (tmp_path / "notes.txt").write_text("nothing")
    listed = slide_of(tmp_path / "b.dcm")  # Bio-Formats lists one part only
    slide = slide_of(*sorted(dicom.members(listed), reverse=True))
    assert [path.name for path in slide.files] == ["b.dcm", "a.dcm"]
    found = described(slide)
    assert found.reason is None
    assert copied(slide, found) == {place: even(data) for place, data in frames.items()}
    assert "concatenation" in str(dicom.misread(slide, slide.images[0]))


def test_part_that_is_not_there_is_bad_input(frames: Frames, tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", SIZE, dict(list(frames.items())[:4]), part=("1.2.9", 1, 2, 0))
    with pytest.raises(BadInput, match="2 of its frames are in files that are not there"):
        described(slide_of(tmp_path / "a.dcm"))


def test_fragmented_frames_are_known_to_be_misread(frames: Frames, tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", SIZE, frames, fragments=3)
    write_dicom(tmp_path / "b.dcm", SIZE, frames)
    fragmented, usual = slide_of(tmp_path / "a.dcm"), slide_of(tmp_path / "b.dcm")
    assert "fragments" in str(dicom.misread(fragmented, fragmented.images[0]))
    assert dicom.misread(usual, usual.images[0]) is None


def test_levels_in_instances_of_their_own(frames: Frames, tmp_path: Path) -> None:
    low = dicom_frames(histology(300, 210), TILE_PX)
    write_dicom(tmp_path / "a.dcm", SIZE, frames)
    write_dicom(tmp_path / "b.dcm", (300, 210), low)
    write_dicom(tmp_path / "c.dcm", (150, 105), dicom_frames(histology(150, 105), TILE_PX, codec="j2k"), codec="j2k")
    sizes = (SIZE, (300, 210), (150, 105))
    slide = slide_of(*(tmp_path / name for name in ("a.dcm", "b.dcm", "c.dcm")), sizes=sizes)
    found = described(slide)
    assert [(level.width_px, level.height_px) for level in found.levels] == [SIZE, (300, 210)]  # c is JPEG 2000
    with closing(dicom.open_tiles(slide, slide.images[0], found)) as tiles:
        assert tiles.tile(1, 1, 0) == even(low[1, 0])


def test_jpeg_2000_is_told_as_aperios(tmp_path: Path) -> None:
    coded = dicom_frames(histology(*SIZE), TILE_PX, codec="j2k")
    write_dicom(tmp_path / "a.dcm", SIZE, coded, codec="j2k")
    found = described(slide_of(tmp_path / "a.dcm"))
    assert (found.compression, found.photometric, found.quality, found.reason) == (33005, 2, None, None)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two focal planes": ({"TotalPixelMatrixFocalPlanes": 2}, "focal planes"),
    "16 bits": ({"BitsAllocated": 16}, "not 8-bit"),
    "contradiction": ({"PhotometricInterpretation": "MONOCHROME2"}, "contradict"),
    "label": ({"ImageType": ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]}, "no instance"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_copied_has_its_reason(name: str, frames: Frames, tmp_path: Path) -> None:
    changes, words = REFUSED[name]
    write_dicom(tmp_path / "a.dcm", SIZE, frames, **changes)
    assert words in str(described(slide_of(tmp_path / "a.dcm")).reason)


def test_frames_off_the_grid_are_not_copied(frames: Frames, tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_dicom(path, SIZE, frames, sparse=True)
    stored = pydicom.dcmread(path)
    place = stored.PerFrameFunctionalGroupsSequence[2].PlanePositionSlideSequence[0]
    place.ColumnPositionInTotalImagePixelMatrix += 8
    pydicom.dcmwrite(path, stored)
    assert described(slide_of(path)).reason == "its frames do not lie on a grid"


def test_offset_table_that_does_not_fit_is_not_followed(frames: Frames, tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_dicom(path, SIZE, frames)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"\xe0\x7f\x10\x00OB") + 12 + 8
    raw[at + 4] ^= 2  # the second offset
    path.write_bytes(raw)
    assert "offset table" in str(described(slide_of(path)).reason)


def test_corpus_series_frames(corpus_file: Callable[[str], Path]) -> None:
    folder = corpus_file("dicom/cmu_small_region_series")
    files = sorted(folder.iterdir())
    sizes = ((2220, 2967), (1110, 1484), (555, 742), (278, 371), (139, 186))
    slide = as_slide(files[0], sizes, "DICOM", *files)
    found = described(slide)
    assert (found.photometric, found.quality, found.tile_px) == (2, 30, 240)
    assert len(found.levels) == 1  # wsidicomizer's lower levels are YCbCr
    base = next(each for each in map(pydicom.dcmread, files) if each.TotalPixelMatrixColumns == 2220)
    outside = list(generate_frames(base.PixelData, number_of_frames=130))
    assert list(copied(slide, found).values()) == outside


@pytest.fixture(scope="module")
def sound(frames: Frames, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse instance, whole."""
    path = tmp_path_factory.mktemp("sound") / "whole.dcm"
    write_dicom(path, SIZE, frames, sparse=True)
    return path


@settings(max_examples=150)
@given(at=st.floats(0, 1), value=st.binary(min_size=1, max_size=6), cut=st.integers(0, 400))
def test_damage_is_a_mimic_error_or_does_no_harm(at: float, value: bytes, cut: int, sound: Path) -> None:
    path, raw = sound.with_name("damaged.dcm"), sound.read_bytes()
    start = int(at * (raw.index(b"\xe0\x7f\x10\x00OB") + 60))  # headers, offset table, first fragment
    damaged = raw[:start] + value + raw[start + len(value) :]
    path.write_bytes(damaged[: len(damaged) - cut])
    try:
        instance = read(path)
        if instance is not None:
            locate(instance)
        described(slide_of(path))
    except (MimicError, CannotCopyError):
        return
