"""Some tiles of a slide decoded without OpenSlide, straight from the file: a second opinion on what it shows.

OpenSlide also judges what was written. A picture that it misread would be written as it was misread, and found to be
just so; therefore a few tiles from all over level 0 are compared with what other decoders make of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import simplejpeg  # type: ignore[import-untyped]

from mimic import jpegs, structure
from mimic.errors import BadInput, Unsupported
from mimic.model import Box, Pixels
from mimic.structure.reader import Input
from mimic.structure.tiff import Directory, Walk

TILES = 8
TOLERANCE = 3
"""Grey levels. Of JPEG there was no difference in any test; of JPEG 2000 one, where YCbCr is rounded."""
WIDTH, HEIGHT, COMPRESSION, PHOTOMETRIC, STRIP, STRIP_BYTES = 256, 257, 259, 262, 273, 279
TILE_WIDTH, TILE_HEIGHT, OFFSETS, COUNTS, TABLES, STARTS = 322, 323, 324, 325, 347, 65426
DRI = 0xDD
NATIVE, NATIVE_HEAD_BYTES = "1.2.840.10008.1.2.1", 12
"""DICOM's transfer syntax of pixels that are not compressed, and the tag, kind and length before them."""
DECODER_ERRORS = (ValueError, imagecodecs.Jpeg2kError)


def compare(path: Path, read: Callable[[Box], Pixels]) -> int:
    """How many tiles were compared with those of ``read``; those that either decoder refuses are left out, as they are
    told of elsewhere. Raises Unsupported with the place of one that is seen in two ways."""
    count = 0
    for box, own in tiles(path):
        try:
            seen = read(box)
        except BadInput:
            continue
        count += 1
        if np.abs(seen.astype(np.int16) - own).max() > TOLERANCE:
            message = f"OpenSlide and another decoder see the tile at x={box.x_px}, y={box.y_px} in different ways"
            raise Unsupported(message, path, "Use --source bioformats, and look at the result")
    return count


def tiles(path: Path) -> Iterator[tuple[Box, Pixels]]:
    """Some tiles of level 0 of an SVS, runs of an NDPI, or frames of a DICOM, that decode without a complaint; cropped
    to the picture."""
    with Input(path) as source:
        if structure.container(path) == "dicom":
            yield from _sound(*_of_dicom(source))
            return
        walk = Walk(source)
        first = next(walk.directories())
        tags = {STARTS, STRIP, STRIP_BYTES} if STARTS in first.entries else {TILE_WIDTH, TILE_HEIGHT, OFFSETS, COUNTS}
        if tags - first.entries.keys():
            raise source.damaged("it is not the slide that it was")
        size_px = walk.number(first, WIDTH), walk.number(first, HEIGHT)
        yield from _sound(size_px, _of_ndpi(walk, first) if STARTS in first.entries else _of_svs(walk, first))


Job = tuple[Box, Callable[[], Pixels]]


def _sound(size_px: tuple[int, int], jobs: Iterable[Job]) -> Iterator[tuple[Box, Pixels]]:
    for box, decode in jobs:
        try:
            pixels = decode()
        except DECODER_ERRORS:
            continue
        if pixels.shape != (box.height_px, box.width_px, 3):
            continue
        width, height = min(box.width_px, size_px[0] - box.x_px), min(box.height_px, size_px[1] - box.y_px)
        yield Box(box.x_px, box.y_px, width, height), pixels[:height, :width]


