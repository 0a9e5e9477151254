"""design.md's dependency rule, as a test over the real import graph."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "mimic"

ROWS = """
    __main__
    cli cli_edge cli_options cli_edit cli_survey cli_batch screen screen_info screen_survey screen_batch \
        screen_progress screen_text
    service
    executors worker pool requests manifest resume doctor reveal survey survey_plot survey_page
    convert
    job
    proof
    stream reread peek passthrough copyproof missing sidepictures stored merge resample
    probe plan optics sources sets colour privacy harvest ome omexml scenes render views pyramid encode svs writer \
        verify rules sheets libvips streams wording samples coding jpegquality jpegs strips copying dicomfile mosaic \
        ngff plain segments chunks darkblocks structure czilayout czislide svsslide ndpislide dicomslide opinion \
        provenance edit editdraft edittext ifds tiffedit disk report staging
    checksum uniform turned deadline description geometry lengths naming pictures phi icc tifffields jpegheads memory \
        imports
    programs
    leftovers interrupts
    model errors settings
"""
"""A module imports only from a lower row; the last is the lowest. A name stands for all that is below it."""

SIDEWAYS = {
    ("cli", "cli_edge"): "every command has the same edge",
    ("cli", "cli_options"): "what a command's options are",
    ("cli", "cli_batch"): "a command is put on the app, and what a run is",
    ("cli_batch", "cli_edge"): "every command has the same edge",
    ("cli_batch", "cli_options"): "what a command's options are",
    ("cli_batch", "screen"): "what comes out of a command is shown",
    ("cli_batch", "screen_progress"): "what people see while they wait",
    ("screen_progress", "screen"): "which is loaded while one waits",
    ("screen_progress", "screen_text"): "one place prints",
    ("screen", "screen_text"): "what needs no library",
    ("cli_batch", "screen_batch"): "what comes out of a command is shown",
    ("screen_batch", "screen"): "one place prints",
    ("cli", "cli_edit"): "a command is put on the app",
    ("cli", "cli_survey"): "a command is put on the app",
    ("cli_edit", "cli_options"): "what a command's options are",
    ("cli_survey", "cli_options"): "what a command's options are",
    ("cli_edit", "cli_edge"): "every command has the same edge",
    ("cli_survey", "cli_edge"): "every command has the same edge",
    ("cli_edge", "screen"): "failures are shown",
    ("cli_edit", "screen"): "what comes out of a command is shown",
    ("cli_survey", "screen"): "what comes out of a command is shown",
    ("cli", "screen"): "what comes out of a command is shown",
    ("cli_survey", "screen_info"): "what comes out of a command is shown",
    ("cli_survey", "screen_survey"): "what comes out of a command is shown",
    ("screen_info", "screen"): "one place prints",
    ("screen_survey", "screen"): "one place prints",
    ("manifest", "requests"): "a line stands for a slide as a word on the command line does",
    ("provenance", "sets"): "a slide is all of its files",
    ("pool", "executors"): "what one slide of many is",
    ("worker", "executors"): "what one slide of many is",
    ("survey_page", "survey"): "a survey as a page",
    ("survey_page", "survey_plot"): "the plot on the page",
    ("survey_plot", "survey"): "rows as marks",
    ("coding", "jpegquality"): "the quality of a tile's tables",
    ("coding", "sheets"): "a TIFF's directories, as found",
    ("coding", "structure"): "the containers' own directories",
    ("jpegquality", "jpegs"): "a JPEG's segments",
    ("sources", "jpegquality"): "the quality of a tile's tables",
    ("darkblocks", "mosaic"): "how much of a block must be black",
    ("darkblocks", "structure"): "where a CZI's blocks are",
    ("sources", "darkblocks"): "a block that came back black is looked up in the file",
    ("copyproof", "passthrough"): "the proof of what it wrote",
    ("copying", "jpegs"): "the numbers of codecs and colours",
    ("dicomfile", "structure"): "bounded reading of a file's bytes",
    ("plan", "copying"): "whether tiles are copied is one decision of many",
    ("sources", "dicomfile"): "the header and the frames of an instance",
    ("sources", "jpegs"): "whether a tile may be declared in an Aperio file",
    ("probe", "sources"): "a source knows what its files are",
    ("sources", "structure"): "a damaged file is refused before a decoder paints it black",
    ("sources", "ome"): "Bio-Formats tells its facts as OME-XML",
    ("sources", "scenes"): "Bio-Formats' sizes are compared with the CZI's own",
    ("sources", "czilayout"): "where a CZI's blocks lie",
    ("czilayout", "structure"): "a CZI's own directory",
    ("sources", "czislide"): "facts of a CZI, told without Java",
    ("czislide", "ome"): "what is to be believed of a CZI's XML is decided in one place",
    ("czislide", "omexml"): "the schema that ome reads",
    ("czislide", "structure"): "a CZI's own directory and XML",
    ("sources", "opinion"): "OpenSlide is not the only judge of what it read",
    ("opinion", "jpegs"): "a tile is made whole for a decoder",
    ("opinion", "dicomfile"): "where frames lie",
    ("opinion", "structure"): "where tiles lie",
    ("sources", "svsslide"): "facts of an Aperio SVS, told without Java",
    ("sources", "ndpislide"): "facts of an NDPI, told without Java",
    ("sources", "dicomslide"): "facts of a DICOM series, told without Java",
    ("dicomslide", "dicomfile"): "the header and the frames of an instance",
    ("dicomslide", "jpegs"): "whether all readers see the colours of a frame alike",
    ("dicomslide", "ome"): "roles by name, and which pixel sizes are believed, are decided in one place",
    ("dicomslide", "structure"): "a DICOM's own elements",
    ("ndpislide", "jpegs"): "how the chroma of a strip is sampled",
    ("ndpislide", "structure"): "a TIFF's own directories",
    ("svsslide", "jpegs"): "whether all readers see the colours of a tile alike",
    ("svsslide", "structure"): "a TIFF's own directories",
    ("sources", "mosaic"): "what no block of a CZI covers is white",
    ("sources", "render"): "samples are arranged as rendering wants them",
    ("sources", "ngff"): "what an OME-Zarr says of itself",
    ("sources", "chunks"): "samples of an OME-Zarr",
    ("sources", "sets"): "the files that bioformats2raw reads with the one that is named",
    ("chunks", "ngff"): "which axis of an array is which",
    ("chunks", "render"): "which types of samples can be rendered",
    ("chunks", "structure"): "a Zarr array's own document",
    ("ngff", "structure"): "one reader of JSON documents is enough",
    ("probe", "ngff"): "a folder can be a slide",
    ("plan", "jpegs"): "the numbers of codecs",
    ("probe", "structure"): "the container tells what kind of copying there can be",
    ("plan", "optics"): "scale and magnification are decisions of their own",
    ("optics", "views"): "a channel's planes have no colours to measure by",
    ("probe", "colour"): "a colour profile is a fact of the file",
    ("probe", "sets"): "any file of a slide of several stands for it",
    ("colour", "sources"): "pixels are taken to sRGB on their way from a source",
    ("sets", "structure"): "the containers' own directories",
    ("libvips", "structure"): "of a picture that does not decode it knows the place",
    ("sources", "libvips"): "the library of ordinary pictures",
    ("sources", "plain"): "some pictures need no library",
    ("sources", "segments"): "some pictures need no library",
    ("plain", "structure"): "a TIFF's directories",
    ("plain", "segments"): "how a segment is decoded is a matter of its own",
    ("strips", "structure"): "bounded reading of a file's bytes",
    ("privacy", "harvest"): "what is searched for was found in the input",
    ("missing", "passthrough"): "how a hole is filled among copied tiles",
    ("plan", "views"): "how channels and planes are shown is one decision of many",
    ("svs", "views"): "the description says how colours were made",
    ("views", "render"): "which types of samples can be rendered",
    ("ome", "omexml"): "parsing and hardening XML is one matter, reading facts from it another",
    ("scenes", "mosaic"): "a scene's blocks",
    ("scenes", "structure"): "a CZI's own directory",
    ("mosaic", "structure"): "a CZI's own directory",
    ("rules", "sheets"): "a TIFF's directories, as found",
    ("rules", "streams"): "the rules of compressed tiles are a part of the rules",
    ("rules", "wording"): "the rules of descriptions are a part of the rules",
    ("streams", "sheets"): "a TIFF's directories, as found",
    ("wording", "sheets"): "a TIFF's directories, as found",
    ("sheets", "structure"): "one reader of TIFF directories is enough",
    ("edit", "editdraft"): "what to write is worked out before a byte is written",
    ("edit", "disk"): "one file, under a lock",
    ("edit", "ifds"): "directories are compared with what was meant",
    ("edit", "sheets"): "directories are read as the rules see them",
    ("edit", "staging"): "an edited copy gets its name when it is whole",
    ("edit", "tiffedit"): "how a crash is survived is a matter of its own",
    ("edit", "wording"): "the description is compared with what was meant",
    ("editdraft", "edittext"): "what a description becomes is a matter of its own",
    ("editdraft", "ifds"): "directories are written again",
    ("editdraft", "sheets"): "the part that a directory plays",
    ("editdraft", "wording"): "an edit must not break a rule of descriptions",
    ("ifds", "structure"): "a reader that knows the end of the file",
    ("tiffedit", "disk"): "one file, under a lock",
    ("tiffedit", "ifds"): "directories are written again",
    ("tiffedit", "structure"): "a reader that knows the end of the file",
    ("verify", "edit"): "an edit that was cut off is told of",
    ("verify", "rules"): "what was written must keep them too",
    ("verify", "svs"): "the AppMag of a power",
    ("verify", "sheets"): "a TIFF's directories, as found",
    ("verify", "wording"): "what the description says is compared with the plan",
    ("verify", "samples"): "pixels that were caught during the pass",
}
"""Every import within a row, with its reason; one that is not used any more fails."""

PURE = (
    "model",
    "plan",
    "render",
    "views",
    "pyramid",
    "encode",
    "svs",
    "ome",
    "omexml",
    "mosaic",
    "czilayout",
    "scenes",
    "samples",
    "wording",
    "jpegquality",
    "jpegs",
    "copying",
    "survey_page",
    "survey_plot",
    "optics",
    "naming",
    "lengths",
    "geometry",
    "uniform",
    "turned",
    "checksum",
    "description",
    "icc",
)
IMPURE = frozenset(
    (
        *("os", "io", "sys", "subprocess", "socket", "shutil", "tempfile", "threading", "multiprocessing", "signal"),
        *("glob", "time", "logging", "mmap", "urllib", "http", "ctypes"),
    )
)
DOORS = {
    "subprocess": {"programs.run", "programs.bfclient", "programs.jxr"},
    "jpype": {"programs.bfserver", "programs.bfreaders"},
    "pyvips": {"libvips"},
    "click": {"cli", "cli_edge", "cli_options", "cli_edit", "cli_survey", "cli_batch"},
    "rich": {"screen", "screen_info", "screen_survey", "screen_batch", "screen_progress"},
    "openslide": {"verify", "edit", "copyproof", "sources.openslide"},
    "distributed": set[str](),
}
"""Libraries that are imported in one place only."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__").replace("__init__", "")


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
RANK = {name: -rank for rank, row in enumerate(ROWS.strip().splitlines()) for name in row.split()}


