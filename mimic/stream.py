"""One pass over the pixels: read boxes, make every level, encode and write tiles; in bounded memory, on all cores.

    reading threads      the calling thread           encoding threads
    read a box      ->   cut it into runs of tiles -> encode, average, keep a sample
                         write the run, put its    <- Made
                         averages one level up, send what that completes -> ...

Boxes are read ahead by some threads while others encode; results are taken in the order in which they were asked
for, so that the same slide always gives the same bytes. The calling thread alone knows the whole, and touches as few
pixels as it can.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from mimic import encode
from mimic.errors import MimicError
from mimic.model import Box, Pixels, Plan, Progress
from mimic.pyramid import Pyramid, TilePixels
from mimic.samples import SampleKeeper
from mimic.sources import PixelReader, StoredReader
from mimic.writer import Run, TiffWriter, joined

RUN_TILES = 8
"""Tiles that are handed to a thread at once: handing over one by one costs a sixth of encoding them."""
RUNS_AHEAD = 4
"""Runs a thread that wait for an encoder or for their turn: 6 MB raw at 256 px. Each may keep the whole box alive of
which it is a view, and memory that is touched for the first time costs more than encoding it."""
RISEN_AFTER = 128
"""Runs after which it is the turn of one that was made from averages: by then it is encoded, with any ``threads``."""
ENCODERS_NICE = 5
"""A third of the reading thread's share of a core that both want."""

Watch = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class _Made:
    """A run of tiles as it is written, from ``column`` on, and the average of each of them."""

    level: int
    column: int
    row: int
    run: Run
    blocks: list[Pixels]


def write_levels(plan: Plan, reader: PixelReader, writer: TiffWriter, *, keeper: SampleKeeper, watch: Watch) -> Pixels:
    """Write all tiles of all levels and return the smallest level, as wide as the thumbnail that it is for.

    ``keeper`` is offered every level-0 tile. Raises what ``reader`` and ``writer`` raise; no thread outlives the call.
    """
    readers = ThreadPoolExecutor(1 if reader.sequential else plan.threads, thread_name_prefix="mimic-read")
    behind = _behind if reader.sequential else None
    encoders = ThreadPoolExecutor(plan.threads, thread_name_prefix="mimic-encode", initializer=behind)
    done_px, total_px = 0, plan.levels[0].width_px * plan.levels[0].height_px
    try:
        making = _Making(plan, writer, encoders, keeper)
        for box, pixels in _read_ahead(reader, readers, ahead=2 if reader.sequential else plan.threads):
            making.add(box, pixels)
            del pixels  # not to be held while the next box is waited for
            done_px += box.width_px * box.height_px
            watch(Progress("convert", done_px, total_px))
        return making.finish()
    except BaseException:
        reader.close()  # lets a read that is under way fail at once, so that the threads end
        raise
    finally:
        readers.shutdown(wait=True, cancel_futures=True)
        encoders.shutdown(wait=True, cancel_futures=True)


