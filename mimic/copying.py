"""Whether compressed tiles are copied, which levels, and how to say so. Pure; ``plan`` asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mimic import jpegs
from mimic.model import Coded, Image, Level, Options, Profile, Slide

USUAL_TILE_PX = 256
"""What --tile is unless somebody asks: then the source's tiles need not follow it."""
FACTORS = tuple(1 << power for power in range(1, 20))
FORMATS = {jpegs.J2K_YCC: "JPEG 2000 YCbCr", jpegs.J2K_RGB: "JPEG 2000"}

Sizes = Sequence[tuple[int, int]]


def reason_against(slide: Slide, image: Image, options: Options, *, must_decode: str | None) -> str | None:
    """Why tiles are not copied; None when they are. ``must_decode`` tells of options that change pixels."""
    coded = slide.coded
    if options.passthrough == "never":
        return "--passthrough never asks for that"
    if coded is None:
        return "it holds no compressed tiles that are known to be the picture"
    if coded.reason is not None:
        return coded.reason
    if must_decode is not None:
        return must_decode
    if (image,) != slide.scans():
        return "only the tiles of a single scan are known"
    if coded.compression != jpegs.JPEG and options.codec != "jp2k":
        return "JPEG 2000 tiles are copied only with --codec jp2k, as few readers know them"
    if options.tile_px not in (USUAL_TILE_PX, coded.tile_px):
        return f"tiles of {options.tile_px} px are asked for, and its own have {coded.tile_px}"
    if options.profile == "rgb" and coded.photometric != jpegs.RGB:
        return "JPEG of RGB is asked for, and its tiles are YCbCr"
    return None


def kept(coded: Coded, *, belongs: Callable[[Sizes, tuple[int, int]], bool]) -> Coded:
    """``coded`` with those of its levels that an Aperio file may have: each exactly floor(W/f) x floor(H/f), f a power
    of two, and ``belongs(larger, size)``."""
    base, *lower = coded.levels
    exact = {(base.width_px // factor, base.height_px // factor) for factor in FACTORS}
    sizes, levels = [(base.width_px, base.height_px)], [base]
    for level in lower:
        size = level.width_px, level.height_px
        if size in exact and size[0] < sizes[-1][0] and size[1] < sizes[-1][1] and belongs(sizes, size):
            sizes.append(size)
            levels.append(level)
    return replace(coded, levels=tuple(levels))


def jpeg_profile(coded: Coded) -> Profile:
    """The colours of everything that is encoded beside the copied tiles: levels, thumbnail, macro."""
    return "rgb" if coded.photometric == jpegs.RGB else "ycc"


def sentences(coded: Coded, levels: Sequence[Level], *, quality: int) -> list[str]:
    """What is copied and what is made, for a plan's reasons."""
    about = f", about quality {coded.quality}" if coded.quality is not None else ""
    if coded.compression in FORMATS:
        colours = FORMATS[coded.compression]
    elif coded.photometric == jpegs.RGB:
        colours = "JPEG RGB"
    else:
        colours = "JPEG YCbCr 4:2:0" if coded.subsampling == (2, 2) else "JPEG YCbCr 4:2:2"
    copied = len(coded.levels)
    what = f"level 0 and {copied - 1} lower ones" if copied > 1 else "level 0"
    said = [f"compressed tiles of {what} are copied bit by bit ({colours}, {coded.tile_px} px{about})"]
    if made := levels[copied:]:
        text = ", ".join(f"{level.width_px} x {level.height_px}" for level in made)
        said.append(f"the source has no level of {text} px that fits; made from the copied tiles, quality {quality}")
    return said


def holes(coded: Coded) -> str:
    """The warning for tiles of level 0 that the source has not."""
    what = "tile of level 0 is" if coded.missing == 1 else "tiles of level 0 are"
    return f"{coded.missing} {what} missing in the source and white here"
