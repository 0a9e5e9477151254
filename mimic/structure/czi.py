"""A CZI's segments and subblock directory, against its own XML.

Layout: ZEISS, "ZISRAW (CZI) file format". Every subblock's header is read, its pixels are not.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace

import numpy as np
from lxml import etree
from numpy.typing import NDArray

from mimic.errors import BadInput
from mimic.structure import cziobjective
from mimic.structure.coverage import covered_px, distinct
from mimic.structure.czidisplay import display
from mimic.structure.facts import CziFacts, CziScene, Facts
from mimic.structure.reader import Input

HEADER_BYTES = 32
"""Of every segment: id, allocated size, used size."""
MAX_XML_BYTES = 256 << 20
PIXEL_BYTES = {0: 1, 1: 2, 2: 4, 3: 3, 4: 6, 8: 12, 9: 4, 10: 8, 11: 16, 12: 4, 13: 8}
UNCOMPRESSED = 0
TOLERANCE = 0.1
"""Part by which the XML's size may differ from the directory's: real files differ by pixels, lost rows by tiles."""
FINISH = "Let the acquisition finish, or open the file in ZEN and save it again"


@dataclass(frozen=True, slots=True)
class Subblock:
    """One entry of the directory. ``plane`` holds every dimension that is neither place, scene nor mosaic number;
    ``stored_*_px`` are smaller than ``*_px`` in a pyramid's subblock."""

    pixel_type: int
    position: int
    part: int
    compression: int
    x_px: int
    y_px: int
    width_px: int
    height_px: int
    stored_width_px: int
    stored_height_px: int
    scene: int
    plane: tuple[tuple[bytes, int], ...]

    @property
    def full(self) -> bool:
        return (self.stored_width_px, self.stored_height_px) == (self.width_px, self.height_px)


def check(source: Input) -> Facts:
    """Raises BadInput unless every segment that a CZI's directories name lies inside the file and is what they say."""
    _, used = _segment(source, 0, b"ZISRAWFILE", "the file header")
    if used < 80:
        raise source.damaged(f"the file header uses {used} bytes of the 80 it takes")
    part, directory_at, metadata_at, pending, attachments_at = source.unpack("<iqqiq", 32 + 48, "the file header")
    if pending:
        raise _unfinished(source, "is marked as being written")
    if not directory_at:
        raise _unfinished(source, "has no subblock directory yet")
    if part:
        raise source.damaged(f"it is part {part} of a CZI that was split, and cannot be read without the first part")
    subblocks = _directory(source, directory_at)
    empty = [subblock for index, subblock in enumerate(subblocks) if _check_subblock(source, index, subblock)]
    xml = _metadata(source, metadata_at) if metadata_at else None
    if attachments_at:
        _check_attachments(source, attachments_at)
    facts = replace(_facts(source, subblocks, xml), empty=_rows([subblock for subblock in empty if subblock.full]))
    _compare(source, facts)
    return Facts("czi", source.size, missing_tiles=len(empty), czi=facts)


def _unfinished(source: Input, what: str) -> BadInput:
    return BadInput(f"the file {what}", source.path, FINISH)


def _segment(source: Input, position: int, name: bytes, what: str) -> tuple[int, int]:
    """Position of a segment's data and its used bytes, after its id was seen and its end found inside the file."""
    found, allocated, used = source.unpack("<16sqq", position, what)
    if found.rstrip(b"\0") != name:
        raise source.damaged(f"{what} at byte {position} does not begin with {name.decode()}")
    used = used or allocated  # older writers leave it at zero
    source.require(position + HEADER_BYTES, used, what)
    return position + HEADER_BYTES, used


def _directory(source: Input, position: int) -> list[Subblock]:
    data, used = _segment(source, position, b"ZISRAWDIRECTORY", "the subblock directory")
    raw = source.at(data, used, "the subblock directory")
    count = struct.unpack_from("<i", raw)[0] if used >= 128 else -1
    if count <= 0:
        raise source.damaged("the subblock directory is empty")
    subblocks, at = [], 128
    for index in range(count):
        try:
            subblock, at = _entry(raw, at)
        except (struct.error, ValueError, KeyError) as error:
            raise source.damaged(f"entry {index} of {count} of the subblock directory is not readable") from error
        subblocks.append(subblock)
    return subblocks


def _entry(raw: bytes, at: int) -> tuple[Subblock, int]:
    """The entry at ``at`` and the position behind it. Raises struct.error, ValueError or KeyError when damaged."""
    schema, pixel_type, position, part, compression, dimensions = struct.unpack_from("<2siqii6xi", raw, at)
    if schema != b"DV" or not 0 < dimensions <= 64:
        raise ValueError(schema)
    start: dict[bytes, int] = {}
    size: dict[bytes, tuple[int, int]] = {}
    for index in range(dimensions):
        name, first, length, _, stored = struct.unpack_from("<4siifi", raw, at + 32 + 20 * index)
        name = name.rstrip(b"\0")
        start[name], size[name] = first, (length, stored or length)
    (width, stored_width), (height, stored_height) = size[b"X"], size[b"Y"]
    if min(width, stored_width, height, stored_height) <= 0:
        raise ValueError("a subblock of no size")
    plane = tuple(sorted((name, first) for name, first in start.items() if name not in (b"X", b"Y", b"S", b"M")))
    subblock = Subblock(
        pixel_type, position, part, compression, start[b"X"], start[b"Y"], width, height,
        stored_width, stored_height, start.get(b"S", -1), plane,
    )  # fmt: skip
    return subblock, at + 32 + 20 * dimensions


