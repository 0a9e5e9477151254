"""DICOM whole-slide series: compressed frames as they are; each level is an instance of the series, or several.

How an instance is read: ``dicomfile``; whether and how frames may be declared in an Aperio file: ``jpegs``.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimic import jpegquality, jpegs
from mimic.dicomfile import CannotCopyError, Frames, Instance, locate, read
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
MARKERS_WIN = frozenset(("bioformats", "openslide"))
"""Sources whose pixels of level 0 are those that the frames' own markers tell: Bio-Formats believes them more than the
header, and of what OpenSlide reads they agree."""
MAX_TILE_PX = 4096
SAMPLED_FRAMES = 24
HEAD_BYTES = 1 << 16
"""A JPEG header with its tables takes 623 bytes, with a colour profile some thousands."""


@dataclass(frozen=True, slots=True, eq=False)
class _Sheet:
    """One level: ``where`` has for each (row, column) the number of the file in ``parts`` and of the frame there, -1
    where there is none or an empty one."""

    first: Instance
    parts: tuple[Frames, ...]
    where: NDArray[np.int64]

    @property
    def missing(self) -> int:
        """How many tiles are not there."""
        return int(np.count_nonzero(self.where[..., 0] < 0))

    def spans(self, row: int, column: int) -> list[tuple[int, int]]:
        part, frame = self.where[row, column].tolist()
        return self.parts[part].spans(frame) if part >= 0 else []


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
        kind, quality = _kind(base, markers_win=slide.source in MARKERS_WIN)
    except CannotCopyError as error:
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


def members(slide: Slide) -> tuple[Path, ...]:
    """The files of a slide, with the parts of a concatenation that lie beside it: Bio-Formats lists one only."""
    instances = [instance for path in slide.files if (instance := read(path)) is not None]
    wanted = {instance.concatenation for instance in instances if instance.concatenation}
    if not wanted:
        return slide.files
    others = (path for path in sorted(slide.path.parent.iterdir()) if path.is_file() and path not in slide.files)
    parts = [path for path in others if (found := read(path)) is not None and found.concatenation in wanted]
    return tuple(sorted((*slide.files, *parts)))


def misread(slide: Slide, image: Image) -> str | None:
    """Why Bio-Formats would give wrong pixels for this image, without a word (7.3.1, tried); None when it reads it."""
    group = _groups(slide).get((image.levels[0].width_px, image.levels[0].height_px), [])
    if len(group) > 1 and group[0].concatenation:
        return "it is a concatenation, of which Bio-Formats reads one part"
    try:
        several = any(len(locate(each).offsets) > each.frames for each in group if each.transfer in COMPRESSIONS)
    except CannotCopyError as error:
        return str(error)
    return "its frames are in several fragments each, which Bio-Formats takes for frames" if several else None


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
        except CannotCopyError as error:
            message = "is not the file it was when the plan was made"
            raise BadInput(message, slide.path, "Do not change it meanwhile") from error
        self._lock = threading.Lock()
        self._inputs = {part.path: Input(part.path) for sheet in self._sheets for part in sheet.parts}

    def tile(self, level: int, column: int, row: int) -> bytes | None:
        """The frame's bytes as they are, a padding byte at their end included; None: the series has none there."""
        return self.tiles(level, row, range(column, column + 1))[0]

    def tiles(self, level: int, row: int, columns: range) -> list[bytes | None]:
        """As ``tile``, of those side by side."""
        sheet = self._sheets[level]
        where = sheet.where[row, columns.start : columns.stop].tolist()
        found: list[bytes | None] = [None] * len(columns)
        for number in sorted({part for part, _ in where if part >= 0}):
            part = sheet.parts[number]
            spans = {index: part.spans(frame) for index, (other, frame) in enumerate(where) if other == number}
            with self._lock:
                read = iter(self._inputs[part.path].many([span for each in spans.values() for span in each]))
            for index, each in spans.items():
                found[index] = b"".join(next(read) for _ in each)
        return found

    def close(self) -> None:
        """Let the files go; may be called twice."""
        for source in self._inputs.values():
            source.close()


