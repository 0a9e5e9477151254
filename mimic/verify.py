"""The proof of a finished slide: other people's readers see what was meant, and its pixels are the source's.

What OpenSlide returns is judged, not what our own code wrote: an error of tile order, colour or place shows there.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import openslide
import PIL.Image
import tifffile
from numpy.typing import NDArray

from mimic import rules, sheets, svs, wording
from mimic.edit import pending_bytes
from mimic.errors import BadInput, Unsupported, VerificationFailed
from mimic.model import Check, Pixels, Plan, Profile, Progress, Sample
from mimic.samples import SampleKeeper

__all__ = ["SampleKeeper", "check", "failed", "pixels", "raise_if_failed", "readers"]

TIFFFILE_ERRORS = (
    *(tifffile.TiffFileError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    *(struct.error, ArithmeticError, MemoryError),
)
"""TiffFileError, TypeError, ValueError and IndexError were met in 9000 mutations; the rest is what
struct, numpy and its own attributes raise for fields that are missing or absurd."""

REGION_PX = 256
MAX_TILE_PX = 4096
"""Scanners write tiles of 240 to 512 pixels, other writers up to 2048."""
OPAQUE = 128
"""Of 255: a missing tile has alpha 0, a seam of two tiles between pixels at least 191."""
MPP_TOLERANCE = 0.0002
"""MPP has at least four significant decimals; OpenSlide passes the text on."""

QUALITIES = (1, 10, 30, 50, 70, 80, 90, 95, 100)
FLOORS_DB = (19.0, 25.0, 29.5, 31.5, 33.0, 34.0, 36.5, 41.0, 43.5)
"""PSNR of a 256 px box above which nothing is asked, by JPEG quality.

