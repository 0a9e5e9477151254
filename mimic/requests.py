"""Files, folders and options -> Requests: what is a slide of its own, and where its output goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mimic import structure
from mimic.errors import MimicError, UsageError
from mimic.model import Options, Request
from mimic.plan import is_file_name, output_stem
from mimic.probe import find_slides


def expand(paths: Iterable[Path], output: Path | None, options: Options) -> list[Request]:
    """A Request for every slide: a file as it is, a folder with all slides below it.

    Of the files of one DICOM series in one folder only the first is a slide, the rest belong to it. Raises UsageError
    when several slides would go into one file.
    """
    found: dict[Path, Request] = {}
    series: set[tuple[Path, str]] = set()
    for path, folder in _places(paths, output):
        uid = _series(path)
        if uid is not None and (path.parent, uid) in series:
            continue
        if uid is not None:
            series.add((path.parent, uid))
        found.setdefault(path, Request(path, folder, options))
    requests = list(found.values())
    if output is not None and is_file_name(output) and len(requests) > 1:
        raise UsageError(f"{len(requests)} slides cannot go into the one file {output}", remedy="Give a folder with -o")
    return _distinct(requests)


def _places(paths: Iterable[Path], output: Path | None) -> Iterator[tuple[Path, Path | None]]:
    """Every file with the place of its output; what lies below a folder keeps its place below the output folder."""
    for path in paths:
        if not path.is_dir():
            yield path, output
            continue
        for file in find_slides(path):
            if output is None and file.suffix == ".svs":
                continue  # it would replace itself, and most likely is an output of the last run
            if output is not None and not is_file_name(output):
                if output.absolute() in file.absolute().parents and output.absolute() != path.absolute():
                    continue  # an output folder within the input folder
                yield file, output / file.parent.relative_to(path)
            else:
                yield file, output


def _series(path: Path) -> str | None:
    """The series of a DICOM file; a file that is none, or damaged, stands for itself."""
    try:
        dicom = structure.check(path).dicom if path.is_file() else None
    except MimicError:
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
