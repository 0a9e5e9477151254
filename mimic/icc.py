"""ICC profiles as bytes: what they are for, what they are called, and a copy that tells no names. Pure.

Layout: ICC.1:2022, sections 7.2 (header), 7.3 (tag table), 10.15 (multi-localised text); ICC.1:2001, 6.5.17 (text
description). What a scanner's maker writes into the texts of a profile can name the very device and the day.
"""

from __future__ import annotations

import re
import struct

HEADER_BYTES = 128
SIGNATURE_AT, SIGNATURE = 36, b"acsp"
MAX_TAGS = 200
COLORIMETRIC = frozenset(
    (
        *(b"rXYZ", b"gXYZ", b"bXYZ", b"wtpt", b"bkpt", b"rTRC", b"gTRC", b"bTRC", b"kTRC", b"chad", b"chrm", b"lumi"),
        *(b"A2B0", b"A2B1", b"A2B2", b"B2A0", b"B2A1", b"B2A2", b"D2B0", b"D2B1", b"D2B2", b"D2B3"),
        *(b"B2D0", b"B2D1", b"B2D2", b"B2D3", b"gamt", b"cicp"),
    )
)
"""Tags that hold numbers about colour; all others are texts, names, serial numbers, dates or private."""
NEUTRAL_NAME = "source profile, de-identified"


def is_profile(profile: bytes) -> bool:
    """Whether the bytes begin like a profile and are all there."""
    if len(profile) < HEADER_BYTES + 4 or profile[SIGNATURE_AT : SIGNATURE_AT + 4] != SIGNATURE:
        return False
    return int(struct.unpack_from(">I", profile)[0]) <= len(profile)


def is_rgb(profile: bytes) -> bool:
    """Whether it is a sound profile of RGB pixels: a grey or CMYK one says nothing about them."""
    return is_profile(profile) and profile[16:20] == b"RGB "


def name(profile: bytes) -> str:
    """The profile's own description, empty when it has none that can be read."""
    text = dict(_tags(profile)).get(b"desc", b"")
    if text[:4] == b"desc" and len(text) >= 12:
        (count,) = struct.unpack_from(">I", text, 8)
        return text[12 : 12 + count].split(b"\0", 1)[0].decode("latin-1").strip()
    if text[:4] == b"mluc" and len(text) >= 28:
        count, at = struct.unpack_from(">II", text, 20)
        return text[at : at + count].decode("utf-16-be", "replace").rstrip("\0").strip()
    return ""


def texts(profile: bytes) -> tuple[str, ...]:
    """Every readable text in the tags that are not about colour, in the order of the tags."""
    found: list[str] = []
    for kind, data in _tags(profile):
        if kind in COLORIMETRIC:
            continue
        for run in re.findall(rb"[\x20-\x7e]{4,}", data[8:]):
            found.append(run.decode("ascii").strip())
        for run in re.findall(rb"(?:\x00[\x20-\x7e]){3,}", data[8:]):
            found.append(run.decode("utf-16-be").strip())
    # "enUS" is the language of a multi-localised text
    return tuple(dict.fromkeys(text for text in found if text and not re.fullmatch("[a-z]{2}[A-Z]{2}", text)))


def neutral(profile: bytes, called: str = NEUTRAL_NAME) -> bytes:
    """The same colours without a word of the original: no texts, dates, makers, models, serial numbers, private tags.

    ``called`` becomes its description. The result depends on nothing but the colours, so that it is the same each time.
    """
    header = bytearray(profile[:HEADER_BYTES])
    header[4:8] = bytes(4)  # the preferred colour engine
    header[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    header[40:44] = bytes(4)  # platform
    header[48:64] = bytes(16)  # maker, model, attributes
    header[80:128] = bytes(48)  # creator, profile id
    kept = [(kind, data) for kind, data in _tags(profile) if kind in COLORIMETRIC]
    kept += [(b"desc", _text(called, version=header[8])), (b"cprt", _plain_text("none", version=header[8]))]
    return _build(bytes(header), kept)


def _tags(profile: bytes) -> list[tuple[bytes, bytes]]:
    if not is_profile(profile):
        return []
    (count,) = struct.unpack_from(">I", profile, HEADER_BYTES)
    room = (len(profile) - HEADER_BYTES - 4) // 12
    entries = [
        struct.unpack_from(">4sII", profile, HEADER_BYTES + 4 + 12 * index)
        for index in range(min(count, room, MAX_TAGS))
    ]
    return [(kind, profile[at : at + length]) for kind, at, length in entries]


def _build(header: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    at = HEADER_BYTES + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    places: dict[bytes, int] = {}
    for kind, data in tags:
        if data not in places:  # the three curves of a profile are often one
            places[data] = at + len(body)
            body += data + bytes(-len(data) % 4)
        table += struct.pack(">4sII", kind, places[data], len(data))
    whole = header + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def _text(text: str, *, version: int) -> bytes:
    if version >= 4:
        return _plain_text(text, version=version)
    coded = text.encode("ascii") + b"\0"
    return b"desc" + bytes(4) + struct.pack(">I", len(coded)) + coded + bytes(4 + 4 + 2 + 1 + 67)


def _plain_text(text: str, *, version: int) -> bytes:
    if version < 4:
        return b"text" + bytes(4) + text.encode("ascii") + b"\0"
    coded = text.encode("utf-16-be")
    return b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(coded), 28) + coded
