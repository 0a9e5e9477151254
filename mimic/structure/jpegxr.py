"""What the head of a JPEG-XR file says of its picture, before a decoder believes it, and what it is told instead.

Layout: ITU-T T.832, annex A: like a TIFF, little-endian, with one directory.
"""

from __future__ import annotations

import struct

BGR24 = bytes.fromhex("24c3dd6f034efe4bb1853d77768dc90c")
"""The pixel format of a CZI's Bgr24: 8 bits each of blue, green, red."""
RGB24 = BGR24[:-1] + b"\x0d"
"""The same with red first. What is coded does not differ: luma and chroma."""
PIXEL_FORMAT, WIDTH, HEIGHT, OFFSET, BYTE_COUNT = 0xBC01, 0xBC80, 0xBC81, 0xBCC0, 0xBCC1
NEEDED = {"format": PIXEL_FORMAT, "width": WIDTH, "height": HEIGHT, "beginning": OFFSET}


def red_first(data: bytes) -> tuple[int, int, bytearray]:
    """Width, height and the picture itself, BGR24 turned to RGB24.

    jxrlib goes by the head alone and writes either order, but whoever asks for RGB has BGR turned round in a second
    pass, a fortieth of the time of decoding. Raises ValueError for anything else than a JPEG-XR file of BGR24.
    """
    found, turned = _fields(data), bytearray(data)
    at = found[PIXEL_FORMAT]
    if turned[at : at + 16] != BGR24:
        raise ValueError("the JPEG-XR data are not of 8 bits each of blue, green and red")
    turned[at : at + 16] = RGB24
    return found[WIDTH], found[HEIGHT], turned


def _fields(data: bytes) -> dict[int, int]:
    if data[:4] not in (b"II\xbc\x01", b"II\xbc\x00"):
        raise ValueError("no JPEG-XR data")
    try:
        (at,) = struct.unpack_from("<I", data, 4)
        (count,) = struct.unpack_from("<H", data, at)
        fields = [struct.unpack_from("<HHII", data, at + 2 + 12 * index) for index in range(count)]
    except struct.error as error:
        raise ValueError("the directory of the JPEG-XR data is cut short") from error
    # a SHORT or BYTE stands in the low bytes of its field, the rest of which is zero
    found = {tag: value for tag, _, _, value in fields}
    missing = [name for name, tag in NEEDED.items() if tag not in found]
    if missing:
        raise ValueError(f"the JPEG-XR data do not tell their {missing[0]}")
    # 0: up to the end. jxrlib reads on beyond it and makes something up
    end = found[OFFSET] + max(1, found.get(BYTE_COUNT, 0))
    if end > len(data):
        raise ValueError(f"the JPEG-XR data are cut short: they end at byte {len(data)} of {end}")
    return found
