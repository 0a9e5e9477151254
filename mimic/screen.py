"""What people see: tables and lines. Facts come in, text goes out; with screen_text the only one that prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mimic.errors import MimicError
from mimic.report import size_text
from mimic.screen_text import called as called
from mimic.screen_text import event as event
from mimic.screen_text import shown as shown
from mimic.screen_text import text as text

if TYPE_CHECKING:
    from mimic.doctor import Finding
    from mimic.model import Check, Plan, Report

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def error(failure: MimicError | str) -> None:
    """One message on stderr."""
    err.print(f"[bold red]mimic:[/] {escape(shown(str(failure)))}")


def note(said: str) -> None:
    """A line about progress, on stderr."""
    err.print(escape(shown(said)))


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
