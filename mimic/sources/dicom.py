"""DICOM whole-slide series: compressed frames as they are. Headers by pydicom, pixel data by their items.

TILED_FULL and TILED_SPARSE, basic and extended offset tables, frames of several fragments, concatenations; each level
is an instance of the series, or several. Sources: PS3.3 C.7.6.17, C.8.12.4, C.8.12.6; PS3.5 A.4.
"""

from __future__ import annotations

import struct
import threading
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import config
from pydicom.errors import InvalidDicomError

from mimic import jpegs
from mimic.errors import BadInput
from mimic.model import Coded, Image, Level, Slide, Tool
from mimic.structure.reader import COPY_AGAIN, Input

COMPRESSIONS = {
    "1.2.840.10008.1.2.4.50": jpegs.JPEG,
    "1.2.840.10008.1.2.4.90": jpegs.J2K_RGB,
    "1.2.840.10008.1.2.4.91": jpegs.J2K_RGB,
}
"""Transfer syntaxes: JPEG baseline, JPEG 2000 lossless and lossy."""
PHOTOMETRICS = {"RGB": jpegs.RGB, "YBR_FULL": jpegs.YCBCR, "YBR_FULL_422": jpegs.YCBCR}
DECODED_TO_RGB = frozenset(("RGB", "YBR_ICT", "YBR_RCT"))
"""What a JPEG 2000 decoder undoes by itself."""
MAX_TILE_PX = 4096
SAMPLED_FRAMES = 24
HEAD_BYTES = 1 << 16
"""A JPEG header with its tables takes 623 bytes, with a colour profile some thousands."""
ITEM, SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
PYDICOM_ERRORS = (
    *(InvalidDicomError, OSError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError),
    *(struct.error, EOFError, NotImplementedError, RecursionError),
)
"""What pydicom raises for headers that are damaged; of most it says so nowhere."""
TAGS = (
    *("SOPInstanceUID", "SeriesInstanceUID", "ImageType", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("BitsAllocated", "PhotometricInterpretation", "TotalPixelMatrixColumns", "TotalPixelMatrixRows"),
    *("DimensionOrganizationType", "TotalPixelMatrixFocalPlanes", "NumberOfOpticalPaths", "ConcatenationUID"),
    *("ConcatenationFrameOffsetNumber", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
PLACES = "PerFrameFunctionalGroupsSequence"


@dataclass(frozen=True, slots=True)
class _Instance:
    """What the header of one file says. ``places`` are the (column, row) of its frames in tiles, None where one is not
    on the grid; ``pixels_at`` is where the pixel data element begins, ``table`` the extended offset table."""

    path: Path
    series: str
    flavour: str
    width_px: int
    height_px: int
    tile_px: tuple[int, int]
    frames: int
    transfer: str
    photometric: str
    samples: int
    bits: int
    planes: int
    concatenation: str
    places: tuple[tuple[int, int], ...] | None
    pixels_at: int
    table: bytes

    @property
    def size_px(self) -> tuple[int, int]:
        return self.width_px, self.height_px


@dataclass(frozen=True, slots=True, eq=False)
class _Frames:
    """Where the frames of one file are: frame i has the fragments first[i] to first[i + 1]; ``empty`` says of each
    frame whether it has no bytes."""

    path: Path
    first: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    empty: NDArray[np.bool_]

    def spans(self, frame: int) -> list[tuple[int, int]]:
        """Offset and length of each fragment of a frame that has bytes."""
        part = slice(int(self.first[frame]), int(self.first[frame + 1]))
        pairs = zip(self.offsets[part].tolist(), self.lengths[part].tolist(), strict=True)
        return [(offset, length) for offset, length in pairs if length]


@dataclass(frozen=True, slots=True, eq=False)
class _Sheet:
    """One level: ``where`` has for each (row, column) the number of the file in ``parts`` and of the frame there, -1
    where there is none or an empty one."""

    first: _Instance
    parts: tuple[_Frames, ...]
    where: NDArray[np.int64]

    @property
    def missing(self) -> int:
        """How many tiles are not there."""
        return int(np.count_nonzero(self.where[..., 0] < 0))

    def spans(self, row: int, column: int) -> list[tuple[int, int]]:
        part, frame = self.where[row, column].tolist()
        return self.parts[part].spans(frame) if part >= 0 else []


class _CannotCopyError(Exception):
    """Carries the reason why the frames of an instance cannot be copied."""


def coded(slide: Slide, image: Image) -> Coded:
    """The compressed tiles of ``image``, or the reason why they cannot be copied; headers of a few frames are read.

    Raises BadInput for files that are damaged, and for frames that a TILED_FULL image promises and has not.
    """
    if image.z_planes > 1 or image.t_frames > 1 or image.channels != 3 or image.pixel_type != "uint8":
        return Coded("dicom", reason="the picture is not one plane of 8-bit RGB")
    size = image.levels[0].width_px, image.levels[0].height_px
    groups = _groups(slide)
    try:
        base = _sheet(groups.get(size, []))
        kind, quality = _kind(base, markers_win=slide.source == "bioformats")
    except _CannotCopyError as error:
        return Coded("dicom", reason=str(error))
    compression = COMPRESSIONS[base.first.transfer]
    sheets = [base, *_lower(slide, image, groups, base, kind)]
    codec = "jpeg" if compression == jpegs.JPEG else "jpeg2000"
    return Coded(
        source="dicom",
        levels=tuple(Level(*sheet.first.size_px, *base.first.tile_px, codec, True) for sheet in sheets),
        tile_px=base.first.tile_px[0],
        compression=compression,
        photometric=kind.photometric,
        subsampling=kind.subsampling,
        quality=quality,
        missing=base.missing,
    )


def open_tiles(slide: Slide, image: Image, found: Coded) -> DicomTiles:  # noqa: ARG001 (the signature of tiff.py's)
    """A reader of the tiles that ``found`` describes, by the index of its levels."""
    return DicomTiles(slide, found)


def tools() -> tuple[Tool, ...]:
    """pydicom, with its version."""
    return (Tool("pydicom", version("pydicom")),)


class DicomTiles:
    """Frames of a series by level, column and row; a lock guards the file handles."""

    def __init__(self, slide: Slide, found: Coded) -> None:
        groups = _groups(slide)
        try:
            self._sheets = [_sheet(groups.get((level.width_px, level.height_px), [])) for level in found.levels]
        except _CannotCopyError as error:
            message = "is not the file it was when the plan was made"
            raise BadInput(message, slide.path, "Do not change it meanwhile") from error
        self._lock = threading.Lock()
        self._inputs = {part.path: Input(part.path) for sheet in self._sheets for part in sheet.parts}

    def tile(self, level: int, column: int, row: int) -> bytes | None:
        """The frame's bytes as they are, a padding byte at their end included; None: the series has none there."""
        sheet = self._sheets[level]
        part = int(sheet.where[row, column, 0])
        spans = sheet.spans(row, column)
        if not spans:
            return None
        source = self._inputs[sheet.parts[part].path]
        with self._lock:
            return b"".join(source.upto(offset, length) for offset, length in spans)

    def close(self) -> None:
        """Let the files go; may be called twice."""
        for source in self._inputs.values():
            source.__exit__(None, None, None)


def _groups(slide: Slide) -> dict[tuple[int, int], list[_Instance]]:
    """The instances of the series that hold the slide, not its label, by the size of their total pixel matrix."""
    instances = [instance for path in slide.files if (instance := _instance(path)) is not None]
    named = next((instance for instance in instances if instance.path == slide.path), None)
    groups: dict[tuple[int, int], list[_Instance]] = {}
    for instance in instances:
        same = named is None or instance.series == named.series
        if same and instance.flavour in ("VOLUME", ""):
            groups.setdefault(instance.size_px, []).append(instance)
    return groups


def _instance(path: Path) -> _Instance | None:
    """The header of a DICOM file, None for a companion that is none or no whole slide. Raises BadInput."""
    with Input(path) as source:
        if source.upto(128, 4) != b"DICM":
            return None
    try:
        with warnings.catch_warnings(), config.disable_value_validation(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            found = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[*TAGS, PLACES])
            return _described(path, found, file.tell())
    except PYDICOM_ERRORS as error:
        raise BadInput(f"its DICOM header is damaged: {error}", path, COPY_AGAIN) from error


def _described(path: Path, found: pydicom.Dataset, pixels_at: int) -> _Instance | None:
    if not found.get("TotalPixelMatrixColumns") or not found.get("Rows") or not found.get("Columns"):
        return None
    flavour = [str(word) for word in found.get("ImageType") or ()]
    frames = int(found.get("NumberOfFrames") or 1)
    width, tile_px = int(found.TotalPixelMatrixColumns), (int(found.Columns), int(found.Rows))
    if found.get("DimensionOrganizationType") == "TILED_FULL":
        offset, columns = int(found.get("ConcatenationFrameOffsetNumber") or 0), -(-width // tile_px[0])
        numbers = range(offset, offset + frames)
        places: tuple[tuple[int, int], ...] | None = tuple((at % columns, at // columns) for at in numbers)
    else:
        places = _places(found.get(PLACES) or (), tile_px)
    return _Instance(
        path=path,
        series=str(found.get("SeriesInstanceUID", "")),
        flavour=flavour[2] if len(flavour) > 2 else "",
        width_px=width,
        height_px=int(found.get("TotalPixelMatrixRows") or 0),
        tile_px=tile_px,
        frames=frames,
        transfer=str(found.file_meta.get("TransferSyntaxUID", "")),
        photometric=str(found.get("PhotometricInterpretation", "")),
        samples=int(found.get("SamplesPerPixel") or 0),
        bits=int(found.get("BitsAllocated") or 0),
        planes=int(found.get("TotalPixelMatrixFocalPlanes") or 1) * int(found.get("NumberOfOpticalPaths") or 1),
        concatenation=str(found.get("ConcatenationUID", "")),
        places=places if places is None or len(places) == frames else None,
        pixels_at=pixels_at,
        table=bytes(found.get("ExtendedOffsetTable") or b""),
    )


def _places(groups: Iterable[pydicom.Dataset], tile_px: tuple[int, int]) -> tuple[tuple[int, int], ...] | None:
    """Column and row of each frame in tiles, from its functional groups; None when one is not on the grid."""
    places = []
    for group in groups:
        slide_position = group.PlanePositionSlideSequence[0]
        x = int(slide_position.ColumnPositionInTotalImagePixelMatrix) - 1
        y = int(slide_position.RowPositionInTotalImagePixelMatrix) - 1
        if x % tile_px[0] or y % tile_px[1]:
            return None
        places.append((x // tile_px[0], y // tile_px[1]))
    return tuple(places)


def _sheet(group: list[_Instance]) -> _Sheet:
    """The level that some instances make. Raises _CannotCopyError with the reason when they do not make one."""
    if not group:
        raise _CannotCopyError("no instance of the series has the size of the scan")
    first = group[0]
    if len(group) > 1 and (not first.concatenation or len({each.concatenation for each in group}) > 1):
        raise _CannotCopyError(f"{len(group)} instances of the series have the size of the scan")
    if fault := next((fault for each in group if (fault := _fault(each, first))), None):
        raise _CannotCopyError(fault)
    columns, rows = -(-first.width_px // first.tile_px[0]), -(-first.height_px // first.tile_px[1])
    where = np.full((rows, columns, 2), -1, np.int64)
    parts = tuple(_frames(instance) for instance in group)
    for part, instance in enumerate(group):
        for frame, (column, row) in enumerate(instance.places or ()):
            if not (0 <= column < columns and 0 <= row < rows):
                raise BadInput(f"its frame {frame + 1} lies outside of the picture", instance.path, COPY_AGAIN)
            if where[row, column, 0] >= 0:
                raise _CannotCopyError("several of its frames show the same place")
            if not parts[part].empty[frame]:
                where[row, column] = part, frame
    return _Sheet(first, parts, where)


def _fault(found: _Instance, first: _Instance) -> str | None:
    """Why the frames of an instance cannot stand in an Aperio file."""
    across, down = found.tile_px
    if found.transfer not in COMPRESSIONS:
        return f"its transfer syntax {found.transfer} is neither JPEG baseline nor JPEG 2000"
    if found.samples != 3 or found.bits != 8:
        return "its frames are not 8-bit colour"
    if found.planes > 1:
        return "it has several focal planes or optical paths"
    if found.places is None:
        return "its frames do not lie on a grid"
    if across != down or across % 16 or not 16 <= across <= MAX_TILE_PX:
        return f"its tiles are {across} x {down} px, and an SVS needs squares of a multiple of 16 px"
    if (found.tile_px, found.transfer, found.photometric) != (first.tile_px, first.transfer, first.photometric):
        return "the parts of its concatenation are not alike"
    return None


def _frames(found: _Instance) -> _Frames:
    """Where the frames of an instance are. Raises _CannotCopyError when its offset table does not tell."""
    with Input(found.path) as source:
        head = source.at(found.pixels_at, 12, "the pixel data")
        if head[:4] != b"\xe0\x7f\x10\0" or head[8:] != b"\xff\xff\xff\xff":
            raise source.damaged("its pixel data are not in fragments, as its transfer syntax says")
        items = _items(source, found.pixels_at + 12)
        basic = source.at(*items[0], "the basic offset table")
    offsets = np.array([at for at, _ in items[1:]], np.int64)
    lengths = np.array([length for _, length in items[1:]], np.int64)
    table = np.frombuffer(found.table or basic, "<u8" if found.table else "<u4").astype(np.int64)
    if len(table):
        starts = offsets - 8 - (offsets[0] - 8) if len(offsets) else offsets
        first = np.searchsorted(starts, table)
        fits = len(table) == found.frames and bool((first < len(starts)).all()) and np.array_equal(starts[first], table)
        if not fits or any(b <= a for a, b in pairwise(first.tolist())) or first[0]:
            raise _CannotCopyError("its offset table does not fit its frames")
    elif len(offsets) == found.frames:
        first = np.arange(found.frames)
    elif found.frames == 1:
        first = np.zeros(1, np.int64)
    else:
        raise _CannotCopyError("its frames are in several fragments each, and no offset table tells which")
    empty = np.add.reduceat(lengths, first) == 0
    return _Frames(found.path, np.append(first, len(offsets)), offsets, lengths, empty)


def _items(source: Input, at: int) -> list[tuple[int, int]]:
    """Offset and length of the offset table and of each fragment."""
    found: list[tuple[int, int]] = []
    while True:
        group, element, length = source.unpack("<HHI", at, "a fragment of the pixel data")
        tag = group << 16 | element
        if tag == SEQUENCE_END and found:
            return found
        if tag != ITEM:
            raise source.damaged(f"what stands at byte {at} is no fragment")
        source.require(at + 8, length, "a fragment of the pixel data")
        found.append((at + 8, length))
        at += 8 + length


def _kind(sheet: _Sheet, *, markers_win: bool) -> tuple[jpegs.Kind, int | None]:
    """How the frames of a level, as sampled, are to be declared, and their quality. Raises _CannotCopyError."""
    heads = _heads(sheet)
    tile_px = sheet.first.tile_px[0]
    if COMPRESSIONS[sheet.first.transfer] != jpegs.JPEG:
        fault = next((fault for head in heads if (fault := jpegs.codestream_fault(head, tile_px))), None)
        if fault or sheet.first.photometric not in DECODED_TO_RGB:
            raise _CannotCopyError(fault or f"{sheet.first.photometric} in JPEG 2000 is not known to all readers")
        return jpegs.Kind(jpegs.RGB, None), None
    photometric = PHOTOMETRICS.get(sheet.first.photometric, -1)
    kinds: set[jpegs.Kind | str] = set()
    qualities: Counter[int | None] = Counter()
    for head in heads:
        try:
            header = jpegs.header(head)
        except ValueError as error:
            raise BadInput(f"a frame is damaged: {error}", sheet.first.path, COPY_AGAIN) from error
        fault = jpegs.frame_fault(header, tile_px)
        kinds.add(fault or jpegs.kind(header, photometric, markers_win=markers_win))
        qualities[jpegs.quality(header.quantisation)] += 1
    kind = next((kind for kind in kinds if isinstance(kind, str)), next(iter(kinds)))
    if isinstance(kind, str) or len(kinds) > 1:
        raise _CannotCopyError(kind if isinstance(kind, str) else "its tiles are of several kinds")
    return kind, qualities.most_common(1)[0][0]


def _heads(sheet: _Sheet) -> list[bytes]:
    """The first bytes of a few frames from all over the picture. Raises _CannotCopyError when there is no frame."""
    places = np.argwhere(sheet.where[..., 0] >= 0)
    if not len(places):
        raise _CannotCopyError("none of its tiles is there")
    heads = []
    for row, column in places[:: max(1, len(places) // SAMPLED_FRAMES)].tolist():
        (offset, length), *more = sheet.spans(row, column)
        with Input(sheet.parts[int(sheet.where[row, column, 0])].path) as source:
            heads.append(source.upto(offset, min(length, HEAD_BYTES) if not more else length))
    return heads


def _lower(
    slide: Slide, image: Image, groups: dict[tuple[int, int], list[_Instance]], base: _Sheet, kind: jpegs.Kind
) -> list[_Sheet]:
    """The lower levels that are whole and have tiles of the same kind, largest first."""
    told = {(level.width_px, level.height_px) for level in image.levels[1:]}
    found: list[_Sheet] = []
    for size in sorted(told & groups.keys(), reverse=True):
        try:
            sheet = _sheet(groups[size])
            same = sheet.first.tile_px == base.first.tile_px and sheet.first.transfer == base.first.transfer
            if same and not sheet.missing and _kind(sheet, markers_win=slide.source == "bioformats")[0] == kind:
                found.append(sheet)
        except _CannotCopyError:
            continue
    return found
