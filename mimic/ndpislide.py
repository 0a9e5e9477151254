"""What a plain Hamamatsu NDPI says of itself, told without Java and word for word as Bio-Formats 7.3.1 tells it.

Plain means: below 4 GiB, one focal plane of 8-bit colour, levels that become smaller, then the macro and perhaps its
mask; JPEG strips cut into runs of equal size, which OpenSlide and Bio-Formats decode alike. Tags: tifffile's
documentation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from mimic import jpegs, structure
from mimic.model import Channel, Image, Level, Objective, Scale, Slide
from mimic.structure.reader import Input
from mimic.structure.tiff import Directory, Walk

FORMAT = "Hamamatsu NDPI"
SUFFIX = ".ndpi"
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, SAMPLES, ROWS, COUNTS = (
    256,
    257,
    258,
    259,
    262,
    273,
    277,
    278,
    279,
)
X_RESOLUTION, Y_RESOLUTION, UNIT, DATE_TIME = 282, 283, 296, 306
FLAG, LENS, FOCUS, STARTS, PROPERTIES = 65420, 65421, 65424, 65426, 65449
MACRO, MASK = -1.0, -2.0
"""The lens with which the picture of the whole glass was taken, and that of a mask over it."""
CENTIMETRE, UM_PER_CM = 3, 10_000.0
UNCODED = 1
RGB = 3
TILE_PX = 1024
"""What Bio-Formats says of every NDPI."""
JPEG_MAX_PX = 65_500
"""A larger side is 0 in the JPEG's own header, as libjpeg cannot say it."""
MAX_SIDE_PX, MAX_PICTURE_PX = 1 << 20, 8192
SAMPLINGS = frozenset(((1, 1), (2, 1)))
"""Of chroma: 4:2:0 OpenSlide 4.0.1 does not read everywhere."""
WHOLE_PX = 2048
"""Up to this side Bio-Formats 7.3.1 decodes the whole strip, and else run by run, as OpenSlide always does."""
DRI = 0xDD
HEAD_BYTES = 1 << 16
PROPERTIES_BYTES = 1 << 20
LENSES = (1.0, 100.0)
SCALE_RANGE_UM = (0.05, 10.0)
MOMENT = re.compile(r"20[0-9]{2}:[0-1][0-9]:[0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9]")
PRODUCT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,60}")


class _Odd(Exception):
    """The file is not plain: its message says why, without a text of the file, which may name people."""


@dataclass(frozen=True, slots=True)
class _Page:
    """One directory: its picture's size, the lens it was taken with, and when."""

    directory: Directory
    name: str
    size_px: tuple[int, int]
    lens: float
    acquired: datetime | None


def told(path: Path, *, source: str) -> Slide | str:
    """The slide, or why Bio-Formats must be asked. Raises BadInput for damage of the directories."""
    if path.suffix.lower() != SUFFIX:
        return "it is not named as an NDPI"
    facts = structure.check(path)
    if facts.container != "tiff":
        return "it is no TIFF"
    try:
        with Input(path) as file:
            walk = Walk(file)
            if walk.big or walk.wide or walk.order != "<":
                raise _Odd("its directories are of another kind")
            pages = [_page(walk, each) for each in walk.directories()]
            scan = _levels(pages)
            for page in scan:
                _check_level(walk, page, first=page is scan[0])
            for page in pages[len(scan) :]:
                _check_picture(walk, page)
            images = (_scan(walk, scan), *_pictures(pages[len(scan) :]))
            scanner = _scanner(walk, pages[0].directory)
        return Slide(path, (path,), FORMAT, source, images, scanner, missing_tiles=facts.missing_tiles)
    except _Odd as odd:
        return str(odd)


def _page(walk: Walk, directory: Directory) -> _Page:
    entries = directory.entries
    lens = entries.get(LENS)
    if FLAG not in entries or directory.name.startswith("SubIFD") or lens is None or (lens.type, lens.count) != (11, 1):
        raise _Odd(f"{directory.name} does not tell the lens that it was taken with")
    if {OFFSETS, COUNTS} - entries.keys() or entries[OFFSETS].count != 1 or entries[COUNTS].count != 1:
        raise _Odd(f"{directory.name} is not one strip")
    size = walk.number(directory, WIDTH), walk.number(directory, HEIGHT)
    if walk.number(directory, ROWS) != size[1]:
        raise _Odd(f"{directory.name} is not one strip")
    return _Page(
        directory=directory,
        name=directory.name,
        size_px=size,
        lens=float(walk.source.unpack("<f", lens.offset, "a lens")[0]),
        acquired=_acquired(walk, directory),
    )


