"""The benchmark's command line.

python tools/bench --size 20k                     # everything
python tools/bench --size 20k --also 36k:czi-jxr,36k:czi-raw --slow 30 --patience 120
python tools/bench --size 8k --only mimic,recipe,decode --inputs czi-jxr --runs 5
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

if __name__ == "__main__" and not __package__:
    # as a folder: Python put the folder itself on the path, where its modules would hide others of the same name
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

from tools.bench import inputs, installs, machine, meter, peers, results, rounds
from tools.bench.canvas import SIZES, Canvas
from tools.bench.inputs import KINDS, Input, make
from tools.bench.installs import Peer
from tools.bench.peers import Contender
from tools.bench.results import Result, Run
from tools.bench.rounds import Rules
from tools.bench.table import markdown

RESULTS, TABLE, PLOT = "bench.json", "bench.md", "bench.png"
SMALL = "2k"
"""The size of the small pictures of which ``mimic info`` is asked for."""
ALSO_RUNS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Make inputs, install peers, measure, and write results after every input, so that none is lost."""
    asked = arguments(argv)
    signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C: what runs is ended, and its folder removed
    try:
        return measure(asked)
    except KeyboardInterrupt:
        meter.end_all()
        tell("interrupted; --resume goes on after the last input that was finished")
        return 130


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def measure(asked: argparse.Namespace) -> int:
    """The whole run; 0, or 2 when what is to be resumed does not fit."""
    work, out = asked.work.resolve(), asked.out.resolve()
    for folder in (work, out):
        folder.mkdir(parents=True, exist_ok=True)
    threads = asked.threads or cores()
    if hasattr(os, "sched_setaffinity"):  # children inherit it: nobody has more cores than mimic
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    contenders = [each for each in peers.CONTENDERS if each.name in asked.only]
    venvs = sorted({each.venv for each in contenders if each.venv})
    tell(f"peers: {', '.join(venvs) or 'none'}")
    installed = installs.present(venvs) if asked.no_install else installs.install(venvs, work)
    run = Run(machine.facts(installed, threads), notes(contenders, installed))
    if asked.resume and (out / RESULTS).exists():
        try:
            run = results.load(out / RESULTS, run.about)
        except ValueError as problem:
            tell(f"cannot resume: {problem}")
            return 2
    rules = Rules(asked.runs, threads, asked.deadline, asked.patience, asked.slow)
    jobs = [(asked.size, kind, False) for kind in asked.inputs] + [(*each, True) for each in asked.also]
    made = {(size, kind): _made(work, size, kind) for size, kind, _ in jobs}
    with tempfile.TemporaryDirectory(prefix="runs-", dir=work) as runs:
        place = Path(runs)
        if "mimic" in asked.only and not run.commands:
            run.commands = rounds.commands(_asked_about(work, asked, made), rules, place=place, tell=tell)
        for size, kind, also in jobs:
            if not run.has(kind, size):
                each = made[size, kind]
                run.results.append(
                    _measure(each, size, contenders, installed, rules, work=work, place=place, also=also)
                )
                write(out, run)
    write(out, run)
    tell(f"wrote {out / TABLE}, {out / RESULTS}, {out / PLOT}")
    return 0


def _made(work: Path, size: str, kind: str) -> Input:
    tell(f"input {kind}, {size}")
    return make(kind, work / "inputs" / size, Canvas(*SIZES[size]))


def _asked_about(work: Path, asked: argparse.Namespace, made: dict[tuple[str, str], Input]) -> dict[str, Path]:
    """Names for ``mimic info``: a small PNG, the CZI, and the large PNG, whose every byte is checked."""
    named = {}
    if "png" in asked.inputs:
        named["x.png"] = _made(work, SMALL, "png").path
        large = made[asked.size, "png"]
        named[f"x.png of {large.bytes / 1e6:.0f} MB"] = large.path
    czi = next((made[asked.size, kind] for kind in ("czi-raw", "czi-jxr", "czi-zstd") if kind in asked.inputs), None)
    return named | ({"x.czi": czi.path} if czi else {})


