"""showinf and bfconvert of Bio-Formats as programs: argument lists, what they say, and what their failures mean.

An exit code of 0 proves nothing: both end well on files cut short, so that a caller must look at what was written.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mimic.errors import BadInput, MimicError, OutputError, ToolFailed, ToolMissing, Unsupported
from mimic.programs import jvm, run
from mimic.settings import Settings

Program = Literal["showinf", "bfconvert"]
MAIN_CLASS = {"showinf": "loci.formats.tools.ImageInfo", "bfconvert": "loci.formats.tools.ImageConverter"}
XML_LINES = 1_000_000
"""Lines of showinf kept at most: a line or two a plane."""
SHOWINF_DEADLINE_S = 300.0
TILE_PX = 2048
"""Measured on a JPEG-XR CZI of 50 Mpx: 5.1 s, against 9.1 s in 1024 px tiles."""
CLASSIC_MAX_BYTES = 3_900_000_000
CPUS = 2
TROUBLE = re.compile(r"Exception\b|\bWARN|Error\b|[Cc]ould not|[Cc]orrupt|[Tt]runcated|unknown command flag")
REMEDY = "Check that the file is complete: copy it again, or export it again from the scanner's software"


@dataclass(frozen=True, slots=True)
class Core:
    """What showinf lists of a file: the format's name, the files it used (empty: only the one), and for each series
    the number of its resolutions and whether Bio-Formats flags it as a thumbnail."""

    format: str
    files: tuple[Path, ...]
    resolutions: tuple[int, ...]
    thumbnails: tuple[bool, ...]

    def flat(self, series: int) -> int:
        """The number of the series' full resolution when every resolution counts as a series, as bfconvert does
        without -noflat: with it bfconvert writes all resolutions, and dies on some DICOM overviews."""
        return sum(self.resolutions[:series])


def command(program: Program, settings: Settings, tmp: Path) -> tuple[list[str | Path], dict[str, str]]:
    """(first words, environment) of a program: of the bftools folder that is set, else of the jar with our Java."""
    java, heap = jvm.find_java(settings), settings.heap_mb or jvm.default_heap_mb(CPUS)
    flags = jvm.java_flags(java, tmp=tmp, heap_mb=heap, cpus=CPUS)
    flags += ["-Dstdout.encoding=UTF-8", "-Dfile.encoding=UTF-8"]  # else a micro sign becomes a question mark
    env = jvm.environment(settings, tmp)
    folder = jvm.find_bftools(settings)
    if folder is None:
        return [java, *flags, "-cp", jvm.find_bioformats(settings), MAIN_CLASS[program]], env
    script = folder / (f"{program}.bat" if sys.platform == "win32" else program)
    plain = [flag for flag in flags if not re.search(r"\s", flag)]  # the scripts split BF_FLAGS at blanks
    path = f"{java.parent}{';' if sys.platform == 'win32' else ':'}{settings.path}"
    env |= {"PATH": path, "BF_FLAGS": " ".join(plain), "BF_MAX_MEM": f"{heap}m", "NO_UPDATE_CHECK": "1"}
    return [script], env


def showinf_xml(path: Path, settings: Settings, tmp: Path) -> str:
    """The file's OME-XML, one image a series, without annotations. ``path`` must be absolute."""
    words, env = command("showinf", settings, tmp)
    argv = [*words, "-no-upgrade", "-nopix", "-noflat", "-no-sas", "-novalid", "-omexml-only", path]
    done = run.run(argv, env=env, cwd=tmp, deadline_s=SHOWINF_DEADLINE_S, stdout_lines=XML_LINES)
    if done.returncode != 0:
        raise failure(done, path)
    return done.stdout[max(done.stdout.find("<?xml"), 0) :]


def showinf_core(path: Path, settings: Settings, tmp: Path) -> Core:
    """Format, used files, and resolutions of each series. ``path`` must be absolute."""
    words, env = command("showinf", settings, tmp)
    argv = [*words, "-no-upgrade", "-nopix", "-noflat", "-nometa", "-novalid", path]
    done = run.run(argv, env=env, cwd=tmp, deadline_s=SHOWINF_DEADLINE_S, stdout_lines=XML_LINES)
    if done.returncode != 0:
        raise failure(done, path)
    return parse_core(done.stdout)


