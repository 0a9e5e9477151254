"""What issue 4 asked for, beside what a run has reached: a row for each goal, measured or not."""

from __future__ import annotations

from collections.abc import Sequence

from tools.bench.ratios import ratios, spread
from tools.bench.results import Result
from tools.bench.rounds import Row

MIB = 2**20
RECIPE_RATIOS = {"czi-jxr": 2.5, "czi-raw": 4.0, "czi-zstd": 4.0}
PEERS, PEER_RATIO = ("slideio", "large_image", "wsic"), 5.0
PICTURES = ("tiff-strips", "tiff-tiles", "png", "jpeg")
COPIED = ("svs", "dicom")
COMMANDS_CPU_S = {"mimic --help": 0.3, "mimic info x.png": 0.5, "mimic info x.czi": 2.0}
DECODE_RATIO, VIPS_RATIO, CP_RATIO = 1.15, 1.0, 2.0
PEAK_MIB, PEAK_GROWTH, SCRATCH_SHARE = 1536, 1.1, 0.1
PSNR_SLACK_DB = 0.05
"""Two encodings of the same pixels are of equal quality within that."""
NOT_MEASURED = "not measured"


def goals(results: Sequence[Result], commands: Sequence[Row]) -> list[str]:
    """Table rows: what, asked, reached, and "met" or "missed"; what was not measured says so."""
    main = {result.kind: result for result in results if not result.also}
    also = [result for result in results if result.also]
    rows = [_recipe(main.get(kind), kind, asked) for kind, asked in RECIPE_RATIOS.items()]
    rows.append(_decode(main.get("czi-jxr")))
    rows += [_peer(list(main.values()), peer) for peer in PEERS]
    rows += [_vips(main.get(kind), kind) for kind in PICTURES]
    rows += [_copied(main.get(kind), kind) for kind in COPIED]
    rows.append(_peak([*main.values(), *also]))
    rows += [_growth(main, each) for each in also] or [_row("peak memory, 36k over 20k", f"at most {PEAK_GROWTH} x")]
    rows.append(_scratch([*main.values(), *also]))
    found = {row.name: row for row in commands}
    rows += [_command(found.pop(name, None), name, asked) for name, asked in COMMANDS_CPU_S.items()]
    return rows + [_command(row, row.name, None) for row in found.values()]


def _row(what: str, asked: str, reached: str = NOT_MEASURED, met: bool | None = None) -> str:
    verdict = "-" if met is None else "met" if met else "**missed**"
    return f"| {what} | {asked} | {reached} | {verdict} |"


def _recipe(result: Result | None, kind: str, asked: float) -> str:
    what, wanted = f"{kind}: the recipe takes", f"at least {asked:g} x mimic's time"
    found = result.ratio("recipe", "mimic") if result else None
    return _row(what, wanted, f"{found.text()} x", found.median >= asked) if found else _row(what, wanted)


def _decode(result: Result | None) -> str:
    what, wanted = "czi-jxr: mimic over decoding alone", f"at most {DECODE_RATIO} x"
    found = result.ratio("mimic", "decode") if result else None
    if not result or not found:
        return _row(what, wanted)
    if found.median < 1:
        return _row(what, wanted, f"{found.text()} x: no limit, it was slower than the whole", False)
    decode, floors = result.row("decode"), result.floors_s()
    least = (
        f"; decoding and encoding need {spread(ratios(floors, decode.walls_s)).text()} x" if decode and floors else ""
    )
    return _row(what, wanted, f"{found.text()} x{least}", found.median <= DECODE_RATIO)


def _peer(results: Sequence[Result], peer: str) -> str:
    """One row for all inputs of a peer: only where its pixels are right does its time count."""
    said, met = [], []
    for result in results:
        row, found, bound = result.any_row(peer), result.ratio(peer, "mimic"), result.at_least(peer)
        if row is None:
            continue
        if found and not row.quality.fault and not row.quality.error:
            met.append(found.median >= PEER_RATIO)
            said.append(f"{result.kind} {found.text(1)}{'' if met[-1] else ' (missed)'}")
        elif found:
            said.append(f"{result.kind} {found.text(1)} but {row.quality.fault or row.quality.error}")
        elif bound:
            said.append(f"{result.kind} > {bound:.1f} (given up)")
    what, wanted = f"{peer} takes", f"at least {PEER_RATIO:g} x mimic's time"
    return _row(what, wanted, "; ".join(said), all(met) if met else None) if said else _row(what, wanted)


