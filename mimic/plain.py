"""Uncompressed 8-bit RGB TIFFs, whose rows are read from the file as they are: half the work that libvips makes of it.

Only what leaves no choice is read here (one order of samples, one orientation, strips or tiles of exactly the size that
their rows take); anything else is libvips' to understand.
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
from mimic.structure.reader import Input
from mimic.structure.tiff import Directory, Walk

WANTED = {
    258: ((8, 8, 8),),  # bits
    259: ((), (1,)),  # no compression
    262: ((2,),),  # RGB
    266: ((), (1,)),  # order of bits
    274: ((), (1,)),  # orientation
    277: ((3,),),  # samples a pixel
    284: ((), (1,)),  # one beside the other
    317: ((), (1,)),  # no predictor
    338: ((),),  # no extra samples
    339: ((), (1,), (1, 1, 1)),  # unsigned
}
"""Values of the first directory's tags that the file is read here with; () is a tag that is not there."""
STEP_PX = 256
BAND_BYTES = 8 << 20
MOST_TILE_ROWS_PX = 1024
CHANNELS = 3


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the segments, strips or tiles, begin in the file: ``offsets`` by row and column, ``*_px`` (width, height).

    At the lower edge a strip ends with the picture, a tile goes on.
    """

    path: Path
    size_px: tuple[int, int]
    segment_px: tuple[int, int]
    tiled: bool
    offsets: NDArray[np.int64]


def layout(path: Path) -> Layout | None:
    """The layout of a TIFF's first image, None when it is not of the plain kind. Raises BadInput for damage."""
    with Input(path) as source:
        walk = Walk(source)
        item = next(walk.directories())
        if any(_values(walk, item, tag) not in allowed for tag, allowed in WANTED.items()):
            return None
        size = width, height = walk.number(item, 256), walk.number(item, 257)
        tiled = 324 in item.entries
        if tiled:
            tags, wide, tall = (324, 325), walk.number(item, 322), walk.number(item, 323)
        else:
            tags, wide, tall = (273, 279), width, min(walk.number(item, 278, height), height)
        whole = wide * tall * CHANNELS
        if not all(size) or not 0 < whole <= source.size or any(tag not in item.entries for tag in tags):
            return None
        grid = rows, _ = -(-height // tall), -(-width // wide)
        offsets, counts = (walk.numbers(item.entries[tag]).astype(np.int64) for tag in tags)
        if not len(offsets) == len(counts) == math.prod(grid) or offsets.min() <= 0:
            return None
        counts = counts.reshape(grid)
        last = whole if tiled else wide * (height - (rows - 1) * tall) * CHANNELS
        if (counts[:-1] != whole).any() or (counts[-1] != last).any():
            return None
        return Layout(path, size, (wide, tall), tiled, offsets.reshape(grid))


def _values(walk: Walk, item: Directory, tag: int) -> tuple[int, ...]:
    entry = item.entries.get(tag)
    return tuple(walk.numbers(entry).tolist()[:8]) if entry is not None else ()


class Reader:
    """A PixelReader of such a picture. Any box costs what its rows take, in any order, from any thread."""

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
        """Bands of a multiple of 256 rows (or of taller tiles), of at most 8 MB or one such step; of tiles also cut
        across."""
        (width, height), (_, tall) = self._found.size_px, self._found.segment_px
        step = -(-min(tall, MOST_TILE_ROWS_PX) // STEP_PX) * STEP_PX if self._found.tiled else STEP_PX
        rows = max(1, BAND_BYTES // (width * CHANNELS * step)) * step
        columns = max(1, BAND_BYTES // (rows * CHANNELS * step)) * step if self._found.tiled else width
        return tuple(
            Box(x, y, min(columns, width - x), min(rows, height - y))
            for y in range(0, height, rows)
            for x in range(0, width, columns)
        )

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box``, shape (height, width, 3). Raises BadInput when the file has become shorter."""
        if self._file.closed:
            raise ValueError("the reader is closed")
        if self._found.tiled:
            return self._from_tiles(box)
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

    def _from_tiles(self, box: Box) -> Pixels:
        wide, tall = self._found.segment_px
        pixels = np.empty((box.height_px, box.width_px, CHANNELS), np.uint8)
        tile = np.empty((tall, wide, CHANNELS), np.uint8)
        right, bottom = box.x_px + box.width_px, box.y_px + box.height_px
        for row in range(box.y_px // tall, -(-bottom // tall)):
            top, lower = max(box.y_px, row * tall), min(bottom, (row + 1) * tall)
            rows = slice(top - row * tall, lower - row * tall)
            for column in range(box.x_px // wide, -(-right // wide)):
                left, end = max(box.x_px, column * wide), min(right, (column + 1) * wide)
                self._fill(int(self._found.offsets[row, column]) + rows.start * wide * CHANNELS, tile[rows])
                part = tile[rows, left - column * wide : end - column * wide]
                pixels[top - box.y_px : lower - box.y_px, left - box.x_px : end - box.x_px] = part
        return pixels

    def _fill(self, offset: int, rows: Pixels) -> None:
        """Read ``rows``, which are contiguous, from ``offset``."""
        target = rows.data.cast("B")
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
