"""A slide through pyramid, encode, svs and writer, judged by OpenSlide, tifffile and libtiff; the writer's refusals."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import PIL.Image
import PIL.ImageSequence
import pytest
import tifffile
from skimage import data

from mimic import description, encode, svs, writer
from mimic.errors import InternalError, OutputError
from mimic.model import Box, CodedTile, Page, Picture, Pixels, Plan, Profile, Tag, Written
from mimic.pyramid import Pyramid, area_average, thumbnail
from mimic.writer import TiffWriter, joined
from tests.test_svs import make_plan

LEVELS = ((2501, 2403), (625, 600), (156, 150))
VARIANTS: tuple[tuple[Profile, bool], ...] = (("ycc", False), ("rgb", False), ("ycc", True), ("rgb", True))
NO_CLASSIC_BYTES = 0


def psnr_db(a: Pixels, b: Pixels) -> float:
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 99.0 if mse == 0 else float(10 * np.log10(255**2 / mse))


def need_tool(name: str) -> str:
    """A missing tool skips at a desk and fails in CI."""
    found = shutil.which(name)
    if found is None:
        (pytest.fail if os.environ.get("MIMIC_REQUIRE_TOOLS") == "1" else pytest.skip)(f"{name} is not installed")
    return str(found)


@pytest.fixture(scope="module")
def tissue() -> Pixels:
    """2501 x 2403 pixels of stained tissue, mirrored so that there are no seams."""
    one = data.immunohistochemistry()[..., :3]  # type: ignore[no-untyped-call]
    row = np.concatenate([one, one[:, ::-1]] * 3, axis=1)
    return np.ascontiguousarray(np.concatenate([row, row[::-1]] * 3)[: LEVELS[0][1], : LEVELS[0][0]])


def tables_of(plan: Plan) -> bytes | None:
    return encode.jpeg_tables(plan.quality) if plan.profile == "rgb" else None


def write_slide(path: Path, plan: Plan, pixels: Pixels, classic_limit_bytes: int = 2**31) -> Written:
    """What convert does, without reader and threads."""
    made = Pyramid(
        [(level.width_px, level.height_px) for level in plan.levels], tile_px=plan.tile_px, downsample=plan.downsample
    )
    high, wide = pixels.shape[:2]
    with TiffWriter(path, classic_limit_bytes=classic_limit_bytes) as writer:
        for y in range(0, high, 700):
            for x in range(0, wide, 900):
                box = Box(x, y, min(900, wide - x), min(700, high - y))
                for tile in made.add(box, pixels[y : y + box.height_px, x : x + box.width_px]):
                    coded = encode.tile(tile.pixels, quality=plan.quality, profile=plan.profile)
                    writer.add_tile(CodedTile(tile.level, tile.column, tile.row, coded))
        small = thumbnail(made.smallest(), plan.thumbnail_px)
        writer.add_strip("thumbnail", encode.jpeg(small, quality=plan.quality, profile=plan.profile))
        for picture in plan.pictures:
            part = pixels[: picture.height_px, : picture.width_px]
            strip = (
                encode.lzw(part)
                if picture.role == "label"
                else encode.jpeg(part, quality=plan.quality, profile=plan.profile)
            )
            writer.add_strip(picture.role, strip)
        return writer.finish(svs.pages(plan, version="0.1.0", jpeg_tables=tables_of(plan)))


@pytest.fixture(
    scope="module", params=VARIANTS, ids=lambda variant: f"{variant[0]}-{'big' if variant[1] else 'classic'}"
)
def slide(
    request: pytest.FixtureRequest, tissue: Pixels, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, Written]:
    profile, big = request.param
    plan = make_plan(LEVELS, profile=profile, thumbnail_px=(120, 115))
    path = tmp_path_factory.mktemp(profile) / "slide.svs"
    return plan, write_slide(path, plan, tissue, NO_CLASSIC_BYTES if big else 2**31)


def levels_of(pixels: Pixels) -> list[Pixels]:
    made = [pixels]
    for _ in LEVELS[1:]:
        made.append(area_average(made[-1], 4, 4))
    return made


def test_written_says_what_is_there(slide: tuple[Plan, Written], request: pytest.FixtureRequest) -> None:
    _, written = slide
    content = written.path.read_bytes()
    assert written.bytes == len(content)
    assert written.sha256 == hashlib.sha256(content).hexdigest()
    assert written.tiles == 100 + 9 + 1
    assert written.bigtiff == ("big" in request.node.name)
    assert content[:4] == (b"II\x2b\0" if written.bigtiff else b"II\x2a\0")


def test_openslide_sees_an_aperio_slide(slide: tuple[Plan, Written], tissue: Pixels) -> None:
    with openslide.OpenSlide(slide[1].path) as seen:
        assert seen.properties["openslide.vendor"] == "aperio"
        assert seen.level_dimensions == LEVELS
        assert float(seen.properties["openslide.mpp-x"]) == 0.25
        assert float(seen.properties["openslide.mpp-y"]) == 0.25
        assert seen.properties["openslide.objective-power"] == "40"
        assert seen.properties["aperio.Converter"] == "mimic 0.1.0"
        assert "openslide.quickhash-1" in seen.properties
        assert set(seen.associated_images) == {"thumbnail", "label", "macro"}
        assert seen.associated_images["thumbnail"].size == (120, 115)
        label, macro = (np.asarray(seen.associated_images[kind].convert("RGB")) for kind in ("label", "macro"))
        np.testing.assert_array_equal(label, tissue[:463, :387])
        assert psnr_db(macro, tissue[:431, :1280]) > 30
        small = np.asarray(seen.associated_images["thumbnail"].convert("RGB"))
        assert psnr_db(small, thumbnail(levels_of(tissue)[-1], (120, 115))) > 25


def test_openslide_reads_the_source_pixels(slide: tuple[Plan, Written], tissue: Pixels) -> None:
    with openslide.OpenSlide(slide[1].path) as seen:
        for level, want in enumerate(levels_of(tissue)):
            got = np.asarray(seen.read_region((0, 0), level, LEVELS[level]))
            assert (got[..., 3] == 255).all(), "a tile is missing"
            assert psnr_db(got[..., :3], want) > (30 if level == 0 else 26)


def test_the_last_row_and_column_are_not_blurred_by_padding(slide: tuple[Plan, Written], tissue: Pixels) -> None:
    with openslide.OpenSlide(slide[1].path) as seen:
        right = np.asarray(seen.read_region((2501 - 16, 0), 0, (16, 2403)).convert("RGB"))
        bottom = np.asarray(seen.read_region((0, 2403 - 16), 0, (2501, 16)).convert("RGB"))
    assert psnr_db(right, tissue[:, -16:]) > 29
    assert psnr_db(bottom, tissue[-16:]) > 29


def test_tifffile_sees_an_aperio_slide(slide: tuple[Plan, Written], tissue: Pixels) -> None:
    with tifffile.TiffFile(slide[1].path) as seen:
        assert seen.is_svs
        assert seen.is_bigtiff == slide[1].bigtiff
        assert [series.name for series in seen.series] == ["Baseline", "Thumbnail", "Label", "Macro"]
        assert [level.shape for level in seen.series[0].levels] == [(high, wide, 3) for wide, high in LEVELS]
        for level, want in zip(seen.series[0].levels, levels_of(tissue), strict=True):
            assert psnr_db(level.asarray(), want) > 26
        np.testing.assert_array_equal(seen.series[2].asarray(), tissue[:463, :387])
        described = [description.parse(page.description) for page in seen.pages if isinstance(page, tifffile.TiffPage)]
    assert [each.kind for each in described] == ["baseline", "thumbnail", "level", "level", "label", "macro"]
    assert described[0].values["AppMag"] == "40"


def run(*argv: str | Path) -> str:
    """What a program says; it must succeed, and warn of nothing."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_libtiff_lists_it_without_a_warning(slide: tuple[Plan, Written]) -> None:
    """Not with -D: tiffinfo then refuses every tiled YCbCr 4:2:0 JPEG, tifffile's too ("th * rowsize > tilesize")."""
    said = run(need_tool("tiffinfo"), slide[1].path)
    assert said.count("=== TIFF directory") == 6
    assert "Resolution: 40000, 40000 pixels/cm" in said


