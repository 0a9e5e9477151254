"""bioformats2raw as a program: where it is, its arguments, its progress, and what its failures mean.

Glencoe Software's converter to OME-Zarr. Options are those of version 0.5 and later, in the spelling that all of them
take; what it says in its log was read in its source.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from mimic.errors import BadInput, MimicError, ToolFailed, ToolMissing
from mimic.programs import bftools, jvm, run
from mimic.settings import Settings

NAME = "bioformats2raw"
TILE_PX = 2048
"""As for bfconvert: small boxes of a CZI are read 30 times slower."""
METADATA_DEADLINE_S = 600.0
VERSION_DEADLINE_S = 60.0
USAGE_EXIT_CODE = 2
"""picocli's, for a command line that it does not understand."""
UNKNOWN_OPTION = re.compile(r"[Uu]nknown option")
CHUNK_DONE = "Successfully processed chunk"
TROUBLE = re.compile(
    r"\bERROR\b|Exception\b|Failure processing chunk|\bWARN\b.*\bl(?:oci)?\.f(?:ormats)?\.|[Tt]runcated"
)
"""Errors of its own, and warnings of Bio-Formats' readers; its own warnings are about tile sizes."""

Watch = Callable[[int], None]


def find(settings: Settings) -> Path:
    """The program that MIMIC_BIOFORMATS2RAW names, or the one on PATH. Raises ToolMissing."""
    named = settings.bioformats2raw
    if named is not None and named.is_dir():  # as it is unpacked
        named = named / "bin" / (f"{NAME}.bat" if sys.platform == "win32" else NAME)
    if named is not None and not named.is_file():
        raise ToolMissing(f"MIMIC_BIOFORMATS2RAW names {named}, which is not there", remedy="Name the program")
    found = named or shutil.which(NAME, path=settings.path)
    if found is None:
        remedy = f"Install {NAME} and put it on PATH or into MIMIC_BIOFORMATS2RAW, or use --source bioformats"
        raise ToolMissing(f"{NAME} is missing", remedy=remedy)
    return Path(found).absolute()


def environment(settings: Settings, tmp: Path) -> dict[str, str]:
    """A private home and temporary folder, the flags of threats.md, and a Java: the one on PATH, else ours."""
    try:
        java: Path | None = jvm.find_java(settings)
    except ToolMissing:
        java = None
    flags = [
        *([f"-Xmx{settings.heap_mb}m"] if settings.heap_mb is not None else []),
        "-XX:+ExitOnOutOfMemoryError",
        *jvm.NO_NETWORK,
        "-Djava.awt.headless=true",
        "-Dbioformats_can_do_upgrade_check=false",
        "-Djdk.xml.entityExpansionLimit=1000",
        *([f"-Djava.io.tmpdir={tmp}"] if not re.search(r"\s", str(tmp)) else []),  # its script splits them at blanks
    ]
    own = [str(java.parent)] if java is not None else []
    path = ";" if sys.platform == "win32" else ":"
    env = jvm.environment(settings, tmp)
    if settings.java is not None and java is not None:
        env["JAVA_HOME"] = str(jvm.java_home(java))
    return env | {"PATH": path.join([settings.path, *own]), "JAVA_OPTS": " ".join(flags)}


def arguments(
    path: Path, target: Path, *, memo: Path, series: int | None, workers: int, tiles: bool = True
) -> list[str | Path]:
    """What follows the program's name: the full resolution of one series (None: of all), uncompressed, nested.

    Memo files are kept out of the input's folder, for those found there would be loaded (CVE-2026-22187).
    """
    return [
        *("--resolutions", "1"),
        *([] if series is None else ["--series", str(series)]),
        *([] if tiles else ["--no-tiles"]),
        *("--tile_width", str(TILE_PX), "--tile_height", str(TILE_PX)),
        *("--max_workers", str(workers)),
        *("--compression", "raw"),  # read once, and Blosc would need a native library
        *("--memo-directory", memo),
        *("--log-level", "INFO"),  # a line for each chunk
        "--no-minmax",
        "--no-hcs",
        path,
        target,
    ]


