"""The benchmark's command line.

python tools/bench --size 20k                     # everything
python tools/bench --size 8k --only mimic,recipe,decode --inputs czi-jxr --runs 5
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # as a folder: Python put the folder itself on the path, where its modules would hide others of the same name
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

from tools.bench import installs, machine, peers, rounds
from tools.bench.canvas import SIZES, Canvas
from tools.bench.inputs import KINDS, make
from tools.bench.installs import Peer
from tools.bench.rounds import Row, Rules
from tools.bench.table import Result, markdown

RESULTS, TABLE, PLOT = "bench.json", "bench.md", "bench.png"
SCHEMA = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Make inputs, install peers, measure, and write results after every input, so that none is lost."""
    asked = arguments(argv)
    work, out = asked.work.resolve(), asked.out.resolve()
    for folder in (work, out):
        folder.mkdir(parents=True, exist_ok=True)
    threads = asked.threads or cores()
    if hasattr(os, "sched_setaffinity"):  # children inherit it: nobody has more cores than mimic
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    rules = Rules(asked.runs, threads, asked.deadline, asked.patience)
    contenders = [each for each in peers.CONTENDERS if each.name in asked.only]
    venvs = sorted({each.venv for each in contenders if each.venv})
    tell(f"peers: {', '.join(venvs) or 'none'}")
    installed = installs.present(venvs) if asked.no_install else installs.install(venvs, work)
    canvas = Canvas(*SIZES[asked.size])
    made = []
    for kind in asked.inputs:
        tell(f"input {kind}, {asked.size}")
        made.append(make(kind, work / "inputs" / asked.size, canvas))
    about = machine.facts(installed, threads)
    results: list[Result] = []
    commands: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="runs-", dir=work) as runs:
        place = Path(runs)
        if "mimic" in asked.only:
            commands = rounds.commands(made, rules, place=place, tell=tell)
        for each in made:
            rows = rounds.play(each, contenders, installed, rules, place=place, tell=tell)
            results.append(Result(each.kind, each.width_px, each.height_px, each.bytes, tuple(rows)))
            write(out, results, commands, about, installed)
    tell(f"wrote {out / TABLE}, {out / RESULTS}, {out / PLOT}")
    return 0


def write(
    out: Path, results: Sequence[Result], commands: Sequence[Row], about: dict[str, str], installed: dict[str, Peer]
) -> None:
    """Table, raw numbers and plot of what there is so far."""
    from tools.bench.plot import draw  # matplotlib costs a second, and builds a cache when it is new

    notes = [note for peer in installed.values() for note in peer.notes]
    notes += [f"{peer.name} cannot be installed: {peer.error}" for peer in installed.values() if peer.error]
    told = {
        "schema": SCHEMA,
        "machine": about,
        "notes": notes,
        "results": [asdict(result) for result in results],
        "commands": [asdict(row) for row in commands],
    }
    (out / RESULTS).write_text(json.dumps(told, indent=1) + "\n")
    (out / TABLE).write_text(markdown(results, commands, machine.sentence(about), notes))
    title = f"{about['processor']}, {about['cores']} cores, {about['date']}; blue mimic, grey peers, yellow limits"
    draw(results, out / PLOT, title=title)


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
    parser.add_argument("--deadline", type=float, default=3600.0, metavar="S", help="a run may take (default 3600)")
    parser.add_argument("--patience", type=float, metavar="S", help="what takes longer is counted once only")
    parser.add_argument("--no-install", action="store_true", help="take the peers that this Python has")
    asked = parser.parse_args(argv)
    if asked.runs < 1 or (asked.threads is not None and not 1 <= asked.threads <= cores()):
        parser.error(f"at least one run; 1 to {cores()} threads")
    return asked


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
