"""The types that pass between stages: frozen, picklable, JSON-able, and without behaviour.

Units are in the names (``_px _um _bytes _s``). Unknown is None, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""8-bit RGB: shape (height_px, width_px, 3), C-contiguous in its last two axes."""

Role = Literal["scan", "label", "macro", "thumbnail"]
Origin = Literal["file", "option", "derived"]
LabelWish = Literal["keep", "drop", "redact", "file"]
"""What becomes of the label: "redact" blanks its pixels at its size, "file" takes ``Options.label_file`` instead."""
MacroWish = Literal["keep", "drop", "crop-label"]
"""What becomes of the macro: "crop-label" cuts off the side on which the label is."""
Passthrough = Literal["auto", "never", "require"]
Colour = tuple[int, int, int]  # red, green, blue, 0 to 255
Profile = Literal["ycc", "rgb"]
"""JPEG colour profile: "ycc" is YCbCr 4:2:0 with self-contained tiles, "rgb" is RGB 4:4:4 with JPEGTables."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of level 0, origin at the upper left corner."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True)
class Scale:
    """Size of a pixel. ``note`` says in a few words where it was found."""

    x_um: float
    y_um: float
    origin: Origin
    note: str = ""


@dataclass(frozen=True, slots=True)
class Objective:
    """Objective power (20.0 for a 20x). ``note`` says in a few words where it was found."""

    power: float
    origin: Origin
    note: str = ""


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution. ``tile_*_px`` and ``codec`` are None where the source does not tell."""

    width_px: int
    height_px: int
    tile_width_px: int | None = None
    tile_height_px: int | None = None
    codec: str | None = None
    lossy: bool | None = None


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel of an image that is not RGB, as its file shows it: ``low`` and ``high`` in sample values, a line bent
    by ``gamma`` between them, in ``colour``; not at all if ``hidden``. ``transmitted``: light through the sample."""

    index: int
    name: str = ""
    colour: Colour | None = None
    emission_nm: float | None = None
    low: float | None = None
    high: float | None = None
    gamma: float = 1.0
    hidden: bool = False
    transmitted: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a file, with its resolutions, largest first.

    ``index`` is the source's own number of it (Bio-Formats: the series). ``channels`` counts samples a pixel as read
    (3 for RGB) over all channels; ``rgb`` says that they come interleaved or planar as one RGB pixel.
    ``pixel_type`` is OME's name: "uint8", "float" ... ``acquired`` has no time zone where the file gives none."""

    index: int
    role: Role
    name: str
    levels: tuple[Level, ...]
    channels: int
    rgb: bool
    pixel_type: str
    bits: int
    z_planes: int = 1
    t_frames: int = 1
    scale: Scale | None = None
    objective: Objective | None = None
    acquired: datetime | None = None
    channel_facts: tuple[Channel, ...] = ()
    stage_um: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Coded:
    """Compressed tiles of the scan that could be copied as they are, or the ``reason`` why they cannot be.

    ``source`` names the module that gives the bytes ("tiff", "dicom"). ``levels`` are those of the source, largest
    first, all with the same square tile of ``tile_px``. ``compression`` and ``photometric`` are TIFF's numbers,
    ``subsampling`` TIFF's YCbCrSubSampling, ``jpeg_tables`` the shared tables to be written as tag 347 (None: each tile
    is whole), ``quality`` the estimate of libjpeg's quality. ``missing`` counts tiles of level 0 that are not there.
    """

    source: str
    levels: tuple[Level, ...] = ()
    tile_px: int = 0
    compression: int = 7
    photometric: int = 6
    subsampling: tuple[int, int] | None = None
    jpeg_tables: bytes | None = None
    quality: int | None = None
    missing: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Slide:
    """What a file is: facts only, each as the file states it.

    ``path`` is the file that was named, ``files`` every file that is read for it (``path`` included), ``format`` the
    format's usual name ("Zeiss CZI"), ``source`` the name of the source that read the facts. ``personal`` holds every
    string of the input that may name a person, a case or a device (see phi.py).
    """

    path: Path
    files: tuple[Path, ...]
    format: str
    source: str
    images: tuple[Image, ...]
    scanner: str | None = None
    warnings: tuple[str, ...] = ()
    icc_profile: bytes | None = None
    coded: Coded | None = None
    personal: tuple[str, ...] = ()
    missing_tiles: int = 0

    def scans(self) -> tuple[Image, ...]:
        """The images of tissue, in the file's order."""
        return tuple(image for image in self.images if image.role == "scan")


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for. None means: decide from the file."""

    source: str | None = None
    image_index: int | None = None
    mpp_um: float | None = None
    appmag: float | None = None
    no_scale: bool = False
    quality: int = 80
    profile: Profile = "ycc"
    tile_px: int = 256
    downsample: Literal[2, 4] = 4
    label: LabelWish = "keep"
    label_file: Path | None = None
    macro: MacroWish = "keep"
    verify: Literal["sample", "full"] = "sample"
    overwrite: bool = False
    threads: int | None = None
    scratch: Path | None = None
    deadline_s: float | None = None
    passthrough: Passthrough = "auto"
    codec: Literal["jpeg", "jp2k"] = "jpeg"
    z: int | Literal["middle", "max"] | None = None
    t: int | None = None
    channels: tuple[int, ...] | None = None
    colours: tuple[Colour, ...] | None = None
    ranges: tuple[tuple[int, float, float], ...] = ()
    grey: bool = False
    square: bool = False
    allow_missing: bool = False
    merge_scenes: bool = False
    icc: Literal["keep", "srgb", "strip"] = "keep"
    deidentify: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One task: an input, where its output goes (None: beside it; a folder: in there), and the options. ``digest``
    False: nobody will look at the SHA-256 of what is read and written, nor at the versions of tools."""

    input: Path
    output: Path | None = None
    options: Options = field(default_factory=Options)
    digest: bool = True


