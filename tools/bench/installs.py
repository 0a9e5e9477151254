"""The peers' packages, each peer in a virtual environment of its own below the work folder, kept for the next run.

Of their own, because they do not agree: wsic wants the zarr and numpy of 2023.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES: dict[str, tuple[str, ...]] = {
    "tifftools": ("tifftools",),
    "vips": ("pyvips", "pyvips-binary"),
    "large_image": (
        "large_image_converter",
        "large-image-source-vips",
        "large-image-source-openslide",
        "large-image-source-pil",
        "large-image-source-dicom",
        "large-image-source-tifffile",
        "pyvips-binary",
        "openslide-bin",
    ),
    "slideio": ("slideio",),
    # 0.9.0 is its last release, of 2023; what it imports without asking for it is of that time too
    "wsic": (
        "wsic==0.9.0",
        "dask[distributed]==2023.5.1",
        "imagecodecs==2023.3.16",
        "numcodecs<0.12",
        "numpy==1.24.4",
        "opencv-python-headless<4.9",
        "pandas<2.1",
        "pydicom<3",
        "scikit-image<0.21",
        "tifffile==2023.4.12",
        "tqdm",  # without it, its tiles are iterated over twice, begin again, and it waits for the first forever
        "wsidicom==0.9.0",
        "xarray==2023.5.0",
        "zarr==2.14.2",
    ),
    "wsidicomizer": ("wsidicomizer",),
}
EXTRAS = {"large_image": ("large-image-source-bioformats",)}
"""Tried too, but a peer does without: this one must be compiled with a JDK, and is large_image's only reader of CZI."""
SHOWN = {"large_image": "large_image_converter", "vips": "pyvips-binary"}
"""Whose version stands for the peer's, where it is not the first of its packages."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An installed peer, or the reason (``error``) why it is not; ``notes`` tell which extras could not be had."""

    name: str
    python: Path
    versions: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        name = SHOWN.get(self.name, self.name)
        return f"{name} {self.versions.get(normal(name), 'of unknown version')}"


def install(names: Iterable[str], work: Path) -> dict[str, Peer]:
    """Every named peer, from its folder or freshly by pip."""
    return {name: _installed(name, work / "peers" / name) for name in names}


def present(names: Iterable[str]) -> dict[str, Peer]:
    """The same without any installation: whatever this Python has."""
    versions = _versions(Path(sys.executable))
    return {name: Peer(name, Path(sys.executable), versions) for name in names}


def _installed(name: str, folder: Path) -> Peer:
    python, marker = folder / "bin" / "python", folder / "bench.json"
    kept = json.loads(marker.read_text()) if marker.exists() else {}
    if kept.get("packages") != list(PACKAGES[name]):
        kept = {"packages": PACKAGES[name], "error": _pip(folder, python, PACKAGES[name]), "notes": []}
        if kept["error"] is None:
            told = {extra: _pip(folder, python, (extra,)) for extra in EXTRAS.get(name, ())}
            kept["notes"] = [f"{extra} cannot be installed: {why}" for extra, why in told.items() if why]
        marker.write_text(json.dumps(kept))
    versions = _versions(python) if kept["error"] is None else {}
    return Peer(name, python, versions, kept["error"], tuple(kept["notes"]))


def _pip(folder: Path, python: Path, packages: tuple[str, ...]) -> str | None:
    """Install; the reason when that fails."""
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    words: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    telling = [line for line in lines if line.startswith(("ERROR", "error", "╰"))]
    return str((telling or lines or ["pip failed"])[-1])[:200]


def _versions(python: Path) -> dict[str, str]:
    """Every package of a Python, with its version."""
    script = "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    said = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout
    return {normal(name): version for name, version in json.loads(said)}


def normal(name: str) -> str:
    """A package's name as ``Peer.versions`` has it."""
    return name.lower().replace("_", "-")
