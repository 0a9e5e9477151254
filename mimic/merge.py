"""All scenes of a CZI on one canvas, each at its stage position: what ``--merge-scenes`` asks for.

Positions come from the CZI's own directory, where every subblock of every scene has its place in one system of
coordinates: nothing is estimated. Between the scenes the canvas is white, or black for a picture that is rendered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from mimic import sources, structure
from mimic.errors import BadInput, ToolFailed, Unsupported
from mimic.model import Box, Image, Level, Pixels, Rendering, Slide
from mimic.render import PlaneReader, PlaneSource, Samples
from mimic.settings import Settings
from mimic.sources import PixelReader
from mimic.structure import CziFacts, CziScene
from mimic.structure.coverage import covered_px

INDEX = -2
"""Of the merged image, which no source has; -1 is a label from a file of its own."""
NAME = "all scenes"
BOX_PX = 2048
CANVAS_MAX_PX = 200_000_000_000
"""A whole glass (75 x 26 mm) at 0.1 um a pixel. Beyond it a stage position is wrong."""
SCALE_TOLERANCE = 1e-6
STACKED = 0.5
"""Part of the smaller of two scenes that another may cover."""
OPEN_SCENES = 4
"""Readers held open: each has shared memory for some boxes. A row of boxes seldom meets more scenes than that."""


class _Closable(Protocol):
    def close(self) -> None: ...


R = TypeVar("R", bound=_Closable)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one scene lies: ``box`` on the canvas, and ``blocks``, the parts of it that were scanned."""

    box: Box
    blocks: tuple[Box, ...]


def is_merged(image: Image) -> bool:
    """Whether an image is the canvas of a merged slide."""
    return image.index == INDEX


def merged(slide: Slide) -> Slide:
    """``slide`` with one scan, the canvas with all scenes; a slide of one scan as it is.

    Raises Unsupported for a format that does not state where its scenes lie, for scenes that do not fit together, and
    for a canvas that is too large.
    """
    scans = slide.scans()
    if len(scans) < 2:
        return slide
    czi = (
        structure.check(slide.path).czi if slide.source in ("bioformats", "czi") else None
    )  # a Zarr's path is a folder
    if czi is None:
        message = f"its {len(scans)} scans cannot be merged: the format does not tell where they lie"
        raise Unsupported(message, slide.path, "Leave --merge-scenes out: each then becomes a file of its own")
    if not czi.scenes:
        raise BadInput("its directory has no scene", slide.path)
    first = scans[0]
    for other in scans[1:]:
        difference = _difference(first, other)
        if difference is not None:
            message = f"its scenes cannot be merged: images {first.index} and {other.index} differ in {difference}"
            raise Unsupported(message, slide.path, "Leave --merge-scenes out: each then becomes a file of its own")
    if (pair := _stacked(czi)) is not None:
        message = f"its scenes {pair[0]} and {pair[1]} lie on top of each other: these are no stage positions"
        raise Unsupported(message, slide.path, "Leave --merge-scenes out: each then becomes a file of its own")
    width_px, height_px = _canvas(places(czi))
    if width_px * height_px > CANVAS_MAX_PX:
        message = f"its scenes lie so far apart that the canvas would have {width_px} x {height_px} px"
        raise Unsupported(message, slide.path, "Leave --merge-scenes out: each then becomes a file of its own")
    level = replace(first.levels[0], width_px=width_px, height_px=height_px)
    canvas = replace(first, index=INDEX, name=NAME, levels=(level,), stage_um=None)
    others = tuple(image for image in slide.images if image.role != "scan")
    return replace(slide, images=(canvas, *others), coded=None)


def _difference(one: Image, other: Image) -> str | None:
    """In what two scans differ that share a canvas; None when they fit."""
    kinds = [(image.channels, image.rgb, image.pixel_type, image.z_planes, image.t_frames) for image in (one, other)]
    if kinds[0] != kinds[1]:
        return "the kind of their pixels"
    if one.scale is None or other.scale is None:
        return None if one.scale is other.scale else "scale: one states none"
    ratios = (one.scale.x_um / other.scale.x_um, one.scale.y_um / other.scale.y_um)
    if max(abs(ratio - 1) for ratio in ratios) > SCALE_TOLERANCE:
        return f"scale: {one.scale.x_um:g} and {other.scale.x_um:g} um/px"
    return None


