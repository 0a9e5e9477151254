"""A folder of slides -> a row a slide: what each one is, and whether its scale and its magnification fit each other.

Facts only: files are probed, a few headers of tiles are read, no pixel is decoded. One JVM serves the whole folder.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path

from mimic import interrupts, sets
from mimic.coding import coding
from mimic.errors import BadInput, InternalError, MimicError, UsageError, writing_failed
from mimic.model import Image, Slide
from mimic.optics import ANISOTROPY_MAX, POWER_TIMES_MPP_UM, agree
from mimic.probe import SUFFIXES, find_slides, probe
from mimic.settings import Settings

log = logging.getLogger(__name__)

SCHEMA = 1
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet takes for the start of a formula, full-width forms included, or skips on the way to one."""
UNKNOWN = "unknown"
TOOLS_FAULT = 5
"""Errors with this exit code or a higher one are not about the file: Java is missing, memory ran out."""

Watch = Callable[[int, int, Path], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One slide. ``file`` is its path below the folder; ``scans`` counts its images of tissue, and everything else is
    about the largest of them. ``scale_um`` is the mean of both axes; ``product_um`` is scale times magnification, about
    10 in a plain light path; ``consistent`` is None where one of the two is not known, and ``doubt`` says what is wrong
    or not known. ``quality`` is the estimate of libjpeg's. ``size_bytes`` counts all ``files`` of the slide.
    """

    file: str
    format: str | None = None
    scanner: str | None = None
    scans: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    pixels: str | None = None
    scale_um: float | None = None
    scale_from: str | None = None
    magnification: float | None = None
    magnification_from: str | None = None
    product_um: float | None = None
    consistent: bool | None = None
    doubt: str | None = None
    label: bool | None = None
    macro: bool | None = None
    levels: int | None = None
    codec: str | None = None
    quality: int | None = None
    lossy: bool | None = None
    acquired: datetime | None = None
    files: int | None = None
    size_bytes: int | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    exit_code: int = 0


COLUMNS = tuple(field.name for field in fields(Row) if field.name != "exit_code")


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts by format, scanner and magnification, the most frequent first; names of the rows that need a look."""

    slides: int
    formats: dict[str, int]
    scanners: dict[str, int]
    magnifications: dict[str, int]
    inconsistent: tuple[str, ...]
    without_scale: tuple[str, ...]
    without_magnification: tuple[str, ...]
    failed: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Survey:
    """All slides of a folder, in the order of their names."""

    schema: int
    folder: Path
    made: datetime
    seconds_s: float
    summary: Summary
    rows: tuple[Row, ...]

    @property
    def exit_code(self) -> int:
        """0, or the code of a failure that says nothing about the file: a survey without Java is no survey."""
        return max((row.exit_code for row in self.rows if row.exit_code >= TOOLS_FAULT), default=0)


def survey(folder: Path, settings: Settings, watch: Watch = lambda *_: None) -> Survey:
    """Look at every slide below ``folder``, one after the other; a broken file is a row with its error.

    ``watch`` is called before each file with its number, how many there are, and its path. Raises UsageError when
    ``folder`` is none, BadInput when it cannot be read.
    """
    started = time.monotonic()
    try:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "there is no such folder"
            raise UsageError(what, folder, "Name a folder of slides; 'mimic info' looks at one file")
        os.scandir(folder).close()
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror})", folder, "Check who may read it") from error
    rows = tuple(_rows(folder, tuple(find_slides(folder)), settings, watch))
    seconds = round(time.monotonic() - started, 3)
    made = datetime.now().astimezone().replace(microsecond=0)
    return Survey(SCHEMA, folder, made, seconds, summarise(rows), rows)


@dataclass(slots=True)
class _Found:
    """A row, and the files that were read for it."""

    row: Row
    files: frozenset[Path]


def _rows(folder: Path, paths: tuple[Path, ...], settings: Settings, watch: Watch) -> Iterator[Row]:
    """A row for every slide: what belongs to another slide is a companion, and a set that is broken is told once."""
    detector = sets.Detector()
    found: dict[Path, _Found] = {}
    taken: set[Path] = set()
    known: set[frozenset[Path]] = set()
    for number, path in enumerate(paths):
        interrupts.check()
        watch(number, len(paths), path)
        if _plain(path) in taken:
            continue
        one = _look(path, folder, settings, detector.find(path))
        if one.files in known:
            continue
        for member in one.files & found.keys():
            if len(found[member].files) < len(one.files):
                del found[member]
        found[_plain(path)] = one
        taken |= one.files
        known.add(one.files)
    yield from (one.row for one in found.values())