def _check_subblock(source: Input, index: int, subblock: Subblock) -> int:
    """1 for a subblock that is there without data, else 0."""
    what = f"subblock {index}"
    if subblock.part:
        raise source.damaged(f"{what} lies in part {subblock.part} of a CZI that was split")
    data, used = _segment(source, subblock.position, b"ZISRAWSUBBLOCK", what)
    _, pixels = _pixels(source, data, used, what)
    if pixels and subblock.compression == UNCOMPRESSED and subblock.pixel_type in PIXEL_BYTES:
        expected = subblock.stored_width_px * subblock.stored_height_px * PIXEL_BYTES[subblock.pixel_type]
        if pixels < expected:
            raise source.damaged(f"{what} has {pixels} bytes of pixels where its size takes {expected}")
    return int(not pixels)


def _pixels(source: Input, data: int, used: int, what: str) -> tuple[int, int]:
    """Position and length of the pixels of a subblock whose segment has ``used`` bytes at ``data``."""
    metadata, attachment, pixels = source.unpack("<iiq", data, what)
    # an entry of the directory is repeated in its subblock, whose head is 256 bytes or what that entry takes
    head = max(256, 16 + 32 + 20 * source.unpack("<i", data + 16 + 28, what)[0])
    if min(metadata, attachment, pixels) < 0 or head + metadata + pixels + attachment > used:
        raise source.damaged(f"{what} claims {pixels} bytes of pixels in a segment of {used}")
    return data + head + metadata, pixels


def subblocks(source: Input) -> list[Subblock]:
    """Every subblock of a file that ``check`` found whole, those of its pyramid too, in the directory's order."""
    _segment(source, 0, b"ZISRAWFILE", "the file header")
    return _directory(source, source.unpack("<q", 32 + 52, "the file header")[0])


def payload(source: Input, subblock: Subblock) -> bytes:
    """The pixels of a subblock as the file holds them. Raises BadInput where the file is not what it was."""
    what = f"the subblock at x={subblock.x_px}, y={subblock.y_px}"
    return source.at(*_pixels(source, *_segment(source, subblock.position, b"ZISRAWSUBBLOCK", what), what), what)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that is attached: what it is called ("Label"), of which kind it is ("CZI"), and where its bytes are."""

    name: str
    kind: str
    offset: int
    size: int


def attachments(source: Input) -> list[Attachment]:
    """Every attachment of a file that ``check`` found whole, in the order in which they lie in it."""
    (position,) = source.unpack("<q", 32 + 72, "the file header")
    if not position:
        return []
    data, used = _segment(source, position, b"ZISRAWATTDIR", "the attachment directory")
    raw = source.at(data, used, "the attachment directory")
    found = []
    for index in range(struct.unpack_from("<i", raw)[0]):
        at, kind, name = struct.unpack_from("<12xq20x8s80s", raw, 256 + 128 * index)
        inside, _ = _segment(source, at, b"ZISRAWATTACH", "an attachment")
        size = source.unpack("<i", inside, "an attachment")[0]
        found.append(Attachment(_text(name), _text(kind), inside + 256, size))
    return sorted(found, key=lambda each: each.offset)


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("utf-8", "replace").strip()


def metadata(source: Input) -> etree._Element | None:
    """The XML of a file that ``check`` found whole; None when it has none."""
    (position,) = source.unpack("<q", 32 + 60, "the file header")
    return _xml_root(source, _metadata(source, position)) if position else None


def notes(source: Input, subblock: Subblock) -> bytes:
    """A subblock's own XML."""
    data, _ = _segment(source, subblock.position, b"ZISRAWSUBBLOCK", "a subblock")
    offset, _ = _pixels(source, data, 1 << 62, "a subblock")
    size = source.unpack("<i", data, "a subblock")[0]
    return source.at(offset - size, size, "a subblock")


def _metadata(source: Input, position: int) -> bytes:
    data, used = _segment(source, position, b"ZISRAWMETADATA", "the metadata")
    length, _ = source.unpack("<ii", data, "the metadata")
    if not 0 <= length <= min(used - 256, MAX_XML_BYTES):
        raise source.damaged(f"its XML of {length} bytes does not fit into a segment of {used}")
    return source.at(data + 256, length, "the metadata").rstrip(b"\0 \t\r\n")


