"""A small picture of one image of a slide, from the smallest level that has enough pixels."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import cast

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from mimic import render, sources, views
from mimic.errors import BadInput, InternalError, UsageError, writing_failed
from mimic.model import Box, ChannelView, Image, Level, Options, Pixels, Rendering, Slide
from mimic.settings import Settings

SIDE_PX = 512
BOX_PX = 2048
"""Read at a time: Bio-Formats decodes whole tiles, and small boxes would decode each of them often."""
WHOLE: tuple[ChannelView, ...] = (
    ChannelView(0, (255, 0, 0), 0, 255),
    ChannelView(1, (0, 255, 0), 0, 255),
    ChannelView(2, (0, 0, 255), 0, 255),
)
"""8-bit RGB as it is."""


def thumbnail(slide: Slide, image: Image, settings: Settings, *, side_px: int = SIDE_PX) -> tuple[Pixels, str]:
    """Pixels whose longer side has ``side_px`` (fewer for a smaller image), and a sentence on how they were made.

    Raises Unsupported for pixels that cannot become 8-bit RGB, and what the source's readers raise.
    """
    full = image.levels[0]
    size = fit(full, side_px)
    source = sources.load(slide.source)
    with tempfile.TemporaryDirectory(prefix="mimic-", dir=settings.scratch) as scratch:
        if slide.source not in views.RENDERING_SOURCES:
            with closing(source.open(slide, image, threads=1, settings=settings, scratch=Path(scratch))) as reader:
                pixels = _shrunk(full, size, reader.boxes(), reader.read)
            return pixels, _told(full, 0, None)
        said: list[str] = []
        wanted = views.decide(slide, image, Options(), say=said.append, warn=said.append)
        planes = cast(render.PlaneSource, source).open_planes(
            slide, image, wanted or Rendering(WHOLE), threads=1, settings=settings, scratch=Path(scratch)
        )
        with closing(planes) as samples:
            rendering = Rendering(WHOLE) if wanted is None else render.resolve(samples, image, wanted)
            number, pixels = _from_levels(samples, image, rendering, size)
        return pixels, _told(image.levels[number], number, None if wanted is None else views.text(image, rendering))


def _from_levels(
    reader: render.PlaneReader, image: Image, rendering: Rendering, size_px: tuple[int, int]
) -> tuple[int, Pixels]:
    """The smallest level that is large enough and can be read, and its picture.

    Bio-Formats 7.3.1 cannot read some lower levels of sound DICOM series (an index out of bounds): the next larger one
    is taken then. Damage of the largest level is raised.
    """
    for number in range(smallest_enough(image, size_px), -1, -1):
        level = image.levels[number]
        read = partial(_rendered, reader, image, rendering, number)
        boxes = reader.boxes() if number == 0 else tuple(_grid(level))
        try:
            return number, _shrunk(level, size_px, boxes, read)
        except BadInput:
            if number == 0:
                raise
    raise InternalError("an image without levels")


def _rendered(reader: render.PlaneReader, image: Image, rendering: Rendering, number: int, box: Box) -> Pixels:
    return render.compose(render.planes(reader, image, rendering, box, number), rendering)


def fit(size: Level, side_px: int) -> tuple[int, int]:
    """(width, height) within a square of ``side_px``, never larger than the image."""
    factor = min(side_px / max(size.width_px, size.height_px), 1.0)
    return max(1, round(size.width_px * factor)), max(1, round(size.height_px * factor))


def smallest_enough(image: Image, size_px: tuple[int, int]) -> int:
    """The number of the smallest level with at least ``size_px``."""
    enough = [
        number
        for number, level in enumerate(image.levels)
        if level.width_px >= size_px[0] and level.height_px >= size_px[1]
    ]
    return enough[-1] if enough else 0


def _told(level: Level, number: int, rendering: str | None) -> str:
    how = f"; rendered: {rendering}" if rendering is not None else ""
    return f"from level {number} ({level.width_px} x {level.height_px} px){how}"


def _grid(level: Level) -> Iterator[Box]:
    for y in range(0, level.height_px, BOX_PX):
        for x in range(0, level.width_px, BOX_PX):
            yield Box(x, y, min(BOX_PX, level.width_px - x), min(BOX_PX, level.height_px - y))


def _shrunk(level: Level, size_px: tuple[int, int], boxes: Iterable[Box], read: Callable[[Box], Pixels]) -> Pixels:
    """The level at ``size_px`` (width, height), box by box."""
    means = np.zeros((size_px[1], size_px[0], 3), np.float64)
    for box in boxes:
        add(means, level, box, read(box))
    return np.rint(means).clip(0, 255).astype(np.uint8)


def add(means: NDArray[np.float64], level: Level, box: Box, pixels: Pixels) -> None:
    """Add the share of a box to ``means``, of which each pixel is the mean over its exact area of ``level``."""
    rows, high = _weights(box.y_px, box.height_px, level.height_px, means.shape[0])
    columns, wide = _weights(box.x_px, box.width_px, level.width_px, means.shape[1])
    flat = pixels.reshape(box.height_px, -1).astype(np.float32)
    part = (high @ flat).reshape(-1, box.width_px, 3)
    means[rows, columns] += np.moveaxis(np.tensordot(part, wide, axes=(1, 1)), 2, 1)


def _weights(start_px: int, length_px: int, total_px: int, count: int) -> tuple[slice, NDArray[np.float32]]:
    """Which of ``count`` cells a run of pixels touches, and how much of each cell each pixel covers."""
    edges = np.arange(start_px, start_px + length_px + 1) * (count / total_px)
    first, last = int(edges[0]), min(math.ceil(edges[-1]), count)
    cells = np.arange(first, last)[:, np.newaxis]
    covered = np.minimum(edges[1:], cells + 1) - np.maximum(edges[:-1], cells)
    return slice(first, last), covered.clip(0, None).astype(np.float32)


def check_target(path: Path, slide: Slide) -> None:
    """Raises UsageError for a name that is not a PNG's, or is one of the slide's own."""
    if path.suffix.lower() != ".png":
        raise UsageError("a thumbnail is a PNG", path, "End its name in .png")
    with suppress(OSError):
        if path.exists() and any(path.samefile(member) for member in slide.files):
            raise UsageError("that is the slide itself", path, "Give another name")


def write(pixels: Pixels, path: Path) -> None:
    """A PNG, whole or not at all. Raises OutputError."""
    part = path.with_name(f".mimic-{os.getpid()}.part")
    try:
        part.write_bytes(imagecodecs.png_encode(pixels))
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise writing_failed(error, path) from error
