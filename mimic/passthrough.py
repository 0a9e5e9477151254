"""Compressed tiles copied as they are, with the lower levels that the source lacks made from them.

The counterpart of ``stream.write_levels`` for plans that have ``coded``. Each tile's header is checked before it is
written; ``copyproof`` compares the finished file with the source.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from typing import Any, cast

import imagecodecs
import numpy as np
import PIL.Image
import simplejpeg  # type: ignore[import-untyped]

from mimic import encode, jpegs, pyramid
from mimic.errors import BadInput, InternalError, Unsupported
from mimic.model import Box, Coded, CodedTile, Image, Pixels, Plan, Progress, Slide, Tool
from mimic.pyramid import Pyramid, TilePixels
from mimic.sources import TileReader
from mimic.structure.reader import COPY_AGAIN
from mimic.writer import TiffWriter

TILES_AHEAD = 256
"""Tiles waiting for a decoder, an encoder or their turn: 50 MB raw at 256 px."""
KNOWN_HEADERS = 16
"""Tiles that share their tables have one header or a few; those with Huffman tables of their own have one each."""
BATCH_TILES = 16
"""Tiles that are handed to a thread at once: handing over one costs a third of decoding it."""
BLOCK_PX = 8
"""A JPEG's blocks: their means cost no transform, but every coefficient is still decoded, so damage shows as always."""
SCALED = (4, BLOCK_PX)
"""libjpeg's own scaling by 4 is 45 dB (4:2:0) to 51 dB (4:4:4) from area averaging on H&E of quality 80, far below what
encoding changes, its mean colour within 0.2, and takes half the time of decoding and averaging."""
TAIL_BYTES = 64
"""A JPEG's end mark is followed by padding at most."""
J2K_FLOOR_DB = 30
"""OpenJPEG aims at a PSNR: 40 dB for quality 80, a little more than JPEG has there."""
Watch = Callable[[Progress], None]
Place = tuple[int, int]
"""Column and row of a tile."""


def open_tiles(plan: Plan) -> TileReader:
    """A reader of the tiles that the plan copies, by the index of its levels."""
    return cast(TileReader, _module(coded_of(plan).source).open_tiles(plan.slide, plan.image, coded_of(plan)))


def tools(plan: Plan) -> tuple[Tool, ...]:
    """The libraries that read compressed tiles."""
    return cast(tuple[Tool, ...], _module(coded_of(plan).source).tools())


def misread(slide: Slide, image: Image) -> str | None:
    """Why the slide's ordinary source would give wrong pixels for ``image``, if that is known."""
    if slide.format != "DICOM" or slide.source not in ("bioformats", "bfconvert"):
        return None
    return cast(str | None, _module("dicom").misread(slide, image))


def refuse_misread(plan: Plan) -> None:
    """Raises Unsupported for a slide that may be copied and not decoded: its ordinary source would not notice."""
    if reason := misread(plan.slide, plan.image):
        remedy = "Leave out what keeps its tiles from being copied, or rewrite it with one fragment a frame in one file"
        raise Unsupported(f"it cannot be decoded: {reason}", plan.slide.path, remedy)


