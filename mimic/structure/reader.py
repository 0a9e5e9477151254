"""Bounded random access to a file under check: whatever lies beyond its end becomes a BadInput that says where."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mimic.errors import BadInput

COPY_AGAIN = "Copy it again from the scanner or the archive"
SLACK_BYTES = 64 << 20
"""Read beyond twice the file's size only when structures overlap, which no writer does: a way to keep a check busy."""

GAP_BYTES = 4096
"""Spans that lie no further apart are read at once: a call costs as much as some kilobytes more."""
RUN_BYTES = 4 << 20


class Input:
    """A file opened for reading, unbuffered: a check jumps, and a buffer would read what is never looked at.

    Raises BadInput for a file that is missing, a directory, empty or not readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.is_dir():
                raise BadInput("is a directory, not a file", path, "Name the file in it that is the slide")
            if not path.is_file():
                what = "is not a regular file" if path.exists() else "there is no such file"
                raise BadInput(what, path, "Check the name and the folder")
            self._file = path.open("rb", buffering=0)
        except PermissionError as error:
            raise BadInput("may not be read: permission denied", path, "Ask for read access to it") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise BadInput(f"cannot be opened: {_reason(error)}", path, "Check the name and the folder") from error
        self._start = 0
        self.size = self._file.seek(0, 2)
        self._budget = 2 * self.size + SLACK_BYTES
        if self.size == 0:
            self._file.close()
            raise BadInput("the file is empty", path, COPY_AGAIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go; may be called twice."""
        self._file.close()

    def at(self, offset: int, count: int, what: str) -> bytes:
        """The ``count`` bytes at ``offset``; ``what`` names them in the BadInput that says they are not there."""
        self.require(offset, count, what)
        self._budget -= count
        if self._budget < 0:
            raise self.damaged(f"its structures overlap without end, {what} among them")
        return self._read(offset, count)

    def upto(self, offset: int, count: int) -> bytes:
        """At most ``count`` bytes from ``offset``, fewer at the end of the file."""
        return self._read(offset, max(0, min(count, self.size - offset))) if offset >= 0 else b""

    def many(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """What stands in each span (offset, count), cut at the end of the file; neighbours are read at once."""
        found: list[bytes] = []
        while len(found) < len(spans):
            start, stop = spans[len(found)][0], sum(spans[len(found)])
            last = len(found) + 1
            while last < len(spans) and 0 <= spans[last][0] - stop <= GAP_BYTES and stop - start < RUN_BYTES:
                stop = sum(spans[last])
                last += 1
            run = self.upto(start, stop - start)
            found += [run[offset - start : offset - start + count] for offset, count in spans[len(found) : last]]
        return found

    def unpack(self, layout: str, offset: int, what: str) -> tuple[Any, ...]:
        """``struct.unpack`` of what stands at ``offset``."""
        return struct.unpack(layout, self.at(offset, struct.calcsize(layout), what))

    def require(self, offset: int, count: int, what: str) -> None:
        """Raises BadInput unless ``count`` bytes at ``offset`` lie inside the file; reads nothing."""
        if offset < 0 or count < 0:
            raise self.damaged(f"{what} has the impossible position {offset} and length {count}")
        if offset + count > self.size:
            raise self.cut(what, offset + count)

    def cut(self, what: str, end: int) -> BadInput:
        """The error for something that should end at byte ``end``, which the file has not got."""
        message = f"the file is cut short: {what} ends at byte {end}, the file has {self.size}"
        return BadInput(message, self.path, COPY_AGAIN)

    def damaged(self, what: str) -> BadInput:
        """The error for a structure that contradicts itself."""
        return BadInput(f"the file is damaged: {what}", self.path, COPY_AGAIN)

    def _read(self, offset: int, count: int) -> bytes:
        parts: list[bytes] = []
        try:
            self._file.seek(self._start + offset)
            while count and (part := self._file.read(count)):
                parts.append(part)
                count -= len(part)
        except OSError as error:
            message = f"cannot be read at byte {offset}: {_reason(error)}"
            raise BadInput(message, self.path, "Check the disk or the network share") from error
        if count:
            raise BadInput("the file became shorter while it was read", self.path, "Wait until its copy is complete")
        return b"".join(parts)


class Within(Input):
    """A file that lies inside another one, which is opened for it. Raises BadInput as well when it ends beyond it."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        super().__init__(path)
        try:
            self.require(offset, size, "an attached file")
        except BadInput:
            self._file.close()
            raise
        self._start, self.size = offset, size


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
