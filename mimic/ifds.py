"""Directories of a TIFF as they stand, field by field, so that they can be written again elsewhere in the same file.

Values that stay are not read: a new directory refers to the very bytes that the old one did.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimic.errors import Unsupported
from mimic.structure.reader import Input
from mimic.structure.tiff import SIZES, WHOLE_NUMBERS

SUBIFDS = 330
SEGMENTS = ((324, 325), (273, 279), (513, 514))
"""Tags of offsets and byte counts: tiles, strips, JPEG streams of old."""
CLASSIC_END = 1 << 32
MAX_ENTRIES = 65_535
MAX_DIRECTORIES = 4096
MIN_GAP_BYTES = 4
"""What stands between two tiles for their alignment is shorter, and holds no text."""
ALIGN_BYTES = 8
CONVERT = "Convert it with 'mimic convert'"

Ranges = NDArray[np.int64]
"""Byte ranges of a file, shape (n, 2): start and end."""


@dataclass(frozen=True, slots=True)
class Field:
    """One entry: ``slot`` are the bytes in the directory itself, ``place`` is where the value stands when it does not
    fit there, ``value`` a new value that is not in the file yet."""

    tag: int
    type: int
    count: int
    slot: bytes = b""
    place: int | None = None
    value: bytes | None = None

    @property
    def length_bytes(self) -> int:
        """Size of the value."""
        return SIZES[self.type] * self.count


@dataclass(frozen=True, slots=True)
class Ifd:
    """One directory, ``size_bytes`` long, with its SubIFDs; ``segments`` are the ranges of its tiles or strips.

    ``linked``: a SubIFD whose link leads to the next one of its parent, as tifffile writes it.
    """

    offset: int
    size_bytes: int
    fields: dict[int, Field]
    children: tuple[Ifd, ...]
    segments: Ranges
    linked: bool = False

    def having(self, field: Field) -> Ifd:
        """The same with one more field, or another in its place."""
        return replace(self, fields={**self.fields, field.tag: field})

    def without(self, *tags: int) -> Ifd:
        """The same without some fields."""
        children = () if SUBIFDS in tags else self.children
        return replace(
            self, children=children, fields={tag: each for tag, each in self.fields.items() if tag not in tags}
        )


@dataclass(frozen=True, slots=True)
class Tree:
    """All directories of a file of ``size_bytes``; ``order`` is "<" for little-endian."""

    path: Path
    size_bytes: int
    order: str
    big: bool
    first: int
    ifds: tuple[Ifd, ...]


def read(path: Path) -> Tree:
    """Every directory with every field. Raises BadInput for damage, Unsupported for what cannot be written again."""
    with Input(path) as source:
        magic = source.at(0, 8, "the TIFF header")
        order = "<" if magic[:2] == b"II" else ">"
        big = struct.unpack(order + "H", magic[2:4])[0] == 43
        if not big and source.size >= CLASSIC_END:
            message = f"has {source.size} bytes, and the offsets of a classic TIFF end at 4 GiB"
            raise Unsupported(message, path, "Make a BigTIFF of it with 'mimic convert'")
        (first,) = source.unpack(order + ("Q" if big else "I"), 8 if big else 4, "the TIFF header")
        parser = _Parser(source, order, big)
        ifds: list[Ifd] = []
        offset = first
        while offset:
            ifd, offset = parser.ifd(offset, f"directory {len(ifds)}")
            ifds.append(ifd)
        return Tree(path, source.size, order, big, first, tuple(ifds))


class _Parser:
    def __init__(self, source: Input, order: str, big: bool) -> None:
        self._source, self._order, self._big = source, order, big
        self._seen: set[int] = set()

    def ifd(self, offset: int, name: str) -> tuple[Ifd, int]:
        if offset in self._seen or len(self._seen) == MAX_DIRECTORIES:
            raise self._source.damaged(f"{name} at byte {offset} belongs to a loop")
        self._seen.add(offset)
        head, entry, link = _formats(self._order, self._big)
        (count,) = self._source.unpack(head, offset, name)
        if not 0 < count <= MAX_ENTRIES:
            raise self._source.damaged(f"{name} at byte {offset} claims {count} entries")
        start = offset + struct.calcsize(head)
        raw = self._source.at(start, count * struct.calcsize(entry), name)
        fields = {each[0]: self._field(each, name) for each in struct.iter_unpack(entry, raw)}
        if len(fields) != count:
            raise self._source.damaged(f"{name} has a tag twice")
        end = start + len(raw)
        (following,) = self._source.unpack(link, end, f"the end of {name}")
        children = self._children(self._numbers(fields.get(SUBIFDS)).tolist(), name)
        segments = self._segments(fields, name)
        return Ifd(offset, end + struct.calcsize(link) - offset, fields, children, segments), following

    def _children(self, offsets: list[int], name: str) -> tuple[Ifd, ...]:
        made = []
        for index, offset in enumerate(offsets):
            sibling = offsets[index + 1] if index + 1 < len(offsets) else 0
            child, following = self.ifd(offset, f"a SubIFD of {name}")
            if following not in (0, sibling):
                raise Unsupported(f"{name} has SubIFDs behind its SubIFDs", self._source.path, CONVERT)
            made.append(replace(child, linked=following > 0))
        return tuple(made)

    def _field(self, entry: tuple[int, int, int, bytes], name: str) -> Field:
        tag, kind, count, slot = entry
        if kind not in SIZES:
            message = f"tag {tag} of {name} is of a type ({kind}) that no TIFF has"
            raise Unsupported(message, self._source.path, CONVERT)
        if SIZES[kind] * count <= len(slot):
            return Field(tag, kind, count, slot)
        (place,) = struct.unpack(self._order + ("Q" if self._big else "I"), slot)
        self._source.require(place, SIZES[kind] * count, f"tag {tag} of {name}")
        return Field(tag, kind, count, slot, place)

    def _numbers(self, field: Field | None) -> NDArray[np.int64]:
        if field is None or field.type not in WHOLE_NUMBERS:
            return np.zeros(0, np.int64)
        size = field.length_bytes
        raw = field.slot[:size] if field.place is None else self._source.at(field.place, size, "a field")
        return np.frombuffer(raw, np.dtype(self._order + WHOLE_NUMBERS[field.type])).astype(np.int64)

    def _segments(self, fields: dict[int, Field], name: str) -> Ranges:
        found = [np.zeros((0, 2), np.int64)]
        for offsets_tag, counts_tag in SEGMENTS:
            starts, counts = self._numbers(fields.get(offsets_tag)), self._numbers(fields.get(counts_tag))
            if len(starts) != len(counts):
                raise self._source.damaged(f"{name} has {len(starts)} offsets and {len(counts)} byte counts")
            ranges = np.stack([starts, starts + counts], 1)
            found.append(ranges[(starts > 0) & (counts > 0)])
        made = np.concatenate(found)
        if made.size and (made.min() < 0 or made.max() > self._source.size):
            raise self._source.damaged(f"{name} has pixel data beyond the end of the file")
        return made


def _formats(order: str, big: bool) -> tuple[str, str, str]:
    """Struct formats of a directory's count, of one entry, and of the link to the next."""
    return (order + "Q", order + "HHQ8s", order + "Q") if big else (order + "H", order + "HHI4s", order + "I")