def parse_core(text: str) -> Core:
    """Read showinf's listing; what it does not say is one resolution, no thumbnail, no other file."""
    name = re.search(r"^Checking file format \[(.+)\]$", text, re.MULTILINE)
    used = re.search(r"^Used files:\n((?:\t.+\n)+)", text, re.MULTILINE)
    parts = re.split(r"^Series #\d+ (?:-- .*)?:$", text, flags=re.MULTILINE)[1:]
    counts = [re.search(r"^\tResolutions = (\d{1,4})$", part, re.MULTILINE) for part in parts]
    return Core(
        format=name.group(1) if name else "unknown",
        files=tuple(Path(line[1:]) for line in used.group(1).splitlines()) if used else (),
        resolutions=tuple(int(count.group(1)) if count else 1 for count in counts),
        thumbnails=tuple("\tThumbnail series = true" in part.splitlines() for part in parts),
    )


def tile_px(size_px: int) -> int:
    """Tile edge for an image edge: a multiple of 16 as TIFF demands, smaller than the image where that is possible.

    bfconvert 7.3.1 dies half-way when tiles are exactly as wide as the picture but not as high (1280 x 416 in
    1280 x 431), and tiffcp 4.5.0 refuses a planar file whose tiles are wider.
    """
    return max(min(TILE_PX, (size_px - 1) // 16 * 16), 16)


def bfconvert(
    path: Path, target: Path, *, flat_series: int, size_px: tuple[int, int], settings: Settings, tmp: Path
) -> None:
    """Write the first plane of one series to ``target``, a tiled, uncompressed TIFF in an empty private folder.

    ``flat_series`` is Core.flat's, ``size_px`` the (width, height) expected. Both paths must be absolute, and the
    target's free of bfconvert's patterns (%s, %n ...). Raises BadInput, Unsupported, ToolFailed, OutputError.
    """
    width, height = size_px
    words, env = command("bfconvert", settings, tmp)
    argv = [
        *words,
        "-no-upgrade",
        "-novalid",
        "-no-sas",  # nobody reads the scratch's metadata
        "-nooverwrite",  # without either flag it asks on stdin; -overwrite deletes the target first
        *("-series", str(flat_series)),
        *("-range", "0", "0"),
        *("-tilex", str(tile_px(width)), "-tiley", str(tile_px(height))),
        *("-compression", "Uncompressed"),
        *(["-bigtiff"] if width * height * 3 > CLASSIC_MAX_BYTES else []),
        path,
        target,
    ]
    done = run.run(argv, env=env, cwd=tmp, deadline_s=deadline_s(width, height))
    if done.returncode != 0 or not re.search(r"^\[done\]$", done.stdout, re.MULTILINE) or trouble(done, path):
        raise failure(done, path)


def deadline_s(width: int, height: int) -> float:
    """Beyond it the program hangs: 0.2 Mpx/s is less than half of the slowest seen, JPEG-XR in 256 px boxes."""
    return 300.0 + width * height / 200_000


def trouble(done: run.Completed, path: Path) -> str | None:
    """The first line that tells of trouble; lines that quote the input's name are no evidence."""
    lines = (done.stderr + "\n" + done.stdout).splitlines()
    return next((line.strip() for line in lines if path.name not in line and TROUBLE.search(line)), None)


def failure(done: run.Completed, path: Path) -> MimicError:
    """What the end of a program means, as an error to raise."""
    said = f"{done.stderr}\n{done.stdout}"
    name = Path(done.argv[0]).name
    if done.returncode == 3 or "OutOfMemoryError" in said:
        return ToolFailed("Bio-Formats ran out of memory", path, "Set MIMIC_HEAP_MB to more megabytes")
    if "No space left on device" in said:
        return OutputError("the disk is full", None, "Free some room, or set MIMIC_SCRATCH to a larger disk")
    if re.search(r"Could not find or load main class|java: (command )?not found|UnsupportedClassVersion", said):
        return ToolMissing(f"{name} cannot start Bio-Formats: {said.strip()[:200]}", None, "Run 'mimic doctor'")
    if "UnknownFormatException" in said or "Unknown file format" in said:
        return Unsupported("Bio-Formats does not know this kind of file", path, "See 'mimic info' for what it is")
    if done.returncode < 0 or done.returncode > 128:
        return ToolFailed(f"{name} was killed or crashed (exit code {done.returncode})", path, "Try again")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = trouble(done, path) or (lines[-1] if lines else f"exit code {done.returncode}")
    return BadInput(f"Bio-Formats cannot read it: {reason[:300]}", path, REMEDY)


def version(settings: Settings, tmp: Path) -> str | None:
    """Bio-Formats' own version ("7.3.1")."""
    words, env = command("showinf", settings, tmp)
    done = run.run([*words, "-version"], env=env, cwd=tmp, deadline_s=SHOWINF_DEADLINE_S)
    found = re.search(r"Version:? *v?([\w.-]+)", done.stdout)
    return found.group(1) if found else None
