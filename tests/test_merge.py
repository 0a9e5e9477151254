"""Scenes on one canvas, against ZEISS's own reader of the whole picture."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import mimic
from mimic import merge, settings
from mimic.errors import ToolFailed, Unsupported, UsageError
from mimic.model import Box, Level, Scale
from tools.czi_samples import MPP_UM
from tools.make_samples import histology

SCENES = {0: (-300, 50, 512, 512), 1: (1000, 400, 512, 512), 2: (150, 480, 512, 512)}
"""x, y, width, height on the stage; the third one overlaps a corner of the first. Bio-Formats 7.3.1 mistakes the sizes
of scenes that differ and have no pyramid, and such files are refused."""
CANVAS = (1812, 942)


def write(path: Path, *, scenes: dict[int, tuple[int, int, int, int]] = SCENES, step: int = 256) -> Path:
    """RGB scenes in tiles, by ZEISS's writer."""
    from pylibCZIrw import czi as zeiss

    with zeiss.create_czi(str(path), exist_ok=True) as document:
        for scene, (left, top, width, height) in scenes.items():
            pixels = np.ascontiguousarray(
                histology(width, height)[:, :, [(scene + channel) % 3 for channel in range(3)]]
            )
            for y in range(0, height, step):
                for x in range(0, width, step):
                    tile = np.ascontiguousarray(pixels[y : y + step, x : x + step, ::-1])
                    document.write(tile, location=(left + x, top + y), scene=scene)
        document.write_metadata(path.stem, scale_x=MPP_UM * 1e-6, scale_y=MPP_UM * 1e-6)
    return path


def by_zeiss(path: Path) -> NDArray[np.uint8]:
    """The whole picture as libCZI composes it, white where nothing is."""
    from pylibCZIrw import czi as zeiss

    with zeiss.open_czi(str(path)) as document:
        whole = document.total_bounding_rectangle
        return np.asarray(document.read(roi=tuple(whole), background_pixel=(1.0, 1.0, 1.0)))[..., ::-1]


