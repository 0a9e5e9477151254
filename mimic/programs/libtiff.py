"""tiffcp: where it is, and how it turns a planar TIFF into a contiguous one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from mimic.errors import OutputError, ToolFailed, ToolMissing
from mimic.programs import jvm, run
from mimic.settings import Settings


def find_tiffcp(settings: Settings) -> Path:
    """The tiffcp program on PATH. Raises ToolMissing."""
    found = shutil.which("tiffcp", path=settings.path)
    if found is None:
        remedy = "Install libtiff's tools (Debian: libtiff-tools), or use --source bioformats, which needs none"
        raise ToolMissing("tiffcp is missing", remedy=remedy)
    return Path(found)


def version(settings: Settings, tmp: Path) -> str | None:
    """What tiffcp's usage text calls itself ("4.5.0"); it has no flag for that and exits 1."""
    said = run.run([find_tiffcp(settings)], env=jvm.environment(settings, tmp), cwd=tmp, deadline_s=30.0)
    found = re.search(r"LIBTIFF, Version ([\w.]+)", said.stdout + said.stderr)
    return found.group(1) if found else None


def make_contiguous(source: Path, target: Path, *, big: bool, settings: Settings, deadline_s: float) -> None:
    """Write ``target`` with RGBRGB samples from a planar, uncompressed ``source``. Raises ToolFailed, OutputError."""
    argv: list[str | Path] = [
        find_tiffcp(settings),
        *("-m", "0"),  # else it refuses pictures above 256 MiB
        *("-p", "contig"),
        *("-c", "none"),  # the scratch is read once: compressing it costs more than the disk
        *(["-8"] if big else []),
        source,
        target,
    ]
    done = run.run(argv, env=jvm.environment(settings, target.parent), cwd=target.parent, deadline_s=deadline_s)
    said = "\n".join((done.stderr, done.stdout)).strip()
    if "No space left" in said:
        raise OutputError("the disk is full", target, "Free some room, or set MIMIC_SCRATCH to a larger disk")
    if done.returncode != 0 or "Error" in done.stderr:
        raise ToolFailed(f"tiffcp failed with exit code {done.returncode}: {said[-300:]}", source)
