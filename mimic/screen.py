"""What people see: tables, lines and progress. Facts come in, text goes out; the only module that prints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mimic.errors import MimicError
from mimic.report import size_text

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from mimic.doctor import Finding
    from mimic.model import Check, Plan, Progress, Report, Request

LINE_EVERY_S = 5.0
"""Between two progress lines where there is no terminal to draw a bar on."""

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def shown(path: Path | str) -> str:
    """A file name fit for a screen: what is no character is escaped."""
    text = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def error(failure: MimicError | str) -> None:
    """One message on stderr."""
    err.print(f"[bold red]mimic:[/] {escape(shown(str(failure)))}")


def note(said: str) -> None:
    """A line about progress, on stderr."""
    err.print(escape(shown(said)))


def event(name: str, **fields: object) -> None:
    """One JSON line on stdout."""
    text(json.dumps({"event": name, **fields}, ensure_ascii=False))


def text(value: str) -> None:
    """Text on stdout; what is no character is escaped, as JSON and Python do it."""
    sys.stdout.write(value.encode("utf-8", "backslashreplace").decode() + "\n")
    sys.stdout.flush()


class Watcher:
    """Shows progress: a bar on a terminal, else a line every few seconds, or JSON events."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._json, self._quiet = as_json, quiet
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._now: tuple[Path | None, str] = (None, "")
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Watcher:
        if err.is_terminal and not self._json and not self._quiet:
            self._bar = _bar()
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, request: Request, step: Progress) -> None:
        """Take note of one step."""
        fresh = (request.input, step.stage) != self._now
        if fresh:
            self._now = (request.input, step.stage)
            self._started = time.monotonic()
        if self._bar is not None:
            self._draw(request, step, fresh=fresh)
        elif not self._quiet and ((fresh and self._json) or time.monotonic() - self._said >= LINE_EVERY_S):
            self._said = time.monotonic()
            self._line(request, step)

    def _draw(self, request: Request, step: Progress, *, fresh: bool) -> None:
        if self._bar is None:
            return
        if fresh:
            self.clear()
            name = f"{escape(shown(called(request).name))[:40]}: {step.stage}"
            self._task = self._bar.add_task(name, total=step.total_px / 1e6)
        if self._task is not None:
            self._bar.update(self._task, completed=step.done_px / 1e6)

    def _line(self, request: Request, step: Progress) -> None:
        seconds = time.monotonic() - self._started
        speed = step.done_px / 1e6 / seconds if seconds > 0.1 else None
        if self._json:
            event(
                "progress",
                input=str(called(request)),
                stage=step.stage,
                done_px=step.done_px,
                total_px=step.total_px,
                mpx_per_s=speed and round(speed, 1),
            )
            return
        done = step.done_px / max(step.total_px, 1)
        rest = f", {speed:.0f} Mpx/s, {seconds / done - seconds:.0f} s left" if speed and 0 < done < 1 else ""
        err.print(f"{escape(shown(called(request).name))}: {step.stage} {done:.0%}{rest}")

    def done(self, _request: Request | None) -> None:
        """A slide is done."""
        self.clear()

    def clear(self) -> None:
        """Take the bar of a finished stage away."""
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


def called(request: Request) -> Path:
    """What progress calls the input: nothing of its name, where that may not get out."""
    return Path("slide") if request.options.deidentify else request.input


def _bar() -> Bar:
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class SpeedColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.0f} Mpx/s" if task.speed else "")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        SpeedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )


