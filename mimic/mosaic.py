"""Holes and dead blocks of a CZI mosaic: what its directory says against the pixels that came. Pure.

Bio-Formats gives black for both: for places where nothing was scanned, which are white on a brightfield slide, and
for blocks that it could not decode, which are damage.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mimic.errors import BadInput
from mimic.model import Box, Pixels
from mimic.structure import CziFacts, CziScene

RGB = TypeVar("RGB", np.uint8, np.uint16)
UNCOMPRESSED = 0
BLACK_MIN_PX = 4096
BLACK_MAX_PX = 1 << 20
BLACK_PART = 4
"""A whole brightfield block of exact zeros is never real, but a corner of one may well be black (a pen's mark, a
padded edge). So a quarter of a block is asked for: of the boxes that meet in a block one sees as much. At least
BLACK_MIN_PX, and no more than BLACK_MAX_PX, which a box of any source has."""


class Mosaic:
    """The full-resolution blocks of one scene, in the scene's own coordinates."""

    def __init__(self, czi: CziFacts, scene: CziScene, path: Path) -> None:
        mine = czi.subblocks if scene.index is None else czi.subblocks[czi.subblocks[:, 0] == scene.index]
        self._blocks = mine[:, 1:7] - np.array([scene.x_px, scene.y_px, 0, 0, 0, 0])
        self._covered = bool(scene.covered)
        self._path = path

    def mend(self, box: Box, pixels: NDArray[RGB]) -> NDArray[RGB]:
        """RGB ``pixels`` of ``box`` with white where nothing was scanned; the same array when nothing is to be done.
        One white pixel over and over (see ``uniform``) when nothing is there at all.

        For 8-bit and 16-bit RGB, which is brightfield: other channels are fluorescence, where a block may well be black
        and a hole is. Raises BadInput naming a compressed block of which a large part came back as zeros only.
        """
        blocks = self._within(box)
        for x, y, width, height, _, compression in blocks:
            part = pixels[_overlap(box, x, y, width, height)]
            enough_px = max(BLACK_MIN_PX, min(width * height // BLACK_PART, BLACK_MAX_PX))
            suspect = compression != UNCOMPRESSED and part.shape[0] * part.shape[1] >= enough_px
            if suspect and not part[::16, ::16].any() and not part.any():
                message = f"the block at x={x}, y={y} came back black: its compressed data are damaged"
                remedy = "Copy the file again from where it was made, or convert what is there with --allow-missing"
                raise BadInput(message, self._path, remedy)
        if self._covered:
            return pixels
        white = np.full(3, np.iinfo(pixels.dtype).max, pixels.dtype)
        if not len(blocks):
            return np.broadcast_to(white, pixels.shape)
        bare = np.ones(pixels.shape[:2], bool)
        for x, y, width, height, *_ in blocks:
            bare[_overlap(box, x, y, width, height)] = False
        if bare.any():
            pixels = pixels.copy() if not pixels.flags.writeable else pixels
            if pixels.flags.c_contiguous:  # a pixel at once takes an eighth of the time of sample by sample
                kind = np.dtype((np.void, white.nbytes))
                np.copyto(pixels.view(kind)[..., 0], white.view(kind)[0], where=bare)
            else:
                pixels[bare] = white
        return pixels

    def blank(self, box: Box) -> Pixels | None:
        """White pixels where nothing was scanned in all of ``box``: one pixel, read-only and repeated by strides of
        zero, so that nobody need touch as much memory as the box has. None where there is a block."""
        if self._covered or len(self._within(box)):
            return None
        return np.broadcast_to(np.uint8(np.iinfo(np.uint8).max), (box.height_px, box.width_px, 3))

    def _within(self, box: Box) -> NDArray[np.int64]:
        x, y, width, height = self._blocks[:, :4].T
        right, lower = box.x_px + box.width_px, box.y_px + box.height_px
        touched = (x < right) & (y < lower) & (x + width > box.x_px) & (y + height > box.y_px)
        return np.asarray(self._blocks[touched], np.int64)


def _overlap(box: Box, x: int, y: int, width: int, height: int) -> tuple[slice, slice]:
    """Rows and columns of ``box`` that the block covers."""
    left, upper = max(x - box.x_px, 0), max(y - box.y_px, 0)
    return slice(upper, y + height - box.y_px), slice(left, x + width - box.x_px)