def imports(name: str) -> Iterator[str]:
    """Dotted names that a module imports, within functions too, and those that it names to import_module."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if called == "import_module" and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def inner(name: str) -> set[str]:
    """Modules of mimic that a module imports."""
    found = set()
    for dotted in imports(name):
        if dotted.split(".")[0] == "mimic":
            words = dotted.split(".")[1:]
            while words and ".".join(words) not in MODULES:
                words.pop()
            found.add(".".join(words))
    return found


def row(name: str) -> str:
    return name.split(".")[0]


def test_every_module_has_its_row() -> None:
    assert {row(name) for name in MODULES if name} - RANK.keys() == set()


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_imports_point_downwards(name: str) -> None:
    up = []
    for other in inner(name) - {""}:
        inside = row(other) == row(name)
        if not inside and RANK[row(other)] >= RANK[row(name)] and (row(name), row(other)) not in SIDEWAYS:
            up.append(other)
    assert up == []


def test_sideways_imports_are_used() -> None:
    used = {(row(name), row(other)) for name in MODULES if name for other in inner(name)}
    assert SIDEWAYS.keys() - used == set()


def test_a_source_never_imports_another() -> None:
    """Nor does anything import one directly: they are loaded by name."""
    for name in MODULES:
        allowed = {"sources.vips"} if name == "sources.bfconvert" else set()
        assert {other for other in inner(name) if other.startswith("sources.")} <= allowed, name


def test_nothing_imports_the_public_face_but_for_the_version() -> None:
    for name in MODULES:
        taken = {dotted for dotted in imports(name) if dotted.startswith("mimic.")}
        faces = {dotted for dotted in taken if dotted.split(".")[1] not in map(row, MODULES)}
        assert faces <= {"mimic.__version__"}, name


def test_there_is_no_cycle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in sorted(inner(name) - {""}):
                if not (other == "structure" and name.startswith("structure.")):  # its parts use its `container`
                    visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        if name:
            visit(name, ())


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_touch_nothing(name: str) -> None:
    assert {dotted.split(".")[0] for dotted in imports(name)} & IMPURE == set()
    opened = [node.func for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]
    assert [each.id for each in opened if isinstance(each, ast.Name) and each.id in ("open", "input", "exec")] == []
    touched = {"read_bytes", "read_text", "write_bytes", "write_text", "exists", "is_file", "stat", "unlink", "mkdir"}
    assert [each.attr for each in opened if isinstance(each, ast.Attribute) and each.attr in touched] == []


@pytest.mark.parametrize("library", DOORS)
def test_one_door(library: str) -> None:
    users = {name for name in MODULES if library in {dotted.split(".")[0] for dotted in imports(name)}}
    assert users == DOORS[library]


def test_only_settings_reads_the_environment() -> None:
    names = {"environ", "getenv", "environb", "putenv"}
    users = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.alias) and node.name in names)
    }
    assert users == {"settings"}


def test_only_the_screen_prints() -> None:
    """bfserver is a process of its own: what it prints is why it cannot start, read by its client."""
    printers = set()
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                printers.add(name)
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout.write", "sys.stderr.write"):
                printers.add(name)
    assert printers - {"programs.bfserver"} == {"screen_text"}


def test_no_module_is_long() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
