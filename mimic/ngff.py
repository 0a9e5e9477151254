"""OME-Zarr's documents: what a folder is, and which images it holds. No chunk is opened.

A group of Zarr 2 keeps its attributes in .zattrs, OME-Zarr 0.4 at their top; one of Zarr 3 keeps them in zarr.json,
OME-Zarr 0.5 below "ome". An image is a group with "multiscales"; bioformats2raw puts each image of a file into such a
group, in a root with "bioformats2raw.layout", and Bio-Formats' OME-XML into OME/METADATA.ome.xml.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

from mimic import lengths
from mimic.errors import BadInput, Unsupported
from mimic.model import Channel, Colour, Scale
from mimic.naming import NAME_MAX_CHARS
from mimic.structure.zarr import read

Json = dict[str, Any]

MEMBERS = (".zgroup", ".zattrs", ".zarray", ".zmetadata", "zarr.json")
"""Documents in the root of a store, of which one may be named instead of its folder."""
ZIPPED = (".ozx", ".zarr.zip")
LAYOUT = "bioformats2raw.layout"
AXES = "tczyx"
KINDS = {"time": "t", "channel": "c"}
OTHER = "?"
"""An axis that is none of AXES; only one of length 1 can be read."""
METRES = (
    "Ym yottameter, Zm zettameter, Em exameter, Pm petameter, Tm terameter, Gm gigameter, Mm megameter, km kilometer, "
    "hm hectometer, m meter, dm decimeter, cm centimeter, mm millimeter, µm micrometer, nm nanometer, pm picometer, "
    "fm femtometer, am attometer, zm zeptometer, ym yoctometer, Å angstrom, in inch, ft foot, yd yard, mi mile, "
    "pc parsec"
)
UM_PER_UNIT: Mapping[str, Fraction] = {
    **{name: lengths.UM_PER_UNIT[symbol] for symbol, name in (pair.split() for pair in METRES.split(","))},
    **{symbol: Fraction(1) for symbol in ("um", "µm", "μm", "micron", "micrometre")},
    **{symbol: lengths.UM_PER_UNIT[symbol] for symbol in ("mm", "nm")},
}
"""Micrometres in each unit of the specification, by its name, and in the few symbols that writers put instead."""
REMEDY = "Write the store again, or copy it again from where it was made"


@dataclass(frozen=True, slots=True)
class Multiscale:
    """One image: ``paths`` of its arrays below its group, largest first, each with ``axes`` (a letter of AXES each,
    or OTHER). ``scale`` is that of the first array, None where no unit or no number is stated."""

    name: str
    version: str
    axes: str
    paths: tuple[str, ...]
    scale: Scale | None
    channels: tuple[Channel, ...]
    warnings: tuple[str, ...] = ()


# --- what is there -------------------------------------------------------------------------------------------------


def attributes(folder: Path) -> Json:
    """What OME-Zarr says of a group, without the "ome" around it; empty for a group of another kind, or none.

    The key "zarr_format" is added: 2 or 3.
    """
    if (folder / "zarr.json").is_file():
        own = read(folder / "zarr.json").get("attributes")
        said = own.get("ome") if isinstance(own, dict) else None
        return {**(said if isinstance(said, dict) else {}), "zarr_format": 3}
    if (folder / ".zattrs").is_file():
        return {**read(folder / ".zattrs"), "zarr_format": 2}
    return {"zarr_format": 2} if any((folder / name).is_file() for name in (".zgroup", ".zarray")) else {}


def store(path: Path) -> Path | None:
    """The root folder of the store that ``path`` names, itself or by one of its documents; None for anything else."""
    try:
        folder = path.parent if path.name in MEMBERS and path.is_file() else path
        return folder if folder.is_dir() and any((folder / name).is_file() for name in MEMBERS) else None
    except OSError:  # a name too long, a folder that may not be entered
        return None


def is_zipped(path: Path) -> bool:
    """Whether a file's name says that it is a store in a ZIP archive."""
    return path.name.lower().endswith(ZIPPED)


def is_array(folder: Path) -> bool:
    """Whether a folder holds chunks, and nothing that could be a slide."""
    if store(folder) != folder:
        return False
    try:
        three = folder / "zarr.json"
        return read(three).get("node_type") == "array" if three.is_file() else (folder / ".zarray").is_file()
    except BadInput:
        return False


