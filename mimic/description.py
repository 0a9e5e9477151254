"""ImageDescription text of the Aperio dialect, both ways: svs-spec.md, sections 1 and 2. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from types import MappingProxyType
from typing import Literal

from mimic.errors import InternalError
from mimic.model import Scale

PREFIX = "Aperio Image Library v12.0.15"
"""First words of every description: Bio-Formats wants "Aperio Image" in a file not named .svs, tifffile "Aperio "."""

MIN_MPP_UM, MAX_MPP_UM = 1e-5, 1e5
"""No light or electron microscope goes beyond, and the resolution tags (10000/MPP in 32 bits) could not follow."""

Kind = Literal["baseline", "thumbnail", "level", "label", "macro", "unknown"]

_MAX_VALUE_CHARS = 200


@dataclass(frozen=True, slots=True)
class Description:
    """What an ImageDescription says; None or empty where it says nothing.

    ``scan_px`` (width, height) is the uncropped scan, for a thumbnail the baseline; ``crop_px`` is (x, y, width,
    height) in it; ``size_px`` (width, height) is what follows "->", "label" or "macro". ``pairs`` are in the text's
    order, a key may be there twice; ``stray`` are the "|" tokens without "=", which no genuine text has.
    """

    kind: Kind
    prefix: str = PREFIX
    scan_px: tuple[int, int] | None = None
    crop_px: tuple[int, int, int, int] | None = None
    tile_px: tuple[int, int] | None = None
    size_px: tuple[int, int] | None = None
    codec: str | None = None
    quality: int | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    stray: tuple[str, ...] = ()

    @property
    def values(self) -> Mapping[str, str]:
        """``pairs`` by key; of a key that is there twice the last, as readers take it."""
        return MappingProxyType(dict(self.pairs))


def format_description(description: Description) -> str:
    r"""The text of a Description, without the closing NUL.

    CR LF after the prefix for tiled pages, bare LF for the others: OpenSlide up to 4.0.0 finds no label or macro after
    CR LF. Raises InternalError when a part that the kind needs is missing, or a value would break the text.
    """
    for key, value in description.pairs:
        if not key or not value or clean(key) != key or clean(value) != value or "=" in key:
            raise InternalError(f"the pair {key!r}, {value!r} cannot stand in an Aperio description")
    pairs = "".join(f"|{key} = {value}" for key, value in description.pairs)
    match description:
        case Description(kind="label" | "macro" as kind, size_px=(wide, high)):
            return f"{description.prefix}\n{kind} {wide}x{high}"
        case Description(kind="thumbnail", scan_px=(full_wide, full_high), size_px=(wide, high)):
            return f"{description.prefix}\n{full_wide}x{full_high} -> {wide}x{high} - {pairs}"
        case Description(kind="baseline"):
            return f"{description.prefix} \r\n{_geometry(description)} {_codec(description)}{pairs}"
        case Description(kind="level", size_px=(wide, high)):
            return f"{description.prefix} \r\n{_geometry(description)} -> {wide}x{high} {_codec(description)}"
    raise InternalError(f"{description} has no Aperio text")


def parse(text: str) -> Description:
    """What ``text`` says, as far as it can be read; never raises. ``parse(format_description(x)) == x``.

    Only the newest entry of a history (they are divided by ";") tells geometry and codec; pairs are taken from all.
    """
    head, *tokens = text.rstrip("\0").split("|")
    prefix, _, body = head.partition("\n")
    body = body.partition(";")[0]
    scan_px, crop_px, size_px = _numbers(_SCAN, body), _numbers(_CROP, body), _numbers(_TARGET, body)
    picture = _PICTURE.match(body)
    codec, quality = _CODEC.search(body), _numbers(_QUALITY, body)
    kind: Kind = "unknown"
    if picture:
        kind = "label" if picture[1].lower() == "label" else "macro"
        size_px, scan_px = _numbers(_PICTURE_SIZE, body), None
    elif size_px and scan_px:
        kind = "level" if crop_px else "thumbnail"
    elif crop_px and scan_px:
        kind = "baseline"
    return Description(
        kind=kind,
        prefix=prefix.strip(),
        scan_px=(scan_px[0], scan_px[1]) if scan_px else None,
        crop_px=(crop_px[0], crop_px[1], crop_px[2], crop_px[3]) if crop_px else None,
        tile_px=(tile[0], tile[1]) if (tile := _numbers(_TILE, body)) else None,
        size_px=(size_px[0], size_px[1]) if size_px else None,
        codec=codec[0] if codec else None,
        quality=quality[0] if quality else None,
        pairs=tuple(_pair(token) for token in tokens if "=" in token),
        stray=tuple(token for token in tokens if "=" not in token),
    )


def mpp_text(scale: Scale) -> str:
    """MPP as the description has it: one value for both axes, their mean.

    Four decimals, as genuine, or six and more where four would change the value by over 0.01 %; never an exponent.
    Raises InternalError outside of MIN_MPP_UM to MAX_MPP_UM.
    """
    value = (Decimal(scale.x_um) + Decimal(scale.y_um)) / 2 if isfinite(scale.x_um + scale.y_um) else Decimal(0)
    if not MIN_MPP_UM <= float(value) <= MAX_MPP_UM:
        raise InternalError(f"a pixel cannot be {scale.x_um} x {scale.y_um} um")
    if abs(Decimal(text := f"{value:.4f}") - value) <= value / 10_000:
        return text
    places = max(6, 4 - value.adjusted())
    whole, _, decimals = f"{value:.{places}f}".partition(".")
    return f"{whole}.{decimals.rstrip('0'):0<4}"


def clean(text: str) -> str:
    """``text`` as a value of a pair: printable ASCII that no reader takes for more than a value.

    Readers split at "|" and " = ", take "label" and "macro" anywhere for those images (slideio), and "imagej" or
    "<OME" for another format (QuPath).
    """
    text = unicodedata.normalize("NFKD", text.replace("\N{MICRO SIGN}", "u").replace("\N{GREEK SMALL LETTER MU}", "u"))
    text = "".join(char for char in text if not unicodedata.combining(char))
    text = re.sub(r"[^\x20-\x7e]", lambda char: " " if char[0].isspace() or char[0] < " " else "?", text)
    text = text.translate(_BRACKETS)
    text = _FORBIDDEN.sub(lambda word: f"{word[0][:2]}-{word[0][2:]}", text)
    text = " ".join(re.sub(r"\s*=\s*", "=", text).split())
    return text[:_MAX_VALUE_CHARS].strip(" =")


_BRACKETS = str.maketrans("<>|", "()/")
_FORBIDDEN = re.compile("label|macro|imagej", re.IGNORECASE)

_INT = r"([0-9]{1,10})"
_SCAN = re.compile(rf"\s*{_INT}x{_INT}")
_CROP = re.compile(rf"\[{_INT},{_INT} {_INT}x{_INT}\]")
_TILE = re.compile(rf"\({_INT}x{_INT}\)")
_TARGET = re.compile(rf"-> ?{_INT}x{_INT}")
_PICTURE = re.compile(r"\s*(label|macro)\b", re.IGNORECASE)
_PICTURE_SIZE = re.compile(rf"(?:label|macro) {_INT}x{_INT}", re.IGNORECASE)
_CODEC = re.compile(r"\b[A-Z][A-Z0-9]*/[A-Za-z0-9]+")
_QUALITY = re.compile(rf"\bQ ?= ?{_INT}")


def _numbers(pattern: re.Pattern[str], body: str) -> tuple[int, ...] | None:
    found = pattern.match(body) if pattern is _SCAN else pattern.search(body)
    return tuple(int(number) for number in found.groups()) if found else None


def _pair(token: str) -> tuple[str, str]:
    key, _, value = token.partition("=")
    return key.strip(), value.strip()


def _geometry(description: Description) -> str:
    match description:
        case Description(scan_px=(wide, high), crop_px=(x, y, crop_wide, crop_high), tile_px=(tile_wide, tile_high)):
            return f"{wide}x{high} [{x},{y} {crop_wide}x{crop_high}] ({tile_wide}x{tile_high})"
    raise InternalError(f"{description} lacks its geometry")


def _codec(description: Description) -> str:
    """JPEG 2000 may come without a quality: its codestreams do not tell one."""
    if description.codec is None or (description.quality is None and not description.codec.startswith("J2K")):
        raise InternalError(f"{description} lacks its codec")
    return description.codec + (f" Q={description.quality}" if description.quality is not None else "")
