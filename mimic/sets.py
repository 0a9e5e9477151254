"""Slides of several files: which files belong together, which of them readers open, and what is missing.

Name any member, or the folder, and get the slide. A companion alone is never a slide: Bio-Formats reads an MRXS without
its folder as a small JPEG, and a VSI without its .ets files as its macro. What the formats' index files say is parsed
by pure functions; nothing is decoded.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from mimic.errors import BadInput, MimicError
from mimic.structure import DicomFacts
from mimic.structure import dicom as dicom_file
from mimic.structure import tiff as tiff_file
from mimic.structure.reader import Input

MIRAX_INI = "Slidedat.ini"
COMPANION = ".companion.ome"
OIF_FOLDER = ".oif.files"
MAX_INDEX_BYTES = 16 << 20
"""Index files are texts of some kB; a companion.ome of many planes has some MB."""
MAX_FILES = 1_000_000
TIFF_SUFFIXES = frozenset((".tif", ".tiff", ".btf", ".tf2", ".tf8"))
REMEDY = "Copy the slide again with all files that belong to it, in the same places"


@dataclass(frozen=True, slots=True)
class SlideSet:
    """``path`` is the file that readers open (it may be missing itself), ``files`` are all members that are there,
    ``missing`` those that are named and are not."""

    kind: str
    path: Path
    files: tuple[Path, ...]
    missing: tuple[Path, ...] = ()


# --- pure: what the index files say ------------------------------------------------------------------------------


def ini(text: str) -> dict[str, dict[str, str]]:
    """Sections of an INI text, names and keys in lower case; other lines than headings and pairs are passed over."""
    found: dict[str, dict[str, str]] = {}
    section = found.setdefault("", {})
    for line in (raw.strip().lstrip("\ufeff") for raw in text.splitlines()):
        if line.startswith("[") and "]" in line:
            section = found.setdefault(line[1 : line.index("]")].strip().lower(), {})
        elif "=" in line and not line.startswith((";", "#")):
            key, _, value = line.partition("=")
            section[key.strip().lower()] = value.strip().strip('"')
    return found


def mirax_names(text: str) -> tuple[str, ...]:
    """Data files that a Slidedat.ini names; one that FILE_COUNT promises and no line names goes by its usual name."""
    sections = ini(text)
    data = sections.get("datafile", {})
    count = data.get("file_count", "")
    number = min(int(count), MAX_FILES) if count.isdecimal() else 0
    index = sections.get("hierarchical", {}).get("indexfile") or "Index.dat"
    return (_base(index), *(_base(data.get(f"file_{each}") or f"Data{each:04d}.dat") for each in range(number)))


def hamamatsu_names(text: str) -> tuple[str, ...]:
    """Files that a .vms or .vmu names: its pictures, its macro and its map. The optimisation file is only for speed."""
    wanted = re.compile(r"imagefile(\(.*\))?|macroimage|mapfile")
    pairs = [pair for section in ini(text).values() for pair in section.items()]
    return tuple(dict.fromkeys(_base(value) for key, value in pairs if wanted.fullmatch(key) and value))


def ndpis_names(text: str) -> tuple[str, ...]:
    """The .ndpi files that an .ndpis names, one a channel."""
    pairs = [pair for section in ini(text).values() for pair in section.items()]
    return tuple(_base(value) for key, value in pairs if re.fullmatch(r"image\d+", key) and value)


def oif_names(text: str) -> tuple[str, ...]:
    """Parameter files that an .oif names, which lie in its folder."""
    pairs = [pair for section in ini(text).values() for pair in section.items()]
    return tuple(dict.fromkeys(_base(value) for key, value in pairs if re.fullmatch(r"inifilename\d+", key) and value))


def afi_names(text: str) -> tuple[str, ...]:
    """The .svs files that an Aperio fluorescence index names."""
    return tuple(_base(html.unescape(name)) for name in re.findall(r"<Path>\s*([^<]+?)\s*</Path>", text))


def ome_names(text: str) -> tuple[str, ...]:
    """Files that an OME-XML says to hold its planes, each once, in its order."""
    names = re.findall(r"<(?:\w+:)?UUID\b[^>]*?\bFileName\s*=\s*[\"']([^\"']+)[\"']", text)
    return tuple(dict.fromkeys(_base(html.unescape(name)) for name in names))


def ome_master(text: str) -> str | None:
    """The file that holds the metadata of a TIFF which has only planes; None for one with metadata of its own."""
    found = re.search(r"<(?:\w+:)?BinaryOnly\b[^>]*?\bMetadataFile\s*=\s*[\"']([^\"']+)[\"']", text)
    return _base(html.unescape(found[1])) if found else None


def _base(name: str) -> str:
    """The last part of a name that was written on Windows or elsewhere: members lie where the format puts them."""
    return PureWindowsPath(name).name


# --- what is there -------------------------------------------------------------------------------------------------


def find(path: Path) -> SlideSet | None:
    """The set to which a file or folder belongs; None for a slide of one file, or a folder that is no slide."""
    return Detector().find(path)


def whole(path: Path) -> Path:
    """The file to open for ``path``. Raises BadInput that names what is missing of its set."""
    found = find(path)
    return path if found is None else complete(found, path)


def complete(found: SlideSet, path: Path) -> Path:
    """The file to open of a set of which ``path`` was named. Raises BadInput that names what is missing."""
    if found.missing == (found.path,):
        raise BadInput(f"belongs to a {found.kind} slide, and its {found.path.name} is missing", path, REMEDY)
    if found.missing:
        names = [_shown(each, found.path) for each in found.missing]
        text = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        of = len(found.missing) + len(found.files)
        verb = "is" if len(names) == 1 else "are"
        message = f"is a {found.kind} slide of which {text} {verb} missing ({len(found.files)} of {of} files are there)"
        raise BadInput(message, found.path, REMEDY)
    return found.path


def _shown(path: Path, main: Path) -> str:
    return path.relative_to(main.parent).as_posix() if path.is_relative_to(main.parent) else path.name


class Detector:
    """Finds sets; remembers headers and index files that it has read, so that a folder is searched in one go."""

    def __init__(self) -> None:
        self._heads: dict[Path, DicomFacts | None] = {}
        self._named: dict[Path, dict[Path, SlideSet]] = {}

    def find(self, path: Path) -> SlideSet | None:
        """As the function of that name. Folders that may not be entered hold nothing."""
        try:
            if path.is_dir():
                return self._folder(path)
            return self._main(path) or self._member(path)
        except (OSError, ValueError):
            return None

    def _main(self, path: Path) -> SlideSet | None:
        """The set of which ``path`` is what readers open, by its ending."""
        ending = COMPANION if path.name.lower().endswith(COMPANION) else path.suffix.lower()
        made = MAINS.get(ending)
        return made(path) if made is not None and path.is_file() else None

    def _member(self, path: Path) -> SlideSet | None:
        folder = path.parent
        owner = _owner(path)
        if owner is not None:
            return _orphan(owner, path) if not owner.is_file() else self._main(owner)
        return self._index(folder).get(path) or self._dicom(path) or _ome_tiff(path)

    def _folder(self, folder: Path) -> SlideSet | None:
        owner = _owner_of_folder(folder.absolute())
        if owner is not None:
            return self._main(owner) or _orphan(owner, folder)
        files = [each for each in _listed(folder) if each.is_file()]
        heads = {each: head for each in files if (head := self._head(each)) is not None}
        series = {head.series_instance_uid for head in heads.values()}
        others = [each for each in files if each not in heads and each.suffix.lower() in MAINS]
        return self._dicom(next(iter(heads))) if len(series) == 1 and None not in series and not others else None

    def _index(self, folder: Path) -> Mapping[Path, SlideSet]:
        """Members of the sets whose index files lie beside them, each with its set."""
        if folder not in self._named:
            found: dict[Path, SlideSet] = {}
            for main in _listed(folder):
                beside = main.suffix.lower() in BESIDE or main.name.lower().endswith(COMPANION)
                made = self._main(main) if beside else None
                for member in made.files if made is not None else ():
                    if made is not None:
                        found.setdefault(member, made)
            self._named[folder] = found
        return self._named[folder]

    def series_in(self, folder: Path) -> int:
        """How many DICOM series lie in a folder."""
        heads = (self._head(each) for each in _listed(folder))
        return len({head.series_instance_uid for head in heads if head is not None})

    def _head(self, path: Path) -> DicomFacts | None:
        """What a DICOM file's header says; None for a file that is none, holds no pixels, or is damaged."""
        if path not in self._heads:
            self._heads[path] = _dicom_head(path)
        return self._heads[path]

    def _dicom(self, path: Path) -> SlideSet | None:
        """The files of one series in one folder, led by the largest of its volume images."""
        head = self._head(path)
        if head is None or head.series_instance_uid is None:
            return None
        heads = {each: found for each in _listed(path.parent) if (found := self._head(each)) is not None}
        mine = {each: found for each, found in heads.items() if found.series_instance_uid == head.series_instance_uid}
        if len(mine) < 2 and head.concatenation is None:
            return None
        return dicom_set(mine)


