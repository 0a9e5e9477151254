"""Samples of one image of an OME-Zarr store, chunk by chunk, with zarr-python.

A store says nothing of a chunk that is lost: one that is not there is declared to hold the fill value. So a place that
is empty is looked up in the next lower resolution, and where that has pixels, the chunk was lost.
"""

from __future__ import annotations

import importlib
import itertools
import lzma
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimic import ngff
from mimic.errors import BadInput, ToolFailed, ToolMissing, Unsupported
from mimic.model import Box, Image, Level, Slide
from mimic.render import DTYPES, Samples
from mimic.structure import zarr as arrays

BOX_MIN_PX = 2048
BOX_MAX_BYTES = 64 << 20
"""Several boxes are held at a time. A chunk that is larger is decoded again for each of its boxes."""
CHUNK_MAX_BYTES = 1 << 30
"""A chunk is decoded whole."""
EMPTY_NOISE = 2
"""Lower levels made from lossy pixels are not exactly empty where the full resolution is."""
LOST_PART = 0.25
MARGIN_PX = 4
"""Pixels at the rim of an empty chunk's place in the lower level are mixed with its neighbours' by averaging."""
LOST_MIN_PX = 8
REMEDY = "Copy the store again, with every file of it, from where it was made"
EXTRA = "Run: pip install 'wsi-mimic[zarr]'"
DAMAGE = (
    *(ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, OSError, RuntimeError, EOFError),
    *(NotImplementedError, MemoryError, zlib.error, lzma.LZMAError),
)
"""What zarr-python and its codecs raise for chunks that are no chunks; bz2 raises OSError and ValueError."""


@dataclass(frozen=True, slots=True)
class Series:
    """One image of a store: its group, what that says, and its resolutions, of which the others axes are equal."""

    group: Path
    image: ngff.Multiscale
    levels: tuple[arrays.Layout, ...]

    def size(self, letter: str, level: int = 0) -> int:
        """The length of an axis; 1 for one that is not there."""
        axes = self.image.axes
        return self.levels[level].shape[axes.index(letter)] if letter in axes else 1


def all_series(root: Path) -> list[Series]:
    said = ngff.attributes(root)
    if ngff.LAYOUT in said and "plate" not in said:
        return [one_series(group, ngff.attributes(group)) for group in ngff.series(root, said)]
    if "multiscales" not in said:
        raise ngff.refusal(said, root)
    return [one_series(root, said)]


def one_series(group: Path, said: ngff.Json) -> Series:
    if "multiscales" not in said:
        raise BadInput("has no multiscales: it was not written to its end, or not copied", group, REMEDY)
    image = ngff.multiscale(said, group)
    first, *rest = (arrays.layout(ngff.below(group, name)) for name in image.paths)
    flat = [place for place, letter in enumerate(image.axes) if letter not in "yx"]
    if len(first.shape) != len(image.axes):
        raise BadInput(f"has {len(image.axes)} axes, and arrays of {len(first.shape)}", group, REMEDY)
    if not math.prod(first.shape):
        raise BadInput(f"is empty: {' x '.join(map(str, first.shape))}", first.folder, REMEDY)
    if any(first.shape[place] != 1 for place, letter in enumerate(image.axes) if letter == ngff.OTHER):
        raise Unsupported("has an axis that is neither t, c, z, y nor x", group, "Write one place of it alone")
    levels, sizes = [first], [first.shape]
    for lower in rest:
        if len(lower.shape) != len(first.shape) or any(a > b for a, b in zip(lower.shape, sizes[-1], strict=True)):
            raise BadInput("is larger than the resolution above it", lower.folder, REMEDY)
        sizes.append(lower.shape)
        if math.prod(lower.shape) and lower.kind == first.kind and all(lower.shape[p] == first.shape[p] for p in flat):
            levels.append(lower)  # z may shrink from level to level: such levels say nothing of one plane
    for each in levels:
        if math.prod(each.chunk) * np.dtype(DTYPES.get(each.kind, "complex128")).itemsize > CHUNK_MAX_BYTES:
            size = " x ".join(map(str, each.chunk))
            raise Unsupported(f"has chunks of {size}, too large to read one", each.folder, "Write it in smaller chunks")
    return Series(group, image, tuple(levels))


def library() -> Any:
    """zarr-python 3. Raises ToolMissing."""
    try:
        library = importlib.import_module("zarr")
    except ImportError as error:
        raise ToolMissing("zarr-python is not installed, which reads OME-Zarr", remedy=EXTRA) from error
    if int(str(library.__version__).partition(".")[0]) < 3:
        raise ToolMissing(f"zarr-python {library.__version__} is too old", remedy=EXTRA)
    return library


