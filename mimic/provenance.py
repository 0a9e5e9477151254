"""What an output was made of, in a few digits that it carries itself: so that a later run knows it again (resume.py).

    Converter Key = <input> <options> <part>/<parts>

Nothing need lie beside a slide for this, and it moves with it. ``input`` is a digest of size, time of change and
samples of the bytes of every file of the slide: a whole digest would take as long as converting. A de-identified slide
carries "-" there: it is known again by its name, which is the digest of all of its input's bytes (privacy.alias).
"""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from pathlib import Path

from mimic import sets
from mimic.model import Options, Plan, Request

KEY = "Converter Key"
UNTOLD = "-"
DIGITS = 16
PIECE_BYTES = 64 << 10
PIECES = 8
"""Of each file, evenly spaced, the first and the last bytes among them."""
NO_MATTER = frozenset(("threads", "scratch", "deadline_s", "overwrite"))
"""Options that change nothing in the output."""


def keyed(plans: tuple[Plan, ...], request: Request) -> tuple[Plan, ...]:
    """``plans`` with the keys of their outputs; as they are where no key can be made."""
    try:
        source = UNTOLD if request.options.deidentify else input_key(request.input)
        wish = options_key(request.options)
    except OSError:
        return plans
    count = len(plans)
    return tuple(replace(plan, key=f"{source} {wish} {part}/{count}") for part, plan in enumerate(plans, start=1))


def input_key(path: Path, detector: sets.Detector | None = None) -> str:
    """Digits for the slide to which ``path`` belongs. Raises OSError."""
    found = (detector or sets.Detector()).find(path)
    files = sorted(found.files) if found is not None else _files(path)
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.name}\0{stat.st_size} {stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
        step = max((stat.st_size - PIECE_BYTES) // (PIECES - 1), 1)
        if len(files) > PIECES:
            continue  # a set of thousands: sizes and times of all, bytes of none
        with file.open("rb") as opened:
            for place in range(0, max(stat.st_size - PIECE_BYTES, 0) + 1, step):
                opened.seek(place)
                digest.update(opened.read(PIECE_BYTES))
    return digest.hexdigest()[:DIGITS]


def _files(path: Path) -> list[Path]:
    """A file, or what lies in the topmost two folders of a slide that is a folder: the documents of an OME-Zarr."""
    if not path.is_dir():
        return [path]
    return sorted(file for pattern in ("*", "*/*") for file in path.glob(pattern) if file.is_file())


def options_key(options: Options) -> str:
    """Digits for all options that matter; a file among them counts by its bytes. Raises OSError."""
    digest = hashlib.sha256()
    for field in fields(options):
        if field.name not in NO_MATTER:
            value = getattr(options, field.name)
            said = hashlib.sha256(value.read_bytes()).hexdigest() if isinstance(value, Path) else repr(value)
            digest.update(f"{field.name}={said}\0".encode())
    return digest.hexdigest()[:DIGITS]
