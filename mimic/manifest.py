"""A manifest -> Requests: a line a slide, with options of its own; told whole before anything starts when it is wrong.

CSV with a header, or JSON lines (``.jsonl``, ``.ndjson``, ``.json``). ``input`` must be there; ``output`` and every
option of ``convert`` by its long name may be. How the words of options become values is the command line's matter:
``parse`` is given to ``read``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mimic import privacy, requests, sets
from mimic.errors import BadInput, MimicError, UsageError
from mimic.model import Options, Request

JSON_ENDINGS = frozenset((".jsonl", ".ndjson", ".json"))
PLACES = frozenset(("scratch",))
"""Options that name a file or folder."""
LABEL_WORDS = frozenset(("", "keep", "drop", "redact"))
YES, NO = frozenset(("1", "true", "yes", "y", "x")), frozenset(("", "0", "false", "no", "n"))
MAX_TOLD = 10

Parse = Callable[[Sequence[str]], Options]
"""Words of a command line, without input and output, -> Options. Raises UsageError."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line as it stands: ``number`` is that of a text editor, values are texts, or JSON's."""

    number: int
    values: Mapping[str, Any]


def read(path: Path, *, flags: Mapping[str, bool], parse: Parse, output: Path | None = None) -> requests.Found:
    """What a manifest asks for. ``flags`` maps the long name of every option to whether it takes no value.

    Relative paths start at the manifest's folder; ``output`` is for lines that name none. A line whose input is not
    there becomes a part of what is skipped, with its error; everything else that is wrong raises one UsageError that
    names every line, and BadInput is raised for a manifest that cannot be read.
    """
    faults: list[str] = []
    made: dict[int, Request] = {}
    missing: list[tuple[Path, str | MimicError]] = []
    detector = sets.Detector()
    for line in _lines(path):
        try:
            request = _request(line, path.parent, flags=flags, parse=parse, output=output)
            if request.input.exists():
                made[line.number] = _one(request, detector)
            else:
                silent = request.options.deidentify
                error = _absent(request.input, line, path, silent=silent)
                missing.append((Path(privacy.UNNAMED) if silent else request.input, error))
        except (UsageError, OSError) as fault:
            faults.append(f"line {line.number}: {fault}")
    faults += _twice(made)
    if faults:
        more = f"; and {len(faults) - MAX_TOLD} more" if len(faults) > MAX_TOLD else ""
        raise UsageError("; ".join(faults[:MAX_TOLD]) + more, path, "Nothing was started: mend the manifest")
    return requests.Found(requests.distinct(list(made.values()), detector), tuple(missing))


def _absent(path: Path, line: Line, manifest: Path, *, silent: bool) -> MimicError:
    if silent:
        return BadInput(f"line {line.number} of the manifest names no file that is there", None, "Check the name")
    return BadInput(f"there is no such file (line {line.number} of {manifest.name})", path, "Check the name")


def _lines(path: Path) -> list[Line]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadInput(f"cannot be read ({reason})", path, "Name a manifest: CSV or JSON lines") from error
    found = list(_of_json(path, text) if path.suffix.lower() in JSON_ENDINGS else _of_csv(path, text))
    if not found:
        raise UsageError("names no slide", path, "Give it a line for each slide, below a header with 'input'")
    return found


def _of_json(path: Path, text: str) -> Iterator[Line]:
    for number, row in enumerate(text.splitlines(), start=1):
        if not row.strip():
            continue
        try:
            values = json.loads(row)
        except ValueError as error:
            raise UsageError(f"line {number} is no JSON: {error}", path, "Write one JSON object a line") from error
        if not isinstance(values, dict):
            raise UsageError(f"line {number} is no JSON object", path, 'Write one object a line: {"input": "a.czi"}')
        yield Line(number, values)


def _of_csv(path: Path, text: str) -> Iterator[Line]:
    rows = csv.reader(text.splitlines(keepends=True), delimiter=_delimiter(text), strict=True)
    header: list[str] | None = None
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if header is None:
                header = [cell.strip() for cell in row]
                _refuse_twice(path, header)
                continue
            if len(row) != len(header):
                message = f"line {rows.line_num} has {len(row)} columns, the header {len(header)}"
                raise UsageError(message, path, "Quote values that hold a comma")
            yield Line(rows.line_num, dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise UsageError(f"line {rows.line_num} is no CSV: {error}", path, "Quote it as spreadsheets do") from error


def _delimiter(text: str) -> str:
    """Spreadsheets in some countries divide by semicolons; the header tells."""
    header = text.partition("\n")[0]
    return max(",;\t", key=header.count)


def _refuse_twice(path: Path, header: Sequence[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UsageError(f"has the column {twice[0]!r} twice", path, "Name every column once")


def _request(line: Line, folder: Path, *, flags: Mapping[str, bool], parse: Parse, output: Path | None) -> Request:
    values = {_plain(key): value for key, value in line.values.items()}
    for name in values:
        if name not in flags and name not in ("input", "output"):
            near = get_close_matches(name, [*flags, "input", "output"], 1)
            raise UsageError(f"there is no option {name!r}", remedy=f"Did you mean {near[0]}" if near else "See README")
    named = str(values.get("input") or "").strip()
    if not named:
        raise UsageError("names no input", remedy="Give it a column 'input'")
    words = [word for name in flags if name in values for word in _words(name, values[name], flags[name], folder)]
    place = str(values.get("output") or "").strip()
    return Request(folder / named, folder / place if place else output, parse(words))


def _plain(key: str) -> str:
    return key.strip().removeprefix("--").replace("_", "-")


def _words(name: str, value: Any, flag: bool, folder: Path) -> list[str]:
    """An option as the command line would have it; nothing where the line leaves it open."""
    text = "" if value is None else str(value).strip()
    if flag:
        if text.lower() not in YES | NO:
            raise UsageError(f"{name} can be yes or no, not {text!r}", remedy="Mend it")
        return [f"--{name}"] if text.lower() in YES else []
    if isinstance(value, list):
        return [word for each in value for word in _words(name, each, flag, folder)]
    if not text:
        return []
    if name in PLACES or (name == "label" and text not in LABEL_WORDS):
        text = str(folder / text)
    return [f"--{name}={text}"]


def _one(request: Request, detector: sets.Detector) -> Request:
    """The request for the slide to which its input belongs. Raises UsageError for a folder of several."""
    found = requests.expand([request.input], request.output, request.options, detector).requests
    if len(found) != 1:
        count = f"{len(found)} slides" if found else "no slide"
        raise UsageError(f"is a folder with {count}", request.input, "Name one slide a line")
    return found[0] if found[0].input != request.input else request


def _twice(made: Mapping[int, Request]) -> list[str]:
    """Two lines with one output: the later would be refused after hours of work."""
    faults, first = [], dict[tuple[Path, ...], int]()
    for number, request in made.items():
        file = request.output is not None and request.output.suffix == ".svs"
        place = (request.output or request.input.parent).absolute()
        key = (place,) if file else (place, request.input.absolute())
        image = request.options.image_index
        if not file and image is not None:
            key = (*key, Path(str(image)))
        if key in first:
            faults.append(f"line {number}: goes into the same output as line {first[key]}")
        first.setdefault(key, number)
    return faults