def is_slide(folder: Path) -> bool:
    """Whether a folder is an OME-Zarr image or a store of bioformats2raw. So are a plate and one whose document is
    damaged: they are refused by name, not passed over."""
    if store(folder) != folder:
        return False
    try:
        said = attributes(folder)
    except BadInput:
        return True
    return ("multiscales" in said and "image-label" not in said) or LAYOUT in said or "plate" in said


def is_zarr(folder: Path) -> bool:
    """Whether a folder that was named is to be read, or refused, as a whole."""
    return is_slide(folder) or is_array(folder)


def series(root: Path, said: Json) -> list[Path]:
    """Groups of the images of a store of bioformats2raw, in its order. Raises BadInput for names outside of it."""
    listed = attributes(root / "OME").get("series")
    if isinstance(listed, list) and listed:
        return [below(root, name) for name in listed]
    folders = (each for each in root.iterdir() if re.fullmatch("[0-9]{1,6}", each.name) and each.is_dir())
    found = sorted(folders, key=lambda each: int(each.name))
    if not found:
        raise BadInput(f"has {LAYOUT} {said[LAYOUT]} and no image", root, REMEDY)
    return found


def below(folder: Path, name: object) -> Path:
    """The path of that name below ``folder``. Raises BadInput for another one: a store must not pull files from
    elsewhere into a slide."""
    parts = PurePosixPath(name).parts if isinstance(name, str) and "\0" not in name and "\\" not in name else ("..",)
    if ".." in parts or PurePosixPath(*parts).is_absolute():
        raise BadInput(f"names a path outside of itself: {str(name)[:100]!r}", folder, REMEDY)
    return folder.joinpath(*parts)


# --- pure: what the documents say ----------------------------------------------------------------------------------


def refusal(said: Json, path: Path) -> Unsupported:
    """Why a store without an image is no slide."""
    if "plate" in said or "well" in said:
        return Unsupported("is a plate of wells, not a slide", path, "Name one of its fields, for example A/1/0 in it")
    message = "is a Zarr without an OME-Zarr image (multiscales)"
    return Unsupported(message, path, "Name a group in it that has one, or write it with ome-zarr or ngff-zarr")


def multiscale(said: Json, path: Path) -> Multiscale:
    """The image of a group with attributes ``said``. Raises BadInput where they break the specification, Unsupported
    for other versions than 0.4 and 0.5."""
    if "image-label" in said:
        raise Unsupported("is a segmentation, not an image", path, "Name the image to which it belongs")
    listed = said.get("multiscales")
    first = listed[0] if isinstance(listed, list) and listed else None
    if not isinstance(first, dict):
        raise BadInput("has no image in its multiscales", path, REMEDY)
    version = _version(said, first, path)
    axes, units = _axes(first["axes"], path)
    datasets = first.get("datasets")
    if not isinstance(datasets, list) or not datasets or not all(isinstance(each, dict) for each in datasets):
        raise BadInput("lists no resolutions (datasets)", path, REMEDY)
    paths = tuple(each.get("path") for each in datasets)
    if not all(isinstance(name, str) and name for name in paths):
        raise BadInput("has a resolution without a path", path, REMEDY)
    warnings = []
    if isinstance(listed, list) and len(listed) > 1:
        warnings.append(f"the first of {len(listed)} multiscales is read")
    scale, doubt = _scale(axes, units, (datasets[0], first))
    name = first.get("name")
    return Multiscale(
        name=" ".join(name.split()).strip("/")[:NAME_MAX_CHARS] if isinstance(name, str) else "",
        version=version,
        axes=axes,
        paths=tuple(str(name) for name in paths),
        scale=scale,
        channels=channels(said.get("omero")),
        warnings=(*warnings, *doubt),
    )


def _version(said: Json, first: Json, path: Path) -> str:
    """0.5 in a store of Zarr 3, 0.4 in one of Zarr 2; early writers of 0.4 left its number out."""
    usual = "0.5" if said.get("zarr_format") == 3 else "0.4"
    stated = said.get("version", first.get("version")) if usual == "0.5" else first.get("version", said.get("version"))
    plain = isinstance(first.get("axes"), list) and all(isinstance(axis, dict) for axis in first["axes"])
    if stated in (None, usual) and plain:
        return usual
    what = stated if isinstance(stated, str) else "of an early version"
    remedy = "Convert it to 0.4 or 0.5, for example with ngff-zarr"
    raise Unsupported(f"is OME-Zarr {str(what)[:20]}; 0.4 and 0.5 can be read", path, remedy)