def flat(ifds: Iterable[Ifd]) -> Iterator[Ifd]:
    """Directories with their SubIFDs."""
    for each in ifds:
        yield each
        yield from flat(each.children)


def orphans(tree: Tree, ifds: Sequence[Ifd], *, gaps: bool) -> Ranges:
    """What of ``tree`` is in no use once ``ifds`` take its place; with ``gaps`` also what nobody refers to now.

    Ranges that something else in the new file shares are left out.
    """
    used = merged([each.segments for each in flat(ifds)] + [values(each) for each in flat(ifds)])
    if gaps:
        header = np.array([[0, 16 if tree.big else 8], [tree.size_bytes, tree.size_bytes]], np.int64)
        used = merged([used, header])
        free = np.stack([used[:-1, 1], used[1:, 0]], 1)
        return free[free[:, 1] - free[:, 0] >= MIN_GAP_BYTES]
    kept = {each.offset for each in flat(ifds)}
    old = list(flat(tree.ifds))
    left = [values(each) for each in old] + [each.segments for each in old if each.offset not in kept]
    left.append(places_of(old))
    return minus(merged(left), used)


def values(ifd: Ifd) -> Ranges:
    """Values that stand outside of the directory and in the file already."""
    there = [
        (each.place, each.place + each.length_bytes)
        for each in ifd.fields.values()
        if each.place is not None and each.value is None
    ]
    return np.array(there, np.int64).reshape(-1, 2)


