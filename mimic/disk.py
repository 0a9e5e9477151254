"""One file opened for edits: every byte that is changed, and every fsync, goes through here, under a lock."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from mimic.errors import BadInput, OutputError, writing_failed

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCKED = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""Some network shares have no locks: there, nobody can be kept out."""
LOCK_AT = 1 << 62
"""Windows locks bytes, and keeps readers out of them: one that no file has."""


class Disk:
    """A file that nobody else edits meanwhile; closed, it is unlocked. OSErrors become OutputErrors.

    ``write`` False: only held, so that it can be copied whole. Raises OutputError when the file is write-protected or
    another process edits it, BadInput when it is not there.
    """

    def __init__(self, path: Path, *, write: bool = True) -> None:
        self.path = path
        flags = (os.O_RDWR if write else os.O_RDONLY) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            # root may write what is write-protected; whoever protected an archive meant root too
            if write and not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
                raise OutputError("is write-protected", path, "Write an edited copy with -o")
            self._file = os.open(path, flags)
        except FileNotFoundError as error:
            raise BadInput("there is no such file", path, "Check the name and the folder") from error
        except OSError as error:
            raise writing_failed(error, path) from error
        try:
            self._lock(shared=not write)
        except OSError as error:
            os.close(self._file)
            if error.errno in LOCKED:
                raise OutputError("is being edited by another process", path, "Wait until that is done") from error
            raise writing_failed(error, path) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def _lock(self, *, shared: bool) -> None:
        try:
            if sys.platform == "win32":
                os.lseek(self._file, LOCK_AT, os.SEEK_SET)
                msvcrt.locking(self._file, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise

    def write_at(self, offset: int, data: bytes) -> None:
        """All of ``data`` at ``offset``."""
        try:
            os.lseek(self._file, offset, os.SEEK_SET)
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise writing_failed(error, self.path) from error

    def sync(self) -> None:
        """Return when everything written is on the disk."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise writing_failed(error, self.path) from error

    def truncate(self, size_bytes: int) -> None:
        """Cut the file off."""
        try:
            os.ftruncate(self._file, size_bytes)
        except OSError as error:
            raise writing_failed(error, self.path) from error