def dicom_set(heads: Mapping[Path, DicomFacts]) -> SlideSet:
    """The set of one series by its headers: any member leads to the same file, the largest volume (of equals the
    first by name). Pure. Parts of a concatenation that are not there are missing; what else a series holds no header
    tells."""

    def rank(path: Path) -> tuple[bool, int, str]:
        head = heads[path]
        size = (head.matrix_width_px or head.columns_px) * (head.matrix_height_px or head.rows_px)
        return "VOLUME" not in (head.image_type or "").upper(), -size, path.name

    main = min(heads, key=rank)
    missing = []
    parts: dict[str, set[int]] = {}
    totals: dict[str, int] = {}
    for head in heads.values():
        if head.concatenation is not None:
            uid, number, total = head.concatenation
            parts.setdefault(uid, set()).add(number)
            totals[uid] = max(total, totals.get(uid, 0))
    for uid, total in totals.items():
        lost = [number for number in range(1, min(total, MAX_FILES) + 1) if number not in parts[uid]]
        missing += [main.with_name(f"part {number} of {total}") for number in lost]
    return SlideSet("DICOM", main, tuple(sorted(heads)), tuple(missing))


def _dicom_head(path: Path) -> DicomFacts | None:
    try:
        if not path.is_file():
            return None
        with Input(path) as source:
            bare = path.suffix.lower() in (".dcm", ".dicom") and dicom_file.is_bare(source)
            return dicom_file.head(source) if bare or source.upto(128, 4) == b"DICM" else None
    except (MimicError, OSError):
        return None


