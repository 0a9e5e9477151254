"""What ``mimic survey`` shows on a terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from mimic import screen
from mimic.report import size_text

if TYPE_CHECKING:
    from mimic.survey import Row, Survey, Watch

LINE_EVERY_S = 5.0
"""Between two lines of progress."""
NAMES_MAX = 20
"""Of slides that are named below the table; the table has them all."""


def watcher(*, quiet: bool) -> Watch:
    """Says every few seconds how far it is, on stderr."""
    said = time.monotonic()

    def watch(number: int, count: int, path: Path) -> None:
        nonlocal said
        if not quiet and time.monotonic() - said >= LINE_EVERY_S:
            said = time.monotonic()
            screen.err.print(f"{number} of {count} files: {escape(screen.shown(path.name))}")

    return watch


def table(rows: tuple[Row, ...]) -> None:
    """The columns that fit a terminal; CSV, JSON and the page have all."""
    shown = Table()
    for heading in ("slide", "format", "size (px)", "um/px", "mag", "fit", "label", "coding", "acquired", "note"):
        shown.add_column(heading, overflow="fold")
    for row in rows:
        style = "red" if row.error is not None else "yellow" if row.consistent is False else None
        shown.add_row(*(escape(screen.shown(cell)) for cell in _cells(row)), style=style)
    if rows:
        screen.out.print(shown)


def _cells(row: Row) -> tuple[str, ...]:
    pictures = [name for name, there in (("label", row.label), ("macro", row.macro)) if there]
    quality = f" q{row.quality}" if row.quality is not None else ""
    fit = {True: "yes", False: "NO", None: ""}[row.consistent]
    return (
        row.file,
        row.format or "",
        f"{row.width_px} x {row.height_px}" if row.width_px is not None else "",
        f"{row.scale_um:.4g}" if row.scale_um is not None else "",
        f"{row.magnification:g}x" if row.magnification is not None else "",
        fit,
        ", ".join(pictures),
        (row.codec or "") + quality,
        row.acquired.date().isoformat() if row.acquired is not None else "",
        row.error or row.doubt or "",
    )


def summary(found: Survey) -> None:
    """Counts, and the names of what needs a look."""
    counted = found.summary
    size = size_text(counted.size_bytes)
    slides = "slide" if counted.slides == 1 else "slides"
    screen.out.print(f"{counted.slides} {slides}, {size}, looked at in {found.seconds_s:.1f} s")
    for name, counts in (
        ("formats", counted.formats),
        ("scanners", counted.scanners),
        ("magnifications", counted.magnifications),
    ):
        if counts:
            text = ", ".join(f"{each}: {count}" for each, count in counts.items())
            screen.out.print(f"  {name}: {escape(screen.shown(text))}")
    for name, colour, files in (
        ("scale and magnification do not fit", "yellow", counted.inconsistent),
        ("no scale", "default", counted.without_scale),
        ("no magnification", "default", counted.without_magnification),
        ("broken or strange", "red", counted.failed),
    ):
        if files:
            more = f" and {len(files) - NAMES_MAX} more" if len(files) > NAMES_MAX else ""
            text = ", ".join(files[:NAMES_MAX]) + more
            screen.out.print(f"  [{colour}]{name} ({len(files)}):[/] {escape(screen.shown(text))}")
