"""Pages and compressed segments -> one little-endian TIFF. Knows TIFF, and nothing of Aperio.

    open --add_tile, add_run, add_strip--> open --finish--> finished --close--> closed
      +-----------------------------close-----------------------------> closed: a file that no reader opens

Segments come first, directories after them, and the header last: until then the file starts with zeros.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mimic.checksum import crc32
from mimic.errors import InternalError, writing_failed
from mimic.model import CodedTile, Page, Tag, Written

CLASSIC_LIMIT_BYTES = int(3.9 * 2**30)
"""Larger files are BigTIFF. Below the 4 GiB of 32-bit offsets, with room for readers that add to an offset."""

_HEADER_BYTES = 16
"""Room for either header: a classic one takes 8 of them, BigTIFF all."""

_BUFFER_BYTES = 1 << 20

SYNC_BYTES = 8 << 20
"""When so much is new, a thread puts it on the disk: the end then waits for the rest only, of 55 MB 5 ms and not 45."""

_WIDTH, _HEIGHT, _STRIP_OFFSETS, _STRIP_COUNTS = 256, 257, 273, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
_ASCII, _LONG, _RATIONAL, _LONG8 = 2, 4, 5, 16
_CODES = {1: "B", 2: "B", 3: "H", 4: "I", 5: "I", 6: "b", 7: "B", 8: "h", 9: "i", 11: "f", 12: "d", 16: "Q"}
"""TIFF field types as struct codes; RATIONAL is two."""


@dataclass(slots=True)
class _Segments:
    """Where the tiles of one level are and their CRC-32, 24 bytes each: slides have millions of them."""

    columns: array[int] = field(default_factory=lambda: array("I"))
    rows: array[int] = field(default_factory=lambda: array("I"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    counts: array[int] = field(default_factory=lambda: array("I"))
    sums: array[int] = field(default_factory=lambda: array("I"))


@dataclass(frozen=True, slots=True)
class _Placed:
    """Offsets, byte counts and CRC-32 of a page's segments, in TIFF's order (row by row)."""

    offsets: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    sums: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Run:
    """Adjacent tiles of a row as they stand in the file, each padded to an even length; ``counts`` are without that."""

    data: bytes
    counts: tuple[int, ...]
    sums: tuple[int, ...]


def joined(tiles: Sequence[bytes]) -> Run:
    """Tiles side by side, made ready to be written at once: in any thread, so that the writer's only appends."""
    padded = b"".join(part for tile in tiles for part in (tile, b"\0"[: len(tile) % 2]))
    return Run(padded, tuple(map(len, tiles)), tuple(map(crc32, tiles)))


