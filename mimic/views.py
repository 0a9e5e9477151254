"""(Image, Options) -> how pixels that are not 8-bit RGB are shown, a sentence for every choice. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from mimic.errors import Unsupported, UsageError
from mimic.model import Channel, ChannelView, Colour, Image, Options, Rendering, Slide
from mimic.render import DTYPES

RENDERING_SOURCES = ("bioformats", "czi", "openslide", "zarr", "bioformats2raw")
"""Sources that give samples as they are in the file (``open_planes``). vips makes 8-bit RGB of pictures itself."""

WHITE: Colour = (255, 255, 255)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
CYAN, MAGENTA, YELLOW = (0, 255, 255), (255, 0, 255), (255, 255, 0)
USUAL: tuple[Colour, ...] = (BLUE, GREEN, RED, WHITE, CYAN, MAGENTA, YELLOW)
"""Colours of channels of which nothing is known, in this order."""
LUMA = ((76, 76, 76), (150, 150, 150), (29, 29, 29))
"""Red, green and blue as shares of a grey: ITU-R BT.601."""
EMISSION_NM = ((490.0, BLUE), (570.0, GREEN), (700.0, RED), (float("inf"), MAGENTA))
"""Colour up to a wavelength: DAPI 461 blue, FITC 519 green, Cy3 570 to Cy5 670 red, Cy7 780, which no eye sees,
magenta. A colour that another channel has already gives way to the next usual one."""

Say = Callable[[str], None]


def plain(image: Image) -> bool:
    """Whether its pixels are 8-bit RGB of one plane, which are never touched."""
    return image.rgb and image.channels == 3 and image.pixel_type == "uint8" and image.z_planes == image.t_frames == 1


def is_rgb(image: Image) -> bool:
    """Whether its first three channels are red, green and blue of one picture, in one pixel or in planes of their own.

    Some writers of brightfield (QuPath among them) make three channels of it, coloured so, without an emission.
    """
    if image.rgb and image.channels in (3, 4):
        return True
    facts = [channel(image, index) for index in range(image.channels)]
    apart = image.channels == 3 and image.pixel_type == "uint8" and all(each.emission_nm is None for each in facts)
    return apart and [each.colour for each in facts] == [RED, GREEN, BLUE]


def decide(slide: Slide, image: Image, options: Options, *, say: Say, warn: Say) -> Rendering | None:
    """How ``image`` is rendered, or None for 8-bit RGB that nobody wants changed.

    Raises UsageError for channels, planes or colours that do not exist, Unsupported for what cannot be rendered.
    """
    asked = options.grey or options.channels is not None or options.colours is not None or bool(options.ranges)
    z, t = _planes(slide.path, image, options, say)
    if plain(image) and not asked:
        return None
    if not can_render(slide, image):
        raise _refusal(slide, image)
    shown = _shown(slide.path, image, options, say)
    colours = _colours(slide.path, image, shown, options, say)
    ranges = _asked_ranges(slide.path, shown, options)
    views = tuple(
        _view(image, index, colour, ranges.get(index))
        for index, colour in zip(shown, colours, strict=True)
    )  # fmt: skip
    if is_rgb(image) and z == "max" and image.z_planes > 1:
        warn("a maximum over focus planes shows the brightest of each, which on a brightfield slide is mostly glass")
    if is_rgb(image) and not asked:
        if image.pixel_type != "uint8":
            say(_scaled(image, views))
        return Rendering(views, z, t)
    for view in views:
        say(_sentence(image, view, given=view.index in ranges))
    if any(colour != WHITE for colour in colours):
        say("colours are a rendering of the samples, not what an eye sees; the description says so")
        if options.profile == "ycc":
            say("JPEG 4:2:0 halves the resolution of colours, which carry detail here; --rgb-jpeg keeps it")
    return Rendering(views, z, t)


def can_render(slide: Slide, image: Image) -> bool:
    """Whether its samples can be had as the file holds them, and are intensities."""
    return slide.source in RENDERING_SOURCES and image.pixel_type in DTYPES


def _refusal(slide: Slide, image: Image) -> Unsupported:
    kind = f"{image.channels} channel{'s' if image.channels != 1 else ''} of {image.pixel_type}"
    if image.z_planes > 1 or image.t_frames > 1:
        kind += f" in {image.z_planes} focus planes and {image.t_frames} time points"
    name = f"image {image.index}" + (f" ({image.name})" if image.name else "")
    if image.pixel_type not in DTYPES:
        return Unsupported(f"{name} has {kind}, which are no intensities", slide.path, "Export its magnitude first")
    remedy = "Use --source bioformats, which can render it"
    return Unsupported(f"{name} has {kind}, not 8-bit RGB, and {slide.source} does not render", slide.path, remedy)


def of_picture(slide: Slide, image: Image) -> Rendering | None:
    """How a label or macro is shown that is not 8-bit RGB: by default, whatever is asked for the scan."""
    return decide(slide, image, Options(), say=lambda _: None, warn=lambda _: None)


def _planes(path: Path, image: Image, options: Options, say: Say) -> tuple[int | Literal["max"], int]:
    wish = options.z if options.z is None or isinstance(options.z, int) else parse_z(options.z)
    middle = image.z_planes // 2
    if isinstance(wish, int) and not 0 <= wish < image.z_planes:
        raise UsageError(f"there is no focus plane {wish}", path, f"It has planes 0 to {image.z_planes - 1}")
    if options.t is not None and not 0 <= options.t < image.t_frames:
        raise UsageError(f"there is no time point {options.t}", path, f"It has time points 0 to {image.t_frames - 1}")
    z: int | Literal["max"] = wish if isinstance(wish, int) else "max" if wish == "max" else middle
    if image.z_planes == 1:
        z = 0
    elif z == "max":
        say(f"the maximum over its {image.z_planes} focus planes is shown, as --z max asks")
    elif isinstance(wish, int):
        say(f"focus plane {z} of {image.z_planes} (counted from 0) was chosen with --z")
    else:
        say(f"focus plane {z}, the middle one of {image.z_planes}, is shown; --z chooses another, or 'max' for all")
    t = options.t or 0
    if image.t_frames > 1:
        say(f"time point {t} of {image.t_frames} (counted from 0) is shown" + "; --t chooses another" * (not options.t))
    return z, t


def _shown(path: Path, image: Image, options: Options, say: Say) -> tuple[int, ...]:
    """Indices of the channels that are shown."""
    every = tuple(range(image.channels))
    if options.channels is not None:
        unknown = [index for index in options.channels if index not in every]
        if unknown or not options.channels or len(set(options.channels)) < len(options.channels):
            known = f"It has channels 0 to {image.channels - 1}; name each once"
            raise UsageError(f"--channels cannot be {','.join(map(str, options.channels))}", path, known)
        say(f"channels {', '.join(map(str, options.channels))} of {image.channels} were chosen with --channels")
        return options.channels
    if image.rgb and image.channels in (2, 4):
        say("its transparency is left out")
        return every[: image.channels - 1]
    seen = tuple(index for index in every if not channel(image, index).hidden) or every
    if len(seen) < len(every):
        left = _listed(image, set(every) - set(seen))
        say(f"left out: {left}, hidden in the file's own display settings; --channels brings them back")
    dark = tuple(index for index in seen if not _is_transmitted(image, index))
    if dark and len(dark) < len(seen):
        left = _listed(image, set(seen) - set(dark))
        say(f"left out: {left}, by the file's facts transmitted light, which would drown the others; see --channels")
        return dark
    return seen


def _listed(image: Image, channels: set[int]) -> str:
    return ", ".join(_named(image, index) for index in sorted(channels))


def _is_transmitted(image: Image, index: int) -> bool:
    """Whether the file says so, or has it white and without an emission beside channels that have one."""
    facts = channel(image, index)
    if facts.transmitted:
        return True
    others = any(each.emission_nm is not None for each in image.channel_facts)
    return others and facts.emission_nm is None and facts.colour == WHITE


def channel(image: Image, index: int) -> Channel:
    """What the file says of a channel."""
    return next((each for each in image.channel_facts if each.index == index), Channel(index))


def _named(image: Image, index: int) -> str:
    name = channel(image, index).name
    return f"channel {index}" + (f" ({name})" if name else "")


def _colours(path: Path, image: Image, shown: Sequence[int], options: Options, say: Say) -> tuple[Colour, ...]:
    if options.colours is not None:
        if len(options.colours) != len(shown):
            remedy = f"Give {len(shown)}, or choose channels with --channels"
            raise UsageError(f"--colors has {len(options.colours)} colours for {len(shown)} channels", path, remedy)
        return options.colours
    rgb = is_rgb(image)
    if options.grey:
        return tuple(LUMA[index] for index in shown) if rgb and len(shown) > 1 else (WHITE,) * len(shown)
    if rgb:
        return tuple((RED, GREEN, BLUE, WHITE)[index] for index in shown)
    if image.channels == 1 or (image.rgb and image.channels == 2):
        return (channel(image, shown[0]).colour or WHITE,) * len(shown)
    return _channel_colours(image, shown, say)


def _channel_colours(image: Image, shown: Sequence[int], say: Say) -> tuple[Colour, ...]:
    """The file's colours, else by emission wavelength, else the usual ones; those of all channels, to be steady."""
    stated = [channel(image, index).colour for index in range(image.channels)]
    if len(set(stated)) == 1:  # white is what writers put when nobody chose
        stated = [None] * image.channels
    taken = {colour for colour in stated if colour is not None}
    found: list[Colour] = []
    for index, colour in enumerate(stated):
        found.append(colour or _free_colour(channel(image, index).emission_nm, index, taken))
        taken.add(found[-1])
    if None in stated:
        say("the file does not give every channel a colour: emission wavelengths, else the usual order, decide")
    return tuple(found[index] for index in shown)


