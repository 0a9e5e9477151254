"""Files, folders and options -> Requests: what is a slide of its own, and where its output goes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mimic import ngff, privacy, sets
from mimic.errors import BadInput, MimicError, UsageError
from mimic.model import Options, Request
from mimic.naming import is_file_name, output_stem
from mimic.probe import find_slides


@dataclass(frozen=True, slots=True)
class Found:
    """What the user's words stand for: slides to convert, and what is left alone.

    ``skipped`` has a reason for a file that need not be converted, an error for a folder that cannot be searched.
    """

    requests: tuple[Request, ...]
    skipped: tuple[tuple[Path, str | MimicError], ...] = ()


def options(**fields: Any) -> Options:
    """Options from words. Raises UsageError for one that does not exist, or a value that it cannot have."""
    unknown = sorted(set(fields) - set(Options.__dataclass_fields__))
    if unknown:
        raise UsageError(f"there is no option {', '.join(unknown)}", remedy="See mimic.Options")
    for name, kind in get_type_hints(Options).items():
        allowed = get_args(kind) if get_origin(kind) is Literal else ()
        if name in fields and allowed and fields[name] not in allowed:
            remedy = f"It can be {' or '.join(str(each) for each in allowed)}"
            raise UsageError(f"{name} cannot be {fields[name]!r}", remedy=remedy)
    return Options(**fields)


def expand(
    paths: Iterable[Path], output: Path | None, options: Options, detector: sets.Detector | None = None
) -> Found:
    """A Request for every slide: a file as it is, a folder with all slides below it.

    Of the files of a slide of several only one is a slide, whichever was named; the rest belong to it. Raises
    UsageError when several slides would go into one file, BadInput for a folder that cannot be read. ``detector``
    remembers folders that were looked at before.
    """
    detector = detector or sets.Detector()
    found: dict[Path, Request] = {}
    skipped: dict[Path, str | MimicError] = {}
    for path, place, reason in _places(paths, output, detector):
        if reason is not None:
            skipped.setdefault(Path(privacy.UNNAMED) if options.deidentify else path, reason)
            continue
        slide = detector.find(path)
        main = path if slide is None else slide.path
        if main not in found:  # of a set without its main file the member stands for it, and tells what is missing
            named = path if slide is not None and slide.path in slide.missing else main
            kept = options.deidentify or slide is None  # names made from the input's would tell of it
            found[main] = Request(named, place if kept else _place(slide, place, detector), options)
    requests = list(found.values())
    if output is not None and is_file_name(output) and len(requests) > 1:
        raise UsageError(f"{len(requests)} slides cannot go into the one file {output}", remedy="Give a folder with -o")
    return Found(distinct(requests, detector), tuple(skipped.items()))


def _place(slide: sets.SlideSet | None, place: Path | None, detector: sets.Detector) -> Path | None:
    """A DICOM series is named after its folder (plan.py), unless it shares the folder with another one."""
    series = slide is not None and slide.kind == "DICOM" and (place is None or not is_file_name(place))
    if slide is None or not series or detector.series_in(slide.path.parent) < 2:
        return place
    return (place or slide.path.parent) / f"{output_stem(slide.path)}.svs"


def _places(
    paths: Iterable[Path], output: Path | None, detector: sets.Detector
) -> Iterator[tuple[Path, Path | None, str | MimicError | None]]:
    """Every file, the place of its output, and why it is left alone if it is."""
    for path in paths:
        # os.path: Path.is_dir raises for a name too long; convert tells that better
        if not os.path.isdir(path) or ngff.is_zarr(path) or _is_set(path, detector):  # noqa: PTH112
            yield path, output, None
            continue
        for closed, error in _closed(path):
            message, remedy = f"the folder cannot be searched ({error.strerror})", "Ask for read access to it"
            yield closed, None, BadInput(message, closed, remedy)
        yield from _below(path, output, detector)


def _is_set(folder: Path, detector: sets.Detector) -> bool:
    """Whether a folder as a whole is one slide; one that cannot be read is none, and is told."""
    try:
        return detector.find(folder) is not None
    except OSError:
        return False


def _closed(root: Path) -> list[tuple[Path, OSError]]:
    """Folders that cannot be searched: slides in them must not be forgotten in silence."""
    found: list[tuple[Path, OSError]] = []
    for folder, below, _ in os.walk(root, onerror=lambda error: found.append((Path(error.filename), error))):
        below[:] = [name for name in below if not name.startswith(".") and name != "lost+found"]
        below[:] = [name for name in below if ngff.store(Path(folder, name)) is None]  # thousands of folders of chunks
    return found


def _below(
    folder: Path, output: Path | None, detector: sets.Detector
) -> Iterator[tuple[Path, Path | None, str | None]]:
    """Slides below a folder; each keeps its place below the output folder."""
    for file in find_slides(folder):
        if output is not None and is_file_name(output):
            yield file, output, None
        elif output is None and file.suffix == ".svs" and detector.find(file) is None:
            # it would replace itself, and most likely is an output of the last run
            yield file, None, "is an SVS already; give an output folder with -o to convert it"
        elif output is None:
            yield file, None, None
        elif output.absolute() not in file.absolute().parents or output.absolute() == folder.absolute():
            yield file, output / _home(file, folder, detector), None  # else: an output folder in the input


def _home(file: Path, folder: Path, detector: sets.Detector) -> Path:
    """The place of a slide's output below the output folder; a DICOM series counts as one file, its folder."""
    slide = detector.find(file)
    home = file.parent if slide is None else slide.path.parent
    if slide is not None and slide.kind == "DICOM" and detector.series_in(home) == 1:
        home = home.parent
    return home.relative_to(folder) if home.is_relative_to(folder) else Path()


def distinct(requests: list[Request], detector: sets.Detector) -> tuple[Request, ...]:
    """a.czi and a.ndpi in one folder: the first becomes a.svs, the second a.ndpi.svs."""
    taken: set[tuple[Path, str]] = set()
    result = []
    for request in requests:
        if request.options.deidentify or (request.output is not None and is_file_name(request.output)):
            result.append(request)
            continue
        slide = detector.find(request.input)
        series = slide is not None and slide.kind == "DICOM"
        named = request.input.absolute().parent if series else request.input
        folder = request.output or named.parent
        key = (folder.absolute(), (named.name if series else output_stem(named)).casefold())
        clash = key in taken
        taken.add(key)
        result.append(replace(request, output=folder / f"{named.name}.svs") if clash else request)
    return tuple(result)
