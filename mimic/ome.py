"""OME-XML -> images, scale, objective. Units are converted here and nowhere else.

Bio-Formats describes every format in this one language, showinf and the in-process reader alike. ``omexml`` makes the
document safe, small and sound value by value first, so that a dozen attributes can be read as they are: the classes of
a whole schema took a quarter of a second to import (tests compare with what ome-types reads).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path

from lxml import etree

from mimic import omexml
from mimic.lengths import LARGEST_UM, NO_LENGTH, SMALLEST_UM, UM_PER_UNIT
from mimic.model import Channel, Colour, Objective, Role, Scale
from mimic.naming import NAME_MAX_CHARS

PRINT_DPI = (72, 90, 96, 100, 120, 144, 150, 180, 200, 240, 300, 350, 360, 400, 600, 720, 1000, 1200)
"""Resolutions that printers, screens and cameras put into TIFF and JPEG tags: 352.8, 264.6, 84.7 um and so on."""

LIGHT_UM = (0.1, 3.0)
"""Wavelengths between hard ultraviolet and infrared; others are a writer's placeholder."""
UNLABELLED = frozenset(("Brightfield", "Phase", "DIC", "HoffmanModulation", "ObliqueIllumination", "PolarizedLight"))
"""OME's contrast methods that send light through the sample."""

ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("label", "label image", "slide label", "barcode", "barcode image"), "label"),
    **dict.fromkeys(("macro", "macro image", "overview", "overview image", "slide overview", "localizer"), "macro"),
    **dict.fromkeys(("slide preview", "slidepreview", "prescan", "prescan image"), "macro"),
    **dict.fromkeys(("thumbnail", "thumbnail image", "document thumbnail", "preview image"), "thumbnail"),
    **dict.fromkeys(("macro mask", "macro mask image", "mask image", "sample mask", "map", "map image"), "thumbnail"),
}
"""Whole names, case and underscores aside. Seen in documents of CZI, SVS, NDPI, DICOM, and in the readers of SCN, VSI,
BIF and VMS of Bio-Formats 7.3.1; "barcode", "slide preview", "prescan" and the like are usual but were not seen."""
VMS_SCAN = " full resolution"
DICOM_IMAGE_TYPE = re.compile(r"(?:ORIGINAL|DERIVED)\\[A-Z]*\\(LABEL|OVERVIEW|LOCALIZER|THUMBNAIL)(?:\\|$)")


