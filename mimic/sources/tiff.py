"""TIFF-family slides (SVS, OME-TIFF, generic tiled TIFF): compressed tiles as they are, without a TIFF library.

Directories are read by ``structure.tiff``, whose every promise lies inside the file. Whether and how tiles may be
declared in an Aperio file: ``jpegs``; which levels are taken: ``plan``.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimic import jpegquality, jpegs
from mimic.errors import BadInput
from mimic.model import Coded, Image, Level, Slide, Tool
from mimic.structure.reader import Input
from mimic.structure.tiff import Directory, Walk

FORMATS = frozenset(("Aperio SVS", "OME-TIFF", "Tagged Image File Format", "Pyramid TIFF", "Leica SCN", "TIFF picture"))
"""Formats whose picture is its tiles, side by side. Others crop, stitch or turn them (BIF, Trestle)."""
NDPI = "Hamamatsu NDPI"
MAX_TILE_PX = 4096
HEAD_BYTES = 1 << 16
"""A JPEG header with its tables takes 623 bytes, with a colour profile some thousands."""
SAMPLED_TILES = 24
"""Headers looked at for a plan; while tiles are copied, all are."""
J2K_GENERIC = 34712
CODECS = {jpegs.JPEG: "jpeg"}
COPIED = (jpegs.JPEG, jpegs.J2K_YCC, jpegs.J2K_RGB, J2K_GENERIC)
NAMES = {1: "uncompressed", 5: "LZW", 6: "old-style JPEG", 8: "Deflate", 32946: "Deflate", 50000: "zstd", 50001: "WebP"}
COPY_AGAIN = "Copy it again from the scanner or the archive"

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, PLANAR = 256, 257, 258, 259, 262, 274, 277, 284
TILE_WIDTH, TILE_HEIGHT, OFFSETS, COUNTS, TABLES = 322, 323, 324, 325, 347


@dataclass(frozen=True, slots=True, eq=False)
class _Sheet:
    """A tiled directory. ``parent`` is the name of the one whose SubIFD it is, its own name for a top-level one."""

    name: str
    parent: str
    width_px: int
    height_px: int
    tile_px: tuple[int, int]
    compression: int
    photometric: int
    samples: int
    bits: tuple[int, ...]
    planar: int
    orientation: int
    tables: bytes | None
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def size_px(self) -> tuple[int, int]:
        return self.width_px, self.height_px

    @property
    def columns(self) -> int:
        return -(-self.width_px // self.tile_px[0])

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which tiles are there: writers leave offset or length 0 where there is none."""
        return np.asarray((self.offsets > 0) & (self.counts > 0))


def coded(slide: Slide, image: Image) -> Coded:
    """The compressed tiles of ``image``, or the reason why they cannot be copied; headers of a few tiles are read.

    Raises BadInput for directories that are damaged, and for a tile that is none.
    """
    if slide.format == NDPI:
        return Coded("tiff", reason="an NDPI keeps its picture in strips, which are not tiles")
    if slide.format not in FORMATS:
        return Coded("tiff", reason=f"tiles of {slide.format} are not known to be the picture as it is shown")
    if image.z_planes > 1 or image.t_frames > 1 or image.channels != 3 or image.pixel_type != "uint8":
        return Coded("tiff", reason="the picture is not one plane of 8-bit RGB")
    with Input(slide.path) as source:
        sheets = _sheets(Walk(source))
        base = _base(sheets, image)
        if isinstance(base, str):
            return Coded("tiff", reason=base)
        if fault := _fault(base):
            return Coded("tiff", reason=fault)
        return _described(source, slide, base, _lower(sheets, base, image))


def members(slide: Slide) -> tuple[Path, ...]:
    """The files of a slide."""
    return slide.files


def open_tiles(slide: Slide, image: Image, found: Coded) -> TiffTiles:
    """A reader of the tiles that ``found`` describes, by the index of its levels."""
    return TiffTiles(slide.path, image, found)


def tools() -> tuple[Tool, ...]:
    """Nothing but mimic reads the bytes."""
    return ()


