"""The proof fails when it should: a slide with wrong pixels, colours, places or facts, and no other."""

from __future__ import annotations

import dataclasses
import gc
import random
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import skimage.color
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic import encode, svs, verify
from mimic.errors import VerificationFailed
from mimic.model import (
    Box,
    Check,
    CodedTile,
    Image,
    Level,
    Objective,
    Picture,
    Pixels,
    Plan,
    Profile,
    Sample,
    Scale,
    Slide,
)
from mimic.pyramid import Pyramid, thumbnail
from mimic.writer import TiffWriter
from tests.test_rules import average, corpus, good_parts, histology, names, overwrite, place, write_parts, write_svs

TILE = 256


def make_plan(path: Path, size: tuple[int, int], *, quality: int = 80, profile: Profile = "ycc") -> Plan:
    """A Plan of two levels, label and macro, as plan.py would make it."""
    wide, high = size
    scale, objective = Scale(0.25, 0.2501, "file"), Objective(40.0, "file")
    scan = Image(0, "scan", "scan", (Level(wide, high),), 3, True, "uint8", 8, scale=scale, objective=objective)
    sizes = [(wide, high)] + ([(wide // 4, high // 4)] if min(size) >= 600 else [])
    return Plan(
        slide=Slide(Path("in.czi"), (Path("in.czi"),), "Zeiss CZI", "bioformats", (scan,)),
        output=path,
        image_index=0,
        source="bioformats",
        profile=profile,
        quality=quality,
        tile_px=TILE,
        downsample=4,
        levels=tuple(Level(*each, TILE, TILE, "jpeg", True) for each in sizes),
        thumbnail_px=(sizes[-1][0] // 2, sizes[-1][1] // 2),
        pictures=(Picture("label", 1, 90, 120), Picture("macro", 2, 300, 100)),
        scale=scale,
        objective=objective,
        acquired=datetime(2024, 3, 5, 9, 8, 7),
        scratch_bytes=0,
        threads=1,
        verify="sample",
        reasons=(),
    )


def convert(plan: Plan, pixels: Pixels, *, keeper: verify.SampleKeeper | None = None) -> Path:
    """``pixels`` through mimic's own pyramid, encoder, pages and writer."""
    quality, profile = plan.quality, plan.profile
    pyramid = Pyramid([(each.width_px, each.height_px) for each in plan.levels], tile_px=TILE, downsample=4)
    with TiffWriter(plan.output) as writer:
        for tile in pyramid.add(Box(0, 0, pixels.shape[1], pixels.shape[0]), pixels):
            data = encode.tile(tile.pixels, quality=quality, profile=profile)
            if keeper and tile.level == 0:
                box = Box(tile.column * TILE, tile.row * TILE, tile.valid.shape[1], tile.valid.shape[0])
                keeper.offer(box, tile.valid, coded_bytes=len(data))
            writer.add_tile(CodedTile(tile.level, tile.column, tile.row, data))
        small = thumbnail(pyramid.smallest(), plan.thumbnail_px)
        writer.add_strip("thumbnail", encode.jpeg(small, quality=quality, profile=profile))
        writer.add_strip("label", encode.lzw(np.ascontiguousarray(pixels[:120, :90])))
        macro = np.ascontiguousarray(np.resize(pixels[:100, :90], (100, 300, 3)))
        writer.add_strip("macro", encode.jpeg(macro, quality=quality, profile=profile))
        tables = encode.jpeg_tables(quality) if profile == "rgb" else None
        writer.finish(svs.pages(plan, version="0.1.0", jpeg_tables=tables))
    return plan.output


def samples_of(pixels: Pixels, *, count: int = 64) -> tuple[Sample, ...]:
    keeper = verify.SampleKeeper(pixels.shape[1], pixels.shape[0], TILE, count)
    for y in range(0, pixels.shape[0], TILE):
        for x in range(0, pixels.shape[1], TILE):
            tile = pixels[y : y + TILE, x : x + TILE]
            keeper.offer(Box(x, y, tile.shape[1], tile.shape[0]), tile, coded_bytes=coded_bytes(tile))
    return keeper.samples()


def coded_bytes(tile: Pixels) -> int:
    return len(encode.tile(tile, quality=80, profile="ycc"))


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return histology(1200, 1000)


@pytest.mark.parametrize("profile", ["ycc", "rgb"])
@pytest.mark.parametrize("size", [(1201, 1003), (640, 700), (300, 257), (90, 120), (1025, 600)])
def test_mimics_own_slides_pass_everything(tmp_path: Path, size: tuple[int, int], profile: Profile) -> None:
    pixels = histology(*size)
    plan = make_plan(tmp_path / "own.svs", size, profile=profile)
    keeper = verify.SampleKeeper(*size, TILE)
    path = convert(plan, pixels, keeper=keeper)
    checks = (
        *verify.check(path),
        *verify.readers(path, plan),
        *verify.pixels(path, keeper.samples(), quality=80, profile=profile),
    )
    assert names(checks) <= {"level sides"}
    verify.raise_if_failed(checks, path)


def box_kinds() -> dict[str, Pixels]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:TILE, :TILE]
    red, blue, green = np.uint8([255, 0, 0]), np.uint8([0, 0, 255]), np.uint8([0, 255, 0])
    noise = rng.integers(0, 256, (TILE, TILE, 3)).astype(np.uint8)
    return {
        "noise": noise,
        "grey noise": np.repeat(noise[..., :1], 3, 2),
        "checks 1": np.where(((x + y) % 2)[..., None], red, green),
        "checks 8": np.where(((x // 8 + y // 8) % 2)[..., None], red, blue),
        "gradient": np.stack([x, y, 255 - x], -1).astype(np.uint8),
        "glass": np.full((TILE, TILE, 3), 243, np.uint8),
        "red": np.full((TILE, TILE, 3), red),
        "soft": np.clip(histology(TILE, TILE) + rng.normal(0, 25, (TILE, TILE, 3)), 0, 255).astype(np.uint8),
    }


@pytest.mark.parametrize("profile", ["ycc", "rgb"])
@pytest.mark.parametrize("quality", [10, 50, 80, 100])
def test_hard_content_coded_well_passes(tmp_path: Path, quality: int, profile: Profile) -> None:
    pixels = np.hstack([np.vstack([box, histology(TILE, TILE)]) for box in box_kinds().values()])
    size = pixels.shape[1], pixels.shape[0]
    path = convert(make_plan(tmp_path / "hard.svs", size, quality=quality, profile=profile), pixels)
    checks = verify.pixels(path, samples_of(pixels), quality=quality, profile=profile)
    assert names(checks) == set(), checks
    assert checks[0].measured.startswith("16 of 16 boxes agree")


def test_boxes_off_the_tile_grid(tmp_path: Path, pixels: Pixels) -> None:
    path = convert(make_plan(tmp_path / "own.svs", (1200, 1000)), pixels)
    rng = random.Random(3)
    boxes = [
        Box(rng.randrange(900), rng.randrange(700), rng.randrange(1, 300), rng.randrange(1, 300)) for _ in range(40)
    ]
    samples = [Sample(b, pixels[b.y_px : b.y_px + b.height_px, b.x_px : b.x_px + b.width_px]) for b in boxes]
    checks = verify.pixels(path, samples, quality=80, profile="ycc")
    assert names(checks) == set(), checks


def swapped_tiles(pixels: Pixels) -> Pixels:
    changed = pixels.copy()
    changed[:256, :256], changed[256:512, 512:768] = pixels[256:512, 512:768], pixels[:256, :256]
    return changed


def transposed_tiles(pixels: Pixels) -> Pixels:
    changed = pixels.copy()
    for row in range(3):
        for column in range(3):
            tile = pixels[column * 256 : column * 256 + 256, row * 256 : row * 256 + 256]
            changed[row * 256 : row * 256 + 256, column * 256 : column * 256 + 256] = tile
    return changed


def filled(value: int) -> Callable[[Pixels], Pixels]:
    def change(pixels: Pixels) -> Pixels:
        changed = pixels.copy()
        changed[256:512, 256:512] = value
        return changed

    return change


def unconverted(pixels: Pixels) -> Pixels:
    return np.asarray(skimage.color.rgb2ycbcr(pixels).round().clip(0, 255), np.uint8)


def grey(pixels: Pixels) -> Pixels:
    return np.repeat((pixels @ [0.299, 0.587, 0.114]).astype(np.uint8)[..., None], 3, 2)


def half_black(pixels: Pixels) -> Pixels:
    changed = pixels.copy()
    changed[400:, 600:] = 0
    return changed


WRONG: dict[str, Callable[[Pixels], Pixels]] = {
    "red and blue swapped": lambda pixels: pixels[..., ::-1],
    "one tile to the right": lambda pixels: np.roll(pixels, 256, axis=1),
    "one tile down": lambda pixels: np.roll(pixels, 256, axis=0),
    "two pixels to the right": lambda pixels: np.roll(pixels, 2, axis=1),
    "two pixels up": lambda pixels: np.roll(pixels, -2, axis=0),
    "black box": filled(0),
    "white box": filled(255),
    "tiles swapped": swapped_tiles,
    "tiles in columns": transposed_tiles,
    "upside down": lambda pixels: pixels[::-1],
    "mirrored": lambda pixels: pixels[:, ::-1],
    "grey": grey,
    "YCbCr taken for RGB": unconverted,
    "part black": half_black,
    "too dark": lambda pixels: np.asarray(pixels * 0.97, np.uint8),
    "too coarse": lambda pixels: np.repeat(np.repeat(average(pixels, 4), 4, 0), 4, 1),
}


@pytest.mark.parametrize("quality", [30, 80, 100])
def test_right_pixels_of_another_writer_pass(tmp_path: Path, pixels: Pixels, quality: int) -> None:
    path = write_svs(tmp_path / "right.svs", pixels, quality=quality)
    checks = verify.pixels(path, samples_of(pixels), quality=quality, profile="ycc")
    assert names(checks) == set(), checks


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_wrong_pixels_are_seen(tmp_path: Path, wrong: Callable[[Pixels], Pixels]) -> None:
    pixels, quality = histology(800, 768), 50
    changed = np.ascontiguousarray(wrong(pixels))
    path = write_svs(tmp_path / "wrong.svs", changed, quality=quality)
    checks = verify.pixels(path, samples_of(pixels), quality=quality, profile="ycc")
    assert "pixels" in names(checks), checks
    with pytest.raises(VerificationFailed, match="pixels"):
        verify.raise_if_failed(checks, path)


def test_quality_that_was_not_kept_is_seen(tmp_path: Path, pixels: Pixels) -> None:
    path = write_svs(tmp_path / "coarse.svs", pixels, quality=30)
    assert names(verify.pixels(path, samples_of(pixels), quality=30, profile="ycc")) == set()
    assert names(verify.pixels(path, samples_of(pixels), quality=80, profile="ycc")) == {"pixels"}


def test_places_of_failures_are_named(tmp_path: Path, pixels: Pixels) -> None:
    path = write_svs(tmp_path / "black.svs", filled(0)(pixels))
    found, blank = verify.pixels(path, samples_of(pixels), quality=80, profile="ycc")
    assert found.measured.startswith("19 of 20 boxes agree; worst at x=256, y=256: PSNR")
    assert (blank.passed, blank.measured) == (False, "x=256, y=256")


def test_missing_tile_is_blank(tmp_path: Path, pixels: Pixels) -> None:
    path = write_svs(tmp_path / "hole.svs", pixels)
    with tifffile.TiffFile(path) as tiff:
        counts = list(tiff.pages[0].databytecounts)
    counts[6] = 0
    overwrite(path, 0, 325, counts)
    checks = verify.pixels(path, samples_of(pixels), quality=80, profile="ycc")
    assert names(checks) == {"pixels", "no blank boxes"}
    assert checks[1].measured == "x=256, y=256"


def test_blank_source_is_not_asked_for_content(tmp_path: Path) -> None:
    glass = np.full((1000, 1200, 3), 243, np.uint8)
    path = write_svs(tmp_path / "glass.svs", glass)
    assert names(verify.pixels(path, samples_of(glass), quality=80, profile="ycc")) == set()


def test_no_sample_proves_nothing(tmp_path: Path) -> None:
    assert names(verify.pixels(write_svs(tmp_path / "a.svs"), [], quality=80, profile="ycc")) == {"pixels"}


def test_damage_sticks_to_no_handle(tmp_path: Path, pixels: Pixels) -> None:
    path = write_svs(tmp_path / "damaged.svs", pixels)
    offset, length = place(path, 0, 0)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(length))
    samples = samples_of(pixels)
    (found,) = verify.pixels(path, samples, quality=80, profile="ycc")
    assert not found.passed
    assert "OpenSlide" in found.measured
    assert "OpenSlide reads it" in names(verify.readers(path))
    gc.collect()
    path.unlink()  # on Windows an open handle would keep the file


def test_scanners_own_slide() -> None:
    checks = verify.check(corpus("svs/CMU-1-Small-Region.svs"))
    assert verify.failed(checks) == ()
    seen = {each.name: each.measured for each in checks}
    assert seen["OpenSlide levels"] == "((2220, 2967),)"
    assert seen["OpenSlide mpp-x"] == "0.499"
    assert "'label': (387, 463)" in seen["OpenSlide associated images"]


def test_correct_slide_of_tifffile(tmp_path: Path) -> None:
    assert names(verify.check(write_svs(tmp_path / "good.svs"))) == set()


def changed_plan(plan: Plan, **changes: object) -> Plan:
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


def test_readers_against_another_plan(tmp_path: Path, pixels: Pixels) -> None:
    plan = make_plan(tmp_path / "own.svs", (1200, 1000))
    path = convert(plan, pixels)
    assert names(verify.readers(path, plan)) == set()
    for changes, broken in (
        ({"levels": plan.levels[:1]}, {"OpenSlide levels", "tifffile series"}),
        ({"scale": Scale(0.26, 0.26, "file")}, {"OpenSlide mpp-x", "OpenSlide mpp-y"}),
        ({"scale": None}, {"OpenSlide mpp-x", "OpenSlide mpp-y"}),
        ({"objective": Objective(20.0, "file")}, {"OpenSlide objective-power"}),
        ({"objective": None}, {"OpenSlide objective-power"}),
        ({"pictures": plan.pictures[:1]}, {"OpenSlide associated images", "tifffile series"}),
        ({"thumbnail_px": (10, 10)}, {"OpenSlide associated images", "tifffile series"}),
    ):
        assert names(verify.readers(path, changed_plan(plan, **changes))) == broken


@pytest.mark.parametrize("power", [2.5, 0.5, 1.25, 62.5])
def test_a_power_that_is_no_integer_is_expected_as_it_is_written(tmp_path: Path, pixels: Pixels, power: float) -> None:
    """A 2.5x slide gets AppMag 3: Python's round would want 2, and refuse a right slide."""
    plan = make_plan(tmp_path / "out.svs", (pixels.shape[1], pixels.shape[0]))
    plan = dataclasses.replace(plan, objective=Objective(power, "file"))
    assert not verify.failed(verify.readers(convert(plan, pixels), plan))


def test_slide_without_scale_and_magnification(tmp_path: Path, pixels: Pixels) -> None:
    plan = changed_plan(make_plan(tmp_path / "own.svs", (1200, 1000)), scale=None, objective=None)
    path = convert(plan, pixels)
    assert names(verify.readers(path, plan)) == set()
    assert verify.failed(verify.check(path)) == ()


def test_generic_tiff_is_not_an_aperio_slide(tmp_path: Path, pixels: Pixels) -> None:
    parts = good_parts(pixels)
    for part in parts.values():
        part["description"] = None
    broken = names(verify.readers(write_parts(tmp_path / "plain.svs", parts)))
    assert {"OpenSlide vendor", "tifffile is_svs"} <= broken


def test_file_that_openslide_refuses(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "striped.svs"
    tifffile.imwrite(path, pixels, photometric="rgb")
    assert "OpenSlide opens it" in names(verify.readers(path))


def test_sizes_that_make_openslide_abort_the_process_are_not_shown_to_it(tmp_path: Path) -> None:
    for page, tag, value in ((0, 323, 0x58000000), (0, 256, 1 << 30), (3, 257, 60000)):
        path = write_svs(tmp_path / "huge.svs")
        overwrite(path, page, tag, value)
        (found,) = (each for each in verify.readers(path) if each.name == "OpenSlide opens it")
        assert found.measured.startswith("not tried: IFD")


def test_first_three_broken_rules_are_named() -> None:
    checks = [Check(f"rule {n}", n % 2 == 0, f"measured {n}", f"wanted {n}", must=n != 1) for n in range(10)]
    assert [each.name for each in verify.failed(checks)] == ["rule 3", "rule 5", "rule 7", "rule 9"]
    with pytest.raises(VerificationFailed) as error:
        verify.raise_if_failed(checks, Path("a.svs"))
    assert str(error.value).startswith("a.svs: the slide breaks 4 rules: rule 3: measured 3, expected wanted 3; rule 5")
    assert str(error.value).endswith("; and 1 more")
    verify.raise_if_failed(checks[:3], Path("a.svs"))


@settings(max_examples=40)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 70), st.integers(0, 2**32))
def test_keeper_keeps_enough_in_any_order(width: int, height: int, count: int, seed: int) -> None:
    tile, rng = 16, random.Random(seed)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    boxes = [
        Box(x, y, min(tile, width - x), min(tile, height - y))
        for y in range(0, height, tile)
        for x in range(0, width, tile)
    ]

    def keep() -> tuple[Sample, ...]:
        rng.shuffle(boxes)
        keeper = verify.SampleKeeper(width, height, tile, count)
        for box in boxes:
            tile_pixels = pixels[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px]
            keeper.offer(box, tile_pixels, coded_bytes=int(tile_pixels.sum()) % 5)  # ties, too
        return keeper.samples()

    first, again = keep(), keep()
    assert [sample.box for sample in first] == [sample.box for sample in again]
    assert min(count, len(boxes)) <= len(first) <= max(2 * count, 1)
    assert len({sample.box for sample in first}) == len(first)
    for sample in first:
        box = sample.box
        expected = pixels[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px]
        assert np.array_equal(sample.pixels, expected)
        assert not np.shares_memory(sample.pixels, pixels)


def test_keeper_prefers_tissue_and_spreads() -> None:
    glass = np.full((32 * 64, 32 * 64, 3), 243, np.uint8)
    tissue = histology(64, 64)
    spots = [(x, y) for x in range(64, 2048, 256) for y in range(128, 2048, 256)]
    for x, y in spots:
        glass[y : y + 64, x : x + 64] = tissue
    keeper = verify.SampleKeeper(2048, 2048, 64)
    for y in range(0, 2048, 64):
        for x in range(0, 2048, 64):
            tile = glass[y : y + 64, x : x + 64]
            keeper.offer(Box(x, y, 64, 64), tile, coded_bytes=coded_bytes(tile))
    assert sorted((sample.box.x_px, sample.box.y_px) for sample in keeper.samples()) == sorted(spots)


def test_a_sliver_counts_for_less_than_its_bytes() -> None:
    keeper = verify.SampleKeeper(64 * 100, 8, 64, count=1)
    keeper.offer(Box(0, 0, 64, 8), np.zeros((8, 64, 3), np.uint8), coded_bytes=100)
    keeper.offer(Box(64, 0, 16, 8), np.zeros((8, 16, 3), np.uint8), coded_bytes=300)
    assert [sample.box.x_px for sample in keeper.samples()] == [0]


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5, 4.0, 60.0])
@pytest.mark.parametrize("level", [0.0, 128.0, 254.0])
def test_means_and_spreads_are_numpys_in_double_precision(level: float, spread: float) -> None:
    """Bright and nearly flat, as glass is: sums of squares would lose it in single precision."""
    noise = np.random.default_rng(4).normal(level, spread, (64, 64, 3)).astype(np.float32)
    other = noise + np.float32(0.25)
    assert verify._spread(noise) == pytest.approx(noise.astype(np.float64).std((0, 1)).max(), abs=1e-3)
    assert verify._mean_difference(noise, other) == pytest.approx(0.25, abs=1e-3)
