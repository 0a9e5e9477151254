"""Facts and pixels of DICOM whole-slide series without Java: Bio-Formats' own, field by field; any odd one is its."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

import mimic
from mimic import dicomslide, missing, opinion, structure
from mimic.errors import BadInput, MimicError, Unsupported
from mimic.model import Box, Slide
from mimic.probe import probe
from mimic.settings import load
from mimic.sources import bioformats, choose, openslide
from mimic.structure import dicom
from mimic.structure.reader import Input
from tests.coded_samples import dicom_frames, write_dicom
from tests.dicom_samples import MOMENT, SIZES, change, write_instance, write_series
from tools.make_samples import Sample, histology

SETTINGS = load()
SERIES, SINGLE = "dicom/cmu_small_region_series", "dicom/multi_frame_jpeg2000_camelyon_challenge_image.dcm"
KINDS = ("YBR_FULL_422", "RGB", "j2k", "native")


def compare_facts(path: Path) -> Slide:
    """All facts of both ways, those about copied tiles and the colour profile with them."""
    found, theirs = probe(path, SETTINGS), probe(path, SETTINGS, source="bioformats")
    assert found.source == "openslide"
    for field in fields(Slide):
        if field.name != "source":
            assert getattr(found, field.name) == getattr(theirs, field.name), field.name
    return found


def compare_pixels(path: Path, *, most: int = 0) -> None:
    """Scan, label and macro in both ways."""
    slide = openslide.probe(path, SETTINGS)
    for image in slide.images:
        if image.role == "thumbnail":
            continue
        size = image.levels[0]
        box = Box(0, 0, min(size.width_px, 1500), min(size.height_px, 1500))
        mine = openslide.Planes(slide, image, threads=1, settings=SETTINGS)
        other = bioformats.Planes(replace(slide, source="bioformats"), image, threads=1, settings=SETTINGS)
        with closing(mine), closing(other):
            difference = np.abs(mine.read(box).astype(int) - other.plane(box, 0, z=0, t=0))
        assert difference.max() <= (most if image.role == "scan" else 0), image.role


def told(path: Path) -> Slide | str:
    return dicomslide.told(path, source="bioformats")


# --- the same facts, the same pixels -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SERIES, SINGLE])
def test_corpus_gives_bioformats_facts_and_pixels(name: str, corpus_file: Callable[[str], Path]) -> None:
    path = corpus_file(name)
    slide = compare_facts(path)
    compare_pixels(slide.path)
    assert {image.role for image in slide.images} == (
        {"scan", "thumbnail", "macro", "label"} if path.is_dir() else {"scan"}
    )


def test_wsidicomizers_series_gives_bioformats_facts_and_pixels(sample: Callable[[str], Sample]) -> None:
    slide = compare_facts(sample("dicom").path)
    compare_pixels(slide.path)
    assert len(slide.images[0].levels) > 1 and slide.icc_profile is not None


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_written_series_give_bioformats_facts_and_pixels(kind: str, sparse: bool, tmp_path: Path) -> None:
    """Of lossy JPEG 2000 Bio-Formats' own decoder rounds otherwise than OpenJPEG, by two grey levels at most."""
    path = write_series(tmp_path / "a", kind, sparse=sparse)
    slide = compare_facts(path)
    assert [(level.width_px, level.height_px) for level in slide.images[0].levels] == list(SIZES)
    assert [image.role for image in slide.images] == ["scan", "thumbnail", "macro", "label"] and len(slide.files) == 6
    assert slide.images[0].scale is not None and slide.images[0].scale.x_um == 0.25
    compare_pixels(path, most=2 if kind == "j2k" else 0)
    assert (slide.coded is not None and slide.coded.reason is None) == (kind != "native")


def test_lossy_jpeg_2000_is_nearer_to_the_truth_than_bioformats(tmp_path: Path) -> None:
    path = write_series(tmp_path / "a", "j2k")
    slide = openslide.probe(path, SETTINGS)
    mine = openslide.Planes(slide, slide.images[0], threads=1, settings=SETTINGS)
    theirs = bioformats.Planes(slide, slide.images[0], threads=1, settings=SETTINGS)
    box, truth = Box(0, 0, *SIZES[0]), histology(*SIZES[0]).astype(int)
    with closing(mine), closing(theirs):
        own, other = mine.read(box).astype(int), theirs.plane(box, 0, z=0, t=0).astype(int)
    assert np.square(own - truth).mean() < np.square(other - truth).mean()
    decoded = list(opinion.tiles(path))
    assert len(decoded) == 6
    for part, pixels in decoded:
        rows = slice(part.y_px, part.y_px + part.height_px)
        assert np.array_equal(own[rows, part.x_px : part.x_px + part.width_px], pixels)


