"""JPEG, PNG, BMP, WebP and JPEG 2000 files: whether they reach their own end mark.

The whole of a JPEG is read, for that is where the end mark is, and of a PNG, for its checksums, unless a decoder will
look at them; nothing is decoded.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from mimic.structure.facts import Facts
from mimic.structure.reader import Input

CHUNK_BYTES = 1 << 20
MAX_SEGMENTS = 65_536
"""Of a JPEG: real ones have some hundred, of which most are a progressive picture's scans."""
IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""A marker that ends a JPEG's coded data: neither a stuffed FF nor a restart."""
PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"


def jpeg(source: Input) -> Facts:
    """Raises BadInput for a JPEG that has no end mark behind its last scan; what follows the mark is left alone."""
    at, scans, size = 2, 0, False
    for _segment in range(MAX_SEGMENTS):
        mark, code = source.at(at, 2, "the next JPEG marker")
        if mark != 0xFF:
            raise source.damaged(f"byte {at} should begin a JPEG marker")
        if code == 0xFF:
            block = source.upto(at, CHUNK_BYTES)
            at += max(1, len(block) - len(block.lstrip(b"\xff")) - 1)
        elif code == 0xD9:
            break
        elif code in (0, 1) or 0xD0 <= code <= 0xD8:
            raise source.damaged(f"JPEG marker {code:02X} stands alone at byte {at}")
        else:
            (length,) = source.unpack(">H", at + 2, f"JPEG segment {code:02X}")
            if length < 2:
                raise source.damaged(f"JPEG segment {code:02X} at byte {at} has no length")
            source.require(at + 2, length, f"JPEG segment {code:02X}")
            size = size or (0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC))
            at += 2 + length
            if code == 0xDA:
                scans, at = scans + 1, _scan_end(source, at)
    else:
        raise source.damaged(f"it has more than {MAX_SEGMENTS} JPEG segments")
    if not scans or not size:
        raise source.damaged("it is a JPEG without an image")
    return Facts("jpeg", source.size)


def _scan_end(source: Input, at: int) -> int:
    """Position of the marker that ends the coded data at ``at``."""
    while block := source.upto(at, CHUNK_BYTES):
        if found := IN_SCAN.search(block):
            return at + found.start()
        if len(block) == 1:
            break
        at += len(block) - 1  # a marker may lie across two blocks
    raise source.cut("the JPEG's last scan", source.size + 2)


def png(source: Input) -> Facts:
    """Raises BadInput for a PNG without its IEND chunk, or with a chunk that its checksum does not match."""
    kinds = set(_chunks(source))
    if not {b"IHDR", b"IDAT"} <= kinds:
        raise source.damaged("it is a PNG without an image")
    return Facts("png", source.size)


def png_outline(source: Input) -> Facts:
    """As ``png``, but of the image data only that they begin and that the file ends behind them with its IEND chunk.

    What is before them (size, palette, resolution, orientation) is checked. For who does not decode the picture, or
    with a decoder that looks at the checksums itself: there may be 100 000 of them, and a gigabyte to be read. A file
    that goes on behind IEND is checked as a whole.
    """
    if source.upto(source.size - len(PNG_END), len(PNG_END)) != PNG_END:
        return png(source)
    kinds = set(_chunks(source, before=b"IDAT"))
    if b"IHDR" not in kinds or b"IEND" in kinds:
        raise source.damaged("it is a PNG without an image")
    return Facts("png", source.size)


def _chunks(source: Input, *, before: bytes = b"") -> Iterator[bytes]:
    """Kinds of the chunks up to IEND, or up to the first that is called ``before``, each after its checksum."""
    at, chunks, kind = 8, 0, b""
    while kind != b"IEND":
        what = f"the PNG chunk at byte {at}"
        length, kind = source.unpack(">I4s", at, what)
        source.require(at + 8, length + 4, what)
        if kind == before:
            return
        (stated,) = source.unpack(">I", at + 8 + length, what)
        found = zlib.crc32(kind)
        for start in range(at + 8, at + 8 + length, CHUNK_BYTES):
            found = zlib.crc32(source.at(start, min(CHUNK_BYTES, at + 8 + length - start), what), found)
        if found != stated:
            raise source.damaged(f"{what} does not match its checksum")
        yield kind
        chunks += 1
        if chunks > 1000 and chunks > at // 64:
            raise source.damaged(f"its {chunks} PNG chunks are all but empty")
        at += 12 + length


def bmp(source: Input) -> Facts:
    """Raises BadInput for a BMP that is shorter than its rows, or than the compressed size it states."""
    start, header = source.unpack("<II", 10, "the BMP header")
    if header == 12:
        width, height, _, bits = source.unpack("<HHHH", 18, "the BMP header")
        coding = stated = 0
    else:
        width, height, _, bits, coding, stated = source.unpack("<iiHHII", 18, "the BMP header")
    if width <= 0 or not height or bits not in (1, 2, 4, 8, 16, 24, 32):
        raise source.damaged(f"its BMP header says {width} x {height} pixels of {bits} bits")
    length = stated if coding not in (0, 3, 6) else (width * bits + 31) // 32 * 4 * abs(height)
    source.require(start, length, "the last row")
    return Facts("bmp", source.size)


