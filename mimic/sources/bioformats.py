"""Any of Bio-Formats' formats: metadata and boxes of pixels from the JVM in its child process."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimic import darkblocks, ome, scenes, structure
from mimic.errors import BadInput, InternalError, MimicError, ToolFailed, Unsupported
from mimic.geometry import grid
from mimic.model import Box, Channel, Image, Level, Objective, Pixels, Rendering, Role, Scale, Slide, Tool
from mimic.programs import bfclient, jvm
from mimic.render import DTYPES, Samples, arrange
from mimic.settings import Settings
from mimic.structure import tiff

BOX_MIN_PX = 2048
"""CZI reads do not cache decoded subblocks: 0.5 Mpx/s in 256 px boxes, 16.8 in 2048 px ones (shared/data, point 4)."""
BOX_MAX_BYTES = 32 << 20
"""A few boxes a thread must fit into the heap and the shared block."""
BOX_OVERLAPPING_PX = 4096
"""Where blocks overlap, no box is made of whole ones: the larger it is, the fewer are decoded for several boxes."""
OVERLAP = 1.02
"""Part of the covered area that the blocks have together, from which on they overlap."""
PLAIN_FORMATS = ("Tagged Image File Format", "JPEG", "Portable Network Graphics", "Windows Bitmap", "JPEG-2000")
"""Formats whose resolution tag speaks of paper, not of a microscope."""
PLAIN_SCALE_UM = (0.05, 5.0)
WHITE_IS_ZERO, JPEG = 0, (6, 7)
CZI_FULL = {"uint8": 255.0, "uint16": 65535.0}
"""What 1 means in a CZI's display settings: all that the type holds, also when the camera has 12 bits (a real file's
0.15259 is 10000 of 65535)."""

Json = dict[str, Any]


def claims(path: Path) -> bool:  # noqa: ARG001 - the last resort takes what the others leave
    """True: Bio-Formats is asked about every file that no other source claims."""
    return True


def probe(path: Path, settings: Settings) -> Slide:
    """Facts of ``path`` from Bio-Formats' core metadata and its OME-XML; no pixel is decoded.

    Raises BadInput for a damaged file, Unsupported for a kind that Bio-Formats does not know.
    """
    path = path.absolute()
    facts = structure.check(path)
    child = bfclient.server(settings)
    found = child.ask("probe", path, file=str(path)).result
    document = ome.parse(found["xml"], path)
    if len(document.images) != len(found["series"]):
        numbers = f"{len(found['series'])} images and describes {len(document.images)}"
        raise BadInput(f"Bio-Formats finds {numbers}", path, "The file may be damaged")
    files = tuple(sorted({path, *(_companion(name, path) for name in found["files"])}))
    warnings, checked = [*document.warnings], [facts]
    for companion in files:
        if companion != path:
            checked.append(structure.check(companion))
        options = companion.with_name(companion.name + ".bfoptions")
        if os.path.lexists(options):  # exists() raises when the longer name is too long
            warnings.append(f"{options.name} beside the file changes how Bio-Formats reads it")
    images = tuple(
        _image(index, core, described, found["format"])
        for index, (core, described) in enumerate(zip(found["series"], document.images, strict=True))
    )
    missing = sum(each.missing_tiles for each in checked)
    slide = Slide(
        path, files, found["format"], "bioformats", images, document.scanner, tuple(warnings), missing_tiles=missing
    )
    scenes.compare_dicom(slide, [each.dicom for each in checked if each.dicom is not None])
    if facts.czi is None:
        return slide
    meant = tuple(_meant(image, facts.czi.power) for image in images)
    shown = replace(slide, images=tuple(_displayed(image, facts.czi.display) for image in meant))
    return replace(shown, warnings=(*warnings, *scenes.compare(slide, facts.czi)))


def _companion(name: str, path: Path) -> Path:
    """A file that Bio-Formats reads along with ``path``. Raises Unsupported for one outside of its folder.

    A file may name others at will (OME-XML does, by path): a slide from elsewhere must not pull ours into its output.
    """
    companion, plain = Path(os.path.normpath(path.parent / name)), Path(os.path.normpath(path))
    if companion == plain:
        return path
    if not companion.is_relative_to(plain.parent):
        remedy = "Put the files of a slide into one folder"
        raise Unsupported(f"it names a file outside of its own folder: {companion}", path, remedy)
    return companion


def _image(index: int, core: Json, described: ome.OmeImage, format_name: str) -> Image:
    scale = described.scale
    if scale is not None and format_name in PLAIN_FORMATS and not _microscopic(scale):
        scale = None
    coloured = _has_palette(core)
    return Image(
        index=index,
        role=_role(core, described.role),
        name=described.name,
        levels=tuple(Level(level["width"], level["height"], *level["tile"]) for level in core["levels"]),
        channels=3 if coloured else core["channels"],
        rgb=coloured or (core["rgb"] and core["rgb_channels"] == core["channels"]),
        pixel_type="uint8" if coloured else core["pixel_type"],
        bits=8 if coloured else core["bits"],
        z_planes=core["z"],
        t_frames=core["t"],
        scale=scale,
        objective=described.objective,
        acquired=described.acquired,
        channel_facts=_channels(core, described),
    )


def _channels(core: Json, described: ome.OmeImage) -> tuple[Channel, ...]:
    """The document's channels where they are the samples', with the file's tint where the document has no colour."""
    found = described.channel_facts
    if len(found) != core["channels"]:
        return ()
    tints = core["tints"] or [None] * len(found)
    return tuple(
        replace(channel, colour=tuple(tint)) if channel.colour is None and tint else channel
        for channel, tint in zip(found, tints, strict=True)
    )


