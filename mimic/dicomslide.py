"""What an ordinary DICOM whole-slide series says of itself, told without Java as Bio-Formats 7.3.1 tells it.

Ordinary means: every instance in one folder and of one kind of tile, each level in one instance, frames on a grid, one
focal plane, 8-bit colour of which all readers think alike. Which files Bio-Formats takes for one slide depends on more
than the series (date, series number, specimen), and how it numbers the images on their types: both are followed here.
Of any other series it is asked itself. Elements: PS3.3 C.7.6.16, C.8.12.4, C.12.1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from pydicom import Dataset

from mimic import dicomfile, jpegs, ome, structure
from mimic.dicomfile import CannotCopyError, Frames, Instance
from mimic.errors import BadInput
from mimic.model import Image, Level, Scale, Slide
from mimic.structure import dicom
from mimic.structure.reader import Input

FORMAT = "DICOM"
SUFFIXES = frozenset((".dic", ".dcm", ".dicom", ".j2ki", ".j2kr"))
"""Files that Bio-Formats takes for DICOM whatever is in them."""
ENCAPSULATED = {
    "1.2.840.10008.1.2.4.50": frozenset(("RGB", "YBR_FULL_422")),
    "1.2.840.10008.1.2.4.90": frozenset(("RGB", "YBR_ICT")),
    "1.2.840.10008.1.2.4.91": frozenset(("RGB", "YBR_ICT")),
}
"""JPEG baseline, JPEG 2000 lossless and lossy, and the colours in which OpenSlide decodes each."""
JPEG_BASELINE, NATIVE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.1"
TAGS = (
    *("SOPClassUID", "InstanceNumber", "SeriesNumber", "AcquisitionDate", "AcquisitionDateTime", "AcquisitionTime"),
    *("ContentDate", "SpecimenDescriptionSequence", "SharedFunctionalGroupsSequence", "OpticalPathSequence"),
    *("ExtendedDepthOfField", "PixelSpacing", "PlanarConfiguration", "BitsStored", "HighBit", "PixelRepresentation"),
)
RGB = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
IMAGE_TYPE = re.compile(r"(?:ORIGINAL|DERIVED)\\PRIMARY\\(?:VOLUME|THUMBNAIL|OVERVIEW|LABEL)\\[A-Z_]{1,16}")
ORDER = ("THUMBNAIL", "OVERVIEW", "LABEL")
"""Of the images behind the scan."""
DAY, MOMENT = re.compile(r"[0-9]{8}"), re.compile(r"[0-9]{8}(?:[0-9]{6}(?:\.[0-9]{1,6})?(?:[+-][0-9]{4})?)?")
CLOCK = re.compile(r"[0-9]{6}(?:\.[0-9]{1,6})?")
NUMBER = re.compile(r"[0-9]{1,5}")
"""Of an instance or a series: Bio-Formats makes a list as long as the largest."""
SIZE_MM = re.compile(r"[0-9]{1,2}\.[0-9]{1,15}(?:[eE]-[0-9]{1,2})?|[0-9](?:\.[0-9]{1,15})?[eE]-[0-9]{1,2}")
MAX_PX, MAX_TILE_PX = 8192, 4096
"""Of a label or macro, and of a tile: OpenSlide allocates what a damaged size says."""
HEAD_BYTES = 1 << 16
SAMPLED_FRAMES = 24


class _Odd(Exception):
    """The series is not ordinary: its message says why, without a text of the file, which may name people."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One instance: its elements, and what of them tells Bio-Formats which slide it belongs to.

    ``stamp`` is the date, moment and time of acquisition; None for what is not there, which is not the same as empty.
    """

    path: Path
    data: Dataset
    instance: Instance | None
    series: str
    stamp: tuple[str | None, ...]
    number: str
    specimens: tuple[str, ...]

    @property
    def day(self) -> str:
        """The date of acquisition; empty where Bio-Formats finds none."""
        return (self.stamp[1] or "")[:8] or self.stamp[0] or ""


def told(path: Path, *, source: str) -> Slide | str:
    """The slide, or why Bio-Formats must be asked. Raises BadInput for damage of a file of the series."""
    facts = structure.check(path)
    if facts.container != "dicom":
        return "it is no DICOM file"
    try:
        stamps = tuple(sorted(_stamp(entry) for entry in os.scandir(path.parent) if not entry.name.startswith(".")))
    except OSError:
        return "its folder cannot be listed"
    return _told(path, source, stamps)


def _stamp(entry: os.DirEntry[str]) -> tuple[str, bool, int, int]:
    found = entry.stat()
    return entry.name, entry.is_file(), found.st_size, found.st_mtime_ns


@lru_cache(maxsize=1)
def _told(path: Path, source: str, stamps: tuple[tuple[str, bool, int, int], ...]) -> Slide | str:
    """As ``told``, which is asked twice, for the files of a folder and when each was changed."""
    try:
        with dicomfile.unjudged():
            parts = _series(path, [name for name, is_file, _, _ in stamps if is_file])
            instances = [_instance(part) for part in parts]
            missing = sum(structure.check(each.path).missing_tiles for each in instances)
            if missing:
                raise _Odd(f"{missing} of its frames are empty")
            return _slide(path, parts, instances, source=source)
    except _Odd as odd:
        return str(odd)
    except dicomfile.PYDICOM_ERRORS as error:
        return f"its header is unusual: {type(error).__name__}"


def _series(path: Path, names: Sequence[str]) -> list[_Part]:
    """The instances that are one slide to Bio-Formats and by their series alike. Raises _Odd where these differ."""
    if os.path.lexists(path.parent.with_name(f"{path.parent.name}.mif")):
        raise _Odd("there is a scanner's file beside its folder")
    parts = []
    for name in names:
        if name == "DICOMDIR" or name.endswith(".bfoptions"):
            raise _Odd(f"there is {name if name == 'DICOMDIR' else 'a file of options'} beside it")
        part = _part(path if name == path.name else Path(os.path.normpath(path.parent / name)))
        parts += [part] if part is not None else []
    named = next((part for part in parts if part.path == path), None)
    if named is None:
        raise _Odd("it has no preamble")
    mine = [part for part in parts if part.series == named.series]
    dated = _is_dated(named)
    if len(mine) > 1 and not dated:
        raise _Odd("its instances are not dated")
    for part in mine:
        alike = (part.stamp, _number(part), part.specimens) == (named.stamp, _number(named), named.specimens)
        if not alike or (dated and not NUMBER.fullmatch(part.number)):
            raise _Odd("its instances differ in date, series number or specimen")
    if len(mine) > 1 and not NUMBER.fullmatch(_number(named)):
        raise _Odd("it states no usual series number")
    if dated and not all(_apart(part, named) for part in parts if part.series != named.series):
        raise _Odd("another series beside it looks like a part of it")
    return mine


def _part(path: Path) -> _Part | None:
    """An instance; None for what no reader takes for one. Raises _Odd for one that only some do, or a damaged one."""
    try:
        found = dicomfile.header(path, *TAGS)
        with Input(path) as source:
            bare = found is None and dicom.is_bare(source)
            if found is not None:
                dicom.check_header(source)
    except BadInput as error:
        raise _Odd("a file of the folder is damaged, empty or coded in an unusual way") from error
    if found is None:
        if bare or path.suffix.lower() in SUFFIXES:
            raise _Odd("there is a file beside it that may be DICOM")
        return None
    data, instance = found
    names = "AcquisitionDate", "AcquisitionDateTime", "AcquisitionTime"
    stamp = tuple(_text(data, name) if name in data else None for name in names)
    specimens = tuple(_text(each, "SpecimenIdentifier") for each in data.get("SpecimenDescriptionSequence") or ())
    series = _text(data, "SeriesInstanceUID")
    if not series:
        raise _Odd("a file of the folder states no series")
    return _Part(path, data, instance, series, stamp, _text(data, "InstanceNumber"), specimens)


def _text(data: Dataset, name: str) -> str:
    value = data.get(name)
    return "" if value is None else str(value).strip(" \0")  # Java leaves what else Python takes for a space


def _number(part: _Part) -> str:
    return _text(part.data, "SeriesNumber")


def _is_dated(part: _Part) -> bool:
    """Whether Bio-Formats looks for other files of the slide. Raises _Odd where it may be of two minds."""
    date, moment, time = part.stamp
    if part.stamp == (None, None, None):
        return False
    usual = date is time is None and MOMENT.fullmatch(moment or "")
    if moment is None:
        usual = DAY.fullmatch(date or "") and CLOCK.fullmatch(time or "")
    if not usual or not int(part.day):
        raise _Odd("its date of acquisition is unusual")
    return True


def _apart(other: _Part, named: _Part) -> bool:
    """Whether an instance of another series cannot be taken for one of this."""
    if not any(other.stamp) or (other.day and other.day != named.day):
        return True
    numbers = _number(other), _number(named)
    if all(NUMBER.fullmatch(number) for number in numbers) and int(numbers[0]) != int(numbers[1]):
        return True
    return all(named.specimens) and bool(named.specimens) and set(other.specimens).isdisjoint(named.specimens)


def _instance(part: _Part) -> Instance:
    """The instance, when it is one that Bio-Formats and OpenSlide see alike. Raises _Odd."""
    data, found = part.data, part.instance
    if found is None or _text(data, "SOPClassUID") != dicom.WHOLE_SLIDE:
        raise _Odd("it holds more than whole-slide images")
    if not IMAGE_TYPE.fullmatch("\\".join(str(word) for word in data.get("ImageType") or ())):
        raise _Odd("an image is of an unusual type")
    if any(data.get(name) != value for name, value in RGB.items()) or data.get("PixelRepresentation"):
        raise _Odd("an image is not 8-bit RGB")
    colours = frozenset(("RGB",)) if found.transfer == NATIVE else ENCAPSULATED.get(found.transfer, frozenset())
    if found.photometric not in colours:
        raise _Odd("an image has an unusual transfer syntax, or colours unusual for it")
    paths, deep = len(data.get("OpticalPathSequence") or ()), _text(data, "ExtendedDepthOfField")
    if found.planes != 1 or paths > 1 or deep not in ("", "NO") or found.concatenation:
        raise _Odd("an image has several planes, optical paths or files")
    if "PixelSpacing" in data or not re.fullmatch(r"(?:[0-9]{8})?", _text(data, "ContentDate")):
        raise _Odd("an image states its size or date in an unusual way")
    _spacing(part)
    _check_frames(found)
    return found


def _check_frames(found: Instance) -> None:
    """Raises _Odd unless frames lie on the grid, one at a place, and each in one fragment."""
    most_px = MAX_TILE_PX if found.flavour == "VOLUME" else MAX_PX
    if not 0 < min(found.size_px) <= max(found.size_px) < 1 << 31 or max(found.tile_px) > most_px:
        raise _Odd("an image has an unusual size")
    columns, rows = -(-found.width_px // found.tile_px[0]), -(-found.height_px // found.tile_px[1])
    places = found.places
    if places is None or len(set(places)) != len(places) or (found.full and len(places) != columns * rows):
        raise _Odd("the frames of an image do not lie on a grid")
    if any(not (0 <= column < columns and 0 <= row < rows) for column, row in places):
        raise _Odd("a frame lies outside of its image")
    if found.flavour != "VOLUME" and (found.tile_px != found.size_px or found.frames != 1):
        raise _Odd("its label or macro is tiled")
    if found.transfer != NATIVE and len(_located(found).offsets) != found.frames:
        raise _Odd("frames are in several fragments")


def _located(found: Instance) -> Frames:
    try:
        return dicomfile.locate(found)
    except CannotCopyError as error:
        raise _Odd(str(error)) from error


def _slide(path: Path, parts: Sequence[_Part], instances: Sequence[Instance], *, source: str) -> Slide:
    levels = sorted((each for each in instances if each.flavour == "VOLUME"), key=lambda each: -each.width_px)
    others = sorted((each for each in instances if each not in levels), key=lambda each: ORDER.index(each.flavour))
    if not levels or levels[0].path != path:
        raise _Odd("it is not the largest image of its series")
    if any(low.width_px >= high.width_px or low.height_px >= high.height_px for high, low in pairwise(levels)):
        raise _Odd("its levels do not become smaller")
    if len({each.flavour for each in others}) != len(others):
        raise _Odd("it has several labels or macros")
    for each in (levels[0], *others):
        _check_colours(each)
    scale, doubt = _scale(next(part for part in parts if part.path == path))
    images = [_image(0, levels, scale), *(_image(index, [each], None) for index, each in enumerate(others, start=1))]
    files = tuple(sorted(part.path for part in parts))
    return Slide(path, files, FORMAT, source, tuple(images), warnings=(doubt,) if doubt else ())


def _check_colours(found: Instance) -> None:
    """Raises _Odd for frames of whose colours a decoder may think otherwise than the header."""
    if found.transfer == NATIVE:
        return
    frames = _located(found)
    photometric = jpegs.RGB if found.photometric == "RGB" else jpegs.YCBCR
    with Input(found.path) as source:
        for number in range(0, found.frames, max(1, found.frames // SAMPLED_FRAMES)):
            (offset, length), *_ = frames.spans(number)
            head = source.upto(offset, min(length, HEAD_BYTES))
            if found.transfer != JPEG_BASELINE:
                fault = jpegs.codestream_fault(head, found.tile_px[0]) or found.tile_px[0] != found.tile_px[1]
                kind: jpegs.Kind | str = "it is no picture of its size" if fault else jpegs.Kind(jpegs.RGB, None)
            else:
                kind = _kind(head, found.tile_px, photometric)
            if isinstance(kind, str):
                raise _Odd(f"in a frame {kind}")


def _kind(head: bytes, tile_px: tuple[int, int], photometric: int) -> jpegs.Kind | str:
    try:
        found = jpegs.header(head)
    except ValueError as error:
        return str(error)
    if found.frame != jpegs.BASELINE or found.bits != 8 or len(found.ids) != 3 or found.scan != 3:
        return "it is no baseline JPEG of three components"
    if (found.width_px, found.height_px) != tile_px:
        return "it is no picture of its size"
    return jpegs.kind(found, photometric, markers_win=False)


def _spacing(part: _Part) -> list[str]:
    """The size of a pixel in mm, down and across, as it is written; empty where it is not stated. Raises _Odd."""
    shared = part.data.get("SharedFunctionalGroupsSequence") or ()
    measures = [each for group in shared for each in group.get("PixelMeasuresSequence") or ()]
    stated = [value.original_string for each in measures for value in each.get("PixelSpacing") or ()]
    if len(shared) > 1 or len(measures) > 1 or len(stated) not in (0, 2) or not all(map(SIZE_MM.fullmatch, stated)):
        raise _Odd("it states no usual pixel spacing")
    return stated


def _scale(part: _Part) -> tuple[Scale | None, str | None]:
    """The pixel size of the scan, and a doubt about it. Raises _Odd where it is not stated plainly."""
    stated = _spacing(part)
    um = [ome.micrometres(float(each), "mm") for each in reversed(stated)]
    if len(um) != 2 or not um[0] or not um[1]:
        raise _Odd("it states no usual pixel spacing")
    return ome.judged((um[0], um[1]), (repr(float(stated[1])), "mm"), 0)


def _image(index: int, instances: Sequence[Instance], scale: Scale | None) -> Image:
    return Image(
        index=index,
        role=ome.role_of(instances[0].flavour),
        name=instances[0].flavour,
        levels=tuple(Level(*each.size_px, *each.tile_px) for each in instances),
        channels=3,
        rgb=True,
        pixel_type="uint8",
        bits=8,
        scale=scale,
    )
