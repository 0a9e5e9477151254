"""What mimic needs, what of it is here, and how to get the rest. Everything is really started, not looked up."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from mimic import report, sources
from mimic.errors import MimicError, ToolMissing
from mimic.model import Tool
from mimic.programs import bf2raw, jvm, libtiff
from mimic.settings import Settings


@dataclass(frozen=True, slots=True)
class Finding:
    """One tool. ``exit_code`` is 0 when it works, or when mimic can do without it; ``remedy`` is empty then."""

    name: str
    works: bool
    version: str | None
    path: str | None
    use: str
    remedy: str = ""
    exit_code: int = 0


def examine(settings: Settings) -> tuple[Finding, ...]:
    """Java and Bio-Formats (a JVM is started), libvips, OpenSlide, tiffcp, bioformats2raw, zarr."""
    found = [
        *_of_source("bioformats", settings, "reads microscopes' formats"),
        *_of_source("openslide", settings, "reads SVS and NDPI, and checks what was written"),
        *_of_source("vips", settings, "reads PNG, JPEG, TIFF and other pictures"),
        *(_of_library(tool) for tool in report.libraries()),
        _tiffcp(settings),
        _bftools(settings),
        _bioformats2raw(settings),
        *_zarr(settings),
    ]
    return tuple(found)


def _of_source(name: str, settings: Settings, use: str) -> list[Finding]:
    try:
        tools = sources.load(name).tools(settings)
    except MimicError as error:
        return [Finding(name, False, None, None, use, str(error), error.exit_code)]
    except (ImportError, OSError) as error:  # a library whose shared objects do not load
        return [Finding(name, False, None, None, use, f"{error}. Install mimic again with pip", ToolMissing.exit_code)]
    return [Finding(tool.name, True, tool.version, tool.path, use) for tool in tools]


def _of_library(tool: Tool) -> Finding:
    works = tool.version is not None
    remedy = "" if works else f"Run 'pip install {tool.name}'"
    return Finding(tool.name, works, tool.version, tool.path, "", remedy, 0 if works else ToolMissing.exit_code)


def _tiffcp(settings: Settings) -> Finding:
    use = "optional: makes bfconvert's TIFF contiguous"
    try:
        path = libtiff.find_tiffcp(settings)
        with tempfile.TemporaryDirectory(prefix="mimic-doctor-") as folder:
            return Finding("tiffcp", True, libtiff.version(settings, Path(folder)), str(path), use)
    except MimicError:
        remedy = "Only --source bfconvert may need it: on Debian and Ubuntu, 'apt install libtiff-tools'"
        return Finding("tiffcp", False, None, None, use, remedy)


def _bftools(settings: Settings) -> Finding:
    folder = jvm.find_bftools(settings)
    where = str(folder) if folder else "the bundled jar"
    return Finding("bfconvert", True, None, where, "optional: --source bfconvert")


def _bioformats2raw(settings: Settings) -> Finding:
    """Absent is no fault, unless MIMIC_BIOFORMATS2RAW names one: then it is meant to be used."""
    use = "optional: --source bioformats2raw"
    try:
        with tempfile.TemporaryDirectory(prefix="mimic-doctor-") as folder:
            version, path = bf2raw.version(settings, Path(folder)), bf2raw.find(settings)
        return Finding(bf2raw.NAME, True, version, str(path), use)
    except MimicError as error:
        if settings.bioformats2raw is not None:
            return Finding(bf2raw.NAME, False, None, None, use, str(error), error.exit_code)
        remedy = "Only --source bioformats2raw needs it: unpack a release of it, and put its bin folder on PATH"
        return Finding(bf2raw.NAME, False, None, None, use, remedy)


def _zarr(settings: Settings) -> list[Finding]:
    use = "optional: reads OME-Zarr"
    return [replace(each, exit_code=0) for each in _of_source("zarr", settings, use)]
