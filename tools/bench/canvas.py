"""The picture that every input of the benchmark holds: real stained tissue of any size, made piece by piece.

No two places are alike and nothing is flat: an encoder or a decoder that meets the same block again, or a glass that
is one colour, would be measured at something that no scanner writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

RGB = NDArray[np.uint8]
"""Shape (height_px, width_px, 3)."""

SIZES = {"1k": (1024, 768), "2k": (2048, 1536), "8k": (8192, 6144), "20k": (20480, 16384), "36k": (36864, 32768)}
"""(width, height) in pixels; a plane of 36k has more than 2^31 bytes."""
GLASS_SHARE = 0.4
GLASS_RGB = (243.0, 241.0, 244.0)
NOISE_SIGMA = 1.6
"""Grey levels: what a scanner's camera leaves on empty glass."""
FIELD_PX = 1024
"""A camera's field: each has its own piece of the section, turned, and its own light."""
NOISE_PX = 2048
MASK_STEP_PX = 16
EDGE = 0.05
"""Width of the tissue's soft border, in units of the mask's field."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """A picture of ``width_px`` x ``height_px``; the same numbers give the same pixels in every run."""

    width_px: int
    height_px: int

    def read(self, x_px: int, y_px: int, width_px: int, height_px: int) -> RGB:
        """Pixels of a box, which may reach beyond the picture (the picture goes on)."""
        out = np.empty((height_px, width_px, 3), np.float32)
        for top in range(y_px // FIELD_PX * FIELD_PX, y_px + height_px, FIELD_PX):
            for left in range(x_px // FIELD_PX * FIELD_PX, x_px + width_px, FIELD_PX):
                y0, y1 = max(top, y_px), min(top + FIELD_PX, y_px + height_px)
                x0, x1 = max(left, x_px), min(left + FIELD_PX, x_px + width_px)
                part = _field(left // FIELD_PX, top // FIELD_PX)[y0 - top : y1 - top, x0 - left : x1 - left]
                out[y0 - y_px : y1 - y_px, x0 - x_px : x1 - x_px] = part
        share = self._tissue(x_px, y_px, width_px, height_px)[..., None]
        out *= share
        out += (1 - share) * np.array(GLASS_RGB, np.float32)
        rows, columns = np.arange(y_px, y_px + height_px), np.arange(x_px, x_px + width_px)
        # the shift keeps one period of the noise from lying on the next
        shifted = rows // NOISE_PX * 331 + rows
        out += _noise()[np.ix_(shifted % NOISE_PX, (columns + columns // NOISE_PX * 577) % NOISE_PX)]
        return np.clip(out, 0, 255, out=out).astype(np.uint8)

    def _tissue(self, x_px: int, y_px: int, width_px: int, height_px: int) -> NDArray[np.float32]:
        """How much of each pixel is tissue, 0 to 1: islands with soft borders, GLASS_SHARE of the picture without."""
        u = (np.arange(x_px, x_px + width_px) / self.width_px).astype(np.float32)[None, :]
        v = (np.arange(y_px, y_px + height_px) / self.height_px).astype(np.float32)[:, None]
        share = (_islands(u, v) - _threshold()) / EDGE + 0.5
        return np.asarray(np.clip(share, 0, 1), np.float32)


def _islands(u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    """A smooth field of hills over the unit square."""
    hills = np.sin(7.3 * u + 1.1) * np.sin(5.9 * v + 0.4) + 0.5 * np.sin(17.1 * u - 0.7) * np.sin(19.3 * v + 2.2)
    return np.asarray(hills + 0.25 * np.sin(41 * u + 3 * v) * np.sin(37 * v - 2 * u), np.float32)


@lru_cache(maxsize=1)
def _threshold() -> float:
    """The height above which GLASS_SHARE of the square does not reach."""
    line = np.linspace(0, 1, 512, dtype=np.float32)
    return float(np.quantile(_islands(line[None, :], line[:, None]), GLASS_SHARE))


@lru_cache(maxsize=1)
def _section() -> RGB:
    """Real tissue without seams: scikit-image's ihc.png (in its wheel), mirrored both ways and side by side."""
    from skimage import data  # costs a second, and only this needs it

    tissue: RGB = data.immunohistochemistry()[..., :3]  # type: ignore[no-untyped-call]
    return np.pad(tissue, ((0, FIELD_PX), (0, FIELD_PX), (0, 0)), mode="symmetric")


@lru_cache(maxsize=1)
def _noise() -> NDArray[np.float32]:
    generator = np.random.default_rng(20)
    return generator.normal(0, NOISE_SIGMA, (NOISE_PX, NOISE_PX, 3)).astype(np.float32)


@lru_cache(maxsize=16)
def _field(column: int, row: int) -> NDArray[np.float32]:
    """One camera field of tissue, unlike its neighbours."""
    generator = np.random.default_rng((column, row))
    tissue = _section()
    y, x = generator.integers(0, tissue.shape[0] - FIELD_PX, 2)
    part = tissue[y : y + FIELD_PX, x : x + FIELD_PX]
    if generator.random() < 0.5:
        part = part.transpose(1, 0, 2)
    light = generator.uniform(0.88, 1.04) * generator.uniform(0.96, 1.04, 3)
    return part.astype(np.float32) * light.astype(np.float32)