def _acquired(walk: Walk, directory: Directory) -> datetime | None:
    text = walk.text(directory, DATE_TIME)
    if not text:
        return None
    try:
        return datetime.strptime(text if MOMENT.fullmatch(text) else "", "%Y:%m:%d %H:%M:%S")
    except ValueError as error:
        raise _Odd(f"{directory.name} states an unusual date") from error


def _levels(pages: Sequence[_Page]) -> list[_Page]:
    """The levels, which come first. Raises _Odd for another order than levels, macro, mask."""
    count = next((number for number, page in enumerate(pages) if page.lens in (MACRO, MASK)), len(pages))
    levels, others = list(pages[:count]), [page.lens for page in pages[count:]]
    if not levels or others not in ([], [MACRO], [MACRO, MASK]):
        raise _Odd(f"its pictures were taken with the lenses {[page.lens for page in pages]}")
    if not all(LENSES[0] / 64 <= page.lens <= LENSES[1] for page in levels):
        raise _Odd(f"its levels were taken with the lenses {[page.lens for page in levels]}")
    sides = [page.size_px for page in levels]
    if any(low[0] >= high[0] or low[1] >= high[1] for high, low in pairwise(sides)):
        raise _Odd("its levels do not become smaller, as of several focal planes")
    return levels


def _check_level(walk: Walk, page: _Page, *, first: bool) -> None:
    """Raises _Odd unless a level is of one focal plane and cut into runs that fill it."""
    entries = page.directory.entries
    focus = entries.get(FOCUS)
    if focus is None or focus.type != 9 or walk.source.unpack("<i", focus.offset, "a focal plane")[0]:
        raise _Odd(f"{page.name} is of another focal plane")
    found, runs = _jpeg(walk, page)
    if STARTS not in entries or not runs:
        raise _Odd(f"{page.name} is not cut into runs")
    width, height = page.size_px
    across, down = 8 * found.sampling[0][0], 8 * found.sampling[0][1]
    if first and across > 8 and min(page.size_px) <= WHOLE_PX:
        raise _Odd("its chroma is sampled, and Bio-Formats decodes so small a picture in one go, across its runs")
    if width % (across * runs) or height % down or max(page.size_px) > MAX_SIDE_PX:
        raise _Odd(f"the runs of {page.name} do not fill it")
    if any(own != (0 if side > JPEG_MAX_PX else side) for own, side in zip(_size(found), page.size_px, strict=True)):
        raise _Odd(f"the JPEG of {page.name} is of another size than it says")
    if entries[STARTS].count != width // (across * runs) * (height // down):
        raise _Odd(f"{page.name} tells of {entries[STARTS].count} runs")


def _check_picture(walk: Walk, page: _Page) -> None:
    """Raises _Odd for a macro that readers may see differently, or a mask of another kind than usual."""
    if max(page.size_px) > MAX_PICTURE_PX or not min(page.size_px):
        raise _Odd(f"{page.name} is of {page.size_px} px")
    if page.lens == MACRO:
        found, _ = _jpeg(walk, page)
        if _size(found) != page.size_px:
            raise _Odd(f"the JPEG of {page.name} is of another size than it says")
    elif (walk.number(page.directory, COMPRESSION, 1), walk.number(page.directory, SAMPLES, 1)) != (UNCODED, 1) or (
        walk.number(page.directory, BITS, 1) != 8 or walk.number(page.directory, PHOTOMETRIC, -1) != 1
    ):
        raise _Odd(f"{page.name} is no mask of grey levels")


