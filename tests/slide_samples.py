"""SVS and NDPI of many layouts, written by hand and by tifffile, for the tests of the source openslide."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tifffile

from mimic.model import Pixels
from tests.coded_samples import KINDS
from tools.make_samples import histology, reduced

SIZE = (700, 560)
HEAD = "Aperio Image Library v12.0.15"
GT450 = "Aperio Leica Biosystems GT450 v1.0.1"
FACTS = "|AppMag = 40|MPP = 0.2500|Date = 03/05/24|Time = 09:08:07|Time Zone = GMT+00:00|User = u|Left = 1.5"


@dataclass(frozen=True)
class Layout:
    """An SVS to be written. ``kind`` is how its JPEG is coded; ``facts`` stand in its first description."""

    kind: str = "rgb"
    facts: str = FACTS
    thumbnail: str | None = f"{HEAD}\n700x560 -> 100x80 - {FACTS}"
    level: str | None = f"{HEAD} \r\n700x560 [0,0 700x560] (256x256) -> 350x280 JPEG/RGB Q=80"
    label: str | None = f"{HEAD}\nlabel 60x70"
    macro: str | None = f"{HEAD}\nmacro 90x40"
    marks: tuple[int, int] = (1, 9)
    swapped: bool = False
    label_codec: str | None = "lzw"
    head: str = HEAD


def write_svs(path: Path, layout: Layout = Layout()) -> Pixels:
    """The picture that was coded."""
    picture = histology(*SIZE)
    jpeg: dict[str, Any] = {"compression": "jpeg", "metadata": None, "software": False, **KINDS[layout.kind]}
    plain: dict[str, Any] = {
        "photometric": "rgb",
        "compression": layout.label_codec,
        "metadata": None,
        "software": False,
    }
    plain |= {"predictor": 2} if layout.label_codec else {}
    tiled, strips = {"tile": (256, 256), **jpeg}, {"rowsperstrip": 16, **jpeg}
    with tifffile.TiffWriter(path) as file:

        def add(data: Pixels, text: str | None, subfile: int, options: dict[str, Any]) -> None:
            if text is not None:
                file.write(data, description=text or None, subfiletype=subfile, **options)

        add(picture, f"{layout.head} \r\n700x560 [0,0 700x560] (256x256) JPEG/RGB Q=80{layout.facts}", 0, tiled)
        add(np.asarray(PIL.Image.fromarray(picture).resize((100, 80))), layout.thumbnail, 0, strips)
        add(reduced(picture, 2), layout.level, 0, tiled)
        others = [
            (histology(60, 70), layout.label, layout.marks[0], {**plain, "rowsperstrip": 7}),
            (histology(90, 40), layout.macro, layout.marks[1], strips),
        ]
        for each in others[::-1] if layout.swapped else others:
            add(*each)
    return picture


def entropy(tile: Pixels, subsampling: str) -> tuple[bytes, bytes]:
    """What stands before the coded data of a JPEG, and the coded data."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(tile)).save(file, "JPEG", quality=90, subsampling=subsampling)
    raw = file.getvalue()
    at = raw.index(b"\xff\xda")
    at += 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
    return raw[:at], raw[at:-2]


def strip(picture: Pixels, run_px: tuple[int, int], subsampling: str) -> tuple[bytes, list[int]]:
    """A JPEG of runs of that size, each coded by itself, and where they begin. A size that a JPEG cannot say is 0."""
    runs = []
    height, width = picture.shape[:2]
    head = b""
    for y in range(0, height, run_px[1]):
        for x in range(0, width, run_px[0]):
            head, coded = entropy(picture[y : y + run_px[1], x : x + run_px[0]], subsampling)
            runs.append(coded)
    frame, scan = head.index(b"\xff\xc0"), head.index(b"\xff\xda")
    sides = (side if side <= 65_500 else 0 for side in (height, width))
    blocks = run_px[0] // (16 if subsampling == "4:2:2" else 8) * (run_px[1] // 8)
    cut = b"\xff\xdd\0\4" + struct.pack(">H", blocks)
    data = bytearray(head[: frame + 5] + struct.pack(">HH", *sides) + head[frame + 9 : scan] + cut + head[scan:])
    starts = []
    for number, coded in enumerate(runs):
        starts.append(len(data))
        data += coded + bytes((0xFF, 0xD0 + number % 8 if number + 1 < len(runs) else 0xD9))
    return bytes(data), starts