def _plain(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links, which are slides of their own


def _look(path: Path, folder: Path, settings: Settings, members: sets.SlideSet | None) -> _Found:
    """One slide, with every failure turned into a row: the edge, where one slide's bug must not stop the rest."""
    files = frozenset(_plain(each) for each in (path, *(members.files if members is not None else ())))
    if members is not None and members.path.is_file():
        path = members.path
    try:
        slide = probe(path, settings)
        return _Found(row(slide, folder), files | {_plain(each) for each in slide.files})
    except MimicError as error:
        log.info("%s", error)
        failure = error
    except Exception as error:
        log.exception("a bug in mimic")
        failure = InternalError(f"a bug in mimic: {type(error).__name__}: {error}", path, "Please report it")
    other = failure.path if failure.path is not None and _plain(failure.path) != _plain(path) else None
    bare = type(failure)(failure.message, other, failure.remedy)
    failed = Row(_name(path, folder), size_bytes=_size(*files), error=str(bare), exit_code=failure.exit_code)
    return _Found(failed, files)


def _name(path: Path, folder: Path) -> str:
    path, folder = _plain(path), _plain(folder)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _size(*paths: Path) -> int | None:
    try:
        return sum(path.stat().st_size for path in paths)
    except OSError:
        return None


def row(slide: Slide, folder: Path) -> Row:
    """The row of one slide; ``folder`` is what its name is told below of."""
    image = main_image(slide)
    level = image.levels[0]
    packed = coding(slide, image)
    roles = {other.role for other in slide.images}
    judged = judge(image)
    return replace(
        judged,
        file=_name(slide.path, folder),
        format=slide.format,
        scanner=slide.scanner,
        scans=len(slide.scans()),
        width_px=level.width_px,
        height_px=level.height_px,
        pixels=pixels_text(image),
        label="label" in roles,
        macro="macro" in roles,
        levels=len(image.levels),
        codec=packed.codec,
        quality=packed.quality,
        lossy=packed.lossy,
        acquired=image.acquired,
        files=len(slide.files),
        size_bytes=_size(*slide.files),
        warnings=slide.warnings,
    )


def main_image(slide: Slide) -> Image:
    """The largest image of tissue; of a file without one the largest image."""
    images = slide.scans() or slide.images
    return max(images, key=lambda image: image.levels[0].width_px * image.levels[0].height_px)


def pixels_text(image: Image) -> str:
    """What a pixel is, in a few words: "RGB uint8", "4 channels uint16, 12 planes"."""
    kind = "RGB" if image.rgb else f"{image.channels} channel{'s' if image.channels > 1 else ''}"
    planes = f", {image.z_planes} planes" if image.z_planes > 1 else ""
    return f"{kind} {image.pixel_type}{planes}" + (f", {image.t_frames} times" if image.t_frames > 1 else "")


def judge(image: Image) -> Row:
    """Scale and magnification of an image, where each is from, and whether they fit each other: a Row of only that."""
    scale, objective = image.scale, image.objective
    um = math.sqrt(scale.x_um * scale.y_um) if scale is not None else None
    power = objective.power if objective is not None else None
    product = um * power if um is not None and power is not None else None
    consistent, doubt = _verdict(image, um, power)
    return Row(
        "",
        scale_um=um,
        scale_from=_origin(scale.origin, scale.note) if scale is not None else None,
        magnification=power,
        magnification_from=_origin(objective.origin, objective.note) if objective is not None else None,
        product_um=product,
        consistent=consistent,
        doubt=doubt,
    )


def _origin(origin: str, note: str) -> str:
    return f"{origin}: {note}" if note else origin


def _verdict(image: Image, um: float | None, power: float | None) -> tuple[bool | None, str | None]:
    scale = image.scale
    if scale is not None and max(scale.x_um, scale.y_um) > min(scale.x_um, scale.y_um) * (1 + ANISOTROPY_MAX):
        return False, f"its pixels are not square: {scale.x_um:g} x {scale.y_um:g} um"
    if um is None or power is None:
        names = [name for name, value in (("scale", um), ("magnification", power)) if value is None]
        return None, f"no {' and no '.join(names)} in the file"
    if power > 0 and agree(um, power):
        return True, None
    usual = f"{um:.3g} um is usual at about {POWER_TIMES_MPP_UM / um:.2g}x, not at {power:g}x"
    return False, f"{usual}: an optovar, aperture boost or camera adapter, or one of the two is wrong"


def summarise(rows: Iterable[Row]) -> Summary:
    """Counts and names over rows; those with an error count under their own heading only."""
    rows = tuple(rows)
    good = [each for each in rows if each.error is None]
    return Summary(
        slides=len(rows),
        formats=_counts(each.format or UNKNOWN for each in good),
        scanners=_counts(each.scanner or UNKNOWN for each in good),
        magnifications=_counts(UNKNOWN if each.magnification is None else f"{each.magnification:g}x" for each in good),
        inconsistent=tuple(each.file for each in good if each.consistent is False),
        without_scale=tuple(each.file for each in good if each.scale_um is None),
        without_magnification=tuple(each.file for each in good if each.magnification is None),
        failed=tuple(each.file for each in rows if each.error is not None),
        size_bytes=sum(each.size_bytes or 0 for each in rows),
    )


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def to_csv(rows: Iterable[Row]) -> str:
    """A table for spreadsheets and pandas: a heading, a line a row, unknown is empty; texts are never formulas."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for each in rows:
        writer.writerow([csv_cell(getattr(each, name)) for name in COLUMNS])
    return text.getvalue()


def csv_cell(value: object) -> str:
    """One value as CSV text. A text that a spreadsheet would run as a formula gets an apostrophe in front."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat(" ")
    text = "; ".join(value) if isinstance(value, tuple) else str(value)
    text = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA) else text


def check_target(path: Path) -> None:
    """Raises UsageError for the name of a slide or of a folder: what is there must not be overwritten by a table."""
    if path.suffix.lower() in SUFFIXES:
        raise UsageError("that is a slide's name, not a table's", path, "End it in .csv or .html")
    if path.is_dir():
        raise UsageError("that is a folder", path, "Name a file in it")


def write_text(text: str, path: Path) -> None:
    """``text`` into a file, whole or not at all. Raises OutputError."""
    part = path.with_name(f".mimic-{os.getpid()}.part")  # short, as the name may have all of the 255 bytes
    try:
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise writing_failed(error, path) from error
