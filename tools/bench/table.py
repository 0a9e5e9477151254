"""Results as Markdown: a table for each input, one for the small commands, and what was asked beside what came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tools.bench.ratios import Spread, ratios, spread
from tools.bench.rounds import Row

MIB, MB = 2**20, 1e6
HEAD = "| converter | wall s | CPU s | peak MiB | scratch MB | output MB | PSNR dB | SSIM | time / mimic | runs |"
WHY_PEAK = (
    "Medians (lowest-highest). CPU is that of the whole process tree, and so is peak memory, with pages that processes "
    "share counted once (PSS). Scratch is the most that lay on disk beyond the output. PSNR and SSIM compare "
    "level 0, as OpenSlide reads it, with the input's own pixels in a dozen places. Time / mimic is the ratio within "
    "each round. Encoding alone is measured on a sample in memory and scaled up."
)


@dataclass(frozen=True, slots=True)
class Result:
    """All rows of one input."""

    kind: str
    width_px: int
    height_px: int
    bytes: int
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row | None:
        """The contender's row, if it has numbers."""
        return next((row for row in self.rows if row.name == name and row.runs), None)

    def ratio(self, name: str, other: str) -> Spread | None:
        """Time of ``name`` over that of ``other``, round by round; None when one of them has no numbers."""
        first, second = self.row(name), self.row(other)
        return None if first is None or second is None else spread(ratios(first.walls_s, second.walls_s))