def _has_palette(core: Json) -> bool:
    """Whether samples are numbers of colours, which are looked up as they are read."""
    return core["palette"] is not None and core["channels"] == 1 and core["pixel_type"] in ("uint8", "uint16")


def _displayed(image: Image, settings: Sequence[structure.CziDisplay]) -> Image:
    """``image`` with the ranges, curves and colours of a CZI's display settings, in sample values of its channels.

    A gamma without a range is one over all that the pixel type holds."""
    if image.role != "scan" or image.rgb or image.pixel_type not in CZI_FULL:
        return image
    full, facts = CZI_FULL[image.pixel_type], {each.index: each for each in image.channel_facts}
    for shown in settings:
        if shown.index in facts:
            span = (0.0, 1.0) if shown.low is None and shown.gamma != 1 else (shown.low, shown.high)
            low, high = (None if part is None else round(part * full, 3) for part in span)
            own = facts[shown.index]
            facts[shown.index] = replace(
                own, low=low, high=high, gamma=shown.gamma, colour=shown.colour or own.colour, hidden=shown.hidden
            )
    return replace(image, channel_facts=tuple(facts.values()))


def _meant(image: Image, power: float | None) -> Image:
    """``image`` with the objective that a CZI of several refers to; label and macro have none."""
    if power is None or image.objective is None or image.role != "scan":
        return image
    note = "NominalMagnification of the objective that the CZI's image refers to"
    return replace(image, objective=Objective(power, "file", note))


def _microscopic(scale: Scale) -> bool:
    return all(PLAIN_SCALE_UM[0] <= value <= PLAIN_SCALE_UM[1] for value in (scale.x_um, scale.y_um))


def _role(core: Json, named: Role) -> Role:
    """The role that the name tells, else a thumbnail where Bio-Formats flags one."""
    return "thumbnail" if named == "scan" and core["thumbnail"] else named


def _min_is_white(path: Path, core: Json) -> bool:
    """Whether the samples are to be turned over here: Bio-Formats does it for every TIFF whose 0 is white but JPEG's.

    Seen with 7.3.1: uncompressed, LZW and deflate, 8 and 16 bit, both byte orders come turned, JPEG as it is.
    """
    if core["channels"] != 1 or core["pixel_type"] != "uint8" or structure.container(path) != "tiff":
        return False
    first = tiff.pages(path)[0]
    return first.photometric == WHITE_IS_ZERO and first.compression in JPEG


