"""Untrusted OME-XML -> a small, sound tree that holds only what mimic uses.

A document may be hostile and may be odd. It is parsed by a hardened lxml, everything mimic does not use is cut away
(annotations, people, filters, planes: they are large and private), and what is left is made sound value by value: one
bad optional value is no reason to refuse a whole document.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from lxml import etree

from mimic.errors import BadInput

SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
"""The only schema Bio-Formats 5.3 and newer writes."""

KEPT: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    name: (frozenset(children.split()), frozenset(attributes.split()))
    for name, children, attributes in (
        ("OME", "Instrument Image", ""),
        ("Instrument", "Microscope Objective", "ID"),
        ("Microscope", "", "Manufacturer Model"),
        ("Objective", "", "ID NominalMagnification CalibratedMagnification"),
        ("Image", "AcquisitionDate InstrumentRef ObjectiveSettings Pixels", "ID Name"),
        ("AcquisitionDate", "", ""),
        ("InstrumentRef", "", "ID"),
        ("ObjectiveSettings", "", "ID"),
        (
            "Pixels",
            "Channel",
            "ID DimensionOrder Type SignificantBits SizeX SizeY SizeZ SizeC SizeT "
            "PhysicalSizeX PhysicalSizeXUnit PhysicalSizeY PhysicalSizeYUnit",
        ),
        ("Channel", "", "ID SamplesPerPixel"),
    )
}
"""Element -> children and attributes that mimic uses; nobody sees anything else."""

UNIT_ALIASES = {"\u03bcm": "µm", "um": "µm", "micron": "µm", "microns": "µm", "inch": "in"}
"""Other spellings of a micrometre and an inch: the schema wants the micro sign (U+00B5), Greek mu is U+03BC."""


def read(xml: str | bytes, path: Path) -> etree._Element:
    """The root element, parsed without entities, network or DTD."""
    data = xml.encode("utf-8", "replace") if isinstance(xml, str) else xml
    # The parser would expand a DTD's entities inside attributes before docinfo can be asked.
    if b"<!DOCTYPE" in data[: data.find(b"<OME")]:
        raise _hostile(path)
    # encoding: what comes from Bio-Formats is UTF-8, whatever a str's own declaration says.
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise bad(f"its OME-XML cannot be parsed ({error})", path) from error
    docinfo = root.getroottree().docinfo
    if docinfo.doctype or docinfo.internalDTD is not None:
        raise _hostile(path)
    if root.tag != f"{{{SCHEMA}}}OME":
        raise bad(f"its metadata is no OME-XML of schema 2016-06 but {str(root.tag)[:100]!r}", path)
    return root


def _hostile(path: Path) -> BadInput:
    return BadInput("its OME-XML has a DOCTYPE, which no microscope writes", path, "Do not trust this file")


def bad(message: str, path: Path) -> BadInput:
    return BadInput(message, path, "Check that the file is complete: export it again from the scanner's software")


def _local(element: etree._Element) -> str:
    """The name without its namespace; an entity reference has none and a foreign element is not OME's."""
    prefix = f"{{{SCHEMA}}}"
    tag = element.tag
    return tag.removeprefix(prefix) if isinstance(tag, str) and tag.startswith(prefix) else ""


def named(parent: etree._Element, name: str) -> list[etree._Element]:
    return [child for child in parent if _local(child) == name]


def text_of(parent: etree._Element, name: str) -> str:
    return next((child.text or "" for child in named(parent, name)), "")


def strip(root: etree._Element) -> None:
    """Remove every element and attribute that is not in KEPT."""
    pending = [root]
    while pending:
        element = pending.pop()
        children, attributes = KEPT[_local(element)]
        for name in [name for name in element.attrib if name not in attributes]:
            del element.attrib[name]
        for child in list(element):
            if _local(child) in children:
                pending.append(child)
            else:
                element.remove(child)


def mend(root: etree._Element, *, units: Collection[str], doubted: Collection[int]) -> Iterator[str]:
    """Make ids plain and references whole, drop optional values that are no values.

    ``units`` are the length units that may stay. Yields a sentence for each size dropped from the images whose index is
    in ``doubted``. Ids are renumbered so that doubled and dangling ones cannot mislead.
    """
    instruments = _renumber("Instrument", named(root, "Instrument"))
    objectives = _renumber(
        "Objective", [lens for instrument in named(root, "Instrument") for lens in named(instrument, "Objective")]
    )
    for lens in root.iter(f"{{{SCHEMA}}}Objective"):
        _drop_unless_positive(lens, "NominalMagnification")
        _drop_unless_positive(lens, "CalibratedMagnification")
    _renumber("Image", named(root, "Image"))
    for index, image in enumerate(named(root, "Image")):
        _relink(image, "InstrumentRef", instruments)
        _relink(image, "ObjectiveSettings", objectives)
        _mend_date(image)
        for pixels in named(image, "Pixels"):
            pixels.set("DimensionOrder", "XYCZT")  # demanded by the schema, of no use here
            _renumber("Pixels", [pixels], start=index)
            _renumber("Channel", named(pixels, "Channel"))
            doubts = [doubt for axis in "XY" for doubt in _mend_size(pixels, axis, index, units)]
            yield from doubts if index in doubted else ()
            _drop_unless_integer(pixels, "SignificantBits")