@dataclass(frozen=True)
class Ndpi:
    """An NDPI to be written: its levels halve ``size_px``. ``changes`` replaces tags of its first directory: the type,
    how many, and the value; None leaves one out."""

    size_px: tuple[int, int] = (1024, 512)
    run_px: tuple[int, int] = (512, 8)
    subsampling: str = "4:4:4"
    lenses: tuple[float, ...] = (40.0, 20.0)
    macro: tuple[float, ...] = (-1.0, -2.0)
    focus: tuple[int, ...] = (0, 0)
    changes: tuple[tuple[int, tuple[int, int, bytes] | None], ...] = ()


def write_ndpi(path: Path, layout: Ndpi = Ndpi()) -> Pixels:
    """Directories with 64-bit links, JPEG strips with restart markers and their places. The picture of level 0."""
    out, link = bytearray(b"II*\0" + bytes(8)), 4
    width, height = layout.size_px
    picture = np.tile(histology(min(width, 1024), height), (1, -(-width // 1024), 1))[:, :width]
    for number, lens in enumerate((*layout.lenses, *layout.macro)):
        factor = round(layout.lenses[0] / lens) if lens > 0 else 1
        pixels = histology(96, 64) if lens < 0 else picture[: height - height % factor : factor, ::factor]
        run = layout.run_px if lens > 0 else (96, 64)
        if lens == -2:
            raw, starts = np.ascontiguousarray(pixels[..., 0]).tobytes(), []
        else:
            raw, starts = strip(pixels, (min(run[0], pixels.shape[1]), 8 if lens > 0 else 64), layout.subsampling)
        fields: dict[int, tuple[int, int, bytes]] = {
            256: (4, 1, struct.pack("<I", pixels.shape[1])),
            257: (4, 1, struct.pack("<I", pixels.shape[0])),
            258: (3, 3, bytes((8, 0) * 3)) if lens != -2 else (3, 1, bytes((8, 0))),
            259: (3, 1, bytes((7 if lens != -2 else 1, 0))),
            262: (3, 1, bytes((6 if lens != -2 else 1, 0))),
            271: (2, 10, b"Hamamatsu\0"),
            272: (2, 9, b"C9600-12\0"),
            273: (4, 1, struct.pack("<I", len(out))),
            277: (3, 1, bytes((3 if lens != -2 else 1, 0))),
            278: (4, 1, struct.pack("<I", pixels.shape[0])),
            279: (4, 1, struct.pack("<I", len(raw))),
            282: (5, 1, struct.pack("<II", 43826, 1)),
            283: (5, 1, struct.pack("<II", 43826, 1)),
            296: (3, 1, bytes((3, 0))),
            306: (2, 20, b"2017:02:07 13:07:45\0"),
            65420: (4, 1, struct.pack("<I", 1)),
            65421: (11, 1, struct.pack("<f", lens)),
        }
        if lens > 0:
            fields[65424] = (9, 1, struct.pack("<i", layout.focus[number]))
            fields[65426] = (4, len(starts), struct.pack(f"<{len(starts)}I", *starts))
        properties = b"NDP.S/N=950291\r\nProduct=C9600-12\r\nx=y\0"
        fields[65449] = (2, len(properties), properties)
        for tag, change in layout.changes if not number else ():
            if change is None:
                fields.pop(tag)
            else:
                fields[tag] = change
        out += raw
        entries = b""
        for tag, (kind, count, value) in sorted(fields.items()):
            where = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", len(out))
            entries += struct.pack("<HHI", tag, kind, count) + where
            out += value if len(value) > 4 else b""
        struct.pack_into("<Q", out, link, len(out))
        link = len(out) + 2 + len(entries)
        out += struct.pack("<H", len(fields)) + entries + bytes(8) + bytes(4 * len(fields))
    path.write_bytes(out)
    return picture
