"""What ``mimic info`` shows of one file: every fact, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from mimic import icc, report, screen
from mimic.coding import Coding, coding
from mimic.model import Channel, Image, Level, Slide
from mimic.optics import AGREEMENT, POWER_TIMES_MPP_UM
from mimic.report import size_text
from mimic.survey import judge, pixels_text

FILES_MAX = 12
"""Named on the screen; --json has all."""


@dataclass(frozen=True, slots=True)
class _Line:
    """One fact, its value, and where it is from."""

    fact: str
    value: str
    origin: str = ""


def told(slide: Slide) -> dict[str, Any]:
    """The slide as JSON-able values, with what is judged and measured beside what the file says."""
    known: dict[str, Any] = report.plain(slide)
    known["size_bytes"] = sum(filter(None, (_file_size(path) for path in slide.files)))
    for image, plain in zip(slide.images, known["images"], strict=True):
        if image.role == "scan":
            judged, packed = judge(image), coding(slide, image)
            plain["product_um"] = judged.product_um
            plain["consistent"] = judged.consistent
            plain["doubt"] = judged.doubt
            plain["coding"] = report.plain(packed)
    return known


def show(slide: Slide) -> None:
    """Everything about one file, an image of tissue after the other."""
    screen.out.print(f"[bold]{escape(screen.shown(slide.path))}[/]")
    _print(_file_lines(slide))
    for image in slide.scans():
        name = f" {image.name}" if image.name and image.name != slide.path.stem else ""
        screen.out.print(f"\n[bold]image {image.index}: scan{escape(screen.shown(name))}[/]")
        _print(_scan_lines(image, coding(slide, image)))
    others = [image for image in slide.images if image.role != "scan"]
    if others:
        screen.out.print("\n[bold]other images[/]")
        _print([_other_line(image) for image in others])
    for warning in slide.warnings:
        screen.out.print(f"  [yellow]note:[/] {escape(screen.shown(warning))}")


def thumbnail(made: dict[str, Any]) -> None:
    """One line about a picture that was written."""
    size = f"{made['width_px']} x {made['height_px']} px"
    screen.out.print(f"\nthumbnail {escape(screen.shown(made['path']))}: {size}, {escape(screen.shown(made['made']))}")


def _print(lines: list[_Line]) -> None:
    table = Table(box=None, show_header=False, pad_edge=True, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", min_width=13, no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(style="dim", overflow="fold")
    for line in lines:
        table.add_row(*(escape(screen.shown(cell)) for cell in (line.fact, line.value, line.origin)))
    screen.out.print(table)


def _file_lines(slide: Slide) -> list[_Line]:
    sizes = [_file_size(path) for path in slide.files]
    total = size_text(sum(filter(None, sizes)))
    lines = [
        _Line("format", slide.format, f"read by {slide.source}"),
        _Line("scanner", slide.scanner or "not stated"),
        _Line("size on disk", total + (f" in {len(slide.files)} files" if len(slide.files) > 1 else "")),
    ]
    if len(slide.files) > 1:
        named = zip(slide.files[:FILES_MAX], sizes[:FILES_MAX], strict=True)
        lines += [_Line("  file", _below(path, slide.path.parent), size_text(size or 0)) for path, size in named]
        if len(slide.files) > FILES_MAX:
            lines.append(_Line("", f"and {len(slide.files) - FILES_MAX} more", "--json names all"))
    profile = slide.icc_profile
    told_profile = "none" if profile is None else f"{icc.name(profile) or 'unnamed'}, {len(profile)} bytes"
    lines.append(_Line("ICC profile", told_profile))
    if slide.missing_tiles:
        lines.append(_Line("missing", f"{slide.missing_tiles} tiles are not there", "the file's own directory"))
    return lines


def _below(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _file_size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _scan_lines(image: Image, packed: Coding) -> list[_Line]:
    size = image.levels[0]
    lines = [
        _Line("size", f"{size.width_px} x {size.height_px} px" + _millimetres(image)),
        _Line("pixels", pixels_text(image) + f", {image.bits} bits used" * (image.bits % 8 != 0)),
    ]
    lines += [_channel_line(channel) for channel in image.channel_facts]
    lines += [_level_line(number, level) for number, level in enumerate(image.levels)]
    lines += _coding_lines(packed)
    lines += _scale_lines(image)
    lines.append(_Line("acquired", image.acquired.isoformat(" ") if image.acquired else "not stated"))
    if image.stage_um is not None:
        lines.append(_Line("on the stage", f"x {image.stage_um[0]:g}, y {image.stage_um[1]:g} um"))
    return lines


def _millimetres(image: Image) -> str:
    if image.scale is None:
        return ""
    size = image.levels[0]
    width, height = size.width_px * image.scale.x_um / 1000, size.height_px * image.scale.y_um / 1000
    return f", {width:.3g} x {height:.3g} mm"


def _channel_line(channel: Channel) -> _Line:
    parts = [channel.name or "unnamed"]
    parts += [f"{channel.emission_nm:g} nm"] if channel.emission_nm is not None else []
    parts += ["colour #{:02x}{:02x}{:02x}".format(*channel.colour)] if channel.colour is not None else []
    if channel.low is not None and channel.high is not None:
        parts.append(f"shown from {channel.low:g} to {channel.high:g}")
    parts += [f"gamma {channel.gamma:g}"] if channel.gamma != 1 else []
    parts += ["transmitted light"] * channel.transmitted + ["hidden"] * channel.hidden
    return _Line(f"  channel {channel.index}", ", ".join(parts), "file")


def _level_line(number: int, level: Level) -> _Line:
    tile = ""
    if level.tile_width_px is not None and level.tile_height_px is not None:
        tile = f"in tiles of {level.tile_width_px} x {level.tile_height_px}"
    return _Line(f"  level {number}", f"{level.width_px} x {level.height_px}", tile)


def _coding_lines(packed: Coding) -> list[_Line]:
    if packed.codec is None:
        return [_Line("compression", "not known")]
    loss = {True: "lossy", False: "lossless", None: "the file does not tell whether lossy"}[packed.lossy]
    lines = [_Line("compression", f"{packed.codec}, {loss}", packed.note)]
    if packed.quality is not None:
        lines.append(_Line("quality", f"about {packed.quality} of 100 (libjpeg's)", "quantisation tables"))
    return lines


def _scale_lines(image: Image) -> list[_Line]:
    judged, scale = judge(image), image.scale
    um = "not stated" if scale is None else f"{scale.x_um:.6g} x {scale.y_um:.6g} um/px"
    power = "not stated" if judged.magnification is None else f"{judged.magnification:g}x"
    lines = [
        _Line("scale", um, judged.scale_from or ""),
        _Line("magnification", power, judged.magnification_from or ""),
    ]
    verdict = {True: "consistent", False: "NOT CONSISTENT", None: "cannot be judged"}[judged.consistent]
    product = f"{judged.product_um:.3g} um: " if judged.product_um is not None else ""
    band = f"scale x magnification, usual {POWER_TIMES_MPP_UM:g}, fits from {AGREEMENT[0]:g} to {AGREEMENT[1]:g}"
    lines.append(_Line("together", f"{product}{verdict}" + (f" ({judged.doubt})" if judged.doubt else ""), band))
    return lines


def _other_line(image: Image) -> _Line:
    size = image.levels[0]
    text = f"{size.width_px} x {size.height_px} px, {pixels_text(image)}"
    return _Line(image.role, text, f"image {image.index}" + (f": {image.name}" if image.name else ""))
