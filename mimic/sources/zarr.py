"""OME-Zarr 0.4 and 0.5: what the images of a store in a folder are, and their pixels as 8-bit RGB or as samples."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mimic import chunks, ngff
from mimic.chunks import Planes, Series
from mimic.errors import BadInput, Unsupported
from mimic.model import Box, Channel, Image, Level, Pixels, Rendering, Slide, Tool
from mimic.render import measured_boxes, measured_level
from mimic.settings import Settings
from mimic.structure import zarr as arrays

if TYPE_CHECKING:
    from mimic import ome

METADATA_XML = "OME/METADATA.ome.xml"
METADATA_MAX_BYTES = 256 << 20
RGB = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
RGB_NAMES = (("r", "g", "b"), ("red", "green", "blue"))
BRIGHT = 128
"""Half-way between black and white: a slide whose median lies above has a white ground."""


def claims(path: Path) -> bool:
    """Whether ``path`` is the folder of a Zarr store, one of its documents, or by its name a zipped store."""
    return ngff.is_zipped(path) or ngff.store(path) is not None


def probe(path: Path, settings: Settings) -> Slide:  # noqa: ARG001 - no program is started
    """Facts of the store ``path`` (its folder, or one of its documents); no chunk is opened.

    ``Slide.files`` has the documents, not the chunks, of which a slide has tens of thousands. Raises BadInput for a
    damaged store, Unsupported for one that is zipped, or holds no OME-Zarr image, ToolMissing without zarr-python.
    """
    if ngff.is_zipped(path) and path.is_file():
        raise Unsupported("is a Zarr store in a ZIP archive", path, "Unpack it into a folder first")
    root = ngff.store(path.absolute())
    if root is None:
        raise Unsupported("is no Zarr store", path, "Name the folder that holds zarr.json, .zgroup or .zattrs")
    chunks.library()
    found = chunks.all_series(root)
    document, warnings = _document(root, found)
    images = []
    for index, one in enumerate(found):
        described = document.images[index] if document is not None else None
        image, said = _image(index, one, described)
        images.append(image)
        warnings += [f"image {index}: {each}" for each in (*one.image.warnings, *said)]
    return Slide(
        path=root,
        files=tuple(sorted(_documents(root, found))),
        format=f"OME-Zarr {found[0].image.version}",
        source="zarr",
        images=tuple(images),
        scanner=document.scanner if document is not None else None,
        warnings=tuple(warnings),
    )


def _document(root: Path, found: Sequence[Series]) -> tuple[ome.Document | None, list[str]]:
    """Bio-Formats' OME-XML of a store of bioformats2raw, and what is doubted of it."""
    from mimic import ome  # with lxml, which is not loaded to ask whether a picture is a store

    path = root / METADATA_XML
    if not path.is_file() or found[0].group == root:
        return None, []
    try:
        if path.stat().st_size > METADATA_MAX_BYTES:
            raise BadInput("is too large for a metadata document", path, chunks.REMEDY)
        document = ome.parse(path.read_bytes(), path)
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", path, chunks.REMEDY) from error
    if len(document.images) != len(found):
        raise BadInput(f"describes {len(document.images)} images, the store holds {len(found)}", path, chunks.REMEDY)
    for one, described in zip(found, document.images, strict=True):
        sizes = [one.size(letter) for letter in "xyzct"]
        stated = [described.size_x, described.size_y, described.size_z, described.size_c, described.size_t]
        if sizes != stated:
            text = f"x, y, z, c, t are {sizes}, its OME-XML says {stated}"
            raise BadInput(f"its sizes disagree: {text}", one.group, chunks.REMEDY)
    return document, list(document.warnings)


def _image(index: int, one: Series, described: ome.OmeImage | None) -> tuple[Image, list[str]]:
    from mimic import ome

    first, said = one.levels[0], []
    count = one.size("c")
    facts = one.image.channels if len(one.image.channels) == count else ()
    scale, role = one.image.scale, ome.role_of(one.image.name)
    if described is not None:
        facts, role = _merged(facts, described.channel_facts, count), described.role
        scale = described.scale or scale
    colour = "rgb" if described is not None and described.samples_per_pixel == count == 3 else _rgb(first, facts, count)
    if colour == "assumed":
        said.append("its three 8-bit channels are taken for red, green and blue: it does not say what they are")
    lost, total = arrays.absent(first)
    if lost:
        what = "shards" if first.stored != first.chunk else "chunks"
        said.append(f"{lost} of {total} {what} are not stored, which declares them empty (every sample {first.fill:g})")
    scan = role == "scan"
    image = Image(
        index=index,
        role=role,
        name=described.name if described is not None and described.name else one.image.name,
        levels=tuple(_level(one, number) for number in range(len(one.levels))),
        channels=count,
        rgb=colour is not None,
        pixel_type=first.kind,
        bits=(described.significant_bits if described is not None else None) or arrays.bits(first.kind),
        z_planes=one.size("z"),
        t_frames=one.size("t"),
        scale=scale if scan else None,
        objective=described.objective if described is not None else None,
        acquired=described.acquired if described is not None else None,
        channel_facts=facts,
    )
    return image, said