def write_levels(
    plan: Plan, tiles: TileReader, writer: TiffWriter, *, watch: Watch, witness: Callable[[Place, Pixels], None] | None
) -> Pixels:
    """Write all tiles of all levels and return the smallest level whole, for the thumbnail.

    Every tile is read once and decoded once, strictly, while others are copied: that it can be, what the levels below
    are made of, and what ``witness`` is told (the means of 8 px squares of each tile of level 0, row by row) come from
    the same decoding. Raises BadInput that names the place of a tile that is not as the plan says or does not decode;
    no thread outlives the call.
    """
    guard, blank = Guard(plan), white_tile(plan)
    pool = ThreadPoolExecutor(plan.threads, thread_name_prefix="mimic-copy")
    total_px = sum(level.width_px * level.height_px for level in plan.levels[: plan.copied_levels])
    done_px = 0
    try:
        below = _Below(plan, writer, pool)
        decoding = _Decoding(plan, pool, below, witness)
        for level in range(plan.copied_levels):
            for column, row in places(plan, level):
                data = tiles.tile(level, column, row)
                if data is None:
                    data = blank
                else:
                    guard.check(data, level, (column, row))
                writer.add_tile(CodedTile(level, column, row, data))
                decoding.add(level, (column, row), data)
                done_px = min(total_px, done_px + plan.tile_px**2)
                if column == 0:
                    watch(Progress("copy", done_px, total_px))
            decoding.flush()
        decoding.finish()
        return below.finish()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def places(plan: Plan, level: int) -> Iterator[Place]:
    """Column and row of each tile of a level, row by row."""
    size = plan.levels[level]
    columns, rows = -(-size.width_px // plan.tile_px), -(-size.height_px // plan.tile_px)
    return ((column, row) for row in range(rows) for column in range(columns))


def white_tile(plan: Plan) -> bytes:
    """What stands for a tile that the source has not: white, in the format of the others, with its own tables."""
    return _encoded(plan, np.full((plan.tile_px, plan.tile_px, 3), 255, np.uint8))


def shared_tables(plan: Plan) -> bytes | None:
    """Tag 347 of the levels that are made; None when their tiles are whole."""
    return encode.jpeg_tables(plan.quality) if coded_of(plan).jpeg_tables else None


def strip(plan: Plan, pixels: Pixels) -> bytes:
    """A thumbnail or macro as JPEG, with the photometric and the subsampling of the tiles."""
    subsampling = coded_of(plan).subsampling
    if subsampling not in (None, (2, 2)):
        return _jpeg_422(pixels, plan.quality)
    return encode.jpeg(pixels, quality=plan.quality, profile=plan.profile)


class Guard:
    """Refuses a tile whose header is not what the plan says."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._coded = plan, coded_of(plan)
        self._known: list[bytes] = []

    def check(self, data: bytes, level: int, place: Place) -> None:
        """Raises BadInput with the place of a tile that differs."""
        try:
            fault = self._fault(data)
        except ValueError as error:
            fault = str(error)
        if fault:
            raise _damaged(self._plan, level, place, fault)

    def _fault(self, data: bytes) -> str | None:
        coded = self._coded
        if coded.compression != jpegs.JPEG:
            return jpegs.codestream_fault(data, coded.tile_px)
        if data.find(b"\xff\xd9", max(0, len(data) - TAIL_BYTES)) < 0:
            return "its JPEG data have no end"
        if any(data.startswith(known) for known in self._known):
            return None
        header = jpegs.header(data, coded.jpeg_tables)
        if fault := jpegs.frame_fault(header, coded.tile_px):
            return fault
        kind = jpegs.kind(header, coded.photometric, markers_win=False)
        if isinstance(kind, str) or (kind.photometric, kind.subsampling) != (coded.photometric, coded.subsampling):
            return f"its colours are not coded as those of other tiles ({kind})"
        if header.comments and self._plan.deidentify:
            return "its JPEG header holds comments, which --deidentify does not let pass; use --passthrough never"
        if len(self._known) < KNOWN_HEADERS:
            self._known.append(data[: header.length_bytes])
        return None


class _Decoding:
    """Decodes every copied tile once, as small as those who want it allow, and gives it to them in order."""

    def __init__(
        self, plan: Plan, pool: ThreadPoolExecutor, below: _Below, witness: Callable[[Place, Pixels], None] | None
    ) -> None:
        self._plan, self._pool, self._below, self._witness = plan, pool, below, witness
        self._batch: list[tuple[Place, bytes]] = []
        self._level = 0
        self._waiting: deque[tuple[int, list[Place], Future[list[Pixels]]]] = deque()

    def add(self, level: int, place: Place, data: bytes) -> None:
        """Take a tile; the next one of another level comes after ``flush``."""
        self._level = level
        self._batch.append((place, data))
        if len(self._batch) >= BATCH_TILES:
            self.flush()

    def flush(self) -> None:
        """Send off what was gathered."""
        if not self._batch:
            return
        places, level = [place for place, _ in self._batch], self._level
        decoded = self._pool.submit(_all_reduced, self._plan, level, self._batch, self._factor(level))
        self._waiting.append((level, places, decoded))
        self._batch = []
        while len(self._waiting) > TILES_AHEAD // BATCH_TILES:
            self._take()

    def finish(self) -> None:
        """Raises BadInput for the first tile that does not decode."""
        while self._waiting:
            self._take()

    def _factor(self, level: int) -> int:
        return self._below.factor if level == self._below.level else BLOCK_PX

    def _take(self) -> None:
        level, places, future = self._waiting.popleft()
        for place, pixels in zip(places, future.result(), strict=True):
            if level == 0 and self._witness is not None:
                rest = BLOCK_PX // self._factor(level)
                self._witness(place, pyramid.area_average(pixels, rest, rest))
            if level == self._below.level:
                self._below.add(place, pixels)


def _all_reduced(plan: Plan, level: int, batch: list[tuple[Place, bytes]], factor: int) -> list[Pixels]:
    return [reduced(plan, data, level, place, factor) for place, data in batch]


class _Below:
    """Makes the levels below the last copied one from its tiles, or only keeps that one's pixels for a thumbnail."""

    def __init__(self, plan: Plan, writer: TiffWriter, pool: ThreadPoolExecutor) -> None:
        self._plan, self._writer, self._pool = plan, writer, pool
        self.level = plan.copied_levels - 1
        made = plan.levels[plan.copied_levels :]
        self._made = bool(made)
        self.factor = plan.downsample if made else 1
        sizes = [(level.width_px, level.height_px) for level in made or plan.levels[-1:]]
        self._size = sizes[0]
        self._pyramid = Pyramid(sizes, tile_px=plan.tile_px, downsample=plan.downsample)
        self._encoding: deque[tuple[TilePixels, Future[bytes]]] = deque()

    def add(self, place: Place, reduced: Pixels) -> None:
        """Take a tile of the last copied level, reduced by ``factor``; all of them, in any order."""
        step = self._plan.tile_px // self.factor
        x_px, y_px = place[0] * step, place[1] * step
        box = Box(x_px, y_px, min(step, self._size[0] - x_px), min(step, self._size[1] - y_px))
        if box.width_px <= 0 or box.height_px <= 0:
            return  # less than one pixel of the level below
        for tile in self._pyramid.add(box, reduced[: box.height_px, : box.width_px]):
            if self._made:
                self._encoding.append((tile, self._pool.submit(_made_tile, self._plan, tile.pixels)))
        while len(self._encoding) > TILES_AHEAD:
            self._write()

    def finish(self) -> Pixels:
        """Write what is still under way; the smallest level, whole."""
        while self._encoding:
            self._write()
        return self._pyramid.smallest()

    def _write(self) -> None:
        tile, future = self._encoding.popleft()
        level = self._plan.copied_levels + tile.level
        self._writer.add_tile(CodedTile(level, tile.column, tile.row, future.result()))


def reduced(plan: Plan, data: bytes, level: int, place: Place, factor: int) -> Pixels:
    """A tile decoded and averaged over ``factor`` x ``factor`` pixels. Raises BadInput for damage, with its place."""
    coded = coded_of(plan)
    try:
        if coded.compression != jpegs.JPEG:
            return pyramid.area_average(_from_codestream(data, coded), factor, factor)
        stream = jpegs.decodable(data, tables=coded.jpeg_tables, photometric=coded.photometric)
        if factor in SCALED:
            side = plan.tile_px // factor
            return np.asarray(simplejpeg.decode_jpeg(stream, "RGB", min_height=side, min_width=side), np.uint8)
        return pyramid.area_average(np.asarray(simplejpeg.decode_jpeg(stream, "RGB")), factor, factor)
    except (ValueError, imagecodecs.Jpeg2kError) as error:
        raise _damaged(plan, level, place, f"it does not decode: {error}") from error


def _from_codestream(data: bytes, coded: Coded) -> Pixels:
    samples = np.asarray(imagecodecs.jpeg2k_decode(data), np.uint8)
    if samples.shape != (coded.tile_px, coded.tile_px, 3):
        raise ValueError(f"it decodes to {samples.shape}")
    if coded.compression == jpegs.J2K_RGB:
        return samples
    return np.asarray(PIL.Image.fromarray(samples, "YCbCr").convert("RGB"))


def _made_tile(plan: Plan, pixels: Pixels) -> bytes:
    if shared_tables(plan):
        return encode.tile(pixels, quality=plan.quality, profile="rgb")
    return _encoded(plan, pixels)


def _encoded(plan: Plan, pixels: Pixels) -> bytes:
    """A tile in the format of the copied ones, with its own tables."""
    coded = coded_of(plan)
    if coded.compression == jpegs.JPEG:
        return strip(plan, pixels)
    if coded.compression == jpegs.J2K_YCC:
        pixels = np.asarray(PIL.Image.fromarray(np.ascontiguousarray(pixels)).convert("YCbCr"))
    level_db = J2K_FLOOR_DB + plan.quality // 8
    mct = coded.compression == jpegs.J2K_RGB
    return bytes(imagecodecs.jpeg2k_encode(np.ascontiguousarray(pixels), level_db, codecformat="j2k", mct=mct))


def _jpeg_422(pixels: Pixels, quality: int) -> bytes:
    return bytes(
        imagecodecs.jpeg8_encode(
            pixels, quality, colorspace="rgb", outcolorspace="ycbcr", subsampling="422", optimize=True
        )
    )


def _module(name: str) -> Any:
    """A source of compressed tiles: ``open_tiles``, ``tools`` and, for DICOM, ``misread``; imported now and not
    before."""
    return import_module(f"mimic.sources.{name}")


def coded_of(plan: Plan) -> Coded:
    """What the plan copies."""
    if plan.coded is None:
        raise InternalError("a plan that copies nothing came to passthrough", plan.slide.path)
    return plan.coded


def _damaged(plan: Plan, level: int, place: Place, fault: str) -> BadInput:
    where = f"the tile in column {place[0]}, row {place[1]} of level {level}"
    return BadInput(f"{where} is damaged or unlike the others: {fault}", plan.slide.path, COPY_AGAIN)
