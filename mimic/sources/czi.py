"""8-bit RGB CZI scans, block by block: uncompressed, Zstandard and JPEG-XR, without Java.

The same pixels as Bio-Formats gives, several times faster: every block is decoded once and put where the directory
says. Raw and Zstandard blocks are read here; JPEG-XR in child processes, as its decoder crashes on some damaged data.
All other CZIs (fluorescence, 16 bits, planes, other codecs) are Bio-Formats'.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from mimic import czislide, scenes, sources, structure, turned
from mimic.czilayout import Layer, layers
from mimic.czislide import Picture
from mimic.errors import BadInput, InternalError, MimicError, ToolFailed, Unsupported
from mimic.model import Box, Image, Pixels, Rendering, Slide, Tool
from mimic.programs import bfclient, jxr
from mimic.render import PlaneReader, PlaneSource, Samples
from mimic.settings import Settings
from mimic.sources import PixelReader
from mimic.structure import czi as directory
from mimic.structure import jpegxr
from mimic.structure.coverage import covered_px
from mimic.structure.czi import Subblock
from mimic.structure.reader import COPY_AGAIN, Input

BGR24 = 3
"""The pixel type: 8 bits each of blue, green and red."""
RAW, JPEG_XR, ZSTD, ZSTD_HEADED = 0, 4, 5, 6
CODECS = frozenset((RAW, JPEG_XR, ZSTD, ZSTD_HEADED))
ALL_MISSING = f"{COPY_AGAIN}, or convert what is there with --allow-missing"
KEPT_BYTES = 128 << 20
"""Decoded blocks that are kept because the next box needs them too: only of mosaics whose blocks overlap, or whose
blocks are larger than a box."""

log = logging.getLogger(__name__)


def claims(path: Path) -> bool:
    """Whether this is a whole CZI with scans of 8-bit RGB alone; a damaged one is Bio-Formats', as any other kind."""
    try:
        if structure.container(path) != "czi":
            return False
        reason = _unfit(structure.check(path), _subblocks(path))
    except MimicError:
        return False
    if reason is not None:
        log.debug("%s is read by Bio-Formats: %s", path.name, reason)
    return reason is None


def _subblocks(path: Path) -> list[Subblock]:
    with Input(path) as source:
        return directory.subblocks(source)


def _unfit(facts: structure.Facts, subblocks: Sequence[Subblock]) -> str | None:
    """Why this source cannot read a CZI; None when it can."""
    if facts.missing_tiles:
        return "some of its blocks are empty"
    if len({block.plane for block in subblocks}) > 1:
        return "it has several planes"
    types = {block.pixel_type for block in subblocks}
    if types != {BGR24}:
        return f"its pixels are of types {sorted(types)}"
    codecs = _codecs(subblocks)
    if not codecs <= CODECS:
        return f"its blocks are compressed by methods {sorted(codecs)}"
    if JPEG_XR in codecs and not imagecodecs.JPEGXR.available:
        return "this imagecodecs was built without JPEG-XR"
    largest_px = max(block.stored_width_px * block.stored_height_px for block in subblocks)
    return f"it has a block of {largest_px} pixels" if largest_px > jxr.MAX_PX else None


def probe(path: Path, settings: Settings) -> Slide:
    """Facts of ``path``, as Bio-Formats tells them, which is asked where they are not plain.

    Raises Unsupported for a file that ``claims`` does not.
    """
    path = path.absolute()
    facts = structure.check(path)
    subblocks = _subblocks(path) if facts.czi is not None else []
    reason = _unfit(facts, subblocks) if facts.czi is not None else "it is no CZI"
    if reason is not None:
        raise Unsupported(f"cannot be read by the source czi: {reason}", path, "Leave --source out")
    told = czislide.told(path, facts, subblocks, source="czi")
    if isinstance(told, Slide) and facts.czi is not None:
        return replace(told, warnings=(*told.warnings, *scenes.compare(told, facts.czi)))
    log.debug("Bio-Formats is asked about %s: %s", path.name, told)
    slide = sources.load("bioformats").probe(path, settings)
    same = all(
        image.rgb and image.pixel_type == "uint8" and image.z_planes == image.t_frames == 1 for image in slide.scans()
    )
    # a CZI of several files is read whole by Bio-Formats alone
    return replace(slide, source="czi") if same and slide.files == (path,) else slide


