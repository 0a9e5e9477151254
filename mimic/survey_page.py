"""A survey as one HTML page that needs nothing else: no network, no other file. Pure.

Names of slides, and what their files say, are hostile text: every one goes through ``_text``, and a policy in the page
allows only its own style sheet and script, by their digests.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from html import escape

from mimic import __version__
from mimic.report import size_text
from mimic.survey import Row, Survey
from mimic.survey_plot import clean, scatter

STYLE = """
:root { --ink: #1c2530; --soft: #5b6875; --line: #d9dfe5; --paper: #ffffff; --shade: #f4f6f8; --good: #2f6fab;
  --band: #d7e8f7; --bad: #c0341d; --bad-soft: #fdebe7; --broken: #8a5a00; --broken-soft: #fff5df; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --soft: #9aa7b4; --line: #36414c; --paper: #161b20;
  --shade: #1e252c; --good: #6fb0ea; --band: #1d3449; --bad: #ff7b63; --bad-soft: #3d211c; --broken: #f0bd5a;
  --broken-soft: #3a2f17; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 14px/1.45 system-ui, "Segoe UI", "Liberation Sans",
  "DejaVu Sans", sans-serif; }
main { max-width: 1500px; margin: 0 auto; padding: 20px 24px 60px; }
h1 { font-size: 20px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 15px; margin: 28px 0 8px; }
.sub { color: var(--soft); margin: 2px 0 16px; }
.cards { display: flex; flex-wrap: wrap; gap: 10px; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: 8px 14px; min-width: 110px;
  background: var(--shade); }
.card b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.card.alarm b { color: var(--bad); } .card.broken b { color: var(--broken); }
.pair { display: grid; grid-template-columns: minmax(0, 1fr) 300px; gap: 28px; align-items: start; }
@media (max-width: 1000px) { .pair { grid-template-columns: minmax(0, 1fr); } }
.scatter { width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; }
.scatter text { font-size: 11.5px; fill: var(--soft); } .scatter .axis { fill: var(--ink); font-size: 12.5px; }
.scatter .frame { fill: none; stroke: var(--line); } .scatter .grid { stroke: var(--line); stroke-width: .6; }
.scatter .band { fill: var(--band); } .scatter .middle { stroke: var(--good); stroke-dasharray: 5 5; fill: none; }
.scatter .lane { stroke: var(--line); stroke-dasharray: 2 4; }
.scatter .mark { cursor: pointer; } .scatter .mark:focus { outline: none; }
.scatter .good circle { fill: var(--good); fill-opacity: .8; stroke: var(--paper); }
.scatter .open circle { fill: var(--paper); stroke: var(--soft); stroke-width: 1.6; }
.scatter .bad polygon { fill: var(--bad); stroke: var(--paper); }
.scatter .mark text { fill: #ffffff; font-weight: 600; pointer-events: none; }
.scatter .open text { fill: var(--ink); }
.scatter .mark:hover > :not(text), .scatter .mark:focus > :not(text) { stroke: var(--ink); stroke-width: 2.5; }
.scatter .outlier { fill: var(--bad); font-weight: 600; paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.scatter .leader { stroke: var(--bad); stroke-width: .8; }
.legend { color: var(--soft); margin: 6px 0 0; }
.counts { width: 100%; border-collapse: collapse; margin-bottom: 14px; } .counts caption { text-align: left;
  font-weight: 600; padding-bottom: 3px; }
.counts td { padding: 2px 0; overflow-wrap: anywhere; } .counts td + td { text-align: right; width: 44px;
  font-variant-numeric: tabular-nums; padding-left: 8px; }
.counts rect { fill: var(--good); } .counts svg { display: block; width: 100%; height: 4px; }
.tools { display: flex; gap: 10px; flex-wrap: wrap; align-items: center; margin-bottom: 8px; }
.tools input[type=search] { font: inherit; color: inherit; background: var(--shade); border: 1px solid var(--line);
  border-radius: 5px; padding: 5px 9px; width: 280px; }
.frame-table { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
#slides { border-collapse: collapse; width: 100%; font-size: 13px; }
#slides th { text-align: left; background: var(--shade); border-bottom: 1px solid var(--line); padding: 0; }
#slides th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 7px 7px;
  cursor: pointer; width: 100%; text-align: left; }
#slides th[aria-sort=ascending] button::after { content: " \\2191"; }
#slides th[aria-sort=descending] button::after { content: " \\2193"; }
#slides td { padding: 5px 7px; border-top: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
#slides td.name { white-space: normal; overflow-wrap: anywhere; min-width: 260px; max-width: 460px; font-weight: 600; }
#slides td.text { white-space: normal; max-width: 150px; overflow-wrap: anywhere; }
#slides td.number { text-align: right; font-variant-numeric: tabular-nums; }
#slides small { display: block; color: var(--soft); font-weight: 400; white-space: normal; width: 118px;
  overflow-wrap: break-word; margin-left: auto; }
#slides td:not(.number) small { width: auto; margin: 0; overflow-wrap: anywhere; }
#slides tr.bad { background: var(--bad-soft); } #slides tr.bad .verdict { color: var(--bad); font-weight: 700; }
#slides tr.broken { background: var(--broken-soft); } #slides tr.broken small { color: var(--broken); }
#slides tr.chosen { outline: 2px solid var(--good); outline-offset: -2px; }
[hidden] { display: none !important; }
footer { color: var(--soft); margin-top: 24px; }
@media print { .tools { display: none; } }
"""

SCRIPT = """
"use strict";
const table = document.getElementById("slides");
const body = table.tBodies[0];
const rows = Array.from(body.rows);
const find = document.getElementById("find");
const only = document.getElementById("only");
const shown = document.getElementById("shown");

function key(row, column) {
  const value = row.cells[column].dataset.v;
  return value === "" ? null : value;
}

function compare(a, b, numeric) {
  return numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true });
}