class TiffWriter:
    """Writes one TIFF. Every method is for one thread; OSErrors become OutputError with the file and a remedy."""

    def __init__(self, path: Path, *, classic_limit_bytes: int = CLASSIC_LIMIT_BYTES) -> None:
        """Creates ``path`` or empties it; BigTIFF if the file would end beyond ``classic_limit_bytes``."""
        self._path = path
        self._classic_limit_bytes = classic_limit_bytes
        self._levels: dict[int, _Segments] = {}
        self._strips: dict[str, tuple[int, int, int]] = {}
        self._sums: tuple[NDArray[np.uint32], ...] = ()
        self._end = _HEADER_BYTES
        self._finished = False
        self._sent = 0
        self._sending: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mimic-sync")  # its thread starts with its first task
        with self._mapped():
            self._file = io.BufferedRandom(io.FileIO(path, "w+"), _BUFFER_BYTES)
            self._file.write(bytes(_HEADER_BYTES))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_tile(self, tile: CodedTile) -> None:
        """Append a tile of a level; tiles may come in any order."""
        if min(tile.level, tile.column, tile.row) < 0:
            raise InternalError(f"no tile is at level {tile.level}, column {tile.column}, row {tile.row}", self._path)
        offset = self._append(tile.data)
        segments = self._levels.setdefault(tile.level, _Segments())
        segments.columns.append(tile.column)
        segments.rows.append(tile.row)
        segments.offsets.append(offset)
        segments.counts.append(len(tile.data))
        segments.sums.append(crc32(tile.data))

    def add_run(self, level: int, place: tuple[int, int], run: Run) -> None:
        """Append tiles of a level that lie side by side, the first of them at ``place`` (column, row)."""
        column, row = place
        if min(level, column, row) < 0 or not all(run.counts):
            raise InternalError(
                f"a run at level {level}, column {column}, row {row} has no place or no bytes", self._path
            )
        offset = self._append(run.data)
        segments = self._levels.setdefault(level, _Segments())
        segments.columns.extend(range(column, column + len(run.counts)))
        segments.rows.extend([row] * len(run.counts))
        segments.offsets.extend(itertools.accumulate((count + count % 2 for count in run.counts[:-1]), initial=offset))
        segments.counts.extend(run.counts)
        segments.sums.extend(run.sums)

    def add_strip(self, kind: str, data: bytes) -> None:
        """Append the one strip of the page of that kind."""
        if kind in self._strips:
            raise InternalError(f"the strip of the {kind} was given twice", self._path)
        self._strips[kind] = (self._append(data), len(data), crc32(data))

    @property
    def sums(self) -> tuple[NDArray[np.uint32], ...]:
        """CRC-32 of the segments as they were given, by page and in TIFF's order; there are none before ``finish``."""
        return self._sums

    def finish(self, pages: Sequence[Page], *, digest: bool = True) -> Written:
        """Write the directories in the order of ``pages``, then the header, and make sure that all is on the disk.

        Sizes of the grids come from the pages' own tags. Without ``digest`` the SHA-256 is left empty, for somebody
        who has it computed beside other work. Raises InternalError, with the file left unreadable, when a tile or
        strip is missing, given twice, or has no page.
        """
        if self._finished:
            raise InternalError("finished twice", self._path)
        placed = [self._tiles(page) if page.level is not None else self._strip(page) for page in pages]
        self._nothing_left(pages)
        layout, ends = _directories(pages, placed, self._end, big=False)
        big = ends > self._classic_limit_bytes
        if big:
            layout, ends = _directories(pages, placed, self._end, big=True)
        first = self._end
        with self._mapped():
            self._file.write(layout)
            self._sync()
            self._file.seek(0)
            self._file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, first) if big else _classic_header(first))
            self._sync()
            self._finished = True
            self._sums = tuple(each.sums for each in placed)
            self._file.seek(0)
            sha256 = hashlib.file_digest(self._file, "sha256").hexdigest() if digest else ""
        tiles = sum(len(segments.offsets) for segments in self._levels.values())
        return Written(self._path, ends, sha256, tiles, big)

    def close(self) -> None:
        """Close the file. Without ``finish`` it has no header, and no reader opens it."""
        self._pool.shutdown(wait=True)
        if self._finished:
            with self._mapped():
                self._file.close()
        else:
            with suppress(OSError):  # a full disk was reported when it was met; the file is for nobody
                self._file.close()

    def _append(self, data: bytes) -> int:
        """Write ``data`` at an even offset, as TIFF asks for, and return the offset."""
        if self._finished:
            raise InternalError("a segment came after the end", self._path)
        if not data:
            raise InternalError("a segment is empty: readers disagree about what that means", self._path)
        offset = self._end
        with self._mapped():
            self._file.write(data)
            if len(data) % 2:
                self._file.write(b"\0")
        self._end += len(data) + len(data) % 2
        if self._end - self._sent >= SYNC_BYTES and (self._sending is None or self._sending.done()):
            self._send()
        return offset

    def _send(self) -> None:
        """Have what is there put on the disk, beside all else."""
        with self._mapped():
            self._sent_before()
            self._file.flush()
        self._sent = self._end
        self._sending = self._pool.submit(os.fsync, self._file.fileno())

    def _sent_before(self) -> None:
        """Wait for ``_send``. Raises OSError for what failed in it: a disk tells of a failure once."""
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.result()

    def _sync(self) -> None:
        self._sent_before()
        self._file.flush()
        os.fsync(self._file.fileno())

    def _tiles(self, page: Page) -> _Placed:
        """The segments of a tiled page in the order of its grid."""
        level = page.level if page.level is not None else 0
        columns = -(-_number(page, _WIDTH) // _number(page, _TILE_WIDTH))
        rows = -(-_number(page, _HEIGHT) // _number(page, _TILE_HEIGHT))
        if columns * rows != page.segments:
            raise InternalError(f"level {level} has {columns}x{rows} tiles, its page says {page.segments}", self._path)
        found = self._levels.get(level, _Segments())
        column, row = (np.array(each, np.int64) for each in (found.columns, found.rows))
        self._none(level, column, row, (column >= columns) | (row >= rows), "is outside of its level")
        place = row * columns + column
        times = np.bincount(place, minlength=page.segments)
        grid_row, grid_column = np.divmod(np.arange(page.segments), columns)
        self._none(level, grid_column, grid_row, times == 0, "is missing")
        self._none(level, grid_column, grid_row, times > 1, "was given twice")
        grid = np.empty(page.segments, np.uint64)
        placed = _Placed(grid, grid.copy(), grid.astype(np.uint32))
        placed.offsets[place] = found.offsets
        placed.counts[place] = found.counts
        placed.sums[place] = found.sums
        return placed

    def _none(
        self, level: int, column: NDArray[np.int64], row: NDArray[np.int64], wrong: NDArray[np.bool_], what: str
    ) -> None:
        if wrong.any():
            first = int(np.argmax(wrong))
            where = f"level {level}, column {column[first]}, row {row[first]}"
            raise InternalError(f"the tile at {where} {what} ({int(wrong.sum())} such tiles)", self._path)

    def _strip(self, page: Page) -> _Placed:
        if page.kind not in self._strips:
            raise InternalError(f"the strip of the {page.kind} is missing", self._path)
        offset, count, total = self._strips[page.kind]
        return _Placed(np.array([offset], np.uint64), np.array([count], np.uint64), np.array([total], np.uint32))

    def _nothing_left(self, pages: Sequence[Page]) -> None:
        levels = [page.level for page in pages if page.level is not None]
        kinds = [page.kind for page in pages if page.level is None]
        if len(set(levels)) < len(levels) or len(set(kinds)) < len(kinds):
            raise InternalError("two pages are of the same level or kind", self._path)
        lost = [f"level {level}" for level in self._levels.keys() - set(levels)]
        if lost := sorted(lost + [f"the {kind}" for kind in self._strips.keys() - set(kinds)]):
            raise InternalError(f"there is no page for {', '.join(lost)}", self._path)

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise writing_failed(error, self._path) from error


def _number(page: Page, code: int) -> int:
    for tag in page.tags:
        if tag.code == code and isinstance(tag.value, tuple) and tag.value and tag.value[0] > 0:
            return tag.value[0]
    raise InternalError(f"the page of the {page.kind} has no tag {code}")


def _classic_header(first: int) -> bytes:
    return struct.pack("<2sHI", b"II", 42, first).ljust(_HEADER_BYTES, b"\0")


def _directories(pages: Sequence[Page], placed: Sequence[_Placed], start: int, *, big: bool) -> tuple[bytes, int]:
    """All directories as they follow ``start``, chained, and where the file then ends.

    In classic form offsets beyond 4 GiB come out wrong, not as an error: the caller sees from the end that they do.
    """
    made = bytearray()
    for index, (page, segments) in enumerate(zip(pages, placed, strict=True)):
        made += _directory(page, segments, start + len(made), big=big, last=index + 1 == len(pages))
    return bytes(made), start + len(made)


def _directory(page: Page, segments: _Placed, at: int, *, big: bool, last: bool) -> bytes:
    """One directory that starts ``at``: entries sorted by tag, the link to the next, then the values that do not fit.

    A value that fits into its entry is there, the rest is word-aligned behind.
    """
    tiled = page.level is not None
    entries = {tag.code: _encoded(tag) for tag in page.tags}
    offset_type = _LONG8 if big else _LONG
    offsets = segments.offsets.astype("<u8" if big else "<u4").tobytes()
    entries[_TILE_OFFSETS if tiled else _STRIP_OFFSETS] = (offset_type, segments.offsets.size, offsets)
    counts = segments.counts.astype("<u4").tobytes()
    entries[_TILE_COUNTS if tiled else _STRIP_COUNTS] = (_LONG, segments.counts.size, counts)

    room, head, entry, link = (8, "<Q", "<HHQ", "<Q") if big else (4, "<H", "<HHI", "<I")
    behind_at = at + struct.calcsize(head) + len(entries) * (struct.calcsize(entry) + room) + room
    behind_at += behind_at % 2
    front, behind = bytearray(struct.pack(head, len(entries))), bytearray()
    for code, (kind, count, payload) in sorted(entries.items()):
        front += struct.pack(entry, code, kind, count)
        if len(payload) <= room:
            front += payload.ljust(room, b"\0")
        else:
            front += ((behind_at + len(behind)) % (1 << 8 * room)).to_bytes(room, "little")
            behind += payload + bytes(len(payload) % 2)
    next_at = 0 if last else behind_at + len(behind)
    front += struct.pack(link, next_at % (1 << 8 * room))
    return bytes(front.ljust(behind_at - at, b"\0") + behind)


def _encoded(tag: Tag) -> tuple[int, int, bytes]:
    """A tag as (type, count, bytes in the file); text gets its closing NUL if it has none."""
    if tag.type not in _CODES or not tag.value:
        raise InternalError(f"tag {tag.code} of type {tag.type} with the value {tag.value!r} is not TIFF")
    if isinstance(tag.value, bytes):
        payload = tag.value.rstrip(b"\0") + b"\0" if tag.type == _ASCII else tag.value
        return tag.type, len(payload), payload
    try:
        payload = struct.pack(f"<{len(tag.value)}{_CODES[tag.type]}", *tag.value)
    except struct.error as error:
        raise InternalError(f"tag {tag.code} cannot hold {tag.value} as type {tag.type}") from error
    return tag.type, len(tag.value) // (2 if tag.type == _RATIONAL else 1), payload
