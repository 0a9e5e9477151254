"""Runs over slides: what ``convert`` does with what it has found, and ``batch``."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import click
from click.exceptions import Exit

from mimic import cli_options, settings
from mimic.cli_edge import edge
from mimic.cli_options import (
    JSON,
    LOG_FILE,
    OF_A_SLIDE,
    OUTPUT,
    PATH,
    QUIET,
    REPORT_DIR,
    REPORT_FILE,
    RESUME,
    SHARD,
)
from mimic.errors import InternalError, OutputError, UsageError

if TYPE_CHECKING:
    from mimic.model import Options, Progress, Report, Request
    from mimic.report import Sink
    from mimic.requests import Found

MANIFEST = click.Option(
    ["--manifest"], type=PATH, required=True, metavar="FILE", help="CSV with a header, or JSON lines."
)


@dataclass(frozen=True, slots=True)
class Run:
    """How a run goes, whatever it converts. ``jobs`` None: in this process, one slide after the other."""

    jobs: int | None = None
    resume: bool = False
    shard: str | None = None
    report_file: Path | None = None
    report_dir: Path | None = None
    as_json: bool = False
    quiet: bool = False


class Watcher(Protocol):
    """Shows progress of a run."""

    def __enter__(self) -> Watcher: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __call__(self, request: Request, step: Progress) -> None:
        """Take note of one step."""
        ...

    def done(self, request: Request | None) -> None:
        """One slide less."""
        ...


def convert_all(found: Found, run: Run) -> int:
    """Convert, tell, and return the highest exit code; a report that cannot be written does not end the run."""
    found = _with_digests(_with_threads(found, run), run)
    teller = _Teller(found, run)
    mine = _share(found, run.shard)
    with _watcher(mine, run) as watcher:
        teller.watcher = watcher
        todo = _todo(mine, run, teller)
        with closing(_reports(todo, run, watcher)) as reports:
            for request, report in reports:
                teller.tell(report, request)
    if teller.several and not run.as_json:
        from mimic import screen

        screen.summary(teller.in_order())
    return teller.worst


class _Teller:
    """Tells of every slide: on the screen, in report files; remembers all for the end."""

    def __init__(self, found: Found, run: Run) -> None:
        self.watcher: Watcher | None = None
        self.worst = 0
        self.several = len(found.requests) + len(found.skipped) > 1
        self._run = run
        self._places = {request: index for index, request in enumerate(found.requests)}
        self._done: list[tuple[int, Report]] = []
        self._sinks = self._open(found)

    def _open(self, found: Found) -> list[Sink]:
        """Where reports go. Names are given by the whole list, so that they are the same in every share of it."""
        from mimic import report

        run, sinks = self._run, []
        names = [
            f"slide-{number}" if request.options.deidentify else request.input.name
            for number, request in enumerate(found.requests, start=1)
        ]
        if run.report_file is not None:
            sinks.append(report.Sink(run.report_file, several=self.several, names=names))
        if run.report_dir is not None:
            if run.report_dir.suffix.lower() == ".json" and not run.report_dir.is_dir():
                raise UsageError("--report-dir names a folder", run.report_dir, "Use --report for one file")
            sinks.append(report.Sink(run.report_dir, several=self.several, names=names))
        return sinks

    def tell(self, report: Report, request: Request | None, *, keep: bool = True) -> None:
        """``keep`` False: an earlier run has written its report, which tells more than this one."""
        from mimic import screen
        from mimic.report import plain

        place = self._places.get(request) if request is not None else None
        if self.watcher is not None:
            self.watcher.done(request)
        self._done.append((len(self._places) if place is None else place, report))
        self.worst = max(self.worst, report.exit_code)
        if self._run.as_json:
            screen.event("report", report=plain(report))
        else:
            screen.report_lines(report)
        for sink in list(self._sinks) if keep else []:
            try:
                sink.add(report, place)
            except OutputError as error:
                screen.error(error)
                self.worst = max(self.worst, error.exit_code)
                self._sinks.remove(sink)

    def in_order(self) -> list[Report]:
        """All reports, in the order of the requests."""
        return [report for _, report in sorted(self._done, key=lambda each: each[0])]


def _with_threads(found: Found, run: Run) -> Found:
    """Cores are divided among the slides that are converted beside each other."""
    if run.jobs is None:
        return found
    from mimic.programs.run import cores

    threads = max(1, cores() // max(1, min(run.jobs, len(found.requests))))
    shared = (replace(each.options, threads=each.options.threads or threads) for each in found.requests)
    requests = (replace(each, options=options) for each, options in zip(found.requests, shared, strict=True))
    return replace(found, requests=tuple(requests))


def _with_digests(found: Found, run: Run) -> Found:
    """Digests of what is read and written are seen in reports alone; where none is written they are not computed.

    They prove nothing by themselves, and take a tenth of the CPU of converting an uncompressed slide: that an input
    changed meanwhile, its size and time tell (``convert``), and ``--resume`` has a key of its own (``provenance``).
    """
    wanted = run.report_file is not None or run.report_dir is not None or run.as_json
    return replace(found, requests=tuple(replace(each, digest=wanted) for each in found.requests))


def _share(found: Found, shard: str | None) -> Found:
    """The part of all that is found that ``i/n`` stands for: every n-th, from the i-th on."""
    if shard is None:
        return found
    first, _, count = shard.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise UsageError(f"--shard {shard} is no part of a whole", remedy="Use i/n with i from 1 to n, as 3/10")
    part = slice(int(first) - 1, None, int(count))
    return replace(found, requests=found.requests[part], skipped=found.skipped[part])


def _todo(found: Found, run: Run, teller: _Teller) -> list[Request]:
    """Tell what needs no converting; the rest."""
    from mimic import executors

    for path, reason in found.skipped:
        teller.tell(executors.left_alone(path, reason), None)
    if not run.resume:
        return list(found.requests)
    from mimic import resume

    finder, todo = resume.Finder(), []
    for request in found.requests:
        outputs = finder.outputs(request)
        if not outputs:
            todo.append(request)
            continue
        reason = f"is converted already: {', '.join(path.name for path in outputs)}"
        teller.tell(executors.left_alone(executors.named(request), reason), request, keep=False)
    return todo


def _reports(todo: list[Request], run: Run, watcher: Watcher) -> Generator[tuple[Request, Report]]:
    if run.jobs is None:
        from mimic import executors

        return executors.run(todo, settings.load(), watcher)
    from mimic import pool

    return pool.Pool(settings.load(), watcher, jobs=run.jobs).run(todo)


def _watcher(found: Found, run: Run) -> Watcher:
    if run.jobs is None:
        from mimic import screen_progress

        return screen_progress.Watcher(as_json=run.as_json, quiet=run.quiet)
    from mimic import screen_batch

    return screen_batch.Board(found.requests, others=len(found.skipped), as_json=run.as_json, quiet=run.quiet)


def params(*, jobs: int | None) -> tuple[click.Option, ...]:
    """The options of a run: the fields of ``Run``, and where a log goes."""
    return (cli_options.jobs(jobs), RESUME, SHARD, REPORT_DIR, REPORT_FILE, QUIET, JSON, LOG_FILE)


def register(app: click.Group, *, epilog: str) -> None:
    """Put ``batch`` on the app."""
    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    made = [MANIFEST, OUTPUT, *params(jobs=1)]
    told = "Convert the slides of a table, with options of their own."
    app.command(epilog=epilog, short_help=told, context_settings=settings, params=made)(batch)


@click.pass_context
def batch(
    context: click.Context,
    *,
    manifest: Path,
    output: Path | None,
    jobs: int,
    resume: bool,
    shard: str | None,
    report_dir: Path | None,
    report_file: Path | None,
    quiet: bool,
    as_json: bool,
    log_file: Path | None,
) -> None:
    """Convert the slides of a manifest: its columns are input, output and any option of 'convert' by its long name.
    Options of 'convert' that are given here hold for lines that say nothing else."""
    with edge(log_file):
        from mimic import manifest as manifests

        flags, parse = _grammar(context, context.args)
        found = manifests.read(manifest, flags=flags, parse=parse, output=output)
        run = Run(jobs, resume, shard, report_file, report_dir, as_json, quiet)
        raise Exit(convert_all(found, run))


def _grammar(
    context: click.Context, common: Sequence[str]
) -> tuple[dict[str, bool], Callable[[Sequence[str]], Options]]:
    """The options of ``convert`` that a line may give, and their parser, taken from ``convert`` itself: declared once.
    ``common`` words stand before every line's. Raises UsageError for wrong ones among them."""
    from mimic import requests

    group = context.find_root().command
    command = group.get_command(context, "convert") if isinstance(group, click.Group) else None
    if command is None:
        raise InternalError("there is no command convert")

    def parse(words: Sequence[str]) -> Options:
        try:
            made = command.make_context("convert", [*common, *words, "--", "input"])
        except click.ClickException as error:
            said = error.message.rstrip(".")
            raise UsageError(said, remedy="See 'mimic convert --help'") from error
        if len(made.params["inputs"]) > 1:
            raise UsageError(f"{made.params['inputs'][0]} is no option", remedy="Slides are named in the manifest")
        return requests.options(**cli_options.chosen({each.name: made.params[each.name] for each in OF_A_SLIDE}))

    parse(())
    return {max(each.opts, key=len).removeprefix("--"): each.is_flag for each in OF_A_SLIDE}, parse
