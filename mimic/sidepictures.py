"""Label and macro decoded strictly: Bio-Formats gives what is left of a damaged JPEG without a word.

TIFF family: stripped pages that are JPEG; DICOM: the frames of label, overview and thumbnail instances.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pydicom
import simplejpeg  # type: ignore[import-untyped]
import tifffile
from pydicom.encaps import generate_frames
from pydicom.errors import InvalidDicomError

from mimic import jpegs, structure
from mimic.errors import BadInput
from mimic.model import Slide
from mimic.structure.reader import COPY_AGAIN

JPEG = 7
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
READ_ERRORS = (
    *(tifffile.TiffFileError, InvalidDicomError, OSError, ValueError, LookupError, TypeError, AttributeError),
    *(struct.error, EOFError, NotImplementedError),
)
REMEDY = f"{COPY_AGAIN}, or leave it out with --label drop --macro drop"


def prove(slide: Slide) -> None:
    """Raises BadInput for a label, macro or thumbnail of which libjpeg-turbo complains."""
    for path in slide.files:
        kind = structure.container(path)
        try:
            found = list(_of_tiff(path) if kind == "tiff" else _of_dicom(path) if kind == "dicom" else ())
        except READ_ERRORS as error:
            raise BadInput(f"the file is damaged: its label or macro cannot be read ({error})", path, REMEDY) from error
        for name, stream in found:
            try:
                simplejpeg.decode_jpeg(stream, "GRAY", fastdct=True, strict=True)
            except ValueError as error:
                raise BadInput(f"the file is damaged: {name} does not decode: {error}", path, REMEDY) from error


def _of_tiff(path: Path) -> Iterator[tuple[str, bytes]]:
    """JPEG strips of the pages that are not tiled. An NDPI's are decoded elsewhere (strips.py)."""
    with tifffile.TiffFile(path) as tiff:
        if tiff.is_ndpi:
            return
        for number, page in enumerate(tiff.pages):
            if not isinstance(page, tifffile.TiffPage) or page.is_tiled or page.compression != JPEG:
                continue
            tables = page.tags.get(347)
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                tiff.filehandle.seek(offset)
                data = tiff.filehandle.read(count)
                merged = jpegs.merge(bytes(tables.value), data) if tables is not None else data
                yield f"the picture of directory {number}", merged


def _of_dicom(path: Path) -> Iterator[tuple[str, bytes]]:
    """Frames of an instance that is neither a volume nor of another coding than baseline JPEG."""
    facts = structure.check(path).dicom
    if facts is None or facts.transfer_syntax_uid != JPEG_BASELINE or "VOLUME" in (facts.image_type or "").upper():
        return
    data = pydicom.dcmread(path)
    for number, frame in enumerate(generate_frames(data.PixelData, number_of_frames=facts.frames)):
        yield f"frame {number} of its picture ({facts.image_type})", frame
