"""The source read a second time, through a reader opened anew, against what the first pass saw and what was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mimic import verify
from mimic.model import Box, Check, Pixels, Plan, Progress, Sample
from mimic.sources import PixelReader

FRESH_SAMPLES = 8
"""Enough to catch a reader that loses its way while it works; more would decode much of the source again."""


def sample(reader: PixelReader, samples: tuple[Sample, ...]) -> Check:
    """Whether the source still gives the very pixels that were caught during the pass, at some of their places."""
    step = max(1, -(-len(samples) // FRESH_SAMPLES))
    chosen = sorted(samples[::step], key=lambda each: (each.box.y_px, each.box.x_px))
    wrong = [
        f"x={each.box.x_px}, y={each.box.y_px}"
        for each in chosen
        if not np.array_equal(reader.read(each.box), each.pixels)
    ]
    measured = f"other pixels at {'; '.join(wrong)}" if wrong else f"the same in {len(chosen)} of {len(chosen)} boxes"
    return Check("source read again", not wrong, measured, "the same pixels as during the pass")


def everything(path: Path, plan: Plan, reader: PixelReader, *, watch: Callable[[Progress], None]) -> tuple[Check, ...]:
    """Every level-0 pixel of the source against what OpenSlide reads from the slide; stops at the first bad box."""
    size = plan.levels[0]
    done_px, total_px, boxes = 0, size.width_px * size.height_px, 0
    for box in reader.boxes():
        parts = tuple(_parts(box, reader.read(box), plan.tile_px))
        checks = verify.pixels(path, parts, quality=plan.quality, profile=plan.profile)
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
