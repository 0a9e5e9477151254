"""Plain text on the screen, without the 20 ms that rich takes to load; with ``screen`` the only module that prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mimic.model import Request


def shown(path: Path | str) -> str:
    """A file name fit for a screen: what is no character is escaped."""
    text = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def event(name: str, **fields: object) -> None:
    """One JSON line on stdout."""
    text(json.dumps({"event": name, **fields}, ensure_ascii=False))


def text(value: str) -> None:
    """Text on stdout; what is no character is escaped, as JSON and Python do it."""
    sys.stdout.write(value.encode("utf-8", "backslashreplace").decode() + "\n")
    sys.stdout.flush()


def called(request: Request) -> Path:
    """What progress calls the input: nothing of its name, where that may not get out."""
    return Path("slide") if request.options.deidentify else request.input