def report_lines(report: Report) -> None:
    """One line for each output of a slide, its warnings below; a failure goes to stderr."""
    silent = any(result.plan.deidentify for result in report.results)
    name = "de-identified" if silent else escape(shown(report.input))
    if report.status == "failed":
        error(report.error or "failed")
    if report.status == "skipped":
        out.print(f"{name}: skipped, {escape('; '.join(report.warnings))}")
    for result in report.results:
        out.print(f"{name} -> {escape(shown(result.written.path))}: {escape(outcome(result.plan))}, ", end="")
        seconds = sum(stage.seconds_s for stage in result.stages)
        size = size_text(result.written.bytes)
        out.print(f"{size}, verified by {len(result.checks)} checks, {seconds:.1f} s")
    if report.status == "converted":
        for warning in report.warnings:
            out.print(f"  [yellow]note:[/] {escape(shown(warning))}")


def outcome(plan: Plan) -> str:
    """Size, levels, scale, magnification and pictures of a plan in a few words."""
    count = len(plan.levels)
    parts = [f"{plan.levels[0].width_px} x {plan.levels[0].height_px} px", f"{count} level{'s' * (count > 1)}"]
    parts.append(f"{plan.scale.x_um:g} um/px" if plan.scale is not None else "no scale")
    if plan.objective is not None:
        parts.append(f"{plan.objective.power:g}x" + (" (derived)" if plan.objective.origin == "derived" else ""))
    return ", ".join([*parts, *(picture.role for picture in plan.pictures)])


def summary(reports: Sequence[Report]) -> None:
    """The table at the end of a run over several slides."""
    table = Table(title=f"{len(reports)} slides")
    for heading in ("slide", "status", "exit code", "outputs", "seconds"):
        table.add_column(heading, overflow="fold")
    colours = {"converted": "green", "skipped": "yellow", "failed": "red"}
    for report in reports:
        names = ", ".join(escape(shown(path.name)) for path in report.outputs)
        silent = any(result.plan.deidentify for result in report.results)
        status = f"[{colours[report.status]}]{report.status}[/]"
        seconds = f"{report.seconds_s:.1f}" if report.seconds_s else ""
        table.add_row("" if silent else escape(shown(report.input.name)), status, str(report.exit_code), names, seconds)
    out.print(table)
    counts = {status: sum(report.status == status for report in reports) for status in colours}
    out.print(", ".join(f"{count} {status}" for status, count in counts.items() if count))


def plan_reasons(plan: Plan) -> None:
    """What convert would do, a sentence a choice."""
    out.print(f"[bold]{escape(shown(plan.slide.path))} -> {escape(shown(plan.output))}[/]")
    for reason in plan.reasons:
        out.print(f"  - {escape(shown(reason))}")
    for warning in plan.warnings:
        out.print(f"  [yellow]note:[/] {escape(shown(warning))}")


def checks(path: Path, results: Sequence[Check]) -> None:
    """A row a rule."""
    table = Table(title=escape(shown(path)))
    for heading in ("rule", "result", "measured", "expected"):
        table.add_column(heading, overflow="fold")
    for check in results:
        verdict = "[green]ok[/]" if check.passed else "[red]BROKEN[/]" if check.must else "[yellow]weak[/]"
        table.add_row(*(escape(shown(cell)) for cell in (check.name,)), verdict, *_cells(check))
    out.print(table)
    broken = sum(not check.passed and check.must for check in results)
    weak = sum(not check.passed and not check.must for check in results)
    out.print(f"{len(results)} rules: {broken} broken, {weak} weak")


def findings(results: Sequence[Finding]) -> None:
    """A row a tool, and what to do about each that is missing."""
    table = Table()
    for heading in ("tool", "", "version", "where", "for"):
        table.add_column(heading, overflow="fold")
    for each in results:
        verdict = "[green]ok[/]" if each.works else "[red]MISSING[/]" if each.exit_code else "[yellow]absent[/]"
        table.add_row(each.name, verdict, each.version or "", escape(shown(each.path or "")), each.use)
    out.print(table)
    for each in results:
        if each.remedy:
            out.print(f"{each.name}: {escape(shown(each.remedy))}")


def _cells(check: Check) -> tuple[str, str]:
    return escape(shown(check.measured)), escape(shown(check.expected))
