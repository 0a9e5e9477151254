"""How near an output's level 0 is to the input's own pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.bench.canvas import Canvas
from tools.bench.inputs import Input, load_truth, read_slide
from tools.bench.meter import without_folders

LOSSLESS_DB = 99.0
"""Stands for infinity, which JSON has not."""


@dataclass(frozen=True, slots=True)
class Quality:
    """PSNR over all boxes, and SSIM (of colour pictures, 7 x 7) averaged over them. ``error``: why there is none."""

    psnr_db: float | None = None
    ssim: float | None = None
    error: str | None = None


def judge(made: Input, output: Path) -> Quality:
    """Compare a dozen boxes of ``output``, as OpenSlide reads them, with the input's truth."""
    import openslide
    from skimage.metrics import structural_similarity  # costs a second

    boxes, truth = load_truth(made)
    try:
        seen = read_slide(output, Canvas(made.width_px, made.height_px), boxes)
    except (openslide.OpenSlideError, OSError, ValueError) as error:
        said = without_folders(str(error)) or type(error).__name__
        return Quality(error=f"OpenSlide does not read it: {said}")
    square, similar = 0.0, 0.0
    for ours, theirs in zip(truth, seen, strict=True):
        square += float(np.mean((ours.astype(np.float64) - theirs) ** 2))
        similar += float(structural_similarity(ours, theirs, channel_axis=2))  # type: ignore[no-untyped-call]
    error_power = square / len(boxes)
    psnr_db = LOSSLESS_DB if error_power == 0 else 10 * math.log10(255**2 / error_power)
    return Quality(round(psnr_db, 2), round(similar / len(boxes), 4))