def _free_colour(emission_nm: float | None, index: int, taken: set[Colour]) -> Colour:
    """The emission's colour, or the first of the usual ones, that no other channel has."""
    by_wavelength = [tint for limit, tint in EMISSION_NM if emission_nm is not None and emission_nm < limit][:1]
    free = [tint for tint in (*by_wavelength, *USUAL) if tint not in taken]
    return free[0] if free else USUAL[index % len(USUAL)]


def _asked_ranges(path: Path, shown: Sequence[int], options: Options) -> dict[int, tuple[float, float]]:
    ranges: dict[int, tuple[float, float]] = {}
    for index, low, high in options.ranges:
        if index not in shown or index in ranges:
            remedy = f"Channels {', '.join(map(str, shown))} are shown; give each one range"
            raise UsageError(f"--range names channel {index}", path, remedy)
        if not low < high:
            raise UsageError(f"--range {index}:{low:g}-{high:g} is empty", path, "Give LOW-HIGH, LOW the smaller")
        ranges[index] = (low, high)
    return ranges


def _view(image: Image, index: int, colour: Colour, asked: tuple[float, float] | None) -> ChannelView:
    """The asked range, else the file's with its gamma, else that of the type for RGB and 8-bit grey, else one to be
    measured. A gamma belongs to the range that it was chosen with."""
    facts = channel(image, index)
    if asked is not None:
        return ChannelView(index, colour, *asked)
    low, high = facts.low, facts.high
    stated = not is_rgb(image) and low is not None and high is not None and low < high
    if stated and not _everything(image, facts):
        return ChannelView(index, colour, low, high, facts.gamma)
    if (image.rgb or is_rgb(image) or image.channels == 1) and (full := _full_range(image)) is not None:
        return ChannelView(index, colour, *full)
    return ChannelView(index, colour)


