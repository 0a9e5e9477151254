"""Results as Markdown: what was asked beside what came, limits, a table for each input, and one for small commands."""

from __future__ import annotations

from collections.abc import Sequence

from tools.bench.goals import goals
from tools.bench.ratios import Spread, ratios, spread
from tools.bench.results import Result, Run
from tools.bench.rounds import Row

MIB, MB = 2**20, 1e6
HEAD = (
    "| converter | wall s | CPU s | peak MiB | scratch MB | output MB | level 0 MB | levels | PSNR dB | SSIM "
    "| time / mimic | runs |"
)
LIMITS_HEAD = (
    "| input | decoding alone s | without its start s | its CPU s | encoding's CPU s | floor s | floor / decoding "
    "| mimic / decoding | mimic / floor |"
)
WHY = (
    "Medians (lowest-highest). CPU is that of the whole process tree, and so is peak memory, with pages that processes "
    "share counted once (PSS). Scratch is the most that lay on disk beyond the output. Levels, PSNR and SSIM are what "
    "OpenSlide sees: level 0 is compared with the input's own pixels in a dozen places. Level 0 MB counts its tiles by "
    "the file's own tags: libvips has levels 2 apart and mimic 4. Time / mimic is the ratio within each round. One "
    "uncounted round comes first; a peer that is slow, and that no goal needs in every round, has fewer counted ones, "
    "or its first run must do, and the last column says so; one that was given up took at least that long. A ratio in "
    "brackets is of a peer whose pixels are wrong."
)
WHY_LIMITS = (
    "Decoding alone is mimic's own reader in a process of its own, with as many threads and processes, from start to "
    "end: Python's start, imports and the plan are in its time as they are in mimic's; the second column has it "
    "without them. Encoding alone is the same encoder on tiles in memory, a sample scaled up to all levels. The floor "
    "is the processor time of both over the cores: no conversion that decodes and encodes so can be faster, however "
    "well its work is spread; averaging, writing, checking and starting up come on top."
)


def markdown(run: Run, machine: str, notes: Sequence[str]) -> str:
    """The whole report."""
    head = "| what | asked | reached | |\n|---|---|---|---|"
    parts = [f"## Asked and reached\n\n{head}\n" + "\n".join(goals(run.results, run.commands))]
    if limits := _limits(run.results):
        parts += [limits, WHY_LIMITS]
    parts += [_section(result) for result in run.results]
    parts.append(WHY)
    if run.commands:
        parts.append(_commands(run.commands))
    return "\n\n".join([*parts, machine, *(f"- {note}" for note in notes)]) + "\n"


def _limits(results: Sequence[Result]) -> str | None:
    """What decoding and encoding alone leave of a conversion."""
    rows = [line for result in results if not result.also and (line := _limit(result))]
    if not rows:
        return None
    return "\n".join(["## Limits", "", LIMITS_HEAD, "|---|" + "---:|" * 8, *rows])


def _limit(result: Result) -> str | None:
    ours, decode, encode = result.row("mimic"), result.row("decode"), result.row("encode")
    if ours is None or decode is None or encode is None:
        return None
    inside = spread([each["decode_s"] for each in decode.inner])
    cpus = [_cpus_s(decode), _cpus_s(encode)]
    floors = result.floors_s()
    cells = [spread(decode.walls_s).text(), inside.text(), *(f"{spread(each).median:.2f}" for each in cpus)]
    cells += [spread(floors).text(), spread(ratios(floors, decode.walls_s)).text()]
    cells += [_text(result.ratio("mimic", "decode")), spread(ratios(ours.walls_s, floors)).text()]
    return f"| {result.kind} | {' | '.join(cells)} |"


def _section(result: Result) -> str:
    title = f"## {result.kind}: {result.width_px} x {result.height_px} px, {result.bytes / MB:.0f} MB"
    rows = [_row(result, row) for row in result.rows]
    return "\n".join([title, "", HEAD, "|---|" + "---:|" * 11, *rows])


def _row(result: Result, row: Row) -> str:
    if not row.runs:
        bound = result.at_least(row.name)
        cells = ["-"] * 9 + ["-" if bound is None else f"> {bound:.1f}", _plain(row.error or "not run")]
        return f"| {row.title} | {' | '.join(cells)} |"
    found = row.quality
    cells = [
        spread(row.walls_s).text(),
        f"{spread(_cpus_s(row)).median:.2f}",
        f"{row.peak_bytes / MIB:.0f}",
        f"{max(row.scratch_bytes) / MB:.0f}" if row.converts else "-",
        "-" if row.output_bytes is None else f"{row.output_bytes / MB:.1f}",
        "-" if found.level0_bytes is None else f"{found.level0_bytes / MB:.1f}",
        "-" if found.levels is None else f"{found.levels}",
        ("-" if found.error is None else "unreadable") if found.psnr_db is None else f"{found.psnr_db:.1f}",
        "-" if found.ssim is None else f"{found.ssim:.3f}",
        _times(result, row),
        "; ".join([f"{len(row.runs)}", *(_plain(said) for said in (row.note, found.fault, row.error) if said)]),
    ]
    return f"| {row.title} | {' | '.join(cells)} |"


def _times(result: Result, row: Row) -> str:
    text = "1" if row.name == "mimic" else _text(result.ratio(row.name, "mimic"))
    return f"({text})" if row.quality.fault else text


def _cpus_s(row: Row) -> list[float]:
    return [row.cpu_s(at) for at in range(len(row.runs))]


def _plain(text: str) -> str:
    """Fit for a cell."""
    return text.replace("|", "/").replace("\n", " ")


def _commands(rows: Sequence[Row]) -> str:
    lines = ["## Small commands", "", "| command | wall s | CPU s | peak MiB |", "|---|---:|---:|---:|"]
    for row in rows:
        if not row.runs:
            lines.append(f"| {row.title} | {_plain(row.error or 'not run')} | - | - |")
            continue
        cpus = spread([each.cpu_s for each in row.runs])
        lines.append(f"| `{row.title}` | {spread(row.walls_s).text()} | {cpus.text()} | {row.peak_bytes / MIB:.0f} |")
    return "\n".join(lines)


def _text(found: Spread | None) -> str:
    return "-" if found is None else found.text()
