"""Pixels that are not square, served as square ones: one axis is stretched while boxes are read.

The finer scale counts, so that the other axis is only ever stretched and no detail is lost. An output pixel depends on
its own place and two source pixels alone, never on the box it was asked for in: boxes join without seams.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mimic.model import Box, Pixels
from mimic.sources import PixelReader

MARGIN_PX = 1
"""Linear interpolation reaches to the next source pixel."""


class SquareReader:
    """A PixelReader of ``size_px`` over ``reader`` of ``source_px``; neither side may shrink.

    A box costs its own share of the source and one pixel more at each stretched end; memory does not grow with the
    slide. Closing it closes ``reader``.
    """

    def __init__(self, reader: PixelReader, *, source_px: tuple[int, int], size_px: tuple[int, int]) -> None:
        if any(new < old for old, new in zip(source_px, size_px, strict=True)):
            raise ValueError(f"{source_px} cannot be stretched to {size_px}")
        self._reader, self._source_px, self._size_px = reader, source_px, size_px

    @property
    def sequential(self) -> bool:
        return self._reader.sequential

    def boxes(self) -> Sequence[Box]:
        """The reader's own boxes, each stretched: they still cover all, in the order that suits the file."""
        return tuple(self._stretched(box) for box in self._reader.boxes())

    def _stretched(self, box: Box) -> Box:
        left, right = (self._place(0, edge) for edge in (box.x_px, box.x_px + box.width_px))
        top, lower = (self._place(1, edge) for edge in (box.y_px, box.y_px + box.height_px))
        return Box(left, top, right - left, lower - top)

    def _place(self, axis: int, edge_px: int) -> int:
        return edge_px * self._size_px[axis] // self._source_px[axis]

    def read(self, box: Box) -> Pixels:
        """Pixels of a box of the stretched image. Raises what the reader raises."""
        across, down = self._taps(0, box.x_px, box.width_px), self._taps(1, box.y_px, box.height_px)
        left, top = int(across[0][0]), int(down[0][0])
        source = Box(left, top, int(across[1][-1]) - left + 1, int(down[1][-1]) - top + 1)
        pixels = self._reader.read(source)
        pixels = _blend(pixels, down[0] - top, down[1] - top, down[2], axis=0)
        return _blend(pixels, across[0] - left, across[1] - left, across[2], axis=1)

    def _taps(
        self, axis: int, start_px: int, count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """For each output pixel the two source pixels about its centre, and the weight of the second."""
        old, new = self._source_px[axis], self._size_px[axis]
        # twice the new size as a common denominator: (i + 1/2) * old / new - 1/2 without rounding
        number = (2 * np.arange(start_px, start_px + count, dtype=np.int64) + 1) * old - new
        first = number // (2 * new)
        weight = ((number - first * 2 * new) / (2 * new)).astype(np.float32)
        return first.clip(0, old - 1), (first + MARGIN_PX).clip(0, old - 1), weight

    def close(self) -> None:
        self._reader.close()


def _blend(
    pixels: Pixels, first: NDArray[np.int64], second: NDArray[np.int64], weight: NDArray[np.float32], *, axis: int
) -> Pixels:
    """``pixels`` with one axis replaced by weighted means of its rows or columns; as they are when nothing changes."""
    if not weight.any():
        return pixels if len(first) == pixels.shape[axis] else np.ascontiguousarray(pixels.take(first, axis))
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    low = pixels.take(first, axis).astype(np.float32)
    mixed = low + (pixels.take(second, axis).astype(np.float32) - low) * weight.reshape(shape)
    return np.asarray(mixed + np.float32(0.5), np.uint8)
