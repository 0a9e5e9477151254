"""The strips of an NDPI, decoded a second time and strictly.

Bio-Formats 7.3.1 gives black rows, no exception and no warning where the JPEG data of an NDPI are damaged. But
libjpeg-turbo complains, if it is asked to: each run between two restart markers is a JPEG of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import tifffile

from mimic.errors import BadInput
from mimic.model import Box, Level, Pixels
from mimic.structure.reader import COPY_AGAIN

JPEG = 7
RUNS_AT_A_TIME = 1024
BOX_PX = 2048
TIFFFILE_ERRORS = (tifffile.TiffFileError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error)
EOI = b"\xff\xd9"
RESTARTS = range(0xD0, 0xD8)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is damaged: ``size`` (width, height) is that of its level, ``box`` its place there."""

    directory: int
    size: tuple[int, int]
    box: Box
    said: str


def check(path: Path, *, threads: int, watch: Callable[[], None] = lambda: None) -> None:
    """Decode every JPEG run of an NDPI, of all its levels and its macro; ``watch`` is called now and then.

    Raises BadInput with the place of the first that libjpeg-turbo complains about.
    """
    for fault in damaged(path, threads=threads, watch=watch):
        where = f"x={fault.box.x_px}, y={fault.box.y_px} of directory {fault.directory}"
        message = f"the file is damaged: the JPEG data at {where} do not decode: {fault.said}"
        raise BadInput(message, path, f"{COPY_AGAIN}, or convert what is there with --allow-missing")


def damaged(path: Path, *, threads: int, watch: Callable[[], None] = lambda: None) -> Iterator[Fault]:
    """Every run that libjpeg-turbo complains about. Raises BadInput when the directories cannot be read."""
    try:
        with tifffile.TiffFile(path) as tiff, ThreadPoolExecutor(threads, thread_name_prefix="mimic-ndpi") as pool:
            for number, page in enumerate(tiff.pages):
                if not isinstance(page, tifffile.TiffPage) or page.compression != JPEG:
                    continue
                runs = list(zip(page.dataoffsets, page.databytecounts, strict=True))
                for first in range(0, len(runs), RUNS_AT_A_TIME):
                    watch()
                    some = _read(path, runs[first : first + RUNS_AT_A_TIME])
                    for index, said in enumerate(pool.map(partial(_fault, page.jpegheader), some), start=first):
                        if said is not None:
                            yield Fault(number, (page.imagewidth, page.imagelength), _place(page, index), said)
    except TIFFFILE_ERRORS as error:
        raise BadInput(f"the file is damaged: its directories are not readable ({error})", path, COPY_AGAIN) from error


class Reader:
    """A PixelReader of the level of ``size`` by its runs alone: after a damaged one Bio-Formats loses count of the
    rest. What is in ``lost`` is white."""

    sequential = False

    def __init__(self, path: Path, size: Level, lost: Collection[Box]) -> None:
        self._path, self._size, self._lost = path, size, frozenset(lost)
        with tifffile.TiffFile(path) as tiff:
            wanted = (size.width_px, size.height_px)
            pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
            page = next(page for page in pages if (page.imagewidth, page.imagelength) == wanted)
            self._header = page.jpegheader
            runs = zip(page.dataoffsets, page.databytecounts, strict=True)
            self._runs = {_place(page, index): run for index, run in enumerate(runs)}

    def boxes(self) -> Sequence[Box]:
        """Row by row."""
        size = self._size
        return [
            Box(x, y, min(BOX_PX, size.width_px - x), min(BOX_PX, size.height_px - y))
            for y in range(0, size.height_px, BOX_PX)
            for x in range(0, size.width_px, BOX_PX)
        ]

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box``. Raises BadInput for a run that does not decode and was not known to be lost."""
        right, lower = box.x_px + box.width_px, box.y_px + box.height_px
        pixels = np.full((box.height_px, box.width_px, 3), 255, np.uint8)
        for place, run in self._runs.items():
            left, top = max(box.x_px, place.x_px), max(box.y_px, place.y_px)
            end, bottom = min(right, place.x_px + place.width_px), min(lower, place.y_px + place.height_px)
            if left >= end or top >= bottom or place in self._lost:
                continue
            found = self._decode(place, run)
            rows, columns = slice(top - place.y_px, bottom - place.y_px), slice(left - place.x_px, end - place.x_px)
            pixels[top - box.y_px : bottom - box.y_px, left - box.x_px : end - box.x_px] = found[rows, columns]
        return pixels

    def _decode(self, place: Box, run: tuple[int, int]) -> Pixels:
        data = _read(self._path, [run])[0]
        try:
            whole = data if self._header is None else self._header + data[:-2] + EOI
            return np.asarray(simplejpeg.decode_jpeg(whole, "RGB"), np.uint8)
        except ValueError as error:
            raise BadInput(f"the JPEG data at x={place.x_px}, y={place.y_px} do not decode", self._path) from error

    def close(self) -> None:
        """Nothing is held open."""


def _read(path: Path, runs: list[tuple[int, int]]) -> list[bytes]:
    found = []
    with path.open("rb") as file:
        for offset, length in runs:
            file.seek(offset)
            found.append(file.read(length))
    return found


def _fault(header: bytes | None, data: bytes) -> str | None:
    """What libjpeg-turbo says of one run; a strip without restart markers is a whole JPEG and has no ``header``."""
    if header is not None:
        # a run ends with a restart marker, the last one with the end of the strip
        if len(data) < 2 or data[-2] != EOI[0] or not (data[-1] == EOI[1] or data[-1] in RESTARTS):
            return "it does not end with a marker"
        data = header + data[:-2] + EOI
    try:
        simplejpeg.decode_jpeg(data, "GRAY", fastdct=True, strict=True)
    except ValueError as error:
        return str(error)
    return None


def _place(page: tifffile.TiffPage, index: int) -> Box:
    width, height = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
    row, column = divmod(index, -(-page.imagewidth // width))
    x, y = column * width, row * height
    return Box(x, y, min(width, page.imagewidth - x), min(height, page.imagelength - y))
