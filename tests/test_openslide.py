"""sources.openslide: the pixels and the facts of Bio-Formats without Java; what is damaged or missing never passes."""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide as library
import PIL.Image
import pytest
import tifffile

import mimic
from mimic import ndpislide, opinion, privacy, svsslide
from mimic.errors import BadInput, ToolFailed, Unsupported
from mimic.geometry import grid
from mimic.model import Box, Image, Level, Options, Rendering, Request, Slide
from mimic.programs import bfclient
from mimic.settings import load
from mimic.sources import bioformats, choose, openslide
from tests.coded_samples import cut_tiles, tiles_of, write_j2k
from tests.slide_samples import FACTS, GT450, HEAD, Layout, Ndpi, write_ndpi
from tests.slide_samples import write_svs as written
from tools.make_samples import Sample, histology, write_svs

SETTINGS = load()
NDPI = "ndpi/test3-TRITC 2 (560).ndpi"
SVS = "svs/CMU-1-Small-Region.svs"


def told(path: Path) -> Slide | str:
    return svsslide.told(path.absolute(), source="bioformats")


def both(slide: Slide, image: Image) -> tuple[openslide.Planes, bioformats.Planes]:
    mine = openslide.Planes(slide, image, threads=2, settings=SETTINGS)
    return mine, bioformats.Planes(replace(slide, source="bioformats"), image, threads=2, settings=SETTINGS)


