"""``mimic edit``: arguments in, text or --json out, exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimic import __version__
from mimic.cli_edge import edge
from mimic.errors import UsageError

if TYPE_CHECKING:
    from mimic.edit import Edited


def register(app: typer.Typer, *, epilog: str) -> None:
    """Put the command on the app."""
    app.command(name="edit", epilog=epilog)(edit)


def edit(
    file: Annotated[Path, typer.Argument(help="An SVS, or another TIFF with an Aperio description.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Edit a copy: a file, or a folder. Else in place.")
    ] = None,
    appmag: Annotated[float | None, typer.Option("--appmag", help="Objective power, a whole number.")] = None,
    mpp: Annotated[float | None, typer.Option("--mpp", help="Micrometres a pixel.")] = None,
    pairs: Annotated[
        list[str] | None, typer.Option("--set", help="A value of the description; repeatable.", metavar="KEY=VALUE")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="Take a value away; repeatable.", metavar="KEY")
    ] = None,
    label: Annotated[str, typer.Option("--label", help="keep or drop the label.", metavar="keep|drop")] = "keep",
    macro: Annotated[str, typer.Option("--macro", help="keep or drop the macro.", metavar="keep|drop")] = "keep",
    deidentify: Annotated[
        bool,
        typer.Option("--deidentify", help="Drop pictures and all that may tell of people; search the file for it."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference, write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of text.")] = False,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", help="Append a log to this file.", metavar="FILE")
    ] = None,
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
            pairs=tuple(_pair(text) for text in pairs or ()),
            removes=tuple(remove or ()),
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