def _behind() -> None:
    """Puts the calling thread behind the one that reads a picture from its top: nothing can be faster than that.

    Linux' schedulers know threads; elsewhere the priority is the whole process's, and is let alone.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, min(19, os.getpriority(os.PRIO_PROCESS, 0) + ENCODERS_NICE))


def _read_ahead(reader: PixelReader, pool: ThreadPoolExecutor, *, ahead: int) -> Iterator[tuple[Box, Pixels]]:
    """Boxes with their pixels, in order; while one is dealt with, ``ahead`` more are read or wait."""
    pending: deque[tuple[Box, Future[Pixels]]] = deque()

    def first() -> tuple[Box, Pixels]:  # a generator's own variable would keep the box alive
        box, future = pending.popleft()
        return box, future.result()

    read = reader.read_as_stored if isinstance(reader, StoredReader) else reader.read
    for box in reader.boxes():
        pending.append((box, pool.submit(read, box)))
        if len(pending) > ahead:
            yield first()
    while pending:
        yield first()


class _Making:
    """Tiles on their way from boxes to the file; for the calling thread, but for ``_make``.

    The order of tiles in the file follows from the order of the boxes, never from who was faster or how many there are:
    level 0 is written as it comes, what is made from it so many runs later.
    """

    def __init__(self, plan: Plan, writer: TiffWriter, pool: ThreadPoolExecutor, keeper: SampleKeeper) -> None:
        self._plan, self._writer, self._pool, self._keeper = plan, writer, pool, keeper
        self._keeping = threading.Lock()
        sizes_px = [(level.width_px, level.height_px) for level in plan.levels]
        kept_px = plan.thumbnail_px[0]
        self._pyramid = Pyramid(sizes_px, tile_px=plan.tile_px, downsample=plan.downsample, kept_px=kept_px)
        self._waiting: deque[Future[_Made]] = deque()  # of level 0; without pixels, which are let go once encoded
        self._risen: deque[tuple[int, Future[_Made]]] = deque()  # of the levels below it, with the number of their turn
        self._turn = 0

    def add(self, box: Box, pixels: Pixels) -> None:
        """Send the tiles that ``box`` completes to the encoders; write those whose turn has come."""
        self._waiting.extend(map(self._sent, _runs(self._pyramid.level_0(box, pixels))))
        while len(self._waiting) > RUNS_AHEAD * self._plan.threads:
            self._take()

    def finish(self) -> Pixels:
        """Write what is still under way; the smallest level, as wide as the thumbnail."""
        while self._waiting or self._risen:
            self._take()
        return self._pyramid.smallest()

    def _sent(self, run: list[TilePixels]) -> Future[_Made]:
        return self._pool.submit(self._make, run)

    def _next(self) -> Future[_Made]:
        if self._risen and (self._risen[0][0] <= self._turn or not self._waiting):
            return self._risen.popleft()[1]
        return self._waiting.popleft()

    def _take(self) -> None:
        made = self._next().result()
        self._turn += 1
        self._writer.add_run(made.level, (made.column, made.row), made.run)
        risen = (
            self._pyramid.rise((made.level, made.column + index, made.row), block)
            for index, block in enumerate(made.blocks)
        )
        for run in _runs(tile for tile in risen if tile is not None):
            self._risen.append((self._turn + RISEN_AFTER, self._sent(run)))

    def _make(self, tiles: list[TilePixels]) -> _Made:
        """In a thread of the pool."""
        plan, first = self._plan, tiles[0]
        tiles = [tile.condensed() for tile in tiles]
        coded: list[bytes] = []
        blocks: list[Pixels] = []
        for tile in tiles:  # averaged while it is in the cache
            beside = coded[-1] if coded else None
            coded.append(encode.tile(tile.pixels, quality=plan.quality, profile=plan.profile, beside=beside))
            blocks.append(self._pyramid.average(tile))
        if first.level == 0:
            with self._keeping:
                for tile, data in zip(tiles, coded, strict=True):
                    self._keeper.offer(_place(plan, tile), tile.valid, coded_bytes=len(data))
        return _Made(first.level, first.column, first.row, joined(coded), blocks)


def _place(plan: Plan, tile: TilePixels) -> Box:
    high, wide = tile.valid.shape[:2]
    return Box(tile.column * plan.tile_px, tile.row * plan.tile_px, wide, high)


def _runs(tiles: Iterable[TilePixels]) -> Iterator[list[TilePixels]]:
    """Tiles that follow each other side by side, at most RUN_TILES at once."""
    run: list[TilePixels] = []
    for tile in tiles:
        last = run[-1] if run else tile
        beside = (tile.level, tile.row, tile.column) == (last.level, last.row, last.column + 1)
        if run and not (beside and len(run) < RUN_TILES):
            yield run
            run = []
        run.append(tile)
    if run:
        yield run


def read_whole(reader: PixelReader) -> Pixels:
    """All pixels of a small image: a label, a macro."""
    boxes = reader.boxes()
    width = max(box.x_px + box.width_px for box in boxes)
    height = max(box.y_px + box.height_px for box in boxes)
    try:
        return reader.read(Box(0, 0, width, height))
    except MimicError:
        reader.close()
        raise
