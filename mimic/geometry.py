"""Sizes of levels, thumbnails and pictures, as readers of SVS want them (svs-spec.md, section 3), and boxes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from mimic.model import Box, Level

THUMBNAIL_PX = (1024, 768)
"""Genuine thumbnails fit in this; svs-spec.md, section 3."""
SIDE_MIN_PX = 144
"""A level this small on a side still has a width ratio within 0.7 % of a power of two after flooring (opentile)."""


def level_sizes(
    width_px: int, height_px: int, downsample: int, *, first: tuple[tuple[int, int], ...] = ()
) -> tuple[tuple[int, int], ...]:
    """Sizes of the pyramid, largest first, each floor(W/f) x floor(H/f); ``first`` are those that are there already.

    A picture longer than a thumbnail gets at least one lower level; further ones only while they stay higher than a
    full-size thumbnail, as on genuine slides: Bio-Formats drops the smallest level when the thumbnail is higher.
    """
    sizes = list(first) or [(width_px, height_px)]
    while True:
        width, height = (side // downsample for side in sizes[-1])
        if not belongs(sizes, (width, height)):
            return tuple(sizes)
        sizes.append((width, height))


def belongs(larger: Sequence[tuple[int, int]], size: tuple[int, int]) -> bool:
    """Whether a level of ``size`` may follow the ``larger`` ones."""
    wanted = len(larger) == 1 and max(larger[0]) > THUMBNAIL_PX[0]
    return min(size) >= SIDE_MIN_PX and (wanted or size[1] > fit(*larger[0], THUMBNAIL_PX)[1])


def thumbnail_size(levels: tuple[Level, ...]) -> tuple[int, int]:
    """(width, height) of the thumbnail: within 1024 x 768, and lower than the smallest level."""
    smallest = levels[-1]
    limit = (min(THUMBNAIL_PX[0], smallest.width_px), min(THUMBNAIL_PX[1], smallest.height_px - 1))
    return fit(levels[0].width_px, levels[0].height_px, limit)


def fit(width_px: int, height_px: int, limit_px: tuple[int, int]) -> tuple[int, int]:
    """(width, height) made smaller, if need be, to lie within ``limit_px``."""
    factor = min(limit_px[0] / width_px, limit_px[1] / height_px, 1.0)
    return max(1, int(width_px * factor)), max(1, int(height_px * factor))


def grid(size: Level, box_px: tuple[int, int]) -> list[Box]:
    """Boxes of ``box_px`` that cover ``size`` row by row; those at the right and lower edge are cropped."""
    width, height = box_px
    return [
        Box(x, y, min(width, size.width_px - x), min(height, size.height_px - y))
        for y in range(0, size.height_px, height)
        for x in range(0, size.width_px, width)
    ]
