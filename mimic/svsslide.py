"""What a plain Aperio SVS says of itself, told without Java and word for word as Bio-Formats 7.3.1 tells it.

Plain means: one scan in one file, directories in the order of the scanners' own (svs-spec.md), every one with the
description that says what it is, facts stated once and in the usual form, tiles whose colours all readers see alike.
Of any other file Bio-Formats is asked: facts that depend on which reader was there would be worse than its start.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np

from mimic import jpegs, structure
from mimic.model import Image, Level, Objective, Role, Scale, Slide
from mimic.structure.reader import Input
from mimic.structure.tiff import Directory, Walk

FORMAT = "Aperio SVS"
SUFFIX = ".svs"
PREFIX, ANY_PREFIX = "Aperio ", "Aperio Image"
"""What a description begins with, and by what Bio-Formats knows a file of another name."""
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION, ORIENTATION, SAMPLES = (
    256,
    257,
    258,
    259,
    262,
    270,
    274,
    277,
)
ROWS, PLANAR, TILE_WIDTH, TILE_HEIGHT, SAMPLE_FORMAT, TABLES = 278, 284, 322, 323, 339, 347
SUBFILE, SUBIFDS, OFFSETS, COUNTS, DEPTH, EXTRA = 254, 330, 324, 325, 32997, 338
ORDER = re.compile(r"t(?P<levels>(?:st*)?)s{0,2}")
"""Level 0, the thumbnail, lower levels, label and macro: t is for tiled, s for stripped."""
LABEL, MACRO = 1, 9
"""NewSubfileType of the scanners' label and macro, by which OpenSlide knows them."""
RGB = 3
UNCODED, LZW = 1, 5
MAX_TILE_PX, MAX_PICTURE_PX = 4096, 8192
"""OpenSlide allocates what a damaged size says, and if it cannot, it aborts the process."""
TEXT_BYTES = 1 << 20
HEAD_BYTES = 1 << 16
SAMPLED_TILES = 24
SAMPLINGS = frozenset(((1, 1), (2, 1), (2, 2)))
"""Of chroma: with others decoders differ in how they make it larger."""
MPP = re.compile(r"[0-9]{1,2}\.[0-9]{1,12}")
MPP_RANGE_UM = (0.05, 10.0)
"""Others are told with a doubt, which is Bio-Formats' way and ``ome``'s."""
POWER = re.compile(r"[0-9]{1,3}(?:\.0{1,6})?")
DAY = re.compile(r"(?:0[1-9]|1[0-2])/(?:0[1-9]|[12][0-9]|3[01])/(?:20[0-9]{2}|[01][0-9]|2[0-5])")
CLOCK = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]")
STRANGE_KEYS = frozenset(("OffsetZ", "TotalDepth", "DisplayColor"))
"""Focus planes and colours: Bio-Formats' matter."""
REPEATED_KEYS = ("AppMag", "MPP", "Date", "Time")


class _Odd(Exception):
    """The file is not plain: its message says why, without a text of the file, which may name people."""


@dataclass(frozen=True, slots=True)
class _Page:
    """One directory, its description's pairs, and the pieces of it that are no pairs."""

    directory: Directory
    name: str
    size_px: tuple[int, int]
    tile_px: tuple[int, int] | None
    rows_px: int
    compression: int
    photometric: int
    subfile: int
    text: str
    pairs: dict[str, str]
    words: tuple[str, ...]


def told(path: Path, *, source: str) -> Slide | str:
    """The slide, or why Bio-Formats must be asked. Raises BadInput for damage of the directories."""
    facts = structure.check(path)
    if facts.container != "tiff":
        return "it is no TIFF"
    try:
        with Input(path) as file:
            walk = Walk(file)
            pages = [_page(walk, each) for each in walk.directories()]
            if path.suffix.lower() != SUFFIX and (len(pages) == 1 or not pages[0].text.startswith(ANY_PREFIX)):
                return "it is not named as a slide"
            levels, pictures = _sorted(pages)
            for each in pages:
                _check_pixels(walk, each)
        return _slide(path, levels, pictures, pages, source=source, missing=facts.missing_tiles)
    except _Odd as odd:
        return str(odd)


