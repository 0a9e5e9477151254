"""The structural proof: does a file keep every rule that the readers of Aperio slides rely on?

The rules are those of the SVS write specification: container and tags here, texts in ``wording``, compressed data in
``streams``. A MUST is something a genuine scanner's file keeps and some reader breaks without; a SHOULD degrades some
readers, or is what scanners of some generation do not do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable
from itertools import pairwise
from pathlib import Path

from mimic import streams, wording
from mimic.model import Check, Progress
from mimic.sheets import (
    BITS,
    COMPRESSION,
    EXTRA_SAMPLES,
    IMAGE_DEPTH,
    PHOTOMETRIC,
    PLANAR,
    PREDICTOR,
    SAMPLES,
    SUBFILETYPE,
    TILE_HEIGHT,
    TILE_WIDTH,
    Layout,
    Sheet,
    faults,
    read,
    rule,
)

ORDER = re.compile(r"baseline thumbnail( level)*( label)?( macro)?")
SUBFILETYPES = {"label": 1, "macro": 9}
LONG = 4
PER_LEVEL_TAGS = (BITS, COMPRESSION, PHOTOMETRIC, 274, SAMPLES, PLANAR, TILE_WIDTH, TILE_HEIGHT)
"""large_image compares these, presence included, before it takes a directory for a level."""
WIDTH_TOLERANCE = 0.007
"""opentile: |log2 of the width ratio, minus a whole number| <= 0.01."""
HEIGHT_TOLERANCE = 0.0139
"""large_image: 0.02 in log2, on both axes."""
MIN_SIDE_PX = 144
"""Floor division keeps both tolerances on sides of at least this many pixels."""
MAX_TOP_PX = 8192
MAX_TOP_BYTES = 5 << 20
"""OpenSlide makes a quickhash-1 of the smallest level when its tiles have at most this many bytes."""
MAX_ASSOCIATED_PX = 8192
BIGTIFF_BYTES = int(3.9 * (1 << 30))
"""Classic TIFF ends at 4 GiB; a BigTIFF below this costs QuPath its choice of OpenSlide."""


def structure(
    path: Path,
    *,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    sums: streams.Sums | None = None,
    decoded: int = 0,
) -> tuple[Check, ...]:
    """Every rule that can be seen in a TIFF file, one Check each; all tiles of all levels are read and decoded.

    ``sums`` (``TiffWriter.sums``) are what a file that was just written must hold; then a sample is decoded, and fewer
    still of the first ``decoded`` levels, whose tiles were all decoded while they were copied.
    Raises BadInput for a file that is missing, no TIFF, or so damaged that its directories cannot be read.
    """
    layout = read(path)
    return (
        *_container(layout),
        *_tags(layout),
        *_geometry(layout),
        *wording.check(layout),
        *streams.check(layout, threads=threads, progress=progress, sums=sums, decoded=decoded),
    )


def _container(layout: Layout) -> tuple[Check, ...]:
    parts = " ".join(sheet.kind if sheet.index or sheet.tiled else "baseline(stripped)" for sheet in layout.sheets)
    size = f"{'BigTIFF' if layout.bigtiff else 'classic TIFF'}, {layout.size_bytes} bytes"
    return (
        Check("extension", layout.path.suffix == ".svs", layout.path.suffix or "none", ".svs in lower case"),
        Check("byte order", layout.order == "<", "little" if layout.order == "<" else "big", "little-endian"),
        Check(
            "BigTIFF",
            layout.bigtiff == (layout.size_bytes > BIGTIFF_BYTES),
            size,
            "BigTIFF above 3.9 GiB, classic below",
            must=False,
        ),
        Check("no SubIFDs", not layout.subifds and not _having(layout, 330), f"{layout.subifds} SubIFDs", "none"),
        Check(
            "IFD order",
            ORDER.fullmatch(parts) is not None,
            parts,
            "tiled baseline, stripped thumbnail, tiled levels, label, macro",
        ),
        rule(
            "tag order",
            faults(layout.sheets, _tag_order_fault),
            expected="tags ascend within a directory",
            must=False,
        ),
    )


def _tags(layout: Layout) -> tuple[Check, ...]:
    stripped = [sheet for sheet in layout.sheets if not sheet.tiled]
    tiled = layout.tiled()
    return (
        rule("NewSubfileType", faults(layout.sheets, _subfiletype_fault), expected="LONG: 0, label 1, macro 9"),
        _values("BitsPerSample", layout.sheets, BITS, allowed={(8, 8, 8)}, expected="8,8,8"),
        _values("SamplesPerPixel", layout.sheets, SAMPLES, allowed={(3,)}, expected="3"),
        _values("PlanarConfiguration", layout.sheets, PLANAR, allowed={(1,)}, expected="1"),
        _values(
            "Compression",
            tiled,
            COMPRESSION,
            allowed={(7,), (33003,), (33005,)},
            expected="JPEG (7) or Aperio's JPEG 2000",
        ),
        _values(
            "Compression JPEG", tiled, COMPRESSION, allowed={(7,)}, expected="7: JPEG 2000 not by default", must=False
        ),
        _values(
            "Compression of associated images", stripped, COMPRESSION, allowed={(5,), (7,)}, expected="JPEG or LZW"
        ),
        _values("Photometric", layout.sheets, PHOTOMETRIC, allowed={(2,), (6,)}, expected="RGB (2) or YCbCr (6)"),
        rule("level tags", _unlike(tiled), expected="the same on the baseline and all levels, presence included"),
        rule("tile size", faults(tiled, _tile_fault), expected="multiples of 16 px"),
        rule("tile shape", faults(tiled, _shape_fault), expected="square, 240 px or a power of two", must=False),
        rule(
            "Predictor",
            faults(layout.sheets, _predictor_fault),
            expected="absent with JPEG, 1 or 2 with LZW",
        ),
        _absent("ExtraSamples", layout, EXTRA_SAMPLES),
        rule(
            "ImageDepth",
            faults(layout.sheets, lambda sheet: None if sheet.number(IMAGE_DEPTH) in (None, 1) else "not 1"),
            expected="absent or 1",
        ),
        _absent("Make", layout, 271, must=False),
        _absent("Model", layout, 272, must=False),
        rule(
            "single strips",
            faults(stripped, lambda sheet: None if len(sheet.offsets) == 1 else f"{len(sheet.offsets)} strips"),
            expected="thumbnail, label and macro in one strip each (opentile)",
            must=False,
        ),
    )


def _tag_order_fault(sheet: Sheet) -> str | None:
    return None if list(sheet.fields) == sorted(sheet.fields) else "not ascending"


def _having(layout: Layout, tag: int) -> list[Sheet]:
    return [sheet for sheet in layout.sheets if tag in sheet.fields]


def _absent(name: str, layout: Layout, tag: int, *, must: bool = True) -> Check:
    return rule(name, [f"{sheet.name}: present" for sheet in _having(layout, tag)], expected="absent", must=must)


def _values(
    name: str,
    sheets: Iterable[Sheet],
    tag: int,
    *,
    allowed: Collection[tuple[int, ...]],
    expected: str,
    must: bool = True,
) -> Check:
    def fault(sheet: Sheet) -> str | None:
        found = sheet.numbers(tag)
        return None if found in allowed else f"{_shown(found)}"

    return rule(name, faults(sheets, fault), expected=f"{expected}, explicit", must=must)


def _shown(numbers: tuple[int, ...] | None) -> str:
    return "absent" if numbers is None else ",".join(map(str, numbers))


def _subfiletype_fault(sheet: Sheet) -> str | None:
    found, wanted = sheet.fields.get(SUBFILETYPE), SUBFILETYPES.get(sheet.kind, 0)
    if found is None:
        return "absent"
    kind, numbers = found
    return None if kind == LONG and numbers == (wanted,) else f"{_shown(numbers)} of type {kind}, not LONG {wanted}"


def _unlike(tiled: tuple[Sheet, ...]) -> list[str]:
    wrong = []
    for sheet in tiled[1:]:
        tags = [tag for tag in PER_LEVEL_TAGS if sheet.numbers(tag) != tiled[0].numbers(tag)]
        if tags:
            wrong.append(f"{sheet.name}: tag {', '.join(map(str, tags))}")
    return wrong


def _tile_fault(sheet: Sheet) -> str | None:
    good = sheet.tile_width_px % 16 == 0 and sheet.tile_height_px % 16 == 0
    return None if good else f"{sheet.tile_width_px}x{sheet.tile_height_px}"


def _shape_fault(sheet: Sheet) -> str | None:
    side = sheet.tile_width_px
    usual = side == sheet.tile_height_px and (side == 240 or side & (side - 1) == 0)
    return None if usual else f"{side}x{sheet.tile_height_px}"


def _predictor_fault(sheet: Sheet) -> str | None:
    found = sheet.number(PREDICTOR)
    allowed = (None, 1, 2) if sheet.number(COMPRESSION) == streams.LZW else (None,)
    return None if found in allowed else f"{found}"


def _geometry(layout: Layout) -> tuple[Check, ...]:
    base, tiled = layout.sheets[0], layout.tiled()
    levels = tiled[1:] if base.tiled else tiled
    top = tiled[-1] if tiled else base
    sizes = " ".join(f"{sheet.width_px}x{sheet.height_px}" for sheet in tiled)
    low = min((sheet.height_px for sheet in tiled), default=base.height_px)
    thumbnails = layout.of("thumbnail")
    top_bytes = int(top.counts.sum())
    return (
        Check("levels shrink", _shrinks(tiled), sizes, "every level smaller than the one before"),
        rule(
            "level ratio",
            faults(levels, lambda sheet: _ratio_fault(base, sheet)),
            measured=sizes,
            expected="a power of two: width within 0.7 % (opentile), height within 1.4 % (large_image)",
        ),
        rule(
            "level size",
            faults(levels, lambda sheet: _floor_fault(base, sheet)),
            measured=sizes,
            expected="floor(W/f) x floor(H/f), f a power of two",
            must=False,
        ),
        rule(
            "level sides",
            faults(levels, lambda sheet: None if min(sheet.width_px, sheet.height_px) >= MIN_SIDE_PX else _size(sheet)),
            expected=f"at least {MIN_SIDE_PX} px",
            must=False,
        ),
        rule(
            "thumbnail height",
            faults(thumbnails, lambda sheet: None if sheet.height_px < low else f"{sheet.height_px} of {low} px"),
            expected="below the smallest level's (else Bio-Formats drops that level)",
        ),
        Check(
            "smallest level",
            max(top.width_px, top.height_px) <= MAX_TOP_PX and top_bytes <= MAX_TOP_BYTES,
            f"{_size(top)}, {top_bytes} bytes",
            f"long side at most {MAX_TOP_PX} px, at most {MAX_TOP_BYTES} bytes",
            must=False,
        ),
        rule(
            "associated images",
            faults(
                [sheet for sheet in layout.sheets if not sheet.tiled],
                lambda sheet: None if max(sheet.width_px, sheet.height_px) <= MAX_ASSOCIATED_PX else _size(sheet),
            ),
            expected=f"at most {MAX_ASSOCIATED_PX} px a side",
        ),
    )


def _size(sheet: Sheet) -> str:
    return f"{sheet.width_px}x{sheet.height_px}"


def _shrinks(tiled: tuple[Sheet, ...]) -> bool:
    return all(b.width_px < a.width_px and b.height_px < a.height_px for a, b in pairwise(tiled))


def _factor(base: Sheet, sheet: Sheet) -> int:
    """The power of two nearest to the width's ratio."""
    return 1 << max(0, round(math.log2(base.width_px / sheet.width_px)))


def _ratio_fault(base: Sheet, sheet: Sheet) -> str | None:
    factor = _factor(base, sheet)
    across = base.width_px / sheet.width_px / factor
    down = base.height_px / sheet.height_px / factor
    if factor > 1 and abs(across - 1) <= WIDTH_TOLERANCE and abs(down - 1) <= HEIGHT_TOLERANCE:
        return None
    return f"{base.width_px / sheet.width_px:.3f} x {base.height_px / sheet.height_px:.3f}"


def _floor_fault(base: Sheet, sheet: Sheet) -> str | None:
    factor = _factor(base, sheet)
    wanted = base.width_px // factor, base.height_px // factor
    got = sheet.width_px, sheet.height_px
    return None if got == wanted else f"{_size(sheet)} instead of {wanted[0]}x{wanted[1]}"
