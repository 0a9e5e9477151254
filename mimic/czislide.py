"""What a plain CZI says of itself, told without Java and word for word as Bio-Formats 7.3.1 tells it.

Plain means: one scan of one plane in one file, a pyramid as scanners write it, label and macro as small CZIs inside,
and XML of which every fact is stated once and in the usual form. Of any other file Bio-Formats is asked: facts that
depend on which reader was there would be worse than a second of Java.

XML becomes OME-XML here, so that what is to be believed of it is decided in one place (``ome``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lxml import etree

from mimic import ome, omexml
from mimic.errors import BadInput
from mimic.model import Image, Level, Slide
from mimic.structure import CziFacts, Facts, czi
from mimic.structure.czi import Attachment, Subblock
from mimic.structure.reader import Input, Within

FORMAT = "Zeiss CZI"
JPEG_XR = 4
PICTURES = {"Label": "label image", "SlidePreview": "macro image"}
"""Attachments that Bio-Formats reads, and what it calls their images, in the order in which it does."""
PICTURES_MAX_BYTES = 256 << 20
DATE = re.compile(r"((?:19[7-9]|20[0-9])[0-9]-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:(\.[0-9]{3})[0-9]*)?Z?")
NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,3})?")
POWER = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,6})?")
TILE_BYTES = 1 << 20
"""Bio-Formats' tiles of a picture without any of its own: whole rows, about a megabyte of them."""
PYRAMID_TILE_PX = 1024
RGB = 3
OBJECTIVE = "Objective:0"


@dataclass(frozen=True, slots=True)
class Picture:
    """A label or macro: the file inside the file. ``facts`` are those of that file."""

    name: str
    offset: int
    size: int
    facts: CziFacts

    def opened(self, path: Path) -> Input:
        """Its bytes."""
        return Within(path, self.offset, self.size)


class _Odd(Exception):
    """The file is not plain: its message says why."""


def told(path: Path, facts: Facts, subblocks: Sequence[Subblock], *, source: str) -> Slide | str:
    """The slide, or why Bio-Formats must be asked. Raises BadInput for damage."""
    try:
        return _slide(path, facts, subblocks, source)
    except _Odd as odd:
        return str(odd)


def pictures(path: Path) -> tuple[Picture, ...]:
    """Label and macro, in the order of ``PICTURES``. Raises _Odd for others."""
    with Input(path) as file:
        found = [each for each in czi.attachments(file) if each.name in PICTURES]
    if [each.name for each in found] != list(PICTURES)[: len(found)]:
        # Bio-Formats calls the first one the label, whatever it is
        raise _Odd(f"its attachments are {', '.join(each.name for each in found)}")
    return tuple(_picture(path, each) for each in found)


def picture(path: Path, name: str) -> Picture | None:
    """The label or macro that has the name of an image; None where there is none that is plain."""
    try:
        return next((each for each in pictures(path) if each.name == name), None)
    except _Odd:
        return None


def _picture(path: Path, attachment: Attachment) -> Picture:
    if attachment.kind != "CZI" or not 0 < attachment.size <= PICTURES_MAX_BYTES:
        raise _Odd(f"its {attachment.name} is {attachment.size} bytes of {attachment.kind}")
    with Within(path, attachment.offset, attachment.size) as inner:
        try:
            facts = czi.check(inner)
            blocks = czi.subblocks(inner)
        except BadInput as error:  # what becomes of a damaged label Bio-Formats may say
            raise _Odd(f"its {attachment.name} is damaged") from error
    plain = facts.czi is not None and len(facts.czi.scenes) == 1 and not facts.czi.pyramid_subblocks
    if facts.czi is None or not plain or len(blocks) != 1 or facts.missing_tiles:
        raise _Odd(f"its {attachment.name} is no plain picture")
    return Picture(PICTURES[attachment.name], attachment.offset, attachment.size, facts.czi)


