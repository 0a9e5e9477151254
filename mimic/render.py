"""Samples of any type and number of channels -> 8-bit RGB, the same way for every tile. Pure.

Each channel is scaled linearly, its low to 0 and its high to 1, clipped, bent by its gamma, multiplied by its colour,
and the channels are added. So three channels in pure red, green and blue over the whole range of their type are an RGB
picture, unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mimic.model import Box, ChannelView, Image, Level, Pixels, Rendering, Slide

if TYPE_CHECKING:
    from pathlib import Path

    from mimic.settings import Settings

Samples = NDArray[Any]
"""One channel of a box as the file holds it: shape (height_px, width_px), of any integer or float type."""

PERCENTILES = (0.1, 99.9)
"""Display range of a channel for which the file states none: what the usual automatic contrast of viewers leaves out at
each end. Zeros of unsigned samples do not count: a camera's dark level lies above, and mosaics have zeros where nothing
was scanned."""
MEASURED_MIN_PX = 1 << 18
"""The smallest level that has as many pixels is measured: below it, averaging has levelled the bright spots out."""
MEASURED_MAX_PX = 1 << 24
"""Of a level that has more (a slide without a pyramid), a grid of MEASURED_BOX_PX boxes with so many pixels is."""
MEASURED_BOX_PX = 512
TOE = (1e-9, 1e15)
TOE_STEPS = 100
"""Between these a is found to a double's last digits, for any gamma from 0.02 on."""
BAND_ROWS_PX = 256
"""Floats are made for so many rows at a time."""


class PlaneReader(Protocol):
    """Samples of one image as its file holds them. Closed by ``close``."""

    @property
    def sequential(self) -> bool:
        """True when boxes must be read in their order, by one thread at a time."""
        ...

    def boxes(self) -> Sequence[Box]:
        """As ``PixelReader.boxes``."""
        ...

    def samples(self, box: Box, channels: Sequence[int], *, z: int, t: int, level: int = 0) -> list[Samples]:
        """One array a channel, in native byte order; ``box`` is in pixels of ``level``. Raises as PixelReader.read."""
        ...

    def close(self) -> None: ...


class PlaneSource(Protocol):
    """A source that gives samples: it has this function beside those of ``sources.Source``."""

    def open_planes(
        self, slide: Slide, image: Image, rendering: Rendering, *, threads: int, settings: Settings, scratch: Path
    ) -> PlaneReader:
        """A reader of what ``rendering`` shows of ``image``; ``scratch`` is a folder that its caller removes."""
        ...


class Rendered:
    """A PixelReader: what ``reader`` gives, rendered."""

    def __init__(self, reader: PlaneReader, rendering: Rendering, image: Image) -> None:
        self._reader = reader
        self._rendering = rendering
        self._image = image

    @property
    def sequential(self) -> bool:
        return self._reader.sequential

    def boxes(self) -> Sequence[Box]:
        return self._reader.boxes()

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box``. Raises what the reader of planes raises."""
        return compose(planes(self._reader, self._image, self._rendering, box), self._rendering)

    def close(self) -> None:
        self._reader.close()


def planes(reader: PlaneReader, image: Image, rendering: Rendering, box: Box, level: int = 0) -> list[Samples]:
    """Samples of each view of ``rendering``: of its plane, or the maximum over all focus planes."""
    channels = [view.index for view in rendering.views]
    if rendering.z != "max":
        return reader.samples(box, channels, z=rendering.z, t=rendering.t, level=level)
    found = reader.samples(box, channels, z=0, t=rendering.t, level=level)
    for z in range(1, image.z_planes):
        more = reader.samples(box, channels, z=z, t=rendering.t, level=level)
        found = [np.maximum(one, other) for one, other in zip(found, more, strict=True)]
    return found


def compose(samples: Sequence[Samples], rendering: Rendering) -> Pixels:
    """8-bit RGB from one array a view, all of one shape and type. The views' ranges must be known."""
    pixels = np.empty((*samples[0].shape, 3), np.uint8)
    for component in range(3):
        parts = [
            (plane, view, view.colour[component] / 255)
            for plane, view in zip(samples, rendering.views, strict=True)
            if view.colour[component]
        ]
        target = pixels[..., component]
        if not parts:
            target[:] = 0
        elif len(parts) == 1:
            plane, view, weight = parts[0]
            _single(target, plane, view, weight, inverted=rendering.inverted)
        else:
            _sum(target, parts, inverted=rendering.inverted)
    return pixels


