"""Pixels of one colour, held as one pixel. Pure.

The convention: an array with strides of zero is one pixel over and over (``np.broadcast_to``). It takes no memory, and
whoever meets it knows without looking that nothing is in it: a source may hand it out for an area that was not scanned.
"""

from __future__ import annotations

import numpy as np

from mimic.model import Pixels


def is_uniform(pixels: Pixels) -> bool:
    """Whether this is one pixel over and over; False for a colour that is written out, see ``found``."""
    return pixels.strides[:2] == (0, 0)


def found(pixels: Pixels) -> Pixels:
    """The same pixels (height, width, 3): as one pixel over and over, not to be written to, if all of them are equal.

    Of tissue and noisy glass the first row tells, in a microsecond; a blank tile takes 20, of 200 for encoding it.
    """
    if is_uniform(pixels) or 0 in pixels.shape:
        return pixels
    first = pixels[0, 0].tobytes()
    if pixels[-1, -1].tobytes() != first or pixels[0].tobytes() != first * pixels.shape[1]:
        return pixels
    return np.broadcast_to(pixels[0, 0].copy(), pixels.shape) if (pixels == pixels[0]).all() else pixels


def written_out(pixels: Pixels) -> Pixels:
    """Uniform pixels in memory of their own, to be written to; others as they are."""
    if not is_uniform(pixels):
        return pixels
    whole = np.empty(pixels.shape, np.uint8)
    whole[:] = np.repeat(pixels[0, :1], pixels.shape[1], axis=0)  # row by row: pixel by pixel takes ten times as long
    return whole
