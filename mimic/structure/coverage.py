"""How much of a mosaic its tiles really cover: overlaps count once, holes not at all."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

MAX_WORK = 200_000_000
"""Tiles looked at, over all slabs: some seconds. Only a mosaic of very many unaligned tiles takes more."""


def distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ascending numbers or rows, each once: numpy.unique without the masked arrays that it imports, which took longer
    than all else that is asked of a CZI before its pixels."""
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    rows = rows[np.lexsort(rows.T[::-1])]
    fresh = np.ones(len(rows), np.bool_)
    fresh[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return rows[fresh].reshape(-1, *values.shape[1:])


def covered_px(tiles: NDArray[np.int64]) -> int | None:
    """Area of the union of ``tiles``, rows of x, y, width, height; None when it would take too long to find.

    Between two neighbouring horizontal edges nothing changes, so that one look at the tiles there tells the covered
    width of that slab. Tiles sorted by their top need only be searched from one greatest height above the slab on.
    """
    tiles = tiles[np.argsort(tiles[:, 1], kind="stable")]
    left, top, right, bottom = tiles[:, 0], tiles[:, 1], tiles[:, 0] + tiles[:, 2], tiles[:, 1] + tiles[:, 3]
    edges = distinct(np.concatenate((top, bottom)))
    first = np.searchsorted(top, edges[:-1] - tiles[:, 3].max(), side="right")
    last = np.searchsorted(top, edges[:-1], side="right")
    if int((last - first).sum()) > MAX_WORK:
        return None
    area = 0
    for index, (begin, end) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        here = begin + np.flatnonzero(bottom[begin:end] > edges[index])
        area += _union(left[here], right[here]) * int(edges[index + 1] - edges[index])
    return area


def _union(begin: NDArray[np.int64], end: NDArray[np.int64]) -> int:
    """Length of the union of intervals."""
    if not len(begin):
        return 0
    order = np.argsort(begin)
    begin, reach = begin[order], np.maximum.accumulate(end[order])
    known = np.concatenate((begin[:1], reach[:-1]))
    return int(np.maximum(0, reach - np.maximum(begin, known)).sum())
