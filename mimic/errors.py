"""Everything that can go wrong, as a user meets it.

    MimicError
     +- InternalError        1 / 500   a bug in mimic
     +- UsageError           2 / 400   the command or the options make no sense
     +- BadInput             3 / 422   the file is damaged, incomplete, or lacks something that must be known
     +- Unsupported          4 / 415   the file is sound, but mimic cannot convert its kind
     +- ToolMissing          5 / 503   Java, Bio-Formats, tiffcp ... is not there
     +- ToolFailed           6 / 500   it is there, and crashed, hung or ran out of memory
     +- OutputError          7 / 507   the result cannot be written where it should go
     +- VerificationFailed   8 / 500   what was written is not what the source holds, or breaks a reader's rule
     +- LimitReached         9 / 503   a deadline or a resource limit
     +- Interrupted        130 / 499   Ctrl-C, SIGTERM

Foreign errors (Java, vips, OSError) become one of these at the border where they arise, with ``from``.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import ClassVar


class MimicError(Exception):
    """A failure with one clear message: what was wrong, in which file, what to do.

    ``message`` says what was wrong without a trailing full stop; ``path`` is the file concerned;
    ``remedy`` is an imperative sentence. Picklable, so that it crosses process borders whole.
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, path: Path | None = None, remedy: str | None = None) -> None:
        super().__init__(message, path, remedy)
        self.message = message
        self.path = path
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}" if self.path is not None else self.message
        return f"{text}. {self.remedy}" if self.remedy else text


class InternalError(MimicError):
    exit_code = 1
    http_status = 500


class UsageError(MimicError):
    exit_code = 2
    http_status = 400


class BadInput(MimicError):
    exit_code = 3
    http_status = 422


class Unsupported(MimicError):
    exit_code = 4
    http_status = 415


class ToolMissing(MimicError):
    exit_code = 5
    http_status = 503


class ToolFailed(MimicError):
    exit_code = 6
    http_status = 500


class OutputError(MimicError):
    exit_code = 7
    http_status = 507


class VerificationFailed(MimicError):
    exit_code = 8
    http_status = 500


class LimitReached(MimicError):
    exit_code = 9
    http_status = 503


class Interrupted(MimicError):
    exit_code = 130
    http_status = 499


WRITING_REMEDIES = {
    errno.ENOSPC: "Free some space there, or write to another disk with -o",
    errno.EDQUOT: "Your quota is used up: free some space, or write to another disk with -o",
    errno.EFBIG: "Files this large are not allowed there (FAT, or ulimit -f): write to another disk with -o",
    errno.EROFS: "That file system is read-only: write to another folder with -o",
    errno.EACCES: "You may not write there: write to another folder with -o",
    errno.EPERM: "You may not write there: write to another folder with -o",
    errno.ENAMETOOLONG: "The name is too long: give a shorter one with -o",
    errno.ENOTDIR: "A part of the path is a file: write to another folder with -o",
    errno.EEXIST: "A part of the path is a file: write to another folder with -o",
    errno.ENOENT: "Make that folder first",
    errno.EIO: "Check that disk, or write to another one with -o",
}


def writing_failed(error: OSError, path: Path) -> OutputError:
    """The OutputError for the operating system's refusal to write ``path``, with what to do about it."""
    remedy = WRITING_REMEDIES.get(error.errno or 0, "Write to another place with -o")
    return OutputError(f"cannot be written ({error.strerror or error})", path, remedy)
