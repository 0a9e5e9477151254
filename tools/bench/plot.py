"""The times as a picture: a panel an input, a bar a contender, whiskers from the fastest round to the slowest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tools.bench.ratios import spread
from tools.bench.rounds import Row
from tools.bench.table import Result

OURS, THEIRS, LIMIT = "#1b6ca8", "#b8b8b8", "#e3c565"
PANEL_INCHES, BAR_INCHES, COLUMNS = 6.4, 0.32, 2


def draw(results: Sequence[Result], path: Path, *, title: str) -> None:
    """Write ``path`` (PNG or SVG by its name). A contender without numbers has no bar."""
    shown = [(result, [row for row in result.rows if row.runs]) for result in results]
    shown = [(result, rows) for result, rows in shown if rows]
    if not shown:
        return
    lines = -(-len(shown) // COLUMNS)
    most = max(len(rows) for _, rows in shown)
    size = (PANEL_INCHES * min(COLUMNS, len(shown)), (BAR_INCHES * most + 0.9) * lines + 0.5)
    figure = Figure(figsize=size)  # not pyplot's, which would look for a screen
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, min(COLUMNS, len(shown)), squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, (result, rows) in zip(axes.flat, shown, strict=False):
        _panel(axis, rows)
        axis.set_title(f"{result.kind}, {result.width_px} x {result.height_px} px", fontsize=10, loc="left")
    figure.suptitle(title, fontsize=9, y=0.995)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _panel(axis: Axes, rows: Sequence[Row]) -> None:
    times = [spread(row.walls_s) for row in rows]
    colours = [OURS if row.name == "mimic" else THEIRS if row.converts else LIMIT for row in rows]
    whiskers = [[time.median - time.low for time in times], [time.high - time.median for time in times]]
    places = range(len(rows))
    axis.barh(places, [time.median for time in times], xerr=whiskers, color=colours, error_kw={"lw": 1})
    for place, time in zip(places, times, strict=True):
        axis.annotate(f" {time.median:.3g} s", (time.high, place), va="center", fontsize=8)
    axis.set_yticks(places, [row.title.replace("**", "") for row in rows], fontsize=8)
    axis.set_xlim(0, max(time.high for time in times) * 1.15)
    axis.set_xlabel("wall seconds", fontsize=8)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