def _axes(listed: Sequence[Json], path: Path) -> tuple[str, tuple[str | None, ...]]:
    """Letters of AXES and units, in the order of the arrays' dimensions."""
    kinds = [str(axis.get("type") or "") for axis in listed]
    names = [str(axis.get("name") or "").lower() for axis in listed]
    spatial = [
        place
        for place, (kind, name) in enumerate(zip(kinds, names, strict=True))
        if kind == "space" or (not kind and name in tuple("zyx"))
    ]
    letters = [
        KINDS.get(kind) or (name if not kind and name in ("t", "c") else OTHER)
        for kind, name in zip(kinds, names, strict=True)
    ]
    named = sorted(names[place] for place in spatial) in (["x", "y"], ["x", "y", "z"])
    for place, letter in zip(spatial, "zyx"[-len(spatial) :] if spatial else "", strict=False):
        letters[place] = names[place] if named else letter  # the specification orders them so, whatever their names
    axes = "".join(letters)
    if len(spatial) not in (2, 3) or any(axes.count(letter) > 1 for letter in AXES) or len(axes) > 32:
        said = ", ".join(name or kind or "?" for name, kind in zip(names, kinds, strict=True))[:100]
        raise BadInput(f"has the axes {said or 'none'}; an image has y and x, and t, c and z at most", path, REMEDY)
    return axes, tuple(axis["unit"] if isinstance(axis.get("unit"), str) else None for axis in listed)


def _scale(axes: str, units: Sequence[str | None], stated: Sequence[Json]) -> tuple[Scale | None, list[str]]:
    """Size of a pixel from the transformations of the first resolution and of all, and a doubt about it."""
    numbers = [_numbers(each, len(axes)) for each in stated]
    found = {}
    for letter in "xy":
        place = axes.index(letter)
        unit = units[place]
        if unit is None or unit not in UM_PER_UNIT or numbers[0] is None:
            return None, []
        product = math.prod(one[place] for one in numbers if one is not None)
        found[letter] = _micrometres(product, UM_PER_UNIT[unit])
    x_um, y_um = found["x"], found["y"]
    for size_um in (x_um, y_um):
        if not lengths.SMALLEST_UM <= size_um <= lengths.LARGEST_UM:
            return None, [f"the stated pixel size of {size_um:.6g} um is not a microscope's and was ignored"]
    doubt = []
    if x_um == y_um == 1.0:
        doubt = ["a pixel size of exactly 1 um is what some writers put when they know none"]
    return Scale(x_um, y_um, "file", "scale of its first multiscales dataset"), doubt


def _micrometres(size: float, um: Fraction) -> float:
    try:
        return float(Fraction(repr(float(f"{size:.12g}"))) * um)  # a product of scales ends in ...0001
    except OverflowError:
        return math.inf


def _numbers(stated: Json, count: int) -> list[float] | None:
    """The numbers of the first scale transformation, one an axis; None where there is none that makes sense."""
    listed = stated.get("coordinateTransformations")
    for each in listed if isinstance(listed, list) else ():
        numbers = each.get("scale") if isinstance(each, dict) and each.get("type") == "scale" else None
        found = [_number(number) for number in numbers] if isinstance(numbers, list) else []
        sizes = [number for number in found if number is not None and number > 0]
        if len(sizes) == len(found) == count:
            return sizes
    return None


def _number(value: object) -> float | None:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and abs(value) < 1e300 else None  # type: ignore[arg-type]


def channels(omero: object) -> tuple[Channel, ...]:
    """Name, colour and display range of each channel, value by value: one that makes no sense is as good as absent."""
    listed = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        return ()
    return tuple(_channel(index, each) for index, each in enumerate(listed))


def _channel(index: int, said: Json) -> Channel:
    name, window = said.get("label"), said.get("window")
    low, high = (_number(window.get(key)) if isinstance(window, dict) else None for key in ("start", "end"))
    if low is None or high is None or low >= high:
        low = high = None
    text = " ".join(name.split())[:NAME_MAX_CHARS] if isinstance(name, str) else ""
    return Channel(index, text, _colour(said.get("color")), low=low, high=high)


def _colour(text: object) -> Colour | None:
    """A colour as six hexadecimal digits; None for black, in which nothing could be seen."""
    if not isinstance(text, str) or not re.fullmatch("#?[0-9A-Fa-f]{6}", text):
        return None
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return (red, green, blue) if red or green or blue else None
