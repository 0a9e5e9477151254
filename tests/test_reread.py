"""reread: a source that gives other pixels the second time, or others than were written, is found out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic import reread, sources
from mimic.convert import convert, plan_slide
from mimic.model import Box, Options, Pixels, Plan, Progress, Request, Sample
from mimic.probe import probe
from mimic.settings import load
from mimic.verify import failed
from tools.make_samples import Sample as Made


class Memory:
    """A reader of an array, which may be wrong at one place."""

    sequential = False

    def __init__(self, pixels: Pixels, *, wrong: Box | None = None, side_px: int = 700) -> None:
        self.pixels = pixels.copy()
        self.side_px = side_px
        if wrong is not None:
            part = self.pixels[wrong.y_px : wrong.y_px + wrong.height_px, wrong.x_px : wrong.x_px + wrong.width_px]
            part[:] = 255 - part
        self.read_boxes: list[Box] = []

    def boxes(self) -> Sequence[Box]:
        high, wide = self.pixels.shape[:2]
        side = self.side_px
        return [
            Box(x, y, min(side, wide - x), min(side, high - y))
            for y in range(0, high, side)
            for x in range(0, wide, side)
        ]

    def read(self, box: Box) -> Pixels:
        self.read_boxes.append(box)
        return self.pixels[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px]

    def close(self) -> None:
        pass


def samples(pixels: Pixels, count: int) -> tuple[Sample, ...]:
    boxes = [Box(10 * n, 20, 8, 8) for n in range(count)]
    return tuple(Sample(box, pixels[20:28, box.x_px : box.x_px + 8].copy()) for box in boxes)


@pytest.fixture
def pixels() -> Pixels:
    return np.random.default_rng(3).integers(0, 255, (100, 1200, 3), np.uint8)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 64, 100])
def test_the_same_pixels_again(pixels: Pixels, count: int) -> None:
    reader = Memory(pixels)
    check = reread.sample(reader, samples(pixels, count))
    assert check.passed and check.must
    assert len(reader.read_boxes) == min(count, 2)
    assert f"{len(reader.read_boxes)} of {len(reader.read_boxes)}" in check.measured


def test_one_other_pixel_is_seen(pixels: Pixels) -> None:
    check = reread.sample(Memory(pixels, wrong=Box(3, 22, 1, 1)), samples(pixels, 64))
    assert not check.passed and "x=0, y=20" in check.measured


@pytest.mark.parametrize(("side_px", "most"), [(700, 2), (40, 2), (12, 8), (5, 8)])
def test_few_samples_of_few_boxes(pixels: Pixels, side_px: int, most: int) -> None:
    reader = Memory(pixels, side_px=side_px)
    reread.sample(reader, samples(pixels, 100), threads=2)
    assert most // 2 < len(reader.read_boxes) <= most


def test_only_the_top_of_what_is_decoded_from_the_top(pixels: Pixels) -> None:
    tall = np.concatenate([pixels] * 4)
    boxes = [Box(x, y, 8, 8) for y in range(0, 400, 10) for x in range(0, 1200, 300)]
    kept = tuple(Sample(box, tall[box.y_px : box.y_px + 8, box.x_px : box.x_px + 8].copy()) for box in boxes)
    reader = Memory(tall, side_px=35)
    reader.sequential = True
    assert reread.sample(reader, kept).passed
    assert [box.y_px for box in reader.read_boxes] == [0, 40], "one in the first boxes and one behind them"
    wrong = Memory(tall, wrong=Box(0, 47, 1, 1), side_px=35)
    wrong.sequential = True
    assert not reread.sample(wrong, kept).passed
    lowest = reread.sample(reader, kept[-4:])
    assert "1 of 1" in lowest.measured, "where there is none at the top, the first"


def test_it_reads_from_top_to_bottom(pixels: Pixels) -> None:
    reader = Memory(pixels)
    reread.sample(reader, tuple(reversed(samples(pixels, 8))))
    assert reader.read_boxes == sorted(reader.read_boxes, key=lambda box: (box.y_px, box.x_px))


@pytest.fixture(scope="module")
def written(sample: Callable[[str], Made], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, Pixels]:
    """A converted picture, its plan, and the source's pixels."""
    source = sample("png").path
    folder = tmp_path_factory.mktemp("reread")
    request = Request(source, folder, Options(mpp_um=0.25))
    output = convert(request, load()).outputs[0]
    made = plan_slide(probe(source, load()), request)[0]
    return output, made, sample("png").pixels


def test_every_pixel_of_a_good_slide(written: tuple[Path, Plan, Pixels]) -> None:
    output, made, pixels = written
    seen: list[Progress] = []
    checks = reread.everything(output, made, Memory(pixels), watch=seen.append)
    assert not failed(checks)
    height, width = pixels.shape[:2]
    assert seen[-1].done_px == seen[-1].total_px == width * height
    assert f"{width * height} of {width * height}" in checks[0].measured


def test_the_real_source_too(written: tuple[Path, Plan, Pixels], tmp_path: Path) -> None:
    output, made, _ = written
    source = sources.load(made.slide.source)
    opened = source.open(made.slide, made.image, threads=2, settings=load(), scratch=tmp_path)
    with closing(opened) as reader:
        assert not failed(reread.everything(output, made, reader, watch=lambda _: None))


@pytest.mark.parametrize("wrong", [Box(0, 0, 256, 256), Box(1300, 1000, 200, 125), Box(600, 500, 64, 64)])
def test_a_wrong_place_anywhere_is_found(written: tuple[Path, Plan, Pixels], wrong: Box) -> None:
    output, made, pixels = written
    checks = reread.everything(output, made, Memory(pixels, wrong=wrong), watch=lambda _: None)
    assert failed(checks)


def test_a_reader_that_leaves_a_part_out_is_found(written: tuple[Path, Plan, Pixels]) -> None:
    class Short(Memory):
        def boxes(self) -> Sequence[Box]:
            return super().boxes()[:-1]

    output, made, pixels = written
    checks = reread.everything(output, made, Short(pixels), watch=lambda _: None)
    assert failed(checks) and checks[0].name == "every pixel"


@given(
    st.integers(0, 600), st.integers(0, 600), st.integers(1, 400), st.integers(1, 400), st.sampled_from([16, 100, 256])
)
def test_parts_cover_a_box_once_and_keep_to_the_tiles(x: int, y: int, width: int, height: int, tile_px: int) -> None:
    pixels = np.arange(width * height * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3)
    seen = np.zeros((height, width), int)
    for part in reread._parts(Box(x, y, width, height), pixels, tile_px):
        box = part.box
        assert box.x_px // tile_px == (box.x_px + box.width_px - 1) // tile_px
        assert box.y_px // tile_px == (box.y_px + box.height_px - 1) // tile_px
        rows, columns = (
            slice(box.y_px - y, box.y_px - y + box.height_px),
            slice(box.x_px - x, box.x_px - x + box.width_px),
        )
        seen[rows, columns] += 1
        assert np.array_equal(part.pixels, pixels[rows, columns])
    assert (seen == 1).all()
