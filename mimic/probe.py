"""path -> Slide: facts only, no pixel decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from mimic import colour, ngff, sets, sources, structure
from mimic.errors import BadInput, Unsupported, UsageError
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
UNREAD = frozenset((".mrxs",))
"""Formats that nothing here reads but bioformats2raw, and whose main file would pass for something else."""
BIOFORMATS2RAW = "bioformats2raw"
DICOM_MAGIC_AT = 128
TILED = ("tiff", "dicom")
"""Containers of compressed tiles, and the sources that read them as they are."""


def probe(path: Path, settings: Settings, *, source: str | None = None) -> Slide:
    """Facts of the slide to which ``path`` belongs, read by ``source`` or by the first source that claims it.

    ``path`` may be any file of a slide of several, or its folder. Raises UsageError for another folder, BadInput for a
    file that is missing (a companion too), damaged or empty, Unsupported for a strange one.
    """
    try:
        if not path.exists():
            raise BadInput("there is no such file", path, "Check the name")
        path = sets.whole(path)
        if path.is_dir() and ngff.store(path) is None:
            raise UsageError("is a folder", path, "Name a file in it")
        if path.suffix.lower() in UNREAD and source != BIOFORMATS2RAW:
            # by its content it is a JPEG: the slide's preview, which nobody means
            raise Unsupported("Bio-Formats cannot read MIRAX slides", path, "Export it as TIFF from its own software")
    except OSError as error:  # a name too long, a folder that may not be entered
        raise BadInput(f"cannot be read ({error.strerror})", path, "Check the name, and who may read it") from error
    slide = sources.load(source or sources.choose(path)).probe(path, settings)
    slide = slide if slide.icc_profile is not None else replace(slide, icc_profile=colour.profile_of(slide.files))
    return coded(slide)


def coded(slide: Slide) -> Slide:
    """``slide`` with what is known of the compressed tiles of its scan; nothing where it has several.

    Raises BadInput for tiles that are damaged where it looks: it reads the headers of a few.
    """
    if len(slide.scans()) != 1 or slide.path.is_dir():
        return slide
    kind = structure.container(slide.path)
    if kind not in TILED:
        return slide
    source = import_module(f"mimic.sources.{kind}")  # now and not before: pydicom takes a third of a second
    slide = replace(slide, files=source.members(slide))
    return replace(slide, coded=source.coded(slide, slide.scans()[0]))


def find_slides(folder: Path) -> Iterator[Path]:
    """Files below ``folder`` that may be slides, by ending or DICOM magic, and folders that are OME-Zarr, sorted;
    hidden ones are left out, and what is in a Zarr array or in a slide."""
    for path in _entries(folder):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if ngff.is_slide(path):
                yield path
            elif not ngff.is_array(path) and not path.is_symlink():  # a link may lead back to where it lies
                yield from find_slides(path)
        elif path.is_file() and _may_be_slide(path):
            yield path


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; nothing of one that may not be entered, which ``requests`` tells."""
    try:
        return sorted(folder.iterdir())
    except PermissionError:
        return []


def _may_be_slide(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or path.name.lower().endswith(sets.COMPANION) or _is_dicom(path)


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(DICOM_MAGIC_AT)
            return file.read(4) == b"DICM"
    except OSError:
        return False
