"""Plain names for files whose own Java cannot have: file names that are not UTF-8 (threats.md, T7).

A symbolic link alone in a private folder: what Bio-Formats looks for beside a file it will not find there, and so only
formats of one file get one, and only where nothing beside the file is a part of it.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from mimic.errors import BadInput

SINGLE = frozenset((".czi", ".lif", ".lsm", ".nd2", ".ndpi", ".oib", ".svs", ".zvi"))
"""Endings of formats that are one file; a CZI can be split, into files that begin with the same name."""
NAME_MAX_CHARS = 100
RENAME = "Rename it, or make a link of another name to it"


class Aliases:
    """Links below ``folder``, whose owner removes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._known: dict[Path, Path] = {}

    def of(self, path: Path) -> Path:
        """``path`` itself where Java can have its name, else its alias. Raises BadInput where it cannot have one."""
        if is_text(path):
            return path
        if path not in self._known:
            self._known[path] = self._link(path)
        return self._known[path]

    def own(self, name: str) -> str:
        """The name of the file for which ``name`` is an alias, else ``name``."""
        return next((str(path) for path, alias in self._known.items() if str(alias) == name), name)

    def _link(self, path: Path) -> Path:
        if path.suffix.lower() not in SINGLE or _has_parts(path):
            message = "the name is not valid UTF-8, and Java cannot open such a file with others beside it"
            raise BadInput(message, path, RENAME)
        folder = self._folder / f"alias-{next(self._numbers)}"
        alias = folder / (re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)[:NAME_MAX_CHARS] + path.suffix.lower())
        try:
            folder.mkdir(mode=0o700)
            alias.symlink_to(path.absolute())
        except OSError as error:
            message = f"the name is not valid UTF-8, and no link to it can be made ({error.strerror})"
            raise BadInput(message, path, RENAME) from error
        return alias


def is_text(path: Path) -> bool:
    """Whether all of a path is valid UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_parts(path: Path) -> bool:
    """Whether it is split: "NAME.czi" and "NAME (1).czi". Of a folder that cannot be read that is not known."""
    part = re.compile(re.escape(path.stem) + r"[ _-]?\(\d+\)" + re.escape(path.suffix), re.IGNORECASE)
    try:
        return any(part.fullmatch(each.name) for each in path.absolute().parent.iterdir())
    except OSError:
        return True