def places_of(ifds: Iterable[Ifd]) -> Ranges:
    """Where directories themselves are."""
    return np.array([(each.offset, each.offset + each.size_bytes) for each in ifds], np.int64).reshape(-1, 2)


def merged(parts: Sequence[Ranges]) -> Ranges:
    """Union: ascending, disjoint, not touching; a slide has a million of them."""
    ranges = np.concatenate([np.zeros((0, 2), np.int64), *parts])
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    if not len(ranges):
        return ranges
    reach = np.maximum.accumulate(ranges[:, 1])
    fresh = np.flatnonzero(np.append(True, ranges[1:, 0] > reach[:-1]))
    return np.stack([ranges[fresh, 0], reach[np.append(fresh[1:] - 1, len(ranges) - 1)]], 1)


def minus(ranges: Ranges, used: Ranges) -> Ranges:
    """Parts of ``ranges`` that ``used`` (merged) has not got."""
    left: list[tuple[int, int]] = []
    for start, end in ranges.tolist():
        at = start
        first = int(np.searchsorted(used[:, 1], start, "right"))
        last = int(np.searchsorted(used[:, 0], end, "left"))
        for low, high in used[first:last].tolist():
            if low > at:
                left.append((at, low))
            at = max(at, high)
        if at < end:
            left.append((at, end))
    return np.array(left, np.int64).reshape(-1, 2)


class Builder:
    """Directories one behind the other from offset ``at``, each followed by its new values and its SubIFDs."""

    def __init__(self, at: int, order: str, big: bool) -> None:
        self._at, self._order = at, order
        self._head, self._entry, self._link = _formats(order, big)
        self._room = 8 if big else 4
        self._made = bytearray()

    def chain(self, ifds: Sequence[Ifd]) -> bytes:
        """The main chain."""
        link: int | None = None
        for ifd in ifds:
            offset, next_link = self._add(ifd)
            if link is not None:
                struct.pack_into(self._link, self._made, link, offset)
            link = next_link
        return bytes(self._made)

    def _add(self, ifd: Ifd) -> tuple[int, int]:
        """Append a directory; its offset in the file, and where in ``_made`` its link to the next is."""
        self._made += bytes(-len(self._made) % ALIGN_BYTES)
        here, count = len(self._made), len(ifd.fields)
        link = here + struct.calcsize(self._head) + count * struct.calcsize(self._entry)
        self._made += bytes(link + struct.calcsize(self._link) - here)
        struct.pack_into(self._head, self._made, here, count)
        places: dict[int, int] = {}
        for index, (tag, field) in enumerate(sorted(ifd.fields.items())):
            at = here + struct.calcsize(self._head) + index * struct.calcsize(self._entry)
            slot, places[tag] = self._slot(field, at + struct.calcsize(self._entry) - self._room)
            struct.pack_into(self._entry, self._made, at, tag, field.type, field.count, slot)
        if ifd.children:
            field = ifd.fields[SUBIFDS]
            code = {4: "I", 13: "I"}.get(field.type, "Q")
            added = [self._add(child) for child in ifd.children]
            offsets = [offset for offset, _ in added]
            struct.pack_into(f"{self._order}{len(offsets)}{code}", self._made, places[SUBIFDS], *offsets)
            for child, (_, child_link), sibling in zip(ifd.children, added, [*offsets[1:], 0], strict=True):
                struct.pack_into(self._link, self._made, child_link, sibling if child.linked else 0)
        return self._at + here, link

    def _slot(self, field: Field, here: int) -> tuple[bytes, int]:
        """What stands in the entry, and where in ``_made`` the value begins."""
        value = field.value
        if field.tag == SUBIFDS:
            value = bytes(field.length_bytes)  # new offsets follow
        if value is None:
            return field.slot, here
        if len(value) <= self._room:
            return value.ljust(self._room, b"\0"), here
        place = len(self._made) + len(self._made) % 2
        self._made += bytes(place - len(self._made)) + value
        return (self._at + place).to_bytes(self._room, "little" if self._order == "<" else "big"), place