@dataclass(frozen=True, slots=True)
class OmeImage:
    """One image (Bio-Formats: series) as the document describes it; sizes in pixels, planes and frames.

    ``channels`` counts Channel elements, of which RGB is one with ``samples_per_pixel`` 3. ``scale`` and ``objective``
    are None where unknown, and for every image that is no scan: a CZI's label inherits the slide's pixel size, an
    NDPI's macro its objective, and both are wrong.
    """

    index: int
    id: str
    name: str
    role: Role
    size_x: int
    size_y: int
    size_z: int
    size_c: int
    size_t: int
    pixel_type: str
    significant_bits: int | None
    channels: int
    samples_per_pixel: int
    scale: Scale | None
    objective: Objective | None
    acquired: datetime | None
    channel_facts: tuple[Channel, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """The images in the file's order, the scanner's name, and a sentence for each fact that was not believed."""

    images: tuple[OmeImage, ...]
    scanner: str | None
    warnings: tuple[str, ...]


def parse(xml: str | bytes, path: Path) -> Document:
    """Read an OME-XML document that describes ``path``.

    Raises BadInput for anything that is not a complete, harmless OME 2016-06 document with at least one image.
    """
    root = omexml.read(xml, path)
    elements = omexml.named(root, "Image")
    names = [element.get("Name", "") for element in elements]
    ids = [element.get("ID", "") for element in elements]
    roles = _roles(names, [omexml.text_of(element, "Description") for element in elements])
    channels = [_channels(element) for element in elements]
    omexml.strip(root)
    scans = [index for index, role in enumerate(roles) if role == "scan"]
    warnings = list(omexml.mend(root, units={*UM_PER_UNIT, *NO_LENGTH}, doubted=scans))
    omexml.check_images(root, path)
    images = []
    for index, element in enumerate(elements):
        scale, doubt = _scale(_pixels(element), index) if index in scans else (None, None)
        warnings += [doubt] if doubt else []
        images.append(
            _described(
                element,
                index=index,
                id=ids[index],
                name=names[index],
                role=roles[index],
                scale=scale,
                objective=_objective(element, root) if index in scans else None,
                channel_facts=channels[index],
            )
        )
    return Document(tuple(images), _scanner(root), tuple(warnings))


def role_of(name: str, description: str = "") -> Role:
    """The role of an image by its whole name, else by the DICOM ImageType that Bio-Formats puts in its description.

    Only whole names count: "Label-free scan.czi" is tissue. A mask or a focus map is neither scan nor macro, and mimic
    needs one macro at most: it gets the role of a thumbnail, which no output uses.
    """
    words = " ".join(name.casefold().replace("_", " ").split())
    if words in ROLES:
        return ROLES[words]
    found = DICOM_IMAGE_TYPE.match(description)
    return ROLES[found.group(1).casefold()] if found else "scan"


def _roles(names: list[str], descriptions: list[str]) -> list[Role]:
    """The role of each image. Hamamatsu's VMS puts one prefix before " full resolution", " macro" and " map"."""
    prefixes = {name.removesuffix(VMS_SCAN) for name in names if name.endswith(VMS_SCAN)}
    bare = [name.rpartition(" ")[2] if name.rpartition(" ")[0] in prefixes else name for name in names]
    return [role_of(name, description) for name, description in zip(bare, descriptions, strict=True)]


def _pixels(image: etree._Element) -> etree._Element:
    """The one that ``omexml.check_images`` has found there."""
    return omexml.named(image, "Pixels")[0]


def _described(
    image: etree._Element,
    *,
    index: int,
    id: str,
    name: str,
    role: Role,
    scale: Scale | None,
    objective: Objective | None,
    channel_facts: tuple[Channel, ...],
) -> OmeImage:
    """What the element says, beside what was judged before it was cut down."""
    pixels = _pixels(image)
    channels = omexml.named(pixels, "Channel")
    bits, date = pixels.get("SignificantBits"), omexml.text_of(image, "AcquisitionDate")
    return OmeImage(
        index=index,
        id=id,
        name=name,
        role=role,
        size_x=int(pixels.get("SizeX", "")),
        size_y=int(pixels.get("SizeY", "")),
        size_z=int(pixels.get("SizeZ", "")),
        size_c=int(pixels.get("SizeC", "")),
        size_t=int(pixels.get("SizeT", "")),
        pixel_type=pixels.get("Type", ""),
        significant_bits=int(bits) if bits else None,
        channels=len(channels),
        samples_per_pixel=int(channels[0].get("SamplesPerPixel", "1")) if channels else 1,
        scale=scale,
        objective=objective,
        acquired=datetime.fromisoformat(date) if date else None,
        channel_facts=channel_facts,
    )


def _scale(pixels: etree._Element, index: int) -> tuple[Scale | None, str | None]:
    """The pixel size, and a doubt about it. One axis alone is not enough: nothing says that pixels are square."""
    x_um, y_um = (_size_um(pixels, axis) for axis in "XY")
    if x_um is None and y_um is None:
        return None, None
    if x_um is None or y_um is None:
        return None, f"image {index}: a pixel size is stated for one axis only and was ignored"
    return judged((x_um, y_um), (pixels.get("PhysicalSizeX", ""), pixels.get("PhysicalSizeXUnit", "")), index)


def judged(size_um: tuple[float, float], across: tuple[str, str], index: int) -> tuple[Scale | None, str | None]:
    """The pixel size of image ``index``, None where it cannot be a microscope's, and a doubt about it.

    ``across`` is the number and the unit that the file states for x.
    """
    for each_um in size_um:
        reason = _absurd(each_um)
        if reason:
            return None, f"image {index}: the stated pixel size of {each_um:.6g} um {reason} and was ignored"
    doubt = None
    if size_um == (1.0, 1.0):
        doubt = f"image {index}: a pixel size of exactly 1 um is what some writers put when they know none"
    note = f"PhysicalSizeX = {across[0]} {across[1].replace('µ', 'u')}"  # notes end up in an ASCII tag
    return Scale(*size_um, "file", note), doubt


def _size_um(pixels: etree._Element, axis: str) -> float | None:
    """``omexml.mend`` has left a size with its unit, or neither."""
    size = pixels.get(f"PhysicalSize{axis}")
    return micrometres(float(size), pixels.get(f"PhysicalSize{axis}Unit", "")) if size is not None else None


def _channels(image: etree._Element) -> tuple[Channel, ...]:
    """Name, colour and emission of each channel, value by value: one that makes no sense is as good as absent.

    Read before the document is cut down. Light is transmitted by the word of the channel's illumination or contrast.
    """
    found = []
    for index, element in enumerate(channel for pixels in omexml.named(image, "Pixels") for channel in _of(pixels)):
        through = element.get("IlluminationType") == "Transmitted" or element.get("ContrastMethod") in UNLABELLED
        name = " ".join(element.get("Name", "").split())[:NAME_MAX_CHARS]
        emission_um = _wavelength_um(element)
        emission_nm = round(emission_um * 1000, 6) if emission_um is not None else None
        found.append(Channel(index, name, colour(element.get("Color")), emission_nm, transmitted=through))
    return tuple(found)


def _of(pixels: etree._Element) -> list[etree._Element]:
    return omexml.named(pixels, "Channel")


def _wavelength_um(element: etree._Element) -> float | None:
    """The emission wavelength, where it is one that a detector of light sees."""
    try:
        stated = float(element.get("EmissionWavelength", ""))
    except ValueError:
        return None
    value = micrometres(stated, element.get("EmissionWavelengthUnit", "nm")) if math.isfinite(stated) else None
    return value if value is not None and LIGHT_UM[0] <= value <= LIGHT_UM[1] else None


def colour(text: str | None) -> Colour | None:
    """OME's colour: red, green, blue and alpha from the highest byte down, as a signed 32-bit number; -1 is white.

    None for what is no such number, and for black, in which nothing could be seen. Alpha is not used: writers disagree
    on whether 0 or 255 is opaque.
    """
    if text is None or not re.fullmatch(r"[+-]?[0-9]{1,10}", text.strip()):
        return None
    value = int(text)
    if not -(2**31) <= value < 2**32:
        return None
    red, green, blue, _ = (value & 0xFFFFFFFF).to_bytes(4, "big")
    return (red, green, blue) if red or green or blue else None


def micrometres(size: float, unit: str) -> float | None:
    """``size`` in micrometres, rounded once: 4.99E-4 mm is 0.499."""
    if unit not in UM_PER_UNIT:
        return None
    try:
        return float(Fraction(repr(size)) * UM_PER_UNIT[unit])
    except OverflowError:
        return math.inf


def _absurd(size_um: float) -> str | None:
    """Why a pixel size cannot be a microscope's, or None."""
    dpi = next((dpi for dpi in PRINT_DPI if math.isclose(size_um * dpi, 25_400, rel_tol=1e-3)), None)
    if dpi is not None:
        return f"is a print resolution of {dpi} dpi"
    return None if SMALLEST_UM <= size_um <= LARGEST_UM else "is not a microscope's"


def _objective(image: etree._Element, root: etree._Element) -> Objective | None:
    """The objective that the image's ObjectiveSettings names, else the only one of the instrument it names."""
    instruments = {box.get("ID"): omexml.named(box, "Objective") for box in omexml.named(root, "Instrument")}
    for settings in omexml.named(image, "ObjectiveSettings"):
        every = [lens for lenses in instruments.values() for lens in lenses]
        return next((_power(lens, "") for lens in every if lens.get("ID") == settings.get("ID")), None)
    for reference in omexml.named(image, "InstrumentRef"):
        lenses = instruments.get(reference.get("ID"), [])
        return _power(lenses[0], ", the instrument's only objective") if len(lenses) == 1 else None
    return None


def _power(lens: etree._Element, remark: str) -> Objective | None:
    nominal, calibrated = lens.get("NominalMagnification"), lens.get("CalibratedMagnification")
    if nominal is not None:
        return Objective(float(nominal), "file", f"NominalMagnification{remark}")
    if calibrated is not None:
        return Objective(float(calibrated), "file", f"CalibratedMagnification (calibrated){remark}")
    return None


def _scanner(root: etree._Element) -> str | None:
    """Manufacturer and model of the first microscope that has either."""
    for instrument in omexml.named(root, "Instrument"):
        for scope in omexml.named(instrument, "Microscope"):
            words = [scope.get("Manufacturer", "").strip(), scope.get("Model", "").strip()]
            if any(words):
                return " ".join(word for word in words if word)
    return None
