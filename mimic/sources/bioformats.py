"""Any of Bio-Formats' formats: metadata and boxes of pixels from the JVM in its child process."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mimic import ome, scenes, structure
from mimic.errors import BadInput, MimicError, ToolFailed, Unsupported
from mimic.model import Box, Image, Level, Pixels, Role, Scale, Slide, Tool
from mimic.programs import bfclient, jvm
from mimic.settings import Settings

BOX_MIN_PX = 2048
"""CZI reads do not cache decoded subblocks: 0.5 Mpx/s in 256 px boxes, 16.8 in 2048 px ones (shared/data, point 4)."""
BOX_MAX_BYTES = 32 << 20
"""A few boxes a thread must fit into the heap and the shared block."""
PLAIN_FORMATS = ("Tagged Image File Format", "JPEG", "Portable Network Graphics", "Windows Bitmap", "JPEG-2000")
"""Formats whose resolution tag speaks of paper, not of a microscope."""
PLAIN_SCALE_UM = (0.05, 5.0)

Json = dict[str, Any]


def claims(path: Path) -> bool:  # noqa: ARG001 - the last resort takes what the others leave
    """True: Bio-Formats is asked about every file that no other source claims."""
    return True


def probe(path: Path, settings: Settings) -> Slide:
    """Facts of ``path`` from Bio-Formats' core metadata and its OME-XML; no pixel is decoded.

    Raises BadInput for a damaged file, Unsupported for a kind that Bio-Formats does not know.
    """
    path = path.absolute()
    facts = structure.whole(path)
    answer = bfclient.server(settings).ask("probe", path, file=str(path))
    found = answer.result
    document = ome.parse(found["xml"], path)
    if len(document.images) != len(found["series"]):
        numbers = f"{len(found['series'])} images and describes {len(document.images)}"
        raise BadInput(f"Bio-Formats finds {numbers}", path, "The file may be damaged")
    files = tuple(sorted({path, *(_companion(name, path) for name in found["files"])}))
    warnings = [*document.warnings]
    for companion in files:
        if companion != path:
            structure.whole(companion)
        options = companion.with_name(companion.name + ".bfoptions")
        if os.path.lexists(options):  # exists() raises when the longer name is too long
            warnings.append(f"{options.name} beside the file changes how Bio-Formats reads it")
    images = tuple(
        _image(index, core, described, found["format"])
        for index, (core, described) in enumerate(zip(found["series"], document.images, strict=True))
    )
    slide = Slide(path, files, found["format"], "bioformats", images, document.scanner, tuple(warnings))
    return slide if facts.czi is None else replace(slide, warnings=(*warnings, *scenes.compare(slide, facts.czi)))


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
    return Image(
        index=index,
        role=_role(core, described.role),
        name=described.name,
        levels=tuple(Level(level["width"], level["height"], *level["tile"]) for level in core["levels"]),
        channels=core["channels"],
        rgb=core["rgb"] and core["rgb_channels"] == core["channels"],
        pixel_type=core["pixel_type"],
        bits=core["bits"],
        z_planes=core["z"],
        t_frames=core["t"],
        scale=scale,
        objective=described.objective,
        acquired=described.acquired,
    )


def _microscopic(scale: Scale) -> bool:
    return all(PLAIN_SCALE_UM[0] <= value <= PLAIN_SCALE_UM[1] for value in (scale.x_um, scale.y_um))


def _role(core: Json, named: Role) -> Role:
    """The role that the name tells, else a thumbnail where Bio-Formats flags one."""
    return "thumbnail" if named == "scan" and core["thumbnail"] else named


class Reader:
    """Boxes of one series; safe for many threads: each request leases a Java reader and a slot of shared memory."""

    sequential = False

    def __init__(self, slide: Slide, image: Image, *, threads: int, settings: Settings) -> None:
        self._slide = slide
        self._size = image.levels[0]
        self._closed = False
        czi = structure.whole(slide.path).czi
        self._mosaic = scenes.mosaic_of(slide, image, czi) if czi is not None else None
        self._box = box_size(self._size, czi)
        self._server = bfclient.server(settings, threads)
        self._handle, core = self._server.open(slide.path, image.index)
        try:
            if core["pixel_type"] != "uint8" or not core["rgb"] or core["rgb_channels"] != 3:
                raise Unsupported(f"image {image.index} is not 8-bit RGB", slide.path)
            self._interleaved = core["interleaved"]
            slot_bytes = self._box[0] * self._box[1] * 3
            self._shared = bfclient.SharedBlock(self._server, self._handle, slots=threads + 1, slot_bytes=slot_bytes)
        except MimicError:
            self._server.drop(self._handle)
            raise

    def boxes(self) -> Sequence[Box]:
        """Row by row, aligned to the file's own tiles."""
        return grid(self._size, self._box)

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box``, in slot-sized parts where it is larger. Raises BadInput where the source is damaged."""
        if box.width_px <= self._box[0] and box.height_px <= self._box[1]:
            return self._read(box)
        whole = np.empty((box.height_px, box.width_px, 3), np.uint8)
        for part in grid(Level(box.width_px, box.height_px), self._box):
            place = Box(box.x_px + part.x_px, box.y_px + part.y_px, part.width_px, part.height_px)
            rows = slice(part.y_px, part.y_px + part.height_px)
            whole[rows, part.x_px : part.x_px + part.width_px] = self._read(place)
        return whole

    def _read(self, box: Box) -> Pixels:
        size = box.width_px * box.height_px * 3
        if self._closed:
            raise ToolFailed("the reader is closed", self._slide.path)
        offset = self._shared.lease()
        try:
            answer = self._server.ask(
                "read",
                self._slide.path,
                handle=self._handle,
                plane=0,
                box=[box.x_px, box.y_px, box.width_px, box.height_px],
                offset=offset,
                room=size,
            )
            if answer.result["bytes"] != size:
                message = f"Bio-Formats gave {answer.result['bytes']} bytes for {size} at x={box.x_px}, y={box.y_px}"
                raise BadInput(message, self._slide.path)
            with self._shared.view(offset, size) as view:
                pixels = self._arrange(np.frombuffer(view, np.uint8), box)
        finally:
            self._shared.release(offset)
        if answer.warnings:
            place = f"near x={box.x_px}, y={box.y_px}"
            message = f"Bio-Formats reports damage {place}: {answer.warnings[0][:200]}"
            raise BadInput(message, self._slide.path, "Copy the file again from where it was made")
        return self._mosaic.mend(box, pixels) if self._mosaic is not None else pixels

    def _arrange(self, data: Pixels, box: Box) -> Pixels:
        shape = (box.height_px, box.width_px, 3)
        if self._interleaved:
            return data.reshape(shape).copy()
        pixels = np.empty(shape, np.uint8)
        for channel, plane in enumerate(data.reshape(3, *shape[:2])):
            pixels[..., channel] = plane
        return pixels

    def close(self) -> None:
        """Close the Java readers and give the shared memory back; may be called twice.

        A read that is under way in another thread fails at once, whatever the child is at.
        """
        if self._closed:
            return
        self._closed = True
        self._server.drop(self._handle)
        self._shared.close()


def open(slide: Slide, image: Image, *, threads: int, settings: Settings, scratch: Path) -> Reader:  # noqa: ARG001
    """A reader of ``image`` with as many Java readers as threads; it needs no ``scratch``."""
    return Reader(slide, image, threads=threads, settings=settings)


def box_size(size: Level, czi: structure.CziFacts | None) -> tuple[int, int]:
    """(width, height) of boxes: whole tiles of the file, about 2048 px, at most BOX_MAX_BYTES, within the image.

    Tiles are a CZI's own (Bio-Formats' are wrong for its pyramids), else what Bio-Formats says.
    """
    tile_width, tile_height = size.tile_width_px or 1, size.tile_height_px or 1
    if czi is not None:
        tile_width, tile_height = czi.tile_width_px, czi.tile_height_px
    width = min(size.width_px, _multiple(tile_width, BOX_MIN_PX))
    height = min(size.height_px, _multiple(tile_height, BOX_MIN_PX))
    rows_max = max(1, BOX_MAX_BYTES // (3 * width))
    if height > rows_max:
        height = max(rows_max // tile_height * tile_height, 1) if tile_height <= rows_max else rows_max
    return width, height


def _multiple(tile_px: int, wanted_px: int) -> int:
    return tile_px * math.ceil(wanted_px / tile_px)


def grid(size: Level, box_px: tuple[int, int]) -> list[Box]:
    """Boxes of ``box_px`` that cover ``size`` row by row; those at the right and lower edge are cropped."""
    width, height = box_px
    return [
        Box(x, y, min(width, size.width_px - x), min(height, size.height_px - y))
        for y in range(0, size.height_px, height)
        for x in range(0, size.width_px, width)
    ]


def tools(settings: Settings) -> tuple[Tool, ...]:
    """Java and Bio-Formats, as they name themselves in the running child."""
    hello = bfclient.server(settings).ask("hello").result
    java, jar = jvm.find_java(settings), jvm.find_bioformats(settings)
    return Tool("Java", hello["java"], str(java)), Tool("Bio-Formats", hello["bioformats"], str(jar))