class Planes:
    """Samples of one series; safe for many threads: each request leases a Java reader and a slot of shared memory.

    A palette is looked up at once: its image has the three channels of 8 bits that ``probe`` says.
    """

    sequential = False

    def __init__(self, slide: Slide, image: Image, *, threads: int, settings: Settings, shown: int = 3) -> None:
        """``shown`` is how many channels of a box are held at a time: boxes are made the smaller for it."""
        self._slide = slide
        self._levels = image.levels
        self._closed = False
        czi = structure.check(slide.path).czi
        self._mosaic = scenes.mosaic_of(slide, image, czi) if czi is not None and image.rgb else None
        self._dark = darkblocks.of(slide, image, czi) if czi is not None and not image.rgb else None
        self._server = bfclient.server(settings, threads)
        self._handle, self._core = self._server.open(slide.path, image.index)
        try:
            if self._core["pixel_type"] not in DTYPES:
                raise Unsupported(f"image {image.index} is of {self._core['pixel_type']}", slide.path)
            self._palette = np.array(self._core["palette"], np.uint8).T if _has_palette(self._core) else None
            self._turned = _min_is_white(slide.path, self._core)
            sample_bytes = np.dtype(DTYPES[self._core["pixel_type"]]).itemsize
            self._pixel_bytes = sample_bytes * self._core["rgb_channels"]
            self._box = box_size(self._levels[0], czi, pixel_bytes=max(self._pixel_bytes, sample_bytes * shown, 3))
            slot_bytes = self._box[0] * self._box[1] * self._pixel_bytes
            self._shared = bfclient.SharedBlock(self._server, self._handle, slots=threads + 1, slot_bytes=slot_bytes)
        except MimicError:
            self._server.drop(self._handle)
            raise

    def boxes(self) -> Sequence[Box]:
        """Row by row, aligned to the file's own tiles."""
        return grid(self._levels[0], self._box)

    def samples(self, box: Box, channels: Sequence[int], *, z: int, t: int, level: int = 0) -> list[Samples]:
        """One array a channel, as ``render.PlaneReader`` has it; a plane that holds several channels is read once."""
        per_pixel = 3 if self._palette is not None else int(self._core["rgb_channels"])
        read = {c: self.plane(box, c, z=z, t=t, level=level) for c in {index // per_pixel for index in channels}}
        return [read[index // per_pixel][..., index % per_pixel] for index in channels]

    def plane(self, box: Box, c: int, *, z: int, t: int, level: int = 0) -> Samples:
        """All samples of a box, shape (height, width, samples), in slot-sized parts where it is larger.

        Raises BadInput where the source is damaged.
        """
        where = z, c, t
        samples = self._plane(box, where, level)
        if self._dark is not None and not level:
            self._dark.check(box, where, samples, read=lambda block: self._plane(block, where, level))
        return samples

    def _plane(self, box: Box, plane: tuple[int, int, int], level: int) -> Samples:
        if box.width_px <= self._box[0] and box.height_px <= self._box[1]:
            return self._part(box, plane, level)
        parts = grid(Level(box.width_px, box.height_px), self._box)
        whole: Samples | None = None
        for part in parts:
            place = Box(box.x_px + part.x_px, box.y_px + part.y_px, part.width_px, part.height_px)
            found = self._part(place, plane, level)
            if whole is None:
                whole = np.empty((box.height_px, box.width_px, found.shape[2]), found.dtype)
            rows = slice(part.y_px, part.y_px + part.height_px)
            whole[rows, part.x_px : part.x_px + part.width_px] = found
        if whole is None:
            raise InternalError("an empty box was asked for", self._slide.path)
        return whole

    def _part(self, box: Box, plane: tuple[int, int, int], level: int) -> Samples:
        size = box.width_px * box.height_px * self._pixel_bytes
        if self._closed:
            raise ToolFailed("the reader is closed", self._slide.path)
        offset = self._shared.lease()
        try:
            answer = self._server.ask(
                "read",
                self._slide.path,
                handle=self._handle,
                plane=plane,
                level=level,
                box=[box.x_px, box.y_px, box.width_px, box.height_px],
                offset=offset,
                room=size,
            )
            if answer.result["bytes"] != size:
                message = f"Bio-Formats gave {answer.result['bytes']} bytes for {size} at x={box.x_px}, y={box.y_px}"
                raise BadInput(message, self._slide.path)
            with self._shared.view(offset, size) as view:
                samples = self._arrange(np.frombuffer(view, np.uint8), box, interleaved=answer.result["interleaved"])
        finally:
            self._shared.release(offset)
        if answer.warnings:
            place = f"near x={box.x_px}, y={box.y_px}"
            message = f"Bio-Formats reports damage {place}: {answer.warnings[0][:200]}"
            remedy = "Copy the file again from where it was made, or convert what is there with --allow-missing"
            raise BadInput(message, self._slide.path, remedy)
        return self._mosaic.mend(box, samples) if self._mosaic is not None and not level else samples

    def _arrange(self, data: NDArray[np.uint8], box: Box, *, interleaved: bool) -> Samples:
        core = self._core
        samples = arrange(
            data,
            size_px=(box.width_px, box.height_px),
            per_pixel=core["rgb_channels"],
            kind=core["pixel_type"],
            order="<" if core["little_endian"] else ">",
            interleaved=interleaved,
        )
        if self._turned:
            return np.subtract(np.iinfo(samples.dtype).max, samples, dtype=samples.dtype)
        # a number beyond the table is damage that decoders pass over: it takes the last colour
        return samples if self._palette is None else np.take(self._palette, samples[..., 0], axis=0, mode="clip")

    def close(self) -> None:
        """Close the Java readers and give the shared memory back; may be called twice.

        A read that is under way in another thread fails at once, whatever the child is at.
        """
        if self._closed:
            return
        self._closed = True
        self._server.drop(self._handle)
        self._shared.close()


class Reader:
    """Boxes of one series of 8-bit RGB, as the file has them."""

    sequential = False

    def __init__(self, slide: Slide, image: Image, *, threads: int, settings: Settings) -> None:
        if image.pixel_type != "uint8" or not image.rgb or image.channels != 3:
            raise Unsupported(f"image {image.index} is not 8-bit RGB", slide.path)
        self._planes = Planes(slide, image, threads=threads, settings=settings)

    def boxes(self) -> Sequence[Box]:
        """Row by row, aligned to the file's own tiles."""
        return self._planes.boxes()

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box``. Raises BadInput where the source is damaged."""
        return self._planes.plane(box, 0, z=0, t=0)

    def close(self) -> None:
        """As that of ``Planes``."""
        self._planes.close()


def open(slide: Slide, image: Image, *, threads: int, settings: Settings, scratch: Path) -> Reader:  # noqa: ARG001
    """A reader of ``image`` with as many Java readers as threads; it needs no ``scratch``."""
    return Reader(slide, image, threads=threads, settings=settings)


def open_planes(
    slide: Slide,
    image: Image,
    rendering: Rendering,
    *,
    threads: int,
    settings: Settings,
    scratch: Path,  # noqa: ARG001
) -> Planes:
    """A reader of the samples that ``rendering`` shows; it needs no ``scratch``."""
    return Planes(slide, image, threads=threads, settings=settings, shown=len(rendering.views))


def box_size(size: Level, czi: structure.CziFacts | None, *, pixel_bytes: int = 3) -> tuple[int, int]:
    """(width, height) of boxes: whole tiles of the file, about 2048 px, at most BOX_MAX_BYTES, within the image.

    Tiles are a CZI's own (Bio-Formats' are wrong for its pyramids), else what Bio-Formats says. Where a CZI's overlap,
    boxes are squares, as large as they may be.
    """
    tile_width, tile_height = size.tile_width_px or 1, size.tile_height_px or 1
    if czi is not None:
        if _overlap(czi):
            side = min(BOX_OVERLAPPING_PX, math.isqrt(BOX_MAX_BYTES // pixel_bytes))
            return min(size.width_px, side), min(size.height_px, side)
        tile_width, tile_height = czi.tile_width_px, czi.tile_height_px
    width = min(size.width_px, _multiple(tile_width, BOX_MIN_PX))
    height = min(size.height_px, _multiple(tile_height, BOX_MIN_PX))
    rows_max = max(1, BOX_MAX_BYTES // (pixel_bytes * width))
    if height > rows_max:
        height = max(rows_max // tile_height * tile_height, 1) if tile_height <= rows_max else rows_max
    return width, height


def _overlap(czi: structure.CziFacts) -> bool:
    """Whether blocks of one plane lie over each other; False where the covered area is not known."""
    covered = [scene.covered_px for scene in czi.scenes]
    places = np.unique(czi.subblocks[:, :5], axis=0)  # channels and focus planes share theirs
    area = int((places[:, 3] * places[:, 4]).sum())
    return None not in covered and area > OVERLAP * sum(part or 0 for part in covered) > 0


def _multiple(tile_px: int, wanted_px: int) -> int:
    return tile_px * math.ceil(wanted_px / tile_px)


def tools(settings: Settings) -> tuple[Tool, ...]:
    """Java and Bio-Formats, as they name themselves in the running child."""
    hello = bfclient.server(settings).ask("hello").result
    java, jar = jvm.find_java(settings), jvm.find_bioformats(settings)
    return Tool("Java", hello["java"], str(java)), Tool("Bio-Formats", hello["bioformats"], str(jar))
