"""Damage never passes: what is missing or does not decode is refused with its place, or with --allow-missing left white
and counted; and a small seeded sweep of tools/fuzz.py."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import mimic
from mimic import missing, report, scenes, stored, strips, structure
from mimic.cli import main
from mimic.errors import BadInput, MimicError
from mimic.model import Box, Level
from tools import fuzz
from tools.czi_samples import SubBlock, build_czi, czi_xml, read_subblocks
from tools.make_samples import histology

SEED = 20261
CUTS, PLACES = 3, 40
FAST = {"threads": 1}


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small slides of the sweep, undamaged."""
    return fuzz.write_slides(tmp_path_factory.mktemp("slides"), fuzz.FORMATS)


def pairs(path: Path) -> dict[str, str]:
    with openslide.OpenSlide(path) as slide:
        return {key.removeprefix("aperio."): value for key, value in slide.properties.items()}


def pixels(path: Path) -> NDArray[np.uint8]:
    return fuzz.look(path).pixels


def spoil(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


# --- the sweep --------------------------------------------------------------------------------------------------------


def test_damaged_slides_are_refused_or_decode_in_peace(slides: dict[str, Path]) -> None:
    """tools/fuzz.py at full size is run by hand; docs/damage.md has its numbers."""
    damages = [cut for name, slide in slides.items() for cut in fuzz.plan_cuts(name, slide, CUTS)]
    damages += fuzz.plan_places(slides, PLACES, SEED)
    outcomes = list(fuzz.sweep(slides, damages))
    assert len(outcomes) == 4 * CUTS + PLACES
    assert [each for each in outcomes if each.result in fuzz.FAULTS] == []
    assert {each.result for each in outcomes if each.damage.kind == "cut"} <= {"refused", "same"}
    counts = {kind: [each.result for each in outcomes if each.damage.kind == kind] for kind in fuzz.KINDS}
    assert counts["noise"].count("refused") > len(counts["noise"]) / 2
    assert fuzz.table(outcomes).count("\n") == 1 + 4 * 4 + 1


def test_sweep_is_repeatable_and_tells_faults(slides: dict[str, Path], tmp_path: Path) -> None:
    assert fuzz.plan_places(slides, 50, 1) == fuzz.plan_places(slides, 50, 1) != fuzz.plan_places(slides, 50, 2)
    one = fuzz.damaged(slides["svs"], fuzz.Damage("svs", "byte", 1000, 5), tmp_path)
    raw, whole = one.read_bytes(), slides["svs"].read_bytes()
    assert sum(a != b for a, b in zip(raw, whole, strict=True)) == 1 and raw[1000] != whole[1000]
    black = np.full((256, 256, 3), 200, np.uint8)
    dead = black.copy()
    dead[64:128, 64:128] = 0
    assert fuzz.has_dead_block(dead, black) and not fuzz.has_dead_block(black, dead)


# --- NDPI: what Bio-Formats reads in silence ------------------------------------------------------------------------


@pytest.fixture
def ndpi(slides: dict[str, Path], tmp_path: Path) -> tuple[Path, Box]:
    """An NDPI of which one run of blocks is noise, and the run's place."""
    path = tmp_path / "slide.ndpi"
    path.write_bytes(slides["ndpi"].read_bytes())
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        at, count = page.dataoffsets[20], page.databytecounts[20]
    spoil(path, at + 100, b"\xff\xd9" + b"\xa5\x5a" * 60)
    assert count > 300
    return path, Box(0, 160, fuzz.NDPI_PX[0], 8)


def test_damaged_ndpi_is_refused_with_the_place(ndpi: tuple[Path, Box], tmp_path: Path) -> None:
    path, box = ndpi
    with pytest.raises(BadInput, match=rf"y={box.y_px} of directory 0") as caught:
        mimic.convert(path, tmp_path / "out.svs", **FAST)
    assert "--allow-missing" in str(caught.value) and not (tmp_path / "out.svs").exists()
    assert [each.box for each in strips.damaged(path, threads=1)] == [box]


def test_damaged_ndpi_with_allow_missing(ndpi: tuple[Path, Box], slides: dict[str, Path], tmp_path: Path) -> None:
    """Only the damaged rows are white: what Bio-Formats makes of all that follows them is not taken."""
    path, box = ndpi
    done = mimic.convert(path, tmp_path / "out.svs", allow_missing=True, verify="full", **FAST)
    truth, seen = fuzz.truth(slides["ndpi"], ()).pixels.astype(int), pixels(tmp_path / "out.svs")
    far = np.abs(seen - truth).max(axis=2) > 60
    assert far[144:184].any() and not far[:144].any() and not far[184:].any()
    assert (seen[box.y_px + 2 : box.y_px + 6] > 240).all()
    assert pairs(tmp_path / "out.svs")["Missing Tiles"] == "1 white"
    assert any("1 damaged" in warning for warning in done.warnings)


@pytest.mark.parametrize("name", ["ndpi/test3-TRITC 2 (560).ndpi"])
def test_real_ndpi_is_sound(name: str, corpus_file: Callable[[str], Path]) -> None:
    assert list(strips.damaged(corpus_file(name), threads=2)) == []


# --- SVS and DICOM: tiles that do not decode, tiles that are not there ----------------------------------------------


@pytest.mark.parametrize("passthrough", ["auto", "never"])
@pytest.mark.parametrize("how", ["noise", "empty"])
def test_tile_of_an_svs(how: str, passthrough: str, slides: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    path.write_bytes(slides["svs"].read_bytes())
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        counts_at, at = page.tags[325].valueoffset, page.dataoffsets[5]
        across = -(-page.imagewidth // page.tilewidth)
    if how == "noise":
        spoil(path, at + 600, b"\x00\xff\xfc\x12" * 50)
    else:
        spoil(path, counts_at + 4 * 5, struct.pack("<I", 0))
    row, column = divmod(5, across)
    options = {**FAST, "passthrough": passthrough}
    if how == "noise" or passthrough == "never":
        with pytest.raises(BadInput) as caught:
            mimic.convert(path, tmp_path / "no.svs", **options)
        assert caught.value.exit_code == 3
        said = str(caught.value)
        assert how == "empty" or f"column {column}, row {row}" in said or f"x={256 * column}, y={256 * row}" in said
    done = mimic.convert(path, tmp_path / "out.svs", allow_missing=True, **options)
    seen = pixels(tmp_path / "out.svs")
    whole = fuzz.truth(slides["svs"], (("passthrough", passthrough),)).pixels
    lost = np.zeros(seen.shape[:2], bool)
    lost[256 * row : 256 * (row + 1), 256 * column : 256 * (column + 1)] = True
    assert (seen[lost] >= 253).all()
    assert np.array_equal(seen[~lost], whole[~lost])
    assert pairs(tmp_path / "out.svs")["Missing Tiles"] == "1 white" and done.warnings
    assert '"missing_tiles": 1' in report.to_json(done)


@pytest.mark.parametrize("name", ["svs", "dicom"])
def test_damaged_macro_is_refused_and_can_be_left_out(name: str, slides: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / slides[name].name
    if name == "svs":
        shutil.copy(slides[name], copy)
        file = copy
        with tifffile.TiffFile(copy) as tiff:
            at = tiff.pages[len(tiff.pages) - 1].dataoffsets[0] + 900
    else:
        shutil.copytree(slides[name], copy)
        small = [path for path in copy.iterdir() if b"OVERVIEW" in path.read_bytes()[:4096]]
        file, at = small[0], small[0].stat().st_size // 2
    spoil(file, at, b"\x00\xff\xfc\x12" * 50)
    with pytest.raises(BadInput, match=r"picture.* does not decode") as caught:
        mimic.convert(copy, tmp_path / "no.svs", **FAST)
    assert "--macro drop" in str(caught.value)
    mimic.convert(copy, tmp_path / "out.svs", macro="drop", label="drop", **FAST)


def test_allow_missing_changes_nothing_of_a_sound_slide(slides: dict[str, Path], tmp_path: Path) -> None:
    for name in ("svs", "czi", "ndpi"):
        plain = mimic.convert(slides[name], tmp_path / "plain.svs", overwrite=True, **FAST)
        allowed = mimic.convert(slides[name], tmp_path / "allowed.svs", overwrite=True, allow_missing=True, **FAST)
        # the key is of the options too, by which --resume knows what it made
        told = [re.sub(rb"Converter Key = [0-9a-f /]+", b"", done.outputs[0].read_bytes()) for done in (plain, allowed)]
        assert len(told[0]) < plain.outputs[0].stat().st_size
        assert told[0] == told[1] and allowed.results[0].plan.slide.missing_tiles == 0


def test_frame_of_a_dicom(slides: dict[str, Path], tmp_path: Path) -> None:
    """An empty fragment where a frame should be."""
    folder = tmp_path / "series"
    shutil.copytree(slides["dicom"], folder)
    base = folder / "0.dcm"
    raw = base.read_bytes()
    at = raw.index(b"\xff\xd8\xff", raw.index(b"\xe0\x7f\x10\x00"))
    spoil(base, at + 700, b"\x00\xff\xfc\x12" * 50)
    with pytest.raises(BadInput) as caught:
        mimic.convert(folder, tmp_path / "no.svs", **FAST)
    assert "column 0, row 0" in str(caught.value)
    mimic.convert(folder, tmp_path / "out.svs", allow_missing=True, **FAST)
    assert (pixels(tmp_path / "out.svs")[:256, :256] >= 253).all()
    assert pairs(tmp_path / "out.svs")["Missing Tiles"] == "1 white"


# --- CZI: blocks without data, blocks that come back black ----------------------------------------------------------


def mosaic(path: Path, change: Callable[[list[SubBlock]], None], sample: Path) -> Path:
    raw = sample.read_bytes()
    blocks = read_subblocks(raw)
    change(blocks)
    path.write_bytes(build_czi(raw[: 32 + 512], blocks, czi_xml(1000, 750, len(blocks))))
    return path


def emptied(blocks: list[SubBlock]) -> None:
    blocks[1] = replace(blocks[1], data=b"")


def blackened(blocks: list[SubBlock]) -> None:
    """As a decoder gives it that fails in silence: zeros where JPEG-XR data are."""
    from tools.czi_samples import to_jpeg_xr

    width, height = blocks[1].size_px()
    blocks[1] = to_jpeg_xr(replace(blocks[1], data=bytes(3 * width * height)), 1.0)


@pytest.mark.parametrize("change", [emptied, blackened])
def test_block_of_a_czi(change: Callable[[list[SubBlock]], None], slides: dict[str, Path], tmp_path: Path) -> None:
    path = mosaic(tmp_path / "a.czi", change, slides["czi"])
    with pytest.raises(BadInput) as caught:
        mimic.convert(path, tmp_path / "no.svs", **FAST)
    assert "--allow-missing" in str(caught.value) and caught.value.exit_code == 3
    mimic.convert(path, tmp_path / "out.svs", allow_missing=True, verify="full", **FAST)
    seen, whole = pixels(tmp_path / "out.svs"), fuzz.truth(slides["czi"], ()).pixels
    assert (seen[:496, 528:] >= 250).all(), "the second block is 488 px wide, 512 high"
    assert np.array_equal(seen[:512, :496], whole[:512, :496])
    assert pairs(tmp_path / "out.svs")["Missing Tiles"] == "1 white"


# --- the lower level as a witness -----------------------------------------------------------------------------------


def test_pixels_that_are_not_those_of_the_lower_level(slides: dict[str, Path], tmp_path: Path) -> None:
    """Every JPEG is sound, but two tiles have changed places: nothing else could tell."""
    path = tmp_path / "slide.svs"
    path.write_bytes(slides["svs"].read_bytes())
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        offsets, counts = [page.tags[tag].valueoffset for tag in (324, 325)]
        places, sizes = list(page.dataoffsets), list(page.databytecounts)
    places[0], places[6], sizes[0], sizes[6] = places[6], places[0], sizes[6], sizes[0]
    spoil(path, offsets, struct.pack(f"<{len(places)}I", *places))
    spoil(path, counts, struct.pack(f"<{len(sizes)}I", *sizes))
    for passthrough in ("auto", "never"):
        with pytest.raises(BadInput, match="not those of its own lower level 1"):
            mimic.convert(path, tmp_path / "no.svs", passthrough=passthrough, **FAST)


def test_sound_slides_agree_with_their_lower_levels(slides: dict[str, Path], tmp_path: Path, sample_czi: Path) -> None:
    for number, path in enumerate([*slides.values(), sample_czi]):
        done = mimic.convert(path, tmp_path / f"{number}.svs", **FAST)
        told = [check for check in done.results[0].checks if check.name == "source's lower level"]
        assert len(told) == 1 and told[0].passed, path


@pytest.mark.parametrize(
    "name",
    [
        "czi/he_8k_jxr_pyramid_label_20x.czi",
        "ndpi/test3-TRITC 2 (560).ndpi",
        "dicom/cmu_small_region_series",
        "svs/CMU-1-Small-Region.svs",
    ],
)
def test_no_false_alarm_on_the_corpus(name: str, corpus_file: Callable[[str], Path], tmp_path: Path) -> None:
    done = mimic.convert(corpus_file(name), tmp_path / "out.svs")
    assert all(check.passed for check in done.results[0].checks if check.name == "source's lower level")


@given(st.integers(1, 5000), st.integers(1, 5000), st.lists(st.integers(1, 40), max_size=5))
def test_lower_level_that_fits(width: int, height: int, factors: list[int]) -> None:
    lower = [Level(max(1, width // factor), max(1, height // factor)) for factor in factors]
    chosen = stored.level_of((Level(width, height), *lower))
    if chosen is not None:
        number, factor = chosen
        level = lower[number - 1]
        assert factor in stored.FACTORS
        assert abs(width / level.width_px / factor - 1) < 0.01 and abs(height / level.height_px / factor - 1) < 0.01


# --- sizes, and words ------------------------------------------------------------------------------------------------


def test_size_that_the_header_denies(slides: dict[str, Path]) -> None:
    slide = mimic.probe(slides["dicom"])
    heads = [structure.check(path).dicom for path in slide.files]
    known = [head for head in heads if head is not None]
    scenes.compare_dicom(slide, known)
    wrong = [replace(head, matrix_width_px=(head.matrix_width_px or 0) + 7) for head in known]
    with pytest.raises(BadInput, match="1007 x 750 px for its largest image, Bio-Formats says 1000 x 750"):
        scenes.compare_dicom(slide, wrong)


def test_command_line_says_it_all(
    ndpi: tuple[Path, Box], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra, code in (([], 3), (["--allow-missing"], 0)):
        command = ["mimic", "convert", str(ndpi[0]), "-o", str(tmp_path / "cli.svs"), "--json", "--quiet", *extra]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as caught:
            main()
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        told = next(line["report"] for line in lines if line["event"] == "report")
        assert (caught.value.code or 0) == code == told["exit_code"]
        assert ("do not decode" in (told["error"] or "")) == bool(code)
    assert any("left blank" in warning for warning in told["warnings"])


# --- Mended, alone --------------------------------------------------------------------------------------------------


class Torn:
    """A picture of which some tiles cannot be read."""

    sequential = False

    def __init__(self, bad: set[Box]) -> None:
        self.bad, self.picture = bad, histology(128, 128) // 2

    def boxes(self) -> list[Box]:
        return [Box(0, 0, 128, 128)]

    def read(self, box: Box) -> NDArray[np.uint8]:
        if any(missing.common(each, box) for each in self.bad):
            raise BadInput("torn")
        return self.picture[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px]

    def close(self) -> None: ...


TILES = [Box(x, y, 32, 32) for y in range(0, 128, 32) for x in range(0, 128, 32)]
corners = st.integers(0, 100)


@given(st.sets(st.sampled_from(TILES)), st.lists(st.tuples(corners, corners, st.integers(1, 28)), max_size=6))
def test_only_the_bad_tiles_are_white(bad: set[Box], boxes: list[tuple[int, int, int]]) -> None:
    state = missing.Missing()
    torn = Torn(bad)
    expected = torn.picture.copy()
    for each in bad:
        expected[each.y_px : each.y_px + 32, each.x_px : each.x_px + 32] = 255
    for _ in range(2):  # a second reader knows what the first one has found
        reader = missing.Mended(torn, TILES, state)
        for x, y, side in boxes:
            assert np.array_equal(reader.read(Box(x, y, side, side)), expected[y : y + side, x : x + side])
        assert np.array_equal(reader.read(Box(0, 0, 128, 128)), expected)
    assert state.boxes == bad and state.count == len(bad)


def test_a_source_that_breaks_off_is_not_mended() -> None:
    torn = Torn({TILES[3]})
    torn.sequential = True
    with pytest.raises(MimicError):
        missing.Mended(torn, TILES, missing.Missing()).read(Box(0, 0, 128, 128))
