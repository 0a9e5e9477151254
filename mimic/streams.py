"""The rules of compressed data: every tile and strip is there, is what its directory says, and decodes.

Each thread reads its own run of tiles, one tile at a time, so memory does not grow with the slide. JPEG is decoded by
libjpeg-turbo with its warnings taken as errors, as OpenSlide does: tifffile's codecs and Pillow let them pass.

Of a file that mimic has just written the CRC-32 of every tile is known, as the encoder or the source gave it. Each is
read back and compared, its header and end are looked at, but only some are decoded: the rest are the very bytes that
libjpeg-turbo made, or that were decoded while they were copied. What that can miss is a tile that came out wrong inside
of the encoder, once, and was summed so: a fault in memory. ``--verify full`` and ``mimic check`` decode all.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import imagecodecs
import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

from mimic import checksum
from mimic.errors import BadInput
from mimic.jpegheads import DHT, DQT, EOI, JpegHeader, header_and_length, segments
from mimic.model import Check, Progress
from mimic.sheets import COMPRESSION, PHOTOMETRIC, SAMPLES, SUBSAMPLING, Layout, Sheet, rule

NONE, LZW, JPEG, JPEG2000_YCC, JPEG2000_RGB = 1, 5, 7, 33003, 33005
RGB, YCBCR = 2, 6
RUN_TILES = 512
DECODED_WHOLE, DECODE_EVERY = 256, 17
"""Of a page with more known tiles than the first, every 17th is decoded: so all columns have their turn."""
DECODE_AGAIN_EVERY = 16 * DECODE_EVERY
"""Of tiles that were all decoded, as strictly, before they were written. CRC-32 tells that they are the same bytes, and
decoding them again shows at most that the tables, which the page may hold, were written wrongly: ``verify`` has
OpenSlide decode tiles of each level as well."""
TAIL_BYTES = 64
KNOWN_HEADERS = 16
"""Tiles that share their tables have one header; those with tables of their own have one each."""
MAX_AREA_PX = 1 << 26
"""Larger tiles or strips are not decoded: associated images are at most 8192 pixels a side."""
MAX_SAMPLES = 4
ASCII_RGB = (0x52, 0x47, 0x42)


Sums = Sequence[NDArray[np.uint32]]
"""CRC-32 of every tile or strip, one array a directory, in the file's order."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One tile or strip that is wrong."""

    kind: str
    sheet: Sheet
    segment: int
    text: str

    def __str__(self) -> str:
        columns = self.sheet.grid[0]
        where = f"tile {self.segment % columns},{self.segment // columns}" if self.sheet.tiled else "strip"
        return f"{self.sheet.name} {where}: {self.text}"


@dataclass(slots=True)
class Findings:
    """What the tiles of one run, or of the file, had: the faults, and the headers seen. ``decoded`` counts those that
    were; ``known`` has the first bytes of some, up to the entropy-coded data."""

    segments: int = 0
    area_px: int = 0
    decoded: int = 0
    faults: list[Fault] = field(default_factory=list)
    headers: dict[tuple[int, JpegHeader], None] = field(default_factory=dict)
    known: dict[bytes, JpegHeader] = field(default_factory=dict)


def whole_stream(data: bytes, tables: bytes | None) -> bytes:
    """An abbreviated JPEG stream with the tables of tag 347 in front."""
    return data if tables is None else tables.removesuffix(b"\xff\xd9") + data[2:]


