"""8-bit RGB and grey TIFFs that are read without libvips: as they lie in the file, or decoded on all cores.

libvips makes twice the work of pixels that are not compressed, and decodes strips and tiles in one thread. Only what
leaves no choice is read here (one order of samples, one orientation, strips or tiles of exactly the size that their
rows take, compressed without loss); anything else is libvips' to understand.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimic.errors import BadInput
from mimic.model import Box, Pixels
from mimic.segments import STORED, Damaged, Packing
from mimic.structure.reader import COPY_AGAIN, Input
from mimic.structure.tiff import Directory, Walk

Wanted = dict[int, tuple[tuple[int, ...], ...]]

WANTED: Wanted = {
    266: ((), (1,)),  # order of bits
    274: ((), (1,)),  # orientation
    284: ((), (1,)),  # one beside the other
    338: ((),),  # no extra samples
    32997: ((), (1,)),  # depth of the image
    32998: ((), (1,)),  # depth of a tile
}
"""Values of the first directory's tags that the file is read here with; () is a tag that is not there. The next two
are about bits, photometric interpretation, samples a pixel and their type."""
WANTED_RGB: Wanted = {258: ((8, 8, 8),), 262: ((2,),), 277: ((3,),), 339: ((), (1,), (1, 1, 1))}
WANTED_GREY: Wanted = {258: ((8,),), 262: ((1,),), 277: ((), (1,)), 339: ((), (1,))}
STEP_PX = 256
BAND_BYTES = 8 << 20
MOST_TILE_ROWS_PX = 1024
MOST_SEGMENT_BYTES = 16 << 20
"""A compressed segment is decoded whole, and some boxes of at least one are held at a time."""
CHANNELS = 3


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the segments, strips or tiles, lie in the file: ``offsets`` and ``counts`` of bytes by row and column,
    ``*_px`` (width, height).

    At the lower edge a strip ends with the picture, a tile goes on. ``channels`` is 3 or 1 (grey).
    """

    path: Path
    size_px: tuple[int, int]
    segment_px: tuple[int, int]
    tiled: bool
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    channels: int
    packing: Packing

    @property
    def as_it_is(self) -> bool:
        """Whether any rows of a segment can be read from the file alone."""
        return self.packing.compression == STORED and self.channels == CHANNELS


