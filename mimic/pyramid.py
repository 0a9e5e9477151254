"""Level-0 boxes in any order and alignment -> tiles of every level, in bounded memory.

    level_0 -> tile -> average -> block -> rise -> tile of the level above, once it is complete -> average -> ...

Only partial tiles are held, so memory follows the order of the boxes and not the size of the slide. ``average`` is the
one step that costs much, and may be taken in any thread; ``add`` does all of it in one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from mimic import turned, uniform
from mimic.errors import InternalError
from mimic.model import Box, Pixels

SMALLEST_SIDE_PX = 4096
"""``smallest`` is kept at no more than this a side (48 MiB): it is for thumbnails, and a slide of one level or of
extreme shape would otherwise have to be held whole."""


@dataclass(frozen=True, slots=True)
class TilePixels:
    """A complete tile: ``pixels`` is always (tile_px, tile_px, 3), at the image's edges its last row and column repeat.

    ``valid`` is its part inside the image. Both may be views of the box that was added: whoever holds one keeps that
    box alive, and unchanged.
    """

    level: int
    column: int
    row: int
    pixels: Pixels
    valid: Pixels

    def condensed(self) -> TilePixels:
        """The same, without memory of its own if it is all of one colour: cheap to encode and to average."""
        pixels = uniform.found(self.pixels)
        return (
            self
            if pixels is self.pixels
            else replace(self, pixels=pixels, valid=pixels[: len(self.valid), : self.valid.shape[1]])
        )


@dataclass(slots=True)
class _Partial:
    """A tile that waits for pixels. ``boxes`` tells what is there already, to notice pixels given twice.

    As long as all that came is of one colour ``pixels`` is one pixel over and over: where nothing was scanned, no level
    costs memory or time.
    """

    pixels: Pixels
    covered_px: int = 0
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)

    def fill(self, x_px: int, y_px: int, pixels: Pixels) -> bool:
        """Put ``pixels`` in; False, and nothing changed, when some of the place is taken already."""
        height_px, width_px = pixels.shape[:2]
        right_px, bottom_px = x_px + width_px, y_px + height_px
        if any(x_px < r and left < right_px and y_px < b and top < bottom_px for left, top, r, b in self.boxes):
            return False
        self.boxes.append((x_px, y_px, right_px, bottom_px))
        self.covered_px += width_px * height_px
        if uniform.is_uniform(self.pixels):
            if uniform.is_uniform(pixels) and np.array_equal(pixels[0, 0], self.pixels[0, 0]):
                return True
            self.pixels = uniform.written_out(self.pixels)
        turned.put(self.pixels[y_px:bottom_px, x_px:right_px], uniform.written_out(pixels))
        return True


class _Kept:
    """The smallest level as it comes, resampled to ``width_px`` as soon as a row of tiles is whole.

    That is the first half of what ``thumbnail`` does: the same bytes, and memory that grows with the height of a slide
    and not with its area.
    """

    def __init__(self, size_px: tuple[int, int], *, band_px: int, width_px: int) -> None:
        self._size_px, self._band_px = size_px, band_px
        self.pixels: Pixels = np.empty((size_px[1], width_px, 3), np.uint8)
        self._bands: dict[int, Pixels] = {}
        self._lacking_px: dict[int, int] = {}

    def put(self, x_px: int, y_px: int, block: Pixels) -> None:
        """Take a block that lies within one row of tiles."""
        if self.pixels.shape[1] == self._size_px[0]:
            self.pixels[y_px : y_px + block.shape[0], x_px : x_px + block.shape[1]] = block
        elif block.size:
            self._put(y_px // self._band_px, x_px, block)

    def _put(self, number: int, x_px: int, block: Pixels) -> None:
        wide, high = self._size_px[0], block.shape[0]
        if number not in self._bands:
            self._bands[number], self._lacking_px[number] = np.empty((high, wide, 3), np.uint8), wide
        self._bands[number][:, x_px : x_px + block.shape[1]] = block
        self._lacking_px[number] -= block.shape[1]
        if not self._lacking_px[number]:
            top_px = number * self._band_px
            self.pixels[top_px : top_px + high] = thumbnail(self._bands.pop(number), (self.pixels.shape[1], high))


class Pyramid:
    """Collects the level-0 boxes of one image and yields the tiles of all its levels. For one thread at a time."""

    def __init__(
        self, sizes_px: Sequence[tuple[int, int]], *, tile_px: int, downsample: int, kept_px: int | None = None
    ) -> None:
        """``sizes_px`` are (width, height) of the levels, largest first, each floor(W/f) x floor(H/f) of the last.

        ``kept_px`` is the width of the thumbnail that is to be made of ``smallest``, None to have that whole. Raises
        InternalError when sizes are not so, or when ``downsample`` (2 or 4) does not divide ``tile_px``.
        """
        _require(downsample in (2, 4) and tile_px > 0 and tile_px % downsample == 0, f"tile {tile_px}, /{downsample}")
        _require(len(sizes_px) > 0 and min(map(min, sizes_px)) > 0, f"a level of {sizes_px} is empty")
        for (wide, high), smaller in pairwise(sizes_px):
            exact = (wide // downsample, high // downsample)
            _require(smaller == exact, f"level {smaller} is not {wide}x{high} over {downsample}")
        self._sizes_px = tuple(sizes_px)
        self._tile_px = tile_px
        self._downsample = downsample
        self._partial: dict[tuple[int, int, int], _Partial] = {}
        self._done = [np.zeros((-(-high // tile_px), -(-wide // tile_px)), np.bool_) for wide, high in sizes_px]
        wide, high = sizes_px[-1]
        self._keep_factors = (_keep_factor(wide, tile_px), _keep_factor(high, tile_px))
        size_px = wide // self._keep_factors[0], high // self._keep_factors[1]
        # Pillow resamples rows before columns, but for some pictures that are higher than wide (Pillow 13)
        by_rows = size_px[0] >= size_px[1] and self._keep_factors[0] == self._keep_factors[1]
        width_px = kept_px if kept_px is not None and by_rows else size_px[0]
        self._kept = _Kept(size_px, band_px=tile_px // self._keep_factors[1], width_px=width_px)

    def add(self, box: Box, pixels: Pixels) -> Iterator[TilePixels]:
        """Take the pixels of ``box`` (height, width, 3) and yield each tile, of any level, that they complete.

        Tiles come in an order that depends on the order of the boxes alone. Run the iterator to its end: the work is
        done in it. Raises InternalError for a box that is outside of the image, or overlaps an earlier one.
        """
        for first in self.level_0(box, pixels):
            tile: TilePixels | None = first
            while tile is not None:
                yield tile
                tile = self.rise((tile.level, tile.column, tile.row), self.average(tile))

    def level_0(self, box: Box, pixels: Pixels) -> Iterator[TilePixels]:
        """``add`` without the levels above: each tile is then to be averaged, and its block given to ``rise``."""
        wide, high = self._sizes_px[0]
        right_px, bottom_px = box.x_px + box.width_px, box.y_px + box.height_px
        inside = 0 <= box.x_px < right_px <= wide and 0 <= box.y_px < bottom_px <= high
        _require(inside, f"{box} is not inside {wide}x{high}")
        _require(pixels.shape == (box.height_px, box.width_px, 3), f"{box} came with pixels of shape {pixels.shape}")
        _require(pixels.dtype == np.uint8, f"{box} came with pixels of type {pixels.dtype}")
        tile_px = self._tile_px
        for row in range(box.y_px // tile_px, -(-bottom_px // tile_px)):
            for column in range(box.x_px // tile_px, -(-right_px // tile_px)):
                x_px, y_px = column * tile_px - box.x_px, row * tile_px - box.y_px
                piece = pixels[max(y_px, 0) : y_px + tile_px, max(x_px, 0) : x_px + tile_px]
                tile = self._put(0, column, row, max(-x_px, 0), max(-y_px, 0), piece)
                if tile is not None:
                    yield tile

    def average(self, tile: TilePixels) -> Pixels:
        """What a tile of any level is in the level above it, or in ``smallest``. In any thread: nothing is changed."""
        if tile.level + 1 == len(self._sizes_px):
            return area_average(tile.valid, *self._keep_factors)
        return area_average(tile.valid, self._downsample, self._downsample)

    def rise(self, tile: tuple[int, int, int], block: Pixels) -> TilePixels | None:
        """Put the average of a tile (level, column, row) where it belongs; the tile above, if that completes it."""
        level, column, row = tile
        if level + 1 == len(self._sizes_px):
            self._keep(column, row, block)
            return None
        if block.size == 0:
            return None
        step_px = self._tile_px // self._downsample
        (up_column, x), (up_row, y) = divmod(column, self._downsample), divmod(row, self._downsample)
        return self._put(level + 1, up_column, up_row, x * step_px, y * step_px, block)

    def finish(self) -> None:
        """Raises InternalError that names what is missing, unless every tile of every level was yielded."""
        for level, done in enumerate(self._done):
            if not done.all():
                row, column = (int(index) for index in np.argwhere(~done)[0])
                partial = self._partial.get((level, column, row))
                wide, high = self._valid_px(level, column, row)
                raise InternalError(
                    f"level {level} lacks {int((~done).sum())} of {done.size} tiles, the first in column {column}, "
                    f"row {row} with {partial.covered_px if partial else 0} of its {wide * high} pixels"
                )

    def smallest(self) -> Pixels:
        """The smallest level, (height, width, 3); each axis longer than SMALLEST_SIDE_PX is reduced by a power of two.

        Its width is ``kept_px`` where that gives the same thumbnail. Raises InternalError when some of it is missing.
        """
        self.finish()
        return self._kept.pixels

    def _valid_px(self, level: int, column: int, row: int) -> tuple[int, int]:
        """Width and height of the part of a tile that is inside the image."""
        wide, high = self._sizes_px[level]
        return min(self._tile_px, wide - column * self._tile_px), min(self._tile_px, high - row * self._tile_px)

    def _put(self, level: int, column: int, row: int, x_px: int, y_px: int, piece: Pixels) -> TilePixels | None:
        """Place ``piece`` at (x_px, y_px) of a tile; the tile, when that completes it."""
        where = f"level {level}, column {column}, row {row}"
        _require(not self._done[level][row, column], f"{where}: given twice")
        wide, high = self._valid_px(level, column, row)
        key = (level, column, row)
        if piece.shape != (high, wide, 3):
            partial = self._partial.get(key)
            if partial is None:
                partial = self._partial[key] = _Partial(self._blank(piece))
            _require(partial.fill(x_px, y_px, piece), f"{where}: given twice")
            if partial.covered_px < wide * high:
                return None
            del self._partial[key]
            tile = partial.pixels
        else:
            _require(key not in self._partial, f"{where}: given twice")
            tile = piece if wide == high == self._tile_px else self._padded(piece)
        _replicate(tile, wide, high)
        self._done[level][row, column] = True
        return TilePixels(level, column, row, tile, tile[:high, :wide])

    def _keep(self, column: int, row: int, block: Pixels) -> None:
        factors = self._keep_factors
        self._kept.put(column * self._tile_px // factors[0], row * self._tile_px // factors[1], block)

    def _padded(self, valid: Pixels) -> Pixels:
        high, wide = valid.shape[:2]
        tile = self._blank(valid)
        if not uniform.is_uniform(tile):
            turned.put(tile[:high, :wide], valid)
        return tile

    def _blank(self, piece: Pixels) -> Pixels:
        """A whole tile for ``piece`` to be put in; it is already, if it is of one colour."""
        shape = (self._tile_px, self._tile_px, 3)
        return np.broadcast_to(piece[0, 0], shape) if uniform.is_uniform(piece) else np.empty(shape, np.uint8)


def area_average(pixels: Pixels, x_factor: int, y_factor: int) -> Pixels:
    """Mean of each block of x_factor by y_factor pixels, half rounded up; a rest that fills no block is dropped.

    Both factors are powers of two. The average of one colour is that colour, as strides of zero.

    Rows are summed first because they are contiguous, in 16 bit while that holds the sum (up to 256 pixels); then each
    pixel and its neighbour, and those sums and theirs, over the whole array as if it were one row: nine of ten results
    are never used, yet that takes a third less time than to skip them. Every numpy loop is long, and runs without the
    GIL.
    """
    high, wide = pixels.shape[0] // y_factor, pixels.shape[1] // x_factor
    count = x_factor * y_factor
    if count == 1 or high == 0 or wide == 0 or uniform.is_uniform(pixels):
        return pixels[:high, :wide]
    blue_first = turned.is_turned(pixels)
    pixels = pixels[: high * y_factor, : wide * x_factor]
    pixels = pixels[..., ::-1] if blue_first else pixels
    kind = np.uint16 if count <= 256 else np.uint32
    rows: NDArray[np.unsignedinteger] = pixels[::y_factor].astype(kind, order="C")
    for row in range(1, y_factor):
        rows += pixels[row::y_factor].astype(kind, order="C")
    sums = rows.reshape(-1)
    width = 1
    while width * 2 < x_factor:
        sums = sums[: -3 * width] + sums[3 * width :]
        width *= 2
    if x_factor > 1:
        pairs, step = sums, 3 * x_factor
        sums = np.empty((high * wide, 3), kind)
        for channel, place in enumerate((2, 1, 0) if blue_first else (0, 1, 2)):
            np.add(pairs[channel::step], pairs[channel + 3 * width :: step], out=sums[:, place])
    sums += count // 2
    sums >>= count.bit_length() - 1
    means = sums.astype(np.uint8).reshape(high, wide, 3)
    return means[..., ::-1] if blue_first and x_factor == 1 else means


def thumbnail(pixels: Pixels, size_px: tuple[int, int]) -> Pixels:
    """``pixels`` resampled to ``size_px`` (width, height) with a box filter: each new pixel is the mean of its area."""
    resized = PIL.Image.fromarray(np.ascontiguousarray(pixels)).resize(size_px, PIL.Image.Resampling.BOX)
    return np.asarray(resized, np.uint8)


def _keep_factor(side_px: int, tile_px: int) -> int:
    """The smallest power of two that brings a side within SMALLEST_SIDE_PX; it divides the tile, for alignment."""
    factor = 1
    while side_px // factor > SMALLEST_SIDE_PX and tile_px % (factor * 2) == 0:
        factor *= 2
    return factor


def _replicate(tile: Pixels, wide: int, high: int) -> None:
    """Repeat the last column and row over the rest: unlike black, that adds no edge, hence no bytes and no ringing."""
    if (high, wide) != tile.shape[:2] and not uniform.is_uniform(tile):
        tile[:high, wide:] = tile[:high, wide - 1 : wide]
        tile[high:] = tile[high - 1]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InternalError(f"pyramid: {message}")