def _page(walk: Walk, directory: Directory) -> _Page:
    entries = directory.entries
    entry = entries.get(DESCRIPTION)
    if SUBIFDS in entries or directory.name.startswith("SubIFD"):
        raise _Odd("it has SubIFDs")
    subfile = walk.number(directory, SUBFILE, -1)
    if entry is None and subfile not in (LABEL, MACRO):
        raise _Odd(f"{directory.name} has no description")
    text = walk.text(directory, DESCRIPTION, most_bytes=TEXT_BYTES)
    if entry is not None and (not text.startswith(PREFIX) or entry.count > TEXT_BYTES):
        raise _Odd(f"the description of {directory.name} is not Aperio's")
    pairs: dict[str, str] = {}
    words: list[str] = []
    for piece in (piece for line in text.split("\n") for piece in line.split("|")):
        key, sign, value = piece.partition("=")
        if sign and pairs.setdefault(key.strip(), value.strip()) != value.strip() and key.strip() in REPEATED_KEYS:
            raise _Odd(f"{directory.name} states two of {key.strip()}")
        words += [] if sign else [piece.strip()]
    tiled = {TILE_WIDTH, TILE_HEIGHT, OFFSETS, COUNTS} <= entries.keys()
    return _Page(
        directory=directory,
        name=directory.name,
        size_px=(walk.number(directory, WIDTH), walk.number(directory, HEIGHT)),
        tile_px=(walk.number(directory, TILE_WIDTH), walk.number(directory, TILE_HEIGHT)) if tiled else None,
        rows_px=min(walk.number(directory, ROWS, 1 << 31), walk.number(directory, HEIGHT)),
        compression=walk.number(directory, COMPRESSION, 1),
        photometric=walk.number(directory, PHOTOMETRIC, -1),
        subfile=subfile,
        text=text,
        pairs=pairs,
        words=tuple(words),
    )


def _sorted(pages: Sequence[_Page]) -> tuple[list[_Page], list[_Page]]:
    """Levels, and label and macro: one of each at most, behind the levels. Raises _Odd for any other order."""
    kinds = "".join("s" if page.tile_px is None else "t" for page in pages)
    order = ORDER.fullmatch(kinds)
    if order is None:
        raise _Odd(f"its directories are tiled and stripped in the order {kinds[:20]}")
    levels, pictures = [pages[0], *pages[2 : order.end("levels")]], list(pages[order.end("levels") :])
    if [page.subfile for page in pictures] not in ([], [LABEL], [MACRO], [LABEL, MACRO]):
        raise _Odd("its label and macro are not marked as those of scanners")
    for page in pages[: len(pages) - len(pictures)]:
        named = any(word in each.lower() for each in page.words for word in ("label", "macro"))
        # unmarked, one of several is the label to Bio-Formats
        if page.subfile > 0 or (page.subfile < 0 and len(pages) > 1) or named:
            raise _Odd(f"{page.name} is marked as another picture")
    for page in pictures:
        role = "label" if page.subfile == LABEL else "macro"
        other = "macro" if page.subfile == LABEL else "label"
        if not page.text and pictures[0].subfile == LABEL:
            continue  # as a GT450 leaves it; a macro alone Bio-Formats takes for the label
        said = [each.lower() for each in page.words]
        if not any(each.startswith(role) for each in said) or any(other in each for each in said):
            raise _Odd(f"the description of {page.name} does not say that it is the {role}")
    sizes = [page.size_px for page in levels]
    if any(low[0] >= high[0] or low[1] >= high[1] for high, low in pairwise(sizes)):
        raise _Odd("its levels do not become smaller")
    if len(pages) > 1 and pages[1].size_px[1] >= sizes[-1][1]:
        raise _Odd("its thumbnail is higher than its smallest level")
    return levels, pictures


def _check_pixels(walk: Walk, page: _Page) -> None:
    """Raises _Odd for pixels that readers may see differently."""
    directory = page.directory
    depths = walk.numbers(directory.entries[BITS]).tolist() if BITS in directory.entries else []
    plain = walk.number(directory, PLANAR, 1) == 1 and walk.number(directory, SAMPLE_FORMAT, 1) == 1
    plain = plain and walk.number(directory, ORIENTATION, 1) == 1 and walk.number(directory, DEPTH, 1) == 1
    if not plain or walk.number(directory, SAMPLES) != RGB or depths != [8] * RGB or EXTRA in directory.entries:
        raise _Odd(f"{page.name} is not 8-bit RGB")
    across, down = page.tile_px or page.size_px
    if not 0 < max(across, down) <= (MAX_TILE_PX if page.tile_px else MAX_PICTURE_PX) or (
        page.tile_px is not None and (across % 16 or down % 16)
    ):
        raise _Odd(f"{page.name} is of {across} x {down} px at a time")
    if page.compression in (UNCODED, LZW) and page.photometric == jpegs.RGB and page.tile_px is None:
        return
    if page.compression in (jpegs.J2K_YCC, jpegs.J2K_RGB) and page.tile_px is not None:
        for head in _heads(walk, page):
            if jpegs.codestream_fault(head, across) or across != down:
                raise _Odd(f"{page.name} holds no JPEG 2000 tiles of 8-bit colour")
        return
    if page.compression != jpegs.JPEG:
        raise _Odd(f"{page.name} is of compression {page.compression}")
    tables = directory.entries.get(TABLES)
    shared = walk.source.at(tables.offset, tables.count, "JPEG tables") if tables else None
    for head in _heads(walk, page):
        _check_jpeg(page, head, shared)


