"""``mimic edit``: arguments in, text or --json out, exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimic import __version__
from mimic.cli_edge import edge
from mimic.cli_options import JSON, LOG_FILE, OVERWRITE
from mimic.errors import UsageError

if TYPE_CHECKING:
    from mimic.edit import Edited


READABLE = click.Path(path_type=Path)
PARAMS = (
    click.Argument(["file"], type=READABLE, help="An SVS, or another TIFF with an Aperio description."),
    click.Option(["-o", "--output"], type=READABLE, help="Edit a copy: a file, or a folder. Else in place."),
    click.Option(["--appmag"], type=float, help="Objective power, a whole number."),
    click.Option(["--mpp"], type=float, help="Micrometres a pixel."),
    click.Option(
        ["pairs", "--set"], multiple=True, metavar="KEY=VALUE", help="A value of the description; repeatable."
    ),
    click.Option(["--remove"], multiple=True, metavar="KEY", help="Take a value away; repeatable."),
    click.Option(["--label"], default="keep", metavar="keep|drop", help="keep or drop the label."),
    click.Option(["--macro"], default="keep", metavar="keep|drop", help="keep or drop the macro."),
    click.Option(
        ["--deidentify"],
        is_flag=True,
        help="Drop pictures and all that may tell of people; search the file for it.",
    ),
    OVERWRITE,
    click.Option(["--dry-run"], is_flag=True, help="Show the difference, write nothing."),
    JSON,
    LOG_FILE,
)


def register(app: click.Group, *, epilog: str) -> None:
    """Put the command on the app."""
    app.command(name="edit", epilog=epilog, params=list(PARAMS))(edit)


def edit(
    file: Path,
    *,
    output: Path | None,
    appmag: float | None,
    mpp: float | None,
    pairs: tuple[str, ...],
    remove: tuple[str, ...],
    label: str,
    macro: str,
    deidentify: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    log_file: Path | None,
) -> None:
    """Change a slide's metadata in place, pixels untouched."""
    with edge(log_file):
        from mimic import report, screen
        from mimic.edit import Wish
        from mimic.edit import edit as change

        for name, value in (("--label", label), ("--macro", macro)):
            if value not in ("keep", "drop"):
                raise UsageError(f"{name} cannot be {value!r}", remedy="Say keep or drop")
        wish = Wish(
            appmag=appmag,
            mpp_um=mpp,
            pairs=tuple(_pair(text) for text in pairs),
            removes=remove,
            drop_label=label == "drop",
            drop_macro=macro == "drop",
            deidentify=deidentify,
        )
        done = change(file, wish, version=__version__, output=output, overwrite=overwrite, dry_run=dry_run)
        screen.text(report.to_json(done) if as_json else "\n".join(_lines(done, dry_run=dry_run)))


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise UsageError(f"--set {text!r} has no '='", remedy="Write --set 'Key=Value'")
    return key, value


def _lines(done: Edited, *, dry_run: bool) -> list[str]:
    """The difference of a dry run, or one line of what was done; notes below."""
    from mimic.report import size_text
    from mimic.screen import shown

    name = shown(done.path)
    if dry_run:
        lines = [shown(line) for line in done.difference] or [f"{name}: nothing would change"]
        if done.finished_bytes:
            lines.append(f"  note: an edit was cut off; {size_text(done.finished_bytes)} of its remains would be wiped")
    elif not done.written:
        lines = [f"{name}: nothing to change"]
    else:
        said = [f"{kind} dropped" for kind in done.dropped]
        said += [f"{size_text(done.appended_bytes)} appended, {size_text(done.wiped_bytes)} wiped"]
        said += [f"{size_text(done.finished_bytes)} left by an interrupted edit wiped"] * bool(done.finished_bytes)
        said += [f"{done.searched} removed strings searched for, none found"] * bool(done.searched)
        lines = [f"{name}: edited; {', '.join(said)}"]
    return lines + [f"  note: {shown(note)}" for note in done.notes]
