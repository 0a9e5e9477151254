"""What people see while they wait.

Nothing here needs rich, unless it draws a bar: it is loaded while the first pixels are read, for what is told later.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING

from mimic import imports
from mimic.screen_text import called, event, shown

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from mimic.model import Progress, Request

SCREEN = "mimic.screen"
"""Needed when the first slide is told of."""
LINE_EVERY_S = 5.0
"""Between two progress lines where there is no terminal to draw a bar on."""


class Watcher:
    """Shows progress: a bar on a terminal, else a line every few seconds, or JSON events."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._json, self._quiet = as_json, quiet
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._loading: Thread | None = None
        self._now: tuple[Path | None, str] = (None, "")
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Watcher:
        if sys.stderr.isatty() and not self._json and not self._quiet:
            self._bar = _bar()
            if self._bar is not None:
                self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._loading is not None:
            self._loading.join()

    def __call__(self, request: Request, step: Progress) -> None:
        """Take note of one step."""
        if self._loading is None:
            self._loading = imports.begin(SCREEN)
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
            name = f"{_escape(shown(called(request).name))[:40]}: {step.stage}"
            self._task = self._bar.add_task(name, total=step.total_px / 1e6)
        if self._task is not None:
            self._bar.update(self._task, completed=step.done_px / 1e6)

    def _line(self, request: Request, step: Progress) -> None:
        from mimic import screen

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
        screen.note(f"{called(request).name}: {step.stage} {done:.0%}{rest}")

    def done(self, _request: Request | None) -> None:
        """A slide is done."""
        self.clear()

    def clear(self) -> None:
        """Take the bar of a finished stage away."""
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


def _escape(words: str) -> str:
    from rich.markup import escape

    return escape(words)


def _bar() -> Bar | None:
    """None where the terminal is too simple for one."""
    from mimic import screen

    if not screen.err.is_terminal:
        return None
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
        console=screen.err,
        transient=True,
    )