def _listed(folder: Path) -> list[Path]:
    """Entries of a folder that are not hidden, sorted."""
    return sorted(each for each in folder.iterdir() if not each.name.startswith("."))


def _text(path: Path) -> str:
    with path.open("rb") as file:
        raw = file.read(MAX_INDEX_BYTES)
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", "replace")
    if raw[1:2] == b"\0":
        return raw.decode("utf-16-le", "replace")
    return raw.decode("utf-8-sig", "replace")


def _split(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    there: list[Path] = []
    missing: list[Path] = []
    for path in paths:
        (there if path.is_file() else missing).append(path)
    return there, missing


def _mirax(main: Path) -> SlideSet:
    folder = main.with_suffix("")
    index = folder / MIRAX_INI
    if not index.is_file():
        return SlideSet("MIRAX", main, (main,), (index,))
    there, missing = _split(folder / name for name in mirax_names(_text(index)))
    return SlideSet("MIRAX", main, (main, index, *there), tuple(missing))


def _vsi(main: Path) -> SlideSet:
    folder = main.with_name(f"_{main.stem}_")
    there = sorted(folder.glob("stack*/*.ets"))
    return SlideSet("VSI", main, (main, *there), () if there else (folder / "stack1" / "frame_t.ets",))


def _oif(main: Path) -> SlideSet:
    folder = main.with_name(main.name + ".files")
    if not folder.is_dir():
        return SlideSet("OIF", main, (main,), (folder,))
    _, missing = _split(folder / name for name in oif_names(_text(main)))
    there = [each for each in sorted(folder.iterdir()) if each.is_file()]
    pictures = any(each.suffix.lower() in TIFF_SUFFIXES for each in there)
    return SlideSet("OIF", main, (main, *there), tuple(missing) if pictures else (*missing, folder / "*.tif"))


def _beside(kind: str, names: Callable[[str], tuple[str, ...]]) -> Callable[[Path], SlideSet]:
    def made(main: Path) -> SlideSet:
        there, missing = _split(main.with_name(name) for name in names(_text(main)))
        return SlideSet(kind, main, (main, *there), tuple(missing))

    return made


def _ome_tiff(path: Path) -> SlideSet | None:
    """The set of a TIFF whose OME-XML names other files; one that names a single file may bear any name."""
    if path.suffix.lower() not in TIFF_SUFFIXES or not path.is_file():
        return None
    try:
        text = tiff_file.first_description(path)
    except BadInput:
        return None
    master = ome_master(text)
    if master is not None:
        main = path.with_name(master)
        made = _beside("OME", ome_names)(main) if main.is_file() else None
        return made or SlideSet("OME", main, (path,), (main,))
    names = ome_names(text)
    if len(names) < 2:
        return None
    there, missing = _split(path.with_name(name) for name in names)
    return SlideSet("OME-TIFF", (there or [path])[0], tuple(dict.fromkeys([*there, path])), tuple(missing))


MAINS: Mapping[str, Callable[[Path], SlideSet]] = {
    ".mrxs": _mirax,
    ".vsi": _vsi,
    ".oif": _oif,
    ".ndpis": _beside("NDPIS", ndpis_names),
    ".vms": _beside("VMS", hamamatsu_names),
    ".vmu": _beside("VMU", hamamatsu_names),
    ".afi": _beside("AFI", afi_names),
    COMPANION: _beside("OME", ome_names),
}
BESIDE = frozenset((".ndpis", ".vms", ".vmu", ".afi"))
"""Index files whose members lie beside them and do not know of them."""


def _owner(path: Path) -> Path | None:
    """The file to which a member of a data folder belongs, by that folder's name; it need not be there."""
    deep = path.suffix.lower() == ".ets"
    owner = _owner_of_folder((path.parent.parent if deep else path.parent).absolute())
    if owner is None or (owner.suffix == ".mrxs" and path.suffix.lower() not in (".dat", ".ini")):
        return None
    return owner if deep == (owner.suffix == ".vsi") else None


def _owner_of_folder(folder: Path) -> Path | None:
    name = folder.name
    if name.lower().endswith(OIF_FOLDER):
        return folder.with_name(name[: -len(".files")])
    if (folder / MIRAX_INI).is_file():
        return folder.with_name(f"{name}.mrxs")
    if len(name) > 2 and name[0] == name[-1] == "_" and any(folder.glob("stack*/*.ets")):
        return folder.with_name(f"{name[1:-1]}.vsi")
    return None


def _orphan(owner: Path, path: Path) -> SlideSet:
    kind = {".mrxs": "MIRAX", ".vsi": "VSI", ".oif": "OIF"}[owner.suffix.lower()]
    return SlideSet(kind, owner, (path,), (owner,))
