"""Warm-up, then counted rounds in which every contender runs once, each round in another order.

What disturbs the machine for a while then meets everybody, and nobody always runs after the same neighbour.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tools.bench import peers
from tools.bench.inputs import Input, files
from tools.bench.installs import Peer
from tools.bench.meter import LOG, Measured, Step, disk_bytes, run
from tools.bench.peers import Contender, Task
from tools.bench.quality import Quality, judge

CHUNK_BYTES = 1 << 24
Tell = Callable[[str], None]


@dataclass
class Row:
    """One contender on one input. ``inner`` has what each counted run said of itself: stages, scaled limits.

    ``error`` is why there are no numbers, or why there are no more of them.
    """

    name: str
    title: str
    converts: bool
    runs: list[Measured] = field(default_factory=list)
    inner: list[dict[str, float]] = field(default_factory=list)
    scratch_bytes: list[int] = field(default_factory=list)
    output_bytes: int | None = None
    quality: Quality = field(default_factory=Quality)
    error: str | None = None

    @property
    def walls_s(self) -> list[float]:
        return [each.wall_s for each in self.runs]


@dataclass(frozen=True, slots=True)
class Rules:
    """How much is measured: counted ``runs``, cores, seconds that a run may take (``deadline_s``), and seconds beyond
    which a contender is counted once only (``patience_s``, None: never)."""

    runs: int
    threads: int
    deadline_s: float
    patience_s: float | None = None


def play(
    made: Input, contenders: Sequence[Contender], installed: dict[str, Peer], rules: Rules, *, place: Path, tell: Tell
) -> list[Row]:
    """All rounds of one input; ``place`` is a folder for the runs, each of which is removed when it has been seen."""
    rows = {each.name: Row(each.name, each.title, each.converts) for each in contenders}
    for each in contenders:
        rows[each.name].error = _cannot(each, made, installed)
    pythons = {name: peer.python for name, peer in installed.items()}
    for turn in range(rules.runs + 1):
        for each in _order(contenders, turn):
            row = rows[each.name]
            if row.error or (row.runs and rules.patience_s is not None and row.runs[0].wall_s > rules.patience_s):
                continue
            task = Task(made, place / f"{made.kind}-{each.name}", rules.threads, pythons)
            _turn(each, task, row, rules, counted=turn > 0)
            took = row.error or (f"{row.runs[-1].wall_s:.2f} s" if turn else "warm-up")
            tell(f"{made.kind} round {turn}/{rules.runs} {each.name}: {took}")
    return list(rows.values())


def _order(contenders: Sequence[Contender], turn: int) -> list[Contender]:
    start = turn % len(contenders)
    return [*contenders[start:], *contenders[:start]]


def _cannot(contender: Contender, made: Input, installed: dict[str, Peer]) -> str | None:
    if contender.kinds is not None and made.kind not in contender.kinds:
        return "makes no sense for this input"
    if contender.venv is not None and (error := installed[contender.venv].error):
        return f"cannot be installed: {error}"
    return peers.missing(contender)


def _turn(contender: Contender, task: Task, row: Row, rules: Rules, *, counted: bool) -> None:
    """One run; the warm-up's output is judged, and a warm-up that fails is the contender's last run."""
    shutil.rmtree(task.folder, ignore_errors=True)
    task.output.parent.mkdir(parents=True)
    _warm(task.made.path)
    measured = run(contender.steps(task), task.folder, deadline_s=rules.deadline_s)
    row.error = measured.error or _no_output(contender, task)
    if row.error is None and counted:
        said = inner(task.folder)
        row.runs.append(replace(measured, wall_s=said.get("encode_s", measured.wall_s)))
        row.inner.append(said)
        row.scratch_bytes.append(max(0, measured.peak_disk_bytes - disk_bytes(task.output.parent)))
    elif row.error is None and contender.converts:
        row.output_bytes = sum(path.stat().st_size for path in files(task.output))
        row.quality = judge(task.made, task.output)
    shutil.rmtree(task.folder)


def _no_output(contender: Contender, task: Task) -> str | None:
    if contender.name in ("decode", "encode") or (task.output.exists() and files(task.output)):
        return None
    return "it ended well and wrote nothing"


def _warm(path: Path) -> None:
    """The input in the page cache, and nobody else's output on its way to the disk."""
    if hasattr(os, "sync"):
        os.sync()
    for each in files(path):
        with each.open("rb") as file:
            while file.read(CHUNK_BYTES):
                pass


def inner(folder: Path) -> dict[str, float]:
    """What a run said of itself: mimic's report, or the last line of a limit."""
    report = folder / peers.REPORT
    if report.exists():
        told = json.loads(report.read_text())
        stages = {f"{stage['name']}_s": stage["seconds_s"] for stage in told["results"][0]["stages"]}
        return stages | {"report_s": told["seconds_s"]}
    log = folder / LOG
    last = log.read_text(errors="replace").splitlines()[-1:] if log.exists() else []
    if not last or not last[0].startswith("{"):
        return {}
    return {str(name): float(value) for name, value in json.loads(last[0]).items()}


def commands(inputs: Sequence[Input], rules: Rules, *, place: Path, tell: Tell) -> list[Row]:
    """The small commands, whose processor time is what counts."""
    words: dict[str, tuple[str | Path, ...]] = {"mimic --help": ("--help",)}
    for made in inputs:
        if made.kind in ("png", "czi-raw"):
            words[f"mimic info x{made.path.suffix}"] = ("info", made.path)
    rows = {name: Row(name, name, converts=False) for name in words}
    for turn in range(rules.runs + 1):
        for name, said in words.items():
            folder = place / "command"
            folder.mkdir(parents=True, exist_ok=True)
            steps: list[Step] = [peers.mimic_words(*said)]
            measured = run(steps, folder, deadline_s=rules.deadline_s)
            rows[name].error = rows[name].error or measured.error
            if turn:
                rows[name].runs.append(measured)
            shutil.rmtree(folder)
        tell(f"commands round {turn}/{rules.runs}")
    return list(rows.values())
