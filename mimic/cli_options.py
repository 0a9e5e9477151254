"""The options of the command line: their words and help, and how they become ``Options``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mimic.errors import UsageError

PATH = click.Path(path_type=Path, readable=False)
"""Not ``readable``: click would call what may not be read a usage error; it is bad input."""

FILE = click.Argument(["file"], type=PATH, help="The slide.")
JSON = click.Option(["as_json", "--json"], is_flag=True, help="Write JSON instead of text.")
LOG_FILE = click.Option(["--log-file"], type=PATH, metavar="FILE", help="Append a log to this file.")
OUTPUT = click.Option(["-o", "--output"], type=PATH, help="An .svs file, or a folder.")
OVERWRITE = click.Option(["--overwrite"], is_flag=True, help="Replace an output that is there.")
QUIET = click.Option(["--quiet"], is_flag=True, help="No progress.")
SOURCE = click.Option(["--source"], help="zarr, vips, czi, openslide, bioformats, bfconvert or bioformats2raw.")
RESUME = click.Option(
    ["--resume"], is_flag=True, help="Skip what is converted already, from the same input with the same options."
)
SHARD = click.Option(["--shard"], metavar="i/n", help="Convert only the i-th of n parts of all slides.")
REPORT_DIR = click.Option(["--report-dir"], type=PATH, help="A folder for a JSON report of each slide.")
REPORT_FILE = click.Option(["report_file", "--report"], type=PATH, help="JSON: FILE.json, or a folder for one a slide.")

OF_A_PLAN = (
    SOURCE,
    click.Option(["image_index", "--image"], type=int, help="Convert this image only (see 'mimic info')."),
    click.Option(["mpp_um", "--mpp"], type=float, help="Micrometres a pixel; replaces the file's own."),
    click.Option(["--appmag"], type=float, help="Objective power; replaces the file's own."),
    click.Option(["--no-scale"], is_flag=True, help="Convert a file that states no scale, without one."),
    click.Option(["-q", "--quality"], type=int, default=80, help="JPEG quality, 1 to 100."),
    click.Option(["--rgb-jpeg"], is_flag=True, help="RGB 4:4:4 with shared tables: larger, widest reach."),
    click.Option(["tile_px", "--tile"], type=int, default=256, help="Tile size in pixels, a multiple of 16."),
    click.Option(["--downsample"], type=int, default=4, help="Factor between levels: 4 or 2."),
    click.Option(
        ["--label"],
        default="keep",
        metavar="keep|drop|redact|FILE",
        help="keep, drop, redact (blank it), or a picture to take its place.",
    ),
    click.Option(
        ["--macro"],
        type=click.Choice(["keep", "drop", "crop-label"]),
        default="keep",
        help="Keep the macro, drop it, or cut off the end with the label.",
    ),
    click.Option(
        ["--deidentify"],
        is_flag=True,
        help="Write nothing that names people, cases, devices or days, and prove it.",
    ),
    click.Option(
        ["--icc"],
        type=click.Choice(["keep", "srgb", "strip"]),
        default="keep",
        help="Colour profile: keep it, take pixels to sRGB by it, or strip it.",
    ),
    click.Option(["--square"], is_flag=True, help="Resample pixels that are not square."),
    click.Option(["--channels"], help="Show these channels only: 0,2."),
    click.Option(["colours", "--colors"], help="Their colours: FF0000,00FF00."),
    click.Option(
        ["ranges", "--range"], multiple=True, help="Black and full colour of a channel: 0:120-4000; repeatable."
    ),
    click.Option(["--grey"], is_flag=True, help="Show channels in grey."),
    click.Option(["--z"], help="Focus plane from 0 on, middle (default), or max of all."),
    click.Option(["--t"], type=int, help="Time point from 0 on."),
    click.Option(["--merge-scenes"], is_flag=True, help="Put a CZI's scenes on one canvas, in their places."),
    click.Option(
        ["--allow-missing"],
        is_flag=True,
        help="Convert a damaged file: what is missing becomes white, and is counted.",
    ),
    click.Option(
        ["--passthrough"],
        type=click.Choice(["auto", "never", "require"]),
        default="auto",
        help="Copy compressed tiles where readers accept them, never, or fail.",
    ),
    click.Option(
        ["--codec"],
        type=click.Choice(["jpeg", "jp2k"]),
        default="jpeg",
        help="jp2k lets JPEG 2000 tiles be copied; else they become JPEG.",
    ),
)
"""What decides of an output; each has the name of the field of ``Options`` that it fills (but see ``chosen``)."""
OF_A_SLIDE = (
    *OF_A_PLAN,
    click.Option(
        ["--verify"],
        type=click.Choice(["sample", "full"]),
        default="sample",
        help="Compare samples, or every pixel.",
    ),
    OVERWRITE,
    click.Option(["--threads"], type=int, help="Threads; as many as cores by default."),
    click.Option(["--scratch"], type=PATH, help="Folder for large temporary files."),
    click.Option(["deadline_s", "--deadline"], type=float, help="Seconds that a slide may take."),
)
"""The fields of ``Options`` that a conversion has; a line of a manifest may give each."""


def jobs(default: int | None) -> click.Option:
    """How many slides beside each other; None: one after the other, in this process."""
    text = "Slides at a time, each in a process of its own."
    return click.Option(["-j", "--jobs"], type=click.IntRange(min=1), default=default, help=text)


def chosen(wish: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of Options that options of a command (``OF_A_PLAN``, ``OF_A_SLIDE``) ask for. Raises UsageError."""
    from mimic import views

    words = dict(wish)
    parsers = {"channels": views.parse_channels, "colours": views.parse_colours, "z": views.parse_z}
    for name, parse in parsers.items():
        words[name] = None if words[name] is None else parse(words[name])
    words["ranges"] = tuple(map(views.parse_range, words["ranges"]))
    words["profile"] = "rgb" if words.pop("rgb_jpeg") else "ycc"
    return words | _label(words["label"])


def _label(wish: str) -> dict[str, Any]:
    """The options of --label: one of three words, or else the name of a file ("./drop" is a file)."""
    if wish in ("keep", "drop", "redact"):
        return {"label": wish}
    if not Path(wish).is_file():
        remedy = "Use keep, drop, redact, or name a picture that is there"
        raise UsageError(f"--label {wish} is neither a wish nor a file", remedy=remedy)
    return {"label": "file", "label_file": Path(wish)}
