"""The scatter of a survey as SVG: scale against magnification on log axes, and the band in which the two agree. Pure.

Slides of one scanner share both numbers, so slides are drawn in groups, larger the more there are. Those outside of the
band are diamonds of another colour with their names; those that lack a number stand in a lane beside the axis.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from mimic.optics import AGREEMENT, POWER_TIMES_MPP_UM
from mimic.survey import Row

WIDTH, HEIGHT = 960, 470
LEFT, RIGHT, TOP, BOTTOM = 96, 936, 16, 396
"""Edges of the plot within the drawing; the lanes are outside of them."""
LANE_LEFT, LANE_BELOW = LEFT - 56, BOTTOM + 30
"""Where slides stand that lack the number of the axis beside: beyond its ticks."""
SCALES_UM = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
POWERS = (0.5, 1, 2, 4, 5, 10, 20, 40, 63, 100, 200, 500, 1000)
USUAL = (0.1, 2.0), (4.0, 100.0)
"""Shown at least, so that a survey of one scanner looks like any other."""
DRAWN = 1e-4, 1e6
"""No scale and no magnification is beyond this, but a damaged file may say so."""
GROUP_DECADES = 0.01
"""Scales within 2.3 % are drawn as one group."""
CHAR_PX, LINE_PX = 6.3, 15.0
NAME_CHARS = 34
LABELS_MAX = 24


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are drawn in one place; ``um`` or ``power`` is None in a lane."""

    um: float | None
    power: float | None
    consistent: bool | None
    rows: tuple[tuple[int, Row], ...]

    @property
    def radius_px(self) -> float:
        """Grows with the logarithm of the number of slides."""
        return min(5.0 + 1.5 * math.log2(len(self.rows)), 18.0)


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps a value to its place on a log axis between ``start`` and ``end``, which may run downwards."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + min(max(part, 0.0), 1.0) * (self.end - self.start)


def scatter(rows: Sequence[Row]) -> str:
    """The drawing. Marks carry ``data-rows``, the numbers of their rows, and a title with their names."""
    groups = group(rows)
    if not groups:
        return '<p class="none">No slide states a scale or a magnification, so there is nothing to draw.</p>'
    across = _axis((each.um for each in groups), USUAL[0], LEFT, RIGHT)
    up = _axis((each.power for each in groups), USUAL[1], BOTTOM, TOP)
    placed = sorted(groups, key=lambda each: (each.consistent is False, -len(each.rows)))
    marks = [_mark(each, *_place(each, across, up)) for each in placed]
    outliers = [(each, *_place(each, across, up)) for each in placed if each.consistent is False]
    labels = _labels(outliers, [(*_place(each, across, up), each.radius_px) for each in placed])
    parts = [_band(across, up), _ticks(across, up), _lanes(groups), *marks, *labels]
    head = f'<svg class="scatter" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="plot-title">'
    title = '<title id="plot-title">Micrometres a pixel against magnification of every slide, log axes</title>'
    return "\n".join([head, title, *parts, "</svg>"])


def group(rows: Iterable[Row]) -> list[Group]:
    """Rows with a scale or a magnification, by place and verdict."""
    places: dict[tuple[float | None, float | None, bool | None], list[tuple[int, Row]]] = defaultdict(list)
    for number, row in enumerate(rows):
        um, power = _positive(row.scale_um), _positive(row.magnification)
        if um is None and power is None:
            continue
        step = None if um is None else round(math.log10(um) / GROUP_DECADES)
        places[step, power, row.consistent].append((number, row))
    groups = []
    for (_, power, consistent), members in places.items():
        sizes = [um for _, row in members if (um := _positive(row.scale_um)) is not None]
        um = math.exp(math.fsum(map(math.log, sizes)) / len(sizes)) if sizes else None
        groups.append(Group(um, power, consistent, tuple(members)))
    return groups


def _positive(value: float | None) -> float | None:
    """A number that a log axis can take; what is beyond DRAWN stands at its end."""
    known = value is not None and math.isfinite(value) and value > 0
    return min(max(value, DRAWN[0]), DRAWN[1]) if value is not None and known else None


def _axis(values: Iterable[float | None], usual: tuple[float, float], start: float, end: float) -> _Axis:
    """An axis with some air beyond its outermost values."""
    known = [value for value in values if value is not None]
    return _Axis(min([usual[0], *known]) / 1.25, max([usual[1], *known]) * 1.25, start, end)


def _place(each: Group, across: _Axis, up: _Axis) -> tuple[float, float]:
    x = LANE_LEFT if each.um is None else across(each.um)
    y = LANE_BELOW if each.power is None else up(each.power)
    return x, y


def _band(across: _Axis, up: _Axis) -> str:
    """Where scale times magnification is what a plain light path gives: a strip of slope -1, clipped to the plot."""

    def line(product: float) -> list[str]:
        # to the edges of the plot and beyond: the clip path cuts
        ends = [(across.low / 100, product / across.low * 100), (across.high * 100, product / across.high / 100)]
        return [f"{_raw(across, um):.1f},{_raw(up, power):.1f}" for um, power in ends]

    lower, upper, middle = line(AGREEMENT[0]), line(AGREEMENT[1]), line(POWER_TIMES_MPP_UM)
    clip = f'<clipPath id="plot"><rect x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP}"/></clipPath>'
    words = (
        f"band: scale x magnification from {AGREEMENT[0]:g} to {AGREEMENT[1]:g} um, usual is {POWER_TIMES_MPP_UM:g} um"
    )
    return (
        f'{clip}<rect class="frame" x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP}"/>'
        f'<g clip-path="url(#plot)"><polygon class="band" points="{" ".join([*lower, *reversed(upper)])}"/>'
        f'<polyline class="middle" points="{" ".join(middle)}"/></g>'
        f'<text class="note" x="{RIGHT - 8}" y="{TOP + 16}" text-anchor="end">{words}</text>'
    )


