"""Which slides are converted already: from the same input, with the same options, and still whole.

Told by the key that outputs carry (provenance.py). "Whole" is a look at the structure, not at every pixel: an output
got its name after it was verified and synced; what can have happened since is a copy that was cut off.
"""

from __future__ import annotations

import re
from pathlib import Path

from mimic import privacy, provenance, sets, sheets
from mimic.description import parse
from mimic.errors import BadInput
from mimic.model import Request
from mimic.naming import is_file_name, output_stem

KEYS = re.compile(r"(?P<source>[0-9a-f]+|-) (?P<wish>[0-9a-f]+) (?P<part>[0-9]{1,4})/(?P<parts>[0-9]{1,4})")
JPEG = 7


class Finder:
    """Finds outputs of earlier runs; remembers what lies in a folder."""

    def __init__(self) -> None:
        self._listed: dict[Path, list[Path]] = {}
        self._detector = sets.Detector()

    def outputs(self, request: Request) -> tuple[Path, ...]:
        """All outputs of ``request`` when they are there and whole, else none."""
        options = request.options
        try:
            wish = provenance.options_key(options)
            if not options.deidentify:
                source, stems = provenance.input_key(request.input, self._detector), self._stems(request.input)
            elif request.output is None or not is_file_name(request.output):
                source, stems = provenance.UNTOLD, (privacy.alias_of(request.input),)
            else:
                return ()  # nothing in such an output tells what it was made of, not even its name
        except (OSError, BadInput):
            return ()
        parts: dict[int, Path] = {}
        count = 0
        for path in self._candidates(request, stems):
            found = KEYS.fullmatch(_key(path) or "")
            if found is not None and (found["source"], found["wish"]) == (source, wish):
                parts[int(found["part"])], count = path, int(found["parts"])
        return tuple(parts.values()) if count and parts.keys() == set(range(1, count + 1)) else ()

    def _stems(self, path: Path) -> tuple[str, ...]:
        """How names of outputs begin: as the file that is opened, or its folder, as of a DICOM series."""
        found = self._detector.find(path)
        main = path if found is None else found.path
        return (output_stem(main), main.name, main.absolute().parent.name)

    def _candidates(self, request: Request, stems: tuple[str, ...]) -> list[Path]:
        if request.output is not None and is_file_name(request.output):
            return [request.output]
        home = request.input.absolute().parent
        folders = (request.output,) if request.output is not None else (home, home.parent)
        return [path for folder in folders for path in self._slides(folder) if path.name.startswith(stems)]

    def _slides(self, folder: Path) -> list[Path]:
        if folder not in self._listed:
            try:
                self._listed[folder] = sorted(path for path in folder.iterdir() if path.suffix == ".svs")
            except OSError:
                self._listed[folder] = []
        return self._listed[folder]


def _key(path: Path) -> str | None:
    """The key of an output that is whole."""
    try:
        layout = sheets.read(path)
        if not layout.sheets or not all(_is_whole(sheet, path, layout.size_bytes) for sheet in layout.sheets):
            return None
    except (BadInput, OSError):
        return None
    return parse((layout.sheets[0].text or b"").decode("ascii", "replace")).values.get(provenance.KEY)


def _is_whole(sheet: sheets.Sheet, path: Path, size_bytes: int) -> bool:
    """Whether every tile or strip lies in the file, and the last one of JPEG begins as one."""
    columns, rows = sheet.grid
    if not len(sheet.offsets) == len(sheet.counts) == columns * rows:
        return False
    ends = sheet.offsets + sheet.counts
    if not bool((sheet.offsets > 0).all() and (sheet.counts > 0).all() and (ends <= size_bytes).all()):
        return False
    if sheet.number(sheets.COMPRESSION) != JPEG:
        return True
    with path.open("rb") as file:
        file.seek(int(sheet.offsets[-1]))
        return file.read(2) == b"\xff\xd8"