def test_libtiff_decodes_all_of_it(slide: tuple[Plan, Written], tissue: Pixels, tmp_path: Path) -> None:
    run(need_tool("tiffcp"), "-m", "0", "-c", "none", slide[1].path, tmp_path / "raw.tif")
    with PIL.Image.open(slide[1].path) as seen:  # Pillow brings its own libtiff
        pages = [np.asarray(page.convert("RGB")) for page in PIL.ImageSequence.Iterator(seen)]
    small, whole = thumbnail(levels_of(tissue)[-1], (120, 115)), levels_of(tissue)
    wanted = [whole[0], small, whole[1], whole[2], tissue[:463, :387], tissue[:431, :1280]]
    for got, want in zip(pages, wanted, strict=True):
        assert psnr_db(got, want) > 25
    np.testing.assert_array_equal(pages[4], wanted[4])


def test_an_older_openslide_agrees(slide: tuple[Plan, Written]) -> None:
    """Debian's OpenSlide, which HistoQC and Debian's libvips use."""
    said = run(need_tool("openslide-show-properties"), slide[1].path)
    for line in ("openslide.vendor: 'aperio'", "openslide.level-count: '3'", "openslide.objective-power: '40'"):
        assert line in said


ASSOCIATED = """
import ctypes, sys
library = ctypes.CDLL("libopenslide.so.0")
library.openslide_open.restype = ctypes.c_void_p
library.openslide_get_associated_image_names.restype = ctypes.POINTER(ctypes.c_char_p)
library.openslide_get_associated_image_names.argtypes = [ctypes.c_void_p]
names = library.openslide_get_associated_image_names(library.openslide_open(sys.argv[1].encode()))
for index in range(9):
    if names[index] is None:
        break
    print(names[index].decode())
"""