def odd_boxes(image: Image) -> list[Box]:
    """The whole (or much of it), the last corner, and a box that lies on no grid."""
    width, height = image.levels[0].width_px, image.levels[0].height_px
    across, down = min(width, 301), min(height, 257)
    boxes = [Box(0, 0, min(width, 1500), min(height, 1500)), Box(width - across, height - down, across, down)]
    return [*boxes, Box(width // 3, height // 3, width // 2, height // 5)]


def told_ndpi(path: Path) -> Slide | str:
    return ndpislide.told(path.absolute(), source="bioformats")


def compare_pixels(path: Path, *, most: int = 0) -> None:
    """Scan, label and macro against Bio-Formats."""
    slide = openslide.probe(path, SETTINGS)
    for image in slide.images:
        if image.role == "thumbnail":
            continue
        mine, theirs = both(slide, image)
        with closing(mine), closing(theirs):
            for box in odd_boxes(image):
                other = theirs.plane(box, 0, z=0, t=0)
                assert np.abs(mine.read(box).astype(int) - other).max() <= most, (image.role, box)


# --- the same pixels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SVS, NDPI])
def test_corpus_gives_bioformats_pixels(name: str, corpus_file: Callable[[str], Path]) -> None:
    compare_pixels(corpus_file(name))


@pytest.mark.parametrize(
    "layout",
    [
        Ndpi(),
        Ndpi((4096, 2304), (128, 8)),
        Ndpi((4096, 2304), (64, 8), "4:2:2"),
        Ndpi((4096, 2304), (4096, 8), "4:2:2"),
    ],
)
def test_ndpi_of_any_runs_gives_bioformats_pixels(layout: Ndpi, tmp_path: Path) -> None:
    picture = write_ndpi(tmp_path / "a.ndpi", layout)
    compare_pixels(tmp_path / "a.ndpi")
    slide = openslide.probe(tmp_path / "a.ndpi", SETTINGS)
    with closing(openslide.Planes(slide, slide.images[0], threads=1, settings=SETTINGS)) as reader:
        for box in reader.boxes()[::3]:
            rows, columns = slice(box.y_px, box.y_px + box.height_px), slice(box.x_px, box.x_px + box.width_px)
            assert np.abs(reader.read(box).astype(int) - picture[rows, columns]).mean() < 12


def test_ndpi_wider_than_a_jpeg_can_say(tmp_path: Path) -> None:
    """Bio-Formats 7.3.1 reads it as OpenSlide does from 2049 px of height on, and black below that."""
    path = tmp_path / "a.ndpi"
    picture = write_ndpi(path, Ndpi((69632, 16), (2176, 8)))
    slide = openslide.probe(path, SETTINGS)
    assert told_ndpi(path) == bioformats.probe(path, SETTINGS)
    with closing(openslide.Planes(slide, slide.images[0], threads=1, settings=SETTINGS)) as reader:
        for x in (0, 34_000, 68_632):
            pixels = reader.read(Box(x, 0, 1000, 16)).astype(int)
            assert np.abs(pixels - picture[:, x : x + 1000]).mean() < 5


@pytest.mark.parametrize("kind", ["rgb", "420", "422"])
def test_written_slides_give_bioformats_pixels(kind: str, tmp_path: Path) -> None:
    written(tmp_path / "a.svs", Layout(kind))
    compare_pixels(tmp_path / "a.svs")


@pytest.mark.parametrize("codec", ["lzw", None])
def test_label_of_any_usual_coding(codec: str | None, tmp_path: Path) -> None:
    written(tmp_path / "a.svs", Layout(label_codec=codec))
    slide = openslide.probe(tmp_path / "a.svs", SETTINGS)
    with closing(openslide.Planes(slide, slide.images[1], threads=1, settings=SETTINGS)) as reader:
        assert np.array_equal(reader.read(reader.boxes()[0]), histology(60, 70))


def test_what_mimic_writes_gives_bioformats_pixels(tmp_path: Path, sample_czi: Path) -> None:
    for rgb in (False, True):
        output = tmp_path / f"{rgb}.svs"
        mimic.convert(sample_czi, output, profile="rgb" if rgb else "ycc")
        compare_pixels(output)
        assert told(output) == bioformats.probe(output, SETTINGS)


def test_ycbcr_444_is_shown_right_where_bioformats_shows_it_wrong(tmp_path: Path) -> None:
    """Bio-Formats 7.3.1 turns 4:4:4 into RGB twice; libjpeg itself is the judge."""
    path = tmp_path / "a.svs"
    written(path, Layout("444"))
    slide = openslide.probe(path, SETTINGS)
    mine, theirs = both(slide, slide.images[0])
    with closing(mine), closing(theirs):
        first = Box(0, 0, 256, 256)
        truth = np.asarray(imagecodecs.jpeg8_decode(tiles_of(path)[0], outcolorspace="rgb"))
        assert np.array_equal(mine.read(first), truth)
        assert np.abs(theirs.plane(first, 0, z=0, t=0).astype(int) - truth).max() > 50


@pytest.mark.parametrize(("compression", "photometric"), [(33003, "ycbcr"), (33003, "rgb"), (33005, "rgb")])
def test_jpeg_2000_is_nearer_to_the_truth_than_bioformats(compression: int, photometric: str, tmp_path: Path) -> None:
    """Bio-Formats 7.3.1 lets YCbCr run over, and takes 33003 for RGB where the directory says so."""
    path, picture = tmp_path / "a.svs", histology(600, 400)
    write_j2k(path, picture, compression=compression, photometric=photometric)
    slide = openslide.probe(path, SETTINGS)
    mine, theirs = both(slide, slide.images[0])
    box = Box(0, 0, 600, 400)
    with closing(mine), closing(theirs):
        own, other = mine.read(box).astype(int), theirs.plane(box, 0, z=0, t=0).astype(int)
    decoded = [np.asarray(imagecodecs.jpeg2k_decode(each)) for each in tiles_of(path)]
    if compression == 33003:
        decoded = [np.asarray(PIL.Image.fromarray(each, "YCbCr").convert("RGB")) for each in decoded]
    for (column, row), tile in zip(cut_tiles(picture, 256), decoded, strict=True):
        part = own[row * 256 : row * 256 + 256, column * 256 : column * 256 + 256]
        assert np.abs(part - tile[: part.shape[0], : part.shape[1]]).max() <= 1
    assert np.square(own - picture).mean() < np.square(other - picture).mean()


def test_lower_levels_are_bioformats_but_for_part_of_a_pixel(sample: Callable[[str], Sample]) -> None:
    path = sample("svs").path
    slide = openslide.probe(path, SETTINGS)
    image = slide.images[0]
    mine, theirs = both(slide, image)
    with closing(mine), closing(theirs):
        for number, level in enumerate(image.levels[1:], start=1):
            box = Box(0, level.height_px // 3, level.width_px, level.height_px // 3)
            own, other = (each.plane(box, 0, z=0, t=0, level=number).astype(int) for each in (mine, theirs))
            assert np.abs(own - other).mean() < 4
    assert len(image.levels) > 1


def test_many_threads_read_what_one_reads(sample: Callable[[str], Sample]) -> None:
    made = sample("svs")
    slide = openslide.probe(made.path, SETTINGS)
    with closing(openslide.Planes(slide, slide.images[0], threads=4, settings=SETTINGS)) as reader:
        boxes = [Box(x, y, 200, 150) for y in range(0, 900, 150) for x in range(0, 1000, 200)]
        boxes = [
            box for box in boxes if box.x_px + 200 <= made.pixels.shape[1] and box.y_px + 150 <= made.pixels.shape[0]
        ]
        with ThreadPoolExecutor(4) as pool:
            for box, pixels in zip(boxes, pool.map(reader.read, boxes), strict=True):
                rows = slice(box.y_px, box.y_px + 150)
                assert np.array_equal(pixels, made.pixels[rows, box.x_px : box.x_px + 200])


def test_samples_are_the_channels_of_the_pixels(tmp_path: Path) -> None:
    written(tmp_path / "a.svs")
    slide = openslide.probe(tmp_path / "a.svs", SETTINGS)
    reader = openslide.open_planes(
        slide, slide.images[0], Rendering(()), threads=1, settings=SETTINGS, scratch=tmp_path
    )
    assert isinstance(reader, openslide.Planes)
    with closing(reader):
        box = Box(10, 20, 30, 40)
        red, blue = reader.samples(box, (0, 2), z=0, t=0)
        assert np.array_equal(np.stack([red, blue], -1), reader.read(box)[..., ::2])


@pytest.mark.parametrize("tile", [(240, 240), (256, 256), (1024, 16), (3968, 8)])
def test_boxes_are_whole_tiles_and_cover_each_pixel_once(tile: tuple[int, int]) -> None:
    size = Level(7000, 5000)
    box = openslide.box_size(size, tile)
    seen = np.zeros((5000, 7000), np.uint8)
    for each in grid(size, box):
        seen[each.y_px : each.y_px + each.height_px, each.x_px : each.x_px + each.width_px] += 1
        assert each.x_px % tile[0] == 0 and each.y_px % tile[1] == 0
        assert 4 * each.width_px * each.height_px <= openslide.BOX_MAX_BYTES
    assert (seen == 1).all()


# --- the same facts ----------------------------------------------------------------------------------------------


PLAIN: dict[str, Layout] = {
    "as it is": Layout(),
    "YCbCr": Layout("420"),
    "no date": Layout(facts="|AppMag = 20|MPP = 0.4990|A = b", thumbnail=f"{HEAD}\n700x560 -> 100x80 - |AppMag = 20"),
    "without spaces": Layout(facts=FACTS.replace(" = ", "=")),
    "AppMag with a fraction": Layout(facts=FACTS.replace("= 40", "= 40.0"), thumbnail=f"{HEAD}\n7 -> 1 - |A = b"),
    "MPP of many digits": Layout(facts=FACTS.replace("0.2500", "0.263312"), thumbnail=f"{HEAD}\n7 -> 1 - |A = b"),
    "MPP of few": Layout(facts=FACTS.replace("0.2500", "0.5"), thumbnail=f"{HEAD}\n7 -> 1 - |A = b"),
    "words in values": Layout(facts=FACTS + "|Title = the macro of a label|Originalheight = 33014"),
    "an older picture's text behind it": Layout(
        facts=f";Aperio Image Library v10.0.51\r\n9x9 [0,1 9x9] (256x256) JPEG/RGB Q=30{FACTS}|OriginalWidth = 9"
    ),
    "last century's number": Layout(facts=FACTS.replace("/24", "/09"), thumbnail=f"{HEAD}\n7 -> 1 - |A = b"),
    "no level": Layout(level=None),
    "no label": Layout(label=None),
    "no macro": Layout(macro=None),
    "neither": Layout(label=None, macro=None),
    "CR LF": Layout(label=f"{HEAD} \r\nlabel 60x70"),
    "label without a word": Layout(label=""),
    "label alone, without a word": Layout(label="", macro=None),
    "macro without a word": Layout(macro=""),
    "year of four digits": Layout(facts=FACTS.replace("/24", "/2024"), thumbnail=f"{HEAD}\n7 -> 1 - |A = b"),
    "GT450": Layout(
        "422",
        FACTS,
        f"{GT450}\n700x560 -> 100x80 - {FACTS}",
        f"{GT450}\r\n700x560 [0,0 700x560] -> 350x280",
        "",
        "",
        head=GT450,
    ),
    "alone": Layout(thumbnail=None, level=None, label=None, macro=None),
}
ODD: dict[str, Layout] = {
    "no MPP": Layout(facts="|AppMag = 40|A = b"),
    "no AppMag": Layout(facts="|MPP = 0.25|A = b"),
    "MPP of a printer": Layout(facts=FACTS.replace("0.2500", "84.6667")),
    "MPP of 1": Layout(facts=FACTS.replace("0.2500", "1.0000")),
    "AppMag in words": Layout(facts=FACTS.replace("= 40", "= 40x")),
    "the thumbnail says otherwise": Layout(thumbnail=f"{HEAD}\n7 -> 1 - |AppMag = 2"),
    "two of MPP": Layout(facts=FACTS + "|MPP = 0.5"),
    "date in other order": Layout(facts=FACTS.replace("03/05/24", "2024-03-05")),
    "date of no calendar": Layout(facts=FACTS.replace("03/05/24", "02/30/24"), thumbnail=f"{HEAD}\n7 -> 1 - |A = b"),
    "date without a time": Layout(facts="|AppMag = 40|MPP = 0.25|Date = 03/05/24", thumbnail=f"{HEAD}\n7 - |A = b"),
    "focus planes": Layout(facts=FACTS + "|OffsetZ = 1.0|TotalDepth = 3"),
    "a colour": Layout(facts=FACTS + "|DisplayColor = 255"),
    "no thumbnail": Layout(thumbnail=None),
    "level without a word": Layout(level=""),
    "macro alone, without a word": Layout(label=None, macro=""),
    "macro before label": Layout(swapped=True),
    "no marks": Layout(marks=(0, 0)),
    "one mark": Layout(marks=(1, 0)),
    "level called macro": Layout(level=f"{HEAD}\n7x7 macro -> 3x3"),
    "another maker": Layout(level="Scanner X"),
}


@pytest.mark.parametrize("case", PLAIN)
def test_facts_are_bioformats(case: str, tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    written(path, PLAIN[case])
    assert told(path) == bioformats.probe(path, SETTINGS)
    assert choose(path) == "openslide"


@pytest.mark.parametrize("case", ODD)
def test_odd_slides_are_bioformats(case: str, tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    written(path, ODD[case])
    assert isinstance(told(path), str)
    assert choose(path) == "bioformats"
    with pytest.raises(Unsupported, match="cannot be read by the source openslide"):
        openslide.probe(path, SETTINGS)


@pytest.mark.parametrize("name", [SVS, NDPI])
def test_facts_of_the_corpus(name: str, corpus_file: Callable[[str], Path]) -> None:
    path = corpus_file(name)
    assert (told if name == SVS else told_ndpi)(path) == bioformats.probe(path, SETTINGS)
    assert choose(path) == "openslide"


CM, DATE = (3, 1, bytes((3, 0))), b"2017:02:07 13:07:45\0"
PLAIN_NDPI: dict[str, Ndpi] = {
    "as it is": Ndpi(),
    "20x": Ndpi(lenses=(20.0, 10.0)),
    "one level": Ndpi(lenses=(40.0,)),
    "no mask": Ndpi(macro=(-1.0,)),
    "no macro": Ndpi(macro=()),
    "no date": Ndpi(changes=((306, None),)),
    "no properties": Ndpi(changes=((65449, None),)),
    "no product": Ndpi(changes=((65449, (2, 6, b"a = b\0")),)),
    "blanks around the product": Ndpi(changes=((65449, (2, 20, b"Product = C13210-01\0")),)),
    "pixels not quite square": Ndpi(changes=((283, (5, 1, struct.pack("<II", 43800, 1))),)),
    "a ratio": Ndpi(changes=((282, (5, 1, struct.pack("<II", 2_191_311, 50))),)),
}
ODD_NDPI: dict[str, Ndpi] = {
    "several focal planes": Ndpi(lenses=(40.0, 40.0, 20.0), focus=(0, 1000, 0)),
    "another focal plane": Ndpi(focus=(500, 500)),
    "no focal plane": Ndpi(changes=((65424, None),)),
    "inches": Ndpi(changes=((296, (3, 1, bytes((2, 0)))),)),
    "no pixel size": Ndpi(changes=((282, None),)),
    "a printer's pixel size": Ndpi(changes=((282, (5, 1, struct.pack("<II", 72, 1))),)),
    "half a lens": Ndpi(changes=((65421, (11, 1, struct.pack("<f", 40.5))),)),
    "odd date": Ndpi(changes=((306, (2, 11, b"2017-02-07\0")),)),
    "no calendar's date": Ndpi(changes=((306, (2, 20, b"2017:02:30 13:07:45\0")),)),
    "no starts": Ndpi(changes=((65426, None),)),
    "two bits": Ndpi(changes=((258, (3, 3, bytes((16, 0) * 3))),)),
    "small and 4:2:2": Ndpi(subsampling="4:2:2"),
    "4:2:0": Ndpi(subsampling="4:2:0"),
    "runs that do not fill it": Ndpi((1000, 512), (512, 8)),
    "rows that do not fill it": Ndpi((1024, 510)),
    "mask without macro": Ndpi(macro=(-2.0,)),
    "another picture": Ndpi(macro=(-1.0, -3.0)),
    "odd product": Ndpi(changes=((65449, (2, 20, b"Product=C9600 \xff <x>\0")),)),
}


@pytest.mark.parametrize("case", PLAIN_NDPI)
def test_facts_of_ndpi_are_bioformats(case: str, tmp_path: Path) -> None:
    path = tmp_path / "slide.ndpi"
    write_ndpi(path, PLAIN_NDPI[case])
    assert told_ndpi(path) == bioformats.probe(path, SETTINGS)
    assert choose(path) == "openslide"


@pytest.mark.parametrize("case", ODD_NDPI)
def test_odd_ndpi_are_bioformats(case: str, tmp_path: Path) -> None:
    path = tmp_path / "slide.ndpi"
    write_ndpi(path, ODD_NDPI[case])
    assert isinstance(told_ndpi(path), str) and choose(path) == "bioformats"


def test_ndpi_by_another_name_is_bioformats(tmp_path: Path) -> None:
    write_ndpi(tmp_path / "slide.tif")
    assert not openslide.claims(tmp_path / "slide.tif")


def test_a_mask_is_bioformats(tmp_path: Path) -> None:
    write_ndpi(tmp_path / "a.ndpi")
    slide = openslide.probe(tmp_path / "a.ndpi", SETTINGS)
    mask = slide.images[2]
    reader = openslide.open_planes(slide, mask, Rendering(()), threads=1, settings=SETTINGS, scratch=tmp_path)
    with closing(reader):
        (grey,) = reader.samples(Box(0, 0, 96, 64), (0,), z=0, t=0)
    assert np.array_equal(grey, histology(96, 64)[..., 0])


def test_a_slide_by_another_name(tmp_path: Path) -> None:
    written(tmp_path / "slide.tif")
    assert told(tmp_path / "slide.tif") == bioformats.probe(tmp_path / "slide.tif", SETTINGS)
    for case in ("alone", "GT450"):
        written(tmp_path / "other.tif", PLAIN[case])
        assert isinstance(told(tmp_path / "other.tif"), str)


def test_what_is_no_svs_is_not_claimed(tmp_path: Path, sample_czi: Path, sample: Callable[[str], Sample]) -> None:
    cut, words = tmp_path / "cut.svs", tmp_path / "words.svs"
    written(cut)
    cut.write_bytes(cut.read_bytes()[:-5000])
    words.write_text("no slide")
    for path in (cut, words, sample_czi, sample("ome_tiff").path, sample("png").path, tmp_path):
        assert not openslide.claims(path)


def test_colours_on_which_readers_disagree_are_bioformats(tmp_path: Path) -> None:
    """A stream that is marked YCbCr in a directory that says RGB."""
    path = tmp_path / "slide.svs"
    written(path, Layout("420"))
    assert openslide.claims(path)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages.first.tags[262].overwrite(2)
    assert not openslide.claims(path)


@pytest.mark.parametrize("name", ["written", SVS, NDPI])
def test_info_and_conversion_start_no_java(
    name: str, sample: Callable[[str], Sample], request: pytest.FixtureRequest, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = sample("svs").path if name == "written" else request.getfixturevalue("corpus_file")(name)

    def refuse(*_: object) -> None:
        raise AssertionError("a JVM was started")

    bfclient.shutdown()
    monkeypatch.setattr(bfclient, "server", refuse)
    assert mimic.probe(path).source == "openslide"
    for passthrough in ("auto", "never"):
        report = mimic.convert(path, tmp_path / f"{passthrough}.svs", passthrough=passthrough)
        roles = {picture.role for picture in report.results[0].plan.pictures}
        assert roles == ({"macro"} if name == NDPI else {"label", "macro"})
        assert next(each for each in report.tools if each.name == "OpenSlide").version == library.__library_version__
    assert report.results[0].plan.coded is None


def test_names_in_an_ndpi_are_learnt_without_java(corpus_file: Callable[[str], Path]) -> None:
    path = corpus_file(NDPI)
    request = Request(path, None, Options(deidentify=True))
    learnt, theirs = (privacy.Guard(request).learn(each.probe(path, SETTINGS)) for each in (openslide, bioformats))
    assert set(learnt.personal) == set(theirs.personal)
    assert {"950291", "C9600-12", "2017-02-07T13:07:45"} <= set(learnt.personal)


def test_names_in_the_input_are_learnt_without_java(tmp_path: Path) -> None:
    secret = "Erika Mustermann"
    facts = f"{FACTS}|Filename = case4711|Title = {secret}"
    written(tmp_path / "slide.svs", Layout(facts=facts))
    request = Request(tmp_path / "slide.svs", None, Options(deidentify=True))
    slide = openslide.probe(tmp_path / "slide.svs", SETTINGS)
    learnt = privacy.Guard(request).learn(slide).personal
    theirs = privacy.Guard(request).learn(bioformats.probe(tmp_path / "slide.svs", SETTINGS)).personal
    assert {secret, "case4711", "label image", "macro image", "2024-03-05T09:08:07"} <= set(learnt)
    assert set(learnt) == set(theirs)


# --- damage ------------------------------------------------------------------------------------------------------


def patched(path: Path, tag: int, index: int, value: int, page: int = 0) -> None:
    """One number of a field of 32-bit numbers."""
    with tifffile.TiffFile(path) as file:
        field = file.pages[page].aspage().tags[tag]
        at = field.valueoffset + 4 * index
        assert field.dtype == 4
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, at, value)
    path.write_bytes(data)


def test_a_tile_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    written(path)
    patched(path, 325, 4, 0)
    slide = openslide.probe(path, SETTINGS)
    assert slide.missing_tiles == 1
    with closing(openslide.Planes(slide, slide.images[0], threads=1, settings=SETTINGS)) as reader:
        with pytest.raises(BadInput, match="the file has no tile"):
            reader.read(Box(0, 0, 600, 400))
        assert reader.read(Box(0, 0, 256, 256)).shape == (256, 256, 3)
    with pytest.raises(BadInput, match="1 of its tiles are empty"):
        mimic.convert(path, tmp_path / "b.svs", passthrough="never")
    report = mimic.convert(path, tmp_path / "c.svs", passthrough="never", allow_missing=True)
    assert report.results[0].plan.slide.missing_tiles == 1
    with closing(library.OpenSlide(tmp_path / "c.svs")) as made:
        seen = np.asarray(made.read_region((0, 0), 0, (700, 560)))[..., :3]
    assert seen[256 + 16 : 496, 256 + 16 : 496].min() >= 250 and seen[:240, :240].min() < 200


def test_an_error_harms_neither_other_boxes_nor_other_threads(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    picture = written(path)
    with tifffile.TiffFile(path) as file:
        page = file.pages.first.aspage()
        at, count = page.dataoffsets[4], page.databytecounts[4]
    data = bytearray(path.read_bytes())
    data[at + count // 2 : at + count] = bytes(count - count // 2)
    path.write_bytes(data)
    slide = openslide.probe(path, SETTINGS)
    bad = (256, 256)
    with closing(openslide.Planes(slide, slide.images[0], threads=4, settings=SETTINGS)) as reader:
        boxes = [Box(x, y, min(256, 700 - x), min(256, 560 - y)) for y in (0, 256, 512) for x in (0, 256, 512)] * 10
        refused, lock = [], threading.Lock()

        def read(box: Box) -> None:
            try:
                pixels = reader.read(box).astype(int)
            except BadInput as error:
                assert "the file is damaged near x=256, y=256" in error.message and "\n" not in error.message
                with lock:
                    refused.append((box.x_px, box.y_px))
                return
            rows = slice(box.y_px, box.y_px + box.height_px)
            assert np.abs(pixels - picture[rows, box.x_px : box.x_px + box.width_px]).mean() < 10

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, boxes))
        assert refused == [bad] * 10


def test_a_damaged_run_of_an_ndpi_is_told(tmp_path: Path) -> None:
    """By libjpeg-turbo, asked for warnings: OpenSlide decodes it in silence, as Bio-Formats does."""
    path = tmp_path / "a.ndpi"
    write_ndpi(path)
    with tifffile.TiffFile(path) as file:
        at, count = file.pages.first.aspage().dataoffsets[20], file.pages.first.aspage().databytecounts[20]
    data = bytearray(path.read_bytes())
    data[at + 10 : at + count - 2] = bytes(count - 12)
    path.write_bytes(data)
    with pytest.raises(BadInput, match="do not decode"):
        mimic.convert(path, tmp_path / "b.svs")


def test_a_label_that_does_not_decode_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    written(path)
    with tifffile.TiffFile(path) as file:
        at = file.pages[3].aspage().dataoffsets[2]
    data = bytearray(path.read_bytes())
    data[at : at + 60] = bytes(60)
    path.write_bytes(data)
    slide = openslide.probe(path, SETTINGS)
    with pytest.raises(BadInput, match="its label cannot be read"):
        openslide.Planes(slide, slide.images[1], threads=1, settings=SETTINGS)


MISREAD: dict[str, Callable[[Path], Any]] = {
    "rgb.svs": lambda path: written(path, Layout("rgb")),
    "ycc.svs": lambda path: written(path, Layout("420")),
    "j2k.svs": lambda path: write_j2k(path, histology(600, 400), compression=33003, photometric="ycbcr"),
    "run.ndpi": write_ndpi,
}


@pytest.mark.parametrize("how", ["colours", "place"])
@pytest.mark.parametrize("name", MISREAD)
def test_what_openslide_misreads_is_refused(
    name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It judges the output too, where the same mistake would be none; so other decoders have a say."""
    MISREAD[name](tmp_path / name)
    plain = openslide._read

    def misread(handle: library.OpenSlide, box: Box, *, level: int) -> PIL.Image.Image:
        if how == "place":
            return plain(handle, replace(box, x_px=max(0, box.x_px - 1)), level=level)
        red, green, blue, alpha = plain(handle, box, level=level).split()
        return PIL.Image.merge("RGBA", (blue, green, red, alpha))

    slide = openslide.probe(tmp_path / name, SETTINGS)
    reader = openslide.open(slide, slide.images[0], threads=1, settings=SETTINGS, scratch=tmp_path)
    reader.close()
    monkeypatch.setattr(openslide, "_read", misread)
    with pytest.raises(Unsupported, match="in different ways"):
        mimic.convert(tmp_path / name, tmp_path / "out.svs", passthrough="never", mpp_um=0.25)
    assert not (tmp_path / "out.svs").exists()


@pytest.mark.parametrize("name", MISREAD)
def test_the_second_opinion_is_heard_all_over_the_picture(name: str, tmp_path: Path) -> None:
    MISREAD[name](tmp_path / name)
    found = list(opinion.tiles(tmp_path / name))
    assert len(found) >= 6 and len({box for box, _ in found}) == len(found)
    slide = openslide.probe(tmp_path / name, SETTINGS)
    size = slide.images[0].levels[0]
    last = found[-1][0]
    assert (last.x_px + last.width_px, last.y_px + last.height_px) == (size.width_px, size.height_px)


def test_a_closed_reader_is_closed(tmp_path: Path) -> None:
    written(tmp_path / "a.svs")
    slide = openslide.probe(tmp_path / "a.svs", SETTINGS)
    for image in slide.images:
        reader = openslide.Planes(slide, image, threads=1, settings=SETTINGS)
        reader.close()
        reader.close()
        with pytest.raises(ToolFailed, match="closed"):
            reader.read(Box(0, 0, 10, 10))


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "a.svs")
    slide = openslide.probe(tmp_path / "a.svs", SETTINGS)
    write_svs(tmp_path / "a.svs", histology(800, 700))
    with pytest.raises(BadInput, match="OpenSlide says"):
        openslide.Planes(slide, slide.images[0], threads=1, settings=SETTINGS)
    (tmp_path / "a.svs").write_bytes(b"II*\0" + bytes(100))
    with pytest.raises(BadInput, match="OpenSlide cannot open it"):
        openslide.Planes(slide, slide.images[0], threads=1, settings=SETTINGS)


@pytest.mark.parametrize("name", ["-rf.svs", "a b (c)é\U0001f52c.svs", "%s%n.svs", "a\nb.svs"])
def test_any_name_will_do(name: str, tmp_path: Path) -> None:
    picture = written(tmp_path / name)
    slide = openslide.probe(tmp_path / name, SETTINGS)
    with closing(openslide.Planes(slide, slide.images[0], threads=1, settings=SETTINGS)) as reader:
        assert np.abs(reader.read(Box(0, 0, 700, 560)).astype(int) - picture).mean() < 10


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names are Unicode there")
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xfe.svs")
    try:
        written(tmp_path / "a.svs")
        os.rename(tmp_path / "a.svs", path)  # noqa: PTH104 - as bytes
    except OSError:
        pytest.skip("the file system wants text")
    assert mimic.probe(path).source == "openslide"
    assert mimic.convert(path, tmp_path / "out.svs", passthrough="never").status == "converted"
