"""Other people's readers, each as one function that tells what it sees in a slide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

RGB = NDArray[np.uint8]
Size = tuple[int, int]
"""(width, height) in px."""

BOX = (1333, 777, 320, 256)
"""x, y, width, height of the region every reader reads: over tile borders, at no round number."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one reader sees. None: it has no such notion.

    ``recognised`` is the format's name in the reader's own words, ``pixels`` are those of BOX, ``levels`` the sizes of
    the pyramid, largest first. ``names`` are those of the associated images, ``pictures`` the ones it can load.
    """

    reader: str
    size: Size
    pixels: RGB | None = None
    recognised: str | None = None
    levels: tuple[Size, ...] | None = None
    mpp_um: tuple[float, float] | None = None
    power: float | None = None
    names: tuple[str, ...] | None = None
    pictures: Mapping[str, RGB] = field(default_factory=dict)


def rgb(pixels: NDArray[np.uint8]) -> RGB:
    """Three channels of an image that may carry an opaque fourth."""
    return np.ascontiguousarray(pixels[..., :3])


def cut(pixels: RGB) -> RGB:
    """BOX out of a whole image."""
    x, y, width, height = BOX
    return pixels[y : y + height, x : x + width]
