"""``mimic survey``: arguments in; a table, CSV, JSON or a page out."""

from __future__ import annotations

from pathlib import Path

import click
from click.exceptions import Exit

from mimic import settings
from mimic.cli_edge import edge
from mimic.cli_options import JSON, LOG_FILE, QUIET
from mimic.errors import UsageError

PARAMS = (
    click.Argument(
        ["folder"],
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="A folder of slides, with all folders below it.",
    ),
    click.Option(
        ["csv_file", "--csv"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write a table; - is standard output.",
    ),
    click.Option(
        ["html_file", "--html"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write a page with a plot, to be opened in a browser.",
    ),
    JSON,
    QUIET,
    LOG_FILE,
)


def register(app: click.Group, *, epilog: str | None = None) -> None:
    """Add the command to ``mimic``."""
    app.command(epilog=epilog, short_help="Show what a whole collection is, a row a slide.", params=list(PARAMS))(
        survey
    )


def survey(
    folder: Path,
    *,
    csv_file: Path | None,
    html_file: Path | None,
    as_json: bool,
    quiet: bool,
    log_file: Path | None,
) -> None:
    """Show what a whole collection is: a row a slide, with scale and magnification that do not fit marked.

    Fast: no pixel is read. Broken files are rows with their error, and the exit code stays 0.
    """
    with edge(log_file):
        from mimic import report, screen, screen_survey, survey_page
        from mimic.survey import check_target, to_csv, write_text
        from mimic.survey import survey as look

        to_stdout = csv_file is not None and str(csv_file) == "-"
        if to_stdout and as_json:
            raise UsageError("--csv - and --json cannot share standard output", remedy="Give --csv a file's name")
        for path in (csv_file, html_file):
            if path is not None:
                check_target(path)
        found = look(folder, settings.load(), screen_survey.watcher(quiet=quiet))
        if csv_file is not None and not to_stdout:
            write_text(to_csv(found.rows), csv_file)
        if html_file is not None:
            write_text(survey_page.page(found), html_file)
        if to_stdout:
            screen.text(to_csv(found.rows).replace("\r\n", "\n").removesuffix("\n"))
        elif as_json:
            screen.text(report.to_json(found))
        else:
            if csv_file is None and html_file is None:
                screen_survey.table(found.rows)
            screen_survey.summary(found)
        raise Exit(found.exit_code)


def show_info(file: Path, source: str | None, *, thumbnail: Path | None, as_json: bool) -> None:
    """What ``mimic info`` does: facts on the screen or as JSON, and a picture of the largest scan where one is asked.

    The facts are told before pixels are read, so that a file with damaged pixels still shows them.
    """
    from mimic import peek, probe, report, screen, screen_info
    from mimic.programs import bfclient
    from mimic.survey import main_image

    bfclient.expect(1, brief=thumbnail is None)
    slide = probe(file, source=source)
    if thumbnail is not None:
        peek.check_target(thumbnail, slide)
    if not as_json:
        screen_info.show(slide)
    made = None
    if thumbnail is not None:
        image = main_image(slide)
        pixels, how = peek.thumbnail(slide, image, settings.load())
        peek.write(pixels, thumbnail)
        made = {"path": str(thumbnail), "width_px": pixels.shape[1], "height_px": pixels.shape[0], "made": how}
        if not as_json:
            screen_info.thumbnail(made)
    if as_json:
        screen.text(report.to_json({**screen_info.told(slide), **({"thumbnail": made} if made else {})}))
