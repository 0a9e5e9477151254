"""Compressed tiles copied, the whole way: identical bytes, the reasons, damage, holes, and what other readers see."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import PIL.Image
import pydicom
import pytest
import simplejpeg  # type: ignore[import-untyped]
import tifffile
from pydicom.encaps import generate_frames

import mimic
from mimic import jpegs, streams, verify
from mimic.copying import kept, reason_against
from mimic.errors import BadInput, MimicError, Unsupported, VerificationFailed
from mimic.model import Coded, Level, Options, Plan, Report
from mimic.pyramid import area_average
from tests.coded_samples import (
    KINDS,
    RGB,
    as_slide,
    dicom_frames,
    share_tables,
    split,
    tiles_of,
    write_dicom,
    write_j2k,
    write_ome,
)
from tests.readers import BOX, cut
from tests.readers.table import READERS
from tools.make_samples import Sample, histology, write_svs

SIZE = (2300, 1900)
CMU, SERIES = "svs/CMU-1-Small-Region.svs", "dicom/cmu_small_region_series"
MADE_DB = 30.0
"""A level made from the copied tiles at quality 80 against the average of their pixels."""


def plan_of(report: Report) -> Plan:
    return report.results[0].plan


def checked(report: Report) -> dict[str, bool]:
    return {check.name: check.passed for check in report.results[0].checks}


def psnr(first: RGB, second: RGB) -> float:
    assert first.shape == second.shape
    error = float(np.mean((first.astype(np.float64) - second) ** 2))
    return 99.0 if error == 0 else 10 * np.log10(255**2 / error)


def level_pixels(path: Path, level: int) -> RGB:
    """A whole level as OpenSlide reads it."""
    with closing(openslide.OpenSlide(path)) as slide:
        return np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))[..., :3]


def test_every_tile_of_a_scanners_slide_is_copied(corpus_file: Callable[[str], Path], tmp_path: Path) -> None:
    output = tmp_path / "out.svs"
    done = mimic.convert(corpus_file(CMU), output, passthrough="require")
    assert tiles_of(output) == tiles_of(corpus_file(CMU)) and len(tiles_of(output)) == 130
    with tifffile.TiffFile(output) as written, tifffile.TiffFile(corpus_file(CMU)) as source:
        page, genuine = written.pages.first, source.pages.first
        assert page.jpegtables == genuine.jpegtables
        assert (page.photometric, page.compression, page.tile) == (2, 7, (240, 240))
        assert "(240x240) JPEG/RGB Q=30|" in page.description
        assert "|Pixels = copied, not recompressed (1 of 2 levels)" in page.description
    assert np.array_equal(level_pixels(output, 0), level_pixels(corpus_file(CMU), 0))
    plan = plan_of(done)
    assert plan.copied_levels == 1 and any("bit by bit" in reason for reason in plan.reasons)
    assert checked(done)["copied tiles"] and checked(done)["copied pixels"] and checked(done)["colours and places"]


def test_every_frame_of_a_dicom_series_is_copied(corpus_file: Callable[[str], Path], tmp_path: Path) -> None:
    files = sorted(corpus_file(SERIES).iterdir())
    output = tmp_path / "out.svs"
    done = mimic.convert(files[0], output, passthrough="require")
    base = next(each for each in map(pydicom.dcmread, files) if each.TotalPixelMatrixColumns == 2220)
    assert tiles_of(output) == list(generate_frames(base.PixelData, number_of_frames=130))
    assert np.array_equal(level_pixels(output, 0), level_pixels(corpus_file(CMU), 0))  # made from that slide
    assert "pydicom" in {tool.name for tool in done.tools} and len(done.input_sha256) == 8


def test_made_level_is_the_average_of_the_copied_tiles(corpus_file: Callable[[str], Path], tmp_path: Path) -> None:
    output = tmp_path / "out.svs"
    mimic.convert(corpus_file(CMU), output)
    made, truth = level_pixels(output, 1), area_average(level_pixels(output, 0), 4, 4)
    assert psnr(made, truth) > MADE_DB
    assert psnr(made[:, 1:], truth[:, :-1]) < MADE_DB  # the measure would notice one pixel
    assert np.abs(made.mean((0, 1)) - truth.mean((0, 1))).max() < 1


WRITTEN: dict[str, tuple[Callable[[Path], object], tuple[int, int | None]]] = {
    # name: (writer, (photometric of the output, levels copied; None: decoded))
    "420.ome.tif": (lambda path: write_ome(path, "420", size_px=SIZE, factors=(2, 4), tile_px=240), (6, 2)),
    "422.ome.tif": (lambda path: write_ome(path, "422", size_px=SIZE, tile_px=512), (6, 1)),
    "444.ome.tif": (lambda path: write_ome(path, "444", size_px=SIZE), (6, None)),
    "rgb.ome.tif": (lambda path: write_ome(path, "rgb", size_px=SIZE, tile_px=1024, factors=(2,)), (2, 2)),
    "rgb.svs": (lambda path: write_svs(path, histology(*SIZE), profile="rgb"), (2, 2)),
    "ycc.svs": (lambda path: write_svs(path, histology(*SIZE), profile="ycc"), (6, 2)),
}


ALIKE = frozenset((258, 259, 262, 277, 284, 322, 323, 530))


@pytest.mark.parametrize("name", WRITTEN)
def test_written_slide_is_copied_or_told_why_not(name: str, tmp_path: Path) -> None:
    write, (photometric, levels) = WRITTEN[name]
    path, output = tmp_path / name, tmp_path / "out.svs"
    write(path)
    done = mimic.convert(path, output)
    plan = plan_of(done)
    assert (plan.coded is None) == (levels is None)
    with tifffile.TiffFile(output) as written:
        assert written.pages.first.photometric == photometric
        tags = [
            {tag.code: tag.value for tag in written.pages[index].aspage().tags if tag.code in ALIKE}
            for index in (0, *range(2, len(plan.levels) + 1))
        ]
        assert len(tags) == len(plan.levels) and all(each == tags[0] for each in tags)
    if levels is None:
        assert any("YCbCr 4:4:4 would show wrong colours in QuPath" in reason for reason in plan.reasons)
        return
    assert plan.copied_levels == levels
    for level in range(levels):
        assert tiles_of(output, level=level) == tiles_of(path, level=level)
    assert not verify.failed(verify.check(output))


def test_shared_tables_of_ycbcr_are_merged(tmp_path: Path) -> None:
    path, output = tmp_path / "a.ome.tif", tmp_path / "out.svs"
    write_ome(path, "420", size_px=(1200, 900))
    share_tables(path)
    mimic.convert(path, output, passthrough="require")
    with tifffile.TiffFile(output) as written:
        assert written.pages.first.jpegtables is None
    for mine, theirs in zip(tiles_of(output), tiles_of(path), strict=True):
        assert mine[mine.index(b"\xff\xda") :] == theirs[theirs.index(b"\xff\xda") :] and split(mine)[1] == theirs


def test_bio_formats_ome_tiff_is_copied_by_its_markers(corpus_file: Callable[[str], Path], tmp_path: Path) -> None:
    """Its tag says RGB and its tiles say YCbCr: Bio-Formats goes by the tiles, and so do we; other readers then too."""
    source, output = corpus_file("ometiff/OS-1-detail.ome.tif"), tmp_path / "out.svs"
    done = mimic.convert(source, output, passthrough="require")
    assert tiles_of(output) == tiles_of(source) and checked(done)["colours and places"]


def test_never_and_require(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    write_ome(path, "420", size_px=(1200, 900))
    never = mimic.convert(path, tmp_path / "never.svs", passthrough="never")
    assert plan_of(never).coded is None and tiles_of(tmp_path / "never.svs") != tiles_of(path)
    assert any("--passthrough never" in reason for reason in plan_of(never).reasons)
    write_ome(path, "444", size_px=(1200, 900))
    with pytest.raises(Unsupported, match="4:4:4 would show wrong colours"):
        mimic.convert(path, tmp_path / "required.svs", passthrough="require")
    assert not (tmp_path / "required.svs").exists()


def test_file_without_tiles_cannot_be_required(tmp_path: Path, sample: Callable[[str], Sample]) -> None:
    with pytest.raises(Unsupported, match="no compressed tiles"):
        mimic.convert(sample("png").path, tmp_path / "a.svs", passthrough="require", mpp_um=0.25)


def test_jpeg_2000_is_copied_only_when_asked_for(corpus_file: Callable[[str], Path], tmp_path: Path) -> None:
    source = corpus_file("dicom/multi_frame_jpeg2000_camelyon_challenge_image.dcm")
    usual = mimic.convert(source, tmp_path / "jpeg.svs")
    assert plan_of(usual).coded is None and any("--codec jp2k" in reason for reason in plan_of(usual).reasons)
    output = tmp_path / "j2k.svs"
    mimic.convert(source, output, codec="jp2k")
    stored = pydicom.dcmread(source)
    assert tiles_of(output) == list(generate_frames(stored.PixelData, number_of_frames=28))
    with tifffile.TiffFile(output) as written:
        assert {page.compression for page in written.pages if page.is_tiled} == {33005}
    truth = np.asarray(PIL.Image.open(io.BytesIO(tiles_of(output)[0])).convert("RGB"))
    assert psnr(level_pixels(output, 0)[:256, :256], truth) > 45


JPEG_2000 = [(33003, "ycbcr", True), (33005, "rgb", True), (34712, "rgb", True), (33003, "rgb", False)]


@pytest.mark.parametrize(("compression", "photometric", "fits"), JPEG_2000)
def test_jpeg_2000_of_tiffs(compression: int, photometric: str, fits: bool, tmp_path: Path) -> None:
    path, output = tmp_path / "a.svs", tmp_path / "out.svs"
    write_j2k(path, histology(1300, 1100), compression=compression, photometric=photometric)
    if not fits:
        with pytest.raises(Unsupported, match="readers disagree"):
            mimic.convert(path, output, codec="jp2k", passthrough="require")
        return
    mimic.convert(path, output, codec="jp2k", passthrough="require")
    assert tiles_of(output) == tiles_of(path)
    assert psnr(level_pixels(output, 0), histology(1300, 1100)) > 35  # OpenJPEG was asked for 45
    assert psnr(level_pixels(output, 1), area_average(histology(1300, 1100), 4, 4)) > MADE_DB
    with tifffile.TiffFile(output) as written:
        aperios = 33005 if compression == 34712 else compression
        assert [page.aspage().compression for page in written.pages] == [aperios, 7, aperios]


def test_comments_in_tiles_are_not_let_through_when_deidentified(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    write_ome(path, "420", size_px=(600, 500))
    tiles = [tile[:2] + b"\xff\xfe\0\x0aJane Doe" + tile[2:] for tile in tiles_of(path)]
    with tifffile.TiffFile(path) as source:
        text = source.pages.first.description.encode()
    options: dict[str, Any] = {"tile": (256, 256), "compression": "jpeg", "metadata": None, **KINDS["420"]}
    tifffile.imwrite(path, data=iter(tiles), shape=(500, 600, 3), dtype="uint8", description=text, **options)
    mimic.convert(path, tmp_path / "plain.svs", passthrough="require")
    assert b"Jane Doe" in (tmp_path / "plain.svs").read_bytes()
    with pytest.raises(BadInput, match="comments"):
        mimic.convert(path, tmp_path / "secret.svs", deidentify=True)
    mimic.convert(path, tmp_path / "secret.svs", deidentify=True, passthrough="never")
    assert b"Jane Doe" not in (tmp_path / "secret.svs").read_bytes()


@pytest.mark.parametrize("levels", [(), (4,)])
def test_every_tile_is_decoded_once(levels: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What proves a tile, makes the levels below and meets the source's lower level is one decoding of it."""
    path = tmp_path / "a.ome.tif"
    write_ome(path, "420", size_px=SIZE, factors=levels)
    counted: list[bool] = []
    decode = simplejpeg.decode_jpeg

    def counting(*args: Any, **more: Any) -> Any:
        counted.append("min_height" not in more)
        return decode(*args, **more)

    monkeypatch.setattr(streams, "DECODED_WHOLE", 0)  # as for a large slide
    monkeypatch.setattr(simplejpeg, "decode_jpeg", counting)
    done = mimic.convert(path, tmp_path / "out.svs")
    base, low = 9 * 8, 3 * 2
    sampled = -(-base // streams.DECODE_AGAIN_EVERY) + 3  # one at least of each page
    assert plan_of(done).copied_levels == 1 + len(levels)
    if levels:  # the lower level is a witness too, and small enough to be decoded for the thumbnail
        assert base + low < len(counted) <= base + 2 * low + sampled
        assert sum(counted) <= 2 * low + sampled
    else:
        assert base < len(counted) <= base + sampled and sum(counted) <= sampled


def tile_at(path: Path, index: int) -> tuple[int, int]:
    with tifffile.TiffFile(path) as written:
        return written.pages.first.dataoffsets[index], written.pages.first.databytecounts[index]


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize("where", ["header", "data", "end"])
@pytest.mark.parametrize("levels", [(), (4,)])
def test_damaged_tile_is_refused(where: str, levels: tuple[int, ...], tmp_path: Path) -> None:
    """With the lower level in the file nothing has to be decoded, and still nothing passes."""
    path = tmp_path / "a.ome.tif"
    write_ome(path, "420", size_px=SIZE, factors=levels)
    at, count = tile_at(path, 34)  # not among those looked at for the plan
    offset, data = {"header": (0, bytes(30)), "data": (count // 2, bytes(300)), "end": (count - 2, b"\0\0")}[where]
    overwrite(path, at + offset, data)
    with pytest.raises(BadInput) as caught:
        mimic.convert(path, tmp_path / "out.svs")
    assert "tile" in str(caught.value) and path.name in str(caught.value)
    assert not (tmp_path / "out.svs").exists()


def test_tile_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    write_ome(path, "420", size_px=SIZE)
    at, _ = tile_at(path, 34)
    head = path.read_bytes()[at : at + 700]
    overwrite(path, at + head.index(b"\x01\x22\x00\x02\x11\x01"), b"\x01\x11")  # 4:2:0 is called 4:4:4
    with pytest.raises(BadInput, match="column 7, row 3"):
        mimic.convert(path, tmp_path / "out.svs")


@pytest.fixture
def with_hole(tmp_path: Path) -> Path:
    """An OME-TIFF whose tile 12 (column 3, row 1) is declared empty."""
    path = tmp_path / "hole.ome.tif"
    write_ome(path, "420", size_px=SIZE, photometric="ycbcr")
    with tifffile.TiffFile(path) as written:
        field = written.pages.first.tags[325]
    overwrite(path, field.valueoffset + 12 * 4, struct.pack("<I", 0))
    return path


def test_missing_tile_is_white_and_counted(with_hole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.svs"
    done = mimic.convert(with_hole, output)
    pixels = level_pixels(output, 0)
    assert (pixels[256:512, 768:1024] == 255).all() and pixels[256:512, 512:760].min() < 200
    assert any(warning.startswith("1 tile of level 0 is missing") for warning in done.warnings)
    tiles = tiles_of(output)
    tiles[12] = b""
    assert tiles == tiles_of(with_hole)
    with tifffile.TiffFile(output) as written:
        assert "|Missing Tiles = 1 white" in written.pages.first.description
    assert (level_pixels(output, 1)[66:126, 194:254] > 250).all()  # made, and white too
    with pytest.raises(BadInput, match="1 of its tiles"):
        mimic.convert(with_hole, tmp_path / "never.svs", passthrough="never")


def test_sparse_dicom_is_white_where_it_has_no_frame(tmp_path: Path) -> None:
    frames = dicom_frames(histology(*SIZE), 256)
    left = {place: data for place, data in reversed(frames.items()) if place not in ((0, 0), (3, 3))}
    folder = tmp_path / "series"
    folder.mkdir()
    write_dicom(folder / "a.dcm", SIZE, left, sparse=True, table="extended")
    done = mimic.convert(folder / "a.dcm", tmp_path / "out.svs")
    pixels = level_pixels(tmp_path / "out.svs", 0)
    assert (pixels[:256, :256] == 255).all() and (pixels[768:1024, 768:1024] == 255).all()
    assert psnr(pixels[:1900, 256:768], histology(*SIZE)[:, 256:768]) > 30
    assert any(warning.startswith("2 tiles of level 0 are missing") for warning in done.warnings)
    with pytest.raises(BadInput, match="2 of its tiles"):
        mimic.convert(folder / "a.dcm", tmp_path / "never.svs", passthrough="never")


@pytest.mark.parametrize("how", ["concatenation", "fragments"])
def test_what_bio_formats_misreads_is_copied_and_never_decoded(how: str, tmp_path: Path) -> None:
    frames = dicom_frames(pixels := histology(1200, 900), 256)
    folder = tmp_path / "series"
    folder.mkdir()
    items = list(frames.items())
    if how == "fragments":
        write_dicom(folder / "a.dcm", (1200, 900), frames, fragments=3)
    else:
        write_dicom(folder / "a.dcm", (1200, 900), dict(items[:7]), part=("1.2.9", 1, 2, 0))
        write_dicom(folder / "b.dcm", (1200, 900), dict(items[7:]), part=("1.2.9", 2, 2, 7))
    done = mimic.convert(folder / "a.dcm", tmp_path / "out.svs")
    assert psnr(level_pixels(tmp_path / "out.svs", 0), pixels) > 33  # as coded at quality 85
    assert len(done.input_sha256) == (1 if how == "fragments" else 2)
    with pytest.raises(Unsupported, match="cannot be decoded"):
        mimic.convert(folder / "a.dcm", tmp_path / "never.svs", passthrough="never")


def test_readers_disagreeing_with_the_ordinary_one_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the tiles called RGB, Bio-Formats' pixels would tell."""
    path = tmp_path / "a.ome.tif"
    write_ome(path, "420", size_px=(1200, 900))
    module = sys.modules["mimic.probe"]
    genuine = module.coded

    def mistaken(slide: Any) -> Any:
        found = genuine(slide)
        monkeypatch.setattr(jpegs, "kind", lambda *_, **__: jpegs.Kind(2, None))
        return replace(found, coded=replace(found.coded, photometric=2, subsampling=None))

    monkeypatch.setattr(module, "coded", mistaken)
    with pytest.raises(VerificationFailed):
        mimic.convert(path, tmp_path / "out.svs")


def coded_levels(*sizes: tuple[int, int], **changes: Any) -> Coded:
    return Coded("tiff", tuple(Level(*size, 256, 256) for size in sizes), 256, subsampling=(2, 2), **changes)


def test_only_exact_levels_are_kept() -> None:
    sizes = [(40001, 30003), (20000, 15001), (10001, 7500), (10000, 7500), (5000, 3750), (1250, 937), (625, 468)]
    found = kept(coded_levels(*sizes), belongs=lambda _, size: min(size) >= 500)
    kept_sizes = [(level.width_px, level.height_px) for level in found.levels]
    assert kept_sizes == [(40001, 30003), (20000, 15001), (10000, 7500), (5000, 3750), (1250, 937)]


REASONS: list[tuple[dict[str, Any], dict[str, Any], str | None]] = [
    ({}, {}, None),
    ({"passthrough": "never"}, {}, "--passthrough never"),
    ({"tile_px": 512}, {}, "512 px"),
    ({"profile": "rgb"}, {}, "RGB"),
    ({}, {"compression": 33005}, "--codec jp2k"),
    ({"codec": "jp2k"}, {"compression": 33005}, None),
    ({}, {"reason": "because"}, "because"),
]


@pytest.mark.parametrize(("options", "coded", "words"), REASONS)
def test_reasons_against_copying(options: dict[str, Any], coded: dict[str, Any], words: str | None) -> None:
    slide = replace(as_slide(Path("a.tif"), [(4000, 3000)]), coded=coded_levels((4000, 3000), **coded))
    reason = reason_against(slide, slide.images[0], Options(**options), must_decode=None)
    assert reason is None if words is None else words in str(reason)


def test_options_that_change_pixels_forbid_copying() -> None:
    slide = replace(as_slide(Path("a.tif"), [(4000, 3000)]), coded=coded_levels((4000, 3000)))
    assert reason_against(slide, slide.images[0], Options(), must_decode="colours change") == "colours change"


READER_DB = 35.0
"""Readers smooth halved chroma in their own ways (slideio: 37.9 dB of colours as strong as these); one pixel off gives
less than 30, and RGB is the same to rounding."""
WITH_PICTURES = {"bioformats", "pyvips", "libtiff", "imagemagick"}
"""As written in tests/readers these take a label and a macro for granted."""
SLOW = {"bioformats", "cucim", "gimp"}
PAIRS = [
    *((kind, name) for kind in ("cmu", "dicom") for name in READERS),
    *(("420", name) for name in READERS if name not in SLOW),
    *(("422", name) for name in READERS if name not in SLOW | WITH_PICTURES),
]


@pytest.fixture(scope="module")
def copied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RGB, float]:
    """A slide of copied tiles, the truth (Pillow's pixels of the source's tiles, put together), and how near it is."""
    folder = tmp_path_factory.mktemp(f"copied_{request.param}")
    output, tables, photometric, size, floor = folder / "out.svs", None, 6, SIZE, READER_DB
    if request.param in ("cmu", "dicom"):
        find = request.getfixturevalue("corpus_file")
        source = genuine = find(CMU)
        with tifffile.TiffFile(genuine) as slide:
            tables = slide.pages.first.jpegtables
        photometric, size, floor = 2, (2220, 2967), 50.0
        source = genuine if request.param == "cmu" else sorted(find(SERIES).iterdir())[0]
    else:
        source = genuine = folder / ("a.svs" if request.param == "420" else "a.ome.tif")
        if request.param == "420":
            write_svs(source, histology(*SIZE), profile="ycc")
        else:
            write_ome(source, request.param, size_px=SIZE, tile_px=240, factors=(4,))
    mimic.convert(source, output, passthrough="require")
    streams = [jpegs.decodable(tile, tables=tables, photometric=photometric) for tile in tiles_of(genuine)]
    return output, put_together(streams, size), floor


def put_together(streams: list[bytes], size: tuple[int, int]) -> RGB:
    """The picture that whole JPEG tiles make, row by row."""
    tiles = [np.asarray(PIL.Image.open(io.BytesIO(stream)).convert("RGB")) for stream in streams]
    columns = -(-size[0] // tiles[0].shape[1])
    rows = [np.concatenate(tiles[at : at + columns], axis=1) for at in range(0, len(tiles), columns)]
    return np.ascontiguousarray(np.concatenate(rows)[: size[1], : size[0]])


@pytest.mark.parametrize(("copied", "name"), PAIRS, indirect=["copied"])
def test_readers_agree_on_copied_tiles(name: str, copied: tuple[Path, RGB, float]) -> None:
    output, truth, floor = copied
    seen = READERS[name](output)
    assert seen.size == truth.shape[1::-1] and seen.pixels is not None
    assert psnr(seen.pixels, cut(truth)) > floor
    assert psnr(seen.pixels, truth[BOX[1] :, BOX[0] + 1 :][: BOX[3], : BOX[2]]) < READER_DB  # one pixel off is noticed
    if seen.levels is not None:
        assert len(seen.levels) == 2 and tuple(seen.levels[1]) == (truth.shape[1] // 4, truth.shape[0] // 4)


def test_errors_are_mimics(tmp_path: Path) -> None:
    """A tile whose directory lies is found before a byte is copied."""
    path = tmp_path / "a.ome.tif"
    write_ome(path, "420", size_px=SIZE)
    with tifffile.TiffFile(path) as written:
        field = written.pages.first.tags[324]
    overwrite(path, field.valueoffset + 5 * 4, struct.pack("<I", 1 << 30))
    with pytest.raises(MimicError, match="cut short"):
        mimic.convert(path, tmp_path / "out.svs")