def test_an_older_openslide_finds_label_and_macro(slide: tuple[Plan, Written]) -> None:
    """OpenSlide up to 4.0.0 finds them by text, and only after a bare LF. In another process: two do not mix in one."""
    need_tool("openslide-show-properties")  # its package depends on that library
    assert run(sys.executable, "-c", ASSOCIATED, slide[1].path).split() == ["label", "macro", "thumbnail"]


def test_data_is_word_aligned_and_directories_come_last(slide: tuple[Plan, Written]) -> None:
    with tifffile.TiffFile(slide[1].path) as seen:
        offsets = [offset for page in seen.pages for offset in page.dataoffsets]
        directories = [page.offset for page in seen.pages]
    assert not [offset for offset in offsets + directories if offset % 2]
    assert min(offsets) == 16
    assert len(set(offsets)) == len(offsets)
    assert min(directories) > max(offsets)
    assert directories == sorted(directories)


@pytest.mark.parametrize("profile", ["ycc", "rgb"])
def test_without_scale_and_objective(profile: Profile, tissue: Pixels, tmp_path: Path) -> None:
    plan = make_plan(((625, 600),), profile=profile, scale=None, objective=None, pictures=(), thumbnail_px=(120, 115))
    written = write_slide(tmp_path / "bare.svs", plan, tissue[:600, :625])
    with openslide.OpenSlide(written.path) as seen:
        assert seen.properties["openslide.vendor"] == "aperio"
        assert not {"openslide.mpp-x", "openslide.objective-power", "aperio.MPP"} & set(seen.properties)
    with tifffile.TiffFile(written.path) as tiff:
        assert [series.name for series in tiff.series] == ["Baseline", "Thumbnail"]


def test_halving_works_as_well(tissue: Pixels, tmp_path: Path) -> None:
    levels = ((1200, 1100), (600, 550), (300, 275))
    plan = make_plan(levels, downsample=2, tile_px=240, thumbnail_px=(200, 183))
    plan = replace(plan, pictures=(Picture("label", 1, 20, 30),))
    written = write_slide(tmp_path / "half.svs", plan, tissue[:1100, :1200])
    with openslide.OpenSlide(written.path) as seen:
        assert seen.level_dimensions == levels
        assert seen.level_downsamples == (1.0, 2.0, 4.0)
        assert set(seen.associated_images) == {"thumbnail", "label"}


# Refusals. A page of 3 x 2 tiles, whose bytes nobody decodes.


def tile_page(level: int = 0, segments: int = 6, extra: tuple[Tag, ...] = ()) -> Page:
    sizes = {256: 700, 257: 500, 322: 256, 323: 256}
    return Page("level", level, tuple(Tag(code, 4, (value,)) for code, value in sizes.items()) + extra, segments)


def strip_page() -> Page:
    return Page("label", None, (Tag(256, 4, (7,)), Tag(257, 4, (5,)), Tag(278, 4, (5,))), 1)


ALL = tuple(CodedTile(0, column, row, b"tile") for row in (1, 0) for column in (2, 0, 1))


def finish(path: Path, tiles: tuple[CodedTile, ...], *pages: Page, strips: tuple[str, ...] = ()) -> Written:
    with TiffWriter(path) as made:
        for tile in tiles:
            made.add_tile(tile)
        for kind in strips:
            made.add_strip(kind, b"strip")
        return made.finish(pages)