def _vips(result: Result | None, kind: str) -> str:
    """Time, and size at equal quality, of the file and of level 0 alone."""
    what = f"{kind}: mimic over vips"
    wanted = f"at most {VIPS_RATIO:g} x its time, no larger at equal quality"
    found = result.ratio("mimic", "vips") if result else None
    ours, theirs = (result.row("mimic"), result.row("vips")) if result else (None, None)
    if found is None or ours is None or theirs is None:
        return _row(what, wanted)
    size = (ours.output_bytes or 0) / (theirs.output_bytes or 1)
    level0 = (ours.quality.level0_bytes or 0) / (theirs.quality.level0_bytes or 1)
    qualities = ours.quality.psnr_db or 0, theirs.quality.psnr_db or 0
    equal = qualities[0] >= qualities[1] - PSNR_SLACK_DB
    reached = f"{found.text()} x; {size:.2f} x its size (level 0 alone {level0:.2f} x), "
    reached += f"{qualities[0]:.2f} dB beside {qualities[1]:.2f}"
    return _row(what, wanted, reached, found.median <= VIPS_RATIO and size <= 1 and equal)


def _copied(result: Result | None, kind: str) -> str:
    """Passthrough: the whole, and what of it is verification, beside ``cp`` to the disk."""
    what, wanted = f"{kind}: copied", f"at most {CP_RATIO:g} x cp, plus verification of a sample"
    ours, cp = (result.row("mimic"), result.row("cp-sync")) if result else (None, None)
    if ours is None or cp is None:
        return _row(what, wanted)
    verify_s = ours.stages.get("verify_s", 0.0)
    copying = [wall_s - verify_s for wall_s in ours.walls_s]
    found = spread(ratios(copying, cp.walls_s))
    parts = f"{spread(ours.walls_s).text()} s in all, {verify_s:.2f} s of the warm-up the stage that verifies a sample"
    reached = f"{found.text(1)} x cp without that stage; {parts}; cp {spread(cp.walls_s).text()} s, on disk"
    return _row(what, wanted, reached, found.median <= CP_RATIO)


def _peak(results: Sequence[Result]) -> str:
    said, met = [], []
    for result in results:
        if row := result.row("mimic"):
            met.append(row.peak_bytes < PEAK_MIB * MIB)
            name = f"{result.kind} {result.size}" if result.also else result.kind
            said.append(f"{name} {row.peak_bytes / MIB:.0f}")
    what, wanted = "mimic's peak memory, whole tree", f"under {PEAK_MIB} MiB"
    return _row(what, wanted, f"MiB: {', '.join(said)}", all(met)) if said else _row(what, wanted)


def _growth(main: dict[str, Result], also: Result) -> str:
    """Peak memory of a larger picture of the same kind."""
    what, wanted = f"{also.kind}: peak memory, {also.size} over the rest", f"at most {PEAK_GROWTH} x"
    smaller = main[also.kind].row("mimic") if also.kind in main else None
    larger = also.row("mimic")
    if smaller is None or larger is None:
        return _row(what, wanted)
    growth = larger.peak_bytes / smaller.peak_bytes
    peaks = [spread([each.peak_bytes / MIB for each in row.runs]).text(0) for row in (larger, smaller)]
    reached = f"{growth:.2f} x: {peaks[0]} MiB, {peaks[1]} MiB"
    return _row(what, wanted, reached, growth <= PEAK_GROWTH)


def _scratch(results: Sequence[Result]) -> str:
    shares = {
        f"{result.kind} {result.size}": max(row.scratch_bytes) / row.output_bytes
        for result in results
        if (row := result.row("mimic")) and row.output_bytes
    }
    what, wanted = "mimic's scratch on disk", f"under {SCRATCH_SHARE:.0%} of the output"
    if not shares:
        return _row(what, wanted)
    most = max(shares, key=lambda name: shares[name])
    return _row(what, wanted, f"at most {shares[most]:.1%} ({most})", shares[most] < SCRATCH_SHARE)


def _command(row: Row | None, name: str, asked: float | None) -> str:
    wanted = "-" if asked is None else f"at most {asked} s"
    if row is None or not row.runs:
        return _row(f"`{name}`, CPU", wanted)
    cpu = spread([each.cpu_s for each in row.runs])
    return _row(f"`{name}`, CPU", wanted, f"{cpu.text()} s", None if asked is None else cpu.median <= asked)
