"""Strips and tiles of TIFFs as the file holds them, decoded to exactly the bytes that must be in them.

A segment that gives fewer or more, or that its decoder complains of, is damaged: libtiff stops as soon as it has
enough, and looks neither at what is left over nor at Deflate's checksum. The decoders let other threads run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from mimic.model import Pixels, Tool

STORED, DEFLATE, PACKBITS, OLD_DEFLATE = 1, 8, 32773, 32946
"""TIFF's numbers of compressions. Not among them: LZW (5), as imagecodecs' decoder (2026.3.6) crashes on some damaged
data, and Zstandard (50000), as libzstd 1.5.7 decodes half of the data in which a sector was lost to wrong pixels, and
Bio-Formats' decoder refuses all of them."""
DIFFERENCES = 2
"""The predictor: each sample but the first of a row is kept as its difference from the pixel before."""
PREDICTED = frozenset((DEFLATE, OLD_DEFLATE))
"""Compressions that have a predictor; with others libtiff takes no notice of it."""

Decoder = Callable[..., Any]


class Damaged(Exception):
    """A segment that is not what its directory says; the message is what was found instead."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How all segments of an image were packed: TIFF's numbers of the compression and of the predictor."""

    compression: int = STORED
    predictor: int = 1

    @property
    def known(self) -> bool:
        """Whether segments can be unpacked here."""
        if self.compression == STORED:
            return self.predictor == 1
        predictors = (1, DIFFERENCES) if self.compression in PREDICTED else (1,)
        return self.predictor in predictors and _decoder(self.compression) is not None

    def most_bytes(self, whole_bytes: int) -> int:
        """More than any writer needs for a segment of that size."""
        return whole_bytes if self.compression == STORED else 2 * whole_bytes + 4096

    def unpacked(self, data: NDArray[np.uint8], shape: tuple[int, int, int], *, most_rows: int) -> Pixels:
        """Pixels of a segment, of that shape (rows, columns, channels); raises Damaged.

        A last strip may go on to ``most_rows``, as some writers have it: such rows are left out.
        """
        wanted, whole = math.prod(shape), most_rows * shape[1] * shape[2]
        found = data if self.compression == STORED else self._decoded(data, whole)
        if len(found) not in (wanted, whole):
            more = len(found) > whole
            raise Damaged(f"decodes to {'more than ' if more else ''}{min(len(found), whole)} bytes, not {wanted}")
        pixels = found[:wanted].reshape(shape)
        if self.predictor == DIFFERENCES:
            imagecodecs.delta_decode(pixels, axis=1, out=pixels)
        return pixels

    def _decoded(self, data: NDArray[np.uint8], whole: int) -> NDArray[np.uint8]:
        decoder = _decoder(self.compression)
        if decoder is None:
            raise Damaged(f"is compressed by method {self.compression}")
        decode, error_type = decoder
        room = np.empty(whole + 1, np.uint8)  # for what is too much
        try:
            return np.asarray(decode(data, out=room), np.uint8)
        except (error_type, ValueError) as error:
            raise Damaged(f"cannot be decoded: {error}") from error


@cache
def _decoder(compression: int) -> tuple[Decoder, type[Exception]] | None:
    """The decoder and what it raises; None where this imagecodecs has none."""
    if compression in (DEFLATE, OLD_DEFLATE) and imagecodecs.DEFLATE.available:
        return imagecodecs.deflate_decode, imagecodecs.DeflateError
    if compression == PACKBITS and imagecodecs.PACKBITS.available:
        return imagecodecs.packbits_decode, imagecodecs.PackbitsError
    return None


def tool() -> Tool:
    """The library that decodes, with the one in it that inflates."""
    deflate = imagecodecs.deflate_version() if imagecodecs.DEFLATE.available else "without libdeflate"
    return Tool("imagecodecs", f"{imagecodecs.__version__} ({deflate.replace('_', ' ')})")
