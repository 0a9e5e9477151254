"""The directories of a TIFF replaced in place, so that a crash at any moment leaves the old file or the new one.

    old --append, fsync--> appended --switch the first offset, fsync--> switched --wipe, fsync--> wiped --> new
     +------any failure, truncated back------+---refused by ``proof``, switched back---+

New directories go behind the end of the file and share every value that stays; pixel data are never moved. In front of
them stands a list of what has become orphaned. It is wiped last: whoever opens a file that still has the list knows
that an edit was cut off between switching and wiping, and finishes it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mimic.disk import Disk
from mimic.errors import Unsupported
from mimic.ifds import (
    ALIGN_BYTES,
    CLASSIC_END,
    Builder,
    Ifd,
    Ranges,
    Tree,
    flat,
    merged,
    minus,
    orphans,
    places_of,
    values,
)
from mimic.structure.reader import Input

HEAD, TAIL = b"mimicEDI", b"IDEcimim"
"""Around the list of orphaned ranges: HEAD, old size, (start, length)..., count, CRC-32 of all before, TAIL."""
LIST_BYTES = 32
"""Size of an empty list."""
RANGE_BYTES = 16
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What an edit that was cut off left: ``ranges`` to be wiped, their list in front of the first directory; or
    directories that never came into use, behind the ``cut_bytes`` that the file had before.
    """

    ranges: tuple[tuple[int, int], ...] = ()
    journal_bytes: int = 0
    cut_bytes: int | None = None

    def __bool__(self) -> bool:
        return self.journal_bytes > 0 or self.cut_bytes is not None


def block(tree: Tree, ifds: Sequence[Ifd], ranges: Ranges) -> tuple[int, bytes, int]:
    """What is appended: where, its bytes, and the offset of its first directory.

    Raises Unsupported when a classic TIFF would pass 4 GiB.
    """
    start = tree.size_bytes + -tree.size_bytes % ALIGN_BYTES
    journal = HEAD + struct.pack("<Q", tree.size_bytes)
    journal += np.stack([ranges[:, 0], ranges[:, 1] - ranges[:, 0]], 1).astype("<u8").tobytes()
    journal += struct.pack("<I", len(ranges))
    journal += struct.pack("<I", zlib.crc32(journal)) + TAIL
    first = start + len(journal)
    if not tree.big and first + len(Builder(0, tree.order, tree.big).chain(ifds)) >= CLASSIC_END:
        message = f"has {tree.size_bytes} bytes: with new directories it would pass the 4 GiB of a classic TIFF"
        raise Unsupported(message, tree.path, "Make a BigTIFF of it with 'mimic convert'")
    return start, journal + Builder(first, tree.order, tree.big).chain(ifds), first


def commit(disk: Disk, tree: Tree, ifds: Sequence[Ifd], *, proof: Callable[[], None], gaps: bool = False) -> int:
    """Put ``ifds`` in the place of those of ``tree``; returns how many bytes were wiped.

    ``proof`` looks at the switched file and raises when it is not as it should be; then everything is as before.
    """
    ranges = orphans(tree, ifds, gaps=gaps)
    start, data, first = block(tree, ifds, ranges)
    switched = False
    try:
        disk.write_at(start, data)
        disk.sync()
        _point(disk, tree, first)
        disk.sync()
        proof()
        switched = True
    finally:
        if not switched:
            _back(disk, tree)
    return finish(disk, Leftovers(ranges=_pairs(ranges), journal_bytes=LIST_BYTES + RANGE_BYTES * len(ranges)), first)


def _point(disk: Disk, tree: Tree, first: int) -> None:
    """The switch: one aligned write of 4 or 8 bytes, which no file system tears."""
    disk.write_at(8 if tree.big else 4, struct.pack(tree.order + ("Q" if tree.big else "I"), first))


def _back(disk: Disk, tree: Tree) -> None:
    """As before. The tail goes only after the old directories are known to be in use again."""
    _point(disk, tree, tree.first)
    disk.sync()
    disk.truncate(tree.size_bytes)
    disk.sync()


def _pairs(ranges: Ranges) -> tuple[tuple[int, int], ...]:
    return tuple((start, end) for start, end in ranges.tolist())


def leftovers(tree: Tree) -> Leftovers:
    """What an edit that was cut off left in the file; nothing is changed."""
    all_ifds = list(flat(tree.ifds))
    used = merged([places_of(all_ifds)] + [part for each in all_ifds for part in (each.segments, values(each))])
    with Input(tree.path) as source:
        ranges = _journal(source, tree)
        if ranges is not None:
            # another program may have put something there since
            return Leftovers(ranges=_pairs(minus(ranges, used)), journal_bytes=LIST_BYTES + RANGE_BYTES * len(ranges))
        return Leftovers(cut_bytes=_tail(source, int(used[-1, 1])))


def _journal(source: Input, tree: Tree) -> Ranges | None:
    """The list in front of the first directory, None when there is none or it is half wiped."""
    if tree.first < LIST_BYTES:
        return None
    raw = source.at(tree.first - 16, 16, "the end of a list")
    (count,) = struct.unpack_from("<I", raw)
    length = LIST_BYTES + RANGE_BYTES * count
    if raw[8:] != TAIL or length > tree.first:
        return None
    journal = source.at(tree.first - length, length, "a list")
    if journal[:8] != HEAD or zlib.crc32(journal[:-12]) != struct.unpack_from("<I", raw, 4)[0]:
        return None
    ranges = np.frombuffer(journal[16:-16], "<u8").astype(np.int64).reshape(-1, 2).cumsum(1)
    return ranges if not len(ranges) or (ranges.min() >= 8 and ranges.max() < tree.first) else None


def _tail(source: Input, end: int) -> int | None:
    """Size of the file before the directories that stand behind ``end`` and are in no use."""
    at = end
    while at < source.size:
        part = source.upto(at, CHUNK_BYTES + len(HEAD))
        found = part.find(HEAD)
        if found >= 0 and at + found + 16 <= source.size:
            (size,) = struct.unpack("<Q", source.at(at + found + 8, 8, "a size"))
            return size if size >= end and size + -size % ALIGN_BYTES == at + found else None
        at += CHUNK_BYTES
    return None


def finish(disk: Disk, left: Leftovers, first: int) -> int:
    """Wipe what is orphaned, and last of all the list; cut off what never came into use. Returns the bytes wiped.

    A Ctrl-C is heard only afterwards: the old text shall not stay because somebody was impatient.
    """
    interrupted: KeyboardInterrupt | None = None
    for _ in range(2):
        try:
            _finish(disk, left, first)
            break
        except KeyboardInterrupt as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted
    return sum(end - start for start, end in left.ranges)


def _finish(disk: Disk, left: Leftovers, first: int) -> None:
    if left.cut_bytes is not None:
        disk.truncate(left.cut_bytes)
    for start, end in left.ranges:
        for at in range(start, end, CHUNK_BYTES):
            disk.write_at(at, bytes(min(CHUNK_BYTES, end - at)))
    disk.sync()
    if left.journal_bytes:
        disk.write_at(first - left.journal_bytes, bytes(left.journal_bytes))
        disk.sync()