def spaced(*spacing: str) -> Callable[[Path], None]:
    def edit(data: Dataset) -> None:
        measures = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.PixelSpacing = list(spacing)

    return lambda folder: change(folder / "0.dcm", edit)


def everywhere(**elements: Any) -> Callable[[Path], None]:
    """Elements of all instances; None takes one away."""

    def made(folder: Path) -> None:
        for path in sorted(folder.glob("*.dcm")):
            change(path, lambda data: put(data, elements))

    return made


def only(name: str, **elements: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / f"{name}.dcm", lambda data: put(data, elements))


def put(data: Dataset, elements: dict[str, Any]) -> None:
    for keyword, value in elements.items():
        if value is None:
            del data[keyword]
        else:
            setattr(data, keyword, value)


def another(**more: Any) -> Callable[[Path], None]:
    """An instance of another series in the same folder."""
    elements: dict[str, Any] = {"series": "1.2.3.9", **more}
    return lambda folder: write_instance(folder / "other.dcm", histology(300, 200), **elements)


def beside(name: str, data: bytes) -> Callable[[Path], None]:
    def made(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return made


def alone(folder: Path) -> None:
    for path in folder.glob("*.dcm"):
        if path.name != "0.dcm":
            path.unlink()


def alone_undated(folder: Path) -> None:
    alone(folder)
    only("0", AcquisitionDateTime=None)(folder)


def twice(folder: Path) -> None:
    shutil.copy(folder / "1.dcm", folder / "copy.dcm")


def specimen(data: Dataset, name: str) -> None:
    data.SpecimenDescriptionSequence[0].SpecimenIdentifier = name


ORDINARY: dict[str, Callable[[Path], None]] = {
    "pixels that are not square": spaced("0.000251", "0.00025"),
    "spacing with an exponent": spaced("2.51e-4", "2.5E-4"),
    "a print resolution": spaced("0.0846667", "0.0846667"),
    "exactly one micrometre": spaced("0.001", "0.001"),
    "coarser than any scan": spaced("0.5", "0.5"),
    "a day alone": everywhere(AcquisitionDateTime="20240102"),
    "a zone": everywhere(AcquisitionDateTime="20240102030405+0100"),
    "date and time apart": everywhere(AcquisitionDateTime=None, AcquisitionDate="20240102", AcquisitionTime="030405"),
    "no content date": everywhere(ContentDate=None, ContentTime=None),
    "no number of paths": everywhere(NumberOfOpticalPaths=None, TotalPixelMatrixFocalPlanes=None),
    "one instance": alone,
    "one instance without a date": alone_undated,
    "no label": lambda folder: (folder / "LABEL.dcm").unlink(),
    "numbered with gaps": only("LABEL", InstanceNumber=70),
    "numbers twice": everywhere(InstanceNumber=1),
    "another day's series beside it": another(AcquisitionDateTime="20240103030405"),
    "another numbered series beside it": another(SeriesNumber=4),
    "a series without a date beside it": another(AcquisitionDateTime=None),
    "a note beside it": beside("notes.txt", b"nothing here"),
}


@pytest.mark.parametrize("case", ORDINARY)
def test_ordinary_series_are_told_as_bioformats_tells_them(case: str, tmp_path: Path) -> None:
    path = write_series(tmp_path / "a")
    ORDINARY[case](path.parent)
    found = told(path)
    assert isinstance(found, Slide), found
    assert found == bioformats.probe(path, SETTINGS)
    assert choose(path) == "openslide"


ODD: dict[str, tuple[str, Callable[[Path], None]]] = {
    "another day": ("differ", only("1", AcquisitionDateTime="20240103030405")),
    "an empty time": ("differ", only("1", AcquisitionTime="")),
    "another series number": ("differ", only("1", SeriesNumber=4)),
    "no instance number": ("differ", only("1", InstanceNumber=None)),
    "no dates": ("not dated", everywhere(AcquisitionDateTime=None)),
    "a strange date": ("date of acquisition", everywhere(AcquisitionDateTime="2024")),
    "no series number": ("no usual series number", everywhere(SeriesNumber=None)),
    "another specimen": ("differ", lambda folder: change(folder / "1.dcm", lambda data: specimen(data, "S2"))),
    "old content date": ("unusual way", everywhere(ContentDate="20240102-20240103")),
    "plain spacing": ("unusual way", everywhere(PixelSpacing=["0.1", "0.1"])),
    "no spacing": ("spacing", only("0", SharedFunctionalGroupsSequence=[])),
    "spacing of nothing": ("spacing", spaced("0.0", "0.0")),
    "focal planes": ("several planes", everywhere(TotalPixelMatrixFocalPlanes=2, DimensionOrganizationType="3D")),
    "extended focus": ("several planes", only("0", ExtendedDepthOfField="YES")),
    "a concatenation": ("several planes", only("2", ConcatenationUID="1.2.9", InConcatenationNumber=1)),
    "two labels": ("several labels", only("OVERVIEW", ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"])),
    "a localizer": ("unusual type", only("OVERVIEW", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"])),
    "a short type": ("unusual type", only("OVERVIEW", ImageType=["ORIGINAL", "PRIMARY", "OVERVIEW"])),
    "two of a size": ("do not become smaller", twice),
    "grey": ("not 8-bit RGB", only("LABEL", SamplesPerPixel=1)),
    "other colours": ("colours", only("LABEL", PhotometricInterpretation="YBR_FULL")),
    "contradiction": ("contradict", only("0", PhotometricInterpretation="RGB")),
    "no whole slide": ("more than whole-slide", only("LABEL", SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.3")),
    "a series that looks alike": ("looks like a part", another()),
    "a file of options": ("file of options", beside("0.dcm.bfoptions", b"a = b")),
    "a directory of disks": ("DICOMDIR", beside("DICOMDIR", b"x")),
    "what is named as DICOM": ("may be DICOM", beside("a.dcm", b"hello " * 99)),
    "a damaged file beside it": ("damaged", beside("x", bytes(128) + b"DICM\2")),
    "a file of a scanner": ("scanner's file", lambda folder: folder.with_name("a.mif").touch()),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_odd_series_are_bioformats(case: str, tmp_path: Path) -> None:
    path = write_series(tmp_path / "a")
    ODD[case][1](path.parent)
    found = told(path)
    assert isinstance(found, str) and ODD[case][0] in found
    assert choose(path) == "bioformats"
    with pytest.raises(Unsupported, match="cannot be read by the source openslide"):
        openslide.probe(path, SETTINGS)


def test_frames_in_fragments_or_empty_are_bioformats(tmp_path: Path) -> None:
    frames = dicom_frames(histology(600, 420), 256)
    for name, more, coded in (
        ("fragments", {"fragments": 3}, frames),
        ("empty", {"table": "none"}, {**frames, (2, 0): b""}),
    ):
        write_dicom(tmp_path / f"{name}.dcm", (600, 420), coded, series=f"1.2.{len(name)}", **more)
        assert name in str(told(tmp_path / f"{name}.dcm"))


def test_a_lower_level_is_not_the_slide(tmp_path: Path) -> None:
    path = write_series(tmp_path / "a")
    assert told(path.with_name("1.dcm")) == "it is not the largest image of its series"
    for name in ("1.dcm", "LABEL.dcm"):
        assert probe(path.with_name(name), SETTINGS) == probe(path, SETTINGS)
    assert probe(path.parent, SETTINGS).path == path


def test_what_openslide_does_not_show_is_bioformats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_series(tmp_path / "a")
    assert openslide.claims(path)
    monkeypatch.setattr(openslide, "_stated_px", lambda *_: (0, 0))
    assert not openslide.claims(path)


def test_facts_are_those_of_the_files_as_they_are_now(tmp_path: Path) -> None:
    path = write_series(tmp_path / "a")
    assert isinstance(told(path), Slide)
    (path.parent / "LABEL.dcm").unlink()
    without = told(path)
    assert isinstance(without, Slide) and len(without.images) == 3


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_series(tmp_path_factory.mktemp("sound") / "a", sparse=True)


@settings(max_examples=40, derandomize=True)  # Bio-Formats is asked each time: thousands were tried by hand
@given(
    number=st.integers(0, 5),
    at=st.floats(0, 1),
    value=st.binary(min_size=1, max_size=4),
    cut=st.sampled_from((0, 0, 9)),
)
def test_damaged_headers_give_bioformats_facts_or_none(
    number: int, at: float, value: bytes, cut: int, sound: Path
) -> None:
    folder = sound.parent.with_name("damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound.parent, folder)
    path = sorted(folder.iterdir())[number]
    raw = path.read_bytes()
    start = 128 + int(at * (raw.index(b"\xe0\x7f\x10\x00OB") - 100))  # the header, the offset table, the first frame
    path.write_bytes((raw[:start] + value + raw[start + len(value) :])[: len(raw) - cut])
    try:
        found = told(folder / sound.name)
    except MimicError:
        return  # and Bio-Formats' way begins with the same check
    if isinstance(found, Slide):
        assert found == bioformats.probe(folder / sound.name, SETTINGS)


def test_a_space_that_is_none_to_java_is_odd(tmp_path: Path) -> None:
    path = write_series(tmp_path / "a").with_name("2.dcm")
    raw = path.read_bytes()
    text = f"{MOMENT} ".encode()
    assert text in raw
    path.write_bytes(raw.replace(text, text[:-1] + b"\xa0"))
    assert "differ" in str(told(path.with_name("0.dcm")))


@pytest.mark.parametrize("name", ["0.dcm", "1.dcm", "LABEL.dcm"])
def test_a_file_cut_short_is_refused_as_by_bioformats(name: str, tmp_path: Path) -> None:
    path = write_series(tmp_path / "a")
    raw = path.with_name(name).read_bytes()
    path.with_name(name).write_bytes(raw[: len(raw) * 2 // 3])
    with pytest.raises(BadInput) as mine:
        probe(path, SETTINGS)
    with pytest.raises(BadInput) as theirs:
        probe(path, SETTINGS, source="bioformats")
    assert str(mine.value) == str(theirs.value)


BROKEN: dict[str, tuple[bytes, bytes]] = {
    "the length of an item": (b"\xfe\xff\x00\xe0\x0a\x00", b"\xfe\xff\x00\xe0\x0b\x00"),
    "no item": (b"\xfe\xff\x00\xe0\x0a\x00", b"\xfe\xfe\x00\xe0\x0a\x00"),
    "a kind inside": (b"Q\x05LO\x02\x00S1", b"Q\x05XX\x02\x00S1"),
    "a length inside": (b"Q\x05LO\x02\x00S1", b"Q\x05LO\x04\x00S1"),
    "a number": (b"0.00025\\0.00025", b"0.00\xe925\\0.00025"),
    "what is reserved": (b"\x60\x05SQ\x00\x00", b"\x60\x05SQ\x01\x00"),
    "the order": (b"\x40\x00\x3a\x07DS", b"\x40\x00\x2a\x07DS"),
    "the kind of the pixels": (b"\xe0\x7f\x10\x00OB", b"\xe0\x7f\x10\x00OL"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_sequences_and_numbers_are_noticed(case: str, sound: Path, tmp_path: Path) -> None:
    raw, (old, new) = sound.read_bytes(), BROKEN[case]
    assert old in raw
    path = tmp_path / "a.dcm"
    path.write_bytes(raw.replace(old, new, 1))
    with Input(sound) as source:
        dicom.check_header(source)
    with Input(path) as source, pytest.raises(BadInput, match="damaged"):
        dicom.check_header(source)
    assert "damaged" in str(told(path))


def test_sequences_of_undefined_length_are_sound(tmp_path: Path) -> None:
    path = write_series(tmp_path / "a", sparse=True)

    def open_ended(data: Dataset) -> None:
        for element in data.iterall():
            if element.VR == "SQ":
                element.is_undefined_length = True
                for item in element.value:
                    item.is_undefined_length_sequence_item = True

    change(path, open_ended)
    assert b"\xfe\xff\x0d\xe0" in path.read_bytes()
    with Input(path) as source:
        dicom.check_header(source)
    assert told(path) == bioformats.probe(path, SETTINGS)


# --- no Java, and the same slide -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"), [("YBR_FULL_422", {}), ("native", {}), ("j2k", {}), ("RGB", {"passthrough": "never"})]
)
def test_jvm_starts_is_started(kind: str, options: dict[str, Any], tmp_path: Path, jvm_starts: list[int]) -> None:
    path = write_series(tmp_path / "a", kind)
    done = mimic.convert(path, tmp_path / "a.svs", **options)
    assert done.status == "converted" and jvm_starts == []
    assert "OpenSlide" in {tool.name for tool in done.tools}
    assert not {"Java", "Bio-Formats"} & {tool.name for tool in done.tools}
    assert mimic.probe(path).source == "openslide" and jvm_starts == []


def test_starts_are_counted(tmp_path: Path, jvm_starts: list[int]) -> None:
    mimic.probe(write_series(tmp_path / "a"), source="bioformats")
    assert len(jvm_starts) == 1


@pytest.mark.parametrize("options", [{}, {"passthrough": "never"}])
@pytest.mark.parametrize("kind", ["YBR_FULL_422", "RGB", "native"])
def test_the_slide_is_byte_for_byte_bioformats(
    kind: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_series(tmp_path / "a", kind)
    assert_same_slide(path, tmp_path, monkeypatch, options)


def assert_same_slide(path: Path, folder: Path, patch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    mimic.convert(path, folder / "mine.svs", **options)
    with patch.context() as other:
        other.setattr(openslide, "claims", lambda _: False)  # with --source another key would stand in it
        done = mimic.convert(path, folder / "theirs.svs", **options)
    assert "Bio-Formats" in {tool.name for tool in done.tools}
    assert (folder / "mine.svs").read_bytes() == (folder / "theirs.svs").read_bytes()


@pytest.mark.parametrize("name", [SERIES, SINGLE])
def test_corpus_slide_is_byte_for_byte_bioformats(
    name: str, corpus_file: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_same_slide(corpus_file(name), tmp_path, monkeypatch, {})


def test_what_is_missing_is_never_black(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    frames = dicom_frames(histology(600, 420), 256)
    left = {place: data for place, data in frames.items() if place != (1, 0)}
    write_dicom(folder / "0.dcm", (600, 420), left, sparse=True, codec="jpeg", AcquisitionDateTime=MOMENT)
    change(folder / "0.dcm", lambda data: put(data, {"InstanceNumber": 1, "SeriesNumber": 1}))
    slide = compare_facts(folder / "0.dcm")
    assert slide.coded is not None and slide.coded.missing == 1
    with closing(openslide.Planes(slide, slide.images[0], threads=1, settings=SETTINGS)) as reader:
        with pytest.raises(BadInput, match="has no tile somewhere"):
            reader.read(Box(0, 0, 600, 420))
        assert reader.read(Box(0, 256, 600, 164)).mean() > 100
        mended = missing.Mended(reader, missing.pieces(slide, slide.images[0]), missing.Missing())
        pixels = mended.read(Box(0, 0, 600, 420))
    assert (pixels[:256, 256:512] == 255).all() and pixels[:256, :256].min() < 200


def test_a_frame_that_two_decoders_see_differently_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_series(tmp_path / "a")
    slide = openslide.probe(path, SETTINGS)
    options: dict[str, Any] = {"threads": 1, "settings": SETTINGS, "scratch": tmp_path}
    openslide.open(slide, slide.images[0], **options).close()
    plain = opinion.tiles
    monkeypatch.setattr(opinion, "tiles", lambda path: ((box, 255 - pixels) for box, pixels in plain(path)))
    with pytest.raises(Unsupported, match="in different ways"):
        openslide.open(slide, slide.images[0], **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_opinion_is_of_frames_all_over(kind: str, tmp_path: Path) -> None:
    path, truth = write_series(tmp_path / "a", kind), histology(600, 420).astype(int)
    seen = list(opinion.tiles(path))
    assert len(seen) == 6
    for box, pixels in seen:
        part = truth[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px]
        assert np.abs(pixels - part).mean() < 6


def test_damage_of_label_and_macro_is_noticed(tmp_path: Path) -> None:
    path = write_series(tmp_path / "a")
    label = path.with_name("LABEL.dcm")
    raw = bytearray(label.read_bytes())
    middle = raw.index(b"\xff\xda") + 200
    raw[middle : middle + 300] = os.urandom(1) * 300
    label.write_bytes(raw)
    with pytest.raises(BadInput, match="does not decode"):
        mimic.convert(path, tmp_path / "a.svs")


def test_every_file_of_a_series_is_checked_for_wholeness(tmp_path: Path) -> None:
    path = write_series(tmp_path / "a", "native")
    facts = [structure.check(each).dicom for each in sorted(path.parent.iterdir())]
    assert all(each is not None for each in facts)
    thumbnail = pydicom.dcmread(path.with_name("THUMBNAIL.dcm"))
    assert thumbnail.ImageType[2] == "THUMBNAIL"
    with pytest.raises(BadInput, match="cut short"):
        short = path.with_name("THUMBNAIL.dcm")
        short.write_bytes(short.read_bytes()[:-500])
        openslide.probe(path, SETTINGS)
