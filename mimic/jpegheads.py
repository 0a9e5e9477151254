"""What stands in a JPEG stream before its entropy-coded data, as the rules look at it.

Beside ``jpegs``, which decides what may be copied: a rule must not repeat the mistakes of what it judges.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

STANDALONE_MARKERS = frozenset((0x01, *range(0xD0, 0xD8)))
EOI, SOS, DHT, DQT, APP0, APP14 = 0xD9, 0xDA, 0xC4, 0xDB, 0xE0, 0xEE
FRAMES = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What stands before the entropy-coded data. ``frame`` is the SOFn marker, ``sampling`` each component's (h, v),
    ``adobe`` the colour transform of APP14, None without one; ``scan`` counts the components of the first scan."""

    frame: int
    bits: int
    width_px: int
    height_px: int
    ids: tuple[int, ...]
    sampling: tuple[tuple[int, int], ...]
    jfif: bool
    adobe: int | None
    scan: int


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers and their payloads, from the one after SOI to SOS or EOI. Raises ValueError where there is none."""
    return ((marker, payload) for marker, payload, _ in _segments(data))


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """As ``segments``, and where each ends."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("no JPEG: it does not start with SOI")
    at = 2
    while True:
        if at + 2 > len(data) or data[at] != 0xFF:
            raise ValueError(f"JPEG header broken at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF or marker in STANDALONE_MARKERS:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == EOI:
            yield marker, b"", at + 2
            return
        length = struct.unpack_from(">H", data, at + 2)[0] if at + 4 <= len(data) else 0
        if length < 2 or at + 2 + length > len(data):
            raise ValueError(f"JPEG header broken at byte {at}")
        yield marker, data[at + 4 : at + 2 + length], at + 2 + length
        if marker == SOS:
            return
        at += 2 + length


def jpeg_header(data: bytes) -> JpegHeader:
    """The header of a JPEG stream. Raises ValueError for one that has no frame or no scan."""
    return header_and_length(data)[0]


def header_and_length(data: bytes) -> tuple[JpegHeader, int]:
    """The header and its length in bytes. Raises ValueError as ``jpeg_header`` does."""
    frame: tuple[int, bytes] | None = None
    jfif, adobe, scan, end = False, None, None, 0
    for marker, payload, end in _segments(data):  # noqa: B007
        if marker in FRAMES:
            frame = marker, payload
        elif marker == APP0 and payload[:5] == b"JFIF\0":
            jfif = True
        elif marker == APP14 and payload[:5] == b"Adobe" and len(payload) >= 12:
            adobe = payload[11]
        elif marker == SOS and payload:
            scan = payload[0]
    if frame is None or scan is None or len(frame[1]) < 6 or len(frame[1]) < 6 + 3 * frame[1][5]:
        raise ValueError("JPEG without a frame or a scan")
    bits, height, width, count = struct.unpack_from(">BHHB", frame[1])
    parts = [frame[1][6 + 3 * index : 9 + 3 * index] for index in range(count)]
    header = JpegHeader(
        frame=frame[0],
        bits=bits,
        width_px=width,
        height_px=height,
        ids=tuple(part[0] for part in parts),
        sampling=tuple((part[1] >> 4, part[1] & 15) for part in parts),
        jfif=jfif,
        adobe=adobe,
        scan=scan,
    )
    return header, end