def markdown(results: Sequence[Result], commands: Sequence[Row], machine: str, notes: Sequence[str]) -> str:
    """The whole report."""
    parts = [WHY_PEAK, *(_section(result) for result in results)]
    if commands:
        parts.append(_commands(commands))
    if rows := goals(results, commands):
        parts.append("\n".join(["## Asked and reached", "", "| what | asked | reached |", "|---|---|---|", *rows]))
    parts += [machine, *(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _section(result: Result) -> str:
    title = f"## {result.kind}: {result.width_px} x {result.height_px} px, {result.bytes / MB:.0f} MB"
    return "\n".join([title, "", HEAD, "|---|" + "---:|" * 9, *(_row(result, row) for row in result.rows)])


def _row(result: Result, row: Row) -> str:
    if not row.runs:
        return f"| {row.title} | - | - | - | - | - | - | - | - | {_plain(row.error or 'not run')} |"
    walls, cpus = spread(row.walls_s), spread([_cpu_s(row, at) for at in range(len(row.runs))])
    peak = f"{max(each.peak_bytes for each in row.runs) / MIB:.0f}"
    scratch = f"{max(row.scratch_bytes) / MB:.0f}" if row.converts else "-"
    size = "-" if row.output_bytes is None else f"{row.output_bytes / MB:.1f}"
    found = row.quality
    psnr = ("-" if found.error is None else "unreadable") if found.psnr_db is None else f"{found.psnr_db:.1f}"
    ssim = "-" if found.ssim is None else f"{found.ssim:.3f}"
    ratio = "1" if row.name == "mimic" else _text(result.ratio(row.name, "mimic"))
    runs = f"{len(row.runs)}" + (f"; {_plain(row.error)}" if row.error else "")
    cells = [row.title, walls.text(), f"{cpus.median:.2f}", peak, scratch, size, psnr, ssim, ratio, runs]
    return "| " + " | ".join(cells) + " |"


def _cpu_s(row: Row, at: int) -> float:
    return row.inner[at].get("encode_cpu_s", row.runs[at].cpu_s) if row.inner else row.runs[at].cpu_s


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
        peak = max(each.peak_bytes for each in row.runs) / MIB
        lines.append(f"| `{row.title}` | {spread(row.walls_s).text()} | {cpus.text()} | {peak:.0f} |")
    return "\n".join(lines)


# --- what was asked ----------------------------------------------------------------------------------------------

AT_LEAST: tuple[tuple[str, str, float], ...] = (
    ("czi-jxr", "recipe", 2.5),
    ("czi-raw", "recipe", 4),
    ("czi-zstd", "recipe", 4),
    *((kind, peer, 5) for kind in ("czi-raw", "czi-zstd", "czi-jxr") for peer in ("slideio", "large_image", "wsic")),
    *((kind, peer, 5) for kind in ("tiff-strips", "tiff-tiles", "png") for peer in ("slideio", "large_image", "wsic")),
)
"""(input, peer, how many times mimic's time it must take at least)."""
PICTURES = ("tiff-strips", "tiff-tiles", "png", "jpeg")
COMMANDS_CPU_S = {"mimic --help": 0.3, "mimic info x.png": 0.5, "mimic info x.czi": 2.0}
DECODE_RATIO, VIPS_RATIO, COPY_RATIO = 1.15, 1.0, 2.0
PEAK_MIB, SCRATCH_SHARE = 1536, 0.1


def goals(results: Sequence[Result], commands: Sequence[Row]) -> list[str]:
    """A table row for each goal that this run says something about; what it did not measure is not in it."""
    by_kind = {result.kind: result for result in results}
    rows = [
        _goal(f"{kind}: {peer} takes", f"at least {asked:g} x", _text(found), found.median >= asked)
        for kind, peer, asked in AT_LEAST
        if kind in by_kind and (found := by_kind[kind].ratio(peer, "mimic"))
    ]
    if "czi-jxr" in by_kind and (found := by_kind["czi-jxr"].ratio("mimic", "decode")):
        asked_text, valid = f"at most {DECODE_RATIO} x", found.median >= 1
        reached = _text(found) if valid else f"{_text(found)}: no limit, it was slower than the whole"
        met = valid and found.median <= DECODE_RATIO
        rows.append(_goal("czi-jxr: mimic over decoding alone", asked_text, reached, met))
    for kind in PICTURES:
        rows += _vips(by_kind[kind]) if kind in by_kind else []
    for result in results:
        rows += _own(result)
    for row in commands:
        if row.runs and row.name in COMMANDS_CPU_S:
            cpu = spread([each.cpu_s for each in row.runs])
            asked = COMMANDS_CPU_S[row.name]
            rows.append(_goal(f"`{row.name}`, CPU", f"at most {asked} s", f"{cpu.text()} s", cpu.median <= asked))
    return rows


def _vips(result: Result) -> list[str]:
    """Time and size against vips tiffsave."""
    found, ours, theirs = result.ratio("mimic", "vips"), result.row("mimic"), result.row("vips")
    if found is None or ours is None or theirs is None:
        return []
    size = (ours.output_bytes or 0) / (theirs.output_bytes or 1)
    reached = f"{_text(found)} x; {size:.2f} x its size at {ours.quality.psnr_db} dB to {theirs.quality.psnr_db} dB"
    met = found.median <= VIPS_RATIO and size <= 1
    return [_goal(f"{result.kind}: mimic over vips", f"at most {VIPS_RATIO} x, no larger", reached, met)]


def _own(result: Result) -> list[str]:
    """Passthrough against cp, memory and scratch."""
    row = result.row("mimic")
    if row is None or not row.output_bytes:
        return []
    peak = max(each.peak_bytes for each in row.runs) / MIB
    scratch = max(row.scratch_bytes) / row.output_bytes
    rows = [
        _goal(f"{result.kind}: mimic's peak memory", f"under {PEAK_MIB} MiB", f"{peak:.0f} MiB", peak < PEAK_MIB),
        _goal(
            f"{result.kind}: mimic's scratch",
            f"under {SCRATCH_SHARE:.0%} of the output",
            f"{scratch:.1%}",
            scratch < SCRATCH_SHARE,
        ),
    ]
    without = [each.wall_s - told.get("verify_s", 0) for each, told in zip(row.runs, row.inner, strict=True)]
    for limit in ("cp", "cp-sync") if result.kind in ("svs", "dicom") else ():
        if theirs := result.row(limit):
            found = spread(ratios(without, theirs.walls_s))
            what = f"{result.kind}: passthrough without verification, over {limit}"
            rows.append(_goal(what, f"at most {COPY_RATIO:g} x", _text(found), found.median <= COPY_RATIO))
    return rows


def _goal(what: str, asked: str, reached: str, met: bool) -> str:
    return f"| {what} | {asked} | {reached}{'' if met else ' **missed**'} |"


def _text(found: Spread | None) -> str:
    return "-" if found is None else found.text()