def _stacked(czi: CziFacts) -> tuple[int | None, int | None] | None:
    """Two scenes of which one covers most of the other, as in files cut out of others; scans may overlap a little."""
    tiles = {scene.index: _tiles(czi, scene.index) for scene in czi.scenes}
    for one, other in combinations(czi.scenes, 2):
        if _common(_box(one), _box(other)) is None:
            continue
        own = [covered_px(tiles[each.index]) for each in (one, other)]
        both = covered_px(np.concatenate((tiles[one.index], tiles[other.index])))
        if own[0] is None or own[1] is None or both is None or own[0] + own[1] - both > STACKED * min(own[0], own[1]):
            return one.index, other.index
    return None


def _tiles(czi: CziFacts, scene: int | None) -> NDArray[np.int64]:
    """x, y, width and height of each place of a scene that was scanned, in the file's coordinates."""
    rows = czi.subblocks if scene is None else czi.subblocks[czi.subblocks[:, 0] == scene]
    return np.unique(rows[:, 1:5], axis=0)


def _box(scene: CziScene) -> Box:
    return Box(scene.x_px, scene.y_px, scene.width_px, scene.height_px)


def places(czi: CziFacts) -> tuple[Place, ...]:
    """The scenes' places on their common canvas, in the order of the directory."""
    found = []
    for scene in czi.scenes:
        box = Box(scene.x_px - czi.x_px, scene.y_px - czi.y_px, scene.width_px, scene.height_px)
        tiles = _tiles(czi, scene.index) - np.array([czi.x_px, czi.y_px, 0, 0])
        blocks = (box,) if scene.covered else tuple(Box(*row) for row in tiles.tolist())
        found.append(Place(box, blocks))
    return tuple(found)


def _canvas(found: Sequence[Place]) -> tuple[int, int]:
    boxes = [place.box for place in found]
    return max(box.x_px + box.width_px for box in boxes), max(box.y_px + box.height_px for box in boxes)


class _Scenes(Generic[R]):
    """Readers of scenes, opened when they are first needed; the ones used longest ago are closed when idle."""

    def __init__(self, openers: Sequence[Callable[[], R]], path: Path) -> None:
        self._openers, self._path = openers, path
        self._open: dict[int, R] = {}
        self._users: dict[int, int] = {}
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def reader(self, index: int) -> Iterator[R]:
        """The reader of one scene, which stays open meanwhile."""
        with self._lock:
            if self._closed:
                raise ToolFailed("the reader is closed", self._path)
            found = self._open.pop(index, None)
            self._open[index] = self._openers[index]() if found is None else found
            self._users[index] = self._users.get(index, 0) + 1
            idle = [each for each in self._open if not self._users.get(each)]
            for each in idle[: max(0, len(self._open) - OPEN_SCENES)]:
                self._open.pop(each).close()
            reader = self._open[index]
        try:
            yield reader
        finally:
            with self._lock:
                self._users[index] -= 1

    def close(self) -> None:
        """Close all, also those in use: what they read fails at once."""
        with self._lock:
            self._closed = True
            left, self._open = list(self._open.values()), {}
        for each in left:
            each.close()


