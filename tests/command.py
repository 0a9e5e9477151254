"""Running the command line in tests, as a process or inside this one, and looking for what it left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mimic.cli import app

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534
PATIENCE_S = 120.0
FULL_DISK_BYTES = 300 << 10


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """What stderr says, which must be one line of mimic's, and no traceback."""
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("mimic: "), self.err
        assert "Traceback" not in self.err and "a bug in mimic" not in self.err, self.err
        return lines[0]


def picture(path: Path, *, width_px: int = 400, height_px: int = 300, seed: int = 7) -> Path:
    """A picture of noise in colour: nothing in it compresses away. Its format is what the name says, else PNG."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height_px, width_px, 3), dtype=np.uint8)
    kind = {".jpg": "JPEG", ".tif": "TIFF", ".bmp": "BMP"}.get(path.suffix, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.fromarray(pixels).save(file, kind)
    return path


def mimic(*argv: str | bytes | Path) -> Done:
    """The command in this process: fast, but for the JVM that it starts and ends."""
    result = CliRunner().invoke(app, [os.fsdecode(word) for word in argv])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def environment(temporary: Path, **more: str) -> dict[str, str]:
    """Of a process whose temporary files are seen: all go into ``temporary``."""
    temporary.mkdir(exist_ok=True)
    return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1", **more}


def process(
    *argv: str | bytes | Path,
    cwd: Path,
    prefix: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
) -> Done:
    """The command as a process of its own in ``cwd``, with ``cwd.parent / "tmp"`` for temporary files."""
    words = [*prefix, sys.executable, "-W", "error", "-m", "mimic", *argv]
    done = subprocess.run(
        words,
        cwd=cwd,
        env=env or environment(cwd.parent / "tmp"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    out, err = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
    assert "Traceback" not in err, err
    return Done(done.returncode, out, err)


def files(folder: Path) -> dict[bytes, bytes]:
    """Every file below a folder, hidden ones too, with its contents; folders end in a slash."""
    found = {}
    for path in folder.rglob("*"):
        name = os.fsencode(path.relative_to(folder))
        found[name + b"/" * path.is_dir()] = b"" if path.is_dir() else path.read_bytes()
    return found


@contextmanager
def untouched(*folders: Path) -> Iterator[None]:
    """Fails when anything in a folder comes, goes or changes: outputs, staging, temporary files."""
    before = [files(folder) for folder in folders]
    yield
    for folder, was in zip(folders, before, strict=True):
        now = files(folder)
        assert now.keys() == was.keys(), f"{folder}: {now.keys() ^ was.keys()}"
        assert [name for name in now if now[name] != was[name]] == []


def without_rights() -> tuple[str, ...]:
    """Words before a command that make it run as somebody who is not root; skips where that cannot be."""
    if not hasattr(os, "geteuid"):
        pytest.skip("rights work otherwise here")
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv") or pytest.skip("root, and no setpriv to become another")
    prefix = (setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    script = "import numpy, pyvips, imagecodecs, openslide, click, rich"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    tried = subprocess.run([*prefix, sys.executable, "-c", script], env=env, capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip("nobody but root may run this Python")
    return prefix


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs on ``folder``; skips where it cannot be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount") or pytest.skip("no mount")
    tried = subprocess.run(
        [mount, "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if tried.returncode != 0:
        pytest.skip("a file system can only be mounted by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