def test_tiles_in_any_order_are_found_by_place(tmp_path: Path) -> None:
    tiles = [replace(tile, data=bytes([tile.column, tile.row, 9])) for tile in ALL]
    written = finish(tmp_path / "a.tif", tuple(tiles), tile_page())
    with tifffile.TiffFile(written.path) as seen:
        page = seen.pages[0]
        content = written.path.read_bytes()
        found = [content[at : at + n] for at, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    assert found == [bytes([column, row, 9]) for row in (0, 1) for column in (0, 1, 2)]


def test_a_run_of_tiles_is_what_they_are_one_by_one(tmp_path: Path) -> None:
    tiles = [replace(tile, data=bytes([tile.column, tile.row]) * 4 + b"." * tile.column) for tile in ALL]
    single, runs = tmp_path / "single.tif", tmp_path / "runs.tif"
    in_order = sorted(tiles, key=lambda tile: (tile.row, tile.column))
    finish(single, tuple(in_order), tile_page())
    with TiffWriter(runs) as writer:
        for row, first, last in ((0, 0, 2), (0, 2, 3), (1, 0, 3)):
            part = [tile.data for tile in in_order if tile.row == row and first <= tile.column < last]
            writer.add_run(0, (first, row), joined(part))
        writer.finish([tile_page()])
        assert writer.sums[0].tolist() == [zlib.crc32(tile.data) for tile in in_order]
    assert runs.read_bytes() == single.read_bytes()


@pytest.mark.parametrize(("place", "tiles"), [((0, 0), [b"one", b""]), ((-1, 0), [b"one"]), ((0, -1), [b"one"])])
def test_a_run_without_place_or_bytes_is_refused(place: tuple[int, int], tiles: list[bytes], tmp_path: Path) -> None:
    with TiffWriter(tmp_path / "a.tif") as writer, pytest.raises(InternalError, match="no place or no bytes"):
        writer.add_run(0, place, joined(tiles))


@pytest.mark.parametrize(
    ("tiles", "pages", "strips", "message"),
    [
        (ALL[:4] + ALL[5:], (tile_page(),), (), "level 0, column 0, row 0 is missing"),
        ((), (tile_page(),), (), "column 0, row 0 is missing \\(6 such"),
        (ALL + ALL[3:4], (tile_page(),), (), "column 2, row 0 was given twice"),
        ((*ALL, CodedTile(0, 3, 0, b"x")), (tile_page(),), (), "column 3, row 0 is outside"),
        ((*ALL, CodedTile(0, 0, 2, b"x")), (tile_page(),), (), "column 0, row 2 is outside"),
        ((*ALL, CodedTile(0, -1, 0, b"x")), (tile_page(),), (), "column -1"),
        ((*ALL, CodedTile(2, 0, 0, b"x")), (tile_page(),), (), "no page for level 2"),
        ((*ALL, CodedTile(0, 0, 0, b"")), (tile_page(),), (), "empty"),
        (ALL, (tile_page(), tile_page(1)), (), "level 1, column 0, row 0 is missing"),
        (ALL, (tile_page(), tile_page()), (), "same level"),
        (ALL, (tile_page(segments=5),), (), "3x2 tiles, its page says 5"),
        (ALL, (tile_page(), strip_page()), (), "strip of the label is missing"),
        (ALL, (tile_page(),), ("macro",), "no page for the macro"),
        (ALL, (tile_page(), strip_page()), ("label", "label"), "label was given twice"),
        (ALL, (tile_page(extra=(Tag(700, 3, (70000,)),)),), (), "tag 700 cannot hold"),
        (ALL, (tile_page(extra=(Tag(700, 99, (7,)),)),), (), "tag 700 of type 99"),
        (ALL, (tile_page(extra=(Tag(700, 7, b""),)),), (), "tag 700 of type 7"),
        (ALL, (Page("level", 0, (Tag(256, 4, (7,)),), 1),), (), "no tag 322"),
    ],
)
def test_refusals_leave_nothing_that_opens(
    tmp_path: Path, tiles: tuple[CodedTile, ...], pages: tuple[Page, ...], strips: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "a.tif"
    with pytest.raises(InternalError, match=message):
        finish(path, tiles, *pages, strips=strips)
    assert_unreadable(path)


def assert_unreadable(path: Path) -> None:
    assert path.read_bytes()[:16] in (b"", bytes(16))
    with pytest.raises(tifffile.TiffFileError):
        tifffile.TiffFile(path)
    assert openslide.OpenSlide.detect_format(path) is None


def test_closing_without_finish_leaves_nothing_that_opens(tmp_path: Path) -> None:
    with TiffWriter(tmp_path / "a.tif") as writer:
        for tile in ALL:
            writer.add_tile(tile)
    assert_unreadable(tmp_path / "a.tif")


def test_nothing_after_the_end(tmp_path: Path) -> None:
    with TiffWriter(tmp_path / "a.tif") as writer:
        for tile in ALL:
            writer.add_tile(tile)
        writer.finish([tile_page()])
        with pytest.raises(InternalError, match="after the end"):
            writer.add_tile(ALL[0])
        with pytest.raises(InternalError, match="twice"):
            writer.finish([tile_page()])
    writer.close()


@pytest.mark.parametrize("extra", [-1, 0])
def test_the_limit_is_the_real_size(tmp_path: Path, extra: int) -> None:
    size = finish(tmp_path / "a.tif", ALL, tile_page()).bytes
    with TiffWriter(tmp_path / "b.tif", classic_limit_bytes=size + extra) as writer:
        for tile in ALL:
            writer.add_tile(tile)
        assert writer.finish([tile_page()]).bigtiff == (extra < 0)


def test_offsets_beyond_four_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse file stands for a large one; its digest, the slow part, is left out."""
    monkeypatch.setattr(hashlib, "file_digest", lambda _file, _name: hashlib.sha256())
    far = 2**32 + 2
    with TiffWriter(tmp_path / "a.tif") as writer:
        for index, tile in enumerate(ALL):
            if index == 3:
                writer._file.seek(far)
                writer._end = far
            writer.add_tile(tile)
        written = writer.finish([tile_page()])
    assert written.bigtiff
    assert written.bytes == written.path.stat().st_size > far
    with tifffile.TiffFile(written.path) as seen:
        assert sorted(seen.pages[0].dataoffsets) == [16, 20, 24, far, far + 4, far + 8]


# The disk


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("early", [True, False])
def test_a_full_disk_is_named(early: bool) -> None:
    """Met while tiles are written, or only at the end."""
    with pytest.raises(
        OutputError, match=r"/dev/full: cannot be written \(No space left on device\)\. Free some space"
    ):
        finish(Path("/dev/full"), (CodedTile(0, 0, 0, bytes(1 << 21)), *ALL[1:]) if early else ALL, tile_page())


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none.a\.tif: cannot be written \(No such file.*Make that folder first"):
        TiffWriter(tmp_path / "none" / "a.tif")


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "may not write"),
        (errno.EFBIG, "large"),
        (errno.EIO, "Check that disk"),
    ],
)
def test_other_troubles_have_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str) -> None:
    calls: list[int] = []

    def fail(_descriptor: int) -> None:
        calls.append(code)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=remedy) as caught:
        finish(tmp_path / "a.tif", ALL, tile_page())
    assert calls == [code]
    assert isinstance(caught.value.__cause__, OSError)
    assert_unreadable(tmp_path / "a.tif")


def test_what_is_written_goes_to_the_disk_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a thread of its own; the header still comes last, when all else is there."""
    seen: list[tuple[str, bytes]] = []
    real: Callable[[int], None] = os.fsync

    def look(descriptor: int) -> None:
        seen.append((threading.current_thread().name, (tmp_path / "a.tif").read_bytes()[:4]))
        real(descriptor)

    monkeypatch.setattr(writer, "SYNC_BYTES", 1)
    monkeypatch.setattr(os, "fsync", look)
    finish(tmp_path / "a.tif", ALL, tile_page())
    here = threading.current_thread().name
    assert seen[-2:] == [(here, bytes(4)), (here, b"II\x2a\0")]
    assert set(seen[:-2]) == {("mimic-sync_0", bytes(4))}


def test_a_disk_that_fails_meanwhile_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells of a failure only once: to the thread."""
    failed: list[str] = []

    def fail_once(_descriptor: int) -> None:
        if not failed:
            failed.append(threading.current_thread().name)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(writer, "SYNC_BYTES", 1)
    monkeypatch.setattr(os, "fsync", fail_once)
    with pytest.raises(OutputError, match="Check that disk"):
        finish(tmp_path / "a.tif", ALL, tile_page())
    assert failed == ["mimic-sync_0"]
    assert_unreadable(tmp_path / "a.tif")


def test_the_header_is_the_last_thing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first sync the directories are on the disk and the header is not: a crash then leaves no readable file."""
    seen: list[bytes] = []
    real: Callable[[int], None] = os.fsync

    def look(descriptor: int) -> None:
        real(descriptor)
        seen.append((tmp_path / "a.tif").read_bytes()[:4])

    monkeypatch.setattr(os, "fsync", look)
    finish(tmp_path / "a.tif", ALL, tile_page())
    assert seen == [bytes(4), b"II\x2a\0"]