class TiffTiles:
    """Tiles of one file by level, column and row; a lock guards the one file handle."""

    def __init__(self, path: Path, image: Image, found: Coded) -> None:
        self._path = path
        self._shared = found.jpeg_tables
        with Input(path) as source:
            sheets = _sheets(Walk(source))
        base = _base(sheets, image)
        same = [] if isinstance(base, str) else [base, *_lower(sheets, base, image)]
        by_size = {sheet.size_px: sheet for sheet in same}
        wanted = [(level.width_px, level.height_px) for level in found.levels]
        if not by_size.keys() >= set(wanted):
            raise BadInput("is not the file it was when the plan was made", path, "Do not change it meanwhile")
        self._sheets = [by_size[size] for size in wanted]
        self._lock = threading.Lock()
        self._input = Input(path)

    def tile(self, level: int, column: int, row: int) -> bytes | None:
        """The tile's bytes; shared tables are merged in when the plan does not share them. None: the file has none."""
        return self.tiles(level, row, range(column, column + 1))[0]

    def tiles(self, level: int, row: int, columns: range) -> list[bytes | None]:
        """As ``tile``, of those side by side."""
        sheet = self._sheets[level]
        run = slice(row * sheet.columns + columns.start, row * sheet.columns + columns.stop)
        spans = list(zip(sheet.offsets[run].tolist(), sheet.counts[run].tolist(), strict=True))
        there = [span for span in spans if all(span)]
        with self._lock:
            read = iter(self._input.many(there))
        found: list[bytes | None] = []
        for column, span in zip(columns, spans, strict=True):
            found.append(self._whole(sheet, (column, row), next(read), span[1]) if all(span) else None)
        return found

    def _whole(self, sheet: _Sheet, place: tuple[int, int], data: bytes, count: int) -> bytes:
        where = f"the tile in column {place[0]}, row {place[1]} of {sheet.name}"
        if len(data) < count:
            raise BadInput(f"{where} lies beyond the end of the file", self._path, COPY_AGAIN)
        if sheet.tables is None or sheet.tables == self._shared:
            return data
        try:
            return jpegs.merge(sheet.tables, data)
        except ValueError as error:
            raise BadInput(f"{where} is damaged: {error}", self._path, COPY_AGAIN) from error

    def close(self) -> None:
        """Let the file go; may be called twice."""
        self._input.close()


def _sheets(walk: Walk) -> list[_Sheet]:
    """The tiled directories, in the file's order."""
    found: list[_Sheet] = []
    parent = ""
    for directory in walk.directories():
        parent = parent if directory.name.startswith("SubIFD") else directory.name
        if {OFFSETS, COUNTS, TILE_WIDTH, TILE_HEIGHT} <= directory.entries.keys():
            found.append(_sheet(walk, directory, parent))
    return found


def _sheet(walk: Walk, directory: Directory, parent: str) -> _Sheet:
    entries = directory.entries
    tables = entries.get(TABLES)
    return _Sheet(
        name=directory.name,
        parent=parent,
        width_px=walk.number(directory, WIDTH),
        height_px=walk.number(directory, HEIGHT),
        tile_px=(walk.number(directory, TILE_WIDTH), walk.number(directory, TILE_HEIGHT)),
        compression=walk.number(directory, COMPRESSION, 1),
        photometric=walk.number(directory, PHOTOMETRIC, -1),
        samples=walk.number(directory, SAMPLES, 1),
        bits=tuple(walk.numbers(entries[BITS]).tolist()) if BITS in entries else (1,),
        planar=walk.number(directory, PLANAR, 1),
        orientation=walk.number(directory, ORIENTATION, 1),
        tables=walk.source.at(tables.offset, tables.count, "JPEG tables") if tables else None,
        offsets=walk.numbers(entries[OFFSETS]).astype(np.int64),
        counts=walk.numbers(entries[COUNTS]).astype(np.int64),
    )


def _base(sheets: list[_Sheet], image: Image) -> _Sheet | str:
    """The one directory that holds the picture, or why there is none."""
    size = image.levels[0].width_px, image.levels[0].height_px
    fitting = [sheet for sheet in sheets if sheet.size_px == size]
    if not fitting:
        return "no tiled picture in it has the size of the scan"
    return fitting[0] if len(fitting) == 1 else f"{len(fitting)} pictures in it have the size of the scan"


def _fault(sheet: _Sheet) -> str | None:
    """Why the tiles of a directory cannot stand in an Aperio file."""
    across, down = sheet.tile_px
    if sheet.compression not in COPIED:
        return f"its tiles are {NAMES.get(sheet.compression, f'of compression {sheet.compression}')}, not JPEG"
    if sheet.samples != 3 or set(sheet.bits) != {8} or sheet.planar != 1:
        return "its tiles are not interleaved 8-bit RGB or YCbCr"
    if across != down or across % 16 or not 16 <= across <= MAX_TILE_PX:
        return f"its tiles are {across} x {down} px, and an SVS needs squares of a multiple of 16 px"
    if sheet.orientation != 1:
        return "the picture is stored turned"
    if len(sheet.offsets) != len(sheet.counts) or not sheet.present.any():
        return "its tiles are not all told by the file"
    return None


