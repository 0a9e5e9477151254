"""Every field of a TIFF structure in a buffer, and which bytes belong to what: lenient, for files that may be anyone's.

``structure.tiff`` refuses what is not whole; here whatever can be read is wanted, EXIF blocks of other formats too,
and the bytes that belong to nothing. Layout: TIFF 6.0, BigTIFF, EXIF 2.32 (4.6.3), for NDPI as in structure.tiff.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from mmap import mmap

Buffer = bytes | mmap

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
SUBIFDS = {330: "SubIFD", 34665: "EXIF", 34853: "GPS", 40965: "interoperability"}
SEGMENTS = ((324, 325), (273, 279), (513, 514))
"""Tags of offsets and byte counts of tiles, strips, and the JPEG streams of old."""
MAX_DIRECTORIES = 4096
MAX_ENTRIES = 4096
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Field:
    """One field: ``length`` bytes of its value stand at ``offset``; ``directory`` is "IFD0", "EXIF of IFD0" ..."""

    directory: str
    tag: int
    type: int
    count: int
    offset: int
    length: int


@dataclass(slots=True)
class Parsed:
    """What a buffer holds. ``spans`` are (start, end) of header, directories and values, ``segments`` those of tiles
    and strips; they may overlap and are in no order."""

    order: str
    big: bool
    fields: list[Field] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    segments: list[Span] = field(default_factory=list)


def parse(data: Buffer, *, wide: bool = False) -> Parsed | None:
    """All directories that can be reached; None when the buffer is no TIFF. Stops where a link leads nowhere.

    ``wide`` is for an NDPI above 4 GiB, whose offsets have their high halves behind the directory.
    """
    if len(data) < 16 or data[:4] not in MAGICS:
        return None
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    parsed = Parsed(order, big, spans=[(0, 16 if big else 8)])
    first = struct.unpack_from(order + ("Q" if big or wide else "I"), data, 8 if big else 4)[0]
    walk = _Walk(data, parsed, wide=wide and not big)
    number = 0
    while first and number < MAX_DIRECTORIES:
        first = walk.directory(first, f"IFD{number}")
        number += 1
    return parsed


class _Walk:
    def __init__(self, data: Buffer, parsed: Parsed, *, wide: bool) -> None:
        self._data, self._parsed, self._wide = data, parsed, wide
        self._seen: set[int] = set()

    def directory(self, at: int, name: str) -> int:
        """Take one directory's fields and those below it; the offset of the next one, 0 for none."""
        order, big = self._parsed.order, self._parsed.big
        head, unit = ("Q", 20) if big else ("H", 12)
        start = at + struct.calcsize(head)
        if at in self._seen or start > len(self._data):
            return 0
        self._seen.add(at)
        (count,) = struct.unpack_from(order + head, self._data, at)
        link = "Q" if big or self._wide else "I"
        end = start + unit * count
        if not 0 < count <= MAX_ENTRIES or end + struct.calcsize(link) > len(self._data):
            return 0
        self._parsed.spans.append((at, end + struct.calcsize(link) + (4 * count if self._wide else 0)))
        found = [entry for index in range(count) if (entry := self._entry(start, index, count, name)) is not None]
        self._parsed.fields += found
        self._parsed.spans += [(entry.offset, entry.offset + entry.length) for entry in found]
        self._take_segments(found)
        for entry in found:
            if entry.tag in SUBIFDS:
                for offset in self._numbers(entry):
                    self.directory(offset, f"{SUBIFDS[entry.tag]} of {name}")
        return int(struct.unpack_from(order + link, self._data, end)[0])

    def _entry(self, start: int, index: int, count: int, name: str) -> Field | None:
        order, big = self._parsed.order, self._parsed.big
        unit, layout, room = (20, "HHQ", 8) if big else (12, "HHI", 4)
        at = start + unit * index
        tag, kind, number = struct.unpack_from(order + layout, self._data, at)
        length = SIZES.get(kind, 0) * number
        value = at + unit - room
        if length > room:
            (value,) = struct.unpack_from(order + ("Q" if big else "I"), self._data, value)
            high = start + unit * count + 8 + 4 * index
            if self._wide and high + 4 <= len(self._data):
                value += struct.unpack_from(order + "I", self._data, high)[0] << 32
        return Field(name, tag, kind, number, value, length) if length and value + length <= len(self._data) else None

    def _numbers(self, entry: Field) -> tuple[int, ...]:
        kind = WHOLE.get(entry.type)
        if kind is None:
            return ()
        return struct.unpack_from(f"{self._parsed.order}{entry.count}{kind}", self._data, entry.offset)

    def _take_segments(self, found: list[Field]) -> None:
        fields = {entry.tag: entry for entry in found}
        for offsets, counts in SEGMENTS:
            if offsets in fields and counts in fields:
                pairs = zip(self._numbers(fields[offsets]), self._numbers(fields[counts]), strict=False)
                self._parsed.segments += [(start, start + length) for start, length in pairs]


def gaps(spans: Iterable[Span], size_bytes: int) -> list[Span]:
    """The parts of 0 to ``size_bytes`` that no span covers, in order."""
    found, at = [], 0
    for start, end in sorted(spans):
        if start > at:
            found.append((at, min(start, size_bytes)))
        at = max(at, end)
    if at < size_bytes:
        found.append((at, size_bytes))
    return [gap for gap in found if gap[1] > gap[0]]
