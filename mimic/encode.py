"""Pixels -> compressed bytes: one function a codec, all of which run without the GIL.

JPEG is baseline Huffman (SOF0), 8 bit, one interleaved scan, in one of two colour profiles (svs-spec.md, section 2).
YCbCr 4:4:4 is in neither: Bio-Formats converts such tiles twice.
"""

from __future__ import annotations

from functools import lru_cache

import imagecodecs
import numpy as np

from mimic import turned, uniform
from mimic.errors import InternalError
from mimic.model import Pixels, Profile

MAX_SIDE_PX = 65_500
"""libjpeg's JPEG_MAX_DIMENSION."""

SMALL = 0.1
"""Bytes a pixel below which a tile is coded again with Huffman tables made for it.

They make 256 px tiles of glass 20 to 60 % smaller for 0.1 ms. Tissue shrinks by 3 % (IHC, sharp) to 10 % (H&E) for
0.3 ms, more than twice the time of coding it with the standard tables (140 against 330 Mpx/s): not worth it.
"""

SURELY_SMALL, HEAD_BYTES = 0.013, 330
"""With tables of its own a tile of so many bytes a pixel behind a head of about so many is ``SMALL`` for certain; most
glass is. The worst for the standard tables is a block of three runs of 16 zeros and a fourth that ends in its last
place: 52 bits, and 7 with tables made for it. With 7 bits for each there are too few such blocks to reach ``SMALL``."""

COLOURS = 256
"""Colours of empty tiles that are remembered, with up to a kilobyte each: a drawing may have thousands."""

_SOI, _EOI, _SOS, _DQT, _DHT = b"\xff\xd8", b"\xff\xd9", 0xDA, 0xDB, 0xC4


def jpeg(pixels: Pixels, *, quality: int, profile: Profile) -> bytes:
    """A self-contained JPEG of ``pixels`` (height, width, 3).

    "ycc" is YCbCr 4:2:0 with JFIF and Huffman tables made for this picture. "rgb" is untransformed, 1x1, component ids
    R, G, B, Adobe transform 0, no JFIF, with the standard Huffman tables. Raises InternalError for pixels of another
    kind.
    """
    return _jpeg(pixels, quality=quality, profile=profile, own_tables=profile == "ycc")


def _jpeg(pixels: Pixels, *, quality: int, profile: Profile, own_tables: bool) -> bytes:
    _require_rgb(pixels)
    if max(pixels.shape) > MAX_SIDE_PX:
        raise InternalError(f"a JPEG cannot be {pixels.shape[1]}x{pixels.shape[0]}")
    ycc = profile == "ycc"
    blue_first = turned.is_turned(pixels)
    return bytes(
        imagecodecs.jpeg8_encode(
            pixels[..., ::-1] if blue_first else pixels,
            quality,
            colorspace=imagecodecs.JPEG8.CS.EXT_BGR if blue_first else "rgb",
            outcolorspace="ycbcr" if ycc else "rgb",
            subsampling="420" if ycc else "444",
            optimize=own_tables,
        )
    )


def tile(pixels: Pixels, *, quality: int, profile: Profile, beside: bytes | None = None) -> bytes:
    """A JPEG for a tile of a level: self-contained for "ycc", without ``jpeg_tables(quality)`` for "rgb".

    Readers differ on shared tables: photometric RGB with them, and YCbCr without, is read by all (svs-spec.md 9.2).
    A "ycc" tile that comes out small gets Huffman tables of its own, see ``SMALL``. What is ``uniform`` is encoded
    once a colour, not once a place. ``beside`` is what the tile beside it became, which changes nothing but the time:
    where glass follows glass, the standard tables need not be tried first.
    """
    if uniform.is_uniform(pixels):
        return _uniform_tile(pixels[0, 0].tobytes(), pixels.shape, quality, profile)
    surely_small_bytes = HEAD_BYTES + SURELY_SMALL * pixels.shape[0] * pixels.shape[1]
    if profile == "ycc" and beside is not None and len(beside) < surely_small_bytes:
        stream = _jpeg(pixels, quality=quality, profile=profile, own_tables=True)
        if len(stream) < surely_small_bytes:
            return stream
    stream = _jpeg(pixels, quality=quality, profile=profile, own_tables=False)
    if profile == "ycc":
        small = len(stream) < SMALL * pixels.shape[0] * pixels.shape[1]
        return _jpeg(pixels, quality=quality, profile=profile, own_tables=True) if small else stream
    tables, abbreviated = split_tables(stream)
    if tables != jpeg_tables(quality):
        raise InternalError("a tile's JPEG tables are not the shared ones")
    return abbreviated


@lru_cache(maxsize=COLOURS)
def _uniform_tile(colour: bytes, shape: tuple[int, ...], quality: int, profile: Profile) -> bytes:
    pixels = np.empty(shape, np.uint8)
    pixels[:] = np.frombuffer(colour, np.uint8)
    return tile(pixels, quality=quality, profile=profile)


@lru_cache(maxsize=128)
def jpeg_tables(quality: int) -> bytes:
    """What TIFF's JPEGTables (347) holds for the "rgb" profile: SOI, the DQT and DHT of every tile, EOI."""
    return split_tables(jpeg(np.zeros((8, 8, 3), np.uint8), quality=quality, profile="rgb"))[0]


def split_tables(stream: bytes) -> tuple[bytes, bytes]:
    """A JPEG as (its tables, the abbreviated rest): DQT and DHT move, all else (APP14 too) stays.

    large_image takes nothing but SOI, DQT, DHT and EOI for tables. Raises InternalError for bytes that are no JPEG.
    """
    tables, rest = bytearray(_SOI), bytearray(_SOI)
    at = 2
    while stream[at : at + 1] == b"\xff" and at + 4 <= len(stream):
        marker, end = stream[at + 1], at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker == _SOS:
            return bytes(tables + _EOI), bytes(rest + stream[at:])
        (tables if marker in (_DQT, _DHT) else rest).extend(stream[at:end])
        at = end
    raise InternalError("these bytes are not a JPEG")


def lzw(pixels: Pixels) -> bytes:
    """One TIFF LZW strip of ``pixels`` (height, width, 3) with predictor 2 (horizontal differencing)."""
    _require_rgb(pixels)
    differences = imagecodecs.delta_encode(np.ascontiguousarray(pixels), axis=1)
    return bytes(imagecodecs.lzw_encode(differences.tobytes()))


def _require_rgb(pixels: Pixels) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise InternalError(f"pixels of shape {pixels.shape} and type {pixels.dtype} are not 8-bit RGB")
