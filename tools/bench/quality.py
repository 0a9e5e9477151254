"""How near an output's level 0 is to the input's own pixels, and what else can be seen of the output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from tools.bench.canvas import Canvas
from tools.bench.inputs import Input, load_truth, read_slide
from tools.bench.meter import without_folders

LOSSLESS_DB = 99.0
"""Stands for infinity, which JSON has not."""
WRONG_DB = 30.0
"""Below it the pixels are not the input's: JPEG of quality 80 has 39 dB, a picture whose red and blue are swapped 20,
YCbCr that is taken for RGB 11."""


@dataclass(frozen=True, slots=True)
class Quality:
    """PSNR over all boxes, and SSIM (of colour pictures, 7 x 7) averaged over them; levels that OpenSlide sees; bytes
    of level 0's tiles (None: no TIFF). ``error``: why nothing is known; ``fault``: why the pixels are wrong."""

    psnr_db: float | None = None
    ssim: float | None = None
    levels: int | None = None
    level0_bytes: int | None = None
    error: str | None = None
    fault: str | None = None


def judge(made: Input, output: Path) -> Quality:
    """Compare a dozen boxes of ``output``, as OpenSlide reads them, with the input's truth."""
    import openslide
    from skimage.metrics import structural_similarity  # costs a second

    boxes, truth = load_truth(made)
    try:
        seen = read_slide(output, Canvas(made.width_px, made.height_px), boxes)
        with openslide.OpenSlide(output if output.is_file() else next(output.rglob("*.dcm"))) as slide:
            levels = slide.level_count
    except (openslide.OpenSlideError, OSError, ValueError) as error:
        said = without_folders(str(error)) or type(error).__name__
        return Quality(error=f"OpenSlide does not read it: {said}")
    similar = [
        float(structural_similarity(ours, theirs, channel_axis=2))  # type: ignore[no-untyped-call]
        for ours, theirs in zip(truth, seen, strict=True)
    ]
    found = _psnr_db(truth, seen)
    swapped = _psnr_db(truth, [pixels[..., ::-1] for pixels in seen])
    return Quality(
        round(found, 2),
        round(sum(similar) / len(boxes), 4),
        levels,
        level0_bytes(output),
        fault=_fault(found, swapped),
    )


def _psnr_db(truth: NDArray[np.uint8], seen: Sequence[NDArray[np.uint8]]) -> float:
    pairs = zip(truth, seen, strict=True)
    power = sum(float(np.mean((ours.astype(np.float32) - theirs) ** 2)) for ours, theirs in pairs) / len(seen)
    return LOSSLESS_DB if power == 0 else 10 * math.log10(255**2 / power)


def _fault(found_db: float, swapped_db: float) -> str | None:
    """What is wrong with the pixels, None when nothing is."""
    if found_db >= WRONG_DB:
        return None
    if swapped_db >= WRONG_DB:
        return f"red and blue are swapped ({swapped_db:.1f} dB when swapped back)"
    return "its pixels are not the input's"


def level0_bytes(output: Path) -> int | None:
    """Bytes of the tiles of level 0, by the TIFF's own tags; None where there is no tiled TIFF."""
    try:
        with tifffile.TiffFile(output) as tiff:
            page = tiff.pages.first
            return sum(page.databytecounts) if page.is_tiled else None
    except (tifffile.TiffFileError, OSError):
        return None
