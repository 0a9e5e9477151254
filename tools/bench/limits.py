"""What no conversion can be faster than, as programs of their own: ``python -m tools.bench.limits decode|encode``.

Each prints one JSON line with the seconds that it measured inside, without the start of Python. What the table calls
decoding alone is the whole process, start and planning included, as mimic's own time has them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np

import mimic
from mimic import encode, settings, sources
from mimic.model import Box, Pixels
from mimic.sources import PixelReader

QUALITY, TILE_PX = 80, 256


def decode(path: Path, *, threads: int, mpp_um: float | None) -> dict[str, float]:
    """Read every box of level 0 through mimic's own reader, with ``threads``, and let go of it."""
    began = time.perf_counter()
    plan = mimic.plan(path, threads=threads, passthrough="never", mpp_um=mpp_um)[0]
    slide, image, now = plan.slide, plan.image, settings.load()
    with tempfile.TemporaryDirectory() as folder:
        opened = sources.load(slide.source).open(slide, image, threads=threads, settings=now, scratch=Path(folder))
        with closing(opened) as reader:
            opened_s = time.perf_counter() - began
            read_px = _drain(reader, threads)
            decoded_s = time.perf_counter() - began - opened_s
    return {"open_s": round(opened_s, 4), "decode_s": round(decoded_s, 4), "read_px": read_px}


def _drain(reader: PixelReader, threads: int) -> int:
    """Pixels read; no more boxes are under way than a conversion has."""
    read_px = 0
    pending: deque[Future[Pixels]] = deque()
    with ThreadPoolExecutor(1 if reader.sequential else threads) as pool:

        def take() -> int:
            height, width, _ = pending.popleft().result().shape
            return int(height * width)

        boxes: Sequence[Box] = reader.boxes()
        for box in boxes:
            pending.append(pool.submit(reader.read, box))
            if len(pending) > threads + 1:
                read_px += take()
        while pending:
            read_px += take()
    return read_px


def _coded_bytes(row: Sequence[Pixels]) -> int:
    size, beside = 0, None
    for tile in row:
        beside = encode.tile(tile, quality=QUALITY, profile="ycc", beside=beside)
        size += len(beside)
    return size


def encode_all(band: Pixels, width_px: int, height_px: int, *, threads: int, levels: float) -> dict[str, float]:
    """Encode the tiles of ``band``, which are in memory already, and scale up to the whole picture.

    ``levels`` is the area of all levels over that of level 0. Tiles are encoded in rows, as mimic does it: glass is
    encoded faster beside glass.
    """
    height, width, _ = band.shape
    rows = [
        [band[top : top + TILE_PX, left : left + TILE_PX].copy() for left in range(0, width, TILE_PX)]
        for top in range(0, height, TILE_PX)
    ]
    with ThreadPoolExecutor(threads) as pool:
        began, cpu = time.perf_counter(), time.process_time()
        size = sum(pool.map(_coded_bytes, rows))
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    factor = width_px * height_px * levels / (sum(map(len, rows)) * TILE_PX**2)
    scaled = {"encode_s": wall_s * factor, "encode_cpu_s": cpu_s * factor, "coded_bytes": size * factor}
    return {name: round(value, 4) for name, value in scaled.items()} | {"factor": round(factor, 4)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="limits", description=__doc__)
    parser.add_argument("what", choices=("decode", "encode"))
    parser.add_argument("--path", type=Path, required=True, help="the input, or for encode a sample of its pixels")
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--mpp", type=float)
    asked = parser.parse_args()
    if asked.what == "decode":
        said = decode(asked.path, threads=asked.threads, mpp_um=asked.mpp)
    else:
        said = encode_all(np.load(asked.path), *asked.size, threads=asked.threads, levels=1 + 1 / 15)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