def _check_jpeg(page: _Page, head: bytes, tables: bytes | None) -> None:
    """Raises _Odd for a stream of whose colours a decoder may think otherwise than the directory."""
    try:
        found = jpegs.header(head, tables)
    except ValueError as error:
        raise _Odd(f"a tile of {page.name} is damaged: {error}") from error
    if found.frame != jpegs.BASELINE or found.bits != 8 or len(found.ids) != RGB or found.scan != RGB:
        raise _Odd(f"{page.name} is no baseline JPEG of three components")
    if page.tile_px is not None and (found.width_px, found.height_px) != page.tile_px:
        raise _Odd(f"{page.name} has tiles of another size than it says")
    full = len(set(found.sampling)) == 1
    if full and page.photometric == jpegs.YCBCR and found.adobe in (None, 1) and found.ids != jpegs.IDS_RGB:
        return  # Bio-Formats takes these for YCbCr twice, and shows wrong colours
    kind = jpegs.kind(found, page.photometric, markers_win=False)
    if isinstance(kind, str):
        raise _Odd(f"in {page.name} {kind}")
    if found.sampling[0] not in SAMPLINGS or set(found.sampling[1:]) != {(1, 1)}:
        raise _Odd(f"{page.name} has chroma sampled in an unusual way")


def _heads(walk: Walk, page: _Page) -> list[bytes]:
    """The first bytes of some tiles or strips from all over the picture, of those that are there."""
    tags = (OFFSETS, COUNTS) if page.tile_px is not None else (273, 279)
    entries = page.directory.entries
    if not set(tags) <= entries.keys():
        raise _Odd(f"{page.name} does not tell where its data are")
    offsets, counts = (walk.numbers(entries[tag]) for tag in tags)
    there = np.flatnonzero((offsets[: len(counts)] > 0) & (counts[: len(offsets)] > 0))
    if not there.size:
        raise _Odd(f"{page.name} is empty")
    some = there[:: max(1, len(there) // SAMPLED_TILES)].tolist()
    return [walk.source.upto(int(offsets[index]), min(int(counts[index]), HEAD_BYTES)) for index in some]


def _slide(
    path: Path, levels: Sequence[_Page], pictures: Sequence[_Page], pages: Sequence[_Page], *, source: str, missing: int
) -> Slide:
    stated = levels[0].pairs
    for page in pages:
        if strange := STRANGE_KEYS & page.pairs.keys():
            raise _Odd(f"{page.name} states {', '.join(sorted(strange))}")
        if any(page.pairs.get(key, stated.get(key)) != stated.get(key) for key in REPEATED_KEYS):
            raise _Odd(f"{page.name} contradicts the first directory")
    acquired = _acquired(stated)
    scan = _image(0, "scan", levels, scale=_scale(stated), objective=_objective(stated), acquired=acquired)
    roles: list[Role] = ["label" if page.subfile == LABEL else "macro" for page in pictures]
    others = [
        _image(index, role, [page], acquired=acquired)
        for index, (role, page) in enumerate(zip(roles, pictures, strict=True), start=1)
    ]
    return Slide(path, (path,), FORMAT, source, (scan, *others), missing_tiles=missing)


def _image(
    index: int,
    role: Role,
    pages: Sequence[_Page],
    *,
    scale: Scale | None = None,
    objective: Objective | None = None,
    acquired: datetime | None,
) -> Image:
    levels = tuple(Level(*page.size_px, *(page.tile_px or (page.size_px[0], page.rows_px))) for page in pages)
    return Image(
        index=index,
        role=role,
        name="" if role == "scan" else f"{role} image",
        levels=levels,
        channels=RGB,
        rgb=True,
        pixel_type="uint8",
        bits=8,
        scale=scale,
        objective=objective,
        acquired=acquired,
    )


def _scale(stated: dict[str, str]) -> Scale:
    text = stated.get("MPP", "")
    if not MPP.fullmatch(text) or not MPP_RANGE_UM[0] <= float(text) <= MPP_RANGE_UM[1] or float(text) == 1:
        raise _Odd("it states no usual MPP")
    return Scale(float(text), float(text), "file", f"PhysicalSizeX = {float(text)!r} um")


def _objective(stated: dict[str, str]) -> Objective:
    text = stated.get("AppMag", "")
    if not POWER.fullmatch(text) or not float(text):
        raise _Odd("it states no usual AppMag")
    return Objective(float(text), "file", "NominalMagnification")


def _acquired(stated: dict[str, str]) -> datetime | None:
    """Date and time, without a zone, as Bio-Formats gives them; two digits of a year are of this century."""
    day, clock = stated.get("Date"), stated.get("Time")
    if day is None and clock is None:
        return None
    if not DAY.fullmatch(day or "") or not CLOCK.fullmatch(clock or ""):
        raise _Odd("it states an unusual date")
    try:
        year = "%Y" if len(day or "") == 10 else "%y"
        return datetime.strptime(f"{day} {clock}", f"%m/%d/{year} %H:%M:%S")
    except ValueError as error:
        raise _Odd("it states an unusual date") from error
