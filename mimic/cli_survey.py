"""``mimic survey``: arguments in; a table, CSV, JSON or a page out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimic import settings
from mimic.cli_edge import edge
from mimic.errors import UsageError

if TYPE_CHECKING:
    from mimic.survey import Row, Survey, Watch

LINE_EVERY_S = 5.0
"""Between two lines of progress."""
NAMES_MAX = 20
"""Of slides that are named below the table; the table has them all."""


def register(app: typer.Typer, *, epilog: str | None = None) -> None:
    """Add the command to ``mimic``."""
    app.command(epilog=epilog)(survey)


def survey(
    folder: Annotated[Path, typer.Argument(help="A folder of slides, with all folders below it.", metavar="DIR")],
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write a table; - is standard output.", metavar="FILE")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write a page with a plot, to be opened in a browser.", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of text.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", help="Append a log to this file.", metavar="FILE")
    ] = None,
) -> None:
    """Show what a whole collection is: a row a slide, with scale and magnification that do not fit marked.

    Fast: no pixel is read. Broken files are rows with their error, and the exit code stays 0.
    """

    with edge(log_file):
        from mimic import report, screen, survey_page
        from mimic import survey as surveys

        to_stdout = csv_file is not None and str(csv_file) == "-"
        if to_stdout and as_json:
            raise UsageError("--csv - and --json cannot share standard output", remedy="Give --csv a file's name")
        for path in (csv_file, html_file):
            if path is not None:
                surveys.check_target(path)
        found = surveys.survey(folder, settings.load(), _watcher(quiet=quiet))
        if csv_file is not None and not to_stdout:
            surveys.write_text(surveys.to_csv(found.rows), csv_file)
        if html_file is not None:
            surveys.write_text(survey_page.page(found), html_file)
        if to_stdout:
            screen.text(surveys.to_csv(found.rows).replace("\r\n", "\n").removesuffix("\n"))
        elif as_json:
            screen.text(report.to_json(found))
        else:
            if csv_file is None and html_file is None:
                _table(found.rows)
            _summary(found)
        raise typer.Exit(found.exit_code)


def show_info(file: Path, source: str | None, *, thumbnail: Path | None, as_json: bool) -> None:
    """What ``mimic info`` does: facts on the screen or as JSON, and a picture of the largest scan where one is asked.

    The facts are told before pixels are read, so that a file with damaged pixels still shows them.
    """
    from mimic import peek, probe, report, screen, screen_info
    from mimic import survey as surveys

    slide = probe(file, source=source)
    if thumbnail is not None:
        peek.check_target(thumbnail, slide)
    if not as_json:
        screen_info.show(slide)
    made = None
    if thumbnail is not None:
        image = surveys.main_image(slide)
        pixels, how = peek.thumbnail(slide, image, settings.load())
        peek.write(pixels, thumbnail)
        made = {"path": str(thumbnail), "width_px": pixels.shape[1], "height_px": pixels.shape[0], "made": how}
        if not as_json:
            screen_info.thumbnail(made)
    if as_json:
        screen.text(report.to_json({**screen_info.told(slide), **({"thumbnail": made} if made else {})}))


def _watcher(*, quiet: bool) -> Watch:
    """Says every few seconds how far it is, on stderr."""
    from rich.markup import escape

    from mimic import screen

    said = time.monotonic()

    def watch(number: int, count: int, path: Path) -> None:
        nonlocal said
        if not quiet and time.monotonic() - said >= LINE_EVERY_S:
            said = time.monotonic()
            screen.err.print(f"{number} of {count} files: {escape(screen.shown(path.name))}")

    return watch


def _table(rows: tuple[Row, ...]) -> None:
    """The columns that fit a terminal; CSV, JSON and the page have all."""
    from rich.markup import escape
    from rich.table import Table

    from mimic import screen

    table = Table()
    for heading in ("slide", "format", "size (px)", "um/px", "mag", "fit", "label", "coding", "acquired", "note"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        style = "red" if row.error is not None else "yellow" if row.consistent is False else None
        table.add_row(*(escape(screen.shown(cell)) for cell in _cells(row)), style=style)
    if rows:
        screen.out.print(table)


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


def _summary(found: Survey) -> None:
    """Counts, and the names of what needs a look."""
    from rich.markup import escape

    from mimic import screen

    summary = found.summary
    size = screen.size_text(summary.size_bytes)
    screen.out.print(f"{summary.slides} slides, {size}, looked at in {found.seconds_s:.1f} s")
    for name, counts in (
        ("formats", summary.formats),
        ("scanners", summary.scanners),
        ("magnifications", summary.magnifications),
    ):
        if counts:
            text = ", ".join(f"{each}: {count}" for each, count in counts.items())
            screen.out.print(f"  {name}: {escape(screen.shown(text))}")
    for name, colour, files in (
        ("scale and magnification do not fit", "yellow", summary.inconsistent),
        ("no scale", "default", summary.without_scale),
        ("no magnification", "default", summary.without_magnification),
        ("broken or strange", "red", summary.failed),
    ):
        if files:
            more = f" and {len(files) - NAMES_MAX} more" if len(files) > NAMES_MAX else ""
            text = ", ".join(files[:NAMES_MAX]) + more
            screen.out.print(f"  [{colour}]{name} ({len(files)}):[/] {escape(screen.shown(text))}")
