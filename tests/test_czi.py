"""sources.czi: the pixels and the facts of Bio-Formats and of ZEISS's own libCZI, without Java; damage never passes."""

from __future__ import annotations

import os
import random
import re
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

import mimic
from mimic import czilayout, czislide, sources, structure, turned
from mimic.errors import BadInput, MimicError, ToolFailed, Unsupported
from mimic.model import Box, Image, Pixels, Slide
from mimic.programs import bfclient, jxr
from mimic.settings import load
from mimic.sources import bioformats, czi
from mimic.structure import jpegxr
from tests.conftest import SAMPLE_CZI, module
from tools import czi_samples
from tools.czi_samples import SubBlock, build_czi, czi_xml, read_subblocks, to_jpeg_xr
from tools.make_samples import Sample, histology

SETTINGS = load()
HEADER_BYTES = czi_samples.CZI_SEGMENT.size + 512
CORPUS = ("he_2k_jxr_lossless_10x", "he_8k_jxr_pyramid_label_20x", "rgb_no_metadata")
WRITTEN = ("czi_raw", "czi_zstd", "czi_jpegxr", "czi_jpegxr_lossy")
RAW, ZSTD = "uncompressed:", "zstd1:ExplicitLevel=1"
Mosaic = list[tuple[int, int, int, int]]
"""x, y, width and height of each block."""


def written(path: Path, places: Mosaic, kind: str, *, scene: bool = False, shuffle: bool = False) -> Path:
    """A mosaic by ZEISS's own writer, every block with its own light; ``kind`` is RAW, ZSTD or "jxr"."""
    zeiss = module("pylibCZIrw.czi")
    picture = histology(900, 700)
    with zeiss.create_czi(str(path), exist_ok=True, compression_options=RAW if kind == "jxr" else kind) as document:
        for number, (x, y, width, height) in enumerate(places):
            tile = picture[y : y + height, x : x + width, ::-1] // (number % 5 + 1) + 3
            where: dict[str, Any] = {"scene": 0} if scene else {}
            document.write(np.ascontiguousarray(tile.astype(np.uint8)), location=(x, y), **where)
        document.write_metadata("mosaic", scale_x=2.5e-7, scale_y=2.5e-7)
    data = path.read_bytes()
    blocks = read_subblocks(data)
    if kind == "jxr":
        blocks = [to_jpeg_xr(block, 0.9) for block in blocks]
    if shuffle:
        random.Random(1).shuffle(blocks)
    left, top = min(x for x, _, _, _ in places), min(y for _, y, _, _ in places)
    right, lower = max(x + w for x, _, w, _ in places), max(y + h for _, y, _, h in places)
    path.write_bytes(build_czi(data[:HEADER_BYTES], blocks, czi_xml(min(900, right) - left, min(700, lower) - top, 9)))
    return path


def changed(path: Path, change: Callable[[SubBlock], SubBlock], number: int = 0) -> Path:
    """The file with one of its blocks changed."""
    data = path.read_bytes()
    blocks = read_subblocks(data)
    blocks[number] = change(blocks[number])
    xml = re.search(rb"<\?xml.*</ImageDocument>|<ImageDocument.*</ImageDocument>", data, re.DOTALL)
    assert xml is not None
    path.write_bytes(build_czi(data[:HEADER_BYTES], blocks, xml.group().decode()))
    return path


def opened(path: Path, *, threads: int = 2) -> tuple[czi.Planes, Slide]:
    slide = czi.probe(path, SETTINGS)
    assert slide.source == "czi"
    return czi.Planes(slide, slide.scans()[0], threads=threads, settings=SETTINGS), slide


def by_bioformats(slide: Slide, image: Image) -> bioformats.Planes:
    return bioformats.Planes(replace(slide, source="bioformats"), image, threads=2, settings=SETTINGS)


def by_zeiss(path: Path) -> Pixels:
    """The whole picture as libCZI composes it, white where nothing is."""
    zeiss = module("pylibCZIrw.czi")
    with zeiss.open_czi(str(path)) as document:
        box = document.total_bounding_rectangle_no_pyramid
        found: Pixels = document.read(roi=box, plane={"C": 0}, background_pixel=(1, 1, 1))[..., ::-1]
    return found


