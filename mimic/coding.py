"""How a slide's pixels are compressed, from the headers of its file and of a few tiles; nothing is decoded."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mimic import jpegquality, sheets, structure
from mimic.errors import MimicError
from mimic.jpegheads import segments
from mimic.model import Image, Slide
from mimic.sheets import Sheet
from mimic.structure.reader import Input

TIFF_CODECS = {
    1: "none", 5: "lzw", 6: "jpeg (old style)", 7: "jpeg", 8: "deflate", 32773: "packbits", 32946: "deflate",
    22610: "jpeg-xr", 33003: "jpeg 2000", 33004: "jpeg 2000", 33005: "jpeg 2000", 34712: "jpeg 2000", 34925: "lzma",
    34933: "png", 34934: "jpeg-xr", 50000: "zstd", 50001: "webp", 50002: "jpeg-xl", 52546: "jpeg-xl",
}  # fmt: skip
"""TIFF's numbers, Aperio's and Hamamatsu's own among them."""
CZI_CODECS = {0: "none", 1: "jpeg", 2: "lzw", 4: "jpeg-xr", 5: "zstd", 6: "zstd"}
PICTURE_CODECS = {"png": "deflate", "bmp": "none", "webp": "webp", "jp2": "jpeg 2000", "jpeg": "jpeg"}
DICOM_CODECS: dict[str, tuple[str, bool | None]] = {
    **dict.fromkeys(("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"), ("none", False)),
    "1.2.840.10008.1.2.1.99": ("deflate", False),
    "1.2.840.10008.1.2.5": ("packbits", False),
    "1.2.840.10008.1.2.4.50": ("jpeg", True),
    "1.2.840.10008.1.2.4.51": ("jpeg", True),
    "1.2.840.10008.1.2.4.57": ("jpeg lossless", False),
    "1.2.840.10008.1.2.4.70": ("jpeg lossless", False),
    "1.2.840.10008.1.2.4.80": ("jpeg-ls", False),
    "1.2.840.10008.1.2.4.81": ("jpeg-ls", True),
    "1.2.840.10008.1.2.4.90": ("jpeg 2000", False),
    "1.2.840.10008.1.2.4.91": ("jpeg 2000", None),
    "1.2.840.10008.1.2.4.110": ("jpeg-xl", False),
    "1.2.840.10008.1.2.4.111": ("jpeg-xl", True),
    "1.2.840.10008.1.2.4.112": ("jpeg-xl", None),
    "1.2.840.10008.1.2.4.201": ("jpeg 2000", False),
    "1.2.840.10008.1.2.4.202": ("jpeg 2000", False),
    "1.2.840.10008.1.2.4.203": ("jpeg 2000", None),
}
"""By transfer syntax (DICOM PS3.6, annex A): the codec, and whether it loses anything."""
LOSSLESS = frozenset(("none", "lzw", "deflate", "packbits", "lzma", "png", "zstd"))
LOSSLESS_FRAME = 0xC3
"""A JPEG's SOF3: lossless, and without quantisation."""
TILES = 4
"""Looked at for their tables; a slide is written with one setting, and stitched ones rarely differ."""
HEAD_BYTES = 16 << 10
PICTURE_HEAD_BYTES = 1 << 20
"""Of a JPEG file, whose colour profile and EXIF data may stand before its tables."""
FIRST_FRAME = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0"
"""DICOM: encapsulated pixel data and the item that begins its offset table."""
SEARCH_BYTES = 64 << 20
"""A header of positions for each of 200 000 frames is shorter."""


@dataclass(frozen=True, slots=True)
class Coding:
    """``quality`` is the estimate of libjpeg's, ``note`` says where all this was found. None: the file does not tell,
    or mimic does not know how to ask it."""

    codec: str | None = None
    quality: int | None = None
    lossy: bool | None = None
    note: str = ""


def coding(slide: Slide, image: Image) -> Coding:
    """The compression of ``image``'s largest level. Never raises: what cannot be read stays unknown."""
    try:
        found = _by_container(slide, image)
    except MimicError:
        found = Coding()
    level = image.levels[0]
    if found.codec is None and level.codec is not None:
        lossy = level.lossy if level.lossy is not None else _loses(level.codec)
        found = Coding(level.codec, None, lossy, f"read by {slide.source}")
    coded = slide.coded
    if coded is not None and coded.reason is None and found.quality is None and coded.quality is not None:
        found = replace(found, quality=coded.quality)
    return found


def _by_container(slide: Slide, image: Image) -> Coding:
    kind = structure.container(slide.path)
    if kind == "tiff":
        return _tiff(slide.path, image)
    if kind == "dicom":
        return _dicom(slide, image)
    if kind == "czi":
        return _czi(slide.path)
    if kind in PICTURE_CODECS:
        return _picture(slide.path, PICTURE_CODECS[kind])
    return Coding()


