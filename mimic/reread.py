"""The source read a second time, through a reader opened anew, against what the first pass saw and what was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from mimic import verify
from mimic.model import Box, Check, Pixels, Plan, Progress, Sample
from mimic.sources import PixelReader

FEWEST, MOST, BOXES_A_SAMPLE = 2, 8, 32
"""Samples that are read again: one for every 32 boxes of the source, within these limits. Each may decode a whole box
(CZI blocks of 2048 px do), so that more would decode a tenth of a slide twice. What is to be caught, a reader that
mixes up threads, blocks or shared memory, mixes up many; a single wrong box is caught only by ``--verify full``."""


def sample(reader: PixelReader, samples: tuple[Sample, ...], *, threads: int = 1) -> Check:
    """Whether the source still gives the very pixels that were caught during the pass, at some of their places."""
    boxes = reader.boxes()
    chosen = sorted(samples, key=lambda each: (each.box.y_px, each.box.x_px))
    chosen = _at_the_top(chosen, boxes[0]) if reader.sequential else chosen
    count = min(MOST, max(FEWEST, len(boxes) // BOXES_A_SAMPLE))
    chosen = chosen[:: max(1, -(-len(chosen) // count))]
    with ThreadPoolExecutor(1 if reader.sequential else threads, thread_name_prefix="mimic-again") as pool:
        same = list(pool.map(partial(_same, reader), chosen))
    places = [f"x={each.box.x_px}, y={each.box.y_px}" for each in chosen]
    wrong = [place for place, equal in zip(places, same, strict=True) if not equal]
    measured = f"other pixels at {'; '.join(wrong)}" if wrong else f"the same in {len(chosen)} of {len(chosen)} boxes"
    return Check("source read again", not wrong, measured, "the same pixels as during the pass")


def _at_the_top(samples: list[Sample], first: Box) -> list[Sample]:
    """The topmost sample, and the topmost behind the ``first`` box, which shows that boxes follow each other rightly.

    Of a source that is decoded from top to bottom those further down cost as much as the first reading, and it is read
    by one thread, box after box: there is nothing to be mixed up down there.
    """
    below = [each for each in samples if each.box.y_px >= first.y_px + first.height_px]
    return samples[:1] + [each for each in below[:1] if each is not samples[0]]


def _same(reader: PixelReader, sample: Sample) -> bool:
    return bool(np.array_equal(reader.read(sample.box), sample.pixels))


def everything(path: Path, plan: Plan, reader: PixelReader, *, watch: Callable[[Progress], None]) -> tuple[Check, ...]:
    """Every level-0 pixel of the source against what OpenSlide reads from the slide; stops at the first bad box."""
    size = plan.levels[0]
    done_px, total_px, boxes = 0, size.width_px * size.height_px, 0
    for box in reader.boxes():
        parts = tuple(_parts(box, reader.read(box), plan.tile_px))
        checks = verify.pixels(path, parts, quality=plan.quality, profile=plan.profile, threads=plan.threads)
        if verify.failed(checks):
            return checks
        boxes += len(parts)
        done_px += box.width_px * box.height_px
        watch(Progress("compare", done_px, total_px))
    measured = f"{boxes} boxes, {done_px} of {total_px} pixels agree"
    return (Check("every pixel", done_px == total_px, measured, f"as good as JPEG quality {plan.quality}"),)


def _parts(box: Box, pixels: Pixels, tile_px: int) -> Iterator[Sample]:
    """The pieces of ``box`` on the slide's tile grid."""
    right, lower = box.x_px + box.width_px, box.y_px + box.height_px
    for top in range(box.y_px // tile_px * tile_px, lower, tile_px):
        for left in range(box.x_px // tile_px * tile_px, right, tile_px):
            x, y = max(left, box.x_px), max(top, box.y_px)
            part = Box(x, y, min(left + tile_px, right) - x, min(top + tile_px, lower) - y)
            rows = slice(y - box.y_px, y - box.y_px + part.height_px)
            yield Sample(part, pixels[rows, x - box.x_px : x - box.x_px + part.width_px])
