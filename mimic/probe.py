"""path -> Slide: facts only, no pixel decoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mimic import sources
from mimic.errors import BadInput, UsageError
from mimic.model import Slide
from mimic.settings import Settings

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("czi", "svs", "ndpi", "ndpis", "vsi", "mrxs", "scn", "bif", "dcm", "dicom", "qptiff", "vms", "vmu", "afi"),
        *("tif", "tiff", "btf", "tf2", "tf8", "lif", "lof", "nd2", "oib", "oif", "zvi", "lsm", "ims", "dv", "stk"),
        *("png", "jpg", "jpeg", "jpe", "jp2", "j2k", "webp", "bmp"),
    )
)
"""Endings that a folder is searched for; a file that is named is tried whatever its ending."""
DICOM_MAGIC_AT = 128


def probe(path: Path, settings: Settings, *, source: str | None = None) -> Slide:
    """Facts of ``path``, read by ``source`` or by the first source that claims the file.

    Raises UsageError for a folder, BadInput for a file that is missing, damaged or empty, Unsupported for a strange
    one.
    """
    try:
        if path.is_dir():
            raise UsageError("is a folder", path, "Name a file in it")
        if not path.exists():
            raise BadInput("there is no such file", path, "Check the name")
    except OSError as error:  # a name too long, a folder that may not be entered
        raise BadInput(f"cannot be read ({error.strerror})", path, "Check the name, and who may read it") from error
    return sources.load(source or sources.choose(path)).probe(path, settings)


def find_slides(folder: Path) -> Iterator[Path]:
    """Files below ``folder`` that may be slides, by ending or DICOM magic, sorted; hidden ones are left out."""
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or not path.is_file():
            continue
        if path.suffix.lower() in SUFFIXES or _is_dicom(path):
            yield path


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(DICOM_MAGIC_AT)
            return file.read(4) == b"DICM"
    except OSError:
        return False
