"""TIFF directories (classic, BigTIFF, NDPI; both byte orders) read without a TIFF library.

Libraries repair what they can and read what is left; here every byte that a directory promises must be in the file.
Layout: TIFF 6.0, the BigTIFF design, and for NDPI (classic, 64-bit offsets) what tifffile's documentation tells.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimic.structure.facts import Facts
from mimic.structure.reader import Input

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
WHOLE_NUMBERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
NDPI_FLAG = 65420
MAX_DIRECTORIES = 1_000_000
MAX_ENTRIES = 65_535
"""A classic directory cannot hold more; a BigTIFF that claims more is damaged."""
TEXT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """One field: ``offset`` is the position of its value in the file, wherever that is."""

    type: int
    count: int
    offset: int


@dataclass(frozen=True, slots=True)
class Directory:
    """``name`` is how errors call it: "directory 2" or "SubIFD 0 of directory 2"."""

    name: str
    entries: dict[int, Entry]


@dataclass(frozen=True, slots=True)
class Page:
    """What one top-level directory says of its image. ``resolution`` is (x, y) in pixels per ``resolution_unit``
    (TIFF's number: 1 none, 2 inch, 3 centimetre); ``tile_*_px`` are None for a stripped image. ``sample_format`` is
    TIFF's number: 1 unsigned, 2 signed, 3 float; ``extra_samples`` says of each one beyond the colours whether it is
    alpha (1, 2) or unknown (0). ``tags`` are all tags that are there. Texts are cut at 4 KiB."""

    width_px: int
    height_px: int
    tile_width_px: int | None
    tile_height_px: int | None
    compression: int
    photometric: int | None
    samples: int
    bits: int
    sample_format: int
    extra_samples: tuple[int, ...]
    subfiletype: int
    description: str
    make: str
    model: str
    software: str
    ndpi: bool
    resolution: tuple[float, float] | None
    resolution_unit: int
    tags: frozenset[int]


class Walk:
    """Directories of one file, in order; SubIFDs follow the one that names them. Raises BadInput on the way."""

    def __init__(self, source: Input) -> None:
        self.source = source
        magic = source.at(0, 8, "the TIFF header")
        self.order = "<" if magic[:2] == b"II" else ">"
        self.big = struct.unpack(self.order + "H", magic[2:4])[0] == 43
        # an NDPI above 4 GiB keeps its first offset as 64 bits where a classic TIFF has 32
        self.wide = not self.big and source.size >= 1 << 32 and source.path.suffix.lower() == ".ndpi"
        if self.big:
            self.first = source.unpack(self.order + "Q", 8, "the BigTIFF header")[0]
        else:
            self.first = source.unpack(self.order + ("Q" if self.wide else "I"), 4, "the TIFF header")[0]

    def directories(self) -> Iterator[Directory]:
        seen: dict[int, str] = {}
        offset, number = self.first, 0
        if not offset:
            raise self.source.damaged("it has no directory: its writing was never finished")
        while offset:
            if offset in seen:
                raise self.source.damaged(f"directory {number} is {seen[offset]} again, a loop")
            if number == MAX_DIRECTORIES:
                raise self.source.damaged(f"it has more than {MAX_DIRECTORIES} directories")
            directory, following = self._directory(offset, f"directory {number}")
            seen[offset] = directory.name
            yield directory
            yield from self._subdirectories(directory, seen)
            offset, number = following, number + 1

    def _subdirectories(self, parent: Directory, seen: dict[int, str]) -> Iterator[Directory]:
        entry = parent.entries.get(330)
        for index, offset in enumerate(self.numbers(entry).tolist() if entry else ()):
            if offset in seen or not offset:
                continue
            name = f"SubIFD {index} of {parent.name}"
            seen[offset] = name
            yield self._directory(offset, name)[0]

    def _directory(self, offset: int, name: str) -> tuple[Directory, int]:
        head, unit = ("Q", 20) if self.big else ("H", 12)
        (count,) = self.source.unpack(self.order + head, offset, name)
        if not 0 < count <= MAX_ENTRIES:
            raise self.source.damaged(f"{name} at byte {offset} claims {count} entries")
        start = offset + struct.calcsize(head)
        raw = self.source.at(start, unit * count, name)
        layout = self.order + ("HHQ8x" if self.big else "HHI4x")
        entries: dict[int, Entry] = {}
        for index, (tag, kind, number) in enumerate(struct.iter_unpack(layout, raw)):
            if kind in SIZES:
                at = self._value_offset(start, index, count, SIZES[kind] * number, raw)
                self.source.require(at, SIZES[kind] * number, f"tag {tag} of {name}")
                entries[tag] = Entry(kind, number, at)
        end = start + unit * count
        following = "Q" if self.big or self.wide else "I"
        return Directory(name, entries), self.source.unpack(self.order + following, end, f"the end of {name}")[0]

    def _value_offset(self, start: int, index: int, count: int, length: int, raw: bytes) -> int:
        unit, room = (20, 8) if self.big else (12, 4)
        if length <= room:
            return start + unit * (index + 1) - room
        (offset,) = struct.unpack_from(self.order + ("Q" if self.big else "I"), raw, unit * (index + 1) - room)
        if self.wide:  # the high halves of all offsets stand behind the directory
            offset += self.source.unpack("<I", start + 12 * count + 8 + 4 * index, "an offset's high half")[0] << 32
        return int(offset)

    def numbers(self, entry: Entry) -> NDArray[np.uint64]:
        """Value of a field of whole numbers, shape (count,); empty for a field of another type."""
        kind = WHOLE_NUMBERS.get(entry.type)
        if kind is None:
            return np.zeros(0, np.uint64)
        raw = self.source.at(entry.offset, SIZES[entry.type] * entry.count, "a field")
        return np.frombuffer(raw, np.dtype(self.order + kind)).astype(np.uint64)

    def number(self, directory: Directory, tag: int, default: int = 0) -> int:
        """First value of a field of whole numbers."""
        entry = directory.entries.get(tag)
        if entry is None:
            return default
        found = self.numbers(Entry(entry.type, min(entry.count, 1), entry.offset))
        return int(found[0]) if found.size else default

    def text(self, directory: Directory, tag: int, *, most_bytes: int = TEXT_BYTES) -> str:
        """The beginning of a text field, empty when there is none."""
        entry = directory.entries.get(tag)
        if entry is None or entry.type not in (1, 2, 7):
            return ""
        raw = self.source.at(entry.offset, min(entry.count, most_bytes), "a text")
        return raw.split(b"\0", 1)[0].decode("utf-8", "replace")

    def ratio(self, directory: Directory, tag: int) -> float | None:
        """A RATIONAL field; None when it is missing or divides by zero."""
        entry = directory.entries.get(tag)
        if entry is None or entry.type != 5 or not entry.count:
            return None
        over, under = self.source.unpack(self.order + "II", entry.offset, "a resolution")
        return over / under if over and under else None


def check(source: Input) -> Facts:
    """Raises BadInput unless every directory, tile and strip of a TIFF lies inside the file."""
    walk = Walk(source)
    count = missing = 0
    first: Directory | None = None
    for directory in walk.directories():
        first = first or directory
        count += 1
        missing += _check_data(walk, directory)
    if first is not None and count == 1:
        _check_imagej_stack(walk, first)
    return Facts("tiff", source.size, directories=count, missing_tiles=missing)


def pages(path: Path) -> tuple[Page, ...]:
    """Facts of the top-level directories, in order. Raises BadInput for a file whose directories are damaged."""
    with Input(path) as source:
        walk = Walk(source)
        return tuple(_page(walk, item) for item in walk.directories() if item.name.startswith("directory"))


def first_description(path: Path) -> str:
    """The first directory's ImageDescription, up to 16 MiB of it. Raises BadInput for a file that is no TIFF."""
    with Input(path) as source:
        if source.upto(0, 4) not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise source.damaged("it is no TIFF")
        walk = Walk(source)
        return walk.text(next(walk.directories()), 270, most_bytes=16 << 20)


def holes(path: Path, size_px: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """x, y, width and height of the tiles or strips that images of that size declare empty. Raises BadInput."""
    found: set[tuple[int, int, int, int]] = set()
    with Input(path) as source:
        walk = Walk(source)
        for item in walk.directories():
            size = walk.number(item, 256), walk.number(item, 257)
            tags = next((pair for pair in ((324, 325), (273, 279)) if pair[0] in item.entries), None)
            if size != size_px or tags is None or tags[1] not in item.entries:
                continue
            offsets, counts = (walk.numbers(item.entries[tag]) for tag in tags)
            across = walk.number(item, 322) if tags[0] == 324 else size[0]
            down = walk.number(item, 323) if tags[0] == 324 else min(walk.number(item, 278, size[1]), size[1])
            columns, rows = -(-size[0] // across), -(-size[1] // down)
            for index in np.flatnonzero((offsets == 0) | (counts[: len(offsets)] == 0)).tolist():
                row, column = divmod(index % (columns * rows), columns)
                x, y = column * across, row * down
                found.add((x, y, min(across, size[0] - x), min(down, size[1] - y)))
    return sorted(found)


def _page(walk: Walk, item: Directory) -> Page:
    x, y = walk.ratio(item, 282), walk.ratio(item, 283)
    extra = walk.numbers(item.entries[338]).tolist()[:8] if 338 in item.entries else ()
    return Page(
        width_px=walk.number(item, 256),
        height_px=walk.number(item, 257),
        tile_width_px=walk.number(item, 322) or None,
        tile_height_px=walk.number(item, 323) or None,
        compression=walk.number(item, 259, 1),
        photometric=walk.number(item, 262) if 262 in item.entries else None,
        samples=walk.number(item, 277, 1),
        bits=walk.number(item, 258, 1),
        sample_format=walk.number(item, 339, 1),
        extra_samples=tuple(extra),
        subfiletype=walk.number(item, 254) or (1 if walk.number(item, 255) == 2 else 0),
        description=walk.text(item, 270),
        make=walk.text(item, 271),
        model=walk.text(item, 272),
        software=walk.text(item, 305),
        ndpi=NDPI_FLAG in item.entries,
        resolution=(x, y) if x and y else None,
        resolution_unit=walk.number(item, 296, 2),
        tags=frozenset(item.entries),
    )


def _check_data(walk: Walk, item: Directory) -> int:
    """Raises BadInput unless all pixel data of one directory is there; counts the tiles it declares empty."""
    missing = 0
    for offsets_tag, counts_tag, kind in ((324, 325, "tile"), (273, 279, "strip"), (513, 514, "JPEG stream")):
        if offsets_tag not in item.entries:
            continue
        offsets = walk.numbers(item.entries[offsets_tag])
        if kind != "JPEG stream":
            _check_number(walk, item, kind, len(offsets))
        if counts_tag in item.entries:
            counts = walk.numbers(item.entries[counts_tag])
            if len(counts) < len(offsets):
                message = f"{item.name} has {len(offsets)} {kind} offsets and {len(counts)} byte counts"
                raise walk.source.damaged(message)
        else:
            counts = np.full(len(offsets), _raw_bytes(walk, item, kind), np.uint64)
        missing += _check_extents(walk, item, kind, offsets, counts[: len(offsets)])
    if walk.number(item, 256) and not {324, 273, 513} & item.entries.keys():
        raise walk.source.damaged(f"{item.name} has a size and neither tiles nor strips")
    return missing


def _check_number(walk: Walk, item: Directory, kind: str, found: int) -> None:
    width, height = walk.number(item, 256), walk.number(item, 257)
    if not width or not height:
        raise walk.source.damaged(f"{item.name} has {kind}s and no width or height")
    if kind == "tile":
        across, down = walk.number(item, 322), walk.number(item, 323)
    else:
        across, down = width, min(walk.number(item, 278, height), height)
    if not across or not down:
        raise walk.source.damaged(f"{item.name} has {kind}s of no size")
    planes = walk.number(item, 277, 1) if walk.number(item, 284, 1) == 2 else 1
    expected = -(-width // across) * -(-height // down) * planes
    if found < expected:
        raise walk.source.damaged(f"{item.name} has {found} {kind}s where its size takes {expected}")


def _check_extents(
    walk: Walk, item: Directory, kind: str, offsets: NDArray[np.uint64], counts: NDArray[np.uint64]
) -> int:
    there = (offsets > 0) & (counts > 0)
    size = np.uint64(walk.source.size)
    # two comparisons, because the sum of two hostile 64-bit numbers wraps
    bad = there & ((offsets > size) | (counts > size - np.minimum(offsets, size)))
    if bad.any():
        index = int(bad.argmax())
        raise walk.source.cut(f"{kind} {index} of {item.name}", int(offsets[index]) + int(counts[index]))
    return int(len(there) - np.count_nonzero(there))


def _raw_bytes(walk: Walk, item: Directory, kind: str) -> int:
    """Bytes of one strip of an uncompressed image that, as old writers do, gives no byte counts; else 1."""
    if kind != "strip" or walk.number(item, 259, 1) != 1:
        return 1
    rows = min(walk.number(item, 278, 1 << 31), walk.number(item, 257))
    bits = walk.number(item, 256) * walk.number(item, 277, 1) * walk.number(item, 258, 1)
    return min(rows * -(-bits // 8), walk.source.size + 1)


def _check_imagej_stack(walk: Walk, item: Directory) -> None:
    """ImageJ writes stacks above 4 GiB as one directory and ``images=N`` planes one behind the other."""
    text = walk.text(item, 270)
    planes = re.search(r"^images=(\d{1,9})\s*$", text, re.MULTILINE)
    if not text.startswith("ImageJ=") or planes is None or walk.number(item, 259, 1) != 1:
        return
    bits = walk.number(item, 256) * walk.number(item, 257) * walk.number(item, 277, 1) * walk.number(item, 258, 1)
    length = bits // 8 * int(planes[1])
    walk.source.require(walk.number(item, 273), length, f"plane {planes[1]} of the ImageJ stack")
