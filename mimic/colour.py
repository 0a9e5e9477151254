"""The colour profile of a file, and pixels taken to sRGB by it.

Bio-Formats gives no profile for SVS and TIFF and libvips only for pictures, so it is read from the file itself.
"""

from __future__ import annotations

import mmap
import struct
import threading
import zlib
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from mimic import icc, tifffields
from mimic.errors import BadInput, ToolMissing
from mimic.model import Box, Pixels
from mimic.sources import PixelReader

ICC_TAG = 34675
MAX_PROFILE_BYTES = 16 << 20
"""Scanners' profiles have 1 kB to 2 MB."""
RELATIVE_COLORIMETRIC = 1
"""ICC's number of the intent: colours stay, white becomes white."""


def profile_of(files: Iterable[Path]) -> bytes | None:
    """The colour profile in the first of ``files`` that has one: TIFF's tag of the first directory, DICOM's first
    optical path, PNG, JPEG, WebP. None when there is none or it is damaged. Raises BadInput for an unreadable file."""
    for path in files:
        found = _in_file(path)
        if found is not None and icc.is_profile(found):
            return found
    return None


def srgb_profile() -> bytes:
    """A profile of sRGB, the same bytes each time. Raises ToolMissing when Pillow has no LittleCMS."""
    return _srgb()


@cache
def _srgb() -> bytes:
    cms = _cms()
    return icc.neutral(cms.ImageCmsProfile(cms.createProfile("sRGB")).tobytes(), "sRGB")


def _cms() -> Any:
    try:
        from PIL import ImageCms, features
    except ImportError as error:
        raise ToolMissing("this Pillow has no colour management", remedy="Run: pip install --upgrade pillow") from error
    if not features.check("littlecms2"):
        raise ToolMissing("this Pillow has no LittleCMS", remedy="Run: pip install --upgrade pillow")
    return ImageCms


class SrgbReader:
    """A PixelReader whose pixels go from ``profile`` to sRGB, relative colorimetric with LittleCMS.

    Each pixel by itself, so that it does not matter in which boxes they are read. Closing it closes ``reader``.
    Raises BadInput for a profile that LittleCMS cannot use.
    """

    def __init__(self, reader: PixelReader, profile: bytes, path: Path) -> None:
        self._reader, self._profile, self._path = reader, profile, path
        self._own = threading.local()
        self._transform()

    @property
    def sequential(self) -> bool:
        return self._reader.sequential

    def boxes(self) -> Sequence[Box]:
        return self._reader.boxes()

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box`` in sRGB. Raises what the reader raises."""
        from PIL import Image

        pixels = np.ascontiguousarray(self._reader.read(box))
        return np.asarray(_cms().applyTransform(Image.fromarray(pixels), self._transform()))

    def _transform(self) -> Any:
        # one a thread: LittleCMS keeps the last colour in it
        made = getattr(self._own, "transform", None)
        if made is None:
            cms = _cms()
            try:
                made = self._own.transform = cms.buildTransform(
                    cms.ImageCmsProfile(BytesIO(self._profile)),
                    cms.createProfile("sRGB"),
                    "RGB",
                    "RGB",
                    renderingIntent=RELATIVE_COLORIMETRIC,
                )
            except (cms.PyCMSError, OSError) as error:
                remedy = "Convert with --icc keep or --icc strip"
                raise BadInput(f"its colour profile cannot be used: {error}", self._path, remedy) from error
        return made

    def close(self) -> None:
        self._reader.close()


def _in_file(path: Path) -> bytes | None:
    try:
        if not path.is_file() or not path.stat().st_size:
            return None
        with path.open("rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
            return _in_data(data, path)
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read: {error}", path, "Check the disk or the network share") from error
    except struct.error:
        return None


def _in_data(data: mmap.mmap, path: Path) -> bytes | None:
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        parsed = tifffields.parse(data, wide=len(data) >= 1 << 32 and path.suffix.lower() == ".ndpi")
        fields = parsed.fields if parsed is not None else []
        found = next((each for each in fields if each.tag == ICC_TAG and each.directory == "IFD0"), None)
        short = found is not None and found.length <= MAX_PROFILE_BYTES
        return bytes(data[found.offset : found.offset + found.length]) if found is not None and short else None
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _in_png(data)
    if data[:3] == b"\xff\xd8\xff":
        return _in_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and data[12:16] == b"VP8X":
        return _in_webp(data)
    return _in_dicom(path) if data[128:132] == b"DICM" else None


def _in_png(data: mmap.mmap) -> bytes | None:
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":  # a profile stands before the pixels
            return None
        if kind == b"iCCP":
            packed = data[at + 8 : at + 8 + length].partition(b"\0")[2][1:]
            try:
                return zlib.decompressobj().decompress(packed, MAX_PROFILE_BYTES)
            except zlib.error:
                return None
        at += 12 + length
    return None


def _in_jpeg(data: mmap.mmap) -> bytes | None:
    """The parts of a profile stand in APP2 segments, each with its number and how many there are (ICC.1, B.4)."""
    parts: dict[int, bytes] = {}
    at, total = 2, 0
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xDA, 0xD9):
        (length,) = struct.unpack_from(">H", data, at + 2)
        raw = data[at + 4 : at + 2 + length] if data[at + 1] == 0xE2 else b""
        if raw.startswith(b"ICC_PROFILE\0") and len(raw) > 14:
            parts[raw[12]], total = raw[14:], raw[13]
        at += 2 + length
    whole = sorted(parts) == list(range(1, total + 1))
    return b"".join(parts[number] for number in sorted(parts)) if parts and whole else None


def _in_webp(data: mmap.mmap) -> bytes | None:
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"ICCP":
            return bytes(data[at + 8 : at + 8 + min(length, MAX_PROFILE_BYTES)])
        at += 8 + length + length % 2
    return None


def _in_dicom(path: Path) -> bytes | None:
    try:
        import pydicom
    except ImportError:
        return None
    try:
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["OpticalPathSequence", "ICCProfile"])
        paths = data.get("OpticalPathSequence") or [data]
        found = paths[0].get("ICCProfile")
    except (pydicom.errors.InvalidDicomError, OSError, ValueError, KeyError, AttributeError, struct.error):
        return None
    return bytes(found) if found else None