def _tiff(path: Path, image: Image) -> Coding:
    """By the directory of the image's own size; else by the largest (a Leica SCN begins with its macro)."""
    layout = sheets.read(path)
    size = image.levels[0].width_px, image.levels[0].height_px
    same = [sheet for sheet in layout.sheets if (sheet.width_px, sheet.height_px) == size]
    sheet = same[0] if same else max(layout.sheets, key=lambda each: each.width_px * each.height_px)
    codec = TIFF_CODECS.get(sheet.number(sheets.COMPRESSION) or 1)
    with Input(path) as source:
        heads = [source.upto(int(sheet.offsets[index]), HEAD_BYTES) for index in _few(sheet)]
    return _judge(codec, heads, sheet.tables, f"tags and tiles of directory {sheet.index}")


def _few(sheet: Sheet) -> list[int]:
    """Some tiles or strips that are there, from all over the image."""
    count = min(len(sheet.offsets), len(sheet.counts)) or len(sheet.offsets)
    places = [int(index) for index in np.linspace(0, count - 1, min(count, 4 * TILES)).round()]
    there = [index for index in places if index >= len(sheet.counts) or sheet.counts[index] > 0]
    return there[:: max(1, len(there) // TILES)][:TILES]


def _judge(codec: str | None, heads: list[bytes], tables: bytes | None, note: str) -> Coding:
    """``codec`` with what the compressed data say themselves; ``heads`` are the first bytes of some tiles."""
    if codec == "jpeg":
        if any(_is_lossless(head) for head in heads):
            return Coding("jpeg lossless", None, False, note)
        found = Counter(jpegquality.estimate(head, tables) for head in heads)
        found.pop(None, None)
        quality = found.most_common(1)[0][0] if found else None
        return Coding("jpeg", quality, True, note)
    if codec == "jpeg 2000":
        return Coding(codec, None, _irreversible(heads[0]) if heads else None, note)
    return Coding(codec, None, _loses(codec), note)


def _loses(codec: str | None) -> bool | None:
    return False if codec in LOSSLESS else True if codec == "jpeg" else None


def _is_lossless(head: bytes) -> bool:
    try:
        return any(marker == LOSSLESS_FRAME for marker, _ in segments(head))
    except ValueError:
        return False


def _irreversible(head: bytes) -> bool | None:
    """True for a JPEG 2000 codestream with the 9-7 wavelet; the 5-3 one may be lossless, or cut off: None.

    Walks the main header to its COD segment (ISO 15444-1, A.6.1), wherever the codestream begins in ``head``.
    """
    at = head.find(b"\xff\x4f\xff\x51") + 2
    while at >= 2 and at + 14 <= len(head):
        marker, length = struct.unpack_from(">HH", head, at)
        if marker == 0xFF52:
            return True if head[at + 13] == 0 else None
        if marker < 0xFF00 or marker == 0xFF90:
            break
        at += 2 + length
    return None


def _dicom(slide: Slide, image: Image) -> Coding:
    """By the file of the series that holds the image's largest level; a single file is that itself."""
    size = image.levels[0].width_px, image.levels[0].height_px
    for path in (slide.path, *slide.files):
        facts = structure.check(path).dicom
        if facts is None:
            continue
        matrix = facts.matrix_width_px or facts.columns_px, facts.matrix_height_px or facts.rows_px
        if matrix != size and len(slide.files) > 1:
            continue
        codec, lossy = DICOM_CODECS.get(facts.transfer_syntax_uid or "", (None, None))
        note = f"transfer syntax {facts.transfer_syntax_uid}"
        if codec not in ("jpeg", "jpeg 2000"):
            return Coding(codec, None, lossy, note)
        found = _judge(codec, [_first_frame(path)], None, f"{note} and the first frame")
        return replace(found, lossy=lossy if lossy is not None else found.lossy)
    return Coding()


def _first_frame(path: Path) -> bytes:
    """The first bytes of the first frame of encapsulated pixel data; empty where there is none."""
    with Input(path) as source:
        step, overlap = 1 << 20, len(FIRST_FRAME) - 1
        for start in range(0, min(source.size, SEARCH_BYTES), step):
            found = source.upto(start, step + overlap).find(FIRST_FRAME)
            if found < 0:
                continue
            at = start + found + len(FIRST_FRAME)
            (table_bytes,) = source.unpack("<I", at, "the offset table")
            return source.upto(at + 4 + table_bytes + 8, HEAD_BYTES)
    return b""


def _czi(path: Path) -> Coding:
    """What most full-resolution subblocks say; JPEG-XR does not tell in its directory whether it lost anything."""
    facts = structure.check(path).czi
    if facts is None or not len(facts.subblocks):
        return Coding()
    numbers = Counter(facts.subblocks[:, 6].tolist())
    codec = CZI_CODECS.get(int(numbers.most_common(1)[0][0]))
    return Coding(codec, None, _loses(codec), "the CZI's directory")


def _picture(path: Path, codec: str) -> Coding:
    with Input(path) as source:
        head = source.upto(0, PICTURE_HEAD_BYTES)
    return _judge(codec, [head], None, "the picture's header")