def _single(target: Pixels, plane: Samples, view: ChannelView, weight: float, *, inverted: bool) -> None:
    """One component that one view alone lights: nothing is added, so small integers go through a table of bytes."""
    if plane.dtype == np.uint8 and weight == 1 and (view.low, view.high, view.gamma) == (0, 255, 1) and not inverted:
        target[:] = plane
    elif plane.dtype.kind in "ui" and plane.itemsize <= 2:
        table = _bytes_table(plane.dtype.str, *_curve(view), weight, inverted)
        np.take(table, plane.view(f"u{plane.itemsize}"), out=target, mode="clip")
    else:
        for rows in _bands(len(plane)):
            target[rows] = _rounded(_scaled(plane[rows], *_curve(view), inverted=inverted) * weight)


def _sum(target: Pixels, parts: list[tuple[Samples, ChannelView, float]], *, inverted: bool) -> None:
    for rows in _bands(len(target)):
        light = np.zeros(target[rows].shape, np.float32)
        for plane, view, weight in parts:
            part = plane[rows]
            if part.dtype.kind in "ui" and part.itemsize <= 2:
                table = _table(part.dtype.str, *_curve(view), inverted)
                light += np.take(table, part.view(f"u{part.itemsize}"), mode="clip") * np.float32(weight)
            else:
                light += _scaled(part, *_curve(view), inverted=inverted) * np.float32(weight)
        target[rows] = _rounded(light)


def _bands(rows_px: int) -> Iterator[slice]:
    return (slice(top, top + BAND_ROWS_PX) for top in range(0, rows_px, BAND_ROWS_PX))


def _curve(view: ChannelView) -> tuple[float, float, float]:
    """Low, high and gamma of a view. Raises ValueError when they were not measured: a caller's mistake."""
    if view.low is None or view.high is None:
        raise ValueError(f"the range of channel {view.index} is not known yet")
    return view.low, view.high, view.gamma


def _scaled(samples: Samples, low: float, high: float, gamma: float = 1.0, *, inverted: bool) -> NDArray[np.float32]:
    """0 at ``low``, 1 at ``high``, clipped and bent; what is no number is 0 before the inversion."""
    # in doubles: 32-bit integers would lose their last digits in floats
    with np.errstate(invalid="ignore"):
        scaled = np.clip((samples.astype(np.float64) - low) / (high - low), 0, 1)
    if samples.dtype.kind == "f":
        scaled = np.nan_to_num(scaled, copy=False)
    if gamma != 1:
        scaled = bent(scaled, gamma)
    return np.asarray(1 - scaled if inverted else scaled, np.float32)


