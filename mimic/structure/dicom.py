"""A DICOM file's elements and the fragments of its pixel data, walked by their headers.

Layout: DICOM PS3.5 (data set encoding, encapsulation) and PS3.10 (file format); whole-slide rules: PS3.3, C.8.12.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from mimic.errors import BadInput
from mimic.structure.facts import DicomFacts, Facts
from mimic.structure.reader import Input

UNDEFINED = 0xFFFFFFFF
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
VIDEO = "1.2.840.10008.1.2.4.10"
"""Prefix of the MPEG and HEVC transfer syntaxes, whose frames share fragments."""
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
FLOAT_PIXELS, DOUBLE_PIXELS, PIXELS = 0x7FE00008, 0x7FE00009, 0x7FE00010
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXELS_HEAD_BYTES = 12
"""Tag, kind and length before pixel data."""
NUMBER_SIGNS = b"0123456789+-.eE \\\0"
"""What numbers are written with, where they are written in decimals."""
MAX_DEPTH = 32
"""Sequences in sequences; real headers nest fewer than ten."""

TRANSFER, SOP_CLASS, IMAGE_TYPE, SERIES = 0x00020010, 0x00080016, 0x00080008, 0x0020000E
SAMPLES, PHOTOMETRIC, FRAMES, ROWS, COLUMNS, BITS = (
    0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280100,
)  # fmt: skip
MATRIX_COLUMNS, MATRIX_ROWS, PATHS, FOCAL_PLANES = 0x00480006, 0x00480007, 0x00480302, 0x00480303
ORGANIZATION, CONCATENATION, PART, PARTS = 0x00209311, 0x00209161, 0x00209162, 0x00209163
TEXTS = frozenset((TRANSFER, SOP_CLASS, IMAGE_TYPE, SERIES, PHOTOMETRIC, FRAMES, ORGANIZATION, CONCATENATION))
NUMBERS = {
    SAMPLES: "H", ROWS: "H", COLUMNS: "H", BITS: "H", MATRIX_COLUMNS: "I", MATRIX_ROWS: "I", PATHS: "I",
    FOCAL_PLANES: "I", PART: "H", PARTS: "H",
}  # fmt: skip


@dataclass(slots=True)
class Walk:
    """Where in the file a walk is, how its elements are coded, and what it has read so far."""

    source: Input
    at: int
    order: str = "<"
    explicit: bool = True
    texts: dict[int, str] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)

    def header(self, what: str) -> tuple[int, int]:
        """Tag and value length of the element at hand; moves to its value."""
        group, element = self.source.unpack(self.order + "HH", self.at, what)
        tag = group << 16 | element
        if not self.explicit or group == 0xFFFE:
            length, room = self.source.unpack(self.order + "I", self.at + 4, what)[0], 8
        else:
            kind = self.source.at(self.at + 4, 2, what)
            if kind in LONG_VRS:
                length, room = self.source.unpack(self.order + "I", self.at + 8, what)[0], 12
            elif kind in SHORT_VRS:
                length, room = self.source.unpack(self.order + "H", self.at + 6, what)[0], 8
            else:
                raise self.source.damaged(f"{what} at byte {self.at} is no DICOM element")
        self.at += room
        return tag, length


def is_bare(source: Input) -> bool:
    """Whether a file without the DICM mark begins like a data set: group 2 or 8, explicit or implicit."""
    raw = source.upto(0, 8)
    if len(raw) < 8:
        return False
    group, element = struct.unpack_from("<HH", raw)
    length = struct.unpack_from("<I", raw, 4)[0]
    explicit = raw[4:6] in LONG_VRS | SHORT_VRS
    return group in (2, 8) and element < 0x100 and (explicit or length < 1024)


def head(source: Input) -> DicomFacts:
    """What the header says; the pixel data is not looked at. Raises BadInput when it is damaged or has no pixels."""
    walk = Walk(source, 132 if source.upto(128, 4) == b"DICM" else 0)
    _read_meta(walk)
    if walk.texts.get(TRANSFER) == DEFLATED:
        raise source.damaged("its data set is deflated, which no pixel data should be")
    _find_pixels(walk)
    return _facts(walk)


def check_header(source: Input) -> None:
    """Raises BadInput unless the header, explicit and little-endian, is elements in their order down to the last
    sequence: of a damaged one readers take what they find, each in its way. Other codings are damage here."""
    walk = Walk(source, 132)
    _read_meta(walk)
    if not walk.explicit or walk.order != "<":
        raise source.damaged("its header is not coded as usual")
    _find_pixels(walk)
    raw = source.at(132, walk.at - PIXELS_HEAD_BYTES - 132, "the DICOM header")
    if source.at(walk.at - 8, 4, "the pixel data") not in (b"OB\0\0", b"OW\0\0"):
        raise source.damaged("its pixel data are of a kind that no image has")
    _Nest(source, raw).elements(0, len(raw), closed=False, depth=0)


@dataclass(frozen=True, slots=True)
class _Nest:
    """Elements and sequences of a header in memory, each of which must end where what it is in goes on."""

    source: Input
    raw: bytes

    @property
    def damaged(self) -> BadInput:
        return self.source.damaged("its header is broken")

    def elements(self, at: int, end: int, *, closed: bool, depth: int) -> int:
        """Where elements end: at ``end``, or ``closed`` by a mark. Raises BadInput."""
        last = -1
        while at < end:
            if at + 8 > end or depth > MAX_DEPTH:
                raise self.damaged
            group, element, kind, length = struct.unpack_from("<HH2sH", self.raw, at)
            tag, at = group << 16 | element, at + 8
            if closed and tag == ITEM_END:
                return at
            if kind in LONG_VRS and not length and at + 4 <= end:
                length, at = struct.unpack_from("<I", self.raw, at)[0], at + 4
            elif kind not in SHORT_VRS:
                raise self.damaged
            if tag <= last or (length == UNDEFINED and kind != b"SQ"):
                raise self.damaged
            if kind in (b"DS", b"IS") and self.raw[at : at + length].translate(None, NUMBER_SIGNS):
                raise self.damaged
            at = self.items(at, length, end, depth=depth + 1) if kind == b"SQ" else at + length
            last = tag
        if closed or at != end:
            raise self.damaged
        return at

    def items(self, at: int, length: int, end: int, *, depth: int) -> int:
        """Where a sequence ends. Raises BadInput."""
        closed = length == UNDEFINED
        stop = end if closed else at + length
        while at < stop <= end:
            if at + 8 > stop:
                raise self.damaged
            group, element, size = struct.unpack_from("<HHI", self.raw, at)
            tag, at = group << 16 | element, at + 8
            if closed and tag == SEQUENCE_END:
                return at
            if tag != ITEM or (size != UNDEFINED and at + size > stop):
                raise self.damaged
            item_end = stop if size == UNDEFINED else at + size
            at = self.elements(at, item_end, closed=size == UNDEFINED, depth=depth)
        if closed or at != stop:
            raise self.damaged
        return at


def check(source: Input) -> Facts:
    """Raises BadInput unless a DICOM's elements lie inside the file and its pixel data holds all its frames."""
    walk = Walk(source, 132 if source.upto(128, 4) == b"DICM" else 0)
    _read_meta(walk)
    transfer = walk.texts.get(TRANSFER)
    if transfer == DEFLATED:
        return Facts("dicom", source.size)
    pixels, length = _find_pixels(walk)
    facts = _facts(walk)
    _check_matrix(source, walk, facts)
    missing = 0
    if length != UNDEFINED:
        source.require(walk.at, length, "the pixel data")
        _check_native(source, walk, facts, length if pixels == PIXELS else None)
    else:
        found, missing = _fragments(walk)
        if found < facts.frames and not (transfer or "").startswith(VIDEO):
            raise source.damaged(f"its pixel data holds {found} of {facts.frames} frames")
    return Facts("dicom", source.size, missing_tiles=missing, dicom=facts)


