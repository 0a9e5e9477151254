"""Which source pixels to keep during the one pass, to be compared with the finished slide."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mimic import turned
from mimic.model import Box, Pixels, Sample


@dataclass
class SampleKeeper:
    """Keeps the tile with the most content of each cell of a grid over the slide.

    At least ``count`` cells, or every tile of a slide that has fewer; never twice as many, so memory stays bounded.
    What is kept does not depend on the order in which tiles are offered.
    """

    width_px: int
    height_px: int
    tile_px: int
    count: int = 64
    _kept: dict[tuple[int, int], tuple[tuple[float, int, int], Sample]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        tiles = -(-self.width_px // self.tile_px), -(-self.height_px // self.tile_px)
        self._tiles = tiles
        self._grid = _grid(tiles, self.count)

    def offer(self, box: Box, pixels: Pixels, *, coded_bytes: int) -> None:
        """A level-0 tile (without padding); copied when it is kept.

        ``coded_bytes`` is what it compressed to. That tells tissue from glass, and costs nothing. Slivers at the edges
        count for less than their bytes: they prove little.
        """
        cell = (
            min(box.x_px // self.tile_px, self._tiles[0] - 1) * self._grid[0] // self._tiles[0],
            min(box.y_px // self.tile_px, self._tiles[1] - 1) * self._grid[1] // self._tiles[1],
        )
        part = min(1.0, box.width_px * box.height_px / self.tile_px**2)
        rank = (coded_bytes * part, -box.y_px, -box.x_px)
        kept = self._kept.get(cell)
        if kept is None or rank > kept[0]:
            self._kept[cell] = rank, Sample(box, turned.copied(pixels))

    def samples(self) -> tuple[Sample, ...]:
        """What was kept, by row and column."""
        return tuple(self._kept[cell][1] for cell in sorted(self._kept, key=lambda cell: (cell[1], cell[0])))


def _grid(tiles: tuple[int, int], count: int) -> tuple[int, int]:
    """Columns and rows of cells, none empty: about square, at least ``count``, or the tiles themselves if fewer."""
    across, down = tiles
    if across * down <= count:
        return tiles
    columns = max(1, min(across, round(math.sqrt(count * across / down))))
    rows = min(down, -(-count // columns))
    return min(across, -(-count // rows)), rows