function sort(heading) {
  const column = heading.cellIndex;
  const down = heading.getAttribute("aria-sort") === "ascending";
  const numeric = heading.dataset.kind === "number";
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const keyed = rows.map((row) => [key(row, column), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return compare(a, b, numeric) * (down ? -1 : 1);
  });
  for (const [, row] of keyed) body.append(row);
}

function filter() {
  const words = find.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let count = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const wanted = !only.checked || row.classList.contains("bad") || row.classList.contains("broken");
    row.hidden = !(wanted && words.every((word) => text.includes(word)));
    count += !row.hidden;
  }
  shown.textContent = count === rows.length ? "" : count + " of " + rows.length + " shown";
}

function choose(mark) {
  const numbers = new Set(mark.dataset.rows.split(" "));
  let first = null;
  for (const row of body.rows) {
    const chosen = numbers.has(row.dataset.row);
    row.classList.toggle("chosen", chosen);
    if (chosen) row.hidden = false;
    if (chosen && first === null) first = row;
  }
  if (first !== null) first.scrollIntoView({ block: "center" });
}

for (const heading of table.tHead.rows[0].cells) heading.addEventListener("click", () => sort(heading));
find.addEventListener("input", filter);
only.addEventListener("change", filter);
for (const mark of document.querySelectorAll(".mark")) {
  mark.addEventListener("click", () => choose(mark));
  mark.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(mark); });
}
"""

HEADINGS = (
    ("slide", "text"),
    ("format", "text"),
    ("scanner", "text"),
    ("size (px)", "number"),
    ("um/px", "number"),
    ("magnification", "number"),
    ("product", "number"),
    ("consistent", "text"),
    ("label", "text"),
    ("macro", "text"),
    ("levels", "number"),
    ("compression", "text"),
    ("quality", "number"),
    ("acquired", "text"),
    ("on disk", "number"),
)


def page(survey: Survey) -> str:
    """The whole page. Points of the scatter lead to their rows; headings sort, a field filters."""
    title = f"Slides in {_text(survey.folder.name or str(survey.folder))}"
    policy = (
        f"default-src 'none'; script-src '{_digest(SCRIPT)}'; style-src '{_digest(STYLE)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    made = survey.made.strftime("%Y-%m-%d %H:%M")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="sub">{_text(str(survey.folder))}, looked at on {made}</p>
{_cards(survey)}
<h2>Scale against magnification</h2>
<div class="pair">
<div>
{scatter(survey.rows)}
<p class="legend">Number: slides in one place. Diamond: the two do not fit each other. Hollow: one of them is not
stated. A click leads to the table.</p>
</div>
<div>
{_counts("Format", survey.summary.formats)}
{_counts("Scanner", survey.summary.scanners)}
{_counts("Magnification", survey.summary.magnifications)}
</div>
</div>
<h2>Slides</h2>
<div class="tools">
<input id="find" type="search" placeholder="Filter by any word" aria-label="Filter">
<label><input id="only" type="checkbox"> only inconsistent or broken</label>
<span id="shown"></span>
</div>
<div class="frame-table">
{_table(survey.rows)}
</div>
<footer>Made by mimic {_text(__version__)} in {survey.seconds_s:.1f} s; metadata only, no pixel was decoded.</footer>
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _digest(text: str) -> str:
    """A source of the Content-Security-Policy: what stands between the tags, byte for byte."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(value: str) -> str:
    """Any text as HTML, in elements and in quoted attributes."""
    return escape(clean(value), quote=True)


