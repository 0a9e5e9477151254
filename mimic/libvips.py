"""libvips itself: loaded once, its errors turned into ours, and what it is known to check.

The only importer of pyvips.
"""

from __future__ import annotations

import importlib
import logging
import re
import struct
import threading
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from mimic.errors import BadInput, OutputError, ToolMissing
from mimic.structure import check

HARMLESS = re.compile(
    r"(?<!\d)[1-8] extraneous bytes before marker 0xd9"
    r"|JFIF revision|Adobe color transform|Invalid SOS parameters|iCCP|profile"
)
"""What libraries complain about in pictures whose pixels are whole. A few bytes before a JPEG's end are padding; 2454
were left over where a decoder had lost its way through 4000 zeroed bytes."""

evaluating = threading.Lock()
"""libvips has one error log a process: who reads alone knows that what stands there is about his file."""


@cache
def load() -> Any:
    """The pyvips module, set up once: no cache of operations (it would show a rewritten file's old pixels)."""
    logging.getLogger("pyvips").setLevel(logging.ERROR)
    try:
        vips = importlib.import_module("pyvips")
    except (ImportError, OSError) as error:
        raise ToolMissing(f"libvips cannot be loaded: {error}", remedy="Run: pip install 'pyvips[binary]'") from error
    vips.cache_set_max(0)
    return vips


class Border:
    """Turns a libvips error, raised or only logged, into a BadInput of one line.

    libvips leaves a tile of a TIFF blank when it cannot decode it, and raises nothing even with ``fail_on=error``
    (8.18, tried with LZW and JPEG tiles): then only its error log tells.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        load().vips_lib.vips_error_clear()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _trace: object) -> None:
        vips = load()
        log = vips.ffi.string(vips.vips_lib.vips_error_buffer()).decode("utf-8", "replace")
        vips.vips_lib.vips_error_clear()
        if value is None:
            lines = [line for line in log.splitlines() if line.strip() and not HARMLESS.search(line)]
            if lines:
                raise bad(self._path, "\n".join(lines))
        elif isinstance(value, vips.Error):
            text = str(value.detail or "") or log or str(value.message)
            if "No space left" in text or ("unable to write" in text and "disc" in text):
                raise OutputError("the scratch folder is full", self._path, "Name another with --scratch") from value
            raise bad(self._path, text) from value


def bad(path: Path, text: str) -> BadInput:
    """One clean sentence of libvips' error log, which repeats itself and names its own functions."""
    lines = [re.sub(r"^\s*(?:[A-Za-z]\w*: )+", "", line).strip() for line in text.splitlines()]
    unique = list(dict.fromkeys(line for line in lines if line and not line.startswith(str(path))))
    reason = "; ".join(unique[:2])[:200] or "no reason given"
    try:
        check(path)
    except BadInput as error:
        return error  # knows the place
    return BadInput(f"the picture is damaged or not readable: {reason}", path, "Copy it again, or save it anew")


@cache
def checks_sums() -> bool:
    """Whether this libvips refuses a PNG whose image data do not match their checksum.

    It did with libpng (8.18) and ``fail_on=error``; another decoder in it might not, so it is tried.
    """
    head, data = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0), zlib.compress(b"\0\0")
    chunks = ((b"IHDR", head, 0), (b"IDAT", data, 1), (b"IEND", b"", 0))
    picture = b"\x89PNG\r\n\x1a\n"
    for kind, body, wrong in chunks:
        picture += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ wrong)
    vips = load()
    with evaluating:
        try:
            vips.Image.pngload_buffer(picture, fail_on="error").avg()
        except vips.Error:
            return True
        finally:
            vips.vips_lib.vips_error_clear()
    return False