def check(
    layout: Layout,
    *,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    sums: Sums | None = None,
    decoded: int = 0,
) -> tuple[Check, ...]:
    """Reads every tile of every level and every strip, and decodes them, of those with known ``sums`` a sample.

    Of the first ``decoded`` levels all tiles were decoded before. One Check per rule. ``progress`` is called from this
    thread with the pixels checked so far. Raises BadInput when the file cannot be read.
    """
    found = read_all(layout, threads=threads, progress=progress, sums=sums, decoded=decoded)

    def of(kind: str, *, name: str, expected: str, measured: str = "holds") -> Check:
        said = [str(fault) for fault in found.faults if fault.kind == kind]
        return rule(name, said, expected=expected, measured=measured)

    count = f"{found.decoded} of {found.segments} tiles and strips, in all {found.area_px / 1e6:.1f} Mpx"
    written = of(
        "written",
        name="tiles as written",
        expected="every tile and strip has the CRC-32 that it had when it was encoded or copied",
        measured=f"{found.segments} of {found.segments}",
    )
    return (
        rule("tile number", _numbers(layout), expected="one offset and byte count for every tile or strip"),
        of("empty", name="no empty tiles", expected="every tile has data (readers show black, white or nothing)"),
        of("outside", name="tiles inside the file", expected="offset + length within the file"),
        *((written,) if sums is not None else ()),
        of("decode", name="tiles decode", expected="every tile and strip, without a warning", measured=count),
        of("frame", name="JPEG kind", expected="baseline SOF0, 8 bits, 3 components in one scan, of the tile's size"),
        *_headers(layout, found),
        _tables(layout),
        rule(
            "JPEGTables",
            [
                f"{sheet.name}: has them"
                for sheet in layout.sheets
                if sheet.tables is not None and not (sheet.tiled and sheet.number(PHOTOMETRIC) == RGB)
            ],
            expected="only for RGB levels (opentile 0.22 shows wrong colours for YCbCr with them)",
            must=False,
        ),
    )


def read_all(
    layout: Layout,
    *,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    sums: Sums | None = None,
    decoded: int = 0,
) -> Findings:
    """Reads everything, in a few threads, with a few runs waiting."""
    count = threads or os.cpu_count() or 1
    total_px = sum(sheet.tile_width_px * sheet.tile_height_px * len(sheet.offsets) for sheet in layout.sheets)
    known = dict(zip((sheet.index for sheet in layout.sheets), sums or (), strict=False))
    again = {sheet.index for sheet in layout.tiled()[:decoded]}
    whole = Findings()
    runs = (
        (sheet, start, min(start + RUN_TILES, _paired(sheet)))
        for sheet in layout.sheets
        for start in range(0, _paired(sheet), RUN_TILES)
    )
    pool = ThreadPoolExecutor(count, thread_name_prefix="verify")
    pending: set[Future[Findings]] = set()
    try:
        while True:
            for run in islice(runs, 2 * count - len(pending)):
                told = known.get(run[0].index)
                every = DECODE_AGAIN_EVERY if run[0].index in again else DECODE_EVERY
                every = 1 if told is None or len(told) <= DECODED_WHOLE else every
                pending.add(pool.submit(_read_run, layout, *run, sums=told, every=every))
            if not pending:
                return whole
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                _add(whole, future.result())
            if progress:
                progress(Progress("check", whole.area_px, total_px))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _paired(sheet: Sheet) -> int:
    return min(len(sheet.offsets), len(sheet.counts))


def _add(whole: Findings, run: Findings) -> None:
    whole.segments += run.segments
    whole.area_px += run.area_px
    whole.decoded += run.decoded
    whole.faults.extend(run.faults)
    whole.headers.update(run.headers)


def _read_run(
    layout: Layout, sheet: Sheet, start: int, stop: int, *, sums: NDArray[np.uint32] | None, every: int
) -> Findings:
    found = Findings()
    try:
        with Path(layout.path).open("rb", buffering=0) as file:
            for segment in range(start, stop):
                offset, length = int(sheet.offsets[segment]), int(sheet.counts[segment])
                found.segments += 1
                found.area_px += sheet.tile_width_px * sheet.tile_height_px
                if length == 0 or offset == 0:
                    found.faults.append(Fault("empty", sheet, segment, "no data"))
                elif offset < 0 or length < 0 or offset + length > layout.size_bytes:
                    text = f"bytes {offset} to {offset + length} of {layout.size_bytes}"
                    found.faults.append(Fault("outside", sheet, segment, text))
                else:
                    file.seek(offset)
                    data = file.read(length)
                    decode = segment % every == 0
                    if sums is not None and (segment >= len(sums) or checksum.crc32(data) != sums[segment]):
                        found.faults.append(Fault("written", sheet, segment, "not what was written"))
                        decode = True
                    _check_one(found, sheet, segment, data=data, decode=decode)
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", layout.path) from error
    return found


