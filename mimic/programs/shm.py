"""Memory that a child process and we both map: a file, in memory where possible."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from mimic import leftovers
from mimic.errors import ToolFailed

SHM = Path("/dev/shm")

log = logging.getLogger(__name__)


def reserve(size: int) -> tuple[Path, int]:
    """A file of ``size`` bytes that are really there, in memory where possible: a hole in a full file system would
    kill the process at its first use instead of raising."""
    for folder in ([SHM] if SHM.is_dir() else []) + [Path(tempfile.gettempdir())]:
        descriptor, name = -1, ""
        try:
            descriptor, name = tempfile.mkstemp(prefix="mimic-", dir=folder)
            leftovers.made("file", name)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)
            else:
                os.ftruncate(descriptor, size)
        except OSError as error:
            log.debug("no %d bytes in %s: %s", size, folder, error)
            if descriptor >= 0:
                os.close(descriptor)
                Path(name).unlink()
        else:
            return Path(name), descriptor
    raise ToolFailed(
        f"{size >> 20} MiB of shared memory cannot be had", remedy="Free space in the temporary folder, or set TMPDIR"
    )