class Planes:
    """Pixels of one scene, or of a label or macro; safe for many threads.

    Blocks that lie within one box are decoded once and forgotten.
    """

    sequential = False

    def __init__(
        self, slide: Slide, image: Image, *, threads: int, settings: Settings, picture: Picture | None = None
    ) -> None:
        """``picture`` is set where ``image`` is no scan."""
        self._slide, self._image, self._settings, self._threads = slide, image, settings, threads
        self._picture, self._mosaic = picture, None
        if picture is not None:
            scene = picture.facts.scenes[0]
        else:
            czi = structure.check(slide.path).czi
            if czi is None or image not in slide.scans():
                raise InternalError(f"image {image.index} is not of a CZI's scenes", slide.path)
            scene = czi.scenes[slide.scans().index(image)]
            self._mosaic = scenes.mosaic_of(slide, image, czi)
        with self._input() as source:
            self._layers = layers(scene, directory.subblocks(source))
        self._overlapping = {factor: _overlaps(layer) for factor, layer in self._layers.items()}
        self._kept: OrderedDict[int, Future[Pixels]] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        self.decoded = 0
        """Blocks decoded so far."""

    def _input(self) -> Input:
        return Input(self._slide.path) if self._picture is None else self._picture.opened(self._slide.path)

    def boxes(self) -> Sequence[Box]:
        """Row by row, along the file's own blocks."""
        return self._layers[1].grid()

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box``: white where nothing was scanned. Raises BadInput where the source is damaged."""
        return self._seen(box, 0)

    def read_as_stored(self, box: Box) -> Pixels:
        """As ``read``; a whole block that is not JPEG-XR is ``turned``, and nowhere copied."""
        return self._seen(box, 0, as_stored=True)

    def samples(self, box: Box, channels: Sequence[int], *, z: int, t: int, level: int = 0) -> list[Samples]:
        """Red, green and blue, as ``render.PlaneReader`` has them."""
        pixels = self.plane(box, 0, z=z, t=t, level=level)
        return [pixels[..., channel] for channel in channels]

    def plane(self, box: Box, c: int, *, z: int, t: int, level: int = 0) -> Pixels:  # noqa: ARG002 - there is but one
        """Pixels of ``box`` of a level, shape (height, width, 3); black where a lower level has no block.

        Raises BadInput where the source is damaged, ToolFailed when a decoder crashes over it.
        """
        return self._seen(box, level)

    def _seen(self, box: Box, level: int, *, as_stored: bool = False) -> Pixels:
        if self._closed:
            raise ToolFailed("the reader is closed", self._slide.path)
        mosaic = self._mosaic if not level else None
        blank = mosaic.blank(box) if mosaic is not None else None
        if blank is not None:
            return blank
        pixels = self._composed(self._layer(level), box, as_stored=as_stored)
        return mosaic.mend(box, pixels) if mosaic is not None else pixels

    def _layer(self, level: int) -> Layer:
        size = self._image.levels[level]
        factor = round(self._image.levels[0].width_px / size.width_px)
        if factor not in self._layers:
            raise BadInput(f"it has no blocks for its level {level}", self._slide.path, COPY_AGAIN)
        return self._layers[factor]

    def _composed(self, layer: Layer, box: Box, *, as_stored: bool) -> Pixels:
        numbers = layer.within(box)
        block = layer.blocks[numbers[0]] if as_stored and len(numbers) == 1 else None
        if block is not None and block.compression != JPEG_XR and layer.place(numbers[0]) == box:
            with self._pixels(block) as pixels:
                return pixels
        whole = any(_common(box, layer.place(number)) == box for number in numbers)
        canvas = (np.empty if whole else np.zeros)((box.height_px, box.width_px, 3), np.uint8)
        bare = np.ones(canvas.shape[:2], bool) if self._overlapping[layer.factor] else None
        parts: list[tuple[int, Box, NDArray[np.bool_] | None]] = []
        for number in reversed(numbers):  # from the uppermost down: what is hidden needs no decoding
            part = _common(box, layer.place(number))
            seen = None
            if bare is not None:
                seen = bare[_slices(part, box)].copy()
                bare[_slices(part, box)] = False
                if not seen.any():
                    continue
                seen = None if seen.all() else seen
            parts.append((number, part, seen))
        if layer.factor > 1 and len(parts) > 1 and self._threads > 1:
            with ThreadPoolExecutor(self._threads, thread_name_prefix="mimic-czi") as pool:
                list(pool.map(lambda each: self._paint(canvas, box, layer, *each), parts))
        else:
            for each in parts:
                self._paint(canvas, box, layer, *each)
        return canvas

    def _paint(
        self, canvas: Pixels, box: Box, layer: Layer, number: int, part: Box, seen: NDArray[np.bool_] | None
    ) -> None:
        place, block = layer.place(number), layer.blocks[number]
        target = canvas[_slices(part, box)]
        if part == place:
            with self._pixels(block) as pixels:
                _put(target, pixels, seen)
        else:
            _put(target, self._shared(block)[_slices(part, place)], seen)

    def _shared(self, block: Subblock) -> Pixels:
        """Pixels of a block of which other boxes need other parts: decoded by the first thread that asks."""
        with self._lock:
            found = self._kept.get(block.position)
            if found is not None:
                self._kept.move_to_end(block.position)
                mine = None
            else:
                mine = found = self._kept[block.position] = Future()
        if mine is not None:
            try:
                with self._pixels(block) as pixels:
                    copy = np.empty(pixels.shape, np.uint8)
                    _put(copy, pixels, None)
                    mine.set_result(copy)
            except BaseException as error:
                mine.set_exception(error)
                with self._lock:
                    self._kept.pop(block.position, None)
                raise
            self._forget()
        return found.result()

    def _forget(self) -> None:
        """Let the blocks go that were used longest ago."""
        with self._lock:
            done = [key for key, future in self._kept.items() if future.done() and future.exception() is None]
            total = sum(self._kept[key].result().nbytes for key in done)
            for key in done[:-1]:
                if total > KEPT_BYTES:
                    total -= self._kept.pop(key).result().nbytes

    @contextmanager
    def _pixels(self, block: Subblock) -> Iterator[Pixels]:
        """RGB pixels of a block, decoded now; valid within the ``with`` only."""
        path, size_px = self._slide.path, (block.stored_width_px, block.stored_height_px)
        with self._input() as source:
            data = directory.payload(source, block)
        with self._lock:
            self.decoded += 1
        try:
            if block.compression == JPEG_XR:
                with jxr.decoded(_checked(data, size_px), size_px, self._settings) as pixels:
                    yield pixels
            else:
                yield _plain(data, block)[..., ::-1]
        except (BadInput, ToolFailed) as error:
            if error.path is not None:
                raise
            place = f"the block at x={block.x_px}, y={block.y_px}"
            remedy = ALL_MISSING if isinstance(error, BadInput) else error.remedy
            raise type(error)(f"{place} cannot be decoded: {error.message}", path, remedy) from error

    def close(self) -> None:
        """Forget what is kept; reads under way end with their block. May be called twice."""
        self._closed = True
        with self._lock:
            self._kept.clear()


def _overlaps(layer: Layer) -> bool:
    """Whether some blocks lie on others; also where that would take too long to tell."""
    covered = covered_px(layer.places)
    return covered is None or covered != int((layer.places[:, 2] * layer.places[:, 3]).sum())


def _common(one: Box, other: Box) -> Box:
    """What two boxes share, which touch."""
    left, top = max(one.x_px, other.x_px), max(one.y_px, other.y_px)
    right = min(one.x_px + one.width_px, other.x_px + other.width_px)
    lower = min(one.y_px + one.height_px, other.y_px + other.height_px)
    return Box(left, top, right - left, lower - top)


def _slices(part: Box, origin: Box) -> tuple[slice, slice]:
    left, top = part.x_px - origin.x_px, part.y_px - origin.y_px
    return slice(top, top + part.height_px), slice(left, left + part.width_px)


def _put(target: Pixels, pixels: Pixels, seen: NDArray[np.bool_] | None) -> None:
    """Copy channel by channel where their order changes: four times as fast as pixel by pixel."""
    if seen is None:
        turned.put(target, pixels)
        return
    for channel in range(3):
        np.copyto(target[..., channel], pixels[..., channel], where=True if seen is None else seen)


def _checked(data: bytes, size_px: tuple[int, int]) -> bytearray:
    """The data, red first. Raises BadInput for a picture that is not the block's: jxrlib would write it all the same,
    or a part of it."""
    try:
        width, height, turned = jpegxr.red_first(data)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if (width, height) != size_px:
        raise BadInput(f"its JPEG-XR data have {width} x {height} px instead of {size_px[0]} x {size_px[1]}")
    return turned


def _plain(data: bytes, block: Subblock) -> Pixels:
    """Pixels of a raw or Zstandard block in the file's order, blue first. Raises BadInput."""
    shape = (block.stored_height_px, block.stored_width_px, 3)
    size = shape[0] * shape[1] * shape[2]
    plain: bytes | bytearray = data
    if block.compression != RAW:
        coded = data[_zstd_head(data) if block.compression == ZSTD_HEADED else 0 :]
        try:
            plain = imagecodecs.zstd_decode(coded, out=size)
        except imagecodecs.ZstdError as error:
            raise BadInput(f"its Zstandard data are damaged ({error})") from error
    if len(plain) < size or (len(plain) > size and block.compression != RAW):
        raise BadInput(f"it has {len(plain)} bytes of pixels where its size takes {size}")
    return np.frombuffer(plain, np.uint8, size).reshape(shape)