Median over real H&E (a JPEG of 1500 x 1500) and IHC (scikit-image's) boxes coded by ``encode`` as YCbCr 4:2:0, and
less than the RGB profile reaches: 19.5/21.1, 25.5/26.5, 29.7/30.9, 31.5/32.9, 33.1/34.8, 34.4/36.3, 36.8/39.0,
44.7/41.8, 44.4/50.2 dB. Flat boxes and gradients reach 43 dB at quality 50 and more. Below the floor a box is right
when it is as good as Pillow makes it from the source: noise gets 12.6 dB at quality 80, a checkerboard of red and blue
pixels 5 dB; there ``encode`` and Pillow agree to 0.00 dB at each of these qualities, in both profiles.
"""
AVERAGED_GAIN_DB = 4.0
"""Averaging 4 x 4 pixels removes noise of the coder: 4 to 7 dB on the same histology boxes at quality 30 to 90."""
MARGIN_DB = 1.0
MEAN_TOLERANCE = 1.5
MEAN_MARGIN = 0.5
"""Grey levels by which a channel's mean may move: 0.0 to 1.0 on histology from quality 50 on, 2.5 at 30; but 19 on a
one-pixel checkerboard of red and green with 4:2:0, so here too Pillow's result, and half a level, sets the limit."""
MCU_PX = 16
FLAT_STD, CONTRAST_STD = 0.5, 4.0
"""A box, averaged 4 x 4, is blank when no channel varies by more than 0.5 although one of the source's varies by 4:
empty glass of the scanner's slide in the corpus varies by 1 to 2.6, tissue by 5 to 39."""


def readers(path: Path, plan: Plan | None = None) -> tuple[Check, ...]:
    """What OpenSlide and tifffile make of a slide, against ``plan``, or without one against the TIFF's own fields.

    Raises BadInput for a file that is no TIFF or whose directories are damaged.
    """
    layout = sheets.read(path)
    wanted = _wanted_of_plan(plan) if plan else _wanted_of_file(layout)
    danger = next((text for sheet in layout.sheets if (text := _danger(sheet))), None)
    if danger:
        seen: tuple[Check, ...] = (Check("OpenSlide opens it", False, f"not tried: {danger}", "sizes that hold"),)
    else:
        seen = _openslide_checks(path, wanted)
    return (*seen, *_tifffile_checks(path, wanted))


def check(
    path: Path, *, threads: int | None = None, progress: Callable[[Progress], None] | None = None
) -> tuple[Check, ...]:
    """Structure and readers of any SVS, mimic's or not. Raises BadInput as ``rules.structure`` does."""
    return (*rules.structure(path, threads=threads, progress=progress), _finished(path), *readers(path))


def _finished(path: Path) -> Check:
    """Whether no edit was cut off in it, whose old texts and pictures are then still in the file."""
    try:
        left_bytes = pending_bytes(path)
    except (BadInput, Unsupported):  # what 'mimic edit' cannot read it has not begun to change
        left_bytes = 0
    measured = f"{left_bytes} bytes, which the next 'mimic edit' of it wipes" if left_bytes else "nothing"
    return Check("no unfinished edit", not left_bytes, measured, "nothing left by one that was cut off", must=False)


def failed(checks: Iterable[Check]) -> tuple[Check, ...]:
    """The broken MUSTs."""
    return tuple(each for each in checks if each.must and not each.passed)


def raise_if_failed(checks: Iterable[Check], path: Path) -> None:
    """Raises VerificationFailed, naming the first three broken MUSTs."""
    broken = failed(checks)
    if broken:
        said = "; ".join(f"{each.name}: {each.measured}, expected {each.expected}" for each in broken[:3])
        more = f"; and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise VerificationFailed(f"the slide breaks {len(broken)} rules: {said}{more}", path)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What readers should see. ``mpp_um`` is the allowed range; ``images`` maps associated images to their sizes."""

    levels: tuple[tuple[int, int], ...]
    mpp_um: tuple[float, float] | None
    power: float | None
    images: dict[str, tuple[int, int]]


def _wanted_of_plan(plan: Plan) -> _Wanted:
    scale, images = plan.scale, {"thumbnail": plan.thumbnail_px}
    images |= {picture.role: (picture.width_px, picture.height_px) for picture in plan.pictures}
    return _Wanted(
        levels=tuple((level.width_px, level.height_px) for level in plan.levels),
        mpp_um=(min(scale.x_um, scale.y_um), max(scale.x_um, scale.y_um)) if scale else None,
        power=float(appmag) if (appmag := svs.appmag_of(plan.objective)) else None,
        images=images,
    )


def _wanted_of_file(layout: sheets.Layout) -> _Wanted:
    base = layout.sheets[0]
    mpp, power = wording.mpp_of(base), wording.value_of(base, "AppMag") or ""
    return _Wanted(
        levels=tuple((sheet.width_px, sheet.height_px) for sheet in layout.tiled()),
        mpp_um=(mpp, mpp) if mpp else None,
        power=float(power) if power.isdecimal() else None,
        images={sheet.kind: (sheet.width_px, sheet.height_px) for sheet in layout.of("thumbnail", "label", "macro")},
    )


def _danger(sheet: sheets.Sheet) -> str | None:
    """Why OpenSlide must not see this directory: it allocates what a damaged size says, and if it cannot, it aborts
    the process (seen with a tile 1476395264 pixels high)."""
    columns, rows = sheet.grid
    if columns * rows != len(sheet.offsets):
        return f"{sheet.name} has {len(sheet.offsets)} tiles or strips instead of {columns * rows}"
    limit = MAX_TILE_PX if sheet.tiled else rules.MAX_ASSOCIATED_PX
    width, height = (sheet.tile_width_px, sheet.tile_height_px) if sheet.tiled else (sheet.width_px, sheet.height_px)
    return f"{sheet.name} claims {width}x{height} px at once" if max(width, height) > limit else None


def _openslide_checks(path: Path, wanted: _Wanted) -> tuple[Check, ...]:
    try:
        slide = openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
        return (Check("OpenSlide opens it", False, str(error) or type(error).__name__, "it opens"),)
    with closing(slide):
        try:
            return _seen_by_openslide(slide, wanted)
        except openslide.OpenSlideError as error:
            # the error sticks to the handle, so nothing more can be asked of it
            return (Check("OpenSlide reads it", False, str(error), "everything reads"),)


def _seen_by_openslide(slide: openslide.OpenSlide, wanted: _Wanted) -> tuple[Check, ...]:
    properties = slide.properties
    vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "none")
    power = properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)
    images = {name: picture.size for name, picture in slide.associated_images.items()}
    return (
        Check("OpenSlide vendor", vendor == "aperio", vendor, "aperio"),
        _same("OpenSlide levels", slide.level_dimensions, wanted.levels),
        _mpp_check("OpenSlide mpp-x", properties.get(openslide.PROPERTY_NAME_MPP_X), wanted),
        _mpp_check("OpenSlide mpp-y", properties.get(openslide.PROPERTY_NAME_MPP_Y), wanted),
        _same("OpenSlide objective-power", float(power) if power else None, wanted.power),
        _same("OpenSlide associated images", images, wanted.images),
        _regions_check(slide),
    )


def _same(name: str, measured: object, expected: object) -> Check:
    return Check(name, measured == expected, str(measured), str(expected))