def metadata(path: Path, target: Path, *, settings: Settings, tmp: Path) -> bool:
    """Write the documents of all series of ``path``, without pixels; False when this version cannot do that.

    Raises BadInput, Unsupported, ToolFailed, ToolMissing, OutputError, LimitReached.
    """
    try:
        _run(path, target, None, 1, METADATA_DEADLINE_S, settings=settings, tmp=tmp, tiles=False)
    except _Usage:
        return False
    return True


def convert(
    path: Path, target: Path, *, series: int, workers: int, deadline_s: float, settings: Settings, tmp: Path,
    watch: Watch = lambda _: None,
) -> int:  # fmt: skip
    """Write one series to ``target`` and return how many chunks the program told that it wrote, 0 when it is silent.

    ``watch`` is called with that number as it grows, in another thread. Both paths must be absolute, and nothing be at
    ``target``. Raises as ``metadata`` does.
    """
    return _run(path, target, series, workers, deadline_s, settings=settings, tmp=tmp, watch=watch)


class _Usage(ToolFailed):
    """An option that this version does not know."""


def _run(
    path: Path,
    target: Path,
    series: int | None,
    workers: int,
    deadline_s: float,
    *,
    settings: Settings,
    tmp: Path,
    tiles: bool = True,
    watch: Watch = lambda _: None,
) -> int:
    memo = tmp / "memo"
    memo.mkdir(exist_ok=True)
    words = arguments(path, target, memo=memo, series=series, workers=workers, tiles=tiles)
    counted = _Count(watch, path)
    argv: list[str | Path] = [find(settings), *words]
    done = run.run(argv, env=environment(settings, tmp), cwd=tmp, deadline_s=deadline_s, watch=counted.line)
    said = counted.trouble or trouble(done.stderr.splitlines(), path)
    if done.returncode != 0 or said is not None:
        raise failure(done, path, said)
    return counted.chunks


class _Count:
    """Chunks that are done, and the first sign of trouble, from lines as they come."""

    def __init__(self, watch: Watch, path: Path) -> None:
        self.chunks = 0
        self.trouble: str | None = None
        self._watch, self._path = watch, path

    def line(self, text: str) -> None:
        """Never raises."""
        if CHUNK_DONE in text:
            self.chunks += 1
            self._watch(self.chunks)
        elif self.trouble is None:
            self.trouble = trouble([text], self._path)


def trouble(lines: list[str], path: Path) -> str | None:
    """The first line that tells of trouble; lines that quote the input's name are no evidence."""
    return next((line.strip() for line in lines if path.name not in line and TROUBLE.search(line)), None)


def failure(done: run.Completed, path: Path, said: str | None = None) -> MimicError:
    """What its end means, as an error to raise."""
    text = f"{done.stderr}\n{done.stdout}"
    if done.returncode == USAGE_EXIT_CODE and UNKNOWN_OPTION.search(text):
        line = next(line.strip() for line in text.splitlines() if UNKNOWN_OPTION.search(line))
        return _Usage(f"this {NAME} is too old: {line[:100]}", path, f"Install {NAME} 0.5 or newer")
    if "is noexec" in text:
        remedy = "Name a scratch folder from which programs may be loaded, with --scratch"
        return ToolFailed(f"{NAME} cannot load its libraries from the scratch folder", path, remedy)
    if re.search(r"JAVA_HOME|no 'java' command", text) and done.returncode > 0:
        return ToolMissing(f"{NAME} finds no Java", None, "Put a java on PATH, or name one with MIMIC_JAVA")
    found = bftools.failure(done, path)
    if said is not None and type(found) is BadInput:
        return BadInput(f"{NAME} cannot convert it: {said[:300]}", path, found.remedy)
    return found


def deadline_s(samples: int) -> float:
    """Beyond it the program hangs: 0.2 million samples a second is less than half of the slowest that was seen."""
    return 300.0 + samples / 200_000


def version(settings: Settings, tmp: Path) -> str | None:
    """The version that it tells ("0.9.4"). Raises ToolMissing."""
    done = run.run(
        [find(settings), "--version"], env=environment(settings, tmp), cwd=tmp, deadline_s=VERSION_DEADLINE_S
    )
    found = re.search(r"^Version\s*=\s*(\S+)", done.stdout, re.MULTILINE)
    return found.group(1) if found else None