def _raw(axis: _Axis, value: float) -> float:
    """A place beyond the ends of the axis too."""
    return axis.start + math.log(value / axis.low) / math.log(axis.high / axis.low) * (axis.end - axis.start)


def _ticks(across: _Axis, up: _Axis) -> str:
    parts = []
    for um in SCALES_UM:
        if across.low <= um <= across.high:
            x = across(um)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{BOTTOM}"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{BOTTOM + 15}" text-anchor="middle">{um:g}</text>')
    for power in POWERS:
        if up.low <= power <= up.high:
            y = up(power)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{power:g}x</text>')
    middle = (LEFT + RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">micrometres a pixel</text>')
    down = (TOP + BOTTOM) / 2
    turned = f'transform="rotate(-90 14 {down})"'
    parts.append(f'<text class="axis" x="14" y="{down}" text-anchor="middle" {turned}>magnification</text>')
    return "".join(parts)


def _lanes(groups: Iterable[Group]) -> str:
    """Names of the lanes that are used; each lane is a dashed line."""
    groups, parts = tuple(groups), []
    if any(each.power is None for each in groups):
        y = LANE_BELOW
        parts.append(f'<line class="lane" x1="{LEFT}" x2="{RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="note" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">none stated</text>')
    if any(each.um is None for each in groups):
        x = LANE_LEFT
        parts.append(f'<line class="lane" x1="{x}" x2="{x}" y1="{TOP}" y2="{BOTTOM}"/>')
        parts.append(f'<text class="note" x="{x}" y="{TOP - 4}" text-anchor="middle">no scale</text>')
    return "".join(parts)


def _mark(each: Group, x: float, y: float) -> str:
    kind = {True: "good", False: "bad", None: "open"}[each.consistent]
    numbers = " ".join(str(number) for number, _ in each.rows)
    size = each.radius_px
    if each.consistent is False:
        size *= 1.3
        points = f"{x:.1f},{y - size:.1f} {x + size:.1f},{y:.1f} {x:.1f},{y + size:.1f} {x - size:.1f},{y:.1f}"
        shape = f'<polygon points="{points}"/>'
    else:
        shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'
    count = f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{len(each.rows)}</text>' * (len(each.rows) > 1)
    return f'<g class="mark {kind}" data-rows="{numbers}" tabindex="0">{_title(each)}{shape}{count}</g>'


def _title(each: Group) -> str:
    scale = "no scale" if each.um is None else f"{each.um:.4g} um/px"
    power = "no magnification" if each.power is None else f"{each.power:g}x"
    names = [clean(row.file) for _, row in each.rows[:12]]
    more = [f"and {len(each.rows) - 12} more"] if len(each.rows) > 12 else []
    return f"<title>{escape(chr(10).join([f'{scale}, {power}', *names, *more]))}</title>"


def _labels(outliers: list[tuple[Group, float, float]], marks: list[tuple[float, float, float]]) -> list[str]:
    """A name beside every outlier, where it hides neither a mark nor another name; a line leads to one further off."""
    taken = [(x - r, y - r, x + r, y + r) for x, y, r in marks]
    parts = []
    for each, x, y in outliers[:LABELS_MAX]:
        text = _short(each)
        box = _free_place(x, y, each.radius_px * 1.3 + 4, len(text) * CHAR_PX, taken)
        taken.append(box)
        near_x, near_y = min(max(x, box[0]), box[2]), (box[1] + box[3]) / 2
        if math.hypot(near_x - x, near_y - y) > each.radius_px * 1.3 + 10:
            parts.append(f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{near_x:.1f}" y2="{near_y:.1f}"/>')
        parts.append(f'<text class="outlier" x="{box[0]:.1f}" y="{box[3] - 4:.1f}">{escape(text)}</text>')
    left = sum(len(each.rows) for each, _, _ in outliers[LABELS_MAX:])
    if left:
        parts.append(f'<text class="note" x="{LEFT + 8}" y="{BOTTOM - 8}">{left} more outliers in the table</text>')
    return parts


def _free_place(
    x: float, y: float, gap: float, width: float, taken: list[tuple[float, float, float, float]]
) -> tuple[float, float, float, float]:
    """The box (left, top, right, bottom) nearest to a mark that hides nothing; the first one where all are taken."""
    half = LINE_PX / 2
    choices = []
    for step in range(12):
        for sign in (1, -1):
            middle = y + sign * step * (LINE_PX + 1)
            for left in (x + gap, x - gap - width):
                choices.append((left, middle - half, left + width, middle + half))
    inside = [box for box in choices if box[0] >= LEFT and box[2] <= RIGHT and box[1] >= TOP and box[3] <= BOTTOM]
    free = (box for box in inside if not any(_overlap(box, other) for other in taken))
    return next(free, (inside or choices)[0])


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _short(each: Group) -> str:
    """The first name without its folder, cut in its middle, and how many others there are."""
    name = clean(each.rows[0][1].file).rpartition("/")[2]
    if len(name) > NAME_CHARS:
        name = f"{name[: NAME_CHARS - 13]}\u2026{name[-12:]}"
    return f"{name} +{len(each.rows) - 1}" if len(each.rows) > 1 else name


def clean(text: str) -> str:
    """What is no character that can be seen (odd bytes, marks that turn the direction of writing) is written out."""
    plain = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in plain)
