"""A DICOM whole-slide instance: what its header says, by pydicom, and where its frames lie, by their items.

TILED_FULL and TILED_SPARSE, basic and extended offset tables, frames of several fragments, parts of concatenations.
Sources: PS3.3 C.7.6.16, C.7.6.17, C.8.12.4, C.8.12.6; PS3.5 A.4.
"""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import config
from pydicom.errors import BytesLengthException, InvalidDicomError

from mimic.errors import BadInput
from mimic.structure.reader import COPY_AGAIN, Input

logging.getLogger("pydicom").setLevel(logging.ERROR)  # what it warns of ends as a BadInput, or does not matter

ITEM, SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
PYDICOM_ERRORS = (
    *(
        InvalidDicomError,
        BytesLengthException,
        OSError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        ArithmeticError,
    ),
    *(struct.error, EOFError, NotImplementedError, RecursionError),
)
"""What pydicom raises for headers that are damaged; of most it says so nowhere."""
TAGS = (
    *("SOPInstanceUID", "SeriesInstanceUID", "ImageType", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("BitsAllocated", "PhotometricInterpretation", "TotalPixelMatrixColumns", "TotalPixelMatrixRows"),
    *("DimensionOrganizationType", "TotalPixelMatrixFocalPlanes", "NumberOfOpticalPaths", "ConcatenationUID"),
    *("ConcatenationFrameOffsetNumber", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
KNOWN = 16
"""Files whose headers and places of frames are kept: a slide's are asked for at every step of a conversion."""
ITEM_HEAD = struct.Struct("<HHI")
PLACES = "PerFrameFunctionalGroupsSequence"


@dataclass(frozen=True, slots=True)
class Instance:
    """What the header of one file says.

    ``full`` says that there must be a frame for every place; ``places`` are the (column, row) of its frames in tiles,
    None where one is not on the grid. ``pixels_at`` is where the pixel data element begins, ``table`` the extended
    offset table.
    """

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
    full: bool
    places: tuple[tuple[int, int], ...] | None
    pixels_at: int
    table: bytes

    @property
    def size_px(self) -> tuple[int, int]:
        return self.width_px, self.height_px


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
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


class CannotCopyError(Exception):
    """Carries the reason why the frames of an instance cannot be copied."""


def read(path: Path) -> Instance | None:
    """The header of a DICOM file, None for one that is none or no whole slide. Raises BadInput for a damaged one."""
    return _read(path, _stamp(path))


def _stamp(path: Path) -> tuple[int, int, int]:
    """What changes with a file."""
    try:
        told = path.stat()
    except OSError:
        return 0, 0, 0  # who opens it will tell
    return told.st_ino, told.st_size, told.st_mtime_ns


@lru_cache(maxsize=KNOWN)
def _read(path: Path, stamp: tuple[int, int, int]) -> Instance | None:  # noqa: ARG001 - a changed file is read anew
    found = header(path)
    return found[1] if found is not None else None


@contextmanager
def unjudged() -> Iterator[None]:
    """pydicom's values as they are written, without its warnings."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def header(path: Path, *tags: str) -> tuple[pydicom.Dataset, Instance | None] | None:
    """What ``read`` gives, None for no whole slide, and the elements it was taken from with those of ``tags``.

    None for a file that is no DICOM. pydicom makes values when somebody asks (``unjudged``), and of damaged ones raises
    PYDICOM_ERRORS then. Raises BadInput for a damaged header.
    """
    with Input(path) as source:
        if source.upto(128, 4) != b"DICM":
            return None
    try:
        with unjudged(), path.open("rb") as file:
            found = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[*TAGS, PLACES, *tags])
            return found, _described(path, found, file.tell())
    except PYDICOM_ERRORS as error:
        raise BadInput(f"its DICOM header is damaged: {error}", path, COPY_AGAIN) from error


def _described(path: Path, found: pydicom.Dataset, pixels_at: int) -> Instance | None:
    if not found.get("TotalPixelMatrixColumns") or not found.get("Rows") or not found.get("Columns"):
        return None
    flavour = [str(word) for word in found.get("ImageType") or ()]
    frames = int(found.get("NumberOfFrames") or 1)
    width, tile_px = int(found.TotalPixelMatrixColumns), (int(found.Columns), int(found.Rows))
    full = found.get("DimensionOrganizationType") == "TILED_FULL"
    if full:
        offset, columns = int(found.get("ConcatenationFrameOffsetNumber") or 0), -(-width // tile_px[0])
        numbers = range(offset, offset + frames)
        places: tuple[tuple[int, int], ...] | None = tuple((at % columns, at // columns) for at in numbers)
    else:
        places = _places(found.get(PLACES) or (), tile_px)
    return Instance(
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
        full=full,
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


def locate(found: Instance) -> Frames:
    """Where the frames of an instance are. Raises CannotCopyError when its offset table does not tell."""
    return _located(found.path, _stamp(found.path), found.pixels_at, found.frames, found.table)


@lru_cache(maxsize=KNOWN)
def _located(path: Path, stamp: tuple[int, int, int], pixels_at: int, frames: int, table: bytes) -> Frames:  # noqa: ARG001
    with Input(path) as source:
        head = source.at(pixels_at, 12, "the pixel data")
        if head[:4] != b"\xe0\x7f\x10\0" or head[8:] != b"\xff\xff\xff\xff":
            raise source.damaged("its pixel data are not in fragments, as its transfer syntax says")
        items = _items(source, pixels_at + 12)
        basic = source.at(*items[0], "the basic offset table")
    offsets = np.array([at for at, _ in items[1:]], np.int64)
    lengths = np.array([length for _, length in items[1:]], np.int64)
    told = np.frombuffer(table or basic, "<u8" if table else "<u4").astype(np.int64)
    if len(told):
        starts = offsets - 8 - (offsets[0] - 8) if len(offsets) else offsets
        first = np.searchsorted(starts, told)
        fits = len(told) == frames and bool((first < len(starts)).all()) and np.array_equal(starts[first], told)
        if not fits or any(b <= a for a, b in pairwise(first.tolist())) or first[0]:
            raise CannotCopyError("its offset table does not fit its frames")
    elif len(offsets) == frames:
        first = np.arange(frames)
    elif frames == 1:
        first = np.zeros(1, np.int64)
    else:
        raise CannotCopyError("its frames are in several fragments each, and no offset table tells which")
    empty = np.add.reduceat(lengths, first) == 0
    return Frames(path, np.append(first, len(offsets)), offsets, lengths, empty)


def _items(source: Input, at: int) -> list[tuple[int, int]]:
    """Offset and length of the offset table and of each fragment."""
    found: list[tuple[int, int]] = []
    while True:
        head = source.upto(at, ITEM_HEAD.size)
        if len(head) < ITEM_HEAD.size:
            raise source.cut("a fragment of the pixel data", at + ITEM_HEAD.size)
        group, element, length = ITEM_HEAD.unpack(head)
        tag = group << 16 | element
        if tag == SEQUENCE_END and found:
            return found
        if tag != ITEM:
            raise source.damaged(f"what stands at byte {at} is no fragment")
        source.require(at + 8, length, "a fragment of the pixel data")
        found.append((at + 8, length))
        at += 8 + length
