"""The times as one picture: a panel an input, a bar a contender, whiskers from the fastest round to the slowest.

A panel ends where mimic's bar can still be read; a bar that is longer runs off it, and its number says how long it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tools.bench.ratios import spread
from tools.bench.results import Result
from tools.bench.rounds import Row

OURS, THEIRS, WRONG, LIMIT = "#1b6ca8", "#a9a9a9", "#d9a6a0", "#e3c565"
LEGEND = "blue: mimic, verified; grey: others; red: others, with wrong pixels; yellow: limits"
NAMES = {
    "mimic": "mimic",
    "recipe": "bfconvert + tiffcp",
    "vips": "vips tiffsave",
    "large_image": "large_image",
    "slideio": "slideio",
    "wsic": "wsic",
    "wsidicomizer": "wsidicomizer",
    "decode": "decoding alone",
    "encode": "encoding alone",
    "cp": "cp",
    "cp-sync": "cp, on disk",
}
PANEL_INCHES, BAR_INCHES, COLUMNS = 4.6, 0.24, 3
LONGEST = 6.0
"""A panel is so many of mimic's bars wide at most, and NUMBERS of its width are for the numbers."""
NUMBERS = 0.3


def draw(results: Sequence[Result], path: Path, *, title: str) -> None:
    """Write ``path`` (PNG or SVG by its name). A contender without numbers has no bar, unless it was given up."""
    shown = [(result, rows) for result in results if not result.also and (rows := _shown(result))]
    if not shown:
        return
    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    most = max(len(rows) for _, rows in shown)
    figure = Figure(figsize=(PANEL_INCHES * columns, (BAR_INCHES * most + 0.75) * lines + 0.6))
    FigureCanvasAgg(figure)  # not pyplot's, which would look for a screen
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, (result, rows) in zip(axes.flat, shown, strict=False):
        _panel(axis, result, rows)
        axis.set_title(f"{result.kind}, {result.width_px} x {result.height_px} px", fontsize=10, loc="left")
    figure.suptitle(f"{title}\n{LEGEND}", fontsize=9, y=0.995)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _shown(result: Result) -> list[Row]:
    return [row for row in result.rows if row.runs or row.gave_up_s]


def _panel(axis: Axes, result: Result, rows: Sequence[Row]) -> None:
    times = [spread(row.walls_s or [row.gave_up_s or 0.0]) for row in rows]
    ours = result.row("mimic")
    longest = max(time.high for time in times)
    edge = min(longest, LONGEST * spread(ours.walls_s).median) if ours else longest
    for place, (row, time) in enumerate(zip(rows, times, strict=True)):
        cut_off = time.high > edge
        whiskers = None if cut_off else [[time.median - time.low], [time.high - time.median]]
        axis.barh(place, time.median, xerr=whiskers, color=_colour(row), error_kw={"lw": 1})
        end = min(time.high, edge)
        axis.annotate(f" {_number(result, row, time.median)}", (end, place), va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [NAMES.get(row.name, row.name) for row in rows], fontsize=8)
    axis.set_xlim(0, edge * (1 + NUMBERS))
    _break(axis, [place for place, time in enumerate(times) if time.high > edge], edge)
    axis.set_xlabel("wall seconds", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)


def _break(axis: Axes, places: Sequence[int], edge: float) -> None:
    """Cut the bars off that are too long, and show that they go on."""
    for place in places:
        axis.barh(place, edge, left=edge, color="white", height=1.0)
        axis.plot([edge * 0.985, edge * 1.0], [place + 0.45, place - 0.45], color="white", lw=3)
    for text in axis.texts:
        text.set_zorder(10)


def _number(result: Result, row: Row, median_s: float) -> str:
    """Seconds, and how many times mimic's."""
    if row.gave_up_s:
        return f"> {row.gave_up_s:g} s"
    ratio = result.ratio(row.name, "mimic")
    times = f" ({ratio.median:.1f} x)" if ratio and row.converts and row.name != "mimic" else ""
    return f"{median_s:.3g} s{times}"


def _colour(row: Row) -> str:
    if row.name == "mimic":
        return OURS
    if not row.converts:
        return LIMIT
    return WRONG if row.quality.fault else THEIRS