def _lower(sheets: list[_Sheet], base: _Sheet, image: Image) -> list[_Sheet]:
    """Smaller directories of the same picture, largest first: its SubIFDs, or top-level ones of the sizes told."""
    own = [sheet for sheet in sheets if sheet.parent == base.parent and sheet is not base]
    others = own or [sheet for sheet in sheets if sheet.parent == sheet.name and sheet is not base]
    told = {(level.width_px, level.height_px) for level in image.levels[1:]}
    times = Counter(sheet.size_px for sheet in others)
    lower = [sheet for sheet in others if times[sheet.size_px] == 1 and (sheet.size_px in told or not told)]
    return sorted((sheet for sheet in lower if sheet.width_px < base.width_px), key=lambda sheet: -sheet.width_px)


def _described(source: Input, slide: Slide, base: _Sheet, lower: list[_Sheet]) -> Coded:
    markers_win = slide.source == "bioformats"
    compression, photometric = base.compression, base.photometric
    subsampling, quality = None, None
    if compression == jpegs.JPEG:
        headers = _headers(source, base)
        kinds = _kinds(headers, base, markers_win=markers_win)
        kind = next((kind for kind in kinds if isinstance(kind, str)), next(iter(kinds)))
        if isinstance(kind, str) or len(kinds) > 1:
            return Coded("tiff", reason=kind if isinstance(kind, str) else "its tiles are of several kinds")
        photometric, subsampling = kind.photometric, kind.subsampling
        quality = Counter(jpegquality.nearest(header.quantisation) for header in headers).most_common(1)[0][0]
    elif reason := _codestream_reason(source, base):
        return Coded("tiff", reason=reason)
    elif compression == jpegs.J2K_YCC and photometric != jpegs.YCBCR:
        return Coded("tiff", reason="its JPEG 2000 tiles are YCbCr and are called RGB, on which readers disagree")
    elif compression == J2K_GENERIC:
        if photometric != jpegs.RGB:
            return Coded("tiff", reason="its JPEG 2000 tiles are not RGB")
        compression = jpegs.J2K_RGB
    share = photometric == jpegs.RGB and base.tables is not None and jpegs.sharable(base.tables)
    kept = [base, *(sheet for sheet in lower if _alike(source, base, sheet, markers_win=markers_win))]
    return Coded(
        source="tiff",
        levels=tuple(
            Level(*sheet.size_px, *sheet.tile_px, CODECS.get(compression, "jpeg2000"), True) for sheet in kept
        ),
        tile_px=base.tile_px[0],
        compression=compression,
        photometric=photometric,
        subsampling=subsampling,
        jpeg_tables=base.tables if share else None,
        quality=quality,
        missing=int(np.count_nonzero(~base.present)),
    )


def _alike(source: Input, base: _Sheet, sheet: _Sheet, *, markers_win: bool) -> bool:
    """Whether a lower level is whole and has the tiles of level 0: same size, compression and, as sampled, kind."""
    if _fault(sheet) or sheet.tile_px != base.tile_px or sheet.compression != base.compression:
        return False
    if not sheet.present.all():
        return False  # made from level 0 it has no more holes than that
    if base.compression != jpegs.JPEG:
        return sheet.photometric == base.photometric and _codestream_reason(source, sheet) is None
    first, second = (_kinds(_headers(source, each), each, markers_win=markers_win) for each in (base, sheet))
    return first == second


def _kinds(headers: list[jpegs.Header], sheet: _Sheet, *, markers_win: bool) -> set[jpegs.Kind | str]:
    """The kinds of some tiles, or reasons against copying them."""
    return {
        jpegs.frame_fault(header, sheet.tile_px[0]) or jpegs.kind(header, sheet.photometric, markers_win=markers_win)
        for header in headers
    }


def _headers(source: Input, sheet: _Sheet) -> list[jpegs.Header]:
    """Headers of a few tiles from all over the picture. Raises BadInput for a tile without one."""
    found = []
    for index in _some(sheet):
        offset, count = int(sheet.offsets[index]), int(sheet.counts[index])
        try:
            found.append(jpegs.header(source.upto(offset, min(count, HEAD_BYTES)), sheet.tables))
        except ValueError as error:
            raise source.damaged(f"tile {index} of {sheet.name}: {error}") from error
    return found


def _codestream_reason(source: Input, sheet: _Sheet) -> str | None:
    heads = (source.upto(int(sheet.offsets[index]), HEAD_BYTES) for index in _some(sheet))
    return next((fault for head in heads if (fault := jpegs.codestream_fault(head, sheet.tile_px[0]))), None)


def _some(sheet: _Sheet) -> list[int]:
    """Indexes of a few tiles that are there, from all over the picture."""
    there = np.flatnonzero(sheet.present)
    return [int(index) for index in there[:: max(1, len(there) // SAMPLED_TILES)]]
