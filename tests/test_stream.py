"""stream: one pass that always gives the same bytes, and that ends at once, and whole, when anything goes wrong."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import simplejpeg

from mimic import encode, pyramid
from mimic.errors import BadInput, InternalError, MimicError, OutputError
from mimic.model import Box, CodedTile, Image, Level, Options, Pixels, Plan, Progress, Scale, Slide
from mimic.plan import plan
from mimic.samples import SampleKeeper
from mimic.stream import read_whole, write_levels
from mimic.writer import Run, TiffWriter
from tools.make_samples import histology

WIDE, HIGH = 1500, 1100


@pytest.fixture(scope="module")
def truth() -> Pixels:
    return histology(WIDE, HIGH)


def planned(threads: int = 2, *, width_px: int = WIDE, height_px: int = HIGH) -> Plan:
    path, scale = Path("slide.czi"), Scale(0.5, 0.5, "file")
    image = Image(0, "scan", "", (Level(width_px, height_px),), 3, True, "uint8", 8, scale=scale)
    return plan(Slide(path, (path,), "Test", "vips", (image,)), Options(), output=None, threads=threads)[0]


class Memory:
    """A reader of an array; tells how it was used."""

    def __init__(self, pixels: Pixels, *, side_px: int = 300, sequential: bool = False, delay_s: float = 0.0) -> None:
        self.pixels = pixels
        self.side_px = side_px
        self.sequential = sequential
        self.delay_s = delay_s
        self.closed = threading.Event()
        self.order: list[Box] = []
        self.busy = self.busiest = 0
        self._lock = threading.Lock()

    def boxes(self) -> Sequence[Box]:
        high, wide = self.pixels.shape[:2]
        side = self.side_px
        return [
            Box(x, y, min(side, wide - x), min(side, high - y))
            for y in range(0, high, side)
            for x in range(0, wide, side)
        ]

    def read(self, box: Box) -> Pixels:
        with self._lock:
            self.order.append(box)
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        if self.delay_s:
            time.sleep(self.delay_s * (hash((box.x_px, box.y_px)) % 3))
        with self._lock:
            self.busy -= 1
        return self.pixels[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px].copy()

    def close(self) -> None:
        self.closed.set()


class Tiles:
    """A writer that keeps what it is given."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.tiles: list[CodedTile] = []
        self.fails_at = fails_at

    def add_run(self, level: int, place: tuple[int, int], run: Run) -> None:
        at = 0
        for index, count in enumerate(run.counts):
            if len(self.tiles) == self.fails_at:
                raise OutputError("the disk is full", Path("out.svs"), "Free some space")
            self.tiles.append(CodedTile(level, place[0] + index, place[1], run.data[at : at + count]))
            at += count + count % 2


def write(
    reader: Any, tiles: Tiles, *, threads: int = 2, watch: Callable[[Progress], None] = lambda _: None
) -> tuple[Pixels, SampleKeeper]:
    high, wide = reader.pixels.shape[:2]
    made = planned(threads, width_px=wide, height_px=high)
    keeper = SampleKeeper(wide, high, made.tile_px)
    smallest = write_levels(made, reader, cast(TiffWriter, tiles), keeper=keeper, watch=watch)
    return smallest, keeper


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mimic-")]


def test_the_same_bytes_from_one_thread_and_from_four(truth: Pixels) -> None:
    results = []
    for threads, delay_s in ((1, 0.0), (4, 0.003), (4, 0.001)):
        tiles = Tiles()
        smallest, _ = write(Memory(truth, delay_s=delay_s), tiles, threads=threads)
        results.append((tiles.tiles, smallest.tobytes()))
    assert results[0] == results[1] == results[2]
    assert ours() == []


def test_pixels_are_taken_as_they_are_stored(truth: Pixels) -> None:
    class Stored(Memory):
        def read(self, box: Box) -> Pixels:
            raise AssertionError(f"{box} is turned round for nothing")

        def read_as_stored(self, box: Box) -> Pixels:
            return np.ascontiguousarray(super().read(box)[..., ::-1])[..., ::-1]

    found, wanted = Tiles(), Tiles()
    smallest, keeper = write(Stored(truth), found)
    plain, kept = write(Memory(truth), wanted)
    assert found.tiles == wanted.tiles and np.array_equal(smallest, plain)
    for one, other in zip(keeper.samples(), kept.samples(), strict=True):
        assert one.box == other.box and np.array_equal(one.pixels, other.pixels)


