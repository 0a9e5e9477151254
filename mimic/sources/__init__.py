"""Where pixels come from. A source never imports another; bioformats2raw has its result read by zarr, by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from mimic import structure
from mimic.errors import BadInput, UsageError
from mimic.model import Box, Image, Pixels, Slide, Tool
from mimic.settings import Settings

ORDER = ("zarr", "vips", "czi", "openslide", "bioformats", "bfconvert", "bioformats2raw")
"""The first source that claims a file (zarr: a folder) reads it; the last two claim none and are only used by name."""


OF_ONE_CONTAINER = {"czi": "czi"}
"""Sources that are not even imported for files of other containers (``structure.container``)."""


class PixelReader(Protocol):
    """Level-0 pixels of one image as 8-bit RGB. Closed by ``close``; every other method fails after that."""

    @property
    def sequential(self) -> bool:
        """True when boxes must be read in their order, by one thread at a time."""
        ...

    def boxes(self) -> Sequence[Box]:
        """Disjoint boxes that cover the image exactly, in the order that suits the file, each of a size that is
        cheap to decode and small enough (tens of megabytes) to hold a few of."""
        ...

    def read(self, box: Box) -> Pixels:
        """Pixels of ``box``, which need not be one of ``boxes``; from many threads at once unless ``sequential``.

        Where nothing is they may be one pixel over and over (``uniform``): read-only, and without memory.

        Raises BadInput when the source is damaged there, ToolFailed when a program died.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class StoredReader(Protocol):
    """A PixelReader that can spare itself to bring pixels into another order."""

    def read_as_stored(self, box: Box) -> Pixels:
        """As ``read``, but the pixels may be read-only and ``turned``: blue first in memory."""
        ...


class TileReader(Protocol):
    """Compressed tiles of one image as the file holds them; from many threads at once."""

    def tile(self, level: int, column: int, row: int) -> bytes | None:
        """The tile's bytes as ``Coded`` describes them (tables merged in when they are not shared); None: missing."""
        ...

    def tiles(self, level: int, row: int, columns: range) -> list[bytes | None]:
        """Tiles side by side, as ``tile`` gives them, read together."""
        ...

    def close(self) -> None: ...


class Source(Protocol):
    """A module in this package with these functions."""

    def claims(self, path: Path) -> bool:
        """Whether this source is the right one for the file, from its first bytes and name; decodes nothing."""
        ...

    def probe(self, path: Path, settings: Settings) -> Slide:
        """Facts of the file; no pixel is decoded. Raises BadInput for a damaged file, Unsupported for a strange one."""
        ...

    def open(self, slide: Slide, image: Image, *, threads: int, settings: Settings, scratch: Path) -> PixelReader:
        """A reader of ``image``; ``scratch`` is a private folder that its caller removes."""
        ...

    def tools(self, settings: Settings) -> tuple[Tool, ...]:
        """The programs and libraries that did the work, with their versions."""
        ...


def load(name: str) -> Source:
    """The source of that name, imported now and not before. Raises UsageError for a name not in ORDER."""
    if name not in ORDER:
        raise UsageError(f"there is no source named {name!r}", remedy=f"Use one of {', '.join(ORDER)}")
    return cast(Source, import_module(f"mimic.sources.{name}"))


def choose(path: Path) -> str:
    """The name of the first source in ORDER that claims ``path``."""
    return next(name for name in ORDER if _may_claim(name, path) and load(name).claims(path))


def _may_claim(name: str, path: Path) -> bool:
    if name not in OF_ONE_CONTAINER:
        return True
    try:
        return structure.container(path) == OF_ONE_CONTAINER[name]
    except BadInput:
        return False
