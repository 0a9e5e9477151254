"""What the environment says: the only reader of os.environ."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """``java``: a java program or a Java home; ``bioformats``: a jar or a bftools folder; ``scratch``: where large
    intermediate files go; ``heap_mb``: the JVM's -Xmx; ``bioformats2raw``: that program. None: what mimic ships or
    finds."""

    java: Path | None = None
    bioformats: Path | None = None
    scratch: Path | None = None
    heap_mb: int | None = None
    path: str = os.defpath
    system_root: str | None = None
    bioformats2raw: Path | None = None


def without_blas_threads() -> None:
    """Keep OpenBLAS, which numpy loads, from starting a thread for every core, unless the user wants them.

    Nothing here multiplies matrices; of a short process a tenth of the CPU went into threads that wait for such work.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def environment(temporary: Path) -> dict[str, str]:
    """Of another process of mimic: ours, with ``temporary`` for its temporary files and our way to find modules."""
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    return {**os.environ, **places, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def load() -> Settings:
    """Settings from MIMIC_JAVA, MIMIC_BIOFORMATS, MIMIC_BIOFORMATS2RAW, MIMIC_SCRATCH, MIMIC_HEAP_MB and PATH; an empty
    one is not set."""

    def path(name: str) -> Path | None:
        value = os.environ.get(name)
        return Path(value).expanduser() if value else None

    heap = os.environ.get("MIMIC_HEAP_MB", "")
    return Settings(
        java=path("MIMIC_JAVA"),
        bioformats=path("MIMIC_BIOFORMATS"),
        scratch=path("MIMIC_SCRATCH"),
        heap_mb=int(heap) if heap.isdecimal() and int(heap) else None,
        path=os.environ.get("PATH", os.defpath),
        system_root=os.environ.get("SYSTEMROOT"),
        bioformats2raw=path("MIMIC_BIOFORMATS2RAW"),
    )
