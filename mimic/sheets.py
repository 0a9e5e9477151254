"""The directories of a TIFF as the rules look at them: fields as they stand in the file, and the part each one plays.

Read with mimic's own walk over the bytes, because libraries fill in defaults, and here it matters whether a field is
there; and not with the code that writes slides, which would repeat its own mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mimic.errors import BadInput
from mimic.model import Check
from mimic.structure.reader import Input
from mimic.structure.tiff import Directory, Entry, Walk

Kind = Literal["baseline", "thumbnail", "level", "label", "macro", "other"]

SUBFILETYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 254, 256, 257, 258, 259, 262, 270
SAMPLES, ROWS_PER_STRIP, X_RESOLUTION, Y_RESOLUTION, PLANAR, RESOLUTION_UNIT = 277, 278, 282, 283, 284, 296
PREDICTOR, TILE_WIDTH, TILE_HEIGHT, EXTRA_SAMPLES, SUBIFDS, JPEG_TABLES, SUBSAMPLING = 317, 322, 323, 338, 330, 347, 530
IMAGE_DEPTH = 32997
TIFF_MAGICS = (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")
NO_TIFF = "Name a TIFF or SVS file"
MAX_TEXT_BYTES = 1 << 20
MAX_SHEETS = 4096
"""Aperio's files hold up to about ten directories; z-stacks some hundreds."""


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """One top-level directory: ``fields`` maps a tag to its TIFF type and whole numbers (empty for other types).

    ``text`` is the raw ImageDescription with its NUL. ``offsets`` and ``counts`` place the tiles or strips in the
    file, ``tile_*_px`` is the size of a tile, or of a strip: as wide as the image, RowsPerStrip high.
    ``resolution`` is XResolution and YResolution, None where there is none.
    """

    index: int
    kind: Kind
    fields: dict[int, tuple[int, tuple[int, ...]]]
    width_px: int
    height_px: int
    tiled: bool
    tile_width_px: int
    tile_height_px: int
    text: bytes | None
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    tables: bytes | None
    resolution: tuple[float | None, float | None]

    def number(self, tag: int) -> int | None:
        """First number of a field, None when the field is absent."""
        numbers = self.numbers(tag)
        return numbers[0] if numbers else None

    def numbers(self, tag: int) -> tuple[int, ...] | None:
        """Numbers of a field, None when the field is absent."""
        return self.fields[tag][1] if tag in self.fields else None

    @property
    def name(self) -> str:
        """How faults call it: "IFD2 level"."""
        return f"IFD{self.index} {self.kind}"

    @property
    def grid(self) -> tuple[int, int]:
        """Columns and rows of tiles, or 1 and the number of strips, that the image's size takes."""
        return -(-self.width_px // self.tile_width_px), -(-self.height_px // self.tile_height_px)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A whole file: ``order`` is "<" for little-endian, ``subifds`` counts directories beside the main chain."""

    path: Path
    size_bytes: int
    order: str
    bigtiff: bool
    subifds: int
    sheets: tuple[Sheet, ...]

    def tiled(self) -> tuple[Sheet, ...]:
        """The baseline and the levels, in the file's order."""
        return tuple(sheet for sheet in self.sheets if sheet.tiled)

    def of(self, *kinds: Kind) -> tuple[Sheet, ...]:
        """The directories of some kinds, in the file's order."""
        return tuple(sheet for sheet in self.sheets if sheet.kind in kinds)


def read(path: Path) -> Layout:
    """The directories of the TIFF at ``path``; no pixel is decoded.

    Raises BadInput for a file that is missing, empty, not a TIFF, or whose directories are damaged or cut off.
    """
    with Input(path) as source:
        if source.upto(0, 4) not in TIFF_MAGICS:
            raise BadInput("is not a TIFF file", path, NO_TIFF)
        walk = Walk(source)
        sheets: list[Sheet] = []
        subifds = 0
        for directory in walk.directories():
            if directory.name.startswith("SubIFD"):
                subifds += 1
                continue
            if len(sheets) == MAX_SHEETS:
                raise source.damaged(f"it has more than {MAX_SHEETS} directories")
            sheets.append(_sheet(walk, directory, len(sheets)))
        return Layout(path, source.size, walk.order, walk.big, subifds, tuple(sheets))


def _sheet(walk: Walk, directory: Directory, index: int) -> Sheet:
    entries = directory.entries
    fields = {tag: (entry.type, _small(walk, entry)) for tag, entry in entries.items()}
    width, height = walk.number(directory, WIDTH), walk.number(directory, HEIGHT)
    tiled = TILE_WIDTH in entries or 324 in entries
    if tiled:
        tile = walk.number(directory, TILE_WIDTH), walk.number(directory, TILE_HEIGHT)
    else:
        tile = width, min(walk.number(directory, ROWS_PER_STRIP, height), height)
    if not width or not height or not all(tile):
        raise walk.source.damaged(f"{directory.name} has no size")
    text = _raw(walk, entries.get(DESCRIPTION))
    return Sheet(
        index=index,
        kind=_kind(index, tiled, subfiletype=walk.number(directory, SUBFILETYPE), text=text),
        fields=fields,
        width_px=width,
        height_px=height,
        tiled=tiled,
        tile_width_px=tile[0],
        tile_height_px=tile[1],
        text=text,
        offsets=_places(walk, entries.get(324 if tiled else 273)),
        counts=_places(walk, entries.get(325 if tiled else 279)),
        tables=_raw(walk, entries.get(JPEG_TABLES)),
        resolution=(walk.ratio(directory, X_RESOLUTION), walk.ratio(directory, Y_RESOLUTION)),
    )


def _small(walk: Walk, entry: Entry) -> tuple[int, ...]:
    few = Entry(entry.type, min(entry.count, 16), entry.offset)
    return tuple(walk.numbers(few).tolist())


def _places(walk: Walk, entry: Entry | None) -> NDArray[np.int64]:
    # a 64-bit number beyond int64 becomes negative, which no rule takes for a place in the file
    return (walk.numbers(entry) if entry else np.zeros(0, np.uint64)).astype(np.int64)


def _raw(walk: Walk, entry: Entry | None) -> bytes | None:
    if entry is None:
        return None
    return walk.source.at(entry.offset, min(entry.count, MAX_TEXT_BYTES + 1), "a text")


def _kind(index: int, tiled: bool, *, subfiletype: int, text: bytes | None) -> Kind:
    """The part a directory plays, told as readers do: by place, tiles, the second line, and NewSubfileType."""
    if index == 0:
        return "baseline"
    if tiled:
        return "level"
    second = (text or b"").replace(b"\r\n", b"\n").partition(b"\n")[2]
    if second.startswith(b"label"):
        return "label"
    if second.startswith(b"macro"):
        return "macro"
    if index == 1:
        return "thumbnail"
    if subfiletype == 1:
        return "label"
    return "macro" if subfiletype == 9 else "other"


def rule(name: str, faults: Iterable[str], *, expected: str, measured: str = "holds", must: bool = True) -> Check:
    """A Check that passes when there are no ``faults``; of many it tells the first three."""
    found = list(faults)
    if not found:
        return Check(name, True, measured, expected, must)
    rest = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return Check(name, False, "; ".join(found[:3]) + rest, expected, must)


def faults(sheets: Iterable[Sheet], fault: Callable[[Sheet], str | None]) -> list[str]:
    """What ``fault`` says of each directory, None for one that is right, with the directory's name in front."""
    said = [(sheet, fault(sheet)) for sheet in sheets]
    return [f"{sheet.name}: {text}" for sheet, text in said if text]
