"""A child process that decodes JPEG-XR, one picture at a time: jxrlib crashes on some damaged data, and then only this
process dies.

Runs as ``python -m mimic.programs.jxrserver``; its client is ``jxr``. It ends when its stdin does.

    stdin   {"size": 5, "at": 4096, "width": 2, "height": 2}      stdout   {} or {"error": "..."}

Data and pixels are in memory that client and child both map, the file that the first line of stdin names: the data at
its beginning (through a pipe they would come in pieces of 64 KiB, each with a change of process), the pixels, 8-bit
RGB, from "at" on.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from contextlib import suppress
from pathlib import Path

import imagecodecs
import numpy as np


def main() -> None:
    """Answer until stdin ends."""
    _no_core_dumps()
    out = os.dup(1)
    os.dup2(2, 1)  # jxrlib prints what it does not know
    _answer(out, {})
    line = sys.stdin.buffer.readline()
    if not line:
        return
    shared = Path(json.loads(line))
    with shared.open("r+b") as file:
        block = mmap.mmap(file.fileno(), 0)
    with suppress(OSError):  # Windows keeps what is open; the client tries it again
        shared.unlink()
    _answer(out, {})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _answer(out, _decoded(block, **request))


def _decoded(block: mmap.mmap, *, size: int, at: int, width: int, height: int) -> dict[str, str]:
    """Decode within the shared block; the error when that fails. The decoder gets a copy of the data: what it writes
    beside the pixels must not change them."""
    pixels = np.frombuffer(block, np.uint8, width * height * 3, at).reshape(height, width, 3)
    try:
        imagecodecs.jpegxr_decode(block[:size], out=pixels)
    except (imagecodecs.JpegxrError, ValueError, MemoryError) as error:
        return {"error": str(error)}
    return {}


def _answer(out: int, answer: dict[str, str]) -> None:
    os.write(out, json.dumps(answer).encode() + b"\n")


def _no_core_dumps() -> None:
    with suppress(ImportError):  # Windows has neither
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