def layout(path: Path) -> Layout | None:
    """The layout of a TIFF's first image, None when it is not of the plain kind. Raises BadInput for damage."""
    with Input(path) as source:
        walk = Walk(source)
        item = next(walk.directories())
        channels = _channels(walk, item)
        packing = Packing(_one(walk, item, 259), _one(walk, item, 317))
        if not channels or not packing.known:
            return None
        size = width, height = walk.number(item, 256), walk.number(item, 257)
        tiled = 324 in item.entries
        if tiled:
            tags, wide, tall = (324, 325), walk.number(item, 322), walk.number(item, 323)
        else:
            tags, wide, tall = (273, 279), width, min(walk.number(item, 278, height), height)
        whole = wide * tall * channels
        if not all(size) or whole <= 0 or any(tag not in item.entries for tag in tags):
            return None
        grid = -(-height // tall), -(-width // wide)
        offsets, counts = (walk.numbers(item.entries[tag]).astype(np.int64) for tag in tags)
        if not len(offsets) == len(counts) == math.prod(grid) or offsets.min() <= 0 or counts.min() <= 0:
            return None
        found = Layout(path, size, (wide, tall), tiled, offsets.reshape(grid), counts.reshape(grid), channels, packing)
        return found if _regular(found, source) else None


def _channels(walk: Walk, item: Directory) -> int:
    """Samples a pixel, 0 for a directory that is not of the plain kind."""

    def has(wanted: Wanted) -> bool:
        return all(_values(walk, item, tag) in allowed for tag, allowed in wanted.items())

    if not has(WANTED):
        return 0
    return CHANNELS if has(WANTED_RGB) else 1 if has(WANTED_GREY) else 0


def _values(walk: Walk, item: Directory, tag: int) -> tuple[int, ...]:
    """Those of a tag, the first 8; () for one that is not there, and -1 for what is no number."""
    entry = item.entries.get(tag)
    return (tuple(walk.numbers(entry).tolist()[:8]) or (-1,)) if entry is not None else ()


def _one(walk: Walk, item: Directory, tag: int) -> int:
    """The only value of a tag, 1 where it is not there (no compression, no predictor), -1 for anything else."""
    values = _values(walk, item, tag) or (1,)
    return values[0] if len(values) == 1 else -1


def _regular(found: Layout, source: Input) -> bool:
    """Whether segments have the sizes that they must have."""
    (wide, tall), height, rows = found.segment_px, found.size_px[1], len(found.offsets)
    whole = wide * tall * found.channels
    if not found.as_it_is and whole > MOST_SEGMENT_BYTES:
        return False
    if found.packing.compression != STORED:
        return int(found.counts.max()) <= found.packing.most_bytes(whole)
    last = whole if found.tiled else wide * (height - (rows - 1) * tall) * found.channels
    return whole <= source.size and bool((found.counts[:-1] == whole).all() and (found.counts[-1] == last).all())


@dataclass(frozen=True, slots=True)
class _Piece:
    """What lies in a box of one segment: its row and column among them, ``rows`` and ``columns`` in it, and where
    these go in the box (``place``)."""

    row: int
    column: int
    rows: slice
    columns: slice
    place: tuple[slice, slice]


class Reader:
    """A PixelReader of such a picture, for any box, in any order, from any thread.

    A box costs what its rows take; where segments must be decoded, what these take, and its own boxes hold whole ones.
    """

    sequential = False

    def __init__(self, found: Layout) -> None:
        """Opens the file; raises BadInput when it cannot be."""
        self._found = found
        self._lock = threading.Lock()
        try:
            self._file = found.path.open("rb", buffering=0)
        except OSError as error:
            message = f"cannot be opened: {error.strerror or error}"
            raise BadInput(message, found.path, "Check the name and the folder") from error

    def boxes(self) -> Sequence[Box]:
        """Bands of about 256 rows or a multiple, of at most 8 MB or one such step; of tiles also cut across."""
        (width, height), (across, down) = self._found.size_px, self._steps()
        rows = max(1, BAND_BYTES // (width * CHANNELS * down)) * down
        columns = max(1, BAND_BYTES // (rows * CHANNELS * across)) * across if self._found.tiled else width
        return tuple(
            Box(x, y, min(columns, width - x), min(rows, height - y))
            for y in range(0, height, rows)
            for x in range(0, width, columns)
        )

    def _steps(self) -> tuple[int, int]:
        """Width and height of which boxes are a multiple."""
        wide, tall = self._found.segment_px
        if not self._found.as_it_is:
            return -(-STEP_PX // wide) * wide, -(-STEP_PX // tall) * tall
        step = -(-min(tall, MOST_TILE_ROWS_PX) // STEP_PX) * STEP_PX if self._found.tiled else STEP_PX
        return step, step

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box``, shape (height, width, 3). Raises BadInput when the file is damaged there, or has become
        shorter."""
        if self._file.closed:
            raise ValueError("the reader is closed")
        if self._found.tiled or not self._found.as_it_is:
            return self._from_segments(box)
        band = np.empty((box.height_px, self._found.size_px[0], CHANNELS), np.uint8)
        for offset, first, count in self._runs(box):
            self._fill(offset, band[first : first + count])
        if 2 * box.width_px > self._found.size_px[0]:
            return band[:, box.x_px : box.x_px + box.width_px]
        return band[:, box.x_px : box.x_px + box.width_px].copy()

    def _runs(self, box: Box) -> Iterator[tuple[int, int, int]]:
        """Rows of ``box`` as they lie in the file: offset, the first of them and how many; neighbours as one."""
        tall, row_bytes = self._found.segment_px[1], self._found.size_px[0] * CHANNELS
        run: tuple[int, int, int] | None = None
        y, bottom = box.y_px, box.y_px + box.height_px
        while y < bottom:
            strip, inside = divmod(y, tall)
            count = min(tall - inside, bottom - y)
            offset = int(self._found.offsets[strip, 0]) + inside * row_bytes
            if run is not None and run[0] + run[2] * row_bytes == offset:
                run = (run[0], run[1], run[2] + count)
            else:
                if run is not None:
                    yield run
                run = (offset, y - box.y_px, count)
            y += count
        if run is not None:
            yield run

    def _from_segments(self, box: Box) -> Pixels:
        pixels = np.empty((box.height_px, box.width_px, CHANNELS), np.uint8)
        for piece in self._pieces(box):
            read = self._rows if self._found.as_it_is else self._unpacked
            part = read(piece)[:, piece.columns]
            if self._found.channels == CHANNELS:
                pixels[piece.place] = part
            else:
                for channel in range(CHANNELS):  # five times as fast as all at once
                    pixels[piece.place][..., channel] = part[..., 0]
        return pixels

    def _pieces(self, box: Box) -> Iterator[_Piece]:
        wide, tall = self._found.segment_px
        right, bottom = box.x_px + box.width_px, box.y_px + box.height_px
        for row in range(box.y_px // tall, -(-bottom // tall)):
            top, lower = max(box.y_px, row * tall), min(bottom, (row + 1) * tall)
            rows, down = slice(top - row * tall, lower - row * tall), slice(top - box.y_px, lower - box.y_px)
            for column in range(box.x_px // wide, -(-right // wide)):
                left, end = max(box.x_px, column * wide), min(right, (column + 1) * wide)
                columns = slice(left - column * wide, end - column * wide)
                yield _Piece(row, column, rows, columns, (down, slice(left - box.x_px, end - box.x_px)))

    def _rows(self, piece: _Piece) -> Pixels:
        """Those of a segment that is not compressed."""
        wide, offset = self._found.segment_px[0], int(self._found.offsets[piece.row, piece.column])
        rows = np.empty((piece.rows.stop - piece.rows.start, wide, CHANNELS), np.uint8)
        self._fill(offset + piece.rows.start * wide * CHANNELS, rows)
        return rows

    def _unpacked(self, piece: _Piece) -> Pixels:
        """The rows of a segment that is decoded whole; with one channel when it is grey."""
        found, (wide, tall) = self._found, self._found.segment_px
        offset = int(found.offsets[piece.row, piece.column])
        data = np.empty(int(found.counts[piece.row, piece.column]), np.uint8)
        self._fill(offset, data)
        high = tall if found.tiled else min(tall, found.size_px[1] - piece.row * tall)
        try:
            return found.packing.unpacked(data, (high, wide, found.channels), most_rows=tall)[piece.rows]
        except Damaged as error:
            number = piece.row * found.offsets.shape[1] + piece.column
            message = f"the file is damaged: {'tile' if found.tiled else 'strip'} {number} at byte {offset} {error}"
            raise BadInput(message, found.path, COPY_AGAIN) from error

    def _fill(self, offset: int, room: NDArray[np.uint8]) -> None:
        """Read from ``offset`` what fills ``room``, which is contiguous."""
        target = room.data.cast("B")
        path = self._found.path
        with self._lock:
            try:
                self._file.seek(offset)
                while target and (count := self._file.readinto(target)):
                    target = target[count:]
            except OSError as error:
                message = f"cannot be read at byte {offset}: {error.strerror or error}"
                raise BadInput(message, path, "Check the disk or the network share") from error
        if target:
            raise BadInput("the file became shorter while it was read", path, "Wait until its copy is complete")

    def close(self) -> None:
        """Lets the file go. May be called twice."""
        with self._lock:
            self._file.close()