def _check_one(found: Findings, sheet: Sheet, segment: int, *, data: bytes, decode: bool) -> None:
    width, height = _size(sheet, segment)
    codec = sheet.number(COMPRESSION)
    if width * height > MAX_AREA_PX:
        found.faults.append(Fault("decode", sheet, segment, f"{width}x{height} is too large to decode"))
        return
    found.decoded += decode
    try:
        if codec == JPEG:
            header = _seen_header(found, data)
            found.headers[sheet.index, header] = None
            wrong = _frame_fault(header, width, height)
            if wrong:
                found.faults.append(Fault("frame", sheet, segment, wrong))
            else:
                _check_jpeg(data, sheet.tables, decode=decode)
        elif decode:
            wrong = _decode_other(data, sheet, codec=codec, size=(width, height))
            if wrong:
                found.faults.append(Fault("decode", sheet, segment, wrong))
    except (ValueError, imagecodecs.LzwError, imagecodecs.Jpeg2kError) as error:
        found.faults.append(Fault("decode", sheet, segment, str(error) or type(error).__name__))


def _seen_header(found: Findings, data: bytes) -> JpegHeader:
    """The header of a tile, read anew only where its bytes are not those of one seen before."""
    for head, header in found.known.items():
        if data.startswith(head):
            return header
    header, length = header_and_length(data)
    if len(found.known) < KNOWN_HEADERS:
        found.known[data[:length]] = header
    return header


def _size(sheet: Sheet, segment: int) -> tuple[int, int]:
    """Width and height that the data of a tile or strip has: tiles are whole, the last strip is cut."""
    if sheet.tiled:
        return sheet.tile_width_px, sheet.tile_height_px
    return sheet.width_px, min(sheet.tile_height_px, max(1, sheet.height_px - segment * sheet.tile_height_px))


def _frame_fault(header: JpegHeader, width: int, height: int) -> str | None:
    if header.frame != 0xC0:
        return f"SOF{header.frame - 0xC0}, not baseline"
    if header.bits != 8 or len(header.ids) != 3 or header.scan != 3:
        return f"{header.bits} bits, {len(header.ids)} components, {header.scan} in the first scan"
    if (header.width_px, header.height_px) != (width, height):
        return f"{header.width_px}x{header.height_px} instead of {width}x{height}"
    return None


def _check_jpeg(data: bytes, tables: bytes | None, *, decode: bool) -> None:
    if b"\xff\xd9" not in data[-TAIL_BYTES:]:
        raise ValueError("JPEG data ends without EOI")
    if decode:
        # grey is enough: all coefficients of all components are decoded, and that is where damage shows
        simplejpeg.decode_jpeg(whole_stream(data, tables), colorspace="GRAY", fastdct=True, strict=True)


def _decode_other(data: bytes, sheet: Sheet, *, codec: int | None, size: tuple[int, int]) -> str | None:
    samples = sheet.number(SAMPLES) or 1
    if samples > MAX_SAMPLES:
        return f"{samples} samples a pixel"
    wanted = size[0] * size[1] * samples
    if codec == LZW:
        got = len(imagecodecs.lzw_decode(data, out=wanted + 1))
    elif codec in (NONE, None):
        got = len(data)
    elif codec in (JPEG2000_YCC, JPEG2000_RGB):
        return _decode_jpeg2000(data, (*size, samples))
    else:
        return f"compression {codec} is none of Aperio's"
    return None if got == wanted else f"decodes to {got} bytes instead of {wanted}"


def _decode_jpeg2000(data: bytes, wanted: tuple[int, int, int]) -> str | None:
    """Decodes a raw codestream when its header (SIZ, ISO 15444-1 A.5.1) has the size ``wanted``: (w, h, components)."""
    if len(data) < 42 or not data.startswith(b"\xff\x4f\xff\x51"):
        return "no JPEG 2000 codestream"
    right, bottom, left, top = struct.unpack_from(">4I", data, 8)
    found = right - left, bottom - top, struct.unpack_from(">H", data, 40)[0]
    if found != wanted:
        return f"JPEG 2000 of {found} instead of {wanted}"
    imagecodecs.jpeg2k_decode(data)
    return None