def _merged(own: tuple[Channel, ...], theirs: tuple[Channel, ...], count: int) -> tuple[Channel, ...]:
    """What omero says, with the emission wavelengths, names and colours of the OME-XML where it says nothing."""
    if len(theirs) != count:
        return own
    if not own:
        return theirs
    return tuple(
        replace(a, name=b.name or a.name, colour=a.colour or b.colour, emission_nm=b.emission_nm)
        for a, b in zip(own, theirs, strict=True)
    )


def _rgb(first: arrays.Layout, facts: tuple[Channel, ...], count: int) -> str | None:
    """Whether three 8-bit channels are red, green and blue: "rgb" by colours or names, "assumed" where the store says
    nothing at all, None where it says something else."""
    if first.kind != "uint8" or count != 3 or any(each.emission_nm is not None for each in facts):
        return None
    colours = [each.colour for each in facts]
    if colours == list(RGB):
        return "rgb"
    if any(colours) and len(set(colours)) > 1:
        return None
    names = tuple(each.name.casefold() for each in facts)
    return "rgb" if names in RGB_NAMES else "assumed" if not any(names) else None


def _level(one: Series, number: int) -> Level:
    axes, array = one.image.axes, one.levels[number]
    tile = (array.chunk[axes.index("x")], array.chunk[axes.index("y")])
    return Level(one.size("x", number), one.size("y", number), *tile)


def _documents(root: Path, found: Sequence[Series]) -> Iterator[Path]:
    folders = {
        root,
        root / "OME",
        *(one.group for one in found),
        *(each.folder for one in found for each in one.levels),
    }
    yield from (path for folder in folders for name in ngff.MEMBERS if (path := folder / name).is_file())
    if (root / METADATA_XML).is_file():
        yield root / METADATA_XML


class Reader:
    """Boxes of an image of 8-bit RGB. Chunks that are not stored are white on a slide with a white ground."""

    sequential = False

    def __init__(self, slide: Slide, image: Image) -> None:
        if image.pixel_type != "uint8" or not image.rgb or image.channels != 3:
            raise Unsupported(f"image {image.index} is not 8-bit RGB", slide.path)
        self._planes = Planes(slide, image)
        self._lock = threading.Lock()
        self._white: bool | None = None

    def boxes(self) -> Sequence[Box]:
        """As those of ``Planes``."""
        return self._planes.boxes()

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box``. Raises BadInput naming a chunk that is damaged or lost."""
        pixels = self._rgb(box, 0)
        for place in self._planes.chunks(box):
            part = chunks.crop(pixels, box, place)
            if not part[::16, ::16].any() and not part.any() and self._absent(place) and self._has_white_ground():
                part[:] = 255
        return pixels

    def _rgb(self, box: Box, level: int) -> Pixels:
        return np.stack(self._planes.samples(box, (0, 1, 2), z=0, t=0, level=level), axis=-1)

    def _absent(self, place: Box) -> bool:
        layout = self._planes.series.levels[0]
        return not any(layout.file(each).exists() for each in self._planes.files_of(place, (0, 1, 2), 0, 0))

    def _has_white_ground(self) -> bool:
        """Whether more than half of what is not black is bright, measured once on a small level."""
        with self._lock:
            if self._white is None:
                image = self._planes.image
                level = measured_level(image)
                counts = np.zeros(256, np.int64)
                for box in measured_boxes(image.levels[level]):
                    counts += np.bincount(self._rgb(box, level).max(axis=-1).ravel(), minlength=256)
                counts[0] = 0
                self._white = bool(counts[BRIGHT:].sum() > counts[:BRIGHT].sum())
            return self._white

    def close(self) -> None:
        """As that of ``Planes``."""
        self._planes.close()


def open(slide: Slide, image: Image, *, threads: int, settings: Settings, scratch: Path) -> Reader:  # noqa: ARG001
    """A reader of ``image``; it needs no ``scratch``, and any number of threads may use it."""
    return Reader(slide, image)


def open_planes(
    slide: Slide,
    image: Image,
    rendering: Rendering,
    *,
    threads: int,  # noqa: ARG001
    settings: Settings,  # noqa: ARG001
    scratch: Path,  # noqa: ARG001
) -> Planes:
    """A reader of the samples that ``rendering`` shows."""
    return Planes(slide, image, shown=len(rendering.views))


def tools(settings: Settings) -> tuple[Tool, ...]:  # noqa: ARG001
    """zarr-python and its codecs."""
    from importlib.metadata import PackageNotFoundError, version

    chunks.library()
    try:
        codecs: str | None = version("numcodecs")
    except PackageNotFoundError:
        codecs = None
    return Tool("zarr", version("zarr")), Tool("numcodecs", codecs)
