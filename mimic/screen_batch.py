"""Several slides at a time: a live table of those that are under way, or lines, or JSON events."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mimic import screen
from mimic.model import Progress, Request

LINE_EVERY_S = 5.0
REFRESH_PER_S = 4
CONVERTED = 0.9
"""Part of a slide's work that is done when it is converted and not yet verified."""


@dataclass
class _Slide:
    name: str
    weight: int
    stage: str
    part: float = 0.0
    said: str = ""
    started_s: float = field(default_factory=time.monotonic)


class Board:
    """Shows progress of a run. Work is estimated by the sizes of input files: what else is known before."""

    def __init__(self, requests: Sequence[Request], *, others: int, as_json: bool, quiet: bool) -> None:
        """``others`` are told of, and not converted."""
        self._json, self._quiet = as_json, quiet
        self._weights = {request: _weight(request.input) for request in requests}
        self._total = sum(self._weights.values())
        self._count = len(requests) + others
        self._reported = self._weight_done = 0
        self._running: dict[Request, _Slide] = {}
        self._started = self._said = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Board:
        if screen.err.is_terminal and not self._json and not self._quiet:
            self._live = Live(
                get_renderable=self._table, console=screen.err, transient=True, refresh_per_second=REFRESH_PER_S
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, request: Request, step: Progress) -> None:
        """Take note of one step."""
        weight = self._weights.get(request, 1)
        slide = self._running.setdefault(request, _Slide(screen.called(request).name, weight, step.stage))
        part = step.done_px / max(step.total_px, 1)
        slide.stage, slide.part = step.stage, part * CONVERTED if step.stage == "convert" else max(slide.part, 0.0)
        if self._live is None and not self._quiet:
            self._tell(request, step, slide)

    def done(self, request: Request | None) -> None:
        """One slide less."""
        self._reported += 1
        if request is not None:
            self._running.pop(request, None)
            self._weight_done += self._weights.get(request, 0)

    def _tell(self, request: Request, step: Progress, slide: _Slide) -> None:
        if self._json:
            if slide.said != step.stage:
                slide.said = step.stage
                name = str(screen.called(request))
                screen.event("progress", input=name, stage=step.stage, done_px=step.done_px, total_px=step.total_px)
        elif time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            screen.note(self._line())

    def _line(self) -> str:
        left_s = self.left_s()
        left = "" if left_s is None else f", {_clock(left_s)} left"
        return f"{self._reported} of {self._count} slides done, {len(self._running)} under way{left}"

    def left_s(self) -> float | None:
        """Seconds until all is done, None while nothing is known."""
        done = self._weight_done + sum(slide.weight * slide.part for slide in self._running.values())
        seconds_s = time.monotonic() - self._started
        if done <= 0 or seconds_s < 1.0:
            return None
        return max(0.0, seconds_s * (self._total - done) / done)

    def _table(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for slide in list(self._running.values()):
            table.add_row(
                Text(screen.shown(slide.name)[:40]),
                Text(slide.stage),
                ProgressBar(total=1.0, completed=slide.part, width=24),
                Text(_clock(time.monotonic() - slide.started_s)),
            )
        return Group(table, Text(self._line(), style="bold"))


def _weight(path: Path) -> int:
    with suppress(OSError):
        return max(path.stat().st_size, 1)
    return 1


def _clock(seconds_s: float) -> str:
    return str(timedelta(seconds=round(seconds_s)))