def _numbers(layout: Layout) -> list[str]:
    wrong = []
    for sheet in layout.sheets:
        columns, rows = sheet.grid
        got = (len(sheet.offsets), len(sheet.counts))
        if got != (columns * rows, columns * rows):
            wrong.append(f"{sheet.name}: {got[0]} offsets, {got[1]} counts instead of {columns * rows}")
    return wrong


def _headers(layout: Layout, found: Findings) -> tuple[Check, ...]:
    sheets = {sheet.index: sheet for sheet in layout.sheets}
    seen = [(sheets[index], header) for index, header in found.headers]
    ycc = [(sheet, header) for sheet, header in seen if sheet.number(PHOTOMETRIC) == YCBCR]
    return (
        rule(
            "no YCbCr 4:4:4",
            [f"{sheet.name}: 4:4:4" for sheet, header in ycc if len(set(header.sampling)) == 1],
            expected="YCbCr is subsampled (Bio-Formats converts 4:4:4 twice)",
        ),
        rule(
            "YCbCrSubSampling",
            [
                f"{sheet.name}: tag {sheet.numbers(SUBSAMPLING)}, stream {header.sampling}"
                for sheet, header in ycc
                if header.sampling and (sheet.numbers(SUBSAMPLING) or (2, 2)) != _subsampling(header)
            ],
            expected="equal to the sampling of the JPEG data",
        ),
        rule(
            "JPEG colour",
            [f"{sheet.name}: {text}" for sheet, header in seen if (text := _colour_fault(sheet, header))],
            expected="markers and component ids say the colours that Photometric says",
        ),
        rule(
            "one JPEG sampling",
            [
                f"{sheet.name}: {len(kinds)} kinds"
                for sheet in layout.sheets
                if len(kinds := {header.sampling for other, header in seen if other is sheet}) > 1
            ],
            expected="the same in all tiles of a level",
        ),
    )


def _subsampling(header: JpegHeader) -> tuple[int, int] | None:
    """Tag 530 for this stream; None when the chroma components are not 1x1, which the tag cannot say."""
    return header.sampling[0] if set(header.sampling[1:]) == {(1, 1)} else None


def _colour_fault(sheet: Sheet, header: JpegHeader) -> str | None:
    """Decoders that know no TIFF take JFIF, then Adobe's transform, then the ids for the colour space."""
    photometric = sheet.number(PHOTOMETRIC)
    if photometric == YCBCR:
        if header.adobe == 0 or (header.ids == ASCII_RGB and header.adobe is None and not header.jfif):
            return "Photometric YCbCr, JPEG data says RGB"
    elif photometric == RGB:
        if header.jfif or header.adobe not in (None, 0):
            return f"Photometric RGB, JPEG data says YCbCr ({'JFIF' if header.jfif else 'Adobe'})"
        if len(set(header.sampling)) > 1:
            return "Photometric RGB with subsampled components"
        if header.adobe is None and header.ids not in ((0, 1, 2), ASCII_RGB):
            return f"Photometric RGB with component ids {header.ids} and no Adobe marker"
    else:
        return f"Photometric {photometric}"
    return None


def _tables(layout: Layout) -> Check:
    wrong = []
    for sheet in layout.sheets:
        if sheet.tables is None:
            continue
        try:
            markers = [marker for marker, _ in segments(sheet.tables)]
        except ValueError as error:
            wrong.append(f"{sheet.name}: {error}")
            continue
        if markers[-1] != EOI or not set(markers[:-1]) <= {DQT, DHT}:
            wrong.append(f"{sheet.name}: markers {', '.join(f'{marker:02X}' for marker in markers)}")
    return rule("content of JPEGTables", wrong, expected="SOI, quantisation and Huffman tables, EOI")