def _slide(path: Path, facts: Facts, subblocks: Sequence[Subblock], source: str) -> Slide:
    found = facts.czi
    if found is None or len(found.scenes) != 1 or any(block.scene > 0 for block in subblocks):
        raise _Odd("it has several scenes")
    if any(start for block in subblocks for _, start in block.plane):
        raise _Odd("its plane is not the first")
    _refuse_neighbours(path)
    attached = pictures(path)
    with Input(path) as file:
        root = czi.metadata(file)
        first = min(subblocks, key=lambda block: block.position)
        dated = b"AcquisitionTime" in czi.notes(file, first)
    sizes = [_levels(found, subblocks), *(_rows(each.facts.width_px, each.facts.height_px) for each in attached)]
    names = ["", *(each.name for each in attached)]
    document = ome.parse(etree.tostring(_ome(root, names, sizes, dated=dated)), path)
    images = tuple(
        Image(
            index=described.index,
            role=described.role,
            name=described.name,
            levels=levels,
            channels=RGB,
            rgb=True,
            pixel_type="uint8",
            bits=8,
            scale=described.scale,
            objective=described.objective,
            acquired=described.acquired,
        )
        for described, levels in zip(document.images, sizes, strict=True)
    )
    return Slide(path, (path,), FORMAT, source, images, document.scanner, document.warnings)


def _refuse_neighbours(path: Path) -> None:
    """Raises _Odd for files beside it that change what Bio-Formats reads: parts of the slide, or options."""
    stem = path.name.rpartition(".")[0]
    try:
        names = os.listdir(path.parent)  # noqa: PTH208 - names are enough
    except OSError as error:
        raise _Odd("its folder cannot be listed") from error
    for name in names:
        if name.startswith((f"{stem}(", f"{stem} (")) and name != path.name:
            raise _Odd(f"{name} beside it may be a part of it")
        if name == f"{path.name}.bfoptions":
            raise _Odd("there are options for Bio-Formats beside it")