def _jpeg(walk: Walk, page: _Page) -> tuple[jpegs.Header, int]:
    """The header of a strip, and how many blocks (MCUs) a run of it has; 0 where it is not cut."""
    directory = page.directory
    depths = walk.numbers(directory.entries[BITS]).tolist() if BITS in directory.entries else []
    if (
        walk.number(directory, COMPRESSION) != jpegs.JPEG
        or walk.number(directory, SAMPLES) != RGB
        or depths != [8] * RGB
    ):
        raise _Odd(f"{page.name} is not 8-bit colour in JPEG")
    start, count = walk.number(directory, OFFSETS), walk.number(directory, COUNTS)
    data = walk.source.upto(start, min(count, HEAD_BYTES))
    runs = 0
    try:
        for marker, first, end in jpegs.segments(data):
            if marker == DRI:
                runs = int.from_bytes(data[first + 4 : end], "big")
        found = jpegs.header(data)
    except ValueError as error:
        raise _Odd(f"{page.name} is damaged: {error}") from error
    plain = found.frame == jpegs.BASELINE and found.bits == 8 and len(found.ids) == RGB and found.scan == RGB
    plain = plain and walk.number(directory, PHOTOMETRIC, -1) == jpegs.YCBCR
    if not plain or found.adobe not in (None, 1) or found.ids == jpegs.IDS_RGB:
        raise _Odd(f"{page.name} is no baseline JPEG of YCbCr")
    if found.sampling[0] not in SAMPLINGS or set(found.sampling[1:]) != {(1, 1)}:
        raise _Odd(f"{page.name} has chroma sampled in an unusual way")
    return found, runs


def _size(found: jpegs.Header) -> tuple[int, int]:
    return found.width_px, found.height_px


def _scan(walk: Walk, pages: Sequence[_Page]) -> Image:
    power = pages[0].lens
    if not LENSES[0] <= power <= LENSES[1] or power != round(power):
        raise _Odd(f"it was taken with the lens {power}")
    return _image(
        0,
        [page.size_px for page in pages],
        scale=_scale(walk, pages[0].directory),
        objective=Objective(power, "file", "NominalMagnification"),
        acquired=pages[0].acquired,
    )


def _pictures(pages: Sequence[_Page]) -> list[Image]:
    """The macro, and a mask, which no output uses."""
    return [_image(number, [page.size_px], acquired=page.acquired) for number, page in enumerate(pages, start=1)]


def _image(
    index: int,
    sizes_px: Sequence[tuple[int, int]],
    *,
    acquired: datetime | None,
    scale: Scale | None = None,
    objective: Objective | None = None,
) -> Image:
    mask = index == 2
    return Image(
        index=index,
        role="thumbnail" if mask else "macro" if index else "scan",
        name="macro mask image" if mask else "macro image" if index else "",
        levels=tuple(Level(*size, TILE_PX, TILE_PX) for size in sizes_px),
        channels=1 if mask else RGB,
        rgb=not mask,
        pixel_type="uint8",
        bits=8,
        scale=scale,
        objective=objective,
        acquired=acquired,
        channel_facts=(Channel(0),) if mask else (),
    )


def _scale(walk: Walk, directory: Directory) -> Scale:
    per_cm = walk.ratio(directory, X_RESOLUTION), walk.ratio(directory, Y_RESOLUTION)
    if walk.number(directory, UNIT) != CENTIMETRE or per_cm[0] is None or per_cm[1] is None:
        raise _Odd("it states no pixel size")
    x_um, y_um = 1 / per_cm[0] * UM_PER_CM, 1 / per_cm[1] * UM_PER_CM  # in this order, so that the last digit agrees
    if not all(SCALE_RANGE_UM[0] <= size_um <= SCALE_RANGE_UM[1] and size_um != 1 for size_um in (x_um, y_um)):
        raise _Odd(f"it states pixels of {x_um} x {y_um} um")
    return Scale(x_um, y_um, "file", f"PhysicalSizeX = {x_um!r} um")


def _scanner(walk: Walk, directory: Directory) -> str | None:
    """The product that its properties name."""
    entry = directory.entries.get(PROPERTIES)
    if entry is None:
        return None
    if entry.count > PROPERTIES_BYTES:
        raise _Odd("its properties are very long")
    found = None
    for line in walk.text(directory, PROPERTIES, most_bytes=PROPERTIES_BYTES).split("\n"):
        key, sign, value = line.partition("=")
        if sign and key.strip() == "Product":
            found = value.strip()
    if found is not None and not PRODUCT.fullmatch(found):
        raise _Odd("it calls its scanner by an unusual name")
    return found
