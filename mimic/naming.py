"""Where an output goes, and what it is called. Pure."""

from __future__ import annotations

from pathlib import Path

from mimic.errors import UsageError
from mimic.model import Image, Options, Slide

NAME_MAX_CHARS = 60
"""Of an image's own name, as a file states it."""
ENDINGS_REFUSED = (
    *(".svs", ".tif", ".tiff", ".btf", ".czi", ".ndpi", ".scn", ".bif", ".vsi", ".mrxs", ".dcm"),
    *(".png", ".jpg", ".jpeg", ".jp2", ".bmp", ".webp"),
)
"""Not a folder's name: whoever writes this after -o means a file."""


def name_outputs(
    slide: Slide, images: tuple[Image, ...], output: Path | None, options: Options, stem: str | None
) -> list[Path]:
    """The output of each of ``images``: the file that ``output`` names, else slide.svs, or slide_s1.svs and so on.

    ``stem`` replaces the input's name. Raises UsageError for several images that shall go into one file.
    """
    folder, own_stem = _home(slide)
    folder, stem = folder if output is None else output, stem or own_stem
    single = len(images) == 1
    if output is not None and is_file_name(output):
        if not single:
            remedy = "Give a folder with -o, or choose one image with --image"
            raise UsageError(f"{len(images)} scan images cannot go into the one file {output.name}", slide.path, remedy)
        return [output]
    numbered = not single or (options.image_index is not None and len(slide.scans()) > 1)
    places = [scan.index for scan in slide.scans()]
    names = []
    for image in images:
        number = places.index(image.index) + 1 if image.index in places else image.index
        names.append(folder / (f"{stem}_s{number}.svs" if numbered else f"{stem}.svs"))
    return names


def _home(slide: Slide) -> tuple[Path, str]:
    """Where an output goes by default, and its name: beside the input. A DICOM series is its folder: its files are
    named by numbers, and any of them leads to the same slide."""
    folder = slide.path.parent
    if slide.format == "DICOM" and len(slide.files) > 1 and folder.name:
        return folder.parent, folder.name
    return folder, output_stem(slide.path)


def output_stem(path: Path) -> str:
    """The input's name without its ending: "a.ome.tif" -> "a", "1.2.3.dcm" -> "1.2.3".

    A DICOM file is often named by its UID alone, and ".3" is no ending: "1.2.3" and "1.2.4" are two slides.
    """
    stem = path.name if path.suffix[1:].isdecimal() else path.stem
    return stem[:-4] if stem.lower().endswith(".ome") and len(stem) > 4 else stem


def is_file_name(output: Path) -> bool:
    """Whether ``-o`` names a file: it ends in .svs. Raises UsageError for an ending that readers would refuse."""
    if output.suffix == ".svs":
        return True
    if output.suffix.lower() in ENDINGS_REFUSED:
        remedy = "End it in .svs in lower case: Bio-Formats, cuCIM and slideio go by it"
        raise UsageError(f"the output cannot be named {output.name}", remedy=remedy)
    return False
