"""A CZI's own directory, or a DICOM's header, against what Bio-Formats says of it: sizes, and which blocks make up a
scene. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from mimic.errors import BadInput
from mimic.model import Image, Slide
from mimic.mosaic import Mosaic
from mimic.structure import CziFacts, DicomFacts

REMEDY = "It would give a wrong slide: save it again from its own software"


def compare(slide: Slide, czi: CziFacts) -> tuple[str, ...]:
    """Check every scan's size: Bio-Formats halves a CZI whose pyramid is flagged type 1, and the file's word counts.

    Returns warnings about places that were never scanned; raises BadInput with both sizes.
    """
    scans = slide.scans()
    if len(czi.scenes) != len(scans):
        message = f"its own directory has {len(czi.scenes)} scenes, Bio-Formats finds {len(scans)}"
        raise BadInput(message, slide.path, REMEDY)
    warnings = []
    for scan, scene in zip(scans, czi.scenes, strict=True):
        theirs = f"{scan.levels[0].width_px} x {scan.levels[0].height_px} px"
        own = f"{scene.width_px} x {scene.height_px} px"
        if theirs != own:
            message = f"its own directory says {own} for image {scan.index}, Bio-Formats says {theirs}"
            raise BadInput(message, slide.path, REMEDY)
        if scene.covered_px is not None and not scene.covered:
            bare = 1 - scene.covered_px / (scene.width_px * scene.height_px)
            colour = "white" if scan.rgb else "black"
            warnings.append(f"{bare:.1%} of image {scan.index} was not scanned and is written {colour}")
    return tuple(warnings)


def compare_dicom(slide: Slide, headers: Iterable[DicomFacts]) -> None:
    """Check the size of the scan of a DICOM whole-slide series against the total pixel matrices of its volume images.

    Raises BadInput with both sizes. A series of several scans, or without such an image, is not judged.
    """
    volumes = [head for head in headers if head.matrix_width_px and "VOLUME" in (head.image_type or "").upper()]
    scans = slide.scans()
    if not volumes or len(scans) != 1:
        return
    sizes = {(head.matrix_width_px or 0, head.matrix_height_px or 0) for head in volumes}
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    size = scans[0].levels[0]
    if (size.width_px, size.height_px) != (width, height):
        theirs = f"{size.width_px} x {size.height_px} px"
        message = f"its own header says {width} x {height} px for its largest image, Bio-Formats says {theirs}"
        raise BadInput(message, slide.path, REMEDY)


def mosaic_of(slide: Slide, image: Image, czi: CziFacts) -> Mosaic | None:
    """The blocks of a CZI's scan image; None for its label and macro, which are attachments."""
    scans = slide.scans()
    if image not in scans:
        return None
    return Mosaic(czi, czi.scenes[scans.index(image)], slide.path)