def _mpp_check(name: str, text: str | None, wanted: _Wanted) -> Check:
    if wanted.mpp_um is None or text is None:
        return Check(name, text is None and wanted.mpp_um is None, text or "none", _range_text(wanted.mpp_um))
    low, high = wanted.mpp_um
    good = low * (1 - MPP_TOLERANCE) <= float(text) <= high * (1 + MPP_TOLERANCE)
    return Check(name, good, text, _range_text(wanted.mpp_um))


def _range_text(mpp_um: tuple[float, float] | None) -> str:
    if mpp_um is None:
        return "none"
    return f"{mpp_um[0]:g}" if mpp_um[0] == mpp_um[1] else f"{mpp_um[0]:g} to {mpp_um[1]:g}"


def _regions_check(slide: openslide.OpenSlide) -> Check:
    """First, middle and last region of each level; OpenSlide returns missing tiles transparent, without an error."""
    wrong = []
    for level, (width, height) in enumerate(slide.level_dimensions):
        size = min(REGION_PX, width), min(REGION_PX, height)
        last = width - size[0], height - size[1]
        down = slide.level_downsamples[level]
        for x, y in ((0, 0), (last[0] // 2, last[1] // 2), last):
            region = slide.read_region((int(x * down), int(y * down)), level, size)
            # inside of a pixel's rim: a place between pixels of the level is smoothed, there and at seams of tiles
            if np.asarray(region)[1:-1, 1:-1, 3].min(initial=255) < OPAQUE:
                wrong.append(f"level {level} at {x},{y}: transparent")
    return sheets.rule("OpenSlide regions", wrong, expected="opaque at both ends and the middle of every level")


def _tifffile_checks(path: Path, wanted: _Wanted) -> tuple[Check, ...]:
    expected = {"Baseline": tuple((height, width, 3) for width, height in wanted.levels)}
    expected |= {name.capitalize(): ((size[1], size[0], 3),) for name, size in wanted.images.items()}
    try:
        with tifffile.TiffFile(path) as tiff:
            known = tiff.is_svs
            seen = {series.name: tuple(level.shape for level in series.levels) for series in tiff.series}
    except TIFFFILE_ERRORS as error:
        return (Check("tifffile opens it", False, str(error) or type(error).__name__, "it opens"),)
    return (
        Check("tifffile is_svs", known, str(known), "True"),
        _same("tifffile series", seen, expected),
    )


@dataclass(frozen=True, slots=True)
class _Judgement:
    """One box: by how many dB (or grey levels, as dB) the worst measure misses its limit, and what to say of it."""

    slack: float
    text: str
    blank: bool


def pixels(
    path: Path, samples: Iterable[Sample], *, quality: int, profile: Profile, threads: int = 1
) -> tuple[Check, ...]:
    """Compares what OpenSlide reads at each sample's place on level 0 with the source's pixels.

    Each box must be, in full resolution, averaged 4 x 4, and in the mean of each channel, as good as its JPEG quality
    demands, or as an independent round trip of the source. ``samples`` are taken a few at a time and not kept, so they
    may be a generator over the whole slide. No sample at all fails: nothing would be proved.
    """
    expected = f"as good as JPEG quality {quality} ({profile})"
    count = bad = 0
    worst: tuple[float, str] = (np.inf, "no box to compare")
    blanks: list[str] = []
    try:
        with closing(openslide.OpenSlide(path)) as slide:
            for sample, judged in _judged(slide, iter(samples), threads, quality=quality, profile=profile):
                place = f"x={sample.box.x_px}, y={sample.box.y_px}"
                count += 1
                bad += judged.slack < 0
                worst = min(worst, (judged.slack, f"worst at {place}: {judged.text}"))
                if judged.blank:
                    blanks.append(place)
    except (openslide.OpenSlideError, OSError) as error:
        # nothing more can be read through this handle: after one error OpenSlide returns that error for ever
        return (Check("pixels", False, f"OpenSlide after {count} boxes: {error}", expected),)
    return (
        Check("pixels", count > 0 and not bad, f"{count - bad} of {count} boxes agree; {worst[1]}", expected),
        sheets.rule(
            "no blank boxes",
            blanks,
            measured=f"none of {count}",
            expected="content and full opacity where the source has content",
        ),
    )


def _judged(
    slide: openslide.OpenSlide, samples: Iterator[Sample], threads: int, *, quality: int, profile: Profile
) -> Iterator[tuple[Sample, _Judgement]]:
    """Each sample with what is to be said of it, in order."""
    judge = partial(_judge, slide, quality=quality, profile=profile)
    with ThreadPoolExecutor(threads, thread_name_prefix="mimic-judge") as pool:
        while some := list(islice(samples, 4 * threads)):
            yield from zip(some, pool.map(judge, some), strict=True)


def _judge(slide: openslide.OpenSlide, sample: Sample, *, quality: int, profile: Profile) -> _Judgement:
    box = sample.box
    rgba = np.asarray(slide.read_region((box.x_px, box.y_px), 0, (box.width_px, box.height_px)))
    if rgba[..., 3].min() < 255:
        return _Judgement(-np.inf, "transparent", blank=True)
    inside = _on_mcu_grid(sample)
    source = sample.pixels[inside]
    got = np.empty(source.shape, np.uint8)
    for channel in range(3):  # a quarter of the time of going pixel by pixel
        got[..., channel] = rgba[inside][..., channel]
    small, small_got = averaged(source), averaged(got)
    full, mild, moved = psnr_db(source, got), psnr_db(small, small_got), _mean_difference(small, small_got)
    full_ok = float(np.interp(quality, QUALITIES, FLOORS_DB))
    mild_ok, moved_ok = full_ok + AVERAGED_GAIN_DB, MEAN_TOLERANCE
    if full < full_ok or mild < mild_ok or moved > moved_ok:  # else no round trip could ask for less
        reference = _round_trip(source, quality, profile)
        small_reference = averaged(reference)
        full_ok = min(full_ok, psnr_db(source, reference) - MARGIN_DB)
        mild_ok = min(mild_ok, psnr_db(small, small_reference) - MARGIN_DB)
        moved_ok = max(moved_ok, _mean_difference(small, small_reference) + MEAN_MARGIN)
    text = (
        f"PSNR {full:.1f} dB (at least {full_ok:.1f}), averaged {mild:.1f} ({mild_ok:.1f}), "
        f"mean colour off by {moved:.1f} (at most {moved_ok:.1f})"
    )
    blank = _spread(small_got) <= FLAT_STD and _spread(small) >= CONTRAST_STD
    return _Judgement(min(full - full_ok, mild - mild_ok, moved_ok - moved), text, blank)


def _on_mcu_grid(sample: Sample) -> tuple[slice, slice]:
    """The part of a box that starts on the slide's grid of 16 px JPEG blocks: only there a round trip compares."""
    x, y = -sample.box.x_px % MCU_PX, -sample.box.y_px % MCU_PX
    large = sample.box.width_px >= x + MCU_PX and sample.box.height_px >= y + MCU_PX
    return (slice(y, None), slice(x, None)) if large else (slice(None), slice(None))


def _round_trip(source: Pixels, quality: int, profile: Profile) -> Pixels:
    file = io.BytesIO()
    picture = PIL.Image.fromarray(np.ascontiguousarray(source))
    if profile == "ycc":
        picture.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    else:
        picture.save(file, "JPEG", quality=quality, subsampling="4:4:4", keep_rgb=True)
    with PIL.Image.open(file) as coded:
        return np.asarray(coded.convert("RGB"))


def psnr_db(first: NDArray[np.generic], second: NDArray[np.generic]) -> float:
    """Peak signal-to-noise ratio of two pictures of 8-bit range, at most 99 dB."""
    difference = np.subtract(first, second, dtype=np.float32).ravel()
    error = float(difference @ difference) / difference.size
    return min(99.0, 10 * float(np.log10(255**2 / error))) if error else 99.0


def averaged(picture: Pixels) -> NDArray[np.float32]:
    """Means of 4 x 4 pixels, shape (height // 4, width // 4, 3); of a smaller picture its mean pixel."""
    high, wide = picture.shape[0] // 4, picture.shape[1] // 4
    if not high or not wide:
        return np.asarray(picture.mean((0, 1), keepdims=True), np.float32)
    part = picture[: high * 4, : wide * 4].astype(np.uint16)
    rows = part[::4] + part[1::4] + part[2::4] + part[3::4]
    sums = rows[:, ::4] + rows[:, 1::4] + rows[:, 2::4] + rows[:, 3::4]
    return np.asarray(sums / 16, np.float32)


def _mean_difference(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    return float(np.abs(_mean(first) - _mean(second)).max())


def _spread(picture: NDArray[np.float32]) -> float:
    away = picture - _mean(picture)
    return float(np.sqrt(_mean(away * away)).max())


def _mean(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean pixel: as a product a fifth of the time of ``mean``, which goes in steps of three."""
    rows = picture.reshape(-1, picture.shape[-1])
    return np.asarray(np.full(len(rows), 1 / len(rows), np.float32) @ rows, np.float32)
