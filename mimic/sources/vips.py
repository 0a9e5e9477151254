"""Ordinary pictures (PNG, JPEG, TIFF, JPEG 2000, WebP, BMP) through libvips, streamed from top to bottom.

What PyPI's libvips lacks (JPEG 2000, BMP) is decoded by Pillow and goes the same way.
"""

from __future__ import annotations

import importlib
import os
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimic import libvips, plain, segments
from mimic.errors import BadInput, OutputError, ToolMissing, Unsupported
from mimic.model import Box, Image, Level, Pixels, Scale, Slide, Tool
from mimic.settings import Settings
from mimic.structure import check, container
from mimic.structure.ordinary import ordinary
from mimic.structure.tiff import pages

NAMES = {"png": "PNG", "jpeg": "JPEG", "tiff": "TIFF", "jp2": "JPEG 2000", "webp": "WebP", "bmp": "BMP"}
LOADERS = {"png": "pngload", "jpeg": "jpegload", "tiff": "tiffload", "jp2": "jp2kload", "webp": "webpload"}
COLOUR_SPACES = frozenset(("b-w", "grey16", "srgb", "rgb", "rgb16", "cmyk"))
CODECS = {1: "none", 5: "lzw", 7: "jpeg", 8: "deflate", 32773: "packbits", 32946: "deflate", 50001: "webp"}

BAND_ROWS_PX = 256
BAND_BYTES = 8 << 20
PIECE_BYTES = 256 << 10
"""What is asked of libvips at a time, a few rows: its buffers, many times as large, then stay in the CPU's cache.
A PNG of 20480 px across, read alone: 110 MiB in pieces of 4 rows, 214 of 16, 340 of 256, and not slower."""
IN_MEMORY_BYTES = 64 << 20
"""Up to here a turned picture is kept decoded in memory, above it in a scratch file."""
PILLOW_PX = 100_000_000
"""Pillow decodes a picture whole, at up to 7 bytes a pixel for a moment; larger ones are left to Bio-Formats."""

SMALLEST_UM, LARGEST_UM = 0.05, 5.0
"""Pixel sizes that a microscope makes; anything else in a picture's resolution tags is about paper or screens."""
USUAL_DPI = (72, 75, 96, 100, 120, 150, 180, 200, 240, 254, 300, 350, 400, 600, 720, 1200, 1440, 2400, 2540, 2880,
             3200, 4000, 4800, 5400, 6400, 7200, 9600, 10160, 12800)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Header:
    width_px: int
    height_px: int
    bits: int
    orientation: int
    acquired: datetime | None
    pixels_per_mm: tuple[float, float] | None


def claims(path: Path) -> bool:
    """Whether ``path`` is an ordinary picture that can be read here. Never raises."""
    kind = ordinary(path)
    if kind is None:
        return False
    if kind in ("jp2", "bmp"):
        try:
            if _has_loader(kind):
                return True
            with _pillow(path, kind) as picture:
                return bool(picture.width * picture.height <= PILLOW_PX)
        except (BadInput, ToolMissing):
            return True  # to be refused with its reason
    return True


def probe(path: Path, settings: Settings) -> Slide:  # noqa: ARG001 (the protocol's)
    """Facts of a picture from its header: one scan image of 8-bit RGB, as its reader gives it.

    The file is known to reach its own end; whether the pixels decode, and match a PNG's checksums, its reader finds.
    Width and height are those after EXIF orientation. Raises BadInput for a damaged header, Unsupported for pixels that
    cannot become 8-bit RGB faithfully (float, 32-bit, Lab, scientific channels).
    """
    facts = check(path, sums=False)
    kind = _kind(path)
    header = _header(path, kind)
    level = Level(header.width_px, header.height_px, codec="jpeg" if kind == "jpeg" else None)
    if kind == "tiff":
        page = pages(path)[0]
        codec = CODECS.get(page.compression)
        level = Level(header.width_px, header.height_px, page.tile_width_px, page.tile_height_px, codec)
    image = Image(
        index=0, role="scan", name=path.stem, levels=(level,), channels=3, rgb=True, pixel_type="uint8", bits=8,
        scale=_scale(path, kind, header), acquired=header.acquired,
    )  # fmt: skip
    warnings = ("16-bit samples are scaled to 8 bits",) if header.bits == 16 else ()
    return Slide(
        path, (path,), f"{NAMES[kind]} picture", "vips", (image,), warnings=warnings, missing_tiles=facts.missing_tiles
    )