def _read_meta(walk: Walk) -> None:
    """Reads group 2, explicit and little-endian always, and sets how the rest is coded."""
    while walk.source.unpack("<H", walk.at, "the DICOM header")[0] == 2:
        _element(walk)
    transfer = walk.texts.get(TRANSFER)
    if transfer is None:
        walk.explicit = walk.source.at(walk.at + 4, 2, "the DICOM header") in LONG_VRS | SHORT_VRS
    else:
        walk.explicit = transfer != IMPLICIT_LITTLE
        walk.order = ">" if transfer == EXPLICIT_BIG else "<"


def _find_pixels(walk: Walk) -> tuple[int, int]:
    """Tag and length of the pixel data; the walk stands at its first byte."""
    last = -1
    while walk.at < walk.source.size:
        tag, length = _element(walk)
        if tag in (PIXELS, FLOAT_PIXELS, DOUBLE_PIXELS):
            return tag, length
        if tag < last:
            raise walk.source.damaged(f"element {_name(tag)} follows {_name(last)}, out of order")
        last = tag
    raise walk.source.damaged("it ends before its pixel data, or never had any")


def _element(walk: Walk) -> tuple[int, int]:
    """Reads or skips one element of the top level; of pixel data only its header."""
    what = "the DICOM header"
    tag, length = walk.header(what)
    what = f"element {_name(tag)}"
    if tag in (PIXELS, FLOAT_PIXELS, DOUBLE_PIXELS):
        return tag, length
    if length == UNDEFINED:
        _skip_sequence(walk, what, depth=0)
        return tag, length
    walk.source.require(walk.at, length, what)
    if tag in TEXTS:
        raw = walk.source.at(walk.at, min(length, 1024), what)
        walk.texts[tag] = raw.decode("ascii", "replace").strip(" \0")
    elif tag in NUMBERS:
        layout = walk.order + NUMBERS[tag]
        if length >= struct.calcsize(layout):
            walk.numbers[tag] = walk.source.unpack(layout, walk.at, what)[0]
    walk.at += length
    return tag, length


