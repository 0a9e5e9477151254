"""The options of the command line: their words and help, and how they become ``Options``."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mimic.errors import UsageError


class Macro(StrEnum):
    """What to do with a macro."""

    keep = "keep"
    drop = "drop"
    crop_label = "crop-label"


class Icc(StrEnum):
    """What to do with a colour profile."""

    keep = "keep"
    srgb = "srgb"
    strip_ = "strip"


class Passthrough(StrEnum):
    """Whether compressed tiles are copied."""

    auto = "auto"
    never = "never"
    require = "require"


class Codec(StrEnum):
    """What compressed tiles may be copied as."""

    jpeg = "jpeg"
    jp2k = "jp2k"


class Verify(StrEnum):
    """How much of the pixels to compare."""

    sample = "sample"
    full = "full"


File = Annotated[Path, typer.Argument(help="The slide.", readable=False)]
"""Not ``readable``: typer would call what may not be read a usage error; it is bad input."""
Json = Annotated[bool, typer.Option("--json", help="Write JSON instead of text.")]
LogFile = Annotated[
    Path | None, typer.Option("--log-file", help="Append a log to this file.", metavar="FILE", readable=False)
]
Source = Annotated[
    str | None, typer.Option("--source", help="zarr, vips, czi, openslide, bioformats, bfconvert or bioformats2raw.")
]
Image = Annotated[int | None, typer.Option("--image", help="Convert this image only (see 'mimic info').")]
Mpp = Annotated[float | None, typer.Option("--mpp", help="Micrometres a pixel; replaces the file's own.")]
AppMag = Annotated[float | None, typer.Option("--appmag", help="Objective power; replaces the file's own.")]
NoScale = Annotated[bool, typer.Option("--no-scale", help="Convert a file that states no scale, without one.")]
Quality = Annotated[int, typer.Option("-q", "--quality", help="JPEG quality, 1 to 100.")]
RgbJpeg = Annotated[bool, typer.Option("--rgb-jpeg", help="RGB 4:4:4 with shared tables: larger, widest reach.")]
Tile = Annotated[int, typer.Option("--tile", help="Tile size in pixels, a multiple of 16.")]
Down = Annotated[int, typer.Option("--downsample", help="Factor between levels: 4 or 2.")]
Channels = Annotated[str | None, typer.Option("--channels", help="Show these channels only: 0,2.")]
Colors = Annotated[str | None, typer.Option("--colors", help="Their colours: FF0000,00FF00.")]
Ranges = Annotated[
    list[str] | None, typer.Option("--range", help="Black and full colour of a channel: 0:120-4000; repeatable.")
]
Grey = Annotated[bool, typer.Option("--grey", help="Show channels in grey.")]
ZPlane = Annotated[str | None, typer.Option("--z", help="Focus plane from 0 on, middle (default), or max of all.")]
TFrame = Annotated[int | None, typer.Option("--t", help="Time point from 0 on.")]
MergeScenes = Annotated[bool, typer.Option("--merge-scenes", help="Put a CZI's scenes on one canvas, in their places.")]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Convert a damaged file: what is missing becomes white, and is counted.")
]
Jobs = Annotated[
    int | None, typer.Option("-j", "--jobs", help="Slides at a time, each in a process of its own.", min=1)
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Skip what is converted already, from the same input with the same options.")
]
Shard = Annotated[
    str | None, typer.Option("--shard", help="Convert only the i-th of n parts of all slides.", metavar="i/n")
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", help="JSON: FILE.json, or a folder for one a slide.", readable=False)
]
ReportDir = Annotated[
    Path | None, typer.Option("--report-dir", help="A folder for a JSON report of each slide.", readable=False)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="An .svs file, or a folder.", readable=False)]
LABEL = typer.Option(
    "--label", help="keep, drop, redact (blank it), or a picture to take its place.", metavar="keep|drop|redact|FILE"
)
MACRO = typer.Option("--macro", help="Keep the macro, drop it, or cut off the end with the label.")
Deidentify = Annotated[
    bool, typer.Option("--deidentify", help="Write nothing that names people, cases, devices or days, and prove it.")
]
ICC = typer.Option("--icc", help="Colour profile: keep it, take pixels to sRGB by it, or strip it.")
Square = Annotated[bool, typer.Option("--square", help="Resample pixels that are not square.")]
PASSTHROUGH = typer.Option("--passthrough", help="Copy compressed tiles where readers accept them, never, or fail.")
CODEC = typer.Option("--codec", help="jp2k lets JPEG 2000 tiles be copied; else they become JPEG.")

RENAMED = {
    "image": "image_index",
    "mpp": "mpp_um",
    "tile": "tile_px",
    "deadline": "deadline_s",
    "colors": "colours",
    "range_": "ranges",
}
"""Words of the command line that Options knows by names with units."""
NOT_OPTIONS = ("inputs", "file", "output", "report_file", "quiet", "as_json", "log_file")
OF_A_RUN = ("jobs", "resume", "shard", "report_dir")


def chosen(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of Options that a command's arguments (its ``locals()``) ask for. Raises UsageError."""
    from mimic import views

    words = {RENAMED.get(name, name): value for name, value in arguments.items() if name not in NOT_OPTIONS + OF_A_RUN}
    parsers = {"channels": views.parse_channels, "colours": views.parse_colours, "z": views.parse_z}
    for name, parse in parsers.items():
        words[name] = None if words[name] is None else parse(words[name])
    words["ranges"] = tuple(map(views.parse_range, words["ranges"] or ()))
    words["profile"] = "rgb" if words.pop("rgb_jpeg") else "ycc"
    plain = {name: value.value if isinstance(value, StrEnum) else value for name, value in words.items()}
    return plain | _label(words["label"])


def _label(wish: str) -> dict[str, Any]:
    """The options of --label: one of three words, or else the name of a file ("./drop" is a file)."""
    if wish in ("keep", "drop", "redact"):
        return {"label": wish}
    if not Path(wish).is_file():
        remedy = "Use keep, drop, redact, or name a picture that is there"
        raise UsageError(f"--label {wish} is neither a wish nor a file", remedy=remedy)
    return {"label": "file", "label_file": Path(wish)}