def _renumber(kind: str, elements: list[etree._Element], *, start: int = 0) -> dict[str, str]:
    """Give each element a plain id; returns old -> new, the first of doublets."""
    table: dict[str, str] = {}
    for number, element in enumerate(elements, start):
        table.setdefault(element.get("ID", ""), f"{kind}:{number}")
        element.set("ID", f"{kind}:{number}")
    return table


def _relink(image: etree._Element, name: str, table: dict[str, str]) -> None:
    """Point the first reference of that name at its target's new id; remove it when it has none, and all others."""
    for position, reference in enumerate(named(image, name)):
        target = table.get(reference.get("ID", ""))
        if position or target is None:
            image.remove(reference)
        else:
            reference.set("ID", target)


def _number(text: str | None) -> float | None:
    """A finite number above zero, else None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _drop_unless_positive(element: etree._Element, name: str) -> None:
    value = _number(element.get(name))
    if value is not None:
        element.set(name, repr(value))
    elif name in element.attrib:
        del element.attrib[name]


def _drop_unless_integer(element: etree._Element, name: str) -> None:
    if name in element.attrib and not re.fullmatch(r"[1-9][0-9]{0,3}", element.attrib[name]):
        del element.attrib[name]


def _mend_size(pixels: etree._Element, axis: str, index: int, units: Collection[str]) -> Iterator[str]:
    """Drop a PhysicalSize that is no positive number or has a unit that OME does not know."""
    size, unit = f"PhysicalSize{axis}", f"PhysicalSize{axis}Unit"
    raw, raw_unit = pixels.get(size), pixels.get(unit, "µm").strip()
    word = UNIT_ALIASES.get(raw_unit, raw_unit)
    value = _number(raw)
    known = word in units
    pixels.attrib.pop(unit, None)
    pixels.attrib.pop(size, None)
    if value is not None and known:
        pixels.set(size, repr(value))
        pixels.set(unit, word)
    elif raw is not None:
        yield f"image {index}: {size} = {raw[:40]!r} {raw_unit[:20]!r} is no length and was ignored"


def _mend_date(image: etree._Element) -> None:
    """Leave one AcquisitionDate that is a date. A clock that was never set (1970, 0001) is no date."""
    for position, element in enumerate(named(image, "AcquisitionDate")):
        try:
            moment = datetime.fromisoformat((element.text or "").strip())
        except ValueError:
            moment = datetime.min
        if position or moment.year < 1980:
            image.remove(element)
        else:
            element.text = moment.isoformat()


def check_images(root: etree._Element, path: Path) -> None:
    """Refuse a document that describes no image, or one that cannot be (``check_image``). Raises BadInput."""
    images = named(root, "Image")
    if not images:
        raise bad("its OME-XML describes no image", path)
    for index, image in enumerate(images):
        check_image(index, image, path)


def check_image(index: int, image: etree._Element, path: Path) -> None:
    """Refuse an image without exactly one Pixels of plain sizes: below 2**31 px, Java's and every reader's limit."""
    pixels = named(image, "Pixels")
    if len(pixels) != 1:
        raise bad(f"image {index} of its OME-XML has {len(pixels)} Pixels elements instead of one", path)
    counts = [(pixels[0], f"Size{axis}") for axis in "XYZCT"]
    counts += [(channel, "SamplesPerPixel") for channel in named(pixels[0], "Channel") if len(channel.attrib) > 1]
    for element, name in counts:
        text = element.get(name, "")
        if not re.fullmatch(r"[0-9]{1,10}", text) or not 0 < int(text) < 2**31:
            raise bad(f"image {index} of its OME-XML has {name} = {text[:40]!r}", path)
    kind = pixels[0].get("Type", "")
    if not re.fullmatch(r"u?int(8|16|32)|float|double|complex|double-complex|bit", kind):
        raise bad(f"image {index} of its OME-XML has pixel type {kind[:40]!r}", path)
