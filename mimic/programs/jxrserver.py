"""A child process that decodes JPEG-XR, one picture at a time: jxrlib crashes on some damaged data, and then only this
process dies.

Runs as ``python -m mimic.programs.jxrserver``; its client is ``jxr``. It ends when its stdin does.

    stdin   {"bytes": 5, "width": 2, "height": 2} and five bytes      stdout   {} or {"error": "..."}

Pixels, 8-bit RGB, go into memory that client and child both map: the file that the first line of stdin names.
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

NO_ANSWER = 1
"""Exit code for a client that stopped in the middle of a request."""


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
        data = sys.stdin.buffer.read(request["bytes"])
        if len(data) != request["bytes"]:
            sys.exit(NO_ANSWER)
        _answer(out, _decoded(data, block, request["width"], request["height"]))


def _decoded(data: bytes, block: mmap.mmap, width_px: int, height_px: int) -> dict[str, str]:
    """Decode into the shared block; the error when that fails."""
    pixels = np.frombuffer(block, np.uint8, width_px * height_px * 3).reshape(height_px, width_px, 3)
    try:
        imagecodecs.jpegxr_decode(data, out=pixels)
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