def _measure(
    made: Input,
    size: str,
    contenders: Sequence[Contender],
    installed: dict[str, Peer],
    rules: Rules,
    *,
    work: Path,
    place: Path,
    also: bool,
) -> Result:
    """All rounds of one input; of a size that is only measured also, mimic's alone."""
    sample = None
    if also:
        contenders = [each for each in contenders if each.name == "mimic"]
        rules = replace(rules, runs=min(rules.runs, ALSO_RUNS))
    elif any(each.name == "encode" for each in contenders):
        sample = inputs.sample(work / "inputs" / size, Canvas(made.width_px, made.height_px))
    rows = rounds.play(made, contenders, installed, rules, place=place, tell=tell, sample=sample)
    return Result(made.kind, size, made.width_px, made.height_px, made.bytes, tuple(rows), rules.threads, also)


def notes(contenders: Sequence[Contender], installed: dict[str, Peer]) -> list[str]:
    """What is to be known of the peers."""
    told = [f"{each.title}: {each.note}" for each in contenders if each.note]
    told += [note for peer in installed.values() for note in peer.notes]
    return told + [f"{peer.name} cannot be installed: {peer.error}" for peer in installed.values() if peer.error]


def write(out: Path, run: Run) -> None:
    """Table, raw numbers and plot of what there is so far."""
    from tools.bench.plot import draw  # matplotlib costs a second, and builds a cache when it is new

    results.save(out / RESULTS, run)
    (out / TABLE).write_text(markdown(run, machine.sentence(run.about), run.notes))
    draw(run.results, out / PLOT, title=f"{run.about['processor']}, {run.about['cores']} cores, {run.about['date']}")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What is asked; ends the program with a message when it makes no sense."""
    names = [each.name for each in peers.CONTENDERS]
    parser = argparse.ArgumentParser(prog="bench", description="mimic against its peers and against the machine.")
    parser.add_argument("--size", choices=SIZES, default="20k", help="of the inputs (default 20k: 20480 x 16384 px)")
    parser.add_argument("--work", type=Path, default=Path("bench-work"), help="inputs and peers, kept for the next run")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="where table, numbers and plot go")
    parser.add_argument("--runs", type=int, default=5, help="counted runs after one warm-up (default 5)")
    parser.add_argument("--threads", type=int, help="cores for everybody (default: all)")
    parser.add_argument("--only", type=_names(names), default=names, metavar="NAME,...", help=f"of {', '.join(names)}")
    kinds = list(KINDS)
    parser.add_argument(
        "--inputs", type=_names(kinds), default=kinds, metavar="NAME,...", help=f"of {', '.join(kinds)}"
    )
    parser.add_argument(
        "--also", type=_also, default=[], metavar="SIZE:NAME,...", help="inputs of another size, for mimic alone"
    )
    parser.add_argument("--deadline", type=float, default=3600.0, metavar="S", help="a run may take (default 3600)")
    parser.add_argument("--patience", type=float, metavar="S", help="a run of a peer that no goal names may take")
    parser.add_argument("--slow", type=float, metavar="S", help="all counted runs of such a peer may take, on an input")
    parser.add_argument("--resume", action="store_true", help="keep what --out has of this mimic on this machine")
    parser.add_argument("--no-install", action="store_true", help="take the peers that this Python has")
    asked = parser.parse_args(argv)
    if asked.runs < 1 or (asked.threads is not None and not 1 <= asked.threads <= cores()):
        parser.error(f"at least one run; 1 to {cores()} threads")
    return asked


def _also(text: str) -> list[tuple[str, str]]:
    """ "36k:czi-jxr,36k:czi-raw" as pairs."""
    pairs = [each.partition(":")[::2] for each in text.split(",")]
    if unknown := [":".join(pair) for pair in pairs if pair[0] not in SIZES or pair[1] not in KINDS]:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}")
    return pairs


def _names(known: Sequence[str]) -> type[list[str]]:
    """A parser of "a,b" that takes known names only, in their own order."""

    class Names(list[str]):
        def __init__(self, text: str) -> None:
            wished = text.split(",")
            if unknown := set(wished) - set(known):
                raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(unknown))} among {', '.join(known)}")
            super().__init__(name for name in known if name in wished)

    return Names


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tell(text: str) -> None:
    """Progress, for whoever waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