def _zstd_head(data: bytes) -> int:
    """Length of the head before Zstandard data: 1, or 3 where it says (chunk 1) whether bytes of samples are sorted,
    which is for 16 bits. Layout: ZEISS, "ZSTD compression in CZI"."""
    if data[:1] == b"\x01":
        return 1
    if data[:2] == b"\x03\x01" and len(data) > 2 and not data[2] & 1:
        return 3
    raise BadInput("the head of its Zstandard data makes no sense")


def open(slide: Slide, image: Image, *, threads: int, settings: Settings, scratch: Path) -> PixelReader:
    """A reader of ``image``; Bio-Formats' of a label or macro that is not plain."""
    picture = _picture(slide, image)
    if image not in slide.scans() and picture is None:
        source = sources.load("bioformats")
        return source.open(slide, image, threads=threads, settings=settings, scratch=scratch)
    return Planes(slide, image, threads=threads, settings=settings, picture=picture)


def open_planes(
    slide: Slide, image: Image, rendering: Rendering, *, threads: int, settings: Settings, scratch: Path
) -> PlaneReader:
    """As ``open``, for what looks at lower levels too."""
    picture = _picture(slide, image)
    if image not in slide.scans() and picture is None:
        source = cast(PlaneSource, sources.load("bioformats"))
        return source.open_planes(slide, image, rendering, threads=threads, settings=settings, scratch=scratch)
    return Planes(slide, image, threads=threads, settings=settings, picture=picture)


def _picture(slide: Slide, image: Image) -> Picture | None:
    """What ``image`` is where it is a plain label or macro."""
    found = czislide.picture(slide.path, image.name) if image not in slide.scans() else None
    size = image.levels[0]
    if found is None or (found.facts.width_px, found.facts.height_px) != (size.width_px, size.height_px):
        return None
    with found.opened(slide.path) as source:
        blocks = directory.subblocks(source)
    return found if {each.pixel_type for each in blocks} == {BGR24} and _codecs(blocks) <= CODECS else None


def _codecs(blocks: Sequence[Subblock]) -> set[int]:
    return {block.compression for block in blocks}


def tools(settings: Settings) -> tuple[Tool, ...]:
    """The library that decodes, with the codecs in it; Bio-Formats where it was asked for facts or pictures."""
    codecs = f"{imagecodecs.jpegxr_version()}, zstd {imagecodecs.zstd_version().split()[-1]}"
    own = Tool("imagecodecs", f"{imagecodecs.__version__} ({codecs})")
    return own, *(sources.load("bioformats").tools(settings) if bfclient.running() else ())