def _some(count: int) -> list[int]:
    return sorted({number * (count - 1) // (TILES - 1) for number in range(TILES)}) if count else []


def _of_svs(walk: Walk, first: Directory) -> Iterator[Job]:
    across, down = walk.number(first, TILE_WIDTH), walk.number(first, TILE_HEIGHT)
    columns = -(-walk.number(first, WIDTH) // across)
    offsets, counts = (walk.numbers(first.entries[tag]) for tag in (OFFSETS, COUNTS))
    compression, photometric = walk.number(first, COMPRESSION), walk.number(first, PHOTOMETRIC)
    entry = first.entries.get(TABLES)
    tables = walk.source.at(entry.offset, entry.count, "JPEG tables") if entry else None
    there = np.flatnonzero((offsets > 0) & (counts > 0))
    for number in there[_some(len(there))].tolist():
        row, column = divmod(number, columns)
        data = walk.source.upto(int(offsets[number]), int(counts[number]))
        box = Box(column * across, row * down, across, down)
        yield box, lambda data=data: _tile(data, compression, photometric, tables)  # type: ignore[misc]


def _tile(data: bytes, compression: int, photometric: int, tables: bytes | None) -> Pixels:
    if compression == jpegs.JPEG:
        stream = jpegs.decodable(data, tables=tables, photometric=photometric)
        return np.asarray(simplejpeg.decode_jpeg(stream, "RGB"), np.uint8)
    samples = np.asarray(imagecodecs.jpeg2k_decode(data), np.uint8)
    if compression != jpegs.J2K_YCC or samples.ndim != 3:
        return samples
    return np.asarray(PIL.Image.fromarray(samples, "YCbCr").convert("RGB"))


def _of_dicom(source: Input) -> tuple[tuple[int, int], list[Job]]:
    """The size of a whole-slide instance, and frames of it; of one that is not compressed, as it stands there."""
    from mimic import dicomfile  # now and not before: pydicom takes a third of a second

    found = dicomfile.read(source.path)
    if found is None or not found.places:
        raise source.damaged("it is not the slide that it was")
    across, down = found.tile_px
    photometric = jpegs.RGB if found.photometric == "RGB" else jpegs.YCBCR
    frames = dicomfile.locate(found) if found.transfer != NATIVE else None
    jobs: list[Job] = []
    for number in _some(found.frames):
        column, row = found.places[number]
        box = Box(column * across, row * down, across, down)
        if frames is None:
            flat = source.upto(found.pixels_at + NATIVE_HEAD_BYTES + number * across * down * 3, across * down * 3)
            jobs.append((box, lambda flat=flat: np.frombuffer(flat, np.uint8).reshape(down, across, 3)))  # type: ignore[misc]
            continue
        data = b"".join(source.many(frames.spans(number)))
        compression = jpegs.JPEG if data.startswith(b"\xff\xd8") else jpegs.J2K_RGB
        jobs.append((box, lambda data=data, how=compression: _tile(data, how, photometric, None)))  # type: ignore[misc]
    return found.size_px, jobs


def _of_ndpi(walk: Walk, first: Directory) -> Iterator[Job]:
    starts = walk.numbers(first.entries[STARTS]).astype(np.int64)
    begin, length = walk.number(first, STRIP), walk.number(first, STRIP_BYTES)
    head = bytearray(walk.source.upto(begin, int(starts[0])))
    blocks, frame, mcu_px = 0, 0, (8, 8)
    for marker, at, end in jpegs.segments(bytes(head)):
        if marker == DRI:
            blocks = int.from_bytes(head[at + 4 : end], "big")
        elif marker == jpegs.BASELINE:
            frame, mcu_px = at, (8 * (head[at + 11] >> 4), 8 * (head[at + 11] & 15))
    across, down = blocks * mcu_px[0], mcu_px[1]
    struct.pack_into(">HH", head, frame + 5, down, across)
    ends = [*starts[1:].tolist(), length]
    columns = walk.number(first, WIDTH) // across
    for number in _some(len(starts)):
        row, column = divmod(number, columns)
        start = int(starts[number])
        run = walk.source.upto(begin + start, ends[number] - start - 2)  # without the marker behind it
        stream = bytes(head) + run + b"\xff\xd9"
        box = Box(column * across, row * down, across, down)
        yield box, lambda stream=stream: np.asarray(simplejpeg.decode_jpeg(stream, "RGB"), np.uint8)  # type: ignore[misc]
