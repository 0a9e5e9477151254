"""Compressed tiles copied as they are, with the lower levels that the source lacks made from them.

The counterpart of ``stream.write_levels`` for plans that have ``coded``. Each tile's header is checked before it is
written; ``copyproof`` compares the finished file with the source.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
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
from mimic.writer import Run, TiffWriter, joined

TILES_AHEAD = 256
"""Tiles waiting for an encoder or their turn: 50 MB raw at 256 px."""
BATCH_PX = 1 << 21
"""Pixels of tiles, side by side, that a thread reads, proves and joins at once: one by one, handing over costs a third
of decoding. Of large tiles a batch is one."""
BATCHES_AHEAD = 4
"""Batches a thread that are under way or wait for their turn."""
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

    Every tile is read once and decoded once, strictly, before it is written: that it can be, what the levels below are
    made of, and what ``witness`` is told (the means of 8 px squares of tiles side by side of level 0, row by row, and
    the place of the first) come from the same decoding. Raises BadInput that names the place of a tile that is not as
    the plan says or does not decode; no thread outlives the call.
    """
    pool = ThreadPoolExecutor(plan.threads, thread_name_prefix="mimic-copy")
    total_px = sum(level.width_px * level.height_px for level in plan.levels[: plan.copied_levels])
    waiting: deque[tuple[_Batch, Future[_Copied]]] = deque()
    done_px = 0
    try:
        below = _Below(plan, writer, pool)
        copier = _Copier(plan, tiles, below, witnessed=witness is not None)
        batches = _batches(plan)
        while True:
            for batch in islice(batches, BATCHES_AHEAD * plan.threads - len(waiting)):
                waiting.append((batch, pool.submit(copier.copied, batch)))
            if not waiting:
                return below.finish()
            batch, future = waiting.popleft()
            copied = future.result()
            writer.add_run(batch.level, batch.place, copied.run)
            if copied.means is not None and witness is not None:
                witness(batch.place, copied.means)
            if copied.reduced is not None:
                below.add(batch.place, copied.reduced)
            done_px = min(total_px, done_px + len(batch.columns) * plan.tile_px**2)
            watch(Progress("copy", done_px, total_px))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Tiles side by side."""

    level: int
    row: int
    columns: range

    @property
    def place(self) -> Place:
        return self.columns.start, self.row


def _batches(plan: Plan) -> Iterator[_Batch]:
    """All tiles that are copied, level by level and row by row."""
    for number, level in enumerate(plan.levels[: plan.copied_levels]):
        across, down = -(-level.width_px // plan.tile_px), -(-level.height_px // plan.tile_px)
        step = max(1, BATCH_PX // plan.tile_px**2)
        for row in range(down):
            for first in range(0, across, step):
                yield _Batch(number, row, range(first, min(across, first + step)))


@dataclass(frozen=True, slots=True, eq=False)
class _Copied:
    """A batch, ready to be written, and what its one decoding gave: pixels for the level below, and the ``means`` that
    the witness is told, each None where nobody wants them."""

    run: Run
    reduced: Pixels | None
    means: Pixels | None


class _Copier:
    """Reads, checks and decodes batches, in any thread."""

    def __init__(self, plan: Plan, tiles: TileReader, below: _Below, *, witnessed: bool) -> None:
        self._plan, self._tiles, self._witnessed = plan, tiles, witnessed
        self._last, self._factor = below.level, below.factor
        self._guard, self._decoder, self._blank = Guard(plan), Decoder(plan), white_tile(plan)

    def copied(self, batch: _Batch) -> _Copied:
        """Raises BadInput for the first tile that is not what it should be."""
        level, last = batch.level, batch.level == self._last
        factor = self._factor if last else BLOCK_PX
        found, parts = [], []
        for column, data in zip(batch.columns, self._tiles.tiles(level, batch.row, batch.columns), strict=True):
            place = column, batch.row
            if data is not None:
                self._guard.check(data, level, place)
            found.append(self._blank if data is None else data)
            parts.append(self._decoder.reduced(found[-1], level, place, factor))
        strip = np.concatenate(parts, axis=1)
        rest = BLOCK_PX // factor
        means = pyramid.area_average(strip, rest, rest) if self._witnessed and not level else None
        return _Copied(joined(found), strip if last else None, means)


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
        if len(self._known) < jpegs.KNOWN_HEADERS:
            self._known.append(data[: header.length_bytes])
        return None


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
        """Take tiles side by side of the last copied level, reduced by ``factor``, the first at ``place``."""
        step = self._plan.tile_px // self.factor
        x_px, y_px = place[0] * step, place[1] * step
        box = Box(x_px, y_px, min(reduced.shape[1], self._size[0] - x_px), min(step, self._size[1] - y_px))
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


class Decoder:
    """Decodes the tiles that a plan copies, in any thread."""

    def __init__(self, plan: Plan) -> None:
        coded = coded_of(plan)
        self._plan, self._coded = plan, coded
        self._completer = jpegs.Completer(tables=coded.jpeg_tables, photometric=coded.photometric)

    def reduced(self, data: bytes, level: int, place: Place, factor: int) -> Pixels:
        """A tile averaged over ``factor`` x ``factor`` pixels. Raises BadInput for damage, with its place."""
        try:
            if self._coded.compression != jpegs.JPEG:
                return pyramid.area_average(_from_codestream(data, self._coded), factor, factor)
            stream = self._completer.whole(data)
            if factor in SCALED:
                side = self._coded.tile_px // factor
                return np.asarray(simplejpeg.decode_jpeg(stream, "RGB", min_height=side, min_width=side), np.uint8)
            return pyramid.area_average(np.asarray(simplejpeg.decode_jpeg(stream, "RGB")), factor, factor)
        except (ValueError, imagecodecs.Jpeg2kError) as error:
            raise _damaged(self._plan, level, place, f"it does not decode: {error}") from error


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