def _cards(survey: Survey) -> str:
    summary = survey.summary
    cards = [
        ("slides", str(summary.slides), ""),
        ("inconsistent", str(len(summary.inconsistent)), "alarm" * bool(summary.inconsistent)),
        ("broken", str(len(summary.failed)), "broken" * bool(summary.failed)),
        ("without scale", str(len(summary.without_scale)), ""),
        ("without magnification", str(len(summary.without_magnification)), ""),
        ("on disk", size_text(summary.size_bytes), ""),
    ]
    items = "".join(f'<div class="card {kind}"><b>{value}</b>{name}</div>' for name, value, kind in cards)
    return f'<div class="cards">{items}</div>'


def _counts(caption: str, counts: Mapping[str, int]) -> str:
    most = max(counts.values(), default=1)
    lines = []
    for name, count in counts.items():
        bar = f'<svg viewBox="0 0 100 4" preserveAspectRatio="none"><rect width="{100 * count / most:.1f}" height="4"/>'
        lines.append(f"<tr><td>{_text(name)}{bar}</svg></td><td>{count}</td></tr>")
    return f'<table class="counts"><caption>{caption}</caption>{"".join(lines)}</table>'


def _table(rows: Iterable[Row]) -> str:
    heads = "".join(
        f'<th scope="col" data-kind="{kind}"><button type="button">{name}</button></th>' for name, kind in HEADINGS
    )
    body = "\n".join(_row(number, row) for number, row in enumerate(rows))
    return f'<table id="slides"><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table>'


def _row(number: int, row: Row) -> str:
    kind = "broken" if row.error is not None else "bad" if row.consistent is False else ""
    area = row.width_px * row.height_px if row.width_px and row.height_px else None
    size = f"{row.width_px} x {row.height_px}" if area else ""
    lossy = {True: "lossy", False: "lossless", None: None}[row.lossy]
    acquired = row.acquired.date().isoformat() if row.acquired else ""
    notes = "; ".join(filter(None, [row.error, row.doubt, *row.warnings]))
    cells = [
        _cell(row.file, small=notes, kind="name"),
        _cell(row.format, kind="text"),
        _cell(row.scanner, kind="text"),
        _cell(size, area, row.pixels),
        _cell(_number(row.scale_um), row.scale_um, row.scale_from),
        _cell(_number(row.magnification, "x"), row.magnification, row.magnification_from),
        _cell(_number(row.product_um), row.product_um, ""),
        _cell(_yes(row.consistent), kind="verdict"),
        _cell(_yes(row.label)),
        _cell(_yes(row.macro)),
        _cell(_number(row.levels), row.levels, ""),
        _cell(row.codec, small=lossy),
        _cell(_number(row.quality), row.quality, ""),
        _cell(acquired),
        _cell("" if row.size_bytes is None else size_text(row.size_bytes), row.size_bytes, ""),
    ]
    return f'<tr data-row="{number}" class="{kind}">{"".join(cells)}</tr>'


def _cell(text: str | None, value: float | None = None, small: str | None = None, *, kind: str | None = None) -> str:
    """One cell; ``value`` is what a column of numbers is sorted by, ``small`` a second line."""
    numeric = kind is None and (value is not None or small == "")
    name = kind or ("number" if numeric else "")
    sort_by = (text or "") if value is None else repr(value)
    more = f"<small>{_text(small)}</small>" if small else ""
    return f'<td class="{name}" data-v="{_text(sort_by)}">{_text(text or "")}{more}</td>'


def _number(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.4g}{unit}"


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: ""}[value]