class MergedReader:
    """A PixelReader of the canvas: white, with each scene where it lies; where scenes overlap the later one shows."""

    sequential = False

    def __init__(self, size: Level, scenes: Sequence[Place], openers: Sequence[Callable[[], PixelReader]], path: Path):
        self._size, self._places = size, scenes
        self._scenes = _Scenes(openers, path)

    def boxes(self) -> Sequence[Box]:
        """Row by row over the canvas."""
        return _grid(self._size)

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box``. Raises what the readers of the scenes raise."""
        canvas = np.full((box.height_px, box.width_px, 3), 255, np.uint8)
        for index, place in enumerate(self._places):
            part = _common(box, place.box)
            if part is None:
                continue
            with self._scenes.reader(index) as reader:
                pixels = reader.read(_moved(part, place.box))
            _paint(canvas, box, pixels, part, place.blocks)
        return canvas

    def close(self) -> None:
        """Close the readers of all scenes; may be called twice."""
        self._scenes.close()


class MergedPlanes:
    """As MergedReader, with the samples of each channel; nothing was measured between the scenes, which is 0."""

    sequential = False

    def __init__(self, size: Level, scenes: Sequence[Place], openers: Sequence[Callable[[], PlaneReader]], path: Path):
        self._size, self._places = size, scenes
        self._scenes = _Scenes(openers, path)

    def boxes(self) -> Sequence[Box]:
        """Row by row over the canvas."""
        return _grid(self._size)

    def samples(self, box: Box, channels: Sequence[int], *, z: int, t: int, level: int = 0) -> list[Samples]:
        """One array a channel. Raises what the readers of the scenes raise."""
        canvases: list[Samples] = []
        for index, place in enumerate(self._places):
            part = _common(box, place.box)
            if part is None and (canvases or index + 1 < len(self._places)):
                continue
            asked = part or Box(place.box.x_px, place.box.y_px, 1, 1)  # of no scene: only the type is learnt
            with self._scenes.reader(index) as reader:
                found = reader.samples(_moved(asked, place.box), channels, z=z, t=t, level=level)
            canvases = canvases or [np.zeros((box.height_px, box.width_px), each.dtype) for each in found]
            if part is not None:
                for canvas, each in zip(canvases, found, strict=True):
                    _paint(canvas, box, each, part, place.blocks)
        return canvases

    def close(self) -> None:
        """Close the readers of all scenes; may be called twice."""
        self._scenes.close()


def _grid(size: Level) -> list[Box]:
    return [
        Box(x, y, min(BOX_PX, size.width_px - x), min(BOX_PX, size.height_px - y))
        for y in range(0, size.height_px, BOX_PX)
        for x in range(0, size.width_px, BOX_PX)
    ]


def _common(one: Box, other: Box) -> Box | None:
    """What two boxes share."""
    left, top = max(one.x_px, other.x_px), max(one.y_px, other.y_px)
    right = min(one.x_px + one.width_px, other.x_px + other.width_px)
    lower = min(one.y_px + one.height_px, other.y_px + other.height_px)
    return Box(left, top, right - left, lower - top) if right > left and lower > top else None


def _moved(part: Box, scene: Box) -> Box:
    return Box(part.x_px - scene.x_px, part.y_px - scene.y_px, part.width_px, part.height_px)


def _slices(part: Box, origin: Box) -> tuple[slice, slice]:
    left, top = part.x_px - origin.x_px, part.y_px - origin.y_px
    return slice(top, top + part.height_px), slice(left, left + part.width_px)


def _paint(canvas: Samples, box: Box, pixels: Samples, part: Box, blocks: Sequence[Box]) -> None:
    """Put the scanned parts of ``pixels``, which lie at ``part``, on the canvas of ``box``: the holes of one scene
    must not cover another."""
    for block in blocks:
        seen = _common(part, block)
        if seen is not None:
            canvas[_slices(seen, box)] = pixels[_slices(seen, part)]


def open(slide: Slide, image: Image, *, threads: int, settings: Settings, scratch: Path) -> MergedReader:
    """A reader of the canvas ``image`` of a merged slide."""
    source = sources.load(slide.source)

    def opener(whole: Slide, scan: Image) -> Callable[[], PixelReader]:
        return lambda: source.open(whole, scan, threads=threads, settings=settings, scratch=scratch)

    scenes, openers = _opened(slide, settings, opener)
    return MergedReader(image.levels[0], scenes, openers, slide.path)


def open_planes(
    slide: Slide, image: Image, rendering: Rendering, *, threads: int, settings: Settings, scratch: Path
) -> MergedPlanes:
    """A reader of the samples of the canvas ``image`` of a merged slide."""
    source = cast(PlaneSource, sources.load(slide.source))

    def opener(whole: Slide, scan: Image) -> Callable[[], PlaneReader]:
        return lambda: source.open_planes(whole, scan, rendering, threads=threads, settings=settings, scratch=scratch)

    scenes, openers = _opened(slide, settings, opener)
    return MergedPlanes(image.levels[0], scenes, openers, slide.path)


def _opened(
    slide: Slide, settings: Settings, opener: Callable[[Slide, Image], Any]
) -> tuple[tuple[Place, ...], list[Callable[[], Any]]]:
    """The scenes' places, and for each what opens it: the merged slide has no longer any image of them."""
    whole = sources.load(slide.source).probe(slide.path, settings)
    czi = structure.check(slide.path).czi
    if czi is None:
        raise BadInput("it is no CZI any more", slide.path, "Do not change files that are being converted")
    return places(czi), [opener(whole, scan) for scan in whole.scans()]