def test_every_tile_of_every_level_with_its_pixels(truth: Pixels) -> None:
    tiles = Tiles()
    smallest, keeper = write(Memory(truth), tiles)
    found = {(tile.level, tile.column, tile.row): tile.data for tile in tiles.tiles}
    assert len(found) == len(tiles.tiles)
    assert set(found) == {(0, c, r) for c in range(6) for r in range(5)} | {
        (1, c, r) for c in range(2) for r in range(2)
    }
    for (level, column, row), data in found.items():
        pixels = simplejpeg.decode_jpeg(data)
        assert pixels.shape == (256, 256, 3)
        if level == 0:
            part = truth[row * 256 : row * 256 + 256, column * 256 : column * 256 + 256]
            assert np.abs(pixels[: part.shape[0], : part.shape[1]].astype(int) - part).mean() < 6
    average, size_px = pyramid.area_average(truth, 4, 4), planned().thumbnail_px
    assert smallest.shape == (HIGH // 4, size_px[0], 3)
    assert np.array_equal(pyramid.thumbnail(smallest, size_px), pyramid.thumbnail(average, size_px))
    assert len(keeper.samples()) == 30  # every tile of a slide this small
    for kept in keeper.samples():
        box = kept.box
        assert np.array_equal(
            kept.pixels, truth[box.y_px : box.y_px + box.height_px, box.x_px : box.x_px + box.width_px]
        )


def test_a_pixel_is_averaged_and_encoded_once(truth: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts, for time: however the boxes lie, each level costs its own pixels, once, and no thread but the encoders'
    averages."""
    averaged: list[tuple[int, str]] = []
    encoded: list[int] = []
    average, code = pyramid.area_average, encode._jpeg

    def spy_average(pixels: Pixels, x: int, y: int) -> Pixels:
        averaged.append((pixels.shape[0] * pixels.shape[1], threading.current_thread().name[:13]))
        return average(pixels, x, y)

    def spy_code(pixels: Pixels, **options: Any) -> bytes:
        if not options["own_tables"]:  # a small one is coded again with its own
            encoded.append(pixels.shape[0])
        return code(pixels, **options)

    monkeypatch.setattr(pyramid, "area_average", spy_average)
    monkeypatch.setattr(encode, "_jpeg", spy_code)
    write(Memory(truth), Tiles())
    assert sum(count for count, _ in averaged) == WIDE * HIGH + (WIDE // 4) * (HIGH // 4)
    assert {name for _, name in averaged} == {"mimic-encode_"}
    assert encoded == [256] * (30 + 4)


@pytest.mark.parametrize("broadcast", [True, False])
def test_an_empty_tile_is_encoded_once(monkeypatch: pytest.MonkeyPatch, broadcast: bool) -> None:
    """Whether the source hands out one pixel for the whole box or writes it out; the bytes are those of the tile."""
    encoded: list[int] = []
    code = encode._jpeg
    blank = np.broadcast_to(np.uint8([250, 252, 251]), (1024, 2048, 3))

    class Empty(Memory):
        def read(self, box: Box) -> Pixels:
            part = self.pixels[: box.height_px, : box.width_px]
            return part if broadcast else part.copy()

    def spy_code(pixels: Pixels, **options: Any) -> bytes:
        encoded.append(pixels.shape[0])
        return code(pixels, **options)

    encode._uniform_tile.cache_clear()
    want = encode.tile(np.ascontiguousarray(blank[:256, :256]), quality=80, profile="ycc")
    monkeypatch.setattr(encode, "_jpeg", spy_code)
    tiles = Tiles()
    smallest, keeper = write(Empty(blank, side_px=512), tiles, threads=1)
    assert len(encoded) == 2  # with the standard tables, and with its own
    assert len(tiles.tiles) == 32 + 2 and {tile.data for tile in tiles.tiles} == {want}
    assert np.array_equal(smallest, blank[:256, : smallest.shape[1]])
    assert all(np.array_equal(each.pixels, blank[:256, :256]) for each in keeper.samples())


def test_progress_ends_at_the_whole(truth: Pixels) -> None:
    seen: list[Progress] = []
    write(Memory(truth), Tiles(), watch=seen.append)
    assert [each.stage for each in seen] == ["convert"] * len(seen)
    assert [each.done_px for each in seen] == sorted({each.done_px for each in seen})
    assert seen[-1].done_px == seen[-1].total_px == WIDE * HIGH


def test_a_sequential_reader_is_read_in_order_by_one(truth: Pixels) -> None:
    reader = Memory(truth, sequential=True, delay_s=0.001)
    write(reader, Tiles(), threads=4)
    assert reader.order == list(reader.boxes()) and reader.busiest == 1


@pytest.mark.parametrize("sequential", [False, True])
def test_every_box_is_asked_for_once(truth: Pixels, sequential: bool) -> None:
    reader = Memory(truth, sequential=sequential)
    write(reader, Tiles())
    assert sorted(reader.order, key=lambda box: (box.y_px, box.x_px)) == list(reader.boxes())


def test_other_readers_are_read_by_many(truth: Pixels) -> None:
    reader = Memory(truth, delay_s=0.01)
    write(reader, Tiles(), threads=4)
    assert reader.busiest > 1


def test_no_more_boxes_are_read_ahead_than_memory_allows(truth: Pixels) -> None:
    reader = Memory(truth, side_px=100)
    ahead = 0
    done = 0

    def watch(_: Progress) -> None:
        nonlocal ahead, done
        done += 1
        time.sleep(0.003)  # the readers could run far ahead meanwhile
        ahead = max(ahead, len(reader.order) - done)

    write(reader, Tiles(), threads=2, watch=watch)
    assert 0 < ahead <= 4


@pytest.mark.parametrize("sequential", [False, True])
def test_bands_are_let_go_as_soon_as_they_are_encoded(sequential: bool) -> None:
    """Alive at once: two that are read ahead, one that is cut into tiles, one of which tiles wait, and, for a
    moment, one that a thread has just done."""
    alive: set[int] = set()
    most = 0

    class Bands(Memory):
        def boxes(self) -> Sequence[Box]:
            return [Box(0, y, 16384, 256) for y in range(0, 2048, 256)]

        def read(self, box: Box) -> Pixels:
            nonlocal most
            pixels = np.full((box.height_px, box.width_px, 3), box.y_px // 256, np.uint8)
            alive.add(box.y_px)
            weakref.finalize(pixels, alive.discard, box.y_px)
            most = max(most, len(alive))
            return pixels

    whole = np.broadcast_to(np.uint8([0, 0, 0]), (2048, 16384, 3))
    write(Bands(whole, sequential=sequential), Tiles(), threads=2)
    assert not alive and 2 <= most <= 5


def test_an_error_of_the_reader_closes_it_and_ends_every_thread(truth: Pixels) -> None:
    class Damaged(Memory):
        def read(self, box: Box) -> Pixels:
            if len(self.order) >= 5:
                raise BadInput("the block is damaged", Path("slide.czi"), "Copy it again")
            return super().read(box)

    reader = Damaged(truth)
    with pytest.raises(BadInput, match="the block is damaged"):
        write(reader, Tiles(), threads=4)
    assert reader.closed.is_set() and ours() == []


def test_an_error_of_the_writer_closes_the_reader(truth: Pixels) -> None:
    reader = Memory(truth)
    with pytest.raises(OutputError, match="disk is full"):
        write(reader, Tiles(fails_at=3), threads=4)
    assert reader.closed.is_set() and ours() == []


def test_an_interrupt_ends_reads_that_would_last(truth: Pixels) -> None:
    """Ctrl-C comes in the main thread; the threads in a slow codec are freed by closing the reader."""

    class Slow(Memory):
        def read(self, box: Box) -> Pixels:
            if len(self.order) >= 4:
                if not self.closed.wait(30):
                    raise AssertionError("nobody closed the reader")
                raise BadInput("closed while it was read")
            return super().read(box)

    def watch(_: Progress) -> None:
        raise KeyboardInterrupt

    reader = Slow(truth)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        write(reader, Tiles(), threads=4, watch=watch)
    assert time.monotonic() - started < 20
    assert reader.closed.is_set() and ours() == []


@pytest.mark.parametrize("change", ["lost", "twice"])
def test_boxes_that_do_not_cover_the_image_once(truth: Pixels, change: str) -> None:
    class Wrong(Memory):
        def boxes(self) -> Sequence[Box]:
            boxes = list(super().boxes())
            return boxes[:-1] if change == "lost" else [*boxes, boxes[3]]

    reader = Wrong(truth)
    with pytest.raises(InternalError):
        write(reader, Tiles())
    assert ours() == []


def test_a_real_writer_gets_every_segment(truth: Pixels, tmp_path: Path) -> None:
    made = planned()
    reader = Memory(truth)
    keeper = SampleKeeper(WIDE, HIGH, made.tile_px)
    with TiffWriter(tmp_path / "a.svs") as writer:
        write_levels(made, reader, writer, keeper=keeper, watch=lambda _: None)
    assert (tmp_path / "a.svs").stat().st_size > 50_000
    assert not reader.closed.is_set()  # who opened it closes it


def test_read_whole(truth: Pixels) -> None:
    assert np.array_equal(read_whole(Memory(truth)), truth)
    assert read_whole(Memory(truth[:1, :1])).shape == (1, 1, 3)


def test_read_whole_closes_a_reader_that_fails(truth: Pixels) -> None:
    class Damaged(Memory):
        def read(self, box: Box) -> Pixels:
            raise BadInput(f"damaged at {box.x_px}")

    reader = Damaged(truth)
    with pytest.raises(MimicError):
        read_whole(reader)
    assert reader.closed.is_set()