def _skip_sequence(walk: Walk, what: str, *, depth: int) -> None:
    """Moves behind a sequence of undefined length."""
    if depth > MAX_DEPTH:
        raise walk.source.damaged(f"{what} nests deeper than {MAX_DEPTH} sequences")
    while True:
        tag, length = walk.header(what)
        if tag == SEQUENCE_END:
            return
        if tag != ITEM:
            raise walk.source.damaged(f"{what} holds {_name(tag)} where an item should begin, at byte {walk.at}")
        if length == UNDEFINED:
            _skip_item(walk, what, depth=depth)
        else:
            walk.source.require(walk.at, length, what)
            walk.at += length


def _skip_item(walk: Walk, what: str, *, depth: int) -> None:
    while True:
        tag, length = walk.header(what)
        if tag == ITEM_END:
            return
        if length == UNDEFINED:
            _skip_sequence(walk, what, depth=depth + 1)
        else:
            walk.source.require(walk.at, length, what)
            walk.at += length


def _fragments(walk: Walk) -> tuple[int, int]:
    """Number of fragments of encapsulated pixel data behind its offset table, and how many of them are empty."""
    found = empty = 0
    layout = struct.Struct(walk.order + "HHI")
    while True:
        index = found - 1
        head = walk.source.upto(walk.at, layout.size)
        if len(head) < layout.size:
            raise walk.source.cut(f"fragment {max(index, 0)} of the pixel data", walk.at + layout.size)
        group, element, length = layout.unpack(head)
        tag, walk.at = group << 16 | element, walk.at + layout.size
        if tag == SEQUENCE_END:
            return max(index, 0), empty
        if tag != ITEM or length == UNDEFINED:
            raise walk.source.damaged(f"{_fragment(index)} at byte {walk.at - 8} does not begin like one")
        if walk.at + length > walk.source.size:
            walk.source.require(walk.at, length, _fragment(index))
        empty += found > 0 and length == 0
        walk.at += length
        found += 1


def _fragment(index: int) -> str:
    return "the offset table" if index < 0 else f"fragment {index} of the pixel data"


def _facts(walk: Walk) -> DicomFacts:
    frames = walk.texts.get(FRAMES) or "1"
    if not frames.isdecimal():
        raise walk.source.damaged(f"its number of frames is {frames[:20]!r}")
    return DicomFacts(
        sop_class_uid=walk.texts.get(SOP_CLASS),
        series_instance_uid=walk.texts.get(SERIES),
        transfer_syntax_uid=walk.texts.get(TRANSFER),
        image_type=walk.texts.get(IMAGE_TYPE),
        frames=int(frames),
        columns_px=walk.numbers.get(COLUMNS, 0),
        rows_px=walk.numbers.get(ROWS, 0),
        matrix_width_px=walk.numbers.get(MATRIX_COLUMNS) or None,
        matrix_height_px=walk.numbers.get(MATRIX_ROWS) or None,
        concatenation=_concatenation(walk),
    )


def _concatenation(walk: Walk) -> tuple[str, int, int] | None:
    uid = walk.texts.get(CONCATENATION)
    return (uid, walk.numbers.get(PART, 0), walk.numbers.get(PARTS, 0)) if uid else None


def _check_matrix(source: Input, walk: Walk, facts: DicomFacts) -> None:
    """A fully tiled image has a frame for every tile; the parts of a concatenation have their share only."""
    if not facts.columns_px or not facts.rows_px:
        raise source.damaged("it has pixel data and no Rows or Columns")
    tiled_full = walk.texts.get(ORGANIZATION) == "TILED_FULL" and facts.sop_class_uid == WHOLE_SLIDE
    if not tiled_full or CONCATENATION in walk.texts or not facts.matrix_width_px or not facts.matrix_height_px:
        return
    tiles = -(-facts.matrix_width_px // facts.columns_px) * -(-facts.matrix_height_px // facts.rows_px)
    expected = tiles * (walk.numbers.get(PATHS) or 1) * (walk.numbers.get(FOCAL_PLANES) or 1)
    if facts.frames < expected:
        raise source.damaged(f"it has {facts.frames} frames where its total pixel matrix takes {expected}")


def _check_native(source: Input, walk: Walk, facts: DicomFacts, length: int | None) -> None:
    if length is None:
        return
    samples = walk.numbers.get(SAMPLES, 1)
    if walk.texts.get(PHOTOMETRIC) == "YBR_FULL_422":
        samples = 2
    bits = facts.frames * facts.rows_px * facts.columns_px * samples * walk.numbers.get(BITS, 8)
    if length < bits // 8:
        raise source.damaged(f"its pixel data has {length} bytes where its size takes {bits // 8}")


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
