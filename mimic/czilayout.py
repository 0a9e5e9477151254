"""Where the blocks of a CZI lie in its scenes, and boxes that cut as few of them in two as can be. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mimic.model import Box
from mimic.structure import CziScene
from mimic.structure.coverage import distinct
from mimic.structure.czi import Subblock

WANTED_PX = 1024
"""A side of a box: large enough that its overhead does not count, small enough to keep many threads busy."""
WHOLE_MAX_PX = 4096
"""A side of a box that is made larger so that it holds whole blocks."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """The blocks of one resolution of a scene, in the order in which they are painted: later ones lie on top.

    ``factor`` is how many times smaller than the scene it is; ``places`` are int64 rows of x, y, width and height of
    each block, in the layer's own pixels.
    """

    width_px: int
    height_px: int
    factor: int
    blocks: tuple[Subblock, ...]
    places: NDArray[np.int64] = field(repr=False)

    def within(self, box: Box) -> list[int]:
        """Numbers of the blocks that touch ``box``."""
        x, y, width, height = self.places.T
        right, lower = box.x_px + box.width_px, box.y_px + box.height_px
        found = (x < right) & (y < lower) & (x + width > box.x_px) & (y + height > box.y_px)
        return [int(number) for number in np.flatnonzero(found)]

    def place(self, number: int) -> Box:
        """Where a block lies."""
        return Box(*self.places[number].tolist())

    def grid(self) -> list[Box]:
        """Disjoint boxes that cover the layer row by row."""
        x, y, width, height = self.places.T
        columns, rows = cuts(x, x + width, self.width_px), cuts(y, y + height, self.height_px)
        return [
            Box(left, top, right - left, lower - top)
            for top, lower in pairwise(rows)
            for left, right in pairwise(columns)
        ]


def layers(scene: CziScene, subblocks: Sequence[Subblock]) -> dict[int, Layer]:
    """The layers of a scene by their factors, 1 first.

    Blocks are painted in the order in which they lie in the file, as Bio-Formats does. ZEN goes by their mosaic number
    M; scanners write blocks in its order.
    """
    mine = [block for block in subblocks if scene.index is None or block.scene == scene.index]
    found: dict[int, list[Subblock]] = {}
    for block in sorted(mine, key=lambda block: block.position):
        found.setdefault(factor_of(block), []).append(block)
    return {factor: _layer(scene, factor, found[factor]) for factor in sorted(found)}


def factor_of(block: Subblock) -> int:
    """How many times smaller than the scene a block is stored."""
    return max(1, round(max(block.width_px / block.stored_width_px, block.height_px / block.stored_height_px)))


def _layer(scene: CziScene, factor: int, blocks: Sequence[Subblock]) -> Layer:
    places = [
        (
            (block.x_px - scene.x_px) // factor,
            (block.y_px - scene.y_px) // factor,
            block.stored_width_px,
            block.stored_height_px,
        )
        for block in blocks
    ]
    width_px, height_px = max(1, scene.width_px // factor), max(1, scene.height_px // factor)
    return Layer(width_px, height_px, factor, tuple(blocks), np.array(places, np.int64).reshape(-1, 4))


def cuts(first: NDArray[np.int64], last: NDArray[np.int64], length_px: int) -> list[int]:
    """Ascending places from 0 to ``length_px`` at which boxes begin and end, for blocks that reach from ``first`` to
    ``last`` along one axis: where no block is cut if there is such a place near enough, else where a block begins."""
    order = np.argsort(first, kind="stable")
    starts, reach = first[order], np.maximum.accumulate(last[order])
    before = np.concatenate(([0], reach[:-1]))
    clean = np.append(distinct(starts[starts >= before]), length_px)
    begun = distinct(starts)
    found = [0]
    while length_px - found[-1] > WANTED_PX:
        here = found[-1]
        whole = clean[(clean >= here + WANTED_PX) & (clean <= here + WHOLE_MAX_PX)]
        near = begun[(begun > here + WANTED_PX // 2) & (begun <= here + 2 * WANTED_PX)]
        ends = not len(whole) or whole[0] == length_px
        following = int(near[-1]) if ends and len(near) else int(whole[0]) if len(whole) else here + WANTED_PX
        found.append(min(following, length_px))
    if found[-1] < length_px:
        found.append(length_px)
    return found