@dataclass(frozen=True, slots=True)
class Picture:
    """A label or macro that goes into the output, read from image ``image_index`` of the source."""

    role: Role
    image_index: int
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True)
class ChannelView:
    """How one channel is shown: ``colour`` at ``high``, black at ``low``, a line bent by ``gamma`` between them; None:
    robust percentiles of the whole plane, measured on the smallest level when pixels are read."""

    index: int
    colour: Colour
    low: float | None = None
    high: float | None = None
    gamma: float = 1.0


@dataclass(frozen=True, slots=True)
class Rendering:
    """How pixels that are not 8-bit RGB become so; the same for every tile. ``z`` is a plane, or "max" for the maximum
    over all of them; ``inverted`` says that the file's 0 is white."""

    views: tuple[ChannelView, ...]
    z: int | Literal["max"] = 0
    t: int = 0
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What convert will do for one scan image, and why: ``reasons`` has a sentence for every choice.

    ``levels`` are the output's, largest first, sizes floor(W/f) x floor(H/f). ``thumbnail_px`` is (width, height).
    ``coded`` is set when compressed tiles are copied; the first ``copied_levels`` levels then are the source's own.
    ``scratch_bytes`` is the room estimated for all that is written before it gets its name; ``key``: provenance.py.
    """

    slide: Slide
    output: Path
    image_index: int
    source: str
    profile: Profile
    quality: int
    tile_px: int
    downsample: int
    levels: tuple[Level, ...]
    thumbnail_px: tuple[int, int]
    pictures: tuple[Picture, ...]
    scale: Scale | None
    objective: Objective | None
    acquired: datetime | None
    scratch_bytes: int
    threads: int
    verify: Literal["sample", "full"]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    coded: Coded | None = None
    copied_levels: int = 0
    rendering: Rendering | None = None
    icc_profile: bytes | None = None
    deidentify: bool = False
    allow_missing: bool = False
    key: str | None = None

    @property
    def image(self) -> Image:
        """The scan image that is converted."""
        return next(image for image in self.slide.images if image.index == self.image_index)


@dataclass(frozen=True, slots=True)
class Tag:
    """One TIFF field. ``type`` is TIFF's number (2 ASCII, 3 SHORT, 4 LONG, 5 RATIONAL, 7 UNDEFINED ...)."""

    code: int
    type: int
    value: bytes | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """One TIFF directory as svs.py wants it: all tags but the offsets and byte counts of its ``segments`` tiles, or its
    one strip. ``level`` is the pyramid level of a tiled page and None for a stripped one."""

    kind: Literal["baseline", "thumbnail", "level", "label", "macro"]
    level: int | None
    tags: tuple[Tag, ...]
    segments: int


@dataclass(frozen=True, slots=True)
class CodedTile:
    """One compressed tile of a level, by tile column and row."""

    level: int
    column: int
    row: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Written:
    """A finished file. ``tiles`` counts compressed tiles over all levels; ``sha256`` may be "", not asked for."""

    path: Path
    bytes: int
    sha256: str
    tiles: int
    bigtiff: bool


@dataclass(frozen=True, slots=True)
class Check:
    """One rule, and whether it holds. ``must`` is False for a rule whose breach only degrades some readers."""

    name: str
    passed: bool
    measured: str
    expected: str
    must: bool = True


@dataclass(frozen=True, slots=True)
class Stage:
    """Wall time of one stage of a conversion."""

    name: str
    seconds_s: float


@dataclass(frozen=True, slots=True)
class Tool:
    """A program or library that took part. ``path`` is where it was found, None when it is not a file of its own."""

    name: str
    version: str | None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One output of a conversion: its plan, what was written, how it was checked, and the time of each stage."""

    plan: Plan
    written: Written
    checks: tuple[Check, ...]
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one input: a result for every scan image, the tools that took part if asked for, what went wrong.

    ``status`` is "converted", "failed" or "skipped"; ``error`` and ``exit_code`` tell why it failed.
    ``input_sha256`` has every file that was read, by path, and its digest, or "" where nobody asked for it."""

    schema: int
    status: Literal["converted", "failed", "skipped"]
    input: Path
    results: tuple[Result, ...] = ()
    tools: tuple[Tool, ...] = ()
    warnings: tuple[str, ...] = ()
    input_sha256: dict[str, str] = field(default_factory=dict)
    seconds_s: float = 0.0
    error: str | None = None
    exit_code: int = 0

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files written."""
        return tuple(result.written.path for result in self.results)


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a conversion, for whoever shows progress. ``done_px`` of ``total_px`` level-0 pixels."""

    stage: str
    done_px: int
    total_px: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Source pixels kept during the pass, to be compared with the output: ``box`` in level 0, edge tiles cropped."""

    box: Box
    pixels: Pixels