def _groups(slide: Slide) -> dict[tuple[int, int], list[Instance]]:
    """The instances of the series that hold the slide, not its label, by the size of their total pixel matrix."""
    instances = [instance for path in slide.files if (instance := read(path)) is not None]
    named = next((instance for instance in instances if instance.path == slide.path), None)
    groups: dict[tuple[int, int], list[Instance]] = {}
    for instance in instances:
        same = named is None or instance.series == named.series
        if same and instance.flavour in ("VOLUME", ""):
            groups.setdefault(instance.size_px, []).append(instance)
    return groups


def _sheet(group: list[Instance]) -> _Sheet:
    """The level that some instances make. Raises CannotCopyError with the reason when they do not make one."""
    if not group:
        raise CannotCopyError("no instance of the series has the size of the scan")
    first = group[0]
    if len(group) > 1 and (not first.concatenation or len({each.concatenation for each in group}) > 1):
        raise CannotCopyError(f"{len(group)} instances of the series have the size of the scan")
    if fault := next((fault for each in group if (fault := _fault(each, first))), None):
        raise CannotCopyError(fault)
    columns, rows = -(-first.width_px // first.tile_px[0]), -(-first.height_px // first.tile_px[1])
    where = np.full((rows, columns, 2), -1, np.int64)
    parts = tuple(locate(instance) for instance in group)
    promised = np.zeros((rows, columns), np.bool_)
    for part, instance in enumerate(group):
        for frame, (column, row) in enumerate(instance.places or ()):
            if not (0 <= column < columns and 0 <= row < rows):
                raise BadInput(f"its frame {frame + 1} lies outside of the picture", instance.path, COPY_AGAIN)
            if promised[row, column]:
                raise CannotCopyError("several of its frames show the same place")
            promised[row, column] = True
            if not parts[part].empty[frame]:
                where[row, column] = part, frame
    if first.full and not promised.all():
        remedy = "Put all files of the series into one folder"
        raise BadInput(f"{int((~promised).sum())} of its frames are in files that are not there", first.path, remedy)
    return _Sheet(first, parts, where)


def _fault(found: Instance, first: Instance) -> str | None:
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


def _kind(sheet: _Sheet, *, markers_win: bool) -> tuple[jpegs.Kind, int | None]:
    """How the frames of a level, as sampled, are to be declared, and their quality. Raises CannotCopyError."""
    heads = _heads(sheet)
    tile_px = sheet.first.tile_px[0]
    if COMPRESSIONS[sheet.first.transfer] != jpegs.JPEG:
        fault = next((fault for head in heads if (fault := jpegs.codestream_fault(head, tile_px))), None)
        if fault or sheet.first.photometric not in DECODED_TO_RGB:
            raise CannotCopyError(fault or f"{sheet.first.photometric} in JPEG 2000 is not known to all readers")
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
        qualities[jpegquality.nearest(header.quantisation)] += 1
    kind = next((kind for kind in kinds if isinstance(kind, str)), next(iter(kinds)))
    if isinstance(kind, str) or len(kinds) > 1:
        raise CannotCopyError(kind if isinstance(kind, str) else "its tiles are of several kinds")
    return kind, qualities.most_common(1)[0][0]


def _heads(sheet: _Sheet) -> list[bytes]:
    """The first bytes of a few frames from all over the picture. Raises CannotCopyError when there is no frame."""
    places = np.argwhere(sheet.where[..., 0] >= 0)
    if not len(places):
        raise CannotCopyError("none of its tiles is there")
    heads = []
    for row, column in places[:: max(1, len(places) // SAMPLED_FRAMES)].tolist():
        (offset, length), *more = sheet.spans(row, column)
        with Input(sheet.parts[int(sheet.where[row, column, 0])].path) as source:
            heads.append(source.upto(offset, min(length, HEAD_BYTES) if not more else length))
    return heads


def _lower(
    slide: Slide, image: Image, groups: dict[tuple[int, int], list[Instance]], base: _Sheet, kind: jpegs.Kind
) -> list[_Sheet]:
    """The lower levels that are whole and have tiles of the same kind, largest first."""
    told = {(level.width_px, level.height_px) for level in image.levels[1:]}
    found: list[_Sheet] = []
    for size in sorted(told & groups.keys(), reverse=True):
        try:
            sheet = _sheet(groups[size])
            same = sheet.first.tile_px == base.first.tile_px and sheet.first.transfer == base.first.transfer
            if same and not sheet.missing and _kind(sheet, markers_win=slide.source in MARKERS_WIN)[0] == kind:
                found.append(sheet)
        except CannotCopyError:
            continue
    return found
