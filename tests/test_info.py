"""``mimic info``: every fact with its source, and thumbnails against the pixels that other readers see."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Picture

import mimic
from mimic import peek, settings
from mimic.cli import app
from mimic.model import Box, Image, Level

PIXELS = np.random.default_rng(5).integers(0, 256, (300, 700, 3)).astype(np.uint8)


def told(*words: object) -> str:
    result = CliRunner().invoke(app, ["info", *map(str, words)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: object) -> int:
    return CliRunner().invoke(app, ["info", *map(str, words)]).exit_code


def picture(path: Path) -> Path:
    Picture.fromarray(PIXELS).save(path)
    return path


def test_facts_on_the_screen(sample_czi: Path) -> None:
    text = told(sample_czi)
    for words in (
        "Zeiss CZI",
        "read by czi",
        "3072 x 2304 px",
        "0.22 x 0.22 um/px",
        "PhysicalSizeX",
        "40x",
        "NominalMagnification",
        "8.8 um: consistent",
        "387 x 463 px",
        "960 x 323 px",
        "level 0",
        "in tiles of",
    ):
        assert words in text


def test_facts_as_json(sample_czi: Path) -> None:
    found = json.loads(told(sample_czi, "--json"))
    assert [image["role"] for image in found["images"]] == ["scan", "label", "macro"]
    scan = found["images"][0]
    assert scan["consistent"] is True and scan["product_um"] == pytest.approx(8.8) and scan["coding"]["codec"]
    assert found["size_bytes"] == sample_czi.stat().st_size and "thumbnail" not in found


def test_the_opposite_is_told_too(tmp_path: Path) -> None:
    text = "Aperio Image Library v12.0.15 \r\n300x700 [0,0 700x300] (256x256) JPEG/RGB Q=60|AppMag = 40|MPP = 0.5"
    path = tmp_path / "wrong.svs"
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 60}}
    tifffile.imwrite(path, PIXELS, description=text, metadata=None, **options)  # type: ignore[arg-type]
    shown = told(path)
    assert "NOT CONSISTENT" in shown and "about 20x" in shown and "about 60 of 100" in shown


def test_files_of_a_set(corpus_file: Callable[[str], Path]) -> None:
    path = sorted(corpus_file("dicom/cmu_small_region_series").iterdir())[0]
    text = told(path)
    assert "in 8 files" in text and text.count(".dcm") >= 8 and "about 30 of 100" in text
    assert "cannot be judged" in text


def test_hostile_facts_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = picture(tmp_path / "\x1b[31m[bold]red\u202e.png")
    text = told(path)
    assert "\x1b" not in text and "\u202e" not in text and "[bold]red" in text


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_thumbnail_of_a_picture(name: str, tmp_path: Path) -> None:
    path, small = picture(tmp_path / name), tmp_path / "small.png"
    told(path, "--thumbnail", small)
    with Picture.open(path) as opened, Picture.open(small) as seen:
        assert seen.size == (512, 219) and seen.mode == "RGB"
        wanted = exact(np.asarray(opened.convert("RGB")), seen.size)
        assert np.abs(np.asarray(seen, np.float64) - wanted).mean() < 1
    assert not list(tmp_path.glob(".mimic*"))


def test_thumbnail_of_a_small_picture_is_the_picture(tmp_path: Path) -> None:
    pixels = PIXELS[:90, :120]
    Picture.fromarray(pixels).save(tmp_path / "a.png")
    told(tmp_path / "a.png", "--thumbnail", tmp_path / "b.png")
    assert np.array_equal(np.asarray(Picture.open(tmp_path / "b.png")), pixels)


def test_thumbnail_is_what_openslide_sees(corpus_file: Callable[[str], Path], tmp_path: Path) -> None:
    path, small = corpus_file("svs/CMU-1-Small-Region.svs"), tmp_path / "small.png"
    found = mimic.probe(path)
    peek.write(peek.thumbnail(found, found.scans()[0], settings.load())[0], small)
    with closing(openslide.OpenSlide(path)) as slide, Picture.open(small) as seen:
        whole = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
        assert seen.size == (383, 512)
        assert np.abs(np.asarray(seen, np.float64) - exact(whole, seen.size)).mean() < 0.6


def shape(mimic_image: Image, number: int) -> tuple[int, int]:
    return mimic_image.levels[number].width_px, mimic_image.levels[number].height_px


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("ndpi/test3-TRITC 2 (560).ndpi", 3),  # its lower levels are planar, the largest is interleaved
        ("czi/he_8k_jxr_pyramid_label_20x.czi", 4),
        ("dicom/cmu_small_region_series", 1),  # Bio-Formats cannot read level 2, which would do
        ("nd2/example-multichannel.nd2", 0),
        ("oib/test.oib", 0),
    ],
)
def test_thumbnail_from_the_smallest_level_that_will_do(
    name: str, level: int, corpus_file: Callable[[str], Path]
) -> None:
    path = corpus_file(name)
    slide = mimic.probe(sorted(path.iterdir())[0] if path.is_dir() else path)
    image = slide.scans()[0]
    pixels, how = peek.thumbnail(slide, image, settings.load())
    assert how.startswith(f"from level {level} ") and ("rendered" in how) == (not image.rgb)
    assert max(pixels.shape) == min(512, max(shape(image, 0))) and pixels.std() > 3
    if "ndpi" in name:
        with closing(openslide.OpenSlide(path)) as other:
            seen = np.asarray(other.get_thumbnail((512, 512)).convert("RGB"), np.float64)
        assert abs(seen.shape[0] - pixels.shape[0]) <= 1 and abs(seen.shape[1] - pixels.shape[1]) <= 1
        rows, columns = min(seen.shape[0], pixels.shape[0]), min(seen.shape[1], pixels.shape[1])
        theirs, ours = seen[:rows, :columns, 0].ravel(), pixels[:rows, :columns, 0].ravel()
        assert np.corrcoef(theirs, ours)[0, 1] > 0.9


def test_thumbnail_beside_json(tmp_path: Path) -> None:
    found = json.loads(told(picture(tmp_path / "a.png"), "--json", "--thumbnail", tmp_path / "b.png"))
    assert found["thumbnail"]["width_px"] == 512 and found["thumbnail"]["path"].endswith("b.png")


def test_thumbnails_that_cannot_be(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    before = path.read_bytes()
    assert refused(path, "--thumbnail", path) == 2
    assert refused(path, "--thumbnail", tmp_path / "b.jpg") == 2
    assert refused(path, "--thumbnail", tmp_path / "none/b.png") == 7
    assert refused(tmp_path / "missing.png") == 3
    assert path.read_bytes() == before and not list(tmp_path.glob(".mimic*"))


def exact(pixels: NDArray[np.uint8], size_px: tuple[int, int]) -> NDArray[np.float64]:
    """Means of areas from running sums: another way than the one under test."""
    found = pixels.astype(np.float64)
    for axis, count in ((0, size_px[1]), (1, size_px[0])):
        lines = np.moveaxis(found, axis, 0)
        sums = np.concatenate([np.zeros((1, *lines.shape[1:])), np.cumsum(lines, 0)])
        edges = np.linspace(0, len(lines), count + 1)
        at = np.minimum(edges.astype(int), len(lines) - 1)
        upto = sums[at] + (edges - at)[:, np.newaxis, np.newaxis] * lines[at]
        found = np.moveaxis(np.diff(upto, axis=0) * (count / len(lines)), 0, axis)
    return found


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    st.tuples(st.integers(5, 40), st.integers(5, 40)),
)
def test_boxes_add_up_to_the_means_of_areas(
    level_px: tuple[int, int], share: tuple[float, float], box_px: tuple[int, int]
) -> None:
    (width, height), (across, down) = level_px, box_px
    size = max(1, int(width * share[0])), max(1, int(height * share[1]))
    pixels = np.random.default_rng(width * 61 + height).integers(0, 256, (height, width, 3)).astype(np.uint8)
    means = np.zeros((size[1], size[0], 3))
    for y in range(0, height, down):
        for x in range(0, width, across):
            box = Box(x, y, min(across, width - x), min(down, height - y))
            peek.add(means, Level(width, height), box, pixels[y : y + box.height_px, x : x + box.width_px])
    assert np.abs(means - exact(pixels, size)).max() < 0.01


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 2000))
def test_sizes_fit(width: int, height: int, side: int) -> None:
    found = peek.fit(Level(width, height), side)
    assert min(found) >= 1 and max(found) <= max(side, 1) and found[0] <= width and found[1] <= height