@pytest.fixture(scope="module")
def two_scenes(require_module: Callable[[str], object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_module("pylibCZIrw.czi")
    return write(tmp_path_factory.mktemp("czi") / "scenes.czi")


def read(path: Path, box: Box | None = None) -> NDArray[np.uint8]:
    slide = merge.merged(mimic.probe(path))
    canvas = slide.scans()[0]
    opened = merge.open(slide, canvas, threads=2, settings=settings.load(), scratch=path.parent)
    with closing(opened) as reader:
        size = canvas.levels[0]
        return reader.read(box or Box(0, 0, size.width_px, size.height_px))


def test_canvas_is_what_zeiss_reads(two_scenes: Path) -> None:
    slide = mimic.probe(two_scenes)
    assert len(slide.scans()) == 3
    canvas = merge.merged(slide).scans()
    assert len(canvas) == 1 and (canvas[0].levels[0].width_px, canvas[0].levels[0].height_px) == CANVAS
    assert canvas[0].scale == slide.scans()[0].scale
    truth = by_zeiss(two_scenes)
    assert np.array_equal(read(two_scenes), truth)
    for x, y, width, height in ((0, 0, 17, 23), (850, 300, 700, 400), (1790, 900, 22, 42), (1250, 0, 20, 60)):
        assert np.array_equal(read(two_scenes, Box(x, y, width, height)), truth[y : y + height, x : x + width])
    assert (truth[:50, 1250:1270] == 255).all(), "a place between scenes"


def test_merged_slide_is_verified_and_says_so(two_scenes: Path, tmp_path: Path) -> None:
    done = mimic.convert(two_scenes, tmp_path, merge_scenes=True, verify="full", appmag=40)
    assert [path.name for path in done.outputs] == ["scenes.svs"]
    assert any("--merge-scenes" in reason for reason in done.results[0].plan.reasons)
    with closing(openslide.OpenSlide(done.outputs[0])) as slide:
        assert slide.dimensions == CANVAS
        seen = np.asarray(slide.read_region((0, 0), 0, CANVAS))[..., :3]
    assert np.abs(seen.astype(int) - by_zeiss(two_scenes)).mean() < 6
    apart = mimic.convert(two_scenes, tmp_path / "apart", appmag=40)
    assert [path.name for path in apart.outputs] == ["scenes_s1.svs", "scenes_s2.svs", "scenes_s3.svs"]


def test_scenes_of_one_place_are_no_mosaic(corpus_file: Callable[[str], Path]) -> None:
    """A real file whose two scenes both claim to lie at 0, 0: one would hide the other."""
    with pytest.raises(Unsupported, match="on top of each other"):
        mimic.plan(corpus_file("czi/two_scenes_u16_z2.czi"), merge_scenes=True)


def test_rendered_scenes_lie_where_their_pixels_do(require_module: Callable[[str], object], tmp_path: Path) -> None:
    """16-bit grey: rendered, black between the scenes, and no brighter than a file of its own."""
    from pylibCZIrw import czi as zeiss

    require_module("pylibCZIrw.czi")
    path = tmp_path / "grey.czi"
    grey = histology(512, 512)[..., 0].astype(np.uint16) * 16
    with zeiss.create_czi(str(path)) as document:
        for scene, (x, y) in enumerate(((0, 0), (700, 100))):
            document.write(grey[..., None], location=(x, y), scene=scene)
        document.write_metadata("grey", scale_x=1e-6 * MPP_UM, scale_y=1e-6 * MPP_UM)
    done = mimic.convert(path, tmp_path, merge_scenes=True)
    with closing(openslide.OpenSlide(done.outputs[0])) as slide:
        assert slide.dimensions == (1212, 612)
        seen = np.asarray(slide.read_region((0, 0), 0, slide.dimensions)).astype(int)[..., 1]
    assert seen[:, 530:680].max() < 16 and np.abs(seen[:512, :512] - seen[100:612, 700:1212]).mean() < 5
    assert np.corrcoef(seen[:512, :512].ravel(), grey.ravel())[0, 1] > 0.95


def test_what_cannot_be_merged(two_scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = mimic.probe(two_scenes)
    first, second, third = slide.scans()
    other_scale = replace(second, scale=Scale(0.5, 0.5, "file"))
    for wrong, words in (
        (other_scale, "0.25 and 0.5 um/px"),
        (replace(second, scale=None), "states none"),
        (replace(second, pixel_type="uint16"), "kind of their pixels"),
        (replace(second, z_planes=3), "kind of their pixels"),
    ):
        with pytest.raises(Unsupported, match=words) as caught:
            merge.merged(replace(slide, images=(first, wrong, third)))
        assert caught.value.remedy and "--merge-scenes" in caught.value.remedy
    monkeypatch.setattr(merge, "CANVAS_MAX_PX", 1_000_000)
    with pytest.raises(Unsupported, match="canvas would have"):
        merge.merged(slide)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="--image"):
        mimic.plan(two_scenes, merge_scenes=True, image_index=0)


def test_format_without_positions_is_refused(sample_czi: Path) -> None:
    slide = mimic.probe(sample_czi)
    assert merge.merged(slide) is slide, "one scene is what it is"
    scan = slide.scans()[0]
    twice = replace(slide, source="vips", images=(scan, replace(scan, index=9)))
    with pytest.raises(Unsupported, match="does not tell where"):
        merge.merged(twice)


class Flat:
    """A scene of one colour."""

    sequential = False

    def __init__(self, colour: int, log: list[int]) -> None:
        self.colour, self.log = colour, log
        log.append(colour)

    def boxes(self) -> list[Box]:
        return []

    def read(self, box: Box) -> NDArray[np.uint8]:
        return np.full((box.height_px, box.width_px, 3), self.colour, np.uint8)

    def close(self) -> None:
        self.log.append(-self.colour)


sides = st.integers(1, 60)
rectangles = st.builds(Box, st.integers(0, 200), st.integers(0, 200), sides, sides)


@given(st.lists(rectangles, min_size=1, max_size=12), rectangles)
def test_any_scenes_against_plain_painting(scenes: list[Box], box: Box) -> None:
    log: list[int] = []
    openers = [lambda colour=colour: Flat(colour, log) for colour in range(1, len(scenes) + 1)]
    placed = [merge.Place(scene, (scene,)) for scene in scenes]
    naive = np.full((300, 300, 3), 255, np.uint8)
    for colour, scene in enumerate(scenes, start=1):
        naive[scene.y_px : scene.y_px + scene.height_px, scene.x_px : scene.x_px + scene.width_px] = colour
    with closing(merge.MergedReader(Level(300, 300), placed, openers, Path("a"))) as reader:
        seen = reader.read(box)
    assert np.array_equal(seen, naive[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px])
    assert sum(log) == 0, "each scene that was opened was closed"


def test_holes_of_one_scene_do_not_cover_another() -> None:
    """A full scene below the box of an L-shaped one, whose hole must let it be seen."""
    full, ell = Box(20, 0, 40, 40), Box(0, 20, 40, 40)
    arms = (Box(0, 20, 20, 20), Box(0, 40, 20, 20), Box(20, 40, 20, 20))
    openers = [lambda colour=colour: Flat(colour, []) for colour in (1, 2)]
    placed = [merge.Place(full, (full,)), merge.Place(ell, arms)]
    with closing(merge.MergedReader(Level(60, 60), placed, openers, Path("a"))) as reader:
        seen = reader.read(Box(0, 0, 60, 60))[::20, ::20, 0]
    assert seen.tolist() == [[255, 1, 1], [2, 1, 1], [2, 2, 255]]


def test_few_scenes_are_open_at_a_time_and_none_after_close() -> None:
    log: list[int] = []
    scenes = [Box(20 * number, 0, 20, 20) for number in range(30)]
    openers = [lambda colour=colour: Flat(colour, log) for colour in range(1, 31)]
    reader = merge.MergedReader(Level(600, 20), [merge.Place(each, (each,)) for each in scenes], openers, Path("a"))
    reader.read(Box(0, 0, 600, 20))
    most = max(sum(1 if each > 0 else -1 for each in log[:count]) for count in range(1, len(log) + 1))
    assert most <= merge.OPEN_SCENES + 1
    reader.close()
    reader.close()
    assert sum(log) == 0
    with pytest.raises(ToolFailed, match="closed"):
        reader.read(Box(0, 0, 5, 5))