def _full_range(image: Image) -> tuple[float, float] | None:
    """Of RGB integers the declared bits, of 8-bit grey 0 to 255; None for what has no natural white."""
    kind = image.pixel_type
    if kind == "bit":
        return 0.0, 1.0
    if kind not in ("uint8", "uint16", "uint32"):
        return None
    if kind != "uint8" and not image.rgb:
        return None
    width = int(kind.removeprefix("uint"))
    return 0.0, float(2 ** (image.bits if 0 < image.bits <= width else width) - 1)


def _everything(image: Image, facts: Channel) -> bool:
    """A range over all that 16 bits can hold is a default that nobody chose; it would show a camera's 12 bits black."""
    low, high = facts.low or 0, facts.high or 0
    return image.pixel_type == "uint16" and low <= 0 and high >= 65535 and facts.gamma == 1


def _sentence(image: Image, view: ChannelView, *, given: bool) -> str:
    where = f"{_named(image, view.index)} is shown in {colour_text(view.colour)}"
    if view.low is None or view.high is None:
        return f"{where}, from its 0.1 to its 99.9 percentile over the whole plane, zeros left out"
    span = f"from {view.low:g} to {view.high:g}" + f" with a gamma of {view.gamma:g}" * (view.gamma != 1)
    facts = channel(image, view.index)
    if given:
        return f"{where}, {span}, as --range asks"
    if (view.low, view.high) == (facts.low, facts.high):
        return f"{where}, {span}, the file's own display setting"
    return f"{where}, {span}, all that its samples can hold"


NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


def parse_channels(text: str) -> tuple[int, ...]:
    """Channel numbers from "0,2". Raises UsageError."""
    if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", text):
        raise UsageError(f"--channels cannot be {text!r}", remedy="Give numbers from 0 on, like 0,2")
    return tuple(map(int, text.split(",")))


def parse_colours(text: str) -> tuple[Colour, ...]:
    """Colours from "FF0000,00FF00". Raises UsageError."""
    found = []
    for word in text.split(","):
        if not re.fullmatch("#?[0-9A-Fa-f]{6}", word):
            raise UsageError(f"--colors cannot have {word!r}", remedy="Give RRGGBB for each channel: FF0000,00FF00")
        red, green, blue = bytes.fromhex(word.removeprefix("#"))
        found.append((red, green, blue))
    return tuple(found)


def parse_range(text: str) -> tuple[int, float, float]:
    """Channel, low and high from "0:120-4000". Raises UsageError."""
    found = re.fullmatch(rf"(\d{{1,4}}):({NUMBER})-({NUMBER})", text)
    if found is None:
        raise UsageError(f"--range cannot be {text!r}", remedy="Give CHANNEL:LOW-HIGH, like 0:120-4000")
    return int(found[1]), float(found[2]), float(found[3])


def parse_z(text: str) -> int | Literal["middle", "max"]:
    """A focus plane's number, "middle" or "max". Raises UsageError."""
    if text in ("middle", "max"):
        return "max" if text == "max" else "middle"
    if not re.fullmatch(r"\d{1,6}", text):
        raise UsageError(f"--z cannot be {text!r}", remedy="Give a number from 0 on, middle or max")
    return int(text)


def _scaled(image: Image, views: Sequence[ChannelView]) -> str:
    low, high = views[0].low, views[0].high
    if low is None or high is None:
        return f"RGB of {image.pixel_type} is shown from the 0.1 to the 99.9 percentile of each colour"
    return f"RGB of {image.pixel_type} is scaled to 8 bits, {low:g} to 0 and {high:g} to 255 in each colour"


def colour_text(colour: Colour) -> str:
    """RRGGBB."""
    return "{:02X}{:02X}{:02X}".format(*colour)


def text(image: Image, rendering: Rendering, *, names: bool = True) -> str:
    """A rendering in a line, for the description: "ch0 DAPI 0000FF 120-4000, ch1 FITC 00FF00 80-900; z 3"."""
    parts = []
    for view in rendering.views:
        name = channel(image, view.index).name if names else ""
        span = "auto" if view.low is None or view.high is None else f"{view.low:g}-{view.high:g}"
        span += f" gamma {view.gamma:g}" * (view.gamma != 1)
        parts.append(" ".join(word for word in (f"ch{view.index}", name, colour_text(view.colour), span) if word))
    tail = f"; z {rendering.z}" * (image.z_planes > 1) + f"; t {rendering.t}" * (image.t_frames > 1)
    return ", ".join(parts) + tail + "; minimum is white" * rendering.inverted
