"""One pass over the pixels: read boxes, make every level, encode and write tiles; in bounded memory, on all cores.

Boxes are read ahead by some threads while others encode; results are taken in the order in which they were asked
for, so that the same slide always gives the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from mimic import encode
from mimic.errors import MimicError
from mimic.model import Box, CodedTile, Pixels, Plan, Progress
from mimic.pyramid import Pyramid, TilePixels
from mimic.samples import SampleKeeper
from mimic.sources import PixelReader
from mimic.writer import TiffWriter

TILES_AHEAD = 128
"""Tiles waiting for an encoder or for their turn: 25 MB raw at 256 px. Each may keep the whole box alive of which it is
a view, and memory that is touched for the first time costs more than encoding it."""

Watch = Callable[[Progress], None]


def write_levels(plan: Plan, reader: PixelReader, writer: TiffWriter, *, keeper: SampleKeeper, watch: Watch) -> Pixels:
    """Write all tiles of all levels and return the smallest level whole, for the thumbnail.

    ``keeper`` is offered every level-0 tile. Raises what ``reader`` and ``writer`` raise; no thread outlives the call.
    """
    pyramid = Pyramid(
        [(level.width_px, level.height_px) for level in plan.levels],
        tile_px=plan.tile_px,
        downsample=plan.downsample,
    )
    readers = ThreadPoolExecutor(1 if reader.sequential else plan.threads, thread_name_prefix="mimic-read")
    encoders = ThreadPoolExecutor(plan.threads, thread_name_prefix="mimic-encode")
    waiting: deque[tuple[tuple[int, int, int], Future[bytes]]] = (
        deque()
    )  # without pixels, which are let go once encoded
    done_px, total_px = 0, plan.levels[0].width_px * plan.levels[0].height_px
    try:
        for box, pixels in _read_ahead(reader, readers, ahead=plan.threads + 1):
            for tile in pyramid.add(box, pixels):
                if tile.level == 0:
                    keeper.offer(*valid_part(plan, tile))
                waiting.append(((tile.level, tile.column, tile.row), encoders.submit(_encode, plan, tile.pixels)))
                while len(waiting) > TILES_AHEAD:
                    _write(writer, *waiting.popleft())
            done_px += box.width_px * box.height_px
            watch(Progress("convert", done_px, total_px))
        while waiting:
            _write(writer, *waiting.popleft())
    except BaseException:
        reader.close()  # lets a read that is under way fail at once, so that the threads end
        raise
    finally:
        readers.shutdown(wait=True, cancel_futures=True)
        encoders.shutdown(wait=True, cancel_futures=True)
    return pyramid.smallest()


def _read_ahead(reader: PixelReader, pool: ThreadPoolExecutor, *, ahead: int) -> Iterator[tuple[Box, Pixels]]:
    """Boxes with their pixels, in order, ``ahead`` of them under way."""
    pending: deque[tuple[Box, Future[Pixels]]] = deque()
    for box in reader.boxes():
        pending.append((box, pool.submit(reader.read, box)))
        if len(pending) > ahead:
            first, future = pending.popleft()
            yield first, future.result()
    while pending:
        first, future = pending.popleft()
        yield first, future.result()


def valid_part(plan: Plan, tile: TilePixels) -> tuple[Box, Pixels]:
    """A level-0 tile's place, and its pixels without the padding at the image's edge."""
    size = plan.levels[0]
    x_px, y_px = tile.column * plan.tile_px, tile.row * plan.tile_px
    box = Box(x_px, y_px, min(plan.tile_px, size.width_px - x_px), min(plan.tile_px, size.height_px - y_px))
    return box, tile.pixels[: box.height_px, : box.width_px]


def _encode(plan: Plan, pixels: Pixels) -> bytes:
    return encode.tile(pixels, quality=plan.quality, profile=plan.profile)


def _write(writer: TiffWriter, place: tuple[int, int, int], coded: Future[bytes]) -> None:
    writer.add_tile(CodedTile(*place, coded.result()))


def read_whole(reader: PixelReader) -> Pixels:
    """All pixels of a small image: a label, a macro."""
    boxes = reader.boxes()
    width = max(box.x_px + box.width_px for box in boxes)
    height = max(box.y_px + box.height_px for box in boxes)
    try:
        return reader.read(Box(0, 0, width, height))
    except MimicError:
        reader.close()
        raise
