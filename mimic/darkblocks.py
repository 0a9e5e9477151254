"""Blocks of a CZI's fluorescence that came back as zeros only, against what the file holds for them.

Zeros are no proof of damage there: stitched images and those without their background have them. But zeros take next
to no room when they are compressed, so that a block with more bytes than that cannot be one of zeros.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from mimic.errors import BadInput
from mimic.model import Box, Image, Slide
from mimic.mosaic import BLACK_MIN_PX
from mimic.structure import CziFacts, CziScene
from mimic.structure import czi as directory
from mimic.structure.czi import PIXEL_BYTES, UNCOMPRESSED, Subblock
from mimic.structure.reader import COPY_AGAIN, Input

ZSTD = {5: (0,), 6: (1, 3)}
"""Compression -> lengths that the head in front of Zstandard data may have; its first byte says which."""
ZEROS_PART, ZEROS_BYTES = 1 / 32, 1024
"""More than zeros take, as a part of their size and besides: measured with imagecodecs, 64 to 2048 px, 8 and 16 bits:
JPEG-XR 0.1 to 0.2 % and 200 bytes at any quality, LZW 0.1 to 0.9 %, JPEG 1.2 % and 300 bytes. Fluorescence with noise
of one grey level takes 16 % in lossless JPEG-XR."""

Samples = NDArray[Any]
Plane = tuple[int, int, int]
"""z, c, t, counted from 0."""


def of(slide: Slide, image: Image, czi: CziFacts) -> DarkBlocks | None:
    """The blocks of a CZI's scan image; None for other images, and where its planes are not by z, c and t alone."""
    scans = slide.scans()
    if image not in scans:
        return None
    with Input(slide.path) as source:
        found = [block for block in directory.subblocks(source) if block.full and block.compression != UNCOMPRESSED]
    scene = czi.scenes[scans.index(image)]
    mine = [block for block in found if scene.index is None or block.scene == scene.index]
    return DarkBlocks(slide.path, scene, mine) if _plain(mine) else None


def _plain(blocks: list[Subblock]) -> bool:
    """Whether nothing but z, channel and time varies from plane to plane."""
    others = {tuple(each for each in block.plane if each[0] not in (b"Z", b"C", b"T")) for block in blocks}
    return len(others) == 1


class DarkBlocks:
    """The compressed blocks of one scene, all planes. Safe for many threads."""

    def __init__(self, path: Path, scene: CziScene, blocks: list[Subblock]) -> None:
        self._path = path
        first = {name: min(dict(block.plane).get(name, 0) for block in blocks) for name in (b"Z", b"C", b"T")}
        self._planes: dict[Plane, list[tuple[Box, Subblock]]] = {}
        for block in blocks:
            z, c, t = (dict(block.plane).get(name, 0) - first[name] for name in (b"Z", b"C", b"T"))
            place = Box(block.x_px - scene.x_px, block.y_px - scene.y_px, block.width_px, block.height_px)
            self._planes.setdefault((z, c, t), []).append((place, block))
        self._sound: set[int] = set()
        self._lock = threading.Lock()

    def check(self, box: Box, plane: Plane, samples: Samples, *, read: Callable[[Box], Samples]) -> None:
        """Look at the blocks that ``box`` meets and of which ``samples``, shape (height, width, 1), has zeros only.

        ``read`` gives a block whole that ``box`` cuts. Raises BadInput naming a block that the file does not hold as
        zeros.
        """
        if samples.all():
            return
        for place, block in self._planes.get(plane, []):
            part = samples[_overlap(box, place)]
            if not part.size or place.width_px * place.height_px < BLACK_MIN_PX or part.any():
                continue
            with self._lock:
                known = block.position in self._sound
            if known or (part.shape[:2] != (place.height_px, place.width_px) and read(place).any()):
                continue
            if not self._holds_zeros(block):
                message = f"the block at x={place.x_px}, y={place.y_px} of channel {plane[1]} came back black"
                remedy = f"{COPY_AGAIN}, or convert what is there with --allow-missing"
                raise BadInput(f"{message}, but is not: its compressed data are damaged", self._path, remedy)
            with self._lock:
                self._sound.add(block.position)

    def _holds_zeros(self, block: Subblock) -> bool:
        with Input(self._path) as source:
            data = directory.payload(source, block)
        raw_bytes = block.width_px * block.height_px * PIXEL_BYTES.get(block.pixel_type, 1)
        if block.compression not in ZSTD:
            return len(data) <= raw_bytes * ZEROS_PART + ZEROS_BYTES
        if not data:
            return True
        heads = ZSTD[block.compression]
        head = data[0] if data[0] in heads else heads[0]
        try:
            decoded = imagecodecs.zstd_decode(data[head:], out=raw_bytes)
        except (imagecodecs.ZstdError, ValueError):
            return False
        return not np.frombuffer(decoded, np.uint8).any()


def _overlap(box: Box, place: Box) -> tuple[slice, slice]:
    """Rows and columns of ``box`` that ``place`` covers; empty where it does not."""
    left, upper = max(place.x_px - box.x_px, 0), max(place.y_px - box.y_px, 0)
    right, lower = place.x_px + place.width_px - box.x_px, place.y_px + place.height_px - box.y_px
    return slice(upper, max(upper, lower)), slice(left, max(left, right))
