"""Arguments in, text or --json out, exit code; decides nothing about images.

Heavy imports wait until a command runs: ``mimic --help`` must answer at once.
"""

from __future__ import annotations

import glob
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.exceptions import Exit

from mimic import __version__, cli_batch, cli_edit, cli_options, cli_survey, settings
from mimic.cli_edge import edge
from mimic.cli_options import FILE, JSON, LOG_FILE, OF_A_PLAN, OF_A_SLIDE, OUTPUT, PATH, SOURCE
from mimic.errors import MimicError, UsageError, VerificationFailed

if TYPE_CHECKING:
    from mimic.model import Options
    from mimic.requests import Found

EPILOG = "Exit codes: 0 done, 1 bug, 2 usage, 3 bad input, 4 unsupported, 5 tool missing, 6 tool failed, 7 output, \
8 verification failed, 9 limit reached, 130 interrupted. Of several slides the highest one counts."

MANY = click.Argument(["inputs"], nargs=-1, required=True, metavar="FILE...", help="Files, folders or globs.")


@click.group(name="mimic", epilog=EPILOG, context_settings={"show_default": True, "max_content_width": 100})
@click.version_option(__version__, message="mimic %(version)s", help="Show the version.")
def app() -> None:
    """Any microscopy image in, a complete and verified Aperio SVS mimic out."""


@app.command(
    epilog=EPILOG,
    short_help="Convert slides to Aperio SVS, and verify them.",
    params=[MANY, OUTPUT, *OF_A_SLIDE, *cli_batch.params(jobs=None)],
)
def convert(
    inputs: tuple[str, ...],
    output: Path | None,
    *,
    jobs: int | None,
    resume: bool,
    shard: str | None,
    report_dir: Path | None,
    report_file: Path | None,
    quiet: bool,
    as_json: bool,
    log_file: Path | None,
    **wish: Any,
) -> None:
    """Convert slides to Aperio SVS, each verified before it gets its name."""
    with edge(log_file):
        from mimic import requests

        options = requests.options(**cli_options.chosen(wish))
        found = _found(inputs, output, options)
        run = cli_batch.Run(jobs, resume, shard, report_file, report_dir, as_json, quiet)
        raise Exit(cli_batch.convert_all(found, run))


def _found(inputs: Sequence[str], output: Path | None, options: Options) -> Found:
    from mimic import requests

    found = requests.expand([path for text in inputs for path in _expand(text)], output, options)
    if not found.requests:
        from mimic import screen

        for path, reason in found.skipped:
            screen.error(reason if isinstance(reason, MimicError) else f"{path}: {reason}")
        raise UsageError(f"no slide in {', '.join(inputs)}", remedy="Name files, or a folder that holds some")
    return found


def _expand(text: str) -> list[Path]:
    """A glob that the shell left alone (quoted, or on Windows); a file of that very name wins."""
    path = Path(text)
    if os.path.lexists(path) or not glob.has_magic(text):
        return [path]
    found = glob.glob(text, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return [Path(match) for match in sorted(found)] or [path]


@app.command(
    epilog=EPILOG,
    short_help="Show what a file is, and where each fact came from.",
    params=[
        FILE,
        SOURCE,
        click.Option(["--thumbnail"], type=PATH, metavar="FILE.png", help="Write a small picture of the scan."),
        JSON,
        LOG_FILE,
    ],
)
def info(file: Path, source: str | None, *, thumbnail: Path | None, as_json: bool, log_file: Path | None) -> None:
    """Show what a file is: images, sizes, scale, objective, label, and where each fact came from."""
    with edge(log_file):
        cli_survey.show_info(file, source, thumbnail=thumbnail, as_json=as_json)


@app.command(epilog=EPILOG, params=[FILE, OUTPUT, *OF_A_PLAN, JSON, LOG_FILE])
def plan(file: Path, output: Path | None, *, as_json: bool, log_file: Path | None, **wish: Any) -> None:
    """Show what convert would do, and why, without reading a pixel."""
    with edge(log_file):
        from mimic import plan as make_plans
        from mimic import report, screen

        plans = make_plans(file, output, **cli_options.chosen(wish))
        if as_json:
            screen.text(report.to_json(plans))
        else:
            for each in plans:
                screen.plan_reasons(each)


@app.command(
    epilog=EPILOG,
    short_help="Check every rule that readers of SVS have.",
    params=[
        click.Argument(
            ["files"], type=PATH, nargs=-1, required=True, metavar="FILE...", help="SVS files, mimic's or not."
        ),
        click.Option(["--phi"], is_flag=True, help="What does it reveal of people, cases and devices?"),
        JSON,
        LOG_FILE,
    ],
)
def check(files: tuple[Path, ...], *, phi: bool, as_json: bool, log_file: Path | None) -> None:
    """Check every rule that readers of SVS have, or with --phi what the file reveals; exit code 8 when a MUST is broken
    or something is revealed."""
    with edge(log_file):
        from mimic import interrupts, report, reveal, screen, verify

        look = reveal.check if phi else verify.check

        worst, told = 0, []
        for file in files:
            interrupts.check()
            try:
                results = look(file)
            except MimicError as error:
                worst = max(worst, error.exit_code)
                told.append({"path": file, "checks": [], "error": str(error), "exit_code": error.exit_code})
                screen.error(error)
                continue
            code = VerificationFailed.exit_code if verify.failed(results) else 0
            worst = max(worst, code)
            told.append({"path": file, "checks": results, "error": None, "exit_code": code})
            if not as_json:
                screen.checks(file, results)
        if as_json:
            screen.text(report.to_json(told))
        raise Exit(worst)


@app.command(epilog=EPILOG, short_help="Show what tools there are, and what is missing.", params=[JSON, LOG_FILE])
def doctor(*, as_json: bool, log_file: Path | None) -> None:
    """Show Java, Bio-Formats and the other tools: found, version, what is missing and how to get it."""
    with edge(log_file):
        from mimic import doctor as doctor_
        from mimic import report, screen

        findings = doctor_.examine(settings.load())
        if as_json:
            screen.text(report.to_json(findings))
        else:
            screen.findings(findings)
        raise Exit(max(finding.exit_code for finding in findings))


cli_survey.register(app, epilog=EPILOG)
cli_edit.register(app, epilog=EPILOG)
cli_batch.register(app, epilog=EPILOG)


def main() -> None:
    """The ``mimic`` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done: one Ctrl-C more would only make Python's exit noisy