def whole(reader: czi.Planes, image: Image) -> Pixels:
    size = image.levels[0]
    canvas = np.zeros((size.height_px, size.width_px, 3), np.uint8)
    seen = np.zeros(canvas.shape[:2], np.uint8)
    for box in reader.boxes():
        rows = slice(box.y_px, box.y_px + box.height_px), slice(box.x_px, box.x_px + box.width_px)
        canvas[rows] = reader.read(box)
        seen[rows] += 1
    assert (seen == 1).all()
    return canvas


# --- the same pixels ---------------------------------------------------------------------------------------------


def compare_with_bioformats(path: Path, *, step: int = 1) -> None:
    """Every ``step``-th box of every scan, all of the lower levels, label and macro."""
    slide = czi.probe(path, SETTINGS)
    assert slide.source == "czi"
    for image in slide.images:
        mine = czi.open(slide, image, threads=2, settings=SETTINGS, scratch=path.parent)
        theirs = by_bioformats(slide, image)
        assert isinstance(mine, czi.Planes)
        for box in mine.boxes()[::step]:
            assert np.array_equal(mine.read(box), theirs.plane(box, 0, z=0, t=0)), box
        for number, level in enumerate(image.levels[1:], start=1):
            box = Box(0, 0, level.width_px, min(level.height_px, 500))
            own = mine.plane(box, 0, z=0, t=0, level=number)
            assert own.any() and np.array_equal(own, theirs.plane(box, 0, z=0, t=0, level=number)), number
        mine.close()
        theirs.close()


@pytest.mark.parametrize("name", CORPUS)
def test_corpus_gives_bioformats_pixels(name: str, corpus_file: Callable[[str], Path]) -> None:
    compare_with_bioformats(corpus_file(f"czi/{name}.czi"), step=5)


def test_sample_gives_bioformats_pixels() -> None:
    compare_with_bioformats(SAMPLE_CZI)


@pytest.mark.parametrize("name", WRITTEN)
def test_written_slides_give_their_pixels(name: str, sample: Callable[[str], Sample]) -> None:
    made = sample(name)
    reader, slide = opened(made.path)
    assert np.array_equal(whole(reader, slide.images[0]), made.pixels)
    compare_with_bioformats(made.path, step=2)


def mosaics(seed: int) -> Mosaic:
    draw = random.Random(seed)
    places: Mosaic = [(0, 0, 200, 150)]
    for _ in range(draw.randint(1, 11)):
        width, height = draw.choice([(200, 150), (draw.randint(20, 300), draw.randint(20, 300))])
        regular = draw.randint(0, 3) * 180, draw.randint(0, 3) * 140
        x, y = draw.choice([regular, (draw.randint(0, 600), draw.randint(0, 500))])
        places.append((x, y, min(width, 900 - x), min(height, 700 - y)))
    return places