def _check_attachments(source: Input, position: int) -> None:
    data, used = _segment(source, position, b"ZISRAWATTDIR", "the attachment directory")
    raw = source.at(data, used, "the attachment directory")
    count = struct.unpack_from("<i", raw)[0] if used >= 256 else -1
    if not 0 <= count <= (used - 256) // 128:
        raise source.damaged(f"the attachment directory of {used} bytes claims {count} entries")
    for index in range(count):
        schema, at = struct.unpack_from("<2s10xq", raw, 256 + 128 * index)
        if schema != b"A1":
            raise source.damaged(f"entry {index} of the attachment directory is not readable")
        what = f"attachment {index}"
        inside, room = _segment(source, at, b"ZISRAWATTACH", what)
        length = source.unpack("<i", inside, what)[0]
        if not 0 <= length <= room - 256:
            raise source.damaged(f"{what} claims {length} bytes in a segment of {room}")


def _xml_root(source: Input, xml: bytes | None) -> etree._Element | None:
    """The root element. Raises BadInput for XML without its end, or with a DOCTYPE."""
    if not xml:
        return None
    if b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        raise source.damaged("its metadata declares a document type, which no ZEISS software writes")
    # recover: ZEN lets characters through that XML forbids; whether the text is whole is told by its last tag
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False, recover=True
    )
    try:
        root = etree.fromstring(xml, parser)
    except etree.XMLSyntaxError as error:
        raise source.damaged("its metadata is not XML") from error
    if root is None or not re.search(rb"</\s*" + re.escape(str(root.tag).encode()) + rb"\s*>$", xml):
        raise source.damaged("its metadata breaks off before the closing tag")
    return root


def _xml_size(root: etree._Element) -> tuple[int | None, int | None]:
    """SizeX and SizeY of Information/Image."""
    texts = [root.findtext(f".//Information/Image/{name}") or "" for name in ("SizeX", "SizeY")]
    width, height = (int(text) if text.strip().isdecimal() and len(text) < 12 else None for text in texts)
    return width or None, height or None


def _facts(source: Input, subblocks: list[Subblock], xml: bytes | None) -> CziFacts:
    full = [subblock for subblock in subblocks if subblock.full]
    if not full:
        raise source.damaged("no subblock of the full resolution is left in its directory")
    rows = _rows(full)
    root = _xml_root(source, xml)
    width, height = _xml_size(root) if root is not None else (None, None)
    x, y, across, down = _bounds(rows)
    planes = {plane: number for number, plane in enumerate(dict.fromkeys(s.plane for s in full))}
    plane_of = np.array([planes[s.plane] for s in full], np.int64)
    scenes = tuple(_scene(rows[rows[:, 0] == scene], plane_of[rows[:, 0] == scene]) for scene in distinct(rows[:, 0]))
    return CziFacts(
        xml_width_px=width,
        xml_height_px=height,
        x_px=x,
        y_px=y,
        width_px=across,
        height_px=down,
        scenes=scenes,
        subblocks=rows,
        tile_width_px=int(np.median(rows[:, 3])),
        tile_height_px=int(np.median(rows[:, 4])),
        pyramid_subblocks=len(subblocks) - len(full),
        display=display(root) if root is not None else (),
        power=cziobjective.power(root) if root is not None else None,
    )


def _rows(subblocks: list[Subblock]) -> NDArray[np.int64]:
    """As CziFacts has them."""
    fields = [(s.scene, s.x_px, s.y_px, s.width_px, s.height_px, s.pixel_type, s.compression) for s in subblocks]
    return np.array(fields, np.int64).reshape(-1, 7)


def _bounds(rows: NDArray[np.int64]) -> tuple[int, int, int, int]:
    """x, y, width and height of the box around all rows."""
    left, top = (int(value) for value in rows[:, 1:3].min(axis=0))
    right, bottom = (int(value) for value in (rows[:, 1:3] + rows[:, 3:5]).max(axis=0))
    return left, top, right - left, bottom - top


def _scene(rows: NDArray[np.int64], plane_of: NDArray[np.int64]) -> CziScene:
    box = _bounds(rows)
    areas: dict[bytes, int | None] = {}  # planes mostly share their tiling: each tiling is measured once
    for plane in distinct(plane_of):
        tiles = distinct(rows[plane_of == plane][:, 1:5])
        key = tiles.tobytes()
        if key not in areas:
            areas[key] = covered_px(tiles)
    known = [area for area in areas.values() if area is not None]
    index = int(rows[0, 0])
    return CziScene(index if index >= 0 else None, *box, covered_px=min(known) if len(known) == len(areas) else None)


def _compare(source: Input, facts: CziFacts) -> None:
    """Raises BadInput when XML and directory contradict each other by more than a real file's XML does.

    The XML's size spans all scenes, in some files only the largest one: either is taken as agreement.
    """
    widths = [facts.width_px, *(scene.width_px for scene in facts.scenes)]
    heights = [facts.height_px, *(scene.height_px for scene in facts.scenes)]
    for name, stated, found in (("wide", facts.xml_width_px, widths), ("high", facts.xml_height_px, heights)):
        if stated and min(abs(stated - size) for size in found) > TOLERANCE * stated:
            raise source.damaged(
                f"its metadata says that it is {stated} pixels {name}, its subblocks are {found[0]} pixels {name}"
            )