def bent(light: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    """Light from 0 to 1 as ZEISS's software bends it: raised to ``gamma``, and below 1 with a toe.

    A power below 1 is infinitely steep at 0 and would show a camera's noise. So ZEISS's viewer and libCZI take
    ((a x + 1)^gamma - 1) / ((a + 1)^gamma - 1), with a so that the slope at 0 is 1 / gamma^3.
    """
    if gamma >= 1:
        return np.asarray(light**gamma)
    a = _toe(gamma)
    return np.asarray(np.expm1(gamma * np.log1p(a * light)) / math.expm1(gamma * math.log1p(a)))


@lru_cache(maxsize=64)
def _toe(gamma: float) -> float:
    """The a of ``bent``, by halving: the slope at 0 grows with it."""
    low, high = TOE
    for _ in range(TOE_STEPS):
        middle = math.sqrt(low * high)
        slope = middle * gamma / math.expm1(gamma * math.log1p(middle))
        low, high = (middle, high) if slope < gamma**-3 else (low, middle)
    return low


def _rounded(light: NDArray[np.float32]) -> Pixels:
    return np.asarray(np.minimum(light * np.float32(255) + np.float32(0.5), 255), np.uint8)


@lru_cache(maxsize=64)
def _table(kind: str, low: float, high: float, gamma: float, inverted: bool) -> NDArray[np.float32]:
    """``_scaled`` for every value of an 8- or 16-bit type, by the value's bits as an unsigned number."""
    bits = np.dtype(kind).itemsize * 8
    every = np.arange(1 << bits, dtype=f"u{bits // 8}").view(kind)
    return _scaled(every, low, high, gamma, inverted=inverted)


@lru_cache(maxsize=64)
def _bytes_table(kind: str, low: float, high: float, gamma: float, weight: float, inverted: bool) -> Pixels:
    return _rounded(_table(kind, low, high, gamma, inverted) * np.float32(weight))


def resolve(reader: PlaneReader, image: Image, rendering: Rendering) -> Rendering:
    """``rendering`` with every range known: PERCENTILES of the whole plane where it was not.

    Measured once a conversion, on the smallest level that shows enough, so that all tiles are rendered alike.
    """
    open_views = [view for view in rendering.views if view.low is None or view.high is None]
    if not open_views:
        return rendering
    level = measured_level(image)
    wanted = replace(rendering, views=tuple(open_views))
    counted: list[list[Samples]] = [[] for _ in open_views]
    for box in measured_boxes(image.levels[level]):
        for kept, part in zip(counted, planes(reader, image, wanted, box, level), strict=True):
            kept.append(part.ravel())
    ranges = {
        view.index: _found(view, percentiles(np.concatenate(parts)))
        for view, parts in zip(open_views, counted, strict=True)
    }
    return replace(rendering, views=tuple(ranges.get(view.index, view) for view in rendering.views))


def _found(view: ChannelView, measured: tuple[float, float]) -> ChannelView:
    low = measured[0] if view.low is None else view.low
    high = measured[1] if view.high is None else view.high
    return replace(view, low=low, high=high if high > low else low + 1)


def measured_level(image: Image) -> int:
    """The smallest level with MEASURED_MIN_PX pixels, else the largest."""
    enough = [index for index, level in enumerate(image.levels) if level.width_px * level.height_px >= MEASURED_MIN_PX]
    return enough[-1] if enough else 0


def measured_boxes(size: Level) -> list[Box]:
    """Boxes over the whole of a level, or an even grid over it when it has more than MEASURED_MAX_PX pixels."""
    columns, rows = (math.ceil(side / MEASURED_BOX_PX) for side in (size.width_px, size.height_px))
    step = max(1, math.ceil(math.sqrt(size.width_px * size.height_px / MEASURED_MAX_PX)))
    return [
        Box(x, y, min(MEASURED_BOX_PX, size.width_px - x), min(MEASURED_BOX_PX, size.height_px - y))
        for y in range(rows // 2 % step * MEASURED_BOX_PX, size.height_px, step * MEASURED_BOX_PX)
        for x in range(columns // 2 % step * MEASURED_BOX_PX, size.width_px, step * MEASURED_BOX_PX)
    ]


def percentiles(samples: Samples) -> tuple[float, float]:
    """The values at PERCENTILES of samples that are numbers, without the zeros of unsigned ones.

    (0, 1) when nothing is left. Where both are the same, the least and the largest sample.
    """
    known = samples[np.isfinite(samples)] if samples.dtype.kind == "f" else samples
    if known.dtype.kind == "u":
        known = known[known > 0]
    if not known.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(known, PERCENTILES))
    if known.dtype.kind in "ui":  # whole numbers can be given again with --range
        low, high = float(math.floor(low)), float(math.ceil(high))
    return (low, high) if high > low else (float(known.min()), float(known.max()))


def arrange(
    data: NDArray[np.uint8], *, size_px: tuple[int, int], per_pixel: int, kind: str, order: Literal["<", ">"],
    interleaved: bool,
) -> Samples:  # fmt: skip
    """Raw bytes of a plane -> a copy of shape (height, width, per_pixel) in native byte order.

    ``size_px`` is (width, height); ``kind`` is OME's name of a type in DTYPES.
    """
    width, height = size_px
    typed = data.view(np.dtype(DTYPES[kind]).newbyteorder(order))
    if interleaved:
        return typed.reshape(height, width, per_pixel).astype(DTYPES[kind])  # a copy
    pixels = np.empty((height, width, per_pixel), DTYPES[kind])
    for sample, plane in enumerate(typed.reshape(per_pixel, height, width)):
        pixels[..., sample] = plane
    return pixels


DTYPES = {
    **{name: name for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32")},
    "float": "float32",
    "double": "float64",
    "bit": "uint8",
}
"""numpy's names of the types that can be rendered; complex numbers cannot."""