@pytest.mark.parametrize("seed", range(12))
def test_any_mosaic_is_zeiss_s_and_bioformats(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlaps, holes, odd sizes, small boxes that cut blocks; Bio-Formats has the size of some wrong and refuses."""
    monkeypatch.setattr(czilayout, "WANTED_PX", (60, 100, 1024)[seed % 3])
    monkeypatch.setattr(czi, "KEPT_BYTES", (0, 200_000, 128 << 20)[seed // 3 % 3])
    path = written(tmp_path / "mosaic.czi", mosaics(seed), (RAW, ZSTD, "jxr")[seed % 3], scene=seed % 2 == 0)
    reader, slide = opened(path)
    found = whole(reader, slide.images[0])
    assert np.array_equal(found, by_zeiss(path))
    try:
        facts = bioformats.probe(path, SETTINGS)
    except BadInput as error:
        assert "Bio-Formats says" in error.message
        return
    assert replace(facts, source="czi") == slide
    theirs = by_bioformats(slide, slide.images[0])
    size = slide.images[0].levels[0]
    assert np.array_equal(found, theirs.plane(Box(0, 0, size.width_px, size.height_px), 0, z=0, t=0))
    theirs.close()


def test_blocks_written_out_of_order_lie_as_in_bioformats(tmp_path: Path) -> None:
    """File order counts, not the mosaic number, which ZEN and libCZI go by."""
    places = [(0, 0, 200, 200), (150, 0, 200, 200), (0, 150, 200, 200), (150, 150, 200, 200)]
    path = written(tmp_path / "order.czi", places, RAW, shuffle=True)
    reader, slide = opened(path)
    found = whole(reader, slide.images[0])
    theirs = by_bioformats(slide, slide.images[0])
    assert np.array_equal(found, theirs.plane(Box(0, 0, 350, 350), 0, z=0, t=0))
    theirs.close()
    assert not np.array_equal(found, by_zeiss(path))


def test_scenes_are_read_one_by_one(tmp_path: Path) -> None:
    zeiss = module("pylibCZIrw.czi")
    path, picture = tmp_path / "scenes.czi", histology(600, 400)
    with zeiss.create_czi(str(path)) as document:
        for number, x in enumerate((100, 900)):
            document.write(np.ascontiguousarray(picture[..., ::-1]) // (number + 1), location=(x, 50), scene=number)
        document.write_metadata("scenes", scale_x=2.5e-7, scale_y=2.5e-7)
    slide = mimic.probe(path)
    assert slide.source == "czi" and len(slide.scans()) == 2
    for number, image in enumerate(slide.scans()):
        reader = czi.Planes(slide, image, threads=1, settings=SETTINGS)
        assert np.array_equal(whole(reader, image), picture // (number + 1))
    merged = mimic.convert(path, tmp_path / "merged.svs", merge_scenes=True)
    assert merged.results[0].plan.levels[0].width_px == 1400


def test_every_block_is_decoded_once() -> None:
    reader, slide = opened(SAMPLE_CZI)
    whole(reader, slide.images[0])
    assert reader.decoded == len(read_subblocks_at_full_size(SAMPLE_CZI))


def read_subblocks_at_full_size(path: Path) -> list[Any]:
    return [block for block in czi._subblocks(path) if block.full]


def test_blocks_that_overlap_are_decoded_once_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(czilayout, "WANTED_PX", 100)
    places = [(x, y, 200, 200) for y in (0, 170, 340) for x in (0, 170, 340)]
    reader, slide = opened(written(tmp_path / "overlap.czi", places, ZSTD))
    whole(reader, slide.images[0])
    assert reader.decoded == len(places)


# --- the same facts ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("base") / "base.czi", [(0, 0, 400, 300)], RAW)


BASE_XML = czi_xml(400, 300, 1)
INSTRUMENT = "<Instrument>"
SCOPE = (
    "<Instrument><Microscopes><Microscope Id='Microscope:1' Name='Axio'><Manufacturer><Manufacturer>Carl Zeiss"
    "</Manufacturer><Model>Axioscan 7</Model></Manufacturer></Microscope></Microscopes>"
)
DATE = "<AcquisitionDateAndTime>2024-03-05T09:08:07Z"
VALUE, POWER = "<Value>2.500000e-07<", "<NominalMagnification>40<"
SECOND = '<Objective Id="Objective:0"><NominalMagnification>5</NominalMagnification></Objective><Objective Id="Obj'
ITEMS = "<Experiment><Scaling><Items><Distance Id='X'><Value>9e-7</Value></Distance></Items></Scaling></Experiment>"
PLAIN: dict[str, tuple[str, str]] = {
    "as it is": ("", ""),
    "date with a fraction": (DATE, DATE[:-1] + ".9999999Z"),
    "date with a short fraction": (DATE, DATE[:-1] + ".123"),
    "date without a zone": (DATE, DATE[:-1]),
    "no date": (DATE + "</AcquisitionDateAndTime>", ""),
    "odd scale": (VALUE, "<Value>3.4500000000000004E-07<"),
    "1 um": (VALUE, "<Value>1e-06<"),
    "a printer's scale": (VALUE, "<Value>0.0003528<"),
    "no scale": (VALUE, "<Value>0<"),
    "one axis": ('Id="Y"', 'Id="T"'),
    "half a power": (POWER, "<NominalMagnification>2.5<"),
    "calibrated": ("NominalMagnification", "CalibratedMagnification"),
    "no power": ("<NominalMagnification>40</NominalMagnification>", ""),
    "no reference": ('<ObjectiveRef Id="Objective:1"/>', ""),
    "no id": ('Id="Objective:1" Name', "Name"),
    "microscope": (INSTRUMENT, SCOPE),
    "maker only": (INSTRUMENT, SCOPE.replace("<Model>Axioscan 7</Model>", "")),
    "no maker": (INSTRUMENT, re.sub("<Manufacturer>.*</Manufacturer>", "", SCOPE)),
    "parameters": (
        "<Scaling>",
        "<HardwareSetting><ParameterCollection Id='MTBObjectiveChanger'/></HardwareSetting><Scaling>",
    ),
    "a name and a user": (
        "<Information>",
        "<Information><Document><Name>Case 7</Name><UserName>u</UserName></Document>",
    ),
    "a comment": ("<ImageDocument>", "<ImageDocument><!-- of ZEN -->"),
    "forbidden characters": ("<Scaling>", "<Comment>\x01</Comment><Scaling>"),
}
ODD: dict[str, tuple[str, str]] = {
    "zone": (DATE, DATE[:-1] + "+02:00"),
    "only a day": (DATE, DATE[:-10]),
    "old date": (DATE, DATE.replace("2024", "1899")),
    "two objectives": ('<Objective Id="Obj', SECOND),
    "hardware": ("<Scaling>", "<HardwareSetting><Microscope Name='scope'/></HardwareSetting><Scaling>"),
    "24 bits": ("<ComponentBitCount>8<", "<ComponentBitCount>24<"),
    "two scalings": ("<Information>", f"{ITEMS}<Information>"),
    "not a number": (VALUE, "<Value>NaN<"),
    "negative": (VALUE, "<Value>-1e-7<"),
    "blanks": (POWER, "<NominalMagnification> 40 <"),
}


def told(path: Path) -> Slide | str:
    return czislide.told(path, structure.check(path), czi._subblocks(path), source="bioformats")


def with_xml(base: Path, path: Path, old: str, new: str) -> Path:
    assert old in BASE_XML
    data = base.read_bytes()
    path.write_bytes(
        build_czi(data[:HEADER_BYTES], read_subblocks(data), BASE_XML.replace(old, new) if old else BASE_XML)
    )
    return path


@pytest.mark.parametrize("case", PLAIN)
def test_facts_are_bioformats(case: str, base: Path, tmp_path: Path) -> None:
    path = with_xml(base, tmp_path / "slide.czi", *PLAIN[case])
    assert told(path) == bioformats.probe(path, SETTINGS)


@pytest.mark.parametrize("case", ODD)
def test_of_odd_facts_bioformats_is_asked(case: str, base: Path, tmp_path: Path) -> None:
    path = with_xml(base, tmp_path / "slide.czi", *ODD[case])
    assert isinstance(told(path), str)
    assert replace(czi.probe(path, SETTINGS), source="bioformats") == bioformats.probe(path, SETTINGS)


@pytest.mark.parametrize(("meant", "power"), [("Objective:0", 5), ("Objective:1", 40)])
def test_of_two_objectives_the_one_counts_that_the_image_names(
    meant: str, power: float, base: Path, tmp_path: Path
) -> None:
    """Bio-Formats gives the first, whichever is named: a 40x slide would be called a 5x."""
    reference = f'Ref Id="{meant}"/>'
    changed = BASE_XML.replace('Ref Id="Objective:1"/>', reference)
    assert reference in changed
    data, path = base.read_bytes(), tmp_path / "slide.czi"
    path.write_bytes(build_czi(data[:HEADER_BYTES], read_subblocks(data), changed.replace(*ODD["two objectives"], 1)))
    for source in (czi, bioformats):
        objective = source.probe(path, SETTINGS).scans()[0].objective
        assert objective is not None and objective.power == power


@pytest.mark.parametrize("name", CORPUS)
def test_facts_of_the_corpus(name: str, corpus_file: Callable[[str], Path]) -> None:
    path = corpus_file(f"czi/{name}.czi")
    assert told(path) == bioformats.probe(path, SETTINGS)


@pytest.mark.parametrize("name", WRITTEN)
def test_facts_of_written_slides(name: str, sample: Callable[[str], Sample]) -> None:
    path = sample(name).path
    assert told(path) == bioformats.probe(path, SETTINGS)


def test_facts_label_and_macro_start_no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a JVM was started")

    bfclient.shutdown()
    monkeypatch.setattr(bfclient, "server", refuse)
    report = mimic.convert(SAMPLE_CZI, tmp_path / "out.svs")
    assert {picture.role for picture in report.results[0].plan.pictures} == {"label", "macro"}
    assert any(check.name == "source's lower level" for check in report.results[0].checks)
    assert report.tools[0].name == "imagecodecs"


@pytest.mark.parametrize("neighbour", ["slide (1).czi", "slide(2).czi", "slide.czi.bfoptions"])
def test_neighbours_that_bioformats_minds(neighbour: str, base: Path, tmp_path: Path) -> None:
    path = with_xml(base, tmp_path / "slide.czi", "", "")
    assert isinstance(told(path), Slide)
    (tmp_path / neighbour).touch()
    assert isinstance(told(path), str)


# --- what this source leaves to Bio-Formats ----------------------------------------------------------------------


def test_other_kinds_are_bioformats(corpus_file: Callable[[str], Path]) -> None:
    path = corpus_file("czi/two_scenes_u16_z2.czi")
    assert not czi.claims(path) and mimic.probe(path).source == "bioformats"
    with pytest.raises(Unsupported, match="planes"):
        mimic.probe(path, source="czi")


def test_grey_and_planes_are_bioformats(tmp_path: Path) -> None:
    zeiss = module("pylibCZIrw.czi")
    for name, planes, shape in (("grey", [{}], (64, 64, 1)), ("planes", [{"Z": 0}, {"Z": 1}], (64, 64, 3))):
        path = tmp_path / f"{name}.czi"
        with zeiss.create_czi(str(path)) as document:
            for plane in planes:
                document.write(np.full(shape, 9, np.uint8), plane=plane)
            document.write_metadata(name)
        assert not czi.claims(path) and sources.choose(path) == "bioformats"


def test_no_czi_is_not_claimed(tmp_path: Path) -> None:
    other = tmp_path / "a.czi"
    other.write_bytes(b"no czi")
    assert not czi.claims(other) and not czi.claims(tmp_path) and not czi.claims(tmp_path / "absent.czi")
    with pytest.raises(Unsupported, match="no CZI"):
        czi.probe(Path(__file__), SETTINGS)


# --- damage ------------------------------------------------------------------------------------------------------


PLACES = [(0, 0, 200, 150), (200, 0, 200, 150)]


def refusal(path: Path) -> MimicError:
    with pytest.raises(MimicError) as caught:
        mimic.convert(path, path.with_name("out.svs"))
    assert not list(path.parent.glob("*.svs")) and caught.value.path == path
    return caught.value


def test_damaged_zstandard_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.czi", PLACES, ZSTD)
    for number, change in enumerate(
        (
            lambda data: data[: len(data) // 2],
            lambda data: data[:40] + bytes(64) + data[104:],
            lambda data: b"\x07" + data[1:],
        )
    ):
        copy = tmp_path / f"{number}.czi"
        copy.write_bytes(path.read_bytes())
        error = refusal(changed(copy, lambda block, change=change: replace(block, data=change(block.data)), 1))  # type: ignore[misc]
        assert isinstance(error, BadInput) and "x=200, y=0" in error.message


def test_a_block_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    """libCZI draws what there is of a JPEG-XR that is smaller than its block, and leaves the rest black or white."""
    path = written(tmp_path / "a.czi", PLACES, "jxr")
    small = written(tmp_path / "b.czi", [(0, 0, 200, 120)], "jxr")
    data = read_subblocks(small.read_bytes())[0].data
    error = refusal(changed(path, lambda block: replace(block, data=data), 1))
    assert isinstance(error, BadInput) and "200 x 120 px instead of 200 x 150" in error.message


@pytest.mark.parametrize("keep", [4, 40, 600])
def test_cut_jpeg_xr_is_refused(keep: int, tmp_path: Path) -> None:
    path = written(tmp_path / "a.czi", PLACES, "jxr")
    error = refusal(changed(path, lambda block: replace(block, data=block.data[:keep]), 1))
    assert isinstance(error, BadInput) and "x=200, y=0" in error.message


def test_a_block_that_decodes_to_black_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.czi", PLACES, ZSTD)
    black = module("imagecodecs").zstd_encode(bytes(200 * 150 * 3))
    error = refusal(changed(path, lambda block: replace(block, data=b"\x01" + black), 1))
    assert isinstance(error, BadInput) and "came back black" in error.message


def test_what_is_left_is_converted_on_demand(tmp_path: Path) -> None:
    path = written(tmp_path / "a.czi", PLACES, ZSTD)
    changed(path, lambda block: replace(block, data=block.data[:100]), 1)
    report = mimic.convert(path, tmp_path / "out.svs", allow_missing=True, mpp_um=0.25)
    assert any("1 damaged or missing tile" in warning for warning in report.warnings)
    pixels = tifffile.imread(tmp_path / "out.svs", key=0)
    assert (pixels[:, 220:] > 250).all() and (pixels[:, :180] < 250).any()


def test_a_crash_of_the_decoder_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.czi", PLACES, "jxr")
    reader, _ = opened(path)
    real = jxr._Child._ask

    def crash(self: Any, request: bytes) -> dict[str, str]:
        if b"width" in request:
            os.kill(self._process.pid, 11)
        return real(self, request)

    if sys.platform == "win32":
        pytest.skip("signals are POSIX's")
    monkeypatch.setattr(jxr._Child, "_ask", crash)
    with pytest.raises(ToolFailed, match=r"x=0, y=0 cannot be decoded: the JPEG-XR decoder crashed") as caught:
        reader.read(Box(0, 0, 100, 100))
    assert caught.value.exit_code == 6 and caught.value.path == path
    monkeypatch.undo()
    assert reader.read(Box(0, 0, 100, 100)).any()  # by another child


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_decoder_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jxr.shutdown()
    reader, _ = opened(written(tmp_path / "a.czi", PLACES, "jxr"))
    assert reader.read(Box(0, 0, 100, 100)).any()
    (child,) = jxr._all
    os.kill(child._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(jxr, "STALL_S", 0.2)
    monkeypatch.setattr(jxr, "LOOK_S", 0.05)
    with pytest.raises(ToolFailed, match="gave no answer and was stopped"):
        reader.read(Box(200, 0, 100, 100))
    monkeypatch.undo()
    assert reader.read(Box(200, 0, 100, 100)).any()


@pytest.mark.parametrize("size", [(640, 480), (77, 33), (1, 1)])
def test_noise_that_takes_more_bytes_than_its_pixels_is_decoded(size: tuple[int, int]) -> None:
    """Data and pixels are in one memory: neither may reach into the other."""
    width, height = size
    noise = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for level in (0, 50, 100):  # of quality; 100 is lossless
        data = module("imagecodecs").jpegxr_encode(noise, level=level / 100)
        with jxr.decoded(data, size, load()) as pixels:
            assert np.array_equal(pixels, module("imagecodecs").jpegxr_decode(data))
    assert len(data) > noise.nbytes


@pytest.mark.parametrize("size", [(640, 480), (77, 33), (35, 2)])
@pytest.mark.parametrize("level", [0.3, 0.9, 1.0])
def test_the_decoder_writes_red_first_the_very_pixels_it_turns_round_otherwise(
    size: tuple[int, int], level: float
) -> None:
    decode, (width, height) = module("imagecodecs").jpegxr_decode, size
    noise = np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise[:, ::3] //= 8
    data = bytes(module("imagecodecs").jpegxr_encode(noise, level=level, photometric="RGB"))
    blue_first = data.replace(jpegxr.RGB24, jpegxr.BGR24, 1)  # as in a CZI
    assert blue_first != data
    found = jpegxr.red_first(blue_first)
    assert found[:2] == size and bytes(found[2]) == data
    assert np.array_equal(decode(bytes(found[2])), decode(blue_first))
    with pytest.raises(ValueError, match="blue, green and red"):
        jpegxr.red_first(data)


@pytest.mark.parametrize("kind", [RAW, ZSTD, "jxr"])
def test_pixels_as_stored_are_those_that_are_read(kind: str, tmp_path: Path) -> None:
    reader, _ = opened(written(tmp_path / "a.czi", PLACES, kind))
    whole_blocks = 0
    for box in (*reader.boxes(), *(Box(x, y, 200, 150) for x, y, *_ in PLACES), Box(10, 10, 300, 100)):
        stored, pixels = reader.read_as_stored(box), reader.read(box)
        assert np.array_equal(stored, pixels) and not turned.is_turned(pixels) and pixels.flags.writeable
        whole_blocks += turned.is_turned(stored)
    assert (whole_blocks > 0) == (kind != "jxr")


def test_a_box_without_any_block_takes_no_memory(tmp_path: Path) -> None:
    reader, _ = opened(written(tmp_path / "a.czi", [(0, 0, 200, 150), (700, 550, 200, 150)], ZSTD))
    blank = reader.read(Box(300, 200, 300, 250))
    assert blank.shape == (250, 300, 3) and blank.strides[:2] == (0, 0) and (blank == 255).all()
    assert not blank.flags.writeable and reader.decoded == 0
    edge = reader.read(Box(100, 100, 300, 250))
    assert (edge[60:] == 255).all() and (edge[:40, :90] < 255).any() and reader.decoded == 1


def test_a_closed_reader_is_closed() -> None:
    reader, _ = opened(SAMPLE_CZI)
    reader.close()
    reader.close()
    with pytest.raises(ToolFailed, match="closed"):
        reader.read(Box(0, 0, 10, 10))


@pytest.mark.parametrize("name", ["a b (c).czi", "ünï.czi", "a\udcff.czi"])
def test_any_name_will_do(name: str, tmp_path: Path) -> None:
    """Java cannot open the last one."""
    try:
        (tmp_path / name).write_bytes(SAMPLE_CZI.read_bytes())
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    reader, slide = opened(tmp_path / name)
    assert whole(reader, slide.images[0]).any()


@pytest.mark.parametrize("kind", [RAW, ZSTD, "jxr"])
def test_random_damage_is_noticed_or_harmless(kind: str, tmp_path: Path) -> None:
    """Nothing but a clear error or pixels: no crash of ours, no hang, no block left black where there was tissue."""
    path = written(tmp_path / "a.czi", [(0, 0, 200, 150)], kind)
    data = path.read_bytes()
    payload = read_subblocks(data)[0].data
    at, draw = data.find(payload), random.Random(7)
    for _ in range(25):
        hurt = bytearray(data)
        spot = at + draw.randrange(min(len(payload), draw.choice([160, 1 << 30])))
        if draw.random() < 0.5:
            hurt[spot] = draw.randrange(256)
        else:
            length = min(draw.choice([16, 512, 4096]), at + len(payload) - spot)
            hurt[spot : spot + length] = bytes(length)
        path.write_bytes(hurt)
        reader, _ = opened(path, threads=1)
        try:
            pixels = reader.read(Box(0, 0, 200, 150))
        except (BadInput, ToolFailed) as error:
            assert "x=0, y=0" in error.message
        else:
            assert pixels.any()
        reader.close()


def test_payload_is_bounded_by_its_segment(tmp_path: Path) -> None:
    path = written(tmp_path / "a.czi", PLACES, RAW)
    reader, _ = opened(path)
    hurt = bytearray(path.read_bytes())
    at = czi._subblocks(path)[0].position + 32 + 8
    struct.pack_into("<q", hurt, at, 1 << 40)
    path.write_bytes(hurt)
    with pytest.raises(BadInput, match="claims"):
        reader.read(Box(0, 0, 10, 10))


# --- boxes -------------------------------------------------------------------------------------------------------


def spans(*pairs: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.array([first for first, _ in pairs], np.int64), np.array([last for _, last in pairs], np.int64)


def test_cuts_keep_blocks_whole() -> None:
    assert czilayout.cuts(*spans((0, 1500), (1500, 3000), (3000, 3100)), 3100) == [0, 1500, 3000, 3100]
    assert czilayout.cuts(*spans(*((x, x + 512) for x in range(0, 3072, 512))), 3072) == [0, 1024, 2048, 3072]
    assert czilayout.cuts(*spans((0, 2000)), 2000) == [0, 2000]


def test_cuts_of_huge_and_of_overlapping_blocks() -> None:
    assert czilayout.cuts(*spans((0, 9000)), 9000)[:3] == [0, 1024, 2048]
    overlapping = czilayout.cuts(*spans(*((x, x + 2000) for x in range(0, 9000, 1800))), 9200)
    assert overlapping == [0, 1800, 3600, 5400, 7200, 9200]
