"""What the header of a compressed tile says, and what may be done to it without touching its coded data. Pure.

Not shared with ``streams``, which judges finished slides: a mistake here must show there. Markers: ITU-T T.81; JFIF;
Adobe's APP14; JPEG 2000's SIZ: ISO 15444-1, A.5.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

SOI, EOI, SOS, DQT, DHT, APP0, APP14, APP15, COM = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xE0, 0xEE, 0xEF, 0xFE
BASELINE = 0xC0
FRAMES = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, 0xCC}
ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
RGB, YCBCR = 2, 6
"""TIFF's PhotometricInterpretation."""
JPEG, J2K_YCC, J2K_RGB = 7, 33003, 33005
"""TIFF's Compression; the last two are Aperio's JPEG 2000."""
IDS_RGB = (0x52, 0x47, 0x42)
IDS_APERIO = (0, 1, 2)
SUBSAMPLED = frozenset(((2, 2), (2, 1)))
"""YCbCr 4:2:0 and 4:2:2, the two that all readers show right."""
KNOWN_HEADERS = 16
"""Tiles that share their tables have one header or a few; those with Huffman tables of their own have one each."""
ADOBE_RGB = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the coded data of a JPEG stream: ``frame`` is the SOFn marker, ``sampling`` each component's
    (h, v), ``adobe`` the transform of APP14 (None without one), ``scan`` the number of components in the first scan.

    ``comments`` says that there are comments or metadata beside JFIF and Adobe; ``quantisation`` is the first table
    in zigzag order, empty when there is none; ``length_bytes`` is where the coded data begin.
    """

    frame: int
    bits: int
    width_px: int
    height_px: int
    ids: tuple[int, ...]
    sampling: tuple[tuple[int, int], ...]
    jfif: bool
    adobe: int | None
    scan: int
    comments: bool
    quantisation: tuple[int, ...]
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Kind:
    """How a JPEG stream is to be declared in a TIFF: PhotometricInterpretation, YCbCrSubSampling (None for RGB)."""

    photometric: int
    subsampling: tuple[int, int] | None


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment behind SOI, up to SOS or EOI. Raises ValueError where there is none."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("it does not start as a JPEG")
    at = 2
    while True:
        if at + 2 > len(data) or data[at] != 0xFF:
            raise ValueError(f"its JPEG header is broken at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF or marker in ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == EOI:
            yield marker, at, at + 2
            return
        if at + 4 > len(data):
            raise ValueError(f"its JPEG header is cut off at byte {at}")
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end < at + 4 or end > len(data):
            raise ValueError(f"its JPEG header is broken at byte {at}")
        yield marker, at, end
        if marker == SOS:
            return
        at = end


def header(data: bytes, tables: bytes | None = None) -> Header:
    """The header of a stream; of its first bytes is enough. ``tables`` are the shared ones. Raises ValueError."""
    frame: tuple[int, bytes] | None = None
    jfif, adobe, comments = False, None, False
    quantisation: tuple[int, ...] = ()
    for marker, start, end in segments(data):
        payload = data[start + 4 : end]
        if marker in FRAMES:
            frame = marker, payload
        elif marker == DQT:
            quantisation = quantisation or _first_table(payload)
        elif marker == APP0 and payload[:5] == b"JFIF\0":
            jfif = True
        elif marker == APP14 and payload[:5] == b"Adobe" and len(payload) >= 12:
            adobe = payload[11]
        elif APP0 <= marker <= APP15 or marker == COM:
            comments = True
        elif marker == SOS and payload and frame is not None:
            quantisation = quantisation or _quantisation(tables or b"\xff\xd8\xff\xd9")
            return _header(frame, jfif, adobe, comments, quantisation, payload[0], end)
    raise ValueError("its JPEG header has no frame or no scan")


def _header(
    frame: tuple[int, bytes],
    jfif: bool,
    adobe: int | None,
    comments: bool,
    quantisation: tuple[int, ...],
    scan: int,
    end: int,
) -> Header:
    marker, payload = frame
    if len(payload) < 6 or len(payload) < 6 + 3 * payload[5]:
        raise ValueError("its JPEG frame header is cut off")
    bits, height, width, count = struct.unpack_from(">BHHB", payload)
    parts = [payload[6 + 3 * index : 9 + 3 * index] for index in range(count)]
    return Header(
        frame=marker,
        bits=bits,
        width_px=width,
        height_px=height,
        ids=tuple(part[0] for part in parts),
        sampling=tuple((part[1] >> 4, part[1] & 15) for part in parts),
        jfif=jfif,
        adobe=adobe,
        scan=scan,
        comments=comments,
        quantisation=quantisation,
        length_bytes=end,
    )


def _quantisation(tables: bytes) -> tuple[int, ...]:
    found = (_first_table(tables[start + 4 : end]) for marker, start, end in segments(tables) if marker == DQT)
    return next((table for table in found if table), ())


def _first_table(payload: bytes) -> tuple[int, ...]:
    """The first table of a DQT segment: libjpeg writes luminance first."""
    wide = bool(payload[:1]) and payload[0] >> 4 != 0
    size = 128 if wide else 64
    return struct.unpack_from(">64H" if wide else "64B", payload, 1) if len(payload) > size else ()


def frame_fault(found: Header, tile_px: int) -> str | None:
    """Why a stream is no tile that every reader decodes; None for one that is."""
    if found.frame != BASELINE:
        return f"it is JPEG SOF{found.frame - BASELINE}, not baseline"
    if found.bits != 8 or len(found.ids) != 3 or found.scan != 3:
        return f"it has {found.bits} bits, {len(found.ids)} components and {found.scan} of them in its first scan"
    if (found.width_px, found.height_px) != (tile_px, tile_px):
        return f"it is {found.width_px} x {found.height_px} px, not {tile_px} x {tile_px}"
    return None


def kind(found: Header, photometric: int, *, markers_win: bool) -> Kind | str:
    """How the stream is to be declared, or the reason why readers would not agree on its colours.

    ``photometric`` is what its container says (TIFF's number). Decoders that know no container go by JFIF, then by
    Adobe's marker, then by component ids; ``markers_win`` is for sources whose reader does so too (Bio-Formats).
    """
    said = YCBCR if found.jfif else {0: RGB, 1: YCBCR}.get(-1 if found.adobe is None else found.adobe)
    if found.ids == IDS_RGB and said is None:
        said = RGB
    if found.jfif and found.adobe == 0:
        return "its markers name two colour spaces"
    if said is None and photometric == RGB and found.ids != IDS_APERIO:
        return "RGB without a marker that says so would show wrong colours in some readers"
    if said is not None and said != photometric and not (markers_win and photometric == RGB):
        return "its colour space and its markers contradict each other"
    colours = said or photometric
    if colours == RGB:
        return Kind(RGB, None) if len(set(found.sampling)) == 1 else "it is RGB with subsampled components"
    if colours != YCBCR:
        return f"photometric {photometric} is neither RGB nor YCbCr"
    if len(set(found.sampling)) == 1:
        return "YCbCr 4:4:4 would show wrong colours in QuPath"
    if found.sampling[0] not in SUBSAMPLED or set(found.sampling[1:]) != {(1, 1)}:
        factors = ", ".join(f"{across}x{down}" for across, down in found.sampling)
        return f"YCbCr with the sampling factors {factors} is not known to all readers"
    return Kind(YCBCR, found.sampling[0])


def sharable(tables: bytes) -> bool:
    """Whether shared tables may stay shared: quantisation and Huffman tables, and nothing else (large_image)."""
    try:
        markers = [marker for marker, _, _ in segments(tables)]
    except ValueError:
        return False
    return markers[-1] == EOI and set(markers[:-1]) <= {DQT, DHT} and len(markers) > 1


def merge(tables: bytes, data: bytes) -> bytes:
    """An abbreviated stream made whole: the shared tables go behind its own APPn, all of its bytes are kept.

    Raises ValueError when one of the two is no JPEG.
    """
    inner = b"".join(tables[start:end] for marker, start, end in segments(tables) if marker not in (SOS, EOI))
    at = 2
    for marker, _, end in segments(data):
        if not APP0 <= marker <= APP15:
            break
        at = end
    return data[:at] + inner + data[at:]


def decodable(data: bytes, *, tables: bytes | None, photometric: int) -> bytes:
    """A whole stream that every decoder takes for RGB when it is: genuine Aperio tiles have no marker that says so.

    Raises ValueError when it is no JPEG.
    """
    found = header(data, tables)
    stream = merge(tables, data) if tables else data
    if photometric == RGB and found.adobe is None and found.ids != IDS_RGB:
        return stream[:2] + ADOBE_RGB + stream[2:]
    return stream


class Completer:
    """Makes streams what ``decodable`` makes of them; tiles that share a header have it worked out once.

    For any thread.
    """

    def __init__(self, *, tables: bytes | None, photometric: int) -> None:
        self._tables, self._photometric = tables, photometric
        self._known: list[tuple[bytes, bytes]] = []

    def whole(self, data: bytes) -> bytes:
        """Raises ValueError for data that need something put in and are no JPEG."""
        if self._tables is None and self._photometric != RGB:
            return data
        for head, whole in self._known:
            if data.startswith(head):
                return whole + data[len(head) :]
        head = data[: header(data, self._tables).length_bytes]
        whole = decodable(head, tables=self._tables, photometric=self._photometric)
        if len(self._known) < KNOWN_HEADERS:
            self._known.append((head, whole))
        return whole + data[len(head) :]


def codestream_fault(data: bytes, tile_px: int) -> str | None:
    """Why these bytes are no raw JPEG 2000 codestream of one tile in 8-bit colour; None when they are."""
    if len(data) < 51 or not data.startswith(b"\xff\x4f\xff\x51"):
        return "it is no raw JPEG 2000 codestream"
    right, bottom, left, top = struct.unpack_from(">4I", data, 8)
    count, depth = struct.unpack_from(">HB", data, 40)
    if (right - left, bottom - top) != (tile_px, tile_px):
        return f"it is {right - left} x {bottom - top} px, not {tile_px} x {tile_px}"
    return None if count == 3 and depth == 7 else f"it has {count} components of {(depth & 127) + 1} bits"
