"""What the head of a JPEG-XR file says of its picture, before a decoder believes it.

Layout: ITU-T T.832, annex A: like a TIFF, little-endian, with one directory.
"""

from __future__ import annotations

import struct

BGR24 = bytes.fromhex("24c3dd6f034efe4bb1853d77768dc90c")
"""The pixel format of a CZI's Bgr24: 8 bits each of blue, green, red."""
PIXEL_FORMAT, WIDTH, HEIGHT, OFFSET, BYTE_COUNT = 0xBC01, 0xBC80, 0xBC81, 0xBCC0, 0xBCC1
NEEDED = {"format": PIXEL_FORMAT, "width": WIDTH, "height": HEIGHT, "beginning": OFFSET}


def head(data: bytes) -> tuple[int, int, bytes]:
    """Width, height and the GUID of the pixel format. Raises ValueError for anything else than a JPEG-XR file."""
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
    return found[WIDTH], found[HEIGHT], data[found[PIXEL_FORMAT] : found[PIXEL_FORMAT] + 16]
