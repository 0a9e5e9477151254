"""A place beside the output where it is made, and the moment when it gets its name.

staged --verified, fsynced--> published
staged --any failure-------> gone, an earlier output untouched
staged --kill -9-----------> left behind, until its supervisor or the next run for the same output sweeps it
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from mimic import leftovers
from mimic.errors import OutputError, writing_failed

if sys.platform != "win32":
    import fcntl

PREFIX = ".mimic-"
"""Short and ASCII: the output's own name plus an ending may exceed the 255 bytes of a name."""
STAGED_NAME = "slide.svs"
"""Readers go by the ending."""
OWNER_NAME = "owner"
MAX_OWNER_BYTES = 4096


def refuse_existing(output: Path, *, overwrite: bool, inputs: tuple[Path, ...]) -> None:
    """Raises OutputError when ``output`` is there already and may not be replaced, or is one of the inputs."""
    try:
        output.lstat()
    except FileNotFoundError:
        return
    except OSError as error:  # a name too long, a folder that may not be entered: better told now than at the end
        raise writing_failed(error, output) from error
    if any(_same(output, path) for path in inputs):
        raise OutputError("the output would replace its own input", output, "Give another name or folder with -o")
    if output.is_dir():
        raise OutputError("is a folder", output, "Give another name with -o")
    if not overwrite:
        raise OutputError("is there already", output, "Use --overwrite to replace it, or another name with -o")


def refuse_taken(output: Path, taken: Mapping[Path, Path]) -> None:
    """Raises OutputError when the run has already made ``output`` from another input, told by ``taken``."""
    first = taken.get(output.absolute())
    if first is not None:
        raise OutputError(f"was made from {first.name} in this run", output, "Give this one another name with -o")


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return one.exists() and other.exists() and one.samefile(other)
    return False


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A private folder beside ``output``, removed at the end with all that is in it; folders made for it likewise,
    when nothing was published in them. Raises OutputError."""
    made = [folder for folder in (output.parent, *output.parent.parents) if not os.path.lexists(folder)]
    for each in made:
        leftovers.made("empty", each)
    sweep(output)
    folder = output.parent / f"{PREFIX}{secrets.token_hex(8)}"  # known before it is there: Ctrl-C may fall in between
    leftovers.made("folder", folder)
    try:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise writing_failed(error, output) from error
        with _owned(folder, output):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(made)
        leftovers.gone("folder", folder)
        for each in made:
            leftovers.gone("empty", each)


@contextlib.contextmanager
def _owned(folder: Path, output: Path) -> Iterator[None]:
    """While we live, we hold a lock on a file in ``folder`` that says for which output it is, and on which computer.

    It is written after it is locked: where it can be read, there was a lock. Where there are no locks, it stays empty.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        descriptor = os.open(folder / OWNER_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise writing_failed(error, output) from error
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, json.dumps(_owner(output)).encode())
        yield
    finally:
        os.close(descriptor)


def _owner(output: Path) -> dict[str, str]:
    return {"host": platform.node(), "output": os.fsencode(output.name).hex()}


def sweep(output: Path) -> None:
    """Remove what a killed conversion to the same ``output`` has left.

    Only what is certain: a folder whose owner ran on this computer and holds its lock no more. A process number would
    prove nothing, it may be another's by now; the lock goes with its process.
    """
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        for folder in output.parent.glob(f"{PREFIX}*"):
            if _is_stale(folder / OWNER_NAME, output):
                shutil.rmtree(folder, ignore_errors=True)


def _is_stale(owner: Path, output: Path) -> bool:
    if sys.platform == "win32":
        return False
    try:
        descriptor = os.open(owner, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        said = json.loads(os.read(descriptor, MAX_OWNER_BYTES))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, ValueError):
        return False
    else:
        return bool(said == _owner(output))
    finally:
        os.close(descriptor)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def publish(path: Path, output: Path, *, overwrite: bool) -> None:
    """Give the finished file its name, whole or not at all. Raises OutputError, and leaves an earlier output alone."""
    leftovers.made("output", output)
    try:
        path.chmod(0o666 & ~_umask())
        if overwrite:
            path.replace(output)
        else:
            _link(path, output)
        _sync_folder(output.parent)
    except FileExistsError as error:
        remedy = "Use --overwrite to replace it, or another name with -o"
        raise OutputError("appeared while the slide was converted", output, remedy) from error
    except OSError as error:
        raise writing_failed(error, output) from error


def _link(path: Path, output: Path) -> None:
    """A hard link refuses an existing name, which a rename would silently replace; not all file systems have links."""
    try:
        os.link(path, output)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(output):
            raise FileExistsError(errno.EEXIST, "File exists", str(output)) from None
        path.rename(output)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut; folders cannot be opened on Windows, which syncs them itself."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
