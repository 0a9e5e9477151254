"""Quantisation tables -> the quality that libjpeg was asked for. Pure.

A JPEG does not say its quality, but libjpeg scales one fixed table by it (ITU-T T.81, table K.1; jcparam.c), and nearly
every slide scanner writes with libjpeg. For tables of others it is the quality that comes nearest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mimic.jpegs import DQT, FRAMES, segments

LUMINANCE = np.array(
    [
        *(16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40),
        *(26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51, 61, 60, 57, 51),
        *(56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87),
        *(95, 98, 103, 104, 103, 62, 77, 113, 121, 112, 100, 120, 92, 101, 103, 99),
    ],
    np.int64,
)
"""Table K.1 in the zigzag order of a DQT segment."""
ENTRIES = 64


def estimate(data: bytes, shared: bytes | None = None) -> int | None:
    """libjpeg's quality, 1 to 100, of the JPEG that begins with ``data``; None where there is no table to judge by.

    ``shared`` are tables that stand elsewhere (TIFF tag 347). The table of the first component counts: brightness, or
    red where the components are RGB. ``data`` may be cut off behind its header.
    """
    tables, wanted = _read(shared or b"", {})[0], 0
    tables, wanted = _read(data, tables)
    table = tables.get(wanted)
    return None if table is None else nearest(table)


def nearest(table: Sequence[int] | NDArray[np.int64]) -> int | None:
    """The quality whose table, as libjpeg makes it, is nearest to ``table`` (64 numbers in zigzag order).

    None for a table of another length: there is none.
    """
    if len(table) != ENTRIES:
        return None
    return int(np.abs(_scaled() - np.asarray(table, np.int64)).sum(axis=1).argmin()) + 1


def _scaled() -> NDArray[np.int64]:
    """libjpeg's luminance tables for qualities 1 to 100, shape (100, 64)."""
    qualities = np.arange(1, 101, dtype=np.int64)
    percent = np.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)
    return np.clip((LUMINANCE * percent[:, np.newaxis] + 50) // 100, 1, 255)


def _read(data: bytes, tables: dict[int, NDArray[np.int64]]) -> tuple[dict[int, NDArray[np.int64]], int]:
    """``tables`` and those in ``data``, by number, and the number that the first component uses (0 if none says)."""
    found, wanted = dict(tables), 0
    try:
        for marker, start, end in segments(data):
            payload = data[start + 4 : end]
            if marker == DQT:
                found |= _tables(payload)
            elif marker in FRAMES and len(payload) >= 9:
                wanted = payload[8]
    except ValueError:  # no JPEG, or cut off: what was read counts
        pass
    return found, wanted


def _tables(payload: bytes) -> dict[int, NDArray[np.int64]]:
    """Tables of one DQT segment: numbers of 8 or 16 bits."""
    found, at = {}, 0
    while at < len(payload):
        kind = ">u2" if payload[at] >> 4 else "u1"
        size = ENTRIES * np.dtype(kind).itemsize
        if at + 1 + size > len(payload):
            break
        found[payload[at] & 15] = np.frombuffer(payload, kind, ENTRIES, at + 1).astype(np.int64)
        at += 1 + size
    return found