class Planes:
    """Samples of one image; safe for many threads, for zarr-python decodes in its own."""

    sequential = False

    def __init__(self, slide: Slide, image: Image, *, shown: int = 3) -> None:
        """``shown`` is how many channels of a box are held at a time: boxes are made the smaller for it."""
        if image.pixel_type not in DTYPES:
            raise Unsupported(f"image {image.index} is of {image.pixel_type}", slide.path)
        self.series = all_series(slide.path)[image.index]
        self.image, self.path, self._closed = image, slide.path, False
        zarr = library()
        self._arrays = []
        for each in self.series.levels:
            try:
                opened = zarr.open_array(store=str(each.folder), mode="r", zarr_format=each.zarr_format)
            except (*DAMAGE, ImportError) as error:
                raise BadInput(f"cannot be opened: {_told(error)}", each.folder, REMEDY) from error
            self._arrays.append(opened)
        self._dtype = np.dtype(DTYPES[image.pixel_type])
        self._box = _box_size(image.levels[0], max(self._dtype.itemsize * shown, 3))

    def boxes(self) -> Sequence[Box]:
        """Row by row, whole chunks of about 2048 px."""
        (width, height), size = self._box, self.image.levels[0]
        return [
            Box(x, y, min(width, size.width_px - x), min(height, size.height_px - y))
            for y in range(0, size.height_px, height)
            for x in range(0, size.width_px, width)
        ]

    def samples(self, box: Box, channels: Sequence[int], *, z: int, t: int, level: int = 0) -> list[Samples]:
        """One array a channel, as ``render.PlaneReader`` has it. Raises BadInput naming a chunk that is damaged."""
        found: dict[int, Samples] = {}
        for first, last in self._runs(channels, level):
            found |= zip(range(first, last), self._read(box, (first, last), z, t, level), strict=True)
        if level == 0 and len(self._arrays) > 1:
            for channel in channels:
                self._refuse_lost(box, found[channel], channel, z, t)
        return [found[channel] for channel in channels]

    def _runs(self, channels: Sequence[int], level: int) -> list[tuple[int, int]]:
        """Ranges of channels to be read at once: all that are wanted where a chunk holds several, else each alone."""
        axes = self.series.image.axes
        several = "c" in axes and self.series.levels[level].chunk[axes.index("c")] > 1
        return [(min(channels), max(channels) + 1)] if several else [(c, c + 1) for c in sorted(set(channels))]

    def _read(self, box: Box, channels: tuple[int, int], z: int, t: int, level: int) -> Samples:
        """Shape (channels, height, width), in native byte order."""
        if self._closed:
            raise ToolFailed("the reader is closed", self.path)
        ranges = {
            "t": slice(t, t + 1),
            "c": slice(*channels),
            "z": slice(z, z + 1),
            ngff.OTHER: slice(0, 1),
            "y": slice(box.y_px, box.y_px + box.height_px),
            "x": slice(box.x_px, box.x_px + box.width_px),
        }
        axes = self.series.image.axes
        wanted = tuple(ranges[letter] for letter in axes)
        for place in _touched(wanted, self.series.levels[level]):
            if (reason := arrays.cut_short(self.series.levels[level], place)) is not None:
                raise self._bad(level, place, reason)
        try:
            block = np.asarray(self._arrays[level][wanted])
        except DAMAGE as error:
            raise self._blamed(wanted, level, error) from error
        order = sorted(range(len(axes)), key=lambda at: ("ctz?yx".index(axes[at]), at))
        rows, columns = box.height_px, box.width_px
        return np.ascontiguousarray(block.transpose(order).reshape(-1, rows, columns), self._dtype)

    def _blamed(self, wanted: tuple[slice, ...], level: int, error: Exception) -> BadInput:
        """The error of the first chunk that cannot be read alone."""
        layout = self.series.levels[level]
        for place in _touched(wanted, layout):
            part = tuple(
                slice(max(at * size, one.start), min((at + 1) * size, one.stop))
                for at, size, one in zip(place, layout.stored, wanted, strict=True)
            )
            try:
                self._arrays[level][part]
            except DAMAGE as own:
                return self._bad(level, place, f"cannot be decoded: {_told(own)}")
        return BadInput(f"cannot be read: {_told(error)}", layout.folder, REMEDY)

    def _bad(self, level: int, place: Sequence[int], reason: str) -> BadInput:
        name = self.series.levels[level].file(place).relative_to(self.path).as_posix()
        return BadInput(f"its chunk {name} {reason}", self.path, REMEDY)

    def _refuse_lost(self, box: Box, found: Samples, channel: int, z: int, t: int) -> None:
        """Raises BadInput for a chunk without any content, in whose place the next resolution has some."""
        fill = self.series.levels[0].fill
        for place in self.chunks(box):
            if not _is(crop(found, box, place), fill):
                continue
            lower = _shrunk(place, self.image.levels[0], self.image.levels[1])
            if lower is None:
                continue
            below = self._read(lower, (channel, channel + 1), z, t, 1)[0]
            with np.errstate(invalid="ignore"):
                full = np.abs(below.astype(np.float64) - fill) > EMPTY_NOISE if fill == fill else np.isfinite(below)
            if full.mean() > LOST_PART:
                reason = "is empty, and the next resolution is not: it was lost"
                raise self._bad(0, self.files_of(place, (channel,), z, t)[0], reason)

    def chunks(self, box: Box) -> list[Box]:
        """What lies in ``box`` of each chunk of level 0."""
        axes, chunk = self.series.image.axes, self.series.levels[0].chunk
        width, height = chunk[axes.index("x")], chunk[axes.index("y")]
        return [
            Box(left, top, right - left, lower - top)
            for top, lower in _cuts(box.y_px, box.y_px + box.height_px, height)
            for left, right in _cuts(box.x_px, box.x_px + box.width_px, width)
        ]

    def files_of(self, place: Box, channels: Sequence[int], z: int, t: int) -> list[tuple[int, ...]]:
        """Places in the grid of the files that hold the upper left pixel of ``place`` in some channels."""
        at = {"t": t, "z": z, "y": place.y_px, "x": place.x_px, ngff.OTHER: 0}
        layout, axes = self.series.levels[0], self.series.image.axes
        return [
            tuple((at | {"c": c})[letter] // size for letter, size in zip(axes, layout.stored, strict=True))
            for c in channels
        ]

    def close(self) -> None:
        """Let further reads fail; may be called twice."""
        self._closed = True


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _box_size(size: Level, pixel_bytes: int) -> tuple[int, int]:
    """(width, height) of boxes: whole chunks, about 2048 px, at most BOX_MAX_BYTES, within the image."""
    wide, high = size.tile_width_px or 1, size.tile_height_px or 1
    width = min(size.width_px, wide * math.ceil(BOX_MIN_PX / wide))
    if width * high * pixel_bytes > BOX_MAX_BYTES and width > BOX_MIN_PX and wide > BOX_MIN_PX:
        width = BOX_MIN_PX
    height = min(size.height_px, high * math.ceil(BOX_MIN_PX / high))
    rows_max = max(1, BOX_MAX_BYTES // (pixel_bytes * width))
    if height > rows_max:
        height = max(rows_max // high * high, 1) if high <= rows_max else rows_max
    return width, height


def _cuts(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    """``start`` to ``stop``, cut at the multiples of ``step``."""
    edges = [start, *range((start // step + 1) * step, stop, step), stop]
    return list(itertools.pairwise(edges))


def _touched(wanted: Sequence[slice], layout: arrays.Layout) -> Iterator[tuple[int, ...]]:
    """Places of the files that hold a part of an array."""
    ranges = (range(one.start // size, -(-one.stop // size)) for one, size in zip(wanted, layout.stored, strict=True))
    return itertools.product(*ranges)


def crop(pixels: NDArray[Any], box: Box, place: Box) -> NDArray[Any]:
    """What ``pixels`` of ``box`` have in ``place``, which lies in it."""
    top, left = place.y_px - box.y_px, place.x_px - box.x_px
    return pixels[top : top + place.height_px, left : left + place.width_px]


def _is(samples: Samples, value: float) -> bool:
    """Whether every sample is ``value``."""

    def same(part: Samples) -> bool:
        return bool((part == value).all() if value == value else np.isnan(part).all())

    return same(samples[::16, ::16]) and same(samples)


def _shrunk(place: Box, size: Level, lower: Level) -> Box | None:
    """The inner part of ``place`` in a lower resolution; None where it is too small to tell anything."""
    across, down = lower.width_px / size.width_px, lower.height_px / size.height_px
    left, top = math.ceil(place.x_px * across) + MARGIN_PX, math.ceil(place.y_px * down) + MARGIN_PX
    width = min(int((place.x_px + place.width_px) * across), lower.width_px) - MARGIN_PX - left
    height = min(int((place.y_px + place.height_px) * down), lower.height_px) - MARGIN_PX - top
    return Box(left, top, width, height) if min(width, height) >= LOST_MIN_PX else None