def open(
    slide: Slide,
    image: Image,
    *,
    threads: int,
    settings: Settings,  # noqa: ARG001
    scratch: Path,
) -> VipsReader | plain.Reader:
    """A reader of the picture. ``image`` gives the size that is expected; ``scratch`` takes a large turned picture."""
    level = image.levels[0]
    size_px = level.width_px, level.height_px
    found = plain.layout(slide.path) if _kind(slide.path) == "tiff" else None
    if found is None:
        return VipsReader(slide.path, size_px, threads=threads, scratch=scratch)
    _require_size(found.size_px, size_px, slide.path)
    return plain.Reader(found)


def tools(settings: Settings) -> tuple[Tool, ...]:  # noqa: ARG001 (the protocol's)
    """libvips and pyvips, and what decodes plain TIFFs, with their versions."""
    vips = libvips.load()
    version = ".".join(str(vips.version(part)) for part in range(3))
    return Tool("libvips", version), Tool("pyvips", str(vips.__version__)), segments.tool()


class VipsReader:
    """Full-width bands of a picture, from top to bottom, as 8-bit RGB.

    Alpha is flattened on white, CMYK goes to sRGB (through the picture's own profile when it has one), 16 bits are
    scaled to 8, greys become R = G = B; the profile of an RGB picture is not applied.
    """

    sequential = True
    _image: Any
    _region: Any

    def __init__(self, path: Path, size_px: tuple[int, int], *, threads: int, scratch: Path) -> None:
        self._path, self._scratch = path, scratch
        self._kind = _kind(path)
        self._width_px, self._height_px = size_px
        self._band: Pixels = np.empty((0, size_px[0], 3), np.uint8)
        self._top_px = 0
        libvips.load().concurrency_set(max(1, threads))
        self._tile_height_px = pages(path)[0].tile_height_px if self._kind == "tiff" else None
        self._random = self._tile_height_px is not None or not _has_loader(self._kind)
        if self._kind == "png" and not libvips.checks_sums():
            check(path)
        with libvips.evaluating, libvips.Border(path):
            self._start()
        _require_size((self._image.width, self._image.height), size_px, path)

    def boxes(self) -> Sequence[Box]:
        """Bands of a multiple of 256 rows (or of taller tiles) of at most 8 MB, but of one such step at least."""
        step = -(-min(self._tile_height_px or 1, 1024) // BAND_ROWS_PX) * BAND_ROWS_PX
        rows = max(1, BAND_BYTES // (self._width_px * 3 * step)) * step
        return tuple(Box(0, y, self._width_px, min(rows, self._height_px - y)) for y in range(0, self._height_px, rows))

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box``, shape (height, width, 3), not to be written to.

        Rows are decoded in full and kept until others follow: many boxes side by side cost one decoding. Going back
        up decodes the picture from its top again. Raises BadInput when the picture is damaged there.
        """
        if self._image is None:
            raise ValueError("the reader is closed")
        top, bottom = box.y_px, box.y_px + box.height_px
        known = self._top_px + len(self._band)
        with libvips.evaluating, libvips.Border(self._path):
            if top < self._top_px and not self._random:
                self._start()
            if top < self._top_px or top >= known:
                self._band, self._top_px = self._rows(top, bottom), top
            elif bottom > known:
                rest = self._rows(known, bottom)
                self._band, self._top_px = np.concatenate((self._band[top - self._top_px :], rest)), top
        return self._band[top - self._top_px : bottom - self._top_px, box.x_px : box.x_px + box.width_px]

    def _rows(self, top: int, bottom: int) -> Pixels:
        # a finished crop drops the rows that libvips keeps for what follows, and a strip that goes on below the crop
        # would be "out of order": a region keeps them; where any order will do, a crop uses all threads
        if self._random:
            data = self._image.crop(0, top, self._width_px, bottom - top).write_to_memory()
            return np.frombuffer(data, np.uint8).reshape(bottom - top, self._width_px, 3)
        band = np.empty((bottom - top, self._width_px, 3), np.uint8)
        step = max(1, PIECE_BYTES // (self._width_px * 3))
        for y in range(top, bottom, step):
            piece = band[y - top : y - top + step]
            data = self._region.fetch(0, y, self._width_px, len(piece))
            piece[:] = np.frombuffer(data, np.uint8).reshape(piece.shape)
        return band

    def close(self) -> None:
        """Lets the file go; scratch is the caller's to remove. May be called twice."""
        self._region = self._image = None

    def _start(self) -> None:
        """Opens the picture at its top."""
        image = _rgb8(_load(self._path, self._kind, random=self._random), self._path)
        if _orientation(image) != 1:
            self._random, image = True, self._turned(image)
        self._image = image
        self._region = None if self._random else libvips.load().Region.new(image)

    def _turned(self, image: Any) -> Any:
        # a turned picture is read across its rows: once decoded, from memory or from an uncompressed file
        if image.width * image.height * 3 <= IN_MEMORY_BYTES:
            return image.copy_memory().autorot()
        try:
            handle, name = tempfile.mkstemp(suffix=".v", dir=self._scratch)
            os.close(handle)
        except OSError as error:
            raise OutputError(f"cannot be written to: {error.strerror}", self._scratch) from error
        image.vipssave(os.fsencode(name))
        return libvips.load().Image.vipsload(os.fsencode(name), access="random").autorot()


def _has_loader(kind: str) -> bool:
    """Whether this libvips can read that kind. Its BMP reader is ImageMagick's, if any, and is not used."""
    return kind in LOADERS and bool(libvips.load().base.type_find("VipsOperation", LOADERS[kind]))


def _require_size(found_px: tuple[int, int], size_px: tuple[int, int], path: Path) -> None:
    if found_px != size_px:
        message = f"is {found_px[0]} x {found_px[1]} pixels now, and was {size_px[0]} x {size_px[1]}"
        raise BadInput(message, path, "Do not change the file while it is converted")


def _kind(path: Path) -> str:
    kind = container(path)
    if kind not in NAMES:
        raise Unsupported("is not a picture that libvips reads", path, "Let mimic choose the source")
    return kind


def _load(path: Path, kind: str, *, random: bool = False) -> Any:
    """The picture as libvips sees it, undecoded (through Pillow: decoded)."""
    if not _has_loader(kind):
        array = _pillow_pixels(path, kind)
        space = ("grey16" if array.dtype == np.uint16 else "b-w") if array.ndim == 2 or array.shape[2] == 2 else "srgb"
        return libvips.load().Image.new_from_array(array).copy(interpretation=space)
    # a loader of its own: new_from_file would read options out of a name that ends in "]"
    loader: Callable[..., Any] = getattr(libvips.load().Image, LOADERS[kind])
    return loader(os.fsencode(path), access="random" if random else "sequential", fail_on="error")


def _rgb8(image: Any, path: Path) -> Any:
    """Any picture as 8-bit RGB on white. Raises Unsupported for samples that have no plain meaning as colour."""
    _require_colour(image, path)
    if image.format == "ushort":
        # white is 65535, and 65535 / 257 is 255 exactly; the half rounds, for the cast cuts
        space = {"rgb16": "srgb", "grey16": "b-w"}.get(image.interpretation, image.interpretation)
        image = image.linear(1 / 257, 0.5, uchar=True).copy(interpretation=space)
    if image.interpretation == "cmyk":
        image = image.extract_band(0, n=4) if image.bands > 4 else image
        own = image.get_typeof("icc-profile-data") != 0
        image = image.icc_transform("srgb", embedded=True, intent="relative") if own else image.colourspace("srgb")
    elif image.bands in (2, 4):
        image = image.flatten(background=[255] * (image.bands - 1), max_alpha=255)
    if image.bands == 1:
        image = image.bandjoin([image, image])
    return image.copy(interpretation="srgb")


def _require_colour(image: Any, path: Path) -> None:
    bands = {"b-w": (1, 2), "grey16": (1, 2), "cmyk": (4, 5)}.get(image.interpretation, (3, 4))
    if image.format not in ("uchar", "ushort"):
        raise Unsupported(f"has pixels of type {image.format}", path, "Save it as 8-bit RGB first")
    if image.interpretation not in COLOUR_SPACES or image.bands not in bands:
        message = f"has {image.bands} channels of kind {image.interpretation}, which is not a colour picture"
        raise Unsupported(message, path, "Save it as 8-bit RGB first")


def _header(path: Path, kind: str) -> _Header:
    if not _has_loader(kind):
        with _pillow(path, kind) as picture:
            dpi = picture.info.get("dpi")
            per_mm = (float(dpi[0]) / 25.4, float(dpi[1]) / 25.4) if dpi else None
            bits = 16 if picture.mode.startswith("I;16") else 8
            width, height = picture.size
            return _Header(width, height, bits, 1, None, per_mm)
    with libvips.evaluating, libvips.Border(path):
        image = _load(path, kind)
        _require_colour(image, path)
        orientation = _orientation(image)
        width, height = image.width, image.height
        if orientation >= 5:
            width, height = height, width
        bits = 16 if image.format == "ushort" else 8
        return _Header(width, height, bits, orientation, _acquired(image), (image.xres, image.yres))


def _orientation(image: Any) -> int:
    return int(image.get("orientation")) if image.get_typeof("orientation") else 1


def _acquired(image: Any) -> datetime | None:
    """EXIF DateTimeOriginal, which has no time zone."""
    field = "exif-ifd2-DateTimeOriginal"
    if not image.get_typeof(field):
        return None
    try:
        return datetime.strptime(str(image.get(field))[:19], "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None


def _scale(path: Path, kind: str, header: _Header) -> Scale | None:
    """Pixel size from resolution tags, when it is one that a microscope makes and no paper or screen resolution.

    The turn of the picture turns the two axes too. A TIFF's resolution without a unit says nothing.
    """
    per_mm = header.pixels_per_mm
    if kind == "tiff":
        page = pages(path)[0]
        unit_mm = {2: 25.4, 3: 10.0}.get(page.resolution_unit)
        per_mm = (page.resolution[0] / unit_mm, page.resolution[1] / unit_mm) if page.resolution and unit_mm else None
    if per_mm is None or min(per_mm) <= 0:
        return None
    x_per_mm, y_per_mm = per_mm[::-1] if header.orientation >= 5 else per_mm
    sizes_um = (1000 / x_per_mm, 1000 / y_per_mm)
    if not all(SMALLEST_UM <= size <= LARGEST_UM for size in sizes_um):
        return None
    if any(abs(x_per_mm * 25.4 - dpi) < 0.5 for dpi in USUAL_DPI):
        return None
    note = f"resolution tags of the {NAMES[kind]} picture ({x_per_mm * 10:.6g} pixels per cm)"
    return Scale(*sizes_um, origin="file", note=note)


def _pillow(path: Path, kind: str) -> Any:
    """A picture opened by Pillow, not decoded. The plugin itself, for Image.open warns of large pictures."""
    plugin = importlib.import_module("PIL." + {"bmp": "BmpImagePlugin", "jp2": "Jpeg2KImagePlugin"}[kind])
    factory = plugin.BmpImageFile if kind == "bmp" else plugin.Jpeg2KImageFile
    try:
        return factory(path)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise libvips.bad(path, str(error)) from error


def _pillow_pixels(path: Path, kind: str) -> NDArray[Any]:
    """Shape (height, width) or (height, width, channels), 8 or 16 bits."""
    with _pillow(path, kind) as opened:
        picture = opened
        if picture.size[0] * picture.size[1] > PILLOW_PX:
            raise Unsupported(f"has more than {PILLOW_PX} pixels", path, "Use --source bioformats")
        try:
            picture.load()
            if picture.mode == "CMYK":
                raise Unsupported("is a CMYK picture of this kind", path, "Save it as 8-bit RGB first")
            if picture.mode not in ("L", "LA", "RGB", "RGBA") and not picture.mode.startswith("I;16"):
                picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise libvips.bad(path, str(error)) from error
        return np.asarray(picture)
