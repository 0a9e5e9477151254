"""Labels and macros as pictures: blanked, replaced, or cut so that no label is left."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from mimic.errors import BadInput
from mimic.model import Pixels

BLANK = 235
"""A light grey, so that the blank label stands out from a white background and black writing fits on it."""

GLASS_TOLERANCE = 40.0
"""Grey levels, of 255, by which label and glass differ at least: glass of a macro varies by 5 to 15."""
GLASS_PERCENTILE = 90
GLASS_MIN = 140
FULL_HEIGHT = 0.8
"""A label reaches across the slide, tissue has an outline."""
EDGE_PART, EDGE_SHARE = 0.02, 0.2
"""So far behind a label's edge no more than that share of a column is other than glass: the edge is straight."""
LABEL_PART = (0.10, 0.45)
"""Part of the glass's length that a label takes: 22 mm of 76 mm, seen up to 0.35, and frames around it."""
CROP_MIN_PART = 0.30
"""A label's room on a slide is 25 mm of 76 mm; what lies outside of the visible label is cut off as well."""
MARGIN_PART = 0.03
MATCH_ROWS_PX = 48
MATCH_SCALES = (0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
MATCH_LIMIT = 0.8
"""Correlation of a label with its place in a macro is 0.9 and more; of tissue with a label up to 0.7."""
MATCH_PART = 0.35
"""Nearer to the middle there is tissue."""


def read_file(path: Path) -> Pixels:
    """A picture given for a label: upright, alpha on white. Raises BadInput for what is no picture or far too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            with Pillow.open(path) as opened:
                picture = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombWarning, Pillow.DecompressionBombError) as error:
        raise BadInput(f"cannot be read as a label's picture: {error}", path, "Give a PNG or JPEG picture") from error
    white = Pillow.new("RGBA", picture.size, (255, 255, 255, 255))
    return np.asarray(Pillow.alpha_composite(white, picture).convert("RGB"))


def blank(width_px: int, height_px: int) -> Pixels:
    """A light rectangle of that size."""
    return np.full((height_px, width_px, 3), BLANK, np.uint8)


def without_label(macro: Pixels, label: Pixels | None) -> Pixels | None:
    """The macro without the end on which the label is, or None when that end cannot be told with certainty.

    Certain is: the file has a ``label`` of its own, exactly one end of the macro, from its very edge inwards, is no
    glass over a label's length, and the label's picture is not found at the other end. The length of a slide is its
    longer side.
    """
    if label is None or min(macro.shape[:2]) < MATCH_ROWS_PX:
        return None
    upright = macro.shape[0] > macro.shape[1]
    lying = macro.transpose(1, 0, 2) if upright else macro
    ends = _label_ends(lying)
    if (ends[0] > 0) == (ends[1] > 0):
        return None
    at_start = ends[0] > 0
    if _found_at(lying[:, ::-1] if at_start else lying, label, mirrored=at_start):
        return None
    length = lying.shape[1]
    cut_px = int(np.ceil(max(max(ends) + MARGIN_PART * length, CROP_MIN_PART * length)))
    kept = lying[:, cut_px:] if at_start else lying[:, : length - cut_px]
    return np.ascontiguousarray(kept.transpose(1, 0, 2) if upright else kept)


def _label_ends(lying: Pixels) -> tuple[int, int]:
    """Length in pixels of what is no glass at the left and at the right end; 0 where it is not a label's length.

    Both are 0 when the brightest of the middle is not light enough for glass: a dark field shows labels otherwise.
    """
    height, length = lying.shape[:2]
    rows = lying[height // 5 : height - height // 5].astype(np.int16)
    middle = rows[:, length // 5 : length - length // 5]
    # tissue may cover most of it, and never is brighter
    glass = np.percentile(middle.reshape(-1, 3), GLASS_PERCENTILE, axis=0)
    if glass.min() < GLASS_MIN:
        return 0, 0
    shares = (np.abs(rows - glass).max(axis=2) > GLASS_TOLERANCE).mean(axis=0)
    found = []
    for share in (shares, shares[::-1]):
        end = share > FULL_HEIGHT
        # a few stray columns (frame, shadow) do not end a label
        smooth = np.convolve(np.pad(end.astype(float), 4, mode="edge"), np.full(9, 1 / 9), mode="valid") > 0.5
        run = int(np.argmin(smooth)) if not smooth.all() else length
        sharp = LABEL_PART[0] <= run / length <= LABEL_PART[1] and share[run + int(EDGE_PART * length)] < EDGE_SHARE
        found.append(run if sharp else 0)
    return found[0], found[1]


def _found_at(start: Pixels, label: Pixels, *, mirrored: bool) -> bool:
    """Whether ``label``, turned any way, is seen in the first part of ``start``, which was mirrored or not."""
    grey = _grey(start[:, : int(start.shape[1] * MATCH_PART)], MATCH_ROWS_PX)
    for turn in range(4):
        turned = np.rot90(label, turn)
        picture = _grey(turned[:, ::-1] if mirrored else turned, MATCH_ROWS_PX)
        for scale in MATCH_SCALES:
            small = _resized(picture, int(picture.shape[0] * scale), int(picture.shape[1] * scale))
            if small.shape[1] <= grey.shape[1] and _best_match(grey, small) > MATCH_LIMIT:
                return True
    return False


def _grey(pixels: Pixels, height_px: int) -> NDArray[np.float32]:
    grey = np.ascontiguousarray(pixels).mean(axis=2).astype(np.float32)
    return _resized(grey, height_px, max(1, round(grey.shape[1] * height_px / grey.shape[0])))


def _resized(grey: NDArray[np.float32], height_px: int, width_px: int) -> NDArray[np.float32]:
    size = (max(1, width_px), max(1, height_px))
    return np.asarray(Pillow.fromarray(grey).resize(size, Pillow.Resampling.BOX), np.float32)


def _best_match(grey: NDArray[np.float32], small: NDArray[np.float32]) -> float:
    """The highest normalised correlation of ``small`` with any place in ``grey``."""
    pattern = small - small.mean()
    power = float((pattern**2).sum())
    if power / pattern.size < 1:  # a blank label matches nothing and everything
        return 0.0
    windows = np.lib.stride_tricks.sliding_window_view(grey, (small.shape[0], small.shape[1]))[::2, ::2]
    sums = windows.sum(axis=(2, 3))
    spread = (windows**2).sum(axis=(2, 3)) - sums**2 / small.size
    found = np.einsum("ijkl,kl->ij", windows, pattern)
    return float((found / np.sqrt(np.maximum(spread, small.size) * power)).max())
