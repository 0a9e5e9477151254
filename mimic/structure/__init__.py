"""Whether a file is whole, told from its container before any decoder sees it.

Bio-Formats returns black pixels, and no exception, for input that is cut short or damaged. So what a container itself
promises (directories, tiles, fragments, end marks) is looked up first, read-only and without decoding a pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mimic.errors import BadInput, Unsupported
from mimic.structure import dicom, pictures, tiff
from mimic.structure.facts import CziDisplay, CziFacts, CziScene, DicomFacts, Facts
from mimic.structure.reader import Input

__all__ = ["CziDisplay", "CziFacts", "CziScene", "DicomFacts", "Facts", "check", "container", "whole"]


def _czi(source: Input) -> Facts:
    from mimic.structure import czi  # with lxml, which pictures do without

    return czi.check(source)


CHECKS: dict[str, Callable[[Input], Facts]] = {
    "tiff": tiff.check,
    "czi": _czi,
    "dicom": dicom.check,
    "jpeg": pictures.jpeg,
    "png": pictures.png,
    "bmp": pictures.bmp,
    "webp": pictures.webp,
    "jp2": pictures.jp2,
    "ole": pictures.compound,
    "nd2": pictures.nd2,
}

CALLED = {
    "tiff": "a TIFF",
    "czi": "a CZI",
    "dicom": "a DICOM file",
    "jpeg": "a JPEG picture",
    "png": "a PNG picture",
    "bmp": "a BMP picture",
    "webp": "a WebP picture",
    "jp2": "a JPEG 2000 picture",
    "ole": "an OLE compound file",
    "nd2": "an ND2",
}

PICTURES = frozenset(("jpeg", "png", "bmp", "webp", "jp2", "tiff"))
"""Decoders go by content, so that one of these under another one's name does no harm."""

PROMISES = {
    **dict.fromkeys(("tif", "tiff", "svs", "ndpi", "bif", "qptiff", "btf", "tf2", "tf8", "lsm"), "tiff"),
    **dict.fromkeys(("jpg", "jpeg", "jpe"), "jpeg"),
    **dict.fromkeys(("jp2", "j2k"), "jp2"),
    **dict.fromkeys(("oib", "zvi"), "ole"),
    **dict.fromkeys(("dcm", "dicom"), "dicom"),
    **{name: name for name in ("czi", "png", "bmp", "webp", "nd2")},
}
"""What a file's extension says that it holds. Extensions that several formats share (scn) promise nothing."""

ARCHIVES = {b"PK\3\4": "a ZIP archive", b"\x1f\x8b\x08": "a gzip file", b"BZh": "a bzip2 file"}
"""Bio-Formats unpacks these on its own, and what is inside would be read without any check."""

ORDINARY = frozenset(("tif", "tiff", "jpg", "jpeg", "jpe", "jp2", "j2k", "png", "bmp", "webp"))


def whole(path: Path) -> Facts:
    """``check``, for a file that is to be read from end to end.

    Raises BadInput also for tiles, strips or frames that the file itself declares empty: Bio-Formats reads them black.
    """
    facts = check(path)
    if facts.missing_tiles:
        message = f"{facts.missing_tiles} of its tiles are empty and would come out black"
        raise BadInput(message, path, "Export it again as a whole from its own software")
    return facts


def check(path: Path, *, sums: bool = True) -> Facts:
    """Facts of a file whose container is whole; for a container that is not known here, only that it is not empty.

    Raises BadInput for a file that is missing, a directory, unreadable, empty, not what its name promises, cut short,
    unfinished or damaged in its structure, Unsupported for an archive. Damage inside compressed pixels is for the
    decoder to find; without ``sums`` that is so for the checksums of a PNG's image data as well.
    """
    with Input(path) as source:
        found = _container(source)
        suffix = path.suffix.lower().lstrip(".")
        promised = PROMISES.get(suffix)
        both_pictures = suffix in ORDINARY and found in PICTURES
        if promised is not None and found != promised and not both_pictures:
            what = CALLED[found] if found else _describe(source)
            message = f"is named .{suffix} but holds {what}"
            raise BadInput(message, path, "Check where it came from, or give it the extension of what it is")
        if found == "png" and not sums:
            return pictures.png_outline(source)
        if found:
            return CHECKS[found](source)
        _refuse_archive(source)
        return Facts(None, source.size)


def container(path: Path) -> str | None:
    """The container's name by the file's first bytes, as in Facts. Raises BadInput for a file that cannot be read."""
    with Input(path) as source:
        return _container(source)


def _container(source: Input) -> str | None:
    head = source.upto(0, 16)
    suffix = source.path.suffix.lower()
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head.startswith(b"ZISRAWFILE"):
        return "czi"
    if head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "nd2" if suffix == ".nd2" else "jp2"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith(b"BM") and source.upto(14, 4)[1:] == b"\0\0\0":
        return "bmp"
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return "ole"
    if head.startswith(b"\xda\xce\xbe\x0a"):
        return "nd2"
    if source.upto(128, 4) == b"DICM" or (suffix in (".dcm", ".dicom") and dicom.is_bare(source)):
        return "dicom"
    return None


def _refuse_archive(source: Input) -> None:
    for magic, what in ARCHIVES.items():
        if source.upto(0, len(magic)) == magic:
            raise Unsupported(f"is {what}", source.path, "Unpack it first")


def _describe(source: Input) -> str:
    head = source.upto(0, 512)
    if not head.strip(b"\0"):
        return "only zero bytes"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return "unknown bytes"
    return "plain text" if all(sign.isprintable() or sign in "\r\n\t\f" for sign in text) else "unknown bytes"
