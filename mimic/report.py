"""Report <-> JSON, and the versions and digests that go into it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import platform
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from mimic import __version__, phi
from mimic.errors import BadInput, InternalError, Interrupted, UsageError, writing_failed
from mimic.model import Plan, Report, Tool

SCHEMA = 1
"""Raised when a field changes its meaning or goes away; new fields do not count."""
CHUNK_BYTES = 1 << 20
LIBRARIES = ("numpy", "imagecodecs", "tifffile", "openslide-python", "openslide-bin", "lxml", "jpype1", "pyvips")


def to_json(value: object) -> str:
    """Any of the model's types as indented JSON; paths become strings, dates ISO texts, unknown is null.

    Bytes become their digest. What is de-identified leaves without a word of its input (``phi.presentable``).
    A name that is not UTF-8 keeps its odd bytes as Python has them, "\\udcff" for 0xff: ``os.fsencode`` gives it back.
    """
    return json.dumps(plain(value), indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def plain(value: object) -> Any:
    if isinstance(value, Report):
        value = phi.presentable(value)
    elif isinstance(value, Plan):
        value = phi.presentable_plan(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return f"{len(value)} bytes, SHA-256 {hashlib.sha256(value).hexdigest()}"
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise InternalError(f"{type(value).__name__} cannot be written as JSON")


def size_text(size_bytes: int) -> str:
    """Bytes as people read them."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def write(value: object, path: Path) -> None:
    """``to_json`` into a file, whole or not at all. Raises OutputError."""
    part = path.with_name(f".mimic-{os.getpid()}.part")  # short, as the name may have all of the 255 bytes
    try:
        part.write_text(to_json(value) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise writing_failed(error, path) from error


class Sink:
    """Where the reports of a run go: FILE.json holds one, or a list of several; a folder gets a file for each."""

    def __init__(self, target: Path, *, several: bool, names: Iterable[str] = ()) -> None:
        """``names`` are those of all inputs, by which ``add`` counts. Raises UsageError when ``target`` cannot be that:
        better now than after hours of work."""
        self._target, self._several = target, several
        self._done: list[Report] = []
        self._names: set[str] = set()
        self._planned = [self._name(name) for name in names]
        self._file = target.suffix.lower() == ".json" and not target.is_dir()
        try:
            (target.parent if self._file else target).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot be a place for reports ({error.strerror})", target, "Name another") from error

    def add(self, report: Report, index: int | None = None) -> None:
        """Write the report of the input with that ``index``, or of another, and so keep what is done when the run is
        interrupted later. Raises OutputError."""
        self._done.append(report)
        if self._file:
            write(self._done if self._several else report, self._target)
        else:
            name = self._name(report.input.name) if index is None else self._planned[index]
            write(report, self._target / name)

    def _name(self, name: str) -> str:
        """The input's name, cut to what a file system takes, and numbered where two folders have the same."""
        stem = name.encode("utf-8", "surrogateescape")[:200].decode("utf-8", "ignore")
        numbers = ("" if number == 1 else f"-{number}" for number in itertools.count(1))
        free = next(free for number in numbers if (free := f"{stem}{number}.json").casefold() not in self._names)
        self._names.add(free.casefold())
        return free


def libraries() -> tuple[Tool, ...]:
    """mimic, Python and the libraries that touch pixels, with their versions; those not installed have none."""
    python = Tool("Python", platform.python_version())
    return (Tool("mimic", __version__), python, *(Tool(name, _version(name)) for name in LIBRARIES))


@functools.cache
def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


class Digests:
    """SHA-256 of files, computed by a thread beside the conversion; of none unless ``wanted``."""

    def __init__(self, paths: Iterable[Path], *, wanted: bool = True) -> None:
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mimic-digest")
        self._pending: list[tuple[Path, Future[str]]] = [
            (path, self._pool.submit(self._digest if wanted else _none, path)) for path in paths
        ]

    def _digest(self, path: Path) -> str:
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    if self._stop.is_set():
                        raise Interrupted("stopped")
                    digest.update(chunk)
        except OSError as error:
            raise BadInput(f"cannot be read: {error.strerror or error}", path) from error
        return digest.hexdigest()

    def result(self) -> dict[str, str]:
        """The digest of every file by its path, or ""; waits for them."""
        return {str(path): future.result() for path, future in self._pending}

    def close(self) -> None:
        """End the thread, whether or not it is done."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _none(_: Path) -> str:
    return ""
