"""Arguments in, text or --json out, exit code; decides nothing about images.

Heavy imports wait until a command runs: ``mimic --help`` must answer at once.
"""

from __future__ import annotations

import glob
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimic import __version__, cli_batch, cli_edit, cli_options, cli_survey, settings
from mimic.cli_edge import edge
from mimic.cli_options import (
    CODEC,
    ICC,
    LABEL,
    MACRO,
    PASSTHROUGH,
    AllowMissing,
    AppMag,
    Channels,
    Codec,
    Colors,
    Deidentify,
    Down,
    File,
    Grey,
    Icc,
    Image,
    Jobs,
    Json,
    LogFile,
    Macro,
    MergeScenes,
    Mpp,
    NoScale,
    Output,
    Passthrough,
    Quality,
    Quiet,
    Ranges,
    ReportDir,
    ReportFile,
    Resume,
    RgbJpeg,
    Shard,
    Source,
    Square,
    TFrame,
    Tile,
    Verify,
    ZPlane,
)
from mimic.errors import MimicError, UsageError, VerificationFailed

if TYPE_CHECKING:
    from mimic.model import Options
    from mimic.requests import Found

EPILOG = "Exit codes: 0 done, 1 bug, 2 usage, 3 bad input, 4 unsupported, 5 tool missing, 6 tool failed, 7 output, \
8 verification failed, 9 limit reached, 130 interrupted. Of several slides the highest one counts."

app = typer.Typer(
    name="mimic",
    help="Any microscopy image in, a complete and verified Aperio SVS mimic out.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"mimic {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(epilog=EPILOG)
def convert(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders or globs.", metavar="FILE...")],
    output: Output = None,
    source: Source = None,
    image: Image = None,
    mpp: Mpp = None,
    appmag: AppMag = None,
    no_scale: NoScale = False,
    quality: Quality = 80,
    rgb_jpeg: RgbJpeg = False,
    tile: Tile = 256,
    downsample: Down = 4,
    label: Annotated[str, LABEL] = "keep",
    macro: Annotated[Macro, MACRO] = Macro.keep,
    deidentify: Deidentify = False,
    icc: Annotated[Icc, ICC] = Icc.keep,
    square: Square = False,
    channels: Channels = None,
    colors: Colors = None,
    range_: Ranges = None,
    grey: Grey = False,
    z: ZPlane = None,
    t: TFrame = None,
    merge_scenes: MergeScenes = False,
    allow_missing: AllowMissing = False,
    passthrough: Annotated[Passthrough, PASSTHROUGH] = Passthrough.auto,
    codec: Annotated[Codec, CODEC] = Codec.jpeg,
    verify: Annotated[Verify, typer.Option("--verify", help="Compare samples, or every pixel.")] = Verify.sample,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", help="Threads; as many as cores by default.")] = None,
    scratch: Annotated[
        Path | None, typer.Option("--scratch", help="Folder for large temporary files.", readable=False)
    ] = None,
    deadline: Annotated[float | None, typer.Option("--deadline", help="Seconds that a slide may take.")] = None,
    jobs: Jobs = None,
    resume: Resume = False,
    shard: Shard = None,
    report_dir: ReportDir = None,
    report_file: ReportFile = None,
    quiet: Quiet = False,
    as_json: Json = False,
    log_file: LogFile = None,
) -> None:
    """Convert slides to Aperio SVS, each verified before it gets its name."""
    arguments = dict(locals())
    with edge(log_file):
        from mimic import requests

        options = requests.options(**cli_options.chosen(arguments))
        found = _found(inputs, output, options)
        run = cli_batch.Run(jobs, resume, shard, report_file, report_dir, as_json, quiet)
        raise typer.Exit(cli_batch.convert_all(found, run))


def _found(inputs: list[str], output: Path | None, options: Options) -> Found:
    from mimic import requests, screen

    found = requests.expand([path for text in inputs for path in _expand(text)], output, options)
    if not found.requests:
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


@app.command(epilog=EPILOG)
def info(
    file: File,
    source: Source = None,
    thumbnail: Annotated[
        Path | None, typer.Option("--thumbnail", help="Write a small picture of the scan.", metavar="FILE.png")
    ] = None,
    as_json: Json = False,
    log_file: LogFile = None,
) -> None:
    """Show what a file is: images, sizes, scale, objective, label, and where each fact came from."""
    with edge(log_file):
        cli_survey.show_info(file, source, thumbnail=thumbnail, as_json=as_json)


@app.command(epilog=EPILOG)
def plan(
    file: File,
    output: Output = None,
    source: Source = None,
    image: Image = None,
    mpp: Mpp = None,
    appmag: AppMag = None,
    no_scale: NoScale = False,
    quality: Quality = 80,
    rgb_jpeg: RgbJpeg = False,
    tile: Tile = 256,
    downsample: Down = 4,
    label: Annotated[str, LABEL] = "keep",
    macro: Annotated[Macro, MACRO] = Macro.keep,
    deidentify: Deidentify = False,
    icc: Annotated[Icc, ICC] = Icc.keep,
    square: Square = False,
    channels: Channels = None,
    colors: Colors = None,
    range_: Ranges = None,
    grey: Grey = False,
    z: ZPlane = None,
    t: TFrame = None,
    merge_scenes: MergeScenes = False,
    allow_missing: AllowMissing = False,
    passthrough: Annotated[Passthrough, PASSTHROUGH] = Passthrough.auto,
    codec: Annotated[Codec, CODEC] = Codec.jpeg,
    as_json: Json = False,
    log_file: LogFile = None,
) -> None:
    """Show what convert would do, and why, without reading a pixel."""
    arguments = dict(locals())
    with edge(log_file):
        from mimic import plan as make_plans
        from mimic import report, screen

        plans = make_plans(file, output, **cli_options.chosen(arguments))
        if as_json:
            screen.text(report.to_json(plans))
        else:
            for each in plans:
                screen.plan_reasons(each)


@app.command(epilog=EPILOG)
def check(
    files: Annotated[list[Path], typer.Argument(help="SVS files, mimic's or not.", metavar="FILE...", readable=False)],
    phi: Annotated[bool, typer.Option("--phi", help="What does it reveal of people, cases and devices?")] = False,
    as_json: Json = False,
    log_file: LogFile = None,
) -> None:
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
        raise typer.Exit(worst)


@app.command(epilog=EPILOG)
def doctor(as_json: Json = False, log_file: LogFile = None) -> None:
    """Show Java, Bio-Formats and the other tools: found, version, what is missing and how to get it."""
    with edge(log_file):
        from mimic import doctor as doctor_
        from mimic import report, screen

        findings = doctor_.examine(settings.load())
        if as_json:
            screen.text(report.to_json(findings))
        else:
            screen.findings(findings)
        raise typer.Exit(max(finding.exit_code for finding in findings))


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