def _levels(facts: CziFacts, subblocks: Sequence[Subblock]) -> tuple[Level, ...]:
    """The pyramid, of which Bio-Formats knows JPEG-XR ones with steps of 2 or of 3."""
    scene = facts.scenes[0]
    lower = [block for block in subblocks if not block.full]
    if not lower and len(subblocks) > 1:
        tile_px = max(block.width_px for block in subblocks), max(block.height_px for block in subblocks)
        return (Level(scene.width_px, scene.height_px, *tile_px),)
    if not lower:
        return _rows(scene.width_px, scene.height_px)
    if any(block.compression != JPEG_XR for block in subblocks):
        raise _Odd("its pyramid is not of JPEG-XR")
    scales = {(block.width_px // block.stored_width_px, block.height_px // block.stored_height_px) for block in lower}
    across = sorted({x for x, _ in scales})
    step = 2 if across[0] % 2 == 0 else RGB
    if any(x != y for x, y in scales) or across != [step**power for power in range(1, len(across) + 1)]:
        raise _Odd(f"its pyramid has the steps {across}")
    found = []
    for factor in (1, *across):
        width_px, height_px = scene.width_px // factor, scene.height_px // factor
        found.append(Level(width_px, height_px, min(PYRAMID_TILE_PX, width_px), min(PYRAMID_TILE_PX, height_px)))
    return tuple(found)


def _rows(width_px: int, height_px: int) -> tuple[Level, ...]:
    rows = max(1, min(height_px, TILE_BYTES // (width_px * RGB)))
    return (Level(width_px, height_px, width_px, rows),)


def _ome(
    root: etree._Element | None, names: Sequence[str], sizes: Sequence[tuple[Level, ...]], *, dated: bool
) -> etree._Element:
    """The facts of a CZI's XML as OME-XML. ``dated``: subblocks have dates, which count where the XML has none."""
    made = etree.Element("OME", nsmap={None: omexml.SCHEMA})
    top = _metadata(root)
    instrument = etree.SubElement(made, "Instrument", ID="Instrument:0")
    objective = _instrument(instrument, top)
    date = _date(top, dated=dated)
    scale = _scale(top)
    for index, (called, levels) in enumerate(zip(names, sizes, strict=True)):
        image = etree.SubElement(made, "Image", ID=f"Image:{index}", Name=called)
        if date is not None:
            etree.SubElement(image, "AcquisitionDate").text = date
        etree.SubElement(image, "InstrumentRef", ID="Instrument:0")
        if objective and not index:
            etree.SubElement(image, "ObjectiveSettings", ID=objective)
        size = {"SizeX": levels[0].width_px, "SizeY": levels[0].height_px, "SizeZ": 1, "SizeC": RGB, "SizeT": 1}
        fixed: dict[str, str | int] = {
            "ID": f"Pixels:{index}",
            "DimensionOrder": "XYCZT",
            "Type": "uint8",
            "SignificantBits": "8",
        }
        pixels = etree.SubElement(image, "Pixels")
        for name, value in (fixed | size | scale).items():
            pixels.set(name, str(value))
        etree.SubElement(pixels, "Channel", ID=f"Channel:{index}:0", SamplesPerPixel=str(RGB))
        etree.SubElement(pixels, "MetadataOnly")
    return made


def _metadata(root: etree._Element | None) -> etree._Element | None:
    """The element that holds all others. Raises _Odd for one that is not where it should be, or says odd things."""
    if root is None:
        return None
    inside = [child for child in root if isinstance(child.tag, str)]
    if root.tag != "ImageDocument" or len(inside) != 1 or inside[0].tag != "Metadata":
        raise _Odd("its XML has another root than ImageDocument/Metadata")
    top = inside[0]
    if top.find(".//SizeV") is not None:
        raise _Odd("its XML speaks of views")
    if top.find(".//HardwareSetting//Microscope") is not None or top.find(".//ObjectiveChanger") is not None:
        raise _Odd("its XML describes the microscope's hardware")
    bits = top.find(".//Information//ComponentBitCount")
    if bits is not None and bits.text != "8":
        raise _Odd(f"its XML tells of {bits.text} bits")
    return top


def _one(top: etree._Element | None, path: str) -> etree._Element | None:
    """The element at ``path``; None when there is none. Raises _Odd for several: the order would matter."""
    found = top.findall(path) if top is not None else []
    if len(found) > 1:
        raise _Odd(f"its XML has {len(found)} {path.rpartition('/')[2]}")
    return found[0] if found else None


def _instrument(instrument: etree._Element, top: etree._Element | None) -> str | None:
    """Fill in microscope and objective; the objective's ID."""
    described = _one(_one(top, ".//Information"), ".//Instrument")
    microscope = _one(described, ".//Microscope")
    maker = _one(microscope, "./Manufacturer")
    if maker is not None:
        told = {name: _text(_one(maker, f"./{name}")) for name in ("Manufacturer", "Model")}
        etree.SubElement(instrument, "Microscope", {name: text for name, text in told.items() if text is not None})
    objective = _one(described, ".//Objective")
    if objective is None:
        return None
    stated = {}
    for name in ("NominalMagnification", "CalibratedMagnification"):
        element = _one(objective, f".//{name}")
        text = _text(element)
        if element is not None and (text is None or not POWER.fullmatch(text)):
            raise _Odd(f"its XML states a {name} of {text}")
        if text is not None:
            stated[name] = repr(float(text))
    described = etree.SubElement(instrument, "Objective", ID=OBJECTIVE)
    for name, value in stated.items():
        described.set(name, value)
    return OBJECTIVE


def _date(top: etree._Element | None, *, dated: bool) -> str | None:
    """The date of acquisition, without a zone and to the millisecond, as Bio-Formats gives it."""
    element = _one(_one(_one(top, ".//Information"), ".//Image"), ".//AcquisitionDateAndTime")
    if element is None:
        if dated:
            raise _Odd("only its subblocks are dated")
        return None
    found = DATE.fullmatch(_text(element) or "")
    if found is None:
        raise _Odd(f"its XML states the date {_text(element)}")
    return found[1] + (found[2] or "")


def _scale(top: etree._Element | None) -> dict[str, str]:
    """PhysicalSizeX and PhysicalSizeY in micrometres, where stated."""
    scaling = _one(top, ".//Scaling")
    found: dict[str, str] = {}
    for axis in ("X", "Y"):
        value = _one(_one(scaling, f"./Items/Distance[@Id='{axis}']"), ".//Value")
        if value is None:
            continue
        text = _text(value)
        if text is None or not NUMBER.fullmatch(text):
            raise _Odd(f"its XML states a pixel size of {text}")
        size_um = float(text) * 1e6
        if size_um > 0:
            found |= {f"PhysicalSize{axis}": repr(size_um), f"PhysicalSize{axis}Unit": "µm"}
    return found


def _text(element: etree._Element | None) -> str | None:
    return None if element is None or len(element) else element.text