def webp(source: Input) -> Facts:
    """Raises BadInput for a WebP that is shorter than its RIFF header says, or whose chunks overrun it."""
    end = 8 + int(source.unpack("<I", 4, "the RIFF header")[0])
    source.require(8, end - 8, "the RIFF data")
    at, image = 12, False
    while at + 8 <= end:
        kind, length = source.unpack("<4sI", at, "a WebP chunk")
        if at + 8 + length > end:
            raise source.damaged(f"the WebP chunk at byte {at} ends outside the picture")
        image = image or kind in (b"VP8 ", b"VP8L", b"ANMF")
        at += 8 + length + length % 2
    if not image:
        raise source.damaged("it is a WebP without an image")
    return Facts("webp", source.size)


def jp2(source: Input) -> Facts:
    """Raises BadInput for a JPEG 2000 whose codestream lacks a tile part or its end mark."""
    if source.upto(0, 4) == b"\xff\x4f\xff\x51":
        _codestream(source, 0, source.size)
        return Facts("jp2", source.size)
    at, found = 0, 0
    while at < source.size and (found == 0 or source.size - at >= 8):
        length, kind = source.unpack(">I4s", at, "a JPEG 2000 box")
        head = 8
        if length == 1:
            length, head = source.unpack(">Q", at + 8, "a JPEG 2000 box")[0], 16
        length = length or source.size - at
        if length < head:
            raise source.damaged(f"the JPEG 2000 box at byte {at} has no length")
        if found and kind != b"jp2c" and not kind.isalnum():
            break  # padding
        source.require(at, length, f"JPEG 2000 box {kind.decode('latin-1')!r}")
        if kind == b"jp2c":
            _codestream(source, at + head, at + length)
            found += 1
        at += length
    if not found:
        raise source.damaged("it is a JPEG 2000 file without an image")
    return Facts("jp2", source.size)


def _codestream(source: Input, at: int, end: int) -> None:
    """Walks main header and tile parts (ISO 15444-1, annex A) to the end mark."""
    if source.at(at, 2, "the codestream") != b"\xff\x4f":
        raise source.damaged(f"the JPEG 2000 codestream at byte {at} does not begin like one")
    at += 2
    while True:
        (mark,) = source.unpack(">H", at, "the codestream's next marker")
        if mark == 0xFFD9:
            return
        (length,) = source.unpack(">H", at + 2, f"codestream segment {mark:04X}")
        if mark < 0xFF00 or length < 2:
            raise source.damaged(f"byte {at} should begin a JPEG 2000 marker")
        if mark != 0xFF90:
            at += 2 + length
            continue
        tile, part = source.unpack(">HI", at + 4, "a tile part")
        if part == 0:  # the last one, up to the end mark
            _need_end_mark(source, at, end)
            return
        if part < 14:
            raise source.damaged(f"tile {tile} of the codestream has a part of {part} bytes")
        source.require(at, part, f"tile {tile} of the codestream")
        at += part


def _need_end_mark(source: Input, at: int, end: int) -> None:
    tail = source.upto(max(at, end - 4096), min(4096, end - at)).rstrip(b"\0")
    if not tail.endswith(b"\xff\xd9"):
        raise source.cut("the codestream", end + 2)


def compound(source: Input) -> Facts:
    """An OLE compound file (OIB, ZVI): raises BadInput unless every sector that its table calls used is there."""
    (shift,) = source.unpack("<H", 30, "the compound file's header")
    if shift not in (9, 12):
        raise source.damaged(f"its sectors have 2^{shift} bytes")
    sector = 1 << shift
    tables, _, _, _, _, _, following, _ = source.unpack("<8I", 44, "the compound file's header")
    fat = [number for number in source.unpack("<109I", 76, "the compound file's header") if number < 0xFFFFFFFA]
    seen: set[int] = set()
    while following < 0xFFFFFFFA and len(fat) < tables:
        if following in seen:
            raise source.damaged("its table of sectors is a loop")
        seen.add(following)
        *more, following = source.unpack(f"<{sector // 4}I", (following + 1) * sector, "the table of sectors")
        fat += [number for number in more if number < 0xFFFFFFFA]
    used = -1
    for index, number in enumerate(fat[:tables]):
        raw = source.at((number + 1) * sector, sector, "the table of sectors")
        entries = struct.unpack(f"<{sector // 4}I", raw)
        last = max((place for place, entry in enumerate(entries) if entry != 0xFFFFFFFF), default=-1)
        used = index * (sector // 4) + last if last >= 0 else used
    if used < 0:
        raise source.damaged("its table of sectors is empty")
    source.require((used + 1) * sector, sector, f"sector {used}")
    return Facts("ole", source.size)


def nd2(source: Input) -> Facts:
    """A Nikon ND2: raises BadInput unless it ends with its chunk map and every chunk of that lies inside the file."""
    if source.upto(0, 4) != b"\xda\xce\xbe\x0a":
        return Facts("nd2", source.size)  # the older kind, of JPEG 2000 boxes, has no such end
    tail = source.upto(max(0, source.size - 40), 40)
    if tail[:32] != b"ND2 CHUNK MAP SIGNATURE 0000001!":
        raise source.cut("the ND2's chunk map", source.size + 1)
    (at,) = struct.unpack("<Q", tail[32:])
    magic, name, length = source.unpack("<IIQ", at, "the ND2's chunk map")
    if magic != 0x0ABECEDA or name > 65536:
        raise source.damaged(f"the ND2's chunk map does not begin at byte {at}")
    raw = source.at(at + 16 + name, length, "the ND2's chunk map")
    for entry in re.finditer(rb"([\x20-\x7e]{1,255}?)!(.{16})", raw, re.DOTALL):
        position, size = struct.unpack("<QQ", entry[2])
        if not entry[1].startswith(b"ND2 "):
            source.require(position, size, f"chunk {entry[1].decode('ascii')!r}")
    return Facts("nd2", source.size)
