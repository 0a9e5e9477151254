"""Files, folders and options -> Requests: what is a slide of its own, and where its output goes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mimic import structure
from mimic.errors import BadInput, MimicError, UsageError
from mimic.model import Options, Request
from mimic.plan import is_file_name, output_stem
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


def expand(paths: Iterable[Path], output: Path | None, options: Options) -> Found:
    """A Request for every slide: a file as it is, a folder with all slides below it.

    Of the files of one DICOM series in one folder only the first is a slide, the rest belong to it. Raises UsageError
    when several slides would go into one file.
    """
    found: dict[Path, Request] = {}
    skipped: dict[Path, str | MimicError] = {}
    series: set[tuple[Path, str]] = set()
    for path, place, reason in _places(paths, output):
        if reason is not None:
            skipped.setdefault(path, reason)
            continue
        uid = _series(path)
        if uid is not None and (path.parent, uid) in series:
            continue
        if uid is not None:
            series.add((path.parent, uid))
        found.setdefault(path, Request(path, place, options))
    requests = list(found.values())
    if output is not None and is_file_name(output) and len(requests) > 1:
        raise UsageError(f"{len(requests)} slides cannot go into the one file {output}", remedy="Give a folder with -o")
    return Found(tuple(_distinct(requests)), tuple(skipped.items()))


def _places(paths: Iterable[Path], output: Path | None) -> Iterator[tuple[Path, Path | None, str | MimicError | None]]:
    """Every file, the place of its output, and why it is left alone if it is."""
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for a name too long; convert tells that better
            yield path, output, None
            continue
        for closed, error in _closed(path):
            message, remedy = f"the folder cannot be searched ({error.strerror})", "Ask for read access to it"
            yield closed, None, BadInput(message, closed, remedy)
        yield from _below(path, output)


def _closed(folder: Path) -> list[tuple[Path, OSError]]:
    """Folders that cannot be searched: slides in them must not be forgotten in silence."""
    found: list[tuple[Path, OSError]] = []
    for _, below, _ in os.walk(folder, onerror=lambda error: found.append((Path(error.filename), error))):
        below[:] = [name for name in below if not name.startswith(".") and name != "lost+found"]
    return found


def _below(folder: Path, output: Path | None) -> Iterator[tuple[Path, Path | None, str | None]]:
    """Slides below a folder; each keeps its place below the output folder."""
    for file in find_slides(folder):
        if output is not None and is_file_name(output):
            yield file, output, None
        elif output is None and file.suffix == ".svs":
            # it would replace itself, and most likely is an output of the last run
            yield file, None, "is an SVS already; give an output folder with -o to convert it"
        elif output is None:
            yield file, None, None
        elif output.absolute() not in file.absolute().parents or output.absolute() == folder.absolute():
            yield file, output / file.parent.relative_to(folder), None  # else: an output folder within the input folder


def _series(path: Path) -> str | None:
    """The series of a DICOM file; a file that is none, or damaged, stands for itself."""
    try:
        dicom = structure.check(path).dicom if path.is_file() else None
    except (MimicError, OSError):  # convert tells what is wrong with it
        return None
    return dicom.series_instance_uid if dicom is not None else None


def _distinct(requests: list[Request]) -> list[Request]:
    """a.czi and a.ndpi in one folder: the first becomes a.svs, the second a.ndpi.svs."""
    taken: set[tuple[Path, str]] = set()
    result = []
    for request in requests:
        folder = request.output or request.input.parent
        key = (folder, output_stem(request.input).casefold())
        own = request.output is not None and is_file_name(request.output)
        clash = key in taken and not own
        taken.add(key)
        result.append(replace(request, output=folder / f"{request.input.name}.svs") if clash else request)
    return result
