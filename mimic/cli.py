"""Arguments in, text or --json out, exit code; decides nothing about images.

Heavy imports wait until a command runs: ``mimic --help`` must answer at once.
"""

from __future__ import annotations

import glob
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimic import __version__, settings
from mimic.errors import InternalError, Interrupted, MimicError, UsageError

if TYPE_CHECKING:
    from mimic.model import Options, Report, Request

EPILOG = "Exit codes: 0 done, 1 bug, 2 usage, 3 bad input, 4 unsupported, 5 tool missing, 6 tool failed, 7 output, \
8 verification failed, 9 limit reached, 130 interrupted. Of several slides the highest one counts."

app = typer.Typer(
    name="mimic",
    help="Any microscopy image in, a complete and verified Aperio SVS mimic out.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
log = logging.getLogger("mimic")


class Keep(StrEnum):
    """What to do with a label or macro."""

    keep = "keep"
    drop = "drop"


class Verify(StrEnum):
    """How much of the pixels to compare."""

    sample = "sample"
    full = "full"


Json = Annotated[bool, typer.Option("--json", help="Write JSON instead of text.")]
LogFile = Annotated[Path | None, typer.Option("--log-file", help="Append a log to this file.", metavar="FILE")]
Source = Annotated[str | None, typer.Option("--source", help="Read with vips, bioformats or bfconvert.")]
Image = Annotated[int | None, typer.Option("--image", help="Convert this image only (see 'mimic info').")]
Mpp = Annotated[float | None, typer.Option("--mpp", help="Micrometres a pixel; replaces the file's own.")]
AppMag = Annotated[float | None, typer.Option("--appmag", help="Objective power; replaces the file's own.")]
NoScale = Annotated[bool, typer.Option("--no-scale", help="Convert a file that states no scale, without one.")]
Quality = Annotated[int, typer.Option("-q", "--quality", help="JPEG quality, 1 to 100.")]
RgbJpeg = Annotated[bool, typer.Option("--rgb-jpeg", help="RGB 4:4:4 with shared tables: larger, widest reach.")]
Tile = Annotated[int, typer.Option("--tile", help="Tile size in pixels, a multiple of 16.")]
Down = Annotated[int, typer.Option("--downsample", help="Factor between levels: 4 or 2.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="An .svs file, or a folder.")]
LABEL = typer.Option("--label", help="Keep the label, or drop it.")
MACRO = typer.Option("--macro", help="Keep the macro, or drop it.")


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
    label: Annotated[Keep, LABEL] = Keep.keep,
    macro: Annotated[Keep, MACRO] = Keep.keep,
    verify: Annotated[Verify, typer.Option("--verify", help="Compare samples, or every pixel.")] = Verify.sample,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", help="Threads; as many as cores by default.")] = None,
    scratch: Annotated[Path | None, typer.Option("--scratch", help="Folder for large temporary files.")] = None,
    deadline: Annotated[float | None, typer.Option("--deadline", help="Seconds that a slide may take.")] = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write a JSON report; a folder gets one for each slide.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Json = False,
    log_file: LogFile = None,
) -> None:
    """Convert slides to Aperio SVS, each verified before it gets its name."""
    with edge(log_file):
        options = _options(
            source=source,
            image_index=image,
            mpp_um=mpp,
            appmag=appmag,
            no_scale=no_scale,
            quality=quality,
            profile="rgb" if rgb_jpeg else "ycc",
            tile_px=tile,
            downsample=downsample,
            label=label.value,
            macro=macro.value,
            verify=verify.value,
            overwrite=overwrite,
            threads=threads,
            scratch=scratch,
            deadline_s=deadline,
        )
        requests = _requests(inputs, output, options)
        reports = _convert_all(requests, report_file=report_file, as_json=as_json, quiet=quiet)
        raise typer.Exit(max(each.exit_code for each in reports))


def _convert_all(requests: list[Request], *, report_file: Path | None, as_json: bool, quiet: bool) -> list[Report]:
    from mimic import executors, screen
    from mimic import report as reports_

    done = []
    with screen.Watcher(as_json=as_json, quiet=quiet) as watcher:
        for each in executors.run(requests, settings.load(), watcher):
            watcher.clear()
            done.append(each)
            if as_json:
                screen.event("report", report=reports_.plain(each))
            else:
                screen.report_lines(each)
            if report_file is not None and len(requests) > 1:
                reports_.write(each, _folder(report_file) / f"{each.input.name[:200]}.json")
    if report_file is not None and len(requests) == 1:
        target = report_file / f"{done[0].input.name[:200]}.json" if report_file.is_dir() else report_file
        reports_.write(done[0], target)
    if len(done) > 1 and not as_json:
        screen.summary(done)
    return done


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot be a folder for reports: {error.strerror}", path) from error
    return path


def _options(**fields: Any) -> Options:
    from mimic.model import Options

    if fields.get("downsample", 4) not in (2, 4):
        raise UsageError(f"--downsample {fields['downsample']} is neither 4 nor 2")
    return Options(**fields)


def _requests(inputs: list[str], output: Path | None, options: Options) -> list[Request]:
    from mimic import requests

    paths = [path for text in inputs for path in _expand(text)]
    found = requests.expand(paths, output, options)
    if not found:
        raise UsageError(f"no slide in {', '.join(inputs)}", remedy="Name files, or a folder that holds some")
    return found


def _expand(text: str) -> list[Path]:
    """A glob that the shell left alone (quoted, or on Windows); a file of that very name wins."""
    path = Path(text)
    if path.exists() or not glob.has_magic(text):
        return [path]
    return [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207 - absolute and drive-letter patterns too or [path]


@app.command(epilog=EPILOG)
def info(
    file: Annotated[Path, typer.Argument(help="The slide.")],
    source: Source = None,
    as_json: Json = False,
    log_file: LogFile = None,
) -> None:
    """Show what a file is: images, sizes, scale, objective, label, and where each fact came from."""
    with edge(log_file):
        from mimic import probe, report, screen

        slide = probe(file, source=source)
        if as_json:
            screen.text(report.to_json(slide))
        else:
            screen.slide_facts(slide)


@app.command(epilog=EPILOG)
def plan(
    file: Annotated[Path, typer.Argument(help="The slide.")],
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
    label: Annotated[Keep, LABEL] = Keep.keep,
    macro: Annotated[Keep, MACRO] = Keep.keep,
    as_json: Json = False,
    log_file: LogFile = None,
) -> None:
    """Show what convert would do, and why, without reading a pixel."""
    with edge(log_file):
        from mimic import plan as make_plans
        from mimic import report, screen

        plans = make_plans(
            file,
            output,
            source=source,
            image_index=image,
            mpp_um=mpp,
            appmag=appmag,
            no_scale=no_scale,
            quality=quality,
            profile="rgb" if rgb_jpeg else "ycc",
            tile_px=tile,
            downsample=downsample,
            label=label.value,
            macro=macro.value,
        )
        if as_json:
            screen.text(report.to_json(plans))
        else:
            for each in plans:
                screen.plan_reasons(each)


@app.command(epilog=EPILOG)
def check(
    files: Annotated[list[Path], typer.Argument(help="SVS files, mimic's or not.", metavar="FILE...")],
    as_json: Json = False,
    log_file: LogFile = None,
) -> None:
    """Check every rule that readers of SVS have; exit code 8 when a MUST is broken."""
    with edge(log_file):
        from mimic import report, screen, verify

        worst = 0
        for file in files:
            try:
                results = verify.check(file)
            except MimicError as error:
                worst = max(worst, error.exit_code)
                screen.error(error)
                continue
            worst = max(worst, 8 if verify.failed(results) else 0)
            if as_json:
                screen.text(report.to_json({"path": file, "checks": results}))
            else:
                screen.checks(file, results)
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


@contextmanager
def edge(log_file: Path | None) -> Iterator[None]:
    """Where every failure becomes one message and an exit code; a traceback goes to the log file only."""
    from mimic import screen

    try:
        _start_log(log_file)
        with _interruptible():
            yield
    except (KeyboardInterrupt, Interrupted):
        screen.error("interrupted; nothing was left behind")
        raise typer.Exit(Interrupted.exit_code) from None
    except MimicError as error:
        screen.error(error)
        raise typer.Exit(error.exit_code) from None
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:
        log.exception("a bug in mimic")
        text = f"a bug in mimic: {type(error).__name__}: {error}"
        screen.error(InternalError(text, remedy="Please report it, with the --log-file"))
        raise typer.Exit(InternalError.exit_code) from None
    finally:
        bfclient = sys.modules.get("mimic.programs.bfclient")
        if bfclient is not None:
            bfclient.shutdown()


def _start_log(log_file: Path | None) -> None:
    if log_file is None:
        logging.getLogger().addHandler(logging.NullHandler())  # else Python prints warnings and tracebacks itself
        return
    try:
        handler = logging.FileHandler(log_file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"cannot be written as a log: {error.strerror}", log_file) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger().addHandler(handler)
    log.setLevel(logging.DEBUG)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end a conversion as Ctrl-C does: nothing is left behind."""
    names = ("SIGTERM", "SIGHUP")
    before = {}
    for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
        before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """The ``mimic`` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app()
